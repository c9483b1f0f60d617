import { setImmediate as nextTurn } from "node:timers/promises";

/** Something that goes on in steps: it reads what is given to it, then writes one token a step. */
export interface Steppable {
  /** The number of its sequence. */
  readonly place: number;
  readonly ended: boolean;
  /** 0 once it writes. */
  readonly unreadTokens: number;
  /** Reads `tokens` more, or all that is left and writes a token. Never rejects. */
  step(tokens: number): Promise<void>;
}

export interface RoundLimits {
  /** Tokens that one decode takes. */
  batchTokens: number;
  /** Tokens that are read in a round in which somebody writes: this bounds how long a long prompt holds up the others. */
  pieceTokens: number;
}

/**
 * Drives what runs in step: in each round everybody takes one step, all within one turn of the event loop, so that the library puts
 * them into one decode; the next round begins when all steps have ended. Left to themselves sequences fall out of step, and each
 * decode then serves only some of them. A round's steps are taken in the order of their places: llama.cpp computes sequences together
 * only where their numbers follow each other.
 *
 *   joined ──the next round's beginning──► stepping, round by round ──ended──► left
 */
export class Stepper {
  readonly #limits: RoundLimits;
  #running: Steppable[] = [];
  #driving = false;
  #rounds = 0;

  constructor(limits: RoundLimits) {
    this.#limits = limits;
  }

  /** Rounds since the start. */
  get rounds(): number {
    return this.#rounds;
  }

  join(steppable: Steppable): void {
    this.#running.push(steppable);
    if (!this.#driving) void this.#drive();
  }

  async #drive(): Promise<void> {
    this.#driving = true;
    while (this.#running.length > 0) {
      // A turn of its own for each round: whatever the last one left to do in this turn is done, and sockets are served.
      await nextTurn();
      const round = this.#running.sort((a, b) => a.place - b.place);
      const tokens = shareOut(
        round.map(({ unreadTokens }) => unreadTokens),
        this.#limits,
      );
      this.#rounds++;
      await Promise.all(round.map((each, i) => (tokens[i] === 0 ? undefined : each.step(tokens[i]!))));
      this.#running = this.#running.filter(({ ended }) => !ended);
    }
    this.#driving = false;
  }
}

/**
 * How many tokens each may take in a round, by its unread ones (0: it writes, one token). Writers come first; readers share what is
 * left evenly, so that a short prompt is read while a long one is; 0 for who has to sit out.
 */
export function shareOut(unread: number[], { batchTokens, pieceTokens }: RoundLimits): number[] {
  const writers = unread.filter((tokens) => tokens === 0).length;
  const shares = unread.map((tokens): number => (tokens === 0 ? 1 : 0));
  let left = batchTokens - writers;
  if (writers > 0) left = Math.min(left, pieceTokens);
  const readers = unread.flatMap((tokens, i) => (tokens === 0 ? [] : [i])).sort((a, b) => unread[a]! - unread[b]!);
  for (const [i, reader] of readers.entries()) {
    const share = Math.min(unread[reader]!, Math.ceil(left / (readers.length - i)));
    shares[reader] = share;
    left -= share;
  }
  return shares;
}
