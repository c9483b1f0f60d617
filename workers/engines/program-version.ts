import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { MathllmError } from "../../queues/errors.ts";

const VERSION_TIMEOUT_MS = 120_000;
const run = promisify(execFile);

/** What a program prints when asked, on both streams. Throws `engine-missing` when it is not there or can't be run. */
export async function programOutput(program: string, args: string[], advice: string, env: NodeJS.ProcessEnv): Promise<string> {
  try {
    const { stdout, stderr } = await run(program, args, { env, timeout: VERSION_TIMEOUT_MS, maxBuffer: 16 * 1_048_576 });
    return `${stdout}\n${stderr}`;
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === "ENOENT";
    throw new MathllmError(
      "engine-missing",
      `Expected to be able to run ${program}; ${missing ? "there is no such program" : (error as Error).message.slice(0, 500)}. ${advice}`,
    );
  }
}

/** Dotted numbers in order, so that 0.9 comes before 0.18: negative, 0 or positive. */
export function compareVersions(a: string, b: string): number {
  const numbers = (text: string) => (text.match(/\d+/g) ?? []).slice(0, 3).map(Number);
  const [left, right] = [numbers(a), numbers(b)];
  for (let i = 0; i < 3; i++) {
    const difference = (left[i] ?? 0) - (right[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}
