import { readFileSync, realpathSync, statSync } from "node:fs";
import path from "node:path";
import { parseEnv } from "node:util";
import { MathllmError } from "../queues/errors.ts";
import { whoElseChanges } from "../queues/ownership.ts";
import { describeUnknown, unknownSettings } from "../queues/unknown-settings.ts";

/**
 * Reads `.env` of the current folder, if there is one, into the environment, where what is set already stays. Its settings name programs to
 * run, so it counts only where nobody else can change it.
 * @throws MathllmError `invalid-configuration`: others can, it is no file, or a name in it is a misspelt setting.
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
  const unknown = unknownSettings(parseEnv(readFileSync(real, "utf8")));
  if (unknown.length > 0) {
    const lines = unknown.map((each) => `${file}: ${describeUnknown(each)}`);
    throw new MathllmError("invalid-configuration", `${lines.join("\n")}\nSee .env.example for every setting.`);
  }
  process.loadEnvFile(real);
}
