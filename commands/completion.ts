import type { Command } from "commander";
import { oneOf } from "./options.ts";
import { type Run, say } from "./run.ts";

const SHELLS = ["bash", "zsh", "fish"] as const;
type Shell = (typeof SHELLS)[number];

export function addCompletion(program: Command, run: Run): void {
  program
    .command("completion")
    .description("print a script that completes commands and options in your shell")
    .argument("<shell>", SHELLS.join(", "), oneOf(SHELLS))
    .addHelpText(
      "after",
      `
bash  source <(mathllm completion bash)
zsh   source <(mathllm completion zsh)
fish  mathllm completion fish | source`,
    )
    .action((shell: Shell) =>
      run(async () => {
        say(completionScript(program, shell));
        return 0;
      }),
    );
}

/** What may follow a command: its subcommands and options. */
interface Place {
  /** Of the commands that lead there: none for the program itself. */
  path: string[];
  words: { word: string; about: string; isCommand: boolean }[];
}

function placesOf(command: Command, path: string[] = []): Place[] {
  const help = command.createHelp();
  const subcommands = help.visibleCommands(command);
  const words = [
    ...subcommands.map((each) => ({ word: each.name(), about: each.description(), isCommand: true })),
    ...help
      .visibleOptions(command)
      .flatMap(({ short, long, description }) =>
        [long, short].flatMap((word) => (word == null ? [] : [{ word, about: description, isCommand: false }])),
      ),
  ];
  return [{ path, words }, ...command.commands.flatMap((each) => placesOf(each, [...path, each.name()]))];
}

/** Made from the commands themselves, so that it knows what they know. File names are completed where nothing else fits. */
export function completionScript(program: Command, shell: Shell): string {
  const places = placesOf(program);
  return { bash, zsh, fish }[shell](program.name(), places);
}

const joined = (path: string[]) => path.map((word) => ` ${word}`).join("");
const known = (places: Place[]) =>
  places
    .filter(({ path }) => path.length > 0)
    .map(({ path }) => `"${joined(path)}"`)
    .join("|");

function bash(name: string, places: Place[]): string {
  return `_${name}() {
  local at="" word list=""
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "$at $word" in
      ${known(places)}) at="$at $word" ;;
    esac
  done
  case "$at" in
${places.map(({ path, words }) => `    "${joined(path)}") list="${words.map(({ word }) => word).join(" ")}" ;;`).join("\n")}
  esac
  COMPREPLY=($(compgen -W "$list" -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _${name} ${name}
`;
}

function zsh(name: string, places: Place[]): string {
  const entry = ({ word, about }: Place["words"][number]) => quoted(`${word}:${about}`);
  return `#compdef ${name}
_${name}() {
  local at="" word
  local -a list
  for word in "\${(@)words[2,CURRENT-1]}"; do
    case "$at $word" in
      (${known(places)}) at="$at $word" ;;
    esac
  done
  case "$at" in
${places.map(({ path, words }) => `    ("${joined(path)}") list=(${words.map(entry).join(" ")}) ;;`).join("\n")}
  esac
  _describe ${name} list || _files
}
compdef _${name} ${name}
`;
}

function fish(name: string, places: Place[]): string {
  const lines = places.flatMap(({ path, words }) => {
    const names = words.filter(({ isCommand }) => isCommand).map(({ word }) => word);
    const seen = path.map((word) => `__fish_seen_subcommand_from ${word}`);
    const notYet = names.length === 0 ? [] : [`not __fish_seen_subcommand_from ${names.join(" ")}`];
    const condition = quoted([...seen, ...notYet].join("; and ") || "true");
    return words.map(({ word, about, isCommand }) => {
      const what = isCommand ? `-f -a ${word}` : word.startsWith("--") ? `-l ${word.slice(2)}` : `-s ${word.slice(1)}`;
      return `complete -c ${name} -n ${condition} ${what} -d ${quoted(about)}`;
    });
  });
  return `${lines.join("\n")}\n`;
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
