import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Checkpoint } from "../../producers/perf/checkpoint.ts";
import { PerformanceRun } from "../../producers/perf/performance-run.ts";
import type { PhaseOutcome } from "../../producers/perf/phase.ts";
import { renderReport } from "../../producers/report/render.ts";
import { writeReport } from "../../producers/report/report.ts";
import { NO_GRAPHS } from "../../producers/report/schema.ts";
import { readConfig } from "../../queues/config.ts";
import { redaction } from "../../queues/log-redaction.ts";
import { isSecretSetting, SECRET_SETTINGS, SETTING_NAMES, withoutSecrets } from "../../queues/settings.ts";
import { commandLine } from "../../workers/engines/http-engine.ts";
import { CANARIES, canariesIn, SECRET_ENV } from "../canaries.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-secrets-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

test("each setting whose name tells of a key, token, secret or password is declared secret, and each secret has a canary", () => {
  const named = SETTING_NAMES.filter((name) => /(?<!MAX)_(KEYS?|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$/.test(name));
  expect([...SECRET_SETTINGS].sort()).toEqual([...named, "REDIS_URL"].sort());
  expect(Object.keys(CANARIES).sort()).toEqual([...SECRET_SETTINGS].sort());
  expect(SECRET_SETTINGS.every(isSecretSetting)).toBe(true);
  expect(isSecretSetting("PORT")).toBe(false);
  expect(() => readConfig(SECRET_ENV)).not.toThrow();
});

test("an environment without secrets has everything else", () => {
  expect(withoutSecrets({ ...SECRET_ENV, PORT: "1", PATH: "/bin" })).toEqual({ PORT: "1", PATH: "/bin" });
});

test.each(["STUDENT_URL", "TALKER_URL", "OTEL_EXPORTER_OTLP_ENDPOINT"])(
  "%s takes no password, and the refusal does not show it",
  (name) => {
    const read = () => readConfig({ [name]: "http://user:canary@127.0.0.1:1/x" });
    expect(read).toThrow(/without user and password.*http:\/\/…@127\.0\.0\.1:1\/x/);
    expect(read).not.toThrow(/canary/);
  },
);

test.each([...SECRET_SETTINGS])("a wrong %s is refused without being shown", (name) => {
  const read = () => readConfig({ [name]: "canary:", PORT: "no" });
  expect(read).toThrow(/PORT/);
  expect(read).not.toThrow(/canary/);
});

test("a line of the log shows no secret of the configuration, the environment, or a part of them", () => {
  const written: string[] = [];
  const log = pino({ formatters: { log: redaction(true) } }, { write: (text: string) => void written.push(text) });
  const config = readConfig(SECRET_ENV);
  log.info({ config, env: SECRET_ENV, webhooks: config.webhooks, profile: config.profiles.student }, "all");
  log.info({ ...config }, "config");
  log.info({ ...SECRET_ENV }, "environment");
  expect(written).toHaveLength(3);
  expect(canariesIn(written.join(""))).toEqual([]);
});

test("a model server's command line names the variable instead of its secret", () => {
  const shown = commandLine({ command: "vllm", args: ["serve"], env: { ...SECRET_ENV, PLAIN: "1 2" } });
  expect(canariesIn(shown)).toEqual([]);
  expect(shown).toContain('HF_TOKEN="$HF_TOKEN"');
  expect(shown).toContain("PLAIN='1 2' vllm serve");
});

test("a performance run writes no secret into its folder", async () => {
  const outcome: PhaseOutcome = {
    phase: {
      id: "A",
      title: "Baseline",
      status: "skipped",
      reason: "It stands for a measured one.",
      startedAt: null,
      finishedAt: null,
      configuration: {},
      targets: [],
      runs: [],
      decision: null,
      notes: [],
      evidence: [],
    },
    settings: {},
    reasons: {},
    capacities: {},
    graphs: NO_GRAPHS,
    resources: [],
    limits: [],
  };
  const run = new PerformanceRun({
    main: "mathllm.ts",
    outDir: folder,
    phases: [],
    quick: true,
    seed: 1,
    choices: { maxNumSeqs: [], talkerB: {} },
    env: { ...process.env, ...SECRET_ENV, STUDENT_MAX_NUM_SEQS: "5" },
    command: "mathllm perf A",
    version: "0",
    say: () => {},
    signal: new AbortController().signal,
  });
  await new Checkpoint(folder).keep(outcome);
  const report = await run.run();
  await writeReport(folder, report);
  await renderReport(folder);
  const files = (await readdir(folder, { recursive: true, withFileTypes: true })).filter((file) => file.isFile());
  const names = files.map(({ name }) => name);
  for (const name of ["run.json", "final.env", "report.html", "report.md"]) expect(names).toContain(name);
  for (const { name, parentPath } of files) expect(canariesIn(await readFile(path.join(parentPath, name), "utf8")), name).toEqual([]);
  expect(await readFile(path.join(folder, "final.env"), "utf8")).toContain("STUDENT_MAX_NUM_SEQS=5");
});
