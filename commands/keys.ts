import os from "node:os";
import { type Command, InvalidArgumentError } from "commander";
import { ApiKeys, type KeyLimits, type KeyRole, keyLimitsSchema, type ListedKey, parseRoles } from "../queues/api-keys.ts";
import { addAuditEntry, latestAuditEntries } from "../queues/audit.ts";
import { readConfig } from "../queues/config.ts";
import { openRedis, type Redis, waitForRedis } from "../queues/connection.ts";
import { wholeNumber } from "./options.ts";
import { logTo, type Run, say } from "./run.ts";
import { withRedis } from "./system.ts";

const REDIS_START_TIMEOUT_MS = 5000;
/** commander takes null for nothing. */
const OFF = "off";

/** The store of API keys and what was done with them: `keys add`, `list`, `limit`, `revoke`, `clear`, `audit`. */
export function addKeys(program: Command, run: Run): void {
  const group = program.command("keys").description("make, list and revoke API keys; from the first one on the API asks for a key");
  const limits = (command: Command) =>
    command
      .option("--rate <number>", `requests a second, or ${OFF}`, limit("ratePerS"))
      .option("--jobs <count>", `unfinished jobs at once, or ${OFF}`, limit("maxJobs"));
  limits(group.command("add").description("make a key and show it, once").argument("<name>", "whose it is"))
    .requiredOption("--role <role>", "submit (its own jobs), read (the system), submit+read, or admin", roles)
    .option("--json", "print one object")
    .action((name, options) => run(() => runAdd(name, options)));
  group
    .command("list", { isDefault: true })
    .description("the keys, without their secrets")
    .option("--json", "print one object")
    .action((options) => run(() => runList(options)));
  limits(group.command("limit").description("change a key's limits, from its next request on").argument("<name>"))
    .option("--json", "print one object")
    .action((name, options) => run(() => runLimit(name, options)));
  group
    .command("revoke")
    .description("refuse a key from its next request on; its jobs go on")
    .argument("<name>")
    .option("--json", "print one object")
    .action((name, options) => run(() => runRevoke(name, options)));
  group
    .command("audit")
    .description("what admins did, the newest first")
    .option("--count <number>", "how many", wholeNumber(1, 10_000), 50)
    .option("--json", "print one object")
    .action((options) => run(() => runAudit(options)));
  group
    .command("clear")
    .description("forget all keys: on a loopback address the API is open to this machine again")
    .option("--json", "print one object")
    .action((options) => run(() => runClear(options)));
}

interface LimitOptions {
  rate?: number | typeof OFF;
  jobs?: number | typeof OFF;
  json?: boolean;
}

function runAdd(name: string, options: LimitOptions & { role: KeyRole[] }): Promise<number> {
  return withKeys(`keys add ${name}`, async (apiKeys) => {
    const key = await apiKeys.add(name, options.role, keyLimitsSchema.parse(limitsOf(options)));
    if (options.json) say(`${JSON.stringify({ name, roles: options.role, key })}\n`);
    else say(`${key}\n`);
    process.stderr.write("This key is shown once. Send it as Authorization: Bearer KEY; the command line takes it from API_KEY.\n");
  });
}

function runList(options: { json?: boolean }): Promise<number> {
  return withKeys(null, async (apiKeys) => {
    const list = await apiKeys.list();
    if (options.json) say(`${JSON.stringify({ keys: list })}\n`);
    else say(list.length === 0 ? "There are no keys: the API is open to this machine.\n" : list.map(keyLine).join(""));
  });
}

function runLimit(name: string, options: LimitOptions): Promise<number> {
  return withKeys(`keys limit ${name}`, async (apiKeys) => {
    await apiKeys.limit(name, limitsOf(options));
    const key = (await apiKeys.list()).find((each) => each.name === name)!;
    say(options.json ? `${JSON.stringify(key)}\n` : keyLine(key));
  });
}

function runRevoke(name: string, options: { json?: boolean }): Promise<number> {
  return withKeys(`keys revoke ${name}`, async (apiKeys) => {
    await apiKeys.revoke(name);
    say(options.json ? `${JSON.stringify({ revoked: name })}\n` : `${name} is refused from its next request on.\n`);
  });
}

function runAudit({ count, json }: { count: number; json?: boolean }): Promise<number> {
  return withKeys(null, async (_apiKeys, redis) => {
    const entries = await latestAuditEntries(redis, count);
    const line = ({ at = "", who = "", from = "", what = "", status = "", detail = "" }: Record<string, string>) =>
      `${[at, who.padEnd(20), from.padEnd(15), what, status, detail].join("  ").trimEnd()}\n`;
    say(json ? `${JSON.stringify({ entries })}\n` : entries.map(line).join(""));
  });
}

function runClear(options: { json?: boolean }): Promise<number> {
  return withKeys("keys clear", async (apiKeys) => {
    const cleared = await apiKeys.clear();
    say(options.json ? `${JSON.stringify({ cleared })}\n` : `Forgotten: ${cleared}.\n`);
  });
}

/** `what` is written into the audit once it is done. */
async function withKeys(what: string | null, body: (apiKeys: ApiKeys, redis: Redis) => Promise<void>): Promise<number> {
  const config = readConfig();
  const log = logTo(config);
  return withRedis(config, log, async (redisUrl) => {
    const redis = openRedis(redisUrl, "producer", () => {});
    try {
      await waitForRedis(redis, REDIS_START_TIMEOUT_MS);
      await body(new ApiKeys(redis), redis);
      if (what !== null) await addAuditEntry(redis, { who: "command line", what, from: `${os.userInfo().username}@${os.hostname()}` });
      return 0;
    } finally {
      redis.disconnect();
    }
  });
}

function keyLine({ name, roles: has, ratePerS, maxJobs, lastUsedAt, revokedAt }: ListedKey): string {
  const time = (ms: number | null) => (ms === null ? "never" : new Date(ms).toISOString().slice(0, 19));
  const limits = [ratePerS === null ? null : `${ratePerS}/s`, maxJobs === null ? null : `${maxJobs} jobs`].filter((each) => each !== null);
  const state = revokedAt === null ? `used ${time(lastUsedAt)}` : `revoked ${time(revokedAt)}`;
  return `${name.padEnd(20)}  ${has.join("+").padEnd(11)}  ${(limits.join(", ") || "no limits").padEnd(20)}  ${state}\n`;
}

function limitsOf({ rate, jobs }: LimitOptions): Partial<KeyLimits> {
  return {
    ...(rate === undefined ? {} : { ratePerS: rate === OFF ? null : rate }),
    ...(jobs === undefined ? {} : { maxJobs: jobs === OFF ? null : jobs }),
  };
}

function limit(name: keyof KeyLimits) {
  return (text: string): number | typeof OFF => {
    if (text === OFF) return OFF;
    const parsed = keyLimitsSchema.shape[name].safeParse(text.trim() === "" ? Number.NaN : Number(text));
    if (!parsed.success) throw new InvalidArgumentError(`Expected a number or ${OFF}; ${parsed.error.issues[0]!.message}.`);
    return parsed.data ?? OFF;
  };
}

function roles(text: string): KeyRole[] {
  const parsed = parseRoles(text);
  if (parsed === undefined) throw new InvalidArgumentError("Expected submit, read, submit+read or admin.");
  return parsed;
}
