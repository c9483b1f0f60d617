import { readFileSync } from "node:fs";
import path from "node:path";
import { expect, test } from "vitest";
import { readConfig } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import { SETTING_NAMES } from "../../queues/settings.ts";

const root = path.join(import.meta.dirname, "../..");
const names = [...SETTING_NAMES].sort();

test("the defaults run the shipped models with nothing set", () => {
  const config = readConfig({});
  expect(config).toMatchObject({ port: 3000, host: "127.0.0.1", redisUrl: undefined, redisAppendfsync: "always" });
  expect(config.profiles.student).toMatchObject({ port: 8009, maxNumSeqs: 8, model: path.join(root, "models", "student.gguf") });
  expect(config.profiles.talker).toMatchObject({ port: 8010, maxNumSeqs: 6, model: path.join(root, "models", "talker.gguf") });
  expect(path.isAbsolute(config.dataDir)).toBe(true);
});

test("an empty value is the default", () => {
  expect(readConfig({ PORT: "", STUDENT_MODEL: "", GPU_ID: "" })).toEqual(readConfig({}));
});

test("every wrong value is named with what was expected and what came, a secret is not shown", () => {
  const read = () =>
    readConfig({ PORT: "70000", GPU_POLICY: "best", STUDENT_SPECULATIVE_ENABLED: "maybe", REDIS_URL: "http://u:secret@x" });
  expect(read).toThrow(MathllmError);
  try {
    read();
  } catch (error) {
    const { message } = error as Error;
    for (const part of [
      "PORT",
      '"70000"',
      "GPU_POLICY",
      '"best"',
      "exhaustive",
      "STUDENT_SPECULATIVE_ENABLED",
      "expected 0, 1",
      "REDIS_URL",
    ]) {
      expect(message).toContain(part);
    }
    expect(message).not.toContain("secret");
  }
});

test.each([
  "redis://127.0.0.1:6379",
  "rediss://user:secret@redis.example:6380/2",
  "redis://:a,b@one",
  "redis://one:1,redis://:secret@two:2,redis://[::1]:3",
  "redis://one:1, redis://two:2",
])("REDIS_URL may be %s", (url) => {
  expect(readConfig({ REDIS_URL: url }).redisUrl).toBe(url);
});

test.each([
  "redis://one:1,two:2",
  "redis://one,two",
  "redis://one:1,rediss://two:2",
  "redis://one:1/1,redis://two:2",
  "redis://one:1,",
  "one:1",
])("REDIS_URL must not be %s", (url) => {
  expect(() => readConfig({ REDIS_URL: url })).toThrow(/REDIS_URL: expected redis:\/\/host:port .* with commas between/);
});

test(".env.example documents exactly the variables of the schema, with their defaults", () => {
  const text = readFileSync(path.join(root, ".env.example"), "utf8");
  const documented = [...text.matchAll(/^# ([A-Z][A-Z_]+)=(.*)$/gm)].map((match) => [match[1]!, match[2]!] as const);
  expect(documented.map(([name]) => name).sort()).toEqual(names);
  const examples = ["STUDENT_MODEL", "TALKER_MODEL", "REDIS_URL"];
  const defaults = Object.fromEntries(documented.filter(([name]) => !examples.includes(name)));
  expect(readConfig(defaults)).toEqual(readConfig({}));
  expect(() => readConfig(Object.fromEntries(documented))).not.toThrow();
});

test("docker-compose.yml sets only variables of the schema", () => {
  const text = readFileSync(path.join(root, "docker-compose.yml"), "utf8");
  const used = [...text.matchAll(/^ {6}([A-Z][A-Z_]+): /gm)].map((match) => match[1]!);
  expect(used.length).toBeGreaterThan(4);
  for (const name of used) expect(names).toContain(name);
  expect(text).toContain('"127.0.0.1:3000:3000"');
});

test("the README names no variable that is not of the schema", () => {
  const text = readFileSync(path.join(root, "README.md"), "utf8");
  const used = [...text.matchAll(/`([A-Z][A-Z]+_[A-Z_]+)(?:=[^`]*)?`/g)].map((match) => match[1]!);
  expect(used.length).toBeGreaterThan(5);
  for (const name of used) expect(names).toContain(name);
});
