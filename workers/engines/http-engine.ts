import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import type { ModelProfile } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import { findFreePort, isPortFree } from "../../queues/free-port.ts";
import { isSecretSetting } from "../../queues/settings.ts";
import { bearer, modelServerKey } from "./authorization.ts";
import { ChatClient } from "./chat-client.ts";
import { childEnvironment } from "./child-environment.ts";
import type { Endpoint, Engine, EngineExit, EngineMetrics, Footprint, PreparedModel, PrepareOptions, ReadyModel } from "./engine.ts";
import { ServerProcess } from "./server-process.ts";

const HEALTH_POLL_MS = 100;
const HEALTH_TIMEOUT_MS = 5000;
const METRICS_TIMEOUT_MS = 2000;

/** How a server program is started, decided before anything is: the exact command line, and what was translated on the way. */
export interface Launch {
  command: string;
  args: string[];
  /** On top of `HttpEngineOptions.environment`. */
  env: Record<string, string>;
  /** What the owner's settings became in this program's dialect, where that is not word for word. */
  notes: string[];
  digest: string;
}

/** A running server, as far as a request needs to know it. */
export type ServerAddress = Pick<Endpoint, "baseUrl" | "apiKey">;

/** What differs between the server programs. */
export interface ServerProgram {
  /** The environment variable in which it takes the key that it then asks for: a command line can be read by every user. */
  keyVariable: string;
  /** Brings the model's files onto this machine. */
  prepare(profile: ModelProfile, options: PrepareOptions): Promise<PreparedModel>;
  /** Throws `engine-missing`, `model-missing`, `model-invalid`, `invalid-configuration`. */
  launch(profile: ModelProfile, port: number, signal: AbortSignal): Promise<Launch>;
  /** Tokens per sequence of the running server. */
  contextTokens(server: ServerAddress): Promise<number>;
  metrics(text: string): EngineMetrics;
  footprint(profile: ModelProfile): Promise<Footprint>;
  /** Only where the program can sleep. */
  sleep?(server: ServerAddress, level: 1 | 2): Promise<void>;
  wake?(server: ServerAddress, signal: AbortSignal): Promise<void>;
}

export interface HttpEngineOptions {
  /** The child's; unset: what of ours it may see. */
  environment?: NodeJS.ProcessEnv;
  log?: Logger;
}

/** A server program of others (vLLM, llama-server) that speaks the OpenAI chat API, `/health` and Prometheus metrics. */
export class HttpEngine implements Engine {
  readonly #program: ServerProgram;
  readonly #process: ServerProcess;
  readonly #environment: NodeJS.ProcessEnv;
  readonly #log: Logger | undefined;
  readonly #stopped = new AbortController();
  #server: ServerAddress = { baseUrl: "", apiKey: undefined };
  #digest = "";
  #modelId = "";

  constructor(program: ServerProgram, { environment = childEnvironment(), log }: HttpEngineOptions = {}) {
    this.#program = program;
    this.#environment = environment;
    this.#log = log;
    this.#process = new ServerProcess(log);
  }

  get exited(): Promise<EngineExit> {
    return this.#process.exited;
  }

  async dryRun(profile: ModelProfile): Promise<{ command: string; notes: string[] }> {
    const launch = await this.#program.launch(profile, profile.port, this.#stopped.signal);
    return {
      command: commandLine(launch),
      notes: [...launch.notes, `The key that it asks for is taken from ${this.#program.keyVariable}.`],
    };
  }

  async prepare(profile: ModelProfile, options: PrepareOptions = {}): Promise<PreparedModel> {
    const prepared = await this.#program.prepare(profile, options);
    // A program that is missing or does not know a setting is found out now, not when the other model has gone.
    await this.#program.launch(profile, profile.port, options.signal ?? this.#stopped.signal);
    return prepared;
  }

