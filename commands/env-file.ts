import { realpathSync, statSync } from "node:fs";
import path from "node:path";
import { MathllmError } from "../queues/errors.ts";
import { whoElseChanges } from "../queues/ownership.ts";

/**
 * Reads `.env` of the current folder, if there is one, into the environment, where what is set already stays. Its settings name programs to
 * run, so it counts only where nobody else can change it.
 * @throws MathllmError `invalid-configuration`: others can, or it is no file.
 */
export function loadEnvFile(): void {
  const file = path.resolve(".env");
  let real: string;
  try {
    real = realpathSync(file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
    throw error;
  }
  if (!statSync(real).isFile()) throw new MathllmError("invalid-configuration", `Expected ${file} to be a file of settings; it is none.`);
  for (const each of new Set([path.dirname(file), file, path.dirname(real), real])) {
    const who = whoElseChanges(each);
    if (who === null) continue;
    throw new MathllmError(
      "invalid-configuration",
      `Expected .env and its folder to be such that only you and root can change them, since .env names programs to run; ${each} ${who}. ` +
        "Look at what it says, then make both yours (chown, chmod go-w), or start mathllm in a folder of yours.",
    );
  }
  process.loadEnvFile(real);
}
