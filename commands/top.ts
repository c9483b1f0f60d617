import type { Command } from "commander";
import { runTop } from "../producers/top.ts";
import { apiAt } from "./api-client.ts";
import { URL_OPTION } from "./options.ts";
import { type Run, say } from "./run.ts";

/** The last is Ctrl-C, which is a key like any other while the terminal is raw. */
const QUIT = ["q", "Q", "\u0003"];

export function addTop(program: Command, run: Run): void {
  program
    .command("top")
    .description("watch GPU and queues live; plain lines when the output is no terminal")
    .option(...URL_OPTION)
    .option("--json", "print each state as one object a line")
    .action((options) => run(() => runTopCommand(options)));
}

async function runTopCommand({ url, json = false }: { url?: string; json?: boolean }): Promise<number> {
  const { stdin, stdout } = process;
  const stopped = new AbortController();
  const quit = () => stopped.abort();
  process.once("SIGINT", quit);
  process.once("SIGTERM", quit);
  // A reader that has enough, like `head`.
  stdout.on("error", quit);
  const isTerminal = stdout.isTTY === true && !json;
  if (isTerminal && stdin.isTTY) {
    stdin.setRawMode(true).on("data", (typed) => {
      if (QUIT.some((key) => typed.toString().includes(key))) quit();
    });
  }
  const size = () => ({ rows: stdout.rows, columns: stdout.columns });
  try {
    await runTop(apiAt(url), { terminal: isTerminal ? { size, write: say } : undefined, print: say, json, signal: stopped.signal });
  } finally {
    if (isTerminal && stdin.isTTY) stdin.setRawMode(false).pause();
  }
  return 0;
}
