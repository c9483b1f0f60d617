import type { ApiKeys } from "../queues/api-keys.ts";
import { MathllmError } from "../queues/errors.ts";

const LOOK_MS = 1000;
const LOOPBACK = /^(localhost|127\.\d+\.\d+\.\d+|\[?::1\]?)(:\d+)?$/i;

/** Whether `host`, with or without a port, names this machine to itself. */
export function isLoopback(host: string): boolean {
  return LOOPBACK.test(host);
}

/**
 * Knows whether requests need a key. Without any key the API is open to this machine alone; from the first key on (a second later at most in
 * other processes) everybody needs one.
 */
export class KeyGate {
  readonly #keys: ApiKeys;
  readonly #host: string;
  readonly #onError: (error: Error) => void;
  #inUse = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(keys: ApiKeys, host: string, onError: (error: Error) => void) {
    this.#keys = keys;
    this.#host = host;
    this.#onError = onError;
  }

  /** Throws `invalid-configuration` when others could reach an API without keys. */
  async start(): Promise<void> {
    this.#inUse = await this.#keys.inUse();
    if (!isLoopback(this.#host) && !(await this.#keys.anyValid())) {
      throw new MathllmError(
        "invalid-configuration",
        `HOST: expected a loopback address such as 127.0.0.1 while there is no API key; got ${JSON.stringify(this.#host)}, where others could use it. ` +
          "Make a key with mathllm keys add NAME --role admin, or set API_KEYS=name:role:key.",
      );
    }
    this.#timer = setInterval(() => this.#look(), LOOK_MS);
  }

  /** Requests need a key. */
  get closed(): boolean {
    return this.#inUse || !isLoopback(this.#host);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** While Redis is away it stays as it was. */
  #look(): void {
    this.#keys.inUse().then((inUse) => {
      this.#inUse = inUse;
    }, this.#onError);
  }
}
