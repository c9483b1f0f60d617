import { parseArgs } from "node:util";
import { equivalent } from "../../maths/equivalence.ts";
import { seededRandom } from "../../maths/seeded-random.ts";
import { randomPair } from "./random-answers.ts";

/** Judges many random pairs, says what became of them, and fails when one threw or the slowest in a thousand took too long. */

const { values } = parseArgs({ options: { pairs: { type: "string", default: "50000" }, seed: { type: "string", default: "1" } } });
const MAX_P999_MS = 20;
const SLOW_MS = 5;

const random = seededRandom(Number(values.seed));
const pairs = Number(values.pairs);
const timesMs: number[] = [];
const verdicts: Record<string, number> = { equal: 0, different: 0, undecided: 0 };
const failures: string[] = [];
let slowest: [ms: number, gold: string, answer: string] = [0, "", ""];

// The first calls measure the compiler.
for (let i = 0; i < 2000; i++) equivalent(...randomPair(random));

for (let i = 0; i < pairs; i++) {
  const [gold, answer] = randomPair(random);
  let startedMs = performance.now();
  try {
    const { verdict, reason } = equivalent(gold, answer);
    verdicts[verdict]!++;
    if (reason.startsWith("The comparison failed")) failures.push(`${reason}: ${JSON.stringify([gold, answer]).slice(0, 300)}`);
  } catch (error) {
    failures.push(`${error}: ${JSON.stringify([gold, answer]).slice(0, 300)}`);
  }
  let ms = performance.now() - startedMs;
  // Of a pair that seems slow the fastest of some runs counts: other processes' time is not its own.
  for (let again = 0; ms > SLOW_MS && again < 4; again++) {
    startedMs = performance.now();
    equivalent(gold, answer);
    ms = Math.min(ms, performance.now() - startedMs);
  }
  timesMs.push(ms);
  if (ms > slowest[0]) slowest = [ms, gold, answer];
}

timesMs.sort((a, b) => a - b);
const percentile = (share: number) => timesMs[Math.min(timesMs.length - 1, Math.floor(share * timesMs.length))]!.toFixed(2);
console.log(`${pairs} pairs, seed ${values.seed}: ${JSON.stringify(verdicts)}, ${failures.length} failures`);
console.log(`ms: p50 ${percentile(0.5)}, p99 ${percentile(0.99)}, p99.9 ${percentile(0.999)}, most ${percentile(1)}`);
console.log(`slowest: ${JSON.stringify(slowest.slice(1)).slice(0, 200)}`);
for (const failure of failures.slice(0, 20)) console.log(failure);
process.exitCode = failures.length > 0 || Number(percentile(0.999)) >= MAX_P999_MS ? 1 : 0;
