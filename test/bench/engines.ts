import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import Table from "cli-table3";
import { pino } from "pino";
import { type ModelProfile, readConfig } from "../../queues/config.ts";
import { ChatClient } from "../../workers/engines/chat-client.ts";
import { engineFactory } from "../../workers/engines/engines.ts";
import { solvePrompt } from "../../workers/solve/prompts.ts";

/**
 * The embedded engine beside llama-server on the same GGUF file and threads, and each with and without speculation: npm run
 * bench:engines. LLAMA_SERVER_BIN names llama-server. Rounds in turn, so that the machine's noise hits all alike; about two minutes.
 */
const ROUNDS = 5;
const PROBLEMS_A_ROUND = 48;
const MAX_TOKENS = 200;

const problems = readFileSync(path.join(import.meta.dirname, "../../models/held-out.jsonl"), "utf8")
  .split("\n", PROBLEMS_A_ROUND * ROUNDS)
  .map((line) => (JSON.parse(line) as { problem: string }).problem);

const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-bench-"));
const config = readConfig({
  ...process.env,
  DATA_DIR: folder,
  STUDENT_PORT: "0",
  STUDENT_MAX_MODEL_LEN: "512",
  STUDENT_THREADS: "1",
  STUDENT_NGL: "0",
});
const create = engineFactory(config, pino({ level: "silent" }));

interface Case {
  name: string;
  profile: ModelProfile;
  parallel: number;
  tokensPerSecond: number[];
  /** Of all rounds. */
  drafted: number;
  accepted: number;
}

const caseOf = (mode: ModelProfile["mode"], parallel: number, speculates: boolean): Case => ({
  name: `${mode}, ${parallel} parallel${speculates ? ", with a draft" : ""}`,
  profile: {
    ...config.profiles.student,
    mode,
    maxNumSeqs: parallel,
    speculative: { ...config.profiles.student.speculative, enabled: speculates },
  },
  parallel,
  tokensPerSecond: [],
  drafted: 0,
  accepted: 0,
});

/** One server, one round of problems on it, `parallel` at a time. */
async function play(given: Case, round: number): Promise<void> {
  const engine = create(given.profile);
  const { baseUrl, apiKey } = await engine.start(given.profile);
  const { modelId } = await engine.ready(60_000);
  const client = new ChatClient(baseUrl, { model: modelId, apiKey });
  const waiting = problems.slice(round * PROBLEMS_A_ROUND, (round + 1) * PROBLEMS_A_ROUND);
  const signal = AbortSignal.timeout(120_000);
  const solve = (problem: string) => client.chat({ messages: solvePrompt(problem), maxTokens: MAX_TOKENS, temperature: 0 }, { signal });
  await solve("What is 1 + 1?");
  let tokens = 0;
  const startedAt = performance.now();
  await Promise.all(
    Array.from({ length: given.parallel }, async () => {
      for (let problem = waiting.pop(); problem !== undefined; problem = waiting.pop()) {
        const { completionTokens } = await solve(problem);
        tokens += completionTokens;
      }
    }),
  );
  given.tokensPerSecond.push((1000 * tokens) / (performance.now() - startedAt));
  const { draftTokensTotal, draftAcceptedTokensTotal } = await engine.metrics();
  given.drafted += draftTokensTotal ?? 0;
  given.accepted += draftAcceptedTokensTotal ?? 0;
  await client.close();
  await engine.stop(1000);
}

const median = (values: number[]) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;

async function compare(title: string, cases: Case[]): Promise<void> {
  for (let round = 0; round < ROUNDS; round++) for (const each of cases) await play(each, round);
  const table = new Table({ head: ["", "tokens/s, median", "lowest", "highest", "accepted of drafted"], style: { head: [], border: [] } });
  for (const { name, tokensPerSecond, drafted, accepted } of cases) {
    const range = [median(tokensPerSecond), Math.min(...tokensPerSecond), Math.max(...tokensPerSecond)].map((value) => value.toFixed(0));
    table.push([name, ...range, drafted === 0 ? "–" : `${((100 * accepted) / drafted).toFixed(1)} %`]);
  }
  console.log(`${title}\n${table.toString()}`);
  for (let i = 0; i + 1 < cases.length; i += 2) {
    const ratios = cases[i]!.tokensPerSecond.map((value, round) => value / cases[i + 1]!.tokensPerSecond[round]!);
    console.log(`${cases[i]!.name} against ${cases[i + 1]!.name}: ${median(ratios).toFixed(2)} × (median of ${ROUNDS} rounds in turn)`);
  }
  console.log();
}

await compare("The same GGUF file, one thread", [
  caseOf("embedded", 1, false),
  caseOf("llamacpp", 1, false),
  caseOf("embedded", 8, false),
  caseOf("llamacpp", 8, false),
]);
await compare("Speculation, one request at a time", [
  caseOf("embedded", 1, true),
  caseOf("embedded", 1, false),
  caseOf("llamacpp", 1, true),
  caseOf("llamacpp", 1, false),
]);
await rm(folder, { recursive: true, force: true });
process.exit(0);
