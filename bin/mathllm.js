#!/usr/bin/env node
// Runs mathllm.ts with a Node that reads TypeScript: this one where it is new enough, else the one that npm installed beside us.
import { spawn } from "node:child_process";
import path from "node:path";

const main = path.join(import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname), "..", "mathllm.ts");
const [major, minor] = process.versions.node.split(".").map(Number);
if (major > 22 || (major === 22 && minor >= 18)) {
  process.argv[1] = main;
  await import(main);
} else {
  const node = path.join(path.dirname(main), "node_modules", "node", "bin", "node");
  const child = spawn(node, [main, ...process.argv.slice(2)], { stdio: "inherit" });
  // Ctrl-C reaches the child by the terminal; this process only waits for how it ends.
  process.on("SIGINT", () => {});
  process.on("SIGTERM", () => child.kill("SIGTERM"));
  child.on("error", (error) => {
    console.error(`Expected Node 22.18 or newer, or the one at ${node} (npm ci installs it): ${error.message}`);
    process.exitCode = 1;
  });
  child.on("exit", (code, signal) => {
    process.exitCode = code ?? (signal === "SIGINT" ? 130 : 1);
  });
}
