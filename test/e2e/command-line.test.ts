import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import http from "node:http";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import readline from "node:readline";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { JOB_VIEW } from "../../api/openapi-examples.ts";
import { ApiClient } from "../../producers/submit.ts";
import { type JobView, jobViewSchema } from "../../queues/contracts.ts";

const root = path.join(import.meta.dirname, "../..");
const main = path.join(root, "mathllm.ts");
let folder: string;

beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-cli-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const environment = (over: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv => ({
  ...process.env,
  PORT: "0",
  STUDENT_PORT: "0",
  TALKER_PORT: "0",
  DATA_DIR: path.join(folder, "data"),
  TELEMETRY_LOG: path.join(folder, "telemetry.jsonl"),
  LOG_LEVEL: "error",
  // Model servers are found by it as well.
  ENGINE_ENV: "DATA_DIR",
  ...over,
});

/** Processes that were started with this folder in their environment or on their command line. */
async function processesOf(name: string): Promise<string[]> {
  const found = await Promise.all(
    (await readdir("/proc")).map(async (pid) => {
      const texts = await Promise.all(["environ", "cmdline"].map((file) => readFile(`/proc/${pid}/${file}`, "utf8").catch(() => "")));
      return texts.some((text) => text.includes(name)) ? [texts[1]!.replaceAll("\0", " ")] : [];
    }),
  );
  return found.flat();
}

interface Outcome {
  code: number;
  stdout: string;
  stderr: string;
}

function mathllm(args: string[], env: NodeJS.ProcessEnv = {}): Promise<Outcome> {
  return new Promise((resolve) => {
    execFile(process.execPath, [main, ...args], { env: environment(env), cwd: folder, timeout: 90_000 }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

describe("a running system", () => {
  let system: ChildProcess;
  let url: string;
  let api: ApiClient;

  beforeAll(async () => {
    system = spawn(process.execPath, [main, "start"], { env: environment(), cwd: folder, stdio: ["ignore", "pipe", "inherit"] });
    for await (const line of readline.createInterface({ input: system.stdout! })) {
      const found = /live page\s+(http\S+)/.exec(line)?.[1];
      if (found !== undefined) {
        url = found;
        break;
      }
    }
    system.stdout!.resume();
    api = new ApiClient(url);
  });

  afterAll(async () => {
    system.kill("SIGKILL");
  });

  test("the README's curl: 202, a job id and Location; the job ends with 42, and explained it names 42", async () => {
    const post = (body: unknown) =>
      fetch(`${url}/solve`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
    const response = await post({ problem: "What is 17 + 25?" });
    expect(response.status).toBe(202);
    const { jobId } = (await response.json()) as { jobId: string };
    expect(response.headers.get("location")).toBe(`/jobs/${jobId}`);
    expect((await api.finished(jobId)).result?.answer).toBe("42");
    const explained = (await (await post({ problem: "What is 17 + 25?", explain: true })).json()) as { jobId: string };
    const view = await api.finished(explained.jobId);
    expect(view.result?.explanation).toContain("42");
    expect(view.stages.map((stage) => [stage.model, stage.status])).toEqual([
      ["student", "completed"],
      ["talker", "completed"],
    ]);
  });

  test("readyz tells of the worker and the resident model", async () => {
    expect(await (await fetch(`${url}/readyz`)).json()).toMatchObject({ ready: true, redis: true, workers: 1 });
  });

  test("solve --json prints the finished view alone on stdout", async () => {
    const { code, stdout } = await mathllm(["solve", "What is 6 × 7?", "--json", "--url", url]);
    expect(code).toBe(0);
    expect(jobViewSchema.parse(JSON.parse(stdout)).result?.answer).toBe("42");
  });

  test("solve prints solution, answer and explanation", async () => {
    const { code, stdout } = await mathllm(["solve", "What is 17 + 25?", "--explain", "--url", url]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/\\boxed\{42\}[\s\S]*Answer: 42[\s\S]*So the answer is 42/);
  });

  test("a problem longer than the model's context fails with the numbers", async () => {
    const { code, stderr } = await mathllm(["solve", `What is ${"1 + ".repeat(2000)}1?`, "--url", url]);
    expect(code).toBe(1);
    expect(stderr).toMatch(/tokens and the model's context holds 512/);
  });

  test("smoke passes: a handful of problems through both models", async () => {
    const { code, stdout } = await mathllm(["smoke", "--json", "--url", url]);
    expect(JSON.parse(stdout)).toMatchObject({ ok: true, results: Array(4).fill(expect.objectContaining({ ok: true, explained: true })) });
    expect(code).toBe(0);
  });

  test("gpu tells what is resident and why; drain, resume and limit are felt", async () => {
    const show = async () => (await mathllm(["gpu", "--json", "--url", url])).stdout;
    await expect.poll(async () => JSON.parse(await show()).gpus[0].phase, { timeout: 10_000 }).toBe("idle");
    expect(JSON.parse(await show())).toMatchObject({ gpus: [{ drained: false }], queues: { student: { rateLimit: null } } });
    expect((await mathllm(["gpu", "drain", "--url", url])).stdout).toMatch(/^drain: told /);
    await expect.poll(async () => JSON.parse(await show()).gpus[0].drained, { timeout: 10_000 }).toBe(true);
    expect((await mathllm(["gpu", "--url", url])).stdout).toMatch(/waits: drained by an operator/);
    await mathllm(["gpu", "resume", "--url", url]);
    expect((await mathllm(["limit", "student", "100/s", "--url", url])).stdout).toBe("student: 100 jobs within 1000 ms\n");
    expect(JSON.parse(await show()).queues.student.rateLimit).toEqual({ max: 100, durationMs: 1000 });
    await mathllm(["limit", "student", "off", "--url", url]);
    expect((await mathllm(["limit", "student", "fast", "--url", url])).code).toBe(2);
  });

  test("a model server of one's own is kept off the GPU that the worker holds", async () => {
    const { code, stderr } = await mathllm(["serve", "student"]);
    expect(code).toBe(1);
    expect(stderr).toMatch(/a GPU worker, process \d+ holds it/);
  });

  test("SIGTERM drains and leaves no process behind", async () => {
    const exited = once(system, "exit");
    system.kill("SIGTERM");
    expect((await exited)[0]).toBe(0);
    const left: string[] = [];
    for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
      const { stdout } = await new Promise<{ stdout: string }>((resolve) =>
        execFile("cat", [`/proc/${pid}/environ`], (_e, stdout) => resolve({ stdout })),
      );
      if (stdout.includes(`DATA_DIR=${path.join(folder, "data")}`)) left.push(pid);
    }
    expect(left).toEqual([]);
  });
});

test("demo --json prints one summary; 40 of 40 end, at least 95 % right, never two models, nothing left behind", async () => {
  const before = await readdir(os.tmpdir());
  const { code, stdout } = await mathllm(["demo", "--json"]);
  expect(code).toBe(0);
  const summary = JSON.parse(stdout);
  expect(summary).toMatchObject({ jobs: 40, completed: 40, failed: 0, maxResident: 1, explained: 20 });
  expect(summary.correct).toBeGreaterThanOrEqual(38);
  expect(summary.swaps).toBeGreaterThan(0);
  const added = (await readdir(os.tmpdir())).filter((name) => name.startsWith("mathllm-demo-") && !before.includes(name));
  expect(added).toEqual([]);
});

describe("wrong use", () => {
  test("unknown command and bad flag: exit 2 and a hint", async () => {
    for (const args of [["nonsense"], ["demo", "--jobs", "many"], ["serve", "teacher"], ["solve"]]) {
      const { code, stderr } = await mathllm(args);
      expect([args, code]).toEqual([args, 2]);
      expect(stderr).toContain("error:");
    }
  });

  test("a wrong variable: exit 2, named with what came", async () => {
    const { code, stderr } = await mathllm(["start"], { PORT: "abc" });
    expect(code).toBe(2);
    expect(stderr).toMatch(/PORT: .*got "abc"/);
  });

  test("a name that resembles a setting is told once, and no obstacle", async () => {
    const { code, stderr } = await mathllm(["api"], { LOGLEVEL: "debug", LOG_LEVEL: "warn", DATA_DIR: "/dev/null/none" });
    expect([code, stderr.match(/unknown setting LOGLEVEL; did you mean LOG_LEVEL\?/g)]).toEqual([2, [expect.any(String)]]);
    expect(stderr).toContain("DATA_DIR: expected");
  });

  test("no API there: says where and what to do", async () => {
    const { code, stderr } = await mathllm(["solve", "1 + 1", "--url", "http://127.0.0.1:9"]);
    expect(code).toBe(1);
    expect(stderr).toMatch(/Expected the API at http:\/\/127\.0\.0\.1:9.*npm start/);
  });

  test("a cut solution is no success: where it was cut, and what to raise", async () => {
    const [stage] = JOB_VIEW.stages;
    const view: JobView = {
      ...JOB_VIEW,
      stages: [{ ...stage!, truncated: true }],
      result: { ...JOB_VIEW.result!, answer: null, truncated: true, usage: { promptTokens: 21, completionTokens: 20 } },
    };
    const server = http.createServer((request, response) => {
      response.setHeader("content-type", "application/json");
      if (request.method !== "POST") return response.end(JSON.stringify(view));
      response.statusCode = 202;
      return response.end(JSON.stringify({ jobId: view.jobId, status: "waiting", estimatedStartMs: null, links: view.links }));
    });
    await once(server.listen(0, "127.0.0.1"), "listening");
    const url = `http://127.0.0.1:${(server.address() as net.AddressInfo).port}`;
    const { code, stdout, stderr } = await mathllm(["solve", "1 + 1", "--url", url]);
    server.close();
    expect(stdout).toContain("Answer: none, since it was cut");
    expect(stderr).toContain("The solution was cut after 20 tokens; raise STUDENT_MAX_TOKENS.");
    expect(code).toBe(1);
  });

  test("a taken port, an unreachable Redis, a missing model: one clear line each, no stack trace", async () => {
    const taken = net.createServer().listen(0, "127.0.0.1");
    await once(taken, "listening");
    const port = String((taken.address() as net.AddressInfo).port);
    const broken = path.join(folder, "broken.gguf");
    await writeFile(broken, "this is no model");
    const cases: [string[], NodeJS.ProcessEnv, RegExp][] = [
      [["api"], { PORT: port }, new RegExp(`Port ${port} on 127.0.0.1 is taken`)],
      [["api"], { REDIS_URL: "redis://:secret@127.0.0.1:9" }, /Expected a Redis server at 127\.0\.0\.1:9/],
      [["serve", "student"], { STUDENT_MODEL: "/nowhere.gguf" }, /Expected a GGUF file at \/nowhere\.gguf/],
      [["serve", "student"], { STUDENT_MODEL: broken }, /Expected a whole GGUF file/],
      [["serve", "student"], { STUDENT_PORT: port }, new RegExp(`Port ${port} is taken`)],
    ];
    for (const [args, env, message] of cases) {
      const { code, stderr } = await mathllm(args, env);
      expect(stderr).toMatch(message);
      expect(stderr).not.toMatch(/\n\s+at |secret/);
      expect(code).toBe(1);
    }
    taken.close();
    expect(await processesOf(folder)).toEqual([]);
  });

  test("doctor names what is wrong and exits 1, and 0 when all is well", async () => {
    const well = await mathllm(["doctor", "--json"]);
    expect([well.code, JSON.parse(well.stdout).checks.filter((check: { ok: boolean }) => !check.ok)]).toEqual([0, []]);
    const ill = await mathllm(["doctor"], { TALKER_MODEL: "/nowhere.gguf" });
    expect(ill.code).toBe(1);
    expect(ill.stdout).toMatch(/FAIL {2}talker model/);
  });
});

test("simulate prints one object with the fields scripts rely on, and a table for people", async () => {
  const { code, stdout } = await mathllm(
    "simulate --policy ge --jobs 2000 --service-ms 4000 --swap-ms 10000 --slots 1 --mix 0.5 --load 0.7 --seed 1 --json".split(" "),
  );
  expect(code).toBe(0);
  const result = JSON.parse(stdout);
  for (const field of [
    "swaps",
    "swapsPer100Jobs",
    "gpuBusyShare",
    "meanWaitMs",
    "meanEndToEndMs",
    "p50WaitMs",
    "p95WaitMs",
    "p99WaitMs",
    "maxWaitMs",
    "makespanMs",
    "lowerBoundMs",
  ]) {
    expect(result[field]).toBeTypeOf("number");
  }
  expect(result.models.talker.maxWaitMs).toBeGreaterThan(0);
  expect((await mathllm(["simulate", "--backlog", "--jobs", "50", "--policy", "fifo"])).stdout).toMatch(/fifo: \d+ swaps/);
  const replayed = await mathllm(["simulate", "--replay", "/nowhere.jsonl"]);
  expect([replayed.code, replayed.stderr]).toEqual([2, expect.stringContaining("expected a telemetry file")]);
});

test("serve --dry-run prints the command line alone; healthcheck asks a model server that runs", async () => {
  const port = 20_000 + (process.pid % 10_000);
  const env = { GPU_ID: `cpu-serve-${process.pid}`, TALKER_PORT: String(port), TALKER_API_KEY: "of-the-owner" };
  expect((await mathllm(["serve", "talker", "--dry-run"], env)).stdout).toMatch(/embedded-server\.ts\n$/);
  const url = `http://127.0.0.1:${port}/v1`;
  expect((await mathllm(["healthcheck", url])).code).toBe(1);
  const key = { MODEL_API_KEY: "of-the-owner" };
  const server = spawn(process.execPath, [main, "serve", "talker"], {
    env: environment(env),
    cwd: folder,
    stdio: ["ignore", "pipe", "inherit"],
  });
  try {
    const [text] = await once(readline.createInterface({ input: server.stdout! }), "line");
    expect(text).toContain(url);
    expect((await mathllm(["healthcheck", url])).code).toBe(1);
    const { code, stdout, stderr } = await mathllm(["healthcheck", url, "--json"], key);
    expect([code, stderr]).toEqual([0, ""]);
    expect(JSON.parse(stdout)).toMatchObject({ url, models: ["talker"], oneTokenMs: expect.any(Number) });
    server.kill("SIGINT");
    expect((await once(server, "exit"))[0]).toBe(0);
  } finally {
    server.kill("SIGKILL");
  }
});
