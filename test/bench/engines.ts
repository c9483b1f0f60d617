import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import Table from "cli-table3";
import { pino } from "pino";
import { type ModelProfile, readConfig } from "../../queues/config.ts";
import { bearer } from "../../workers/engines/authorization.ts";
import { ChatClient } from "../../workers/engines/chat-client.ts";
import type { Engine } from "../../workers/engines/engine.ts";
import { engineFactory } from "../../workers/engines/engines.ts";
import { metricSum } from "../../workers/engines/prometheus-text.ts";
import { solvePrompt } from "../../workers/solve/prompts.ts";
import { BENCH_SHAPE, writeRandomModel } from "../fixtures/random-model.ts";

/**
 * The embedded engine beside llama-server on the same GGUF file, one thread each: npm run bench:engines -- [--only student|speculation|
 * larger|long-prompt]. LLAMA_SERVER_BIN names llama-server. Rounds in turn, so that the machine's noise hits all alike; about six minutes.
 */
const { values: options } = parseArgs({ options: { only: { type: "string" } } });
const STUDENT_ROUNDS = 5;
const PROBLEMS_A_ROUND = 48;
const STUDENT_MAX_TOKENS = 200;
const LARGER_ROUNDS = 3;
const LARGER_TOKENS = 128;
const WRITERS = 7;
const LONG_PROMPT = `${"7 + ".repeat(1000)}1`;

const problems = readFileSync(path.join(import.meta.dirname, "../../models/held-out.jsonl"), "utf8")
  .split("\n", PROBLEMS_A_ROUND * STUDENT_ROUNDS)
  .map((line) => (JSON.parse(line) as { problem: string }).problem);

const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-bench-"));
const config = readConfig({ ...process.env, DATA_DIR: folder, STUDENT_PORT: "0", STUDENT_THREADS: "1", STUDENT_NGL: "0" });
const create = engineFactory(config, pino({ level: "silent" }));

interface Case {
  name: string;
  profile: ModelProfile;
  parallel: number;
  /** Requests of a round, and the tokens that each may take. */
  requests: number;
  maxTokens: number;
  tokensPerSecond: number[];
  /** Of all rounds. */
  drafted: number;
  accepted: number;
  /** Requests of one round, where the engine counts them. */
  roundsTotal: number;
  decodesTotal: number;
}

function caseOf(
  mode: ModelProfile["mode"],
  parallel: number,
  changes: Partial<Case> & { model?: string; speculates?: boolean } = {},
): Case {
  const { model = config.profiles.student.model, speculates = false, ...rest } = changes;
  return {
    name: `${mode}, ${parallel} parallel${speculates ? ", with a draft" : ""}`,
    profile: {
      ...config.profiles.student,
      model,
      mode,
      maxNumSeqs: parallel,
      maxModelLen: BENCH_SHAPE.contextTokens,
      speculative: { ...config.profiles.student.speculative, enabled: speculates },
    },
    parallel,
    requests: PROBLEMS_A_ROUND,
    maxTokens: STUDENT_MAX_TOKENS,
    tokensPerSecond: [],
    drafted: 0,
    accepted: 0,
    roundsTotal: 0,
    decodesTotal: 0,
    ...rest,
  };
}

interface Server {
  engine: Engine;
  client: ChatClient;
  metricsText: () => Promise<string>;
}

async function withServer<T>(profile: ModelProfile, use: (server: Server) => Promise<T>): Promise<T> {
  const engine = create(profile);
  const { baseUrl, apiKey } = await engine.start(profile);
  const { modelId } = await engine.ready(60_000);
  const client = new ChatClient(baseUrl, { model: modelId, apiKey });
  const metricsText = async () => (await fetch(`${baseUrl}/metrics`, { headers: bearer(apiKey) })).text();
  const result = await use({ engine, client, metricsText });
  await client.close();
  await engine.stop(1000);
  return result;
}

/** One server, one round of problems on it, `parallel` at a time. */
async function play(given: Case, round: number): Promise<void> {
  await withServer(given.profile, async ({ engine, client, metricsText }) => {
    const waiting = problems.slice(round * given.requests, (round + 1) * given.requests);
    const signal = AbortSignal.timeout(240_000);
    const solve = (problem: string) =>
      client.chat({ messages: solvePrompt(problem), maxTokens: given.maxTokens, temperature: 0 }, { signal });
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
    const text = await metricsText();
    given.roundsTotal += metricSum(text, "mathllm_engine_rounds_total") ?? 0;
    given.decodesTotal += metricSum(text, "mathllm_engine_decodes_total") ?? 0;
  });
}

const median = (values: number[]) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;

