import { setImmediate as nextTurn } from "node:timers/promises";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Steppable, Stepper, shareOut } from "../../workers/engines/stepper.ts";

const limits = { batchTokens: 512, pieceTokens: 128 };

describe("what each takes in a round", () => {
  test("who writes takes one token, whatever is read beside it", () => {
    expect(shareOut([0, 3000, 0], limits)).toEqual([1, 128, 1]);
  });

  test("while nobody writes a prompt takes the whole decode", () => {
    expect(shareOut([3000], limits)).toEqual([512]);
  });

  test("a short prompt is read while a long one is", () => {
    expect(shareOut([0, 3000, 40], limits)).toEqual([1, 88, 40]);
  });

  test("no round is more than a decode, nobody who can go on stands still, and reading is shared evenly", () => {
    const unread = fc.array(fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 5000 })), { minLength: 1, maxLength: 32 });
    fc.assert(
      fc.property(unread, fc.integer({ min: 64, max: 512 }), fc.integer({ min: 32, max: 512 }), (unread, batchTokens, pieceTokens) => {
        const shares = shareOut(unread, { batchTokens, pieceTokens });
        const sum = (values: number[]) => values.reduce((a, b) => a + b, 0);
        const read = sum(shares.filter((_, i) => unread[i]! > 0));
        const writers = unread.filter((tokens) => tokens === 0).length;
        expect(sum(shares)).toBeLessThanOrEqual(batchTokens);
        expect(Math.min(...shares)).toBeGreaterThanOrEqual(1);
        for (const [i, share] of shares.entries()) expect(share).toBeLessThanOrEqual(Math.max(unread[i]!, 1));
        const room = writers > 0 ? Math.min(pieceTokens, batchTokens - writers) : batchTokens;
        expect(read).toBe(Math.min(room, sum(unread)));
        const cut = shares.filter((share, i) => share < unread[i]!);
        if (cut.length > 0) expect(Math.max(...shares.filter((_, i) => unread[i]! > 0)) - Math.min(...cut)).toBeLessThanOrEqual(1);
      }),
    );
  });
});

/** Counts its steps; a step ends when the test says so. */
class Walker implements Steppable {
  readonly place: number;
  ended = false;
  unreadTokens: number;
  readonly steps: number[] = [];
  readonly #lastStep: number;
  readonly #onStep: (place: number) => void;
  #endStep: (() => void) | undefined;

  constructor(unreadTokens: number, lastStep: number, place = 0, onStep: (place: number) => void = () => {}) {
    this.place = place;
    this.#onStep = onStep;
    this.unreadTokens = unreadTokens;
    this.#lastStep = lastStep;
  }

  async step(tokens: number): Promise<void> {
    this.steps.push(tokens);
    this.#onStep(this.place);
    await new Promise<void>((resolve) => {
      this.#endStep = resolve;
    });
    this.unreadTokens = Math.max(0, this.unreadTokens - tokens);
    this.ended = this.steps.length === this.#lastStep;
  }

  async endStep(): Promise<void> {
    this.#endStep?.();
    await nextTurn();
  }
}

/** Two turns: one in which a driver that has to begin is begun, and its round's. */
async function nextRound(): Promise<void> {
  await nextTurn();
  await nextTurn();
}

describe("rounds", () => {
  test("all begin a round in one turn, and the next begins when all have ended theirs", async () => {
    const stepper = new Stepper(limits);
    const [a, b] = [new Walker(0, 3), new Walker(0, 3)];
    stepper.join(a);
    stepper.join(b);
    await nextRound();
    expect([a.steps.length, b.steps.length]).toEqual([1, 1]);
    await a.endStep();
    await nextRound();
    expect([a.steps.length, b.steps.length]).toEqual([1, 1]);
    await b.endStep();
    await nextRound();
    expect([a.steps.length, b.steps.length]).toEqual([2, 2]);
    expect(stepper.rounds).toBe(2);
  });

  test("steps are taken in the order of the places, in whatever order they were joined", async () => {
    const stepper = new Stepper(limits);
    const order: number[] = [];
    for (const place of [2, 0, 3, 1]) stepper.join(new Walker(0, 1, place, (stepped) => order.push(stepped)));
    await nextRound();
    expect(order).toEqual([0, 1, 2, 3]);
  });

  test("who comes during a round joins at the next one's beginning", async () => {
    const stepper = new Stepper(limits);
    const [a, b] = [new Walker(0, 3), new Walker(600, 3)];
    stepper.join(a);
    await nextRound();
    stepper.join(b);
    await nextRound();
    expect(b.steps).toEqual([]);
    await a.endStep();
    await nextRound();
    expect([a.steps, b.steps]).toEqual([[1, 1], [128]]);
  });

  test("who has ended leaves, and the others go on; when the last has, nothing runs until somebody joins", async () => {
    const stepper = new Stepper(limits);
    const [a, b, c] = [new Walker(0, 1), new Walker(0, 2), new Walker(0, 1)];
    stepper.join(a);
    stepper.join(b);
    await nextRound();
    await a.endStep();
    await b.endStep();
    await nextRound();
    expect([a.steps.length, b.steps.length]).toEqual([1, 2]);
    await b.endStep();
    await nextRound();
    expect(stepper.rounds).toBe(2);
    stepper.join(c);
    await nextRound();
    expect(c.steps).toEqual([1]);
    expect(stepper.rounds).toBe(3);
  });
});
