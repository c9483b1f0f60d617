/** What a script was given that it does not understand. */
export class UsageError extends Error {}

/** The value of the option `name`. Throws a `UsageError` unless it is a whole number of at most nine digits. */
export function wholeNumber(name: string, text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new UsageError(`${name}: expected a whole number; got ${text}`);
  return Number(text);
}

/** Runs `main`, whose result is the exit code. Wrong usage (also what `parseArgs` throws) is told with `help` and exits 2, another error 1. */
export async function runScript(help: string, main: () => Promise<number>): Promise<void> {
  process.exitCode = await main().catch((error: Error & { code?: unknown }) => {
    const misused = error instanceof UsageError || String(error.code).startsWith("ERR_PARSE_ARGS");
    process.stderr.write(misused ? `${error.message}\n\n${help}` : `${error.message}\n`);
    return misused ? 2 : 1;
  });
}