  async start(profile: ModelProfile): Promise<Endpoint> {
    const port = profile.port === 0 ? await findFreePort() : profile.port;
    // vLLM shares a taken port instead of failing, so it is looked at here.
    if (!(await isPortFree(port))) {
      throw new MathllmError(
        "port-in-use",
        `Port ${port} is taken by another program. Stop it, or set STUDENT_PORT or TALKER_PORT to a free one (0 finds one).`,
      );
    }
    const launch = await this.#program.launch(profile, port, this.#stopped.signal);
    for (const note of launch.notes) this.#log?.warn({ role: profile.role }, note);
    this.#stopped.signal.throwIfAborted();
    this.#digest = launch.digest;
    const apiKey = modelServerKey(profile);
    this.#server = { baseUrl: `http://127.0.0.1:${port}`, apiKey };
    this.#log?.info({ command: commandLine(launch) }, "starting a model server");
    const env = { ...this.#environment, ...launch.env, [this.#program.keyVariable]: apiKey };
    const identity = await this.#process.start(launch.command, launch.args, env);
    return { ...this.#server, ...identity };
  }

  async ready(timeoutMs: number): Promise<ReadyModel> {
    const deadline = AbortSignal.timeout(timeoutMs);
    const warmed = this.#warmUp(deadline).catch((error) => {
      throw deadline.aborted ? this.#process.late("ready", timeoutMs) : error;
    });
    return Promise.race([warmed, this.#process.died("starting")]);
  }

  async stop(graceMs: number): Promise<void> {
    this.#stopped.abort(new MathllmError("engine-failed", "The model server was stopped before it was started."));
    await this.#process.stop(graceMs);
  }

  get sleep(): Engine["sleep"] {
    const { sleep } = this.#program;
    return sleep === undefined ? undefined : (level) => sleep(this.#server, level);
  }

  get wake(): Engine["wake"] {
    const { wake } = this.#program;
    if (wake === undefined) return undefined;
    return async (timeoutMs) => {
      const deadline = AbortSignal.timeout(timeoutMs);
      await wake(this.#server, deadline);
      await this.#oneToken(deadline);
    };
  }

  async health(timeoutMs: number): Promise<void> {
    const response = await this.#get("/health", AbortSignal.timeout(timeoutMs));
    await response.arrayBuffer();
    if (!response.ok) throw new MathllmError("engine-failed", `The model server's health check answered ${response.status}.`);
  }

  async metrics(): Promise<EngineMetrics> {
    const response = await this.#get("/metrics", AbortSignal.timeout(METRICS_TIMEOUT_MS));
    return this.#program.metrics(await response.text());
  }

  footprint(profile: ModelProfile): Promise<Footprint> {
    return this.#program.footprint(profile);
  }

  async #warmUp(deadline: AbortSignal): Promise<ReadyModel> {
    for (;;) {
      deadline.throwIfAborted();
      const healthy = await this.health(HEALTH_TIMEOUT_MS).then(
        () => true,
        () => false,
      );
      if (healthy) break;
      await delay(HEALTH_POLL_MS, undefined, { signal: deadline });
    }
    const response = await this.#get("/v1/models", deadline);
    const { data } = (await response.json()) as { data: { id: string }[] };
    this.#modelId = data[0]!.id;
    await this.#oneToken(deadline);
    return { modelId: this.#modelId, digest: this.#digest, contextTokens: await this.#program.contextTokens(this.#server) };
  }

  #get(address: string, signal: AbortSignal): Promise<Response> {
    return fetch(`${this.#server.baseUrl}${address}`, { headers: bearer(this.#server.apiKey), signal });
  }

  async #oneToken(signal: AbortSignal): Promise<void> {
    const { baseUrl, apiKey } = this.#server;
    const client = new ChatClient(baseUrl, { model: this.#modelId, apiKey });
    try {
      await client.chat({ messages: [{ role: "user", content: "1 + 1" }], maxTokens: 1 }, { signal });
    } finally {
      await client.close();
    }
  }
}

/** The command as it could be typed in a shell; a secret is named by its variable, since this is logged and printed. */
export function commandLine({ command, args, env }: Pick<Launch, "command" | "args" | "env">): string {
  const quote = (text: string) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);
  const assignments = Object.entries(env).map(([name, value]) => `${name}=${isSecretSetting(name) ? `"$${name}"` : quote(value)}`);
  return [...assignments, quote(command), ...args.map(quote)].join(" ");
}
