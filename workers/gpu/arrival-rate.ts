/** Acceptances count half after this long, while traffic goes on as it was. */
const STEADY_HALF_LIFE_MS = 300_000;
/** The same in the short memory that notices changes. */
const RECENT_HALF_LIFE_MS = 60_000;
/** So many standard errors between the two are a change. */
const CHANGE = 3;

interface Rate {
  /** Acceptances a millisecond. */
  perMs: number;
  /** Its standard error; jobs that come together make it larger. */
  error: number;
  /** The weight of the time it was gathered in. */
  windowMs: number;
}

/** A count that forgets: each acceptance weighs 2^(−age/half-life), and the sum is divided by the weight of the time it was gathered in. */
class ForgettingCount {
  readonly #halfLifeMs: number;
  readonly #since: number;
  #at: number;
  #sum = 0;
  #squares = 0;
  #together = 0;

  constructor(halfLifeMs: number, since: number) {
    this.#halfLifeMs = halfLifeMs;
    this.#since = since;
    this.#at = since;
  }

  add(count: number, now: number): void {
    const kept = this.#kept(now - this.#at);
    // What comes at one moment is one event, however it is told.
    const together = now === this.#at ? this.#together : 0;
    this.#together = together + count;
    this.#sum = this.#sum * kept + count;
    this.#squares = this.#squares * kept ** 2 + this.#together ** 2 - together ** 2;
    this.#at = now;
  }

  /** All 0 before any time has passed. */
  rate(now: number): Rate {
    const windowMs = this.#windowMs(now);
    if (windowMs <= 0) return { perMs: 0, error: 0, windowMs: 0 };
    const kept = this.#kept(now - this.#at) / windowMs;
    return { perMs: this.#sum * kept, error: Math.sqrt(this.#squares) * kept, windowMs };
  }

  /** Takes this rate for what was gathered so far. It keeps the weight of the whole time, so that a moment's burst isn't taken for a rate. */
  replace({ perMs, error }: Pick<Rate, "perMs" | "error">, now: number): void {
    const windowMs = this.#windowMs(now);
    this.#sum = perMs * windowMs;
    this.#squares = (error * windowMs) ** 2;
    this.#at = now;
    this.#together = 0;
  }

  #windowMs(now: number): number {
    return (this.#halfLifeMs / Math.LN2) * (1 - this.#kept(now - this.#since));
  }

  #kept(ageMs: number): number {
    return 2 ** (-ageMs / this.#halfLifeMs);
  }
}

/**
 * λ̂ of one model, over five minutes (half-life). Where what came in about the last minute differs from that by more than chance explains, that takes its
 * place. So steady traffic is told to within a few per cent, a jump of it is followed within some three
 * minutes, and a drop, which shows only in what does not come, within some six.
 */
export class ArrivalRate {
  readonly #steady: ForgettingCount;
  readonly #recent: ForgettingCount;

  /** Nothing is known of the time before `since`, in milliseconds of any clock. */
  constructor(since: number) {
    this.#steady = new ForgettingCount(STEADY_HALF_LIFE_MS, since);
    this.#recent = new ForgettingCount(RECENT_HALF_LIFE_MS, since);
  }

  add(count: number, now: number): void {
    this.#steady.add(count, now);
    this.#recent.add(count, now);
  }

  /** Acceptances a millisecond, with the standard error; both 0 before any time has passed. */
  estimate(now: number): Pick<Rate, "perMs" | "error"> {
    const { perMs, error } = this.#steady.rate(now);
    const recent = this.#recent.rate(now);
    // What a steady stream's number in the short memory varies by: as seen, or where too few came to see it, as a Poisson stream's.
    const chance = Math.max(recent.error, Math.sqrt(perMs / recent.windowMs / 2));
    if (!(Math.abs(recent.perMs - perMs) > CHANGE * chance)) return { perMs, error };
    const changed = { perMs: recent.perMs, error: chance };
    this.#steady.replace(changed, now);
    return changed;
  }
}
