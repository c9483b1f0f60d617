import http from "node:http";
import type { AddressInfo } from "node:net";
import type { ModelProfile } from "../../queues/config.ts";
import type { Role } from "../../queues/names.ts";
import type {
  Endpoint,
  Engine,
  EngineExit,
  EngineMetrics,
  Footprint,
  PreparedModel,
  PrepareOptions,
  ReadyModel,
} from "../../workers/engines/engine.ts";

/** Watches all fake engines of one GPU and writes down what must never happen. */
export class FakeGpu {
  readonly violations: string[] = [];
  readonly loads: Role[] = [];
  up = 0;
  maxUp = 0;
  served = 0;
  /** The body of the latest request. */
  lastRequest: { messages: { role: string; content: string }[]; seed?: number; [field: string]: unknown } = { messages: [] };
  lastHeaders: http.IncomingHttpHeaders = {};
  /** Milliseconds of one answer; the text is what `answer` makes of the last message, and of the seed if there is one. */
  serviceMs: (prompt: string, seed?: number) => number = () => 1;
  answer: (prompt: string, seed?: number) => string = () => "It is 1.\n\\boxed{1}";
  /** The preparation of a profile: what it takes, and the files that it is made of. */
  prepare: (profile: ModelProfile, options: PrepareOptions) => Promise<PreparedModel> = async () => ({ files: [] });
  /** What stands between the call of `start` and its beginning. */
  starting: (profile: ModelProfile) => Promise<void> = async () => {};
  /** Roles whose preparation has ended well. */
  readonly prepared = new Set<Role>();
  /** Which role's answers the token limit cuts. */
  cuts: Role | null = null;
  /** What the load of a profile fails with; null: it does not. */
  loadError: (profile: ModelProfile) => Error | null = () => null;
  /** What the health check of every server says. */
  healthy = true;
  /** Those that were started, in order. */
  readonly engines: FakeEngine[] = [];

  create = (profile: ModelProfile): Engine => new FakeEngine(this, profile);
}

/** A model server inside this process: real HTTP, no model. */
export class FakeEngine implements Engine {
  readonly exited: Promise<EngineExit>;
  readonly role: Role;
  serving = 0;
  readonly #gpu: FakeGpu;
  readonly #profile: ModelProfile;
  #server: http.Server | undefined;
  #resolveExited!: (exit: EngineExit) => void;

  constructor(gpu: FakeGpu, profile: ModelProfile) {
    this.#gpu = gpu;
    this.role = profile.role;
    this.#profile = profile;
    this.exited = new Promise((resolve) => {
      this.#resolveExited = resolve;
    });
  }

  async prepare(profile: ModelProfile, options: PrepareOptions = {}): Promise<PreparedModel> {
    this.#gpu.prepared.delete(this.role);
    const prepared = await this.#gpu.prepare(profile, options);
    this.#gpu.prepared.add(this.role);
    return prepared;
  }

  async start(): Promise<Endpoint> {
    this.#gpu.engines.push(this);
    await this.#gpu.starting(this.#profile);
    if (!this.#gpu.prepared.has(this.role)) this.#gpu.violations.push(`${this.role} loaded before it was prepared`);
    if (this.#gpu.up > 0) this.#gpu.violations.push(`${this.role} loaded while ${this.#gpu.up} up`);
    this.#gpu.up++;
    this.#gpu.maxUp = Math.max(this.#gpu.maxUp, this.#gpu.up);
    this.#gpu.loads.push(this.role);
    this.#server = http.createServer((request, response) => void this.#chat(request, response));
    await new Promise<void>((resolve) => this.#server!.listen(0, "127.0.0.1", resolve));
    return {
      baseUrl: `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`,
      apiKey: undefined,
      pid: process.pid,
      startTicks: -1,
    };
  }

  async ready(): Promise<ReadyModel> {
    const error = this.#gpu.loadError(this.#profile);
    if (error !== null) throw error;
    return { modelId: `fake-${this.role}`, digest: "0", contextTokens: 512 };
  }

  async stop(): Promise<void> {
    if (this.#server === undefined) return;
    if (this.serving > 0 && this.#gpu.healthy) this.#gpu.violations.push(`${this.role} stopped with ${this.serving} in flight`);
    this.#end({ code: 0, signal: null, lastLines: [] });
  }

  /** As if the process had died. */
  crash(exit: Partial<EngineExit> = {}): void {
    this.#end({ code: null, signal: "SIGSEGV", lastLines: ["died"], ...exit });
  }

  async dryRun() {
    return { command: "", notes: [] };
  }

  async health(): Promise<void> {
    if (!this.#gpu.healthy) throw new Error("no answer");
  }

  async footprint(): Promise<Footprint> {
    return { weightsBytes: 1, contextBytes: 1 };
  }

  async metrics(): Promise<EngineMetrics> {
    return {
      requestsRunning: this.serving,
      requestsWaiting: 0,
      promptTokensTotal: 0,
      completionTokensTotal: this.#gpu.served,
      draftTokensTotal: null,
      draftAcceptedTokensTotal: null,
      kvCacheUsage: null,
      preemptionsTotal: null,
      prefixCacheHitTokensTotal: null,
      prefixCacheQueryTokensTotal: null,
    };
  }

  #end(exit: EngineExit): void {
    if (this.#server === undefined) return;
    this.#server.close();
    this.#server.closeAllConnections();
    this.#server = undefined;
    this.#gpu.up--;
    this.#resolveExited(exit);
  }

  async #chat(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    this.serving++;
    response.on("close", () => {
      this.serving--;
    });
    let body = "";
    for await (const chunk of request) body += chunk;
    this.#gpu.lastHeaders = request.headers;
    this.#gpu.lastRequest = JSON.parse(body) as FakeGpu["lastRequest"];
    const { messages, seed } = this.#gpu.lastRequest;
    const prompt = messages.at(-1)!.content;
    setTimeout(
      () => {
        if (response.destroyed) return;
        const send = (value: unknown) => response.write(`data: ${JSON.stringify(value)}\n\n`);
        response.writeHead(200, { "content-type": "text/event-stream" });
        send({ choices: [{ delta: { content: this.#gpu.answer(prompt, seed) } }] });
        send({ choices: [{ delta: {}, finish_reason: this.#gpu.cuts === this.role ? "length" : "stop" }] });
        send({ choices: [], usage: { prompt_tokens: 10, completion_tokens: 5 } });
        this.#gpu.served++;
        response.end("data: [DONE]\n\n");
      },
      this.#gpu.serviceMs(prompt, seed),
    );
  }
}
