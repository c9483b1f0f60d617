import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { loadEnvFile } from "../../commands/env-file.ts";
import { readConfig } from "../../queues/config.ts";
import { SETTING_PAGES } from "../../queues/setting-pages.ts";
import { SETTING_NAMES, withoutSettings } from "../../queues/settings.ts";
import { unknownSettings } from "../../queues/unknown-settings.ts";
import { describeSettings } from "../../workers/doctor.ts";
import { childEnvironment } from "../../workers/engines/child-environment.ts";
import { canariesIn, SECRET_ENV } from "../canaries.ts";

const root = path.join(import.meta.dirname, "../..");

test.each(Object.keys(SETTING_PAGES))("%s is what the table of settings says (npm run settings writes it)", (file) => {
  expect(readFileSync(path.join(root, file), "utf8")).toBe(SETTING_PAGES[file]!());
});

test("no name is declared twice", () => {
  expect(new Set(SETTING_NAMES).size).toBe(SETTING_NAMES.length);
});

test("a list that is not set is no one's but the reader's", () => {
  readConfig({}).corsOrigins.push("https://app.example.org");
  expect(readConfig({}).corsOrigins).toEqual([]);
});

describe("an unknown name", () => {
  const misspelt = (env: NodeJS.ProcessEnv) => unknownSettings(env).map(({ name, meant }) => `${name} ${meant}`);

  test.each([
    ["STUDENT_MODLE", "STUDENT_MODEL"],
    ["TALKER_MAX_SEQS", "TALKER_MAX_NUM_SEQS"],
    ["STUDENT_MODELS", "STUDENT_MODEL"],
    ["STUDENT_TEMPERATURE", undefined],
    ["TALKER_CORRESIDENT", "TALKER_CORESIDENT"],
    ["STUDENT_CORESIDENT", undefined],
  ])("%s of our prefixes is refused in the environment, be it near to a setting (%s) or not", (name, meant) => {
    const message = meant === undefined ? `unknown setting ${name}; names with` : `unknown setting ${name}; did you mean ${meant}?`;
    const read = () => readConfig({ [name]: "canary", PORT: "no" });
    expect(read).toThrow(expect.objectContaining({ code: "invalid-configuration", message: expect.stringContaining(message) }));
    expect(read).toThrow(/PORT: /);
    expect(read).not.toThrow(/canary/);
  });

  test.each([
    ["STUDNT_MODEL", "STUDENT_MODEL"],
    ["REDIS_URI", "REDIS_URL"],
    ["CORS_ORIGIN", "CORS_ORIGINS"],
    ["LOG_LEVLE", "LOG_LEVEL"],
    ["GPU_IDS", "GPU_ID"],
    ["student_model", "STUDENT_MODEL"],
  ])("%s without such a prefix only resembles %s: another program may read it, so that it is told and not refused", (name, meant) => {
    expect(misspelt({ [name]: "x" })).toEqual([`${name} ${meant}`]);
    expect(() => readConfig({ [name]: "x" })).not.toThrow();
  });

  test("of another program is not taken for ours", () => {
    const others =
      "GH_TOKEN GITHUB_TOKEN HOME HOSTNAME LOGNAME TERM HOSTS PORTS POST HF_HOME HF_ENDPOINT HF_TOKEN_PATH CUDA_VISIBLE_DEVICES " +
      "VLLM_PORT VLLM_API_KEY LLAMA_API_KEY MODEL_ENDPOINT API_URL REDIS_HOST REDIS_PORT REDIS_PASSWORD DATABASE_URL " +
      "COMPOSE_FILE OTEL_EXPORTER_OTLP_TRACES_ENDPOINT OTEL_EXPORTER_OTLP_HEADERS NODE_ENV JOB_ID GPU_DEVICE_ORDINAL OPENAI_API_KEY";
    expect(misspelt(Object.fromEntries(others.split(" ").map((name) => [name, "x"])))).toEqual([]);
    expect(misspelt(childEnvironment())).toEqual([]);
  });

  test("that is a setting, or has no value, is none", () => {
    expect(misspelt(Object.fromEntries(SETTING_NAMES.map((name) => [name, "1"])))).toEqual([]);
    expect(misspelt({ STUDENT_MODLE: "", LOG_LEVLE: "" })).toEqual([]);
  });

  test("that Kubernetes or Docker sets for a service called student or talker-… is theirs", () => {
    const links = {
      STUDENT_SERVICE_HOST: "10.0.0.1",
      STUDENT_SERVICE_PORT: "8009",
      STUDENT_SERVICE_PORT_HTTP: "8009",
      STUDENT_PORT_8009_TCP: "tcp://10.0.0.1:8009",
      STUDENT_PORT_8009_TCP_PROTO: "tcp",
      STUDENT_PORT_8009_TCP_PORT: "8009",
      STUDENT_PORT_8009_TCP_ADDR: "10.0.0.1",
      TALKER_VLLM_PORT: "tcp://10.0.0.2:80",
    };
    expect(misspelt(links)).toEqual([]);
    expect(() => readConfig(links)).not.toThrow();
    expect(() => readConfig({ TALKER_VLLM_PORT: "8000" })).toThrow(/unknown setting TALKER_VLLM_PORT/);
  });

  test("is not handed on to a program that is configured anew", () => {
    expect(withoutSettings({ STUDENT_MODLE: "x", STUDENT_MODEL: "y", PORT: "1", PATH: "/bin" })).toEqual({ PATH: "/bin" });
  });

  test("doctor tells it, and what is set, without a secret", () => {
    const told = describeSettings({ ...SECRET_ENV, STUDENT_MAX_NUM_SEQS: "5", LOGLEVEL: "debug" });
    expect(told).toContain("STUDENT_MAX_NUM_SEQS=5");
    expect(told).toContain("STUDENT_API_KEY (not shown)");
    expect(told).toContain("unknown setting LOGLEVEL; did you mean LOG_LEVEL?");
    expect(canariesIn(told)).toEqual([]);
    expect(describeSettings({})).toBe("all are at their defaults");
  });
});

describe("a .env with a misspelt setting", () => {
  const before = process.cwd();
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), "mathllm-settings-"));
    process.chdir(folder);
  });
  afterEach(() => {
    process.chdir(before);
    rmSync(folder, { recursive: true });
    vi.unstubAllEnvs();
  });

  test("is refused with each of them, and sets nothing", () => {
    vi.stubEnv("GPU_ID", undefined);
    writeFileSync(".env", "GPU_ID=cpu\nSTUDENT_MODLE=canary\nexport LOG_LEVLE=canary\n# TALKER_MODLE=x\nCOMPOSE_FILE=x\n");
    const message = [
      `${path.resolve(".env")}: unknown setting LOG_LEVLE; did you mean LOG_LEVEL?`,
      `${path.resolve(".env")}: unknown setting STUDENT_MODLE; did you mean STUDENT_MODEL?`,
      "See .env.example for every setting.",
    ].join("\n");
    expect(loadEnvFile).toThrow(expect.objectContaining({ code: "invalid-configuration", message }));
    expect(process.env.GPU_ID).toBeUndefined();
  });
});
