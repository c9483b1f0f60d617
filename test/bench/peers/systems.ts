import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { chmod, mkdir, readFile, writeFile } from "node:fs/promises";
import net from "node:net";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";

/** A router under test: it answers the OpenAI chat API for the models `student` and `talker`, one of which is loaded at a time. */
export interface RouterSystem {
  /** As in the table: `llama-swap`, or a policy of mathllm. */
  name: string;
  /** Begins a router in an empty folder; resolves when it answers. */
  start(folder: string): Promise<RunningRouter>;
}

export interface RunningRouter {
  /** The base of `/v1/…`. */
  url: string;
  headers: Record<string, string>;
  stop(): Promise<void>;
}

export interface ModelServer {
  /** The `llama-server` program. */
  bin: string;
  model: string;
  /** Added to each load: what a large model's file would take. */
  loadDelayMs: number;
  slots: number;
  contextTokens: number;
}

const MAIN = path.join(import.meta.dirname, "../../../mathllm.ts");
const START_MS = 60_000;
const STOP_MS = 30_000;

/** The one program that both routers start, slow to begin; each start adds a line to `loads` in its folder. */
export async function slowLlamaServer(folder: string, { bin, loadDelayMs }: ModelServer): Promise<string> {
  const wrapper = path.join(folder, "slow-llama-server");
  const script = `#!/bin/sh
case "$*" in *--port*) echo >> ${path.join(folder, "loads")}; sleep ${loadDelayMs / 1000};; esac
exec ${bin} "$@"
`;
  await mkdir(folder, { recursive: true });
  await writeFile(wrapper, script);
  await chmod(wrapper, 0o755);
  return wrapper;
}

/** How often a model was loaded in this folder. */
export async function loadsIn(folder: string): Promise<number> {
  return (await readFile(path.join(folder, "loads"), "utf8").catch(() => "")).length;
}

export function mathllm(policy: string, server: ModelServer): RouterSystem {
  return {
    name: policy,
    start: async (folder) => {
      const port = await freePort();
      const url = `http://127.0.0.1:${port}`;
      const role = (name: string) => ({
        [`${name}_MODE`]: "llamacpp",
        [`${name}_MODEL`]: server.model,
        [`${name}_PORT`]: "0",
        [`${name}_THREADS`]: "1",
        [`${name}_NGL`]: "0",
        [`${name}_MAX_MODEL_LEN`]: String(server.contextTokens),
        [`${name}_MAX_NUM_SEQS`]: String(server.slots),
      });
      const child = spawn(process.execPath, [MAIN, "start"], {
        stdio: ["ignore", "ignore", "inherit"],
        env: {
          PATH: process.env.PATH,
          HOME: process.env.HOME,
          DATA_DIR: folder,
          PORT: String(port),
          LOG_LEVEL: "error",
          GPU_POLICY: policy,
          LLAMA_SERVER_BIN: await slowLlamaServer(folder, server),
          ...role("STUDENT"),
          ...role("TALKER"),
        },
      });
      await answers(`${url}/readyz`, child, policy);
      return { url, headers: { "x-mathllm-cache": "off" }, stop: () => ended(child, "SIGINT") };
    },
  };
}

/** llama-swap with its 429 beyond ten requests a model lifted, which is its best setting here. */
export function llamaSwap(bin: string, server: ModelServer): RouterSystem {
  return {
    name: "llama-swap",
    start: async (folder) => {
      const port = await freePort();
      const url = `http://127.0.0.1:${port}`;
      const wrapper = await slowLlamaServer(folder, server);
      const { model, contextTokens, slots } = server;
      const command = [
        `${wrapper} -m ${model} --host 127.0.0.1 --port \${PORT} -c ${contextTokens * slots} -np ${slots} -t 1 -ngl 0`,
        "--fit off --no-kv-unified --no-webui --metrics",
      ].join(" ");
      const models = ["student", "talker"].map((name) => `  ${name}:\n    cmd: ${command}\n    concurrencyLimit: 10000\n`);
      const file = path.join(folder, "llama-swap.yaml");
      await writeFile(file, `logLevel: error\nstartPort: ${await freePort()}\nmodels:\n${models.join("")}`);
      const child = spawn(bin, ["--config", file, "--listen", `127.0.0.1:${port}`], { stdio: ["ignore", "ignore", "inherit"] });
      await answers(`${url}/v1/models`, child, "llama-swap");
      return { url, headers: {}, stop: () => ended(child, "SIGTERM") };
    },
  };
}

/** The first line that `--version` prints, to either stream. */
export function versionOf(bin: string): string {
  const { stdout, stderr } = spawnSync(bin, ["--version"], { encoding: "utf8" });
  return `${stdout}${stderr}`.trim().split("\n")[0]!;
}

export async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address() as net.AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Resolves when the address answers with success. Throws when the process ends before, or after a minute. */
export async function answers(url: string, child: ChildProcess, name: string): Promise<void> {
  const until = performance.now() + START_MS;
  for (;;) {
    if (child.exitCode !== null) throw new Error(`${name} ended with ${child.exitCode} before it answered.`);
    const status = await fetch(url).then(
      (response) => response.status,
      () => 0,
    );
    if (status === 200) return;
    if (performance.now() > until) {
      child.kill("SIGKILL");
      throw new Error(`Expected ${name} to answer ${url} within ${START_MS} ms; the last answer was ${status || "none"}.`);
    }
    await delay(50);
  }
}

export async function ended(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exit = new Promise((resolve) => child.once("exit", resolve));
  child.kill(signal);
  await Promise.race([exit, delay(STOP_MS, undefined, { ref: false }).then(() => child.kill("SIGKILL"))]);
}
