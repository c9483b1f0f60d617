import { setImmediate } from "node:timers/promises";

/** Parsing and hashing so many characters takes about a millisecond. */
const CHARS_A_TURN = 65_536;

/** Divides work on many texts among turns of the event loop, so that no upload, however long its lines are, holds up other requests. */
export class EventLoopTurns {
  #chars = 0;

  /** Resolves at once, or, when enough has been done in this turn, in the next one. */
  async after(chars: number): Promise<void> {
    this.#chars += chars;
    if (this.#chars < CHARS_A_TURN) return;
    this.#chars = 0;
    await setImmediate();
  }
}
