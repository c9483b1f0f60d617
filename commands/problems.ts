import { type Command, InvalidArgumentError, Option } from "commander";
import type { FieldMap } from "../maths/banks.ts";
import { FAMILIES, type Family, TEXTS } from "../maths/generator.ts";
import { type ProblemsOptions, writeProblems } from "../producers/problems.ts";
import { MathllmError } from "../queues/errors.ts";
import { oneOf, wholeNumber } from "./options.ts";
import { EXIT_FAILED, type Run } from "./run.ts";

export function addProblems(program: Command, run: Run): void {
  program
    .command("problems")
    .description("write problems with their answers as JSONL: made ones, or a bank's (JSONL or CSV)")
    .option("--count <count>", "how many are made", wholeNumber(1, 1_000_000_000), 100)
    .option("--seed <number>", "which ones", wholeNumber(0, 4_294_967_295), 1)
    .option("--families <names>", "of these families only, like addition,fraction sum", familyList)
    .option("--hard", "numbers outside the ranges that the Student was trained on")
    .option("--texts <which>", `${TEXTS.join(", ")}: texts that training never saw, may have seen, or both`, oneOf(TEXTS), TEXTS[0])
    .addOption(new Option("--from <file>", "take them from this bank").conflicts(["count", "families", "hard", "texts"]))
    .option("--sample <count>", "that many of its problems, chosen by the seed (default: all)", wholeNumber(1, 10_000_000))
    .option("--map <fields>", "what its fields are called, like problem=q,answer=a", fieldMap)
    .option("-o, --output <file>", "write a file (default: stdout)")
    .action((options) => run(() => runProblems(options)));
}

async function runProblems(options: ProblemsOptions): Promise<number> {
  if (options.from === undefined && (options.sample ?? options.map) !== undefined) {
    throw new MathllmError("invalid-configuration", "Expected --from FILE with --sample and --map; came none.");
  }
  const { shortage } = await writeProblems(options, process.stdout);
  if (shortage !== null) process.stderr.write(`${shortage}\n`);
  return shortage === null ? 0 : EXIT_FAILED;
}

function familyList(text: string): Family[] {
  const names = text.split(",").map((name) => name.trim());
  const unknown = names.find((name) => !FAMILIES.includes(name as Family));
  if (unknown !== undefined) throw new InvalidArgumentError(`Expected families among ${FAMILIES.join(", ")}; came "${unknown}".`);
  return names as Family[];
}

export function fieldMap(text: string): FieldMap {
  const pairs = text.split(",").map((pair) => /^(problem|answer|id)=(.+)$/.exec(pair.trim()));
  if (pairs.includes(null)) throw new InvalidArgumentError("Expected the names of fields, like problem=q,answer=a,id=n.");
  return Object.fromEntries(pairs.map((pair) => [pair![1], pair![2]]));
}
