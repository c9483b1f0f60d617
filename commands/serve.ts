import type { Command } from "commander";
import type { Logger } from "pino";
import { type ModelProfile, readConfig } from "../queues/config.ts";
import { MathllmError } from "../queues/errors.ts";
import { ROLES, type Role } from "../queues/names.ts";
import type { Endpoint, PreparationProgress } from "../workers/engines/engine.ts";
import { engineFactory } from "../workers/engines/engines.ts";
import { FitCheck } from "../workers/gpu/fit-check.ts";
import { identifyGpu } from "../workers/gpu/gpu-identity.ts";
import { readVram } from "../workers/gpu/gpu-memory.ts";
import { ownerName, takeHostLock } from "../workers/gpu/host-lock.ts";
import { oneOf } from "./options.ts";
import { EXIT_FAILED, logTo, type Run, say } from "./run.ts";
import { makeDataDir, untilSignalled } from "./system.ts";

const PROGRESS_EVERY_MS = 2000;

export function addServe(program: Command, run: Run): void {
  program
    .command("serve")
    .description("run one model server alone, with its OpenAI-compatible API")
    .argument("<role>", ROLES.join(" or "), oneOf(ROLES))
    .option("--force", "load it even though it is reckoned not to fit")
    .option("--dry-run", "print the command line that would be run, and run nothing")
    .action((role, options) => run(() => runServe(role, options)));
}

async function runServe(role: Role, { dryRun, force }: { dryRun?: boolean; force?: boolean }): Promise<number> {
  const config = readConfig();
  if (dryRun === true) {
    const profile = config.profiles[role];
    const engine = engineFactory(config, logTo(config))(profile);
    await engine.prepare(profile);
    const { command, notes } = await engine.dryRun(profile);
    if (command !== "") say(`${command}\n`);
    for (const note of notes) process.stderr.write(`${note}\n`);
    return 0;
  }
  const log = logTo(config).child({ process: "serve" });
  await makeDataDir(config.dataDir);
  const { id: gpuId, visible: visibleGpu } = await identifyGpu(config);
  const taken = await takeHostLock(gpuId, `mathllm serve ${role}`);
  if ("owner" in taken) {
    throw new MathllmError(
      "gpu-in-use",
      `Expected GPU ${gpuId} to be free; ${ownerName(taken.owner)} holds it. Stop that first, or set GPU_ID=cpu for a model server that runs on the CPU.`,
    );
  }
  const card = typeof visibleGpu === "object" ? visibleGpu.uuid : null;
  const fitCheck = new FitCheck({ ...config, forceLoad: config.forceLoad || force === true }, card ?? gpuId, log);
  const profile = await fitCheck.check(config.profiles[role], card === null ? null : await readVram(card));
  const engine = engineFactory(config, log)(profile, visibleGpu);
  await engine.prepare(profile, { onProgress: progressLog(profile.model, log) });
  const endpoint = await engine.start(profile);
  try {
    const model = await engine.ready(config.engineStartTimeoutMs);
    say(`${role} ${model.modelId} at ${endpoint.baseUrl}/v1, ${model.contextTokens} tokens of context per sequence\n`);
    say(tryIt(endpoint, model.modelId, profile));
  } catch (error) {
    await engine.stop(0);
    throw error;
  }
  let stopping = false;
  const died = engine.exited.then((exit) => {
    if (stopping) return 0;
    process.stderr.write(`The model server ended (code ${exit.code}, signal ${exit.signal}).\n${exit.lastLines.join("\n")}\n`);
    return EXIT_FAILED;
  });
  const stopped = untilSignalled(
    () => {
      stopping = true;
      return engine.stop(config.shutdownGraceMs);
    },
    () => void engine.stop(0),
  );
  return Promise.race([stopped, died]);
}

/** A request that works as it stands, with the server's key: one of the owner's own is not shown. */
function tryIt({ baseUrl, apiKey }: Endpoint, modelId: string, { role, apiKey: owners }: ModelProfile): string {
  const key = owners === undefined ? apiKey : `$${role.toUpperCase()}_API_KEY`;
  const body = JSON.stringify({ model: modelId, messages: [{ role: "user", content: "What is 17 + 25?" }] });
  const header = key === undefined ? "" : ` -H "authorization: Bearer ${key}"`;
  return `try it  curl -s ${baseUrl}/v1/chat/completions${header} -H 'content-type: application/json' -d '${body}'\n`;
}

/** Says every two seconds how far a download is. */
function progressLog(model: string, log: Logger): (progress: PreparationProgress) => void {
  let loggedAt = 0;
  return ({ doing, doneBytes, totalBytes }) => {
    if (Date.now() - loggedAt < PROGRESS_EVERY_MS) return;
    loggedAt = Date.now();
    log.info({ model, doneBytes, totalBytes }, doing);
  };
}
