import { parseArgs } from "node:util";
import { KILL_KINDS, runRedisKills } from "./redis-kills.ts";
import { runScript, UsageError, wholeNumber } from "./usage.ts";

/** npm run test:redis-kills: exit code 0 without violations, 1 with, 2 on wrong usage. */

const HELP = `npm run test:redis-kills -- [options]
  --seed N    settles jobs and kills (1)
  --kills N   how often Redis is killed, at least ${KILL_KINDS.length} (200)
  --jobs N    how many jobs come meanwhile (600)
`;

function options() {
  return parseArgs({
    options: {
      seed: { type: "string", default: "1" },
      kills: { type: "string", default: "200" },
      jobs: { type: "string", default: "600" },
      help: { type: "boolean", default: false },
    },
  }).values;
}

async function main(): Promise<number> {
  const values = options();
  if (values.help) {
    process.stdout.write(HELP);
    return 0;
  }
  const kills = wholeNumber("--kills", values.kills);
  if (kills < KILL_KINDS.length) throw new UsageError(`--kills: expected at least ${KILL_KINDS.length}; got ${kills}`);
  const interrupted = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => interrupted.abort(new Error(`interrupted by ${signal}`)));
  const { violations, ...report } = await runRedisKills({
    seed: wholeNumber("--seed", values.seed),
    kills,
    jobs: wholeNumber("--jobs", values.jobs),
    log: (line) => process.stdout.write(`${line}\n`),
    signal: interrupted.signal,
  });
  process.stdout.write(`${JSON.stringify(report, null, 2)}\n`);
  for (const violation of violations) process.stdout.write(`VIOLATION  ${violation}\n`);
  return violations.length === 0 ? 0 : 1;
}

await runScript(HELP, main);
