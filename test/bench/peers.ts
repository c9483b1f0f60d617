import { spawn } from "node:child_process";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import Table from "cli-table3";
import { POLICIES } from "../../workers/gpu/policies.ts";
import { DEFAULT_DEADLINES_MS } from "../../workers/gpu/policy.ts";
import { simulate } from "../../workers/gpu/simulator.ts";
import { BENCH_SHAPE, writeRandomModel } from "../fixtures/random-model.ts";
import { type Latencies, latenciesOf, type PlannedRequest, play, poissonPlan } from "./peers/requests.ts";
import { answers, ended, freePort, llamaSwap, loadsIn, type ModelServer, mathllm, type RouterSystem, versionOf } from "./peers/systems.ts";

/**
 * npm run bench:peers: mathllm under each policy and llama-swap, with the same llama-server under all, the same two models of random
 * weights, the same requests at the same times, in turn. LLAMA_SERVER_BIN and LLAMA_SWAP_BIN name the programs. Each request asks for 96
 * tokens: about 2 s alone on one thread, 4 to 5 s beside seven others; each load takes 2 s more than llama-server's own.
 * The rates are shares of what one model alone could do, measured first. Everything is on loopback. The whole with its defaults takes about
 * two hours; --requests, --seeds, --rates and --systems make it shorter.
 */
const { values } = parseArgs({
  options: {
    systems: { type: "string", default: "llama-swap,least-wait,ge,exhaustive,fifo" },
    rates: { type: "string", default: "0.6,0.85,1.1" },
    seeds: { type: "string", default: "1,2,3" },
    requests: { type: "string", default: "150" },
    tokens: { type: "string", default: "96" },
    "load-delay-ms": { type: "string", default: "2000" },
    /** A GGUF file instead of the random weights, such as the shipped Student for short jobs. */
    model: { type: "string" },
    "context-tokens": { type: "string", default: "512" },
    /** Each run as a line of JSON. */
    out: { type: "string", short: "o" },
  },
});
const SLOTS = 8;
const tokens = Number(values.tokens);
const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-peers-"));

function program(variable: string): string {
  const bin = process.env[variable];
  if (!bin) throw new Error(`${variable}: expected the path of the program; it is not set.`);
  return bin;
}

const model = values.model === undefined ? path.join(folder, "random.gguf") : path.resolve(values.model);
if (values.model === undefined) await writeRandomModel(model, BENCH_SHAPE);
const server: ModelServer = {
  bin: program("LLAMA_SERVER_BIN"),
  model,
  loadDelayMs: Number(values["load-delay-ms"]),
  slots: SLOTS,
  contextTokens: Number(values["context-tokens"]),
};

const systems: RouterSystem[] = values.systems.split(",").map((name) => {
  if (name === "llama-swap") return llamaSwap(program("LLAMA_SWAP_BIN"), server);
  if (name in POLICIES) return mathllm(name, server);
  throw new Error(`--systems: expected llama-swap or a policy (${Object.keys(POLICIES).join(", ")}); got ${name}.`);
});

interface ModelSpeed {
  /** Milliseconds of a request alone. */
  aloneMs: number;
  /** Requests a second, all slots busy. */
  capacityPerS: number;
  /** r requests at once are r^a times as fast as one. */
  batchExponent: number;
  /** From the start of the process to its first answer, the added delay included, milliseconds. */
  loadMs: number;
}

/** What one model alone can do: requests one by one, then as many at once as there are slots. */
async function measureModel(): Promise<ModelSpeed> {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const { slots, contextTokens } = server;
  const args = ["-m", model, "--host", "127.0.0.1", "--port", String(port), "-c", String(contextTokens * slots), "-np", String(slots)];
  const beganMs = performance.now();
  const child = spawn(server.bin, [...args, "-t", "1", "-ngl", "0", "--fit", "off", "--no-kv-unified"], { stdio: "ignore" });
  try {
    await answers(`${url}/health`, child, "llama-server");
    const loadMs = performance.now() - beganMs + server.loadDelayMs;
    const router = { url, headers: {}, stop: async () => {} };
    const together = (count: number, seed: number) => poissonPlan(1, count, seed).map((each): PlannedRequest => ({ ...each, atMs: 0 }));
    await play(together(1, 9), router, tokens);
    const alone = [];
    for (let i = 0; i < 3; i++) alone.push((await play(together(1, 10 + i), router, tokens))[0]!.latencyMs);
    const aloneMs = alone.sort((a, b) => a - b)[1]!;
    const startedAt = performance.now();
    await play(together(3 * slots, 20), router, tokens);
    const capacityPerS = (3000 * slots) / (performance.now() - startedAt);
    return { aloneMs, capacityPerS, batchExponent: Math.log((capacityPerS * aloneMs) / 1000) / Math.log(slots), loadMs };
  } finally {
    await ended(child, "SIGTERM");
  }
}

