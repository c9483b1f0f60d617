import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import type { Readable } from "node:stream";
import { promisify } from "node:util";
import { findFreePort } from "../../queues/free-port.ts";

/**
 * The official Python client against the whole system on the tiny models: npm run test:openai. It needs python3 and a package index; the client goes
 * into a virtual environment in a temporary folder. OPENAI_PYTHON names a Python that has it already.
 */
const CLIENT = "openai==3.57.0";

const run = promisify(execFile);
const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-openai-"));
const [port, studentPort, talkerPort] = [await findFreePort(), await findFreePort(), await findFreePort()];
const url = `http://127.0.0.1:${port}`;
const system = spawn(process.execPath, [path.join(import.meta.dirname, "../../mathllm.ts"), "start"], {
  env: {
    ...process.env,
    PORT: String(port),
    STUDENT_PORT: String(studentPort),
    TALKER_PORT: String(talkerPort),
    DATA_DIR: path.join(folder, "data"),
    TELEMETRY_LOG: path.join(folder, "telemetry.jsonl"),
    LOG_LEVEL: "warn",
  },
  stdio: ["ignore", "pipe", "inherit"],
});
const ended = once(system, "exit");
try {
  const python = process.env.OPENAI_PYTHON ?? (await freshPython());
  await started(system.stdout);
  const client = spawn(python, [path.join(import.meta.dirname, "client.py"), `${url}/v1`], { stdio: "inherit" });
  [process.exitCode] = (await once(client, "exit")) as [number];
} finally {
  system.kill("SIGTERM");
  await ended;
  await rm(folder, { recursive: true, force: true });
}

async function freshPython(): Promise<string> {
  const environment = path.join(folder, "venv");
  await run("python3", ["-m", "venv", environment]);
  const python = path.join(environment, "bin", "python");
  await run(python, ["-m", "pip", "install", "--quiet", CLIENT]);
  return python;
}

/** Its first words are that it is up; the worker may come a moment later, which jobs wait for. */
async function started(output: Readable): Promise<void> {
  const [line] = await Promise.race([once(output, "data"), ended.then(() => [null])]);
  if (line === null) throw new Error("the system did not start");
  output.resume();
}