async function compare(title: string, rounds: number, cases: Case[]): Promise<void> {
  for (let round = 0; round < rounds; round++) for (const each of cases) await play(each, round);
  const head = ["", "tokens/s, median", "lowest", "highest", "accepted of drafted", "decodes a round"];
  const table = new Table({ head, style: { head: [], border: [] } });
  for (const { name, tokensPerSecond, drafted, accepted, roundsTotal, decodesTotal } of cases) {
    const range = [median(tokensPerSecond), Math.min(...tokensPerSecond), Math.max(...tokensPerSecond)].map((value) => value.toFixed(0));
    const share = drafted === 0 ? "–" : `${((100 * accepted) / drafted).toFixed(1)} %`;
    table.push([name, ...range, share, roundsTotal === 0 ? "–" : (decodesTotal / roundsTotal).toFixed(2)]);
  }
  console.log(`${title}\n${table.toString()}`);
  for (let i = 0; i + 1 < cases.length; i += 2) {
    const ratios = cases[i]!.tokensPerSecond.map((value, round) => value / cases[i + 1]!.tokensPerSecond[round]!);
    console.log(`${cases[i]!.name} against ${cases[i + 1]!.name}: ${median(ratios).toFixed(2)} × (median of ${rounds} rounds in turn)`);
  }
  console.log();
}

/** The longest time without a piece for those that write: before a long prompt joins them, and while it is read. */
async function longPrompt(mode: ModelProfile["mode"], model: string): Promise<void> {
  const { profile } = caseOf(mode, WRITERS + 1, { model });
  await withServer(profile, async ({ client }) => {
    const leave = new AbortController();
    const gaps = { before: 0, during: 0 };
    let phase: keyof typeof gaps | undefined;
    const begun = Array.from({ length: WRITERS }, () => Promise.withResolvers<void>());
    const writers = begun.map(async ({ resolve }, i) => {
      let last: number | undefined;
      let pieces = 0;
      const onText = () => {
        const now = performance.now();
        if (phase !== undefined && last !== undefined) gaps[phase] = Math.max(gaps[phase], now - last);
        last = now;
        pieces++;
        // Past the prompts of the others.
        if (pieces === 40) phase = "before";
        if (pieces === 80) resolve();
      };
      await client.chat({ messages: solvePrompt(problems[i]!), temperature: 0 }, { signal: leave.signal, onText });
    });
    await Promise.race([Promise.all(begun.map(({ promise }) => promise)), ...writers]);
    phase = "during";
    const sentAt = performance.now();
    let firstAfterMs = 0;
    const onText = () => {
      firstAfterMs ||= performance.now() - sentAt;
      phase = undefined;
    };
    const messages = [{ role: "user", content: LONG_PROMPT }];
    const { promptTokens } = await client.chat({ messages, maxTokens: 20, temperature: 0 }, { signal: leave.signal, onText });
    leave.abort(new Error("measured"));
    await Promise.allSettled(writers);
    console.log(
      `${mode}: ${WRITERS} write; longest gap ${gaps.before.toFixed(0)} ms before, ${gaps.during.toFixed(0)} ms while a prompt of ` +
        `${promptTokens} tokens is read; its own first text after ${firstAfterMs.toFixed(0)} ms`,
    );
  });
}

const wanted = (section: string) => options.only === undefined || options.only === section;
const model = path.join(folder, "random-76m.gguf");
if (wanted("larger") || wanted("long-prompt")) await writeRandomModel(model, BENCH_SHAPE);

if (wanted("student")) {
  const cases = [1, 8].flatMap((parallel) => [caseOf("embedded", parallel), caseOf("llamacpp", parallel)]);
  await compare("The shipped Student", STUDENT_ROUNDS, cases);
}
if (wanted("speculation")) {
  await compare("The shipped Student, speculation, one request at a time", STUDENT_ROUNDS, [
    caseOf("embedded", 1, { speculates: true }),
    caseOf("embedded", 1),
    caseOf("llamacpp", 1, { speculates: true }),
    caseOf("llamacpp", 1),
  ]);
}
if (wanted("larger")) {
  const cases = [1, 4, 8].flatMap((parallel) => {
    const changes = { model, requests: parallel, maxTokens: LARGER_TOKENS };
    return [caseOf("embedded", parallel, changes), caseOf("llamacpp", parallel, changes)];
  });
  await compare(`76 million parameters of random weights, ${LARGER_TOKENS} tokens each`, LARGER_ROUNDS, cases);
}
if (wanted("long-prompt")) for (const mode of ["embedded", "llamacpp"] as const) await longPrompt(mode, model);
await rm(folder, { recursive: true, force: true });
process.exit(0);