interface Run extends Latencies {
  system: string;
  rate: number;
  seed: number;
  requests: number;
  failed: number;
  meanTokens: number;
  swaps: number;
  /** What the simulator says of the same requests; null for other people's routers. */
  predictedMeanMs: number | null;
}

function predictedMeanMs(system: string, plan: PlannedRequest[], speed: ModelSpeed): number | null {
  if (!(system in POLICIES)) return null;
  const { aloneMs, batchExponent, loadMs } = speed;
  const { meanEndToEndMs } = simulate({
    jobs: plan.map(({ atMs, role }) => ({ role, class: "normal", arrivalMs: atMs, serviceMs: aloneMs })),
    policy: POLICIES[system as keyof typeof POLICIES],
    slots: SLOTS,
    batchExponent: { student: batchExponent, talker: batchExponent },
    swapMs: { student: loadMs, talker: loadMs },
    deadlinesMs: DEFAULT_DEADLINES_MS,
  });
  return meanEndToEndMs;
}

async function runOnce(system: RouterSystem, rate: number, seed: number, speed: ModelSpeed): Promise<Run> {
  const own = path.join(folder, `${system.name}-${rate}-${seed}`);
  await mkdir(own);
  const plan = poissonPlan(rate * speed.capacityPerS, Number(values.requests), seed);
  const router = await system.start(own);
  try {
    const outcomes = await play(plan, router, tokens);
    const answered = outcomes.filter(({ ok }) => ok);
    return {
      system: system.name,
      rate,
      seed,
      requests: plan.length,
      failed: outcomes.length - answered.length,
      meanTokens: answered.reduce((sum, outcome) => sum + outcome.tokens, 0) / answered.length,
      swaps: (await loadsIn(own)) - 1,
      ...latenciesOf(outcomes),
      predictedMeanMs: predictedMeanMs(system.name, plan, speed),
    };
  } finally {
    await router.stop();
    await rm(own, { recursive: true, force: true });
  }
}

const mean = (numbers: number[]) => numbers.reduce((sum, value) => sum + value, 0) / numbers.length;

function print(runs: Run[]): void {
  const head = ["rate", "system", "mean s", "p95 s", "longest s", "swaps", "failed", "mean, simulated", "mean / first", "p95 / first"];
  const table = new Table({ head, style: { head: [], border: [] } });
  const of = (system: string, rate: number) => runs.filter((run) => run.system === system && run.rate === rate);
  for (const rate of new Set(runs.map((run) => run.rate))) {
    const first = of(systems[0]!.name, rate);
    for (const { name } of systems) {
      const own = of(name, rate);
      if (own.length === 0) continue;
      const seconds = (pick: (run: Run) => number) => (mean(own.map(pick)) / 1000).toFixed(2);
      const against = (pick: (run: Run) => number) => (mean(own.map(pick)) / mean(first.map(pick))).toFixed(3);
      table.push([
        rate,
        name,
        seconds((run) => run.meanMs),
        seconds((run) => run.p95Ms),
        (Math.max(...own.map((run) => run.longestMs)) / 1000).toFixed(1),
        mean(own.map((run) => run.swaps)).toFixed(1),
        own.reduce((sum, run) => sum + run.failed, 0),
        own[0]!.predictedMeanMs === null ? "–" : seconds((run) => run.predictedMeanMs!),
        against((run) => run.meanMs),
        against((run) => run.p95Ms),
      ]);
    }
  }
  console.log(table.toString());
}

const speed = await measureModel();
const { aloneMs, capacityPerS, batchExponent, loadMs } = speed;
console.log(
  `${versionOf(server.bin)}; a request alone ${(aloneMs / 1000).toFixed(2)} s, ${SLOTS} at once ${capacityPerS.toFixed(2)} a second (batch exponent ${batchExponent.toFixed(2)}), a load ${(loadMs / 1000).toFixed(2)} s`,
);
const runs: Run[] = [];
for (const seed of values.seeds.split(",").map(Number)) {
  for (const rate of values.rates.split(",").map(Number)) {
    for (const system of systems) {
      const run = await runOnce(system, rate, seed, speed);
      runs.push(run);
      console.log(JSON.stringify(run));
      if (values.out !== undefined) await writeFile(values.out, `${runs.map((each) => JSON.stringify(each)).join("\n")}\n`);
    }
  }
}
print(runs);
await rm(folder, { recursive: true, force: true });
process.exit(0);
