import { ROLES, type Role } from "../../queues/names.ts";

/** One try at a preparation. */
export interface PreparationAttempt {
  /** Aborts when the preparation is to stop, or to let the other's download go first. */
  readonly signal: AbortSignal;
  /** It was aborted for the other's sake: it is to be tried again without having failed. */
  readonly yielded: boolean;
  /** Resolves when this attempt may download; rejects when its signal aborts. */
  turn(): Promise<void>;
  /** To be called however it ends. */
  end(): void;
}

/**
 * Lets one role download at a time, so that two downloads don't halve each other's rate: the one whose oldest job has waited longer, else
 * the Student. A download for which no job waits makes room as soon as one waits for the other; what it has fetched is kept.
 */
export class DownloadTurn {
  readonly #since: Record<Role, number | null> = { student: null, talker: null };
  readonly #waiting = new Map<Role, () => void>();
  #holder: { role: Role; yieldTurn: () => void } | null = null;

  get holder(): Role | null {
    return this.#holder?.role ?? null;
  }

  /** Since when (epoch milliseconds) the role's oldest job has waited; null: none waits. */
  wanted(role: Role, since: number | null): void {
    this.#since[role] = since;
    this.#makeRoom();
  }

  attempt(role: Role, stopped: AbortSignal): PreparationAttempt {
    const giveWay = new AbortController();
    const signal = AbortSignal.any([stopped, giveWay.signal]);
    const yieldTurn = () => giveWay.abort(new Error("the other model is needed first"));
    let ended = false;
    return {
      signal,
      get yielded() {
        return giveWay.signal.aborted;
      },
      turn: () =>
        new Promise<void>((resolve, reject) => {
          const aborted = () => {
            this.#waiting.delete(role);
            reject(signal.reason);
          };
          if (ended || signal.aborted) return aborted();
          if (this.#holder?.role === role) return resolve();
          signal.addEventListener("abort", aborted, { once: true });
          this.#waiting.set(role, () => {
            signal.removeEventListener("abort", aborted);
            this.#holder = { role, yieldTurn };
            resolve();
          });
          this.#next();
          this.#makeRoom();
        }),
      end: () => {
        ended = true;
        if (this.#holder?.role === role) this.#holder = null;
        this.#next();
      },
    };
  }

  #next(): void {
    if (this.#holder !== null) return;
    const urgency = (role: Role) => this.#since[role] ?? Number.POSITIVE_INFINITY;
    const [first] = ROLES.filter((role) => this.#waiting.has(role)).sort((a, b) =>
      urgency(a) < urgency(b) ? -1 : urgency(a) > urgency(b) ? 1 : 0,
    );
    if (first === undefined) return;
    const begin = this.#waiting.get(first)!;
    this.#waiting.delete(first);
    begin();
  }

  #makeRoom(): void {
    const holder = this.#holder;
    if (holder === null || this.#since[holder.role] !== null) return;
    if ([...this.#waiting.keys()].some((role) => this.#since[role] !== null)) holder.yieldTurn();
  }
}
