import { setTimeout as delay } from "node:timers/promises";
import { Agent, request } from "undici";
import { seededRandom } from "../../../maths/seeded-random.ts";
import { arrivals } from "../../../producers/load/arrivals.ts";
import { nearestRank } from "../../../producers/load/statistics.ts";
import type { Role } from "../../../queues/names.ts";
import type { RunningRouter } from "./systems.ts";

/** One request of a plan. */
export interface PlannedRequest {
  /** When it is sent, milliseconds from the plan's begin. */
  atMs: number;
  role: Role;
  prompt: string;
}

export interface Outcome {
  role: Role;
  /** From the time at which the request was to be sent to its whole answer, milliseconds. */
  latencyMs: number;
  tokens: number;
  ok: boolean;
}

/** All milliseconds, of the requests that were answered. */
export interface Latencies {
  meanMs: number;
  p95Ms: number;
  longestMs: number;
}

/** A request that takes longer than this has failed. */
const REQUEST_LIMIT_MS = 300_000;

/** A Poisson stream of distinct prompts, half for each model; the same seed gives the same stream. */
export function poissonPlan(ratePerS: number, count: number, seed: number): PlannedRequest[] {
  const random = seededRandom(~seed);
  const times = arrivals({ pattern: "poisson", ratePerS }, seed);
  return Array.from({ length: count }, (_, i) => ({
    atMs: times.next().value!.offsetMs,
    role: random() < 0.5 ? "student" : "talker",
    prompt: `What is ${i} + ${seed}?`,
  }));
}

/** Sends each request at its time and waits for all answers. */
export async function play(plan: PlannedRequest[], router: RunningRouter, maxTokens: number): Promise<Outcome[]> {
  const agent = new Agent({ connections: null, headersTimeout: REQUEST_LIMIT_MS, bodyTimeout: REQUEST_LIMIT_MS });
  const startedAt = performance.now();
  const outcomes = plan.map(async ({ atMs, role, prompt }): Promise<Outcome> => {
    await delay(Math.max(startedAt + atMs - performance.now(), 0));
    const tokens = await ask(agent, router, role, prompt, maxTokens).catch(() => null);
    return { role, latencyMs: performance.now() - startedAt - atMs, tokens: tokens ?? 0, ok: tokens !== null };
  });
  const all = await Promise.all(outcomes);
  await agent.close();
  return all;
}

/** The tokens that were written; throws when the answer is not a completion. */
async function ask(agent: Agent, { url, headers }: RunningRouter, role: Role, prompt: string, maxTokens: number): Promise<number> {
  const { statusCode, body } = await request(`${url}/v1/chat/completions`, {
    method: "POST",
    dispatcher: agent,
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify({ model: role, messages: [{ role: "user", content: prompt }], max_tokens: maxTokens, temperature: 0 }),
  });
  const text = await body.text();
  if (statusCode !== 200) throw new Error(`${statusCode}: ${text}`);
  return (JSON.parse(text) as { usage: { completion_tokens: number } }).usage.completion_tokens;
}

export function latenciesOf(outcomes: readonly Outcome[]): Latencies {
  const sorted = outcomes
    .filter(({ ok }) => ok)
    .map(({ latencyMs }) => latencyMs)
    .sort((a, b) => a - b);
  return {
    meanMs: sorted.reduce((sum, value) => sum + value, 0) / sorted.length,
    p95Ms: nearestRank(sorted, 0.95),
    longestMs: sorted.at(-1)!,
  };
}
