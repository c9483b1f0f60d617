import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll } from "vitest";
import { readConfig } from "../../queues/config.ts";
import { createLlamaServerEngine } from "../../workers/engines/llama-server.ts";
import { createVllmEngine } from "../../workers/engines/vllm.ts";
import { engineContract } from "../integration/engine-contract.ts";

/** The contract of the embedded engine, unchanged, against a real llama-server and a real vLLM: npm run test:engines. */
const models = path.join(import.meta.dirname, "../../models");
let dataDir: string;

beforeAll(async () => {
  dataDir = await mkdtemp(path.join(os.tmpdir(), "mathllm-engines-"));
});
afterAll(() => rm(dataDir, { recursive: true, force: true }));

const { profiles, llamaServerBin, vllmBin } = readConfig({
  ...process.env,
  STUDENT_PORT: "0",
  STUDENT_MAX_MODEL_LEN: "512",
  STUDENT_NGL: "0",
  STUDENT_THREADS: "1",
});

engineContract("llama-server", () => createLlamaServerEngine({ bin: llamaServerBin, dataDir }), { ...profiles.student, mode: "llamacpp" });
engineContract("vllm", () => createVllmEngine({ bin: vllmBin, dataDir }), {
  ...profiles.student,
  mode: "vllm",
  model: path.join(models, "hf/student"),
});
