import { createHash } from "node:crypto";
import { sampleBank } from "../../maths/banks.ts";
import { type Family, generateProblems } from "../../maths/generator.ts";
import { seededRandom } from "../../maths/seeded-random.ts";
import { MathllmError } from "../../queues/errors.ts";
import type { PriorityClass } from "../../queues/names.ts";
import type { LoadPlan } from "./load-options.ts";
import type { RequestKind } from "./record.ts";

export interface PlannedRequest {
  index: number;
  kind: RequestKind;
  priorityClass: PriorityClass;
  problemId: string;
  /** For the Talker alone the whole text that it is sent. */
  problem: string;
  /** The known answer; null for the Talker alone, and where the bank has none. */
  expected: string | null;
  /** Of the sampling; only with a temperature. */
  seed: number | undefined;
}

/** A bank's problems are held in memory; a larger one is sampled. */
const MAX_BANK_PROBLEMS = 100_000;

interface Problem {
  id: string;
  problem: string;
  expected: string | null;
}

/** How the target's tokens relate to a prompt's characters, measured once before the run. */
export interface PromptScale {
  /** Of the wording around the problem. */
  baseTokens: number;
  charsPerToken: number;
}

/**
 * Makes the requests of a plan, one after the other and without end: the same ones for the same seed. Kind, class and problem each have a
 * random source of their own, so that another mix doesn't change the problems. `replayed` is what a trace says of the request.
 *
 * @throws MathllmError `invalid-request`: the bank can't be read.
 */
export async function requestSource(
  plan: LoadPlan,
  scale: PromptScale | null,
): Promise<(replayed?: { kind?: RequestKind; priorityClass?: PriorityClass }) => PlannedRequest> {
  const randomKind = seededRandom(plan.seed ^ 0x51ed270b);
  const randomClass = seededRandom(plan.seed ^ 0x2545f491);
  const problems = problemStream(plan, plan.problems.source === "bank" ? await bankProblems(plan.problems.file, plan) : null);
  const kinds = new Map<string, RequestKind>();
  let index = 0;
  return (replayed = {}) => {
    const { id, problem, expected } = problems.next().value;
    const drawn = draw(plan.mix, randomKind);
    // The same problem as another kind would be another request to the cache.
    const kind = replayed.kind ?? (plan.distinct === undefined ? drawn : (kinds.get(id) ?? drawn));
    if (plan.distinct !== undefined) kinds.set(id, kind);
    const filled = scale === null ? problem : filledUp(problem, plan, scale);
    const drawnClass = draw(plan.classes, randomClass);
    const request: PlannedRequest = {
      index,
      kind,
      priorityClass: replayed.priorityClass ?? drawnClass,
      problemId: id,
      problem: kind === "talker" ? talkerText(filled, expected) : filled,
      expected: kind === "talker" ? null : expected,
      seed: plan.temperature > 0 ? (plan.seed + index) >>> 0 : undefined,
    };
    index++;
    return request;
  };
}

function draw<T extends string>(shares: Partial<Record<T, number>>, random: () => number): T {
  const present = (Object.entries(shares) as [T, number][]).filter(([, share]) => share > 0);
  let left = random();
  for (const [name, share] of present) {
    left -= share;
    if (left < 0) return name;
  }
  // What rounding leaves.
  return present.at(-1)![0];
}

/** Endless: what is finite, or said to be `distinct`, comes round after round, each round in an order of its own. */
function* problemStream(plan: LoadPlan, bank: Problem[] | null): Generator<Problem, never, void> {
  const made = () => generatedProblems(plan);
  if (bank === null && plan.distinct === undefined) for (;;) yield* made();
  const pool = bank ?? firstOf(made(), plan.distinct!);
  const random = seededRandom(plan.seed);
  for (;;) {
    for (let i = pool.length - 1; i > 0; i--) {
      const j = Math.floor(random() * (i + 1));
      [pool[i], pool[j]] = [pool[j]!, pool[i]!];
    }
    yield* pool;
  }
}

function firstOf<T>(items: Iterable<T>, count: number): T[] {
  const first: T[] = [];
  for (const item of items) if (first.push(item) === count) break;
  return first;
}

function* generatedProblems({ problems, seed }: LoadPlan): Generator<Problem, void, void> {
  if (problems.source !== "generator") return;
  const families = problems.families as Family[] | undefined;
  for (const { id, problem, answer } of generateProblems({ seed, families, hard: problems.hard })) yield { id, problem, expected: answer };
}

async function bankProblems(file: string, { distinct, seed }: LoadPlan): Promise<Problem[]> {
  const { records } = await sampleBank(file, Math.min(distinct ?? MAX_BANK_PROBLEMS, MAX_BANK_PROBLEMS), seed, { answers: "optional" });
  return records.map(({ id, problem, expected }) => ({ id, problem, expected }));
}

/** Notes of numbers before the problem, different for each, so that a server's prefix cache has nothing to reuse. */
function filledUp(problem: string, plan: LoadPlan, { baseTokens, charsPerToken }: PromptScale): string {
  const missing = Math.floor((plan.promptTokens! - baseTokens) * charsPerToken) - problem.length;
  if (missing <= 0) return problem;
  return `${fillerText(missing, `${plan.seed}:${problem}`)}\n\n${problem}`;
}

/** `chars` characters of sentences that mean nothing for the problem, made of the key alone. */
export function fillerText(chars: number, key: string): string {
  const random = seededRandom(createHash("sha256").update(key).digest().readUInt32LE(0));
  const number = () => Math.floor(random() * 1000);
  let text = "";
  while (text.length < chars) text += `Meter ${number()} read ${number()} and then ${number()}. `;
  return text.slice(0, chars);
}

/** What a Talker is asked for: what the product asks when it explains. */
function talkerText(problem: string, expected: string | null): string {
  const solution = expected === null ? "" : `\n\nSolution: \\boxed{${expected}}\n\nAnswer: ${expected}`;
  return `Explain this solution to a student, step by step, in plain words.\n\nProblem: ${problem}${solution}`;
}

/** The request as a chat: for a server that doesn't know what a Student is, in the product's own wording. */
export function chatMessages({ kind, problem }: Pick<PlannedRequest, "kind" | "problem">): { role: "user"; content: string }[] {
  if (kind === "explain") throw new MathllmError("invalid-configuration", "Expected kinds student and talker; came explain.");
  const wording = "Solve the following math problem. Make sure to put the answer (and only answer) inside \\boxed{}.";
  return [{ role: "user", content: kind === "student" ? `${wording}\n\n${problem}` : problem }];
}
