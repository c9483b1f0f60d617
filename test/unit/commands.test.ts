import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import type { Command } from "commander";
import { expect, test } from "vitest";
import { completionScript } from "../../commands/completion.ts";
import { createProgram } from "../../commands/program.ts";

const program = createProgram(async () => {});
const within = (command: Command): Command[] => [command, ...command.commands.flatMap(within)];
const commands = within(program).slice(1);
const nameOf = (command: Command): string => (command.parent === null ? "" : `${nameOf(command.parent)} ${command.name()}`.trim());

test("every command and option says what it is for, in one style", () => {
  for (const command of commands) {
    expect(command.description(), nameOf(command)).toMatch(/^[^A-Z].*[^.]$|^API /);
    for (const { flags, description } of command.options) expect(description, `${nameOf(command)} ${flags}`).not.toBe("");
  }
});

test("every command that prints data prints it as JSON, too", () => {
  /** They run until they are stopped, or what they print is made for other programs already. */
  const others = ["start", "api", "worker", "serve", "problems", "report render", "report schema", "completion"];
  const leaves = commands.filter((command) => command.commands.length === 0 && !others.includes(nameOf(command)));
  expect(leaves.filter((command) => !command.options.some(({ long }) => long === "--json")).map(nameOf)).toEqual([]);
});

test("the README names every command", () => {
  const readme = readFileSync(path.join(import.meta.dirname, "../../README.md"), "utf8");
  const [, table = ""] = readme.split("| command |");
  const named = new Set([...table.split("\n\n")[0]!.matchAll(/`(\w+)/g)].map(([, name]) => name));
  expect(program.commands.map((command) => command.name()).filter((name) => !named.has(name))).toEqual([]);
});

/** What bash offers for the last of these words. */
function offered(...words: string[]): string[] {
  const script = `${completionScript(program, "bash")}
COMP_WORDS=(${["mathllm", ...words].map((word) => `'${word}'`).join(" ")}); COMP_CWORD=${words.length}; _mathllm; printf '%s\\n' "\${COMPREPLY[@]}"`;
  return execFileSync("bash", ["--norc", "-c", script], { encoding: "utf8" }).trim().split("\n");
}

test("bash completes commands, subcommands and options", () => {
  expect(offered("")).toEqual(expect.arrayContaining(program.commands.map((command) => command.name())));
  expect(offered("ke")).toEqual(["keys"]);
  expect(offered("gpu", "dr")).toEqual(["drain"]);
  expect(offered("gpu", "drain", "--j")).toEqual(["--json"]);
  expect(offered("solve", "What is 1 + 1?", "--ex")).toEqual(["--explain"]);
  expect(offered("keys", "add", "gpu", "--ro")).toEqual(["--role"]);
});

test("zsh and fish are told every command with its description", () => {
  for (const shell of ["zsh", "fish"] as const) {
    const script = completionScript(program, shell);
    for (const command of commands) expect(script).toContain(command.description().replaceAll("'", `'\\''`));
  }
});
