/**
 * Keeps a model that can't be loaded, or that dies again and again, from eating the GPU's time and the jobs' retries.
 *
 *   closed ──load failed, or the third crash without a job done──► open ──back-off over──► half-open
 *      ▲                                                            ▲                        │
 *      └────────────── a job is done ◄──────────────────────────────┴──── failed again ──────┘
 *
 * While it is open the model is not loaded and its jobs wait; the back-off doubles from one second to one minute.
 */
const BACKOFF_MS = 1000;
const BACKOFF_CAP_MS = 60_000;
/** A server may die once or twice, by a bad job or a kill, without its model being at fault. */
const TOLERATED_CRASHES = 2;

export type CircuitState = "closed" | "half-open" | "open";

export class Circuit {
  #failures = 0;
  #crashes = 0;
  #until: number | null = null;
  #reason: string | null = null;

  get failures(): number {
    return this.#failures + this.#crashes;
  }

  /** Epoch milliseconds until which it is open; null when it is not. */
  until(now: number): number | null {
    return this.#until !== null && this.#until > now ? this.#until : null;
  }

  state(now: number): CircuitState {
    if (this.#until === null) return "closed";
    return this.#until > now ? "open" : "half-open";
  }

  /** Why it is, or just was, open; null when closed. */
  get reason(): string | null {
    return this.#reason;
  }

  loadFailed(reason: string, now: number): void {
    this.#failures++;
    this.#open(reason, this.#failures, now);
  }

  crashed(reason: string, now: number): void {
    this.#crashes++;
    if (this.#crashes > TOLERATED_CRASHES) this.#open(reason, this.#crashes - TOLERATED_CRASHES, now);
  }

  /** The model could be loaded; whether it serves is seen at its first job. */
  loaded(): void {
    this.#failures = 0;
    if (this.#crashes <= TOLERATED_CRASHES) this.#close();
  }

  jobDone(): void {
    this.#crashes = 0;
    this.#close();
  }

  reset(): void {
    this.#failures = 0;
    this.jobDone();
  }

  #open(reason: string, times: number, now: number): void {
    this.#reason = reason;
    this.#until = now + Math.min(BACKOFF_MS * 2 ** (times - 1), BACKOFF_CAP_MS);
  }

  #close(): void {
    this.#until = null;
    this.#reason = null;
  }
}
