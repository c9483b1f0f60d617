import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { isSecretSetting, type ModelProfile } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import { findFreePort, isPortFree } from "../../queues/free-port.ts";
import { ChatClient } from "./chat-client.ts";
import type { Endpoint, Engine, EngineExit, EngineMetrics, Footprint, ReadyModel } from "./engine.ts";
import { ServerProcess } from "./server-process.ts";

const HEALTH_POLL_MS = 100;
const HEALTH_TIMEOUT_MS = 5000;
const METRICS_TIMEOUT_MS = 2000;

/** How a server program is started, decided before anything is: the exact command line, and what was translated on the way. */
export interface Launch {
  command: string;
  args: string[];
  /** On top of this process's environment. */
  env: Record<string, string>;
  /** What the owner's settings became in this program's dialect, where that is not word for word. */
  notes: string[];
  digest: string;
}

/** What differs between the server programs. */
export interface ServerProgram {
  /** Throws `engine-missing`, `model-missing`, `model-invalid`, `invalid-configuration`. */
  launch(profile: ModelProfile, port: number, signal: AbortSignal): Promise<Launch>;
  /** Tokens per sequence of the running server. */
  contextTokens(baseUrl: string): Promise<number>;
  metrics(text: string): EngineMetrics;
  footprint(profile: ModelProfile): Promise<Footprint>;
  weightFiles(profile: ModelProfile): Promise<string[]>;
  /** Only where the program can sleep. */
  sleep?(baseUrl: string, level: 1 | 2): Promise<void>;
  wake?(baseUrl: string, signal: AbortSignal): Promise<void>;
}

/** A server program of others (vLLM, llama-server) that speaks the OpenAI chat API, `/health` and Prometheus metrics. */
export class HttpEngine implements Engine {
  readonly #program: ServerProgram;
  readonly #process: ServerProcess;
  readonly #log: Logger | undefined;
  readonly #stopped = new AbortController();
  #baseUrl = "";
  #digest = "";
  #modelId = "";

  constructor(program: ServerProgram, log?: Logger) {
    this.#program = program;
    this.#log = log;
    this.#process = new ServerProcess(log);
  }

  get exited(): Promise<EngineExit> {
    return this.#process.exited;
  }

  async dryRun(profile: ModelProfile): Promise<{ command: string; notes: string[] }> {
    const launch = await this.#program.launch(profile, profile.port, this.#stopped.signal);
    return { command: commandLine(launch), notes: launch.notes };
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
    const { command, args, env, notes, digest } = await this.#program.launch(profile, port, this.#stopped.signal);
    for (const note of notes) this.#log?.warn({ role: profile.role }, note);
    this.#stopped.signal.throwIfAborted();
    this.#digest = digest;
    this.#baseUrl = `http://127.0.0.1:${port}`;
    const { REDIS_URL: _, ...inherited } = process.env;
    this.#log?.info({ command: commandLine({ command, args, env }) }, "starting a model server");
    const identity = await this.#process.start(command, args, { ...inherited, ...env });
    return { baseUrl: this.#baseUrl, ...identity };
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
    return sleep === undefined ? undefined : (level) => sleep(this.#baseUrl, level);
  }

  get wake(): Engine["wake"] {
    const { wake } = this.#program;
    if (wake === undefined) return undefined;
    return async (timeoutMs) => {
      const deadline = AbortSignal.timeout(timeoutMs);
      await wake(this.#baseUrl, deadline);
      await this.#oneToken(deadline);
    };
  }

  async health(timeoutMs: number): Promise<void> {
    const response = await fetch(`${this.#baseUrl}/health`, { signal: AbortSignal.timeout(timeoutMs) });
    await response.arrayBuffer();
    if (!response.ok) throw new MathllmError("engine-failed", `The model server's health check answered ${response.status}.`);
  }

  async metrics(): Promise<EngineMetrics> {
    const response = await fetch(`${this.#baseUrl}/metrics`, { signal: AbortSignal.timeout(METRICS_TIMEOUT_MS) });
    return this.#program.metrics(await response.text());
  }

  footprint(profile: ModelProfile): Promise<Footprint> {
    return this.#program.footprint(profile);
  }

  weightFiles(profile: ModelProfile): Promise<string[]> {
    return this.#program.weightFiles(profile);
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
    const response = await fetch(`${this.#baseUrl}/v1/models`, { signal: deadline });
    const { data } = (await response.json()) as { data: { id: string }[] };
    this.#modelId = data[0]!.id;
    await this.#oneToken(deadline);
    return { modelId: this.#modelId, digest: this.#digest, contextTokens: await this.#program.contextTokens(this.#baseUrl) };
  }

  async #oneToken(signal: AbortSignal): Promise<void> {
    const client = new ChatClient(this.#baseUrl, { model: this.#modelId });
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
