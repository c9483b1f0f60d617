import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import fc from "fast-check";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { isAlive, startTicksOf } from "../../queues/process-identity.ts";
import { GpuMonitor, memoryOfGroup, parseProcesses, parseReading } from "../../workers/gpu/gpu-monitor.ts";

const MEBIBYTE = 1_048_576;
const FIXTURES = path.join(import.meta.dirname, "..", "fixtures", "nvidia-smi");

const IDLE = {
  vramUsedBytes: 612 * MEBIBYTE,
  vramTotalBytes: 12_227 * MEBIBYTE,
  vramFreeBytes: 11_181 * MEBIBYTE,
  gpuPercent: 0,
  temperatureCelsius: 38,
  powerWatts: 14.52,
  smClockMhz: 180,
};

describe("a line", () => {
  test.each<[string, ReturnType<typeof parseReading>]>([
    ["2026/10/05 12:00:00.104, 12227, 612, 11181, 0, 38, 14.52, 180", IDLE],
    ["2026/10/05 12:00:00.104, 12227, 612, 11181, 0, 38, 14.52, 180\r", IDLE],
    [
      "2026/10/05 12:00:00.104, 12227, 612, 11181, [N/A], [Not Supported], [Unknown Error], [N/A]",
      { ...IDLE, gpuPercent: null, temperatureCelsius: null, powerWatts: null, smClockMhz: null },
    ],
    [
      "2026/10/05 12:00:00.104, 12227, 612, 11181, ERR!, 0x1f, 1e3, Infinity",
      { ...IDLE, gpuPercent: null, temperatureCelsius: null, powerWatts: null, smClockMhz: null },
    ],
    [
      "2026/10/05 12:00:00.104, , -612, 9999999999999999999, 0, -4, 14.52, 180",
      { ...IDLE, vramUsedBytes: null, vramTotalBytes: null, vramFreeBytes: null, temperatureCelsius: -4 },
    ],
    ["2026/10/05 12:00:00.104, 12227, 61", null],
    ["2227, 612, 11181, 0, 38, 14.52, 180", null],
    ["1, 12227, 612, 11181, 0, 38, 14.52, 180", null],
    ["2026/10/05 12:00:00.104, 12227, 612, 111812026/10/05 12:00:01.104, 12227, 612, 11181, 0, 38, 14.52, 180", null],
    ["Unable to determine the device handle for GPU0000:01:00.0: GPU is lost.  Reboot the system to recover this GPU", null],
    ["", null],
  ])("%s", (line, reading) => {
    expect(parseReading(line)).toEqual(reading);
  });

  const field = fc.oneof(
    fc.string(),
    fc.double().map(String),
    fc.bigInt().map(String),
    fc.constantFrom("[N/A]", "-0", "1.", ".5", "NaN", "1e999"),
  );

  test("whatever it says, a field is a number or null", () => {
    const line = fc.oneof(
      fc.string({ unit: "binary" }),
      fc.array(field, { minLength: 7, maxLength: 7 }).map((fields) => ["2026/10/05 12:00:00.104", ...fields].join(", ")),
    );
    fc.assert(
      fc.property(line, (text) => {
        for (const value of Object.values(parseReading(text) ?? {})) expect(value === null || Number.isFinite(value)).toBe(true);
      }),
      { numRuns: 2000 },
    );
  });

  test("whatever the list of processes says, a share is a number of bytes or null", () => {
    const text = fc
      .array(
        fc.oneof(
          fc.string({ unit: "binary" }),
          fc.tuple(field, field).map((pair) => pair.join(", ")),
        ),
      )
      .map((lines) => lines.join("\n"));
    fc.assert(
      fc.property(text, (processes) => {
        for (const [pid, bytes] of parseProcesses(processes)) {
          expect(Number.isSafeInteger(pid)).toBe(true);
          expect(bytes === null || (Number.isFinite(bytes) && bytes >= 0)).toBe(true);
        }
      }),
      { numRuns: 2000 },
    );
  });
});

describe("a model server's own memory", () => {
  const groups: Record<number, number> = { 100: 100, 101: 100, 7: 7 };
  const groupOf = (pid: number) => groups[pid] ?? null;
  test.each<[string, string, number | null]>([
    ["of its whole group", "100, 400\n101, 7800\n7, 90\n", 8200 * MEBIBYTE],
    ["one process on it in two contexts", "100, 400\n100, 8\n", 408 * MEBIBYTE],
    ["one share unknown", "100, [N/A]\n101, 7800\n", null],
    ["of others nothing counts", "100, 400\n7, [N/A]\n55, 1\n", 400 * MEBIBYTE],
    ["not listed", "7, 90\n", null],
    ["none at all", "\n", null],
    ["no list", "No devices were found\n", null],
  ])("%s", (_name, list, bytes) => {
    expect(memoryOfGroup(parseProcesses(list), 100, groupOf)).toBe(bytes);
  });
});

describe("nvidia-smi as a child", () => {
  /** Plays one line of `scenarios` a start, the last one again and again: a fixture, and what comes after its lines. */
  let folder: string;
  let monitor: GpuMonitor | undefined;
  let owner: ChildProcess | undefined;
  let serverPid: number | null;
  const before = process.env.PATH;
  const logged: { level: number; msg: string; detail?: string }[] = [];
  const timings = { staleMs: 600, silentMs: 1200, restartMs: 50, restartCapMs: 400, healthyMs: 600, processesMs: 100 };

  beforeEach(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-smi-"));
    logged.length = 0;
    serverPid = null;
    await install();
  });

  afterEach(async () => {
    await monitor?.stop();
    monitor = undefined;
    owner?.kill("SIGKILL");
    owner = undefined;
    process.env.PATH = before;
    for (const pid of await pids()) expect(isRunning(pid)).toBe(false);
    await rm(folder, { recursive: true, force: true });
  });

  async function install(): Promise<void> {
    const script = `#!/bin/sh
case "$*" in *compute-apps*) cat ${folder}/processes; exit ;; esac
echo "$$ $*" >> ${folder}/starts
set -- $(head -n 1 ${folder}/scenarios)
if [ "$(wc -l < ${folder}/scenarios)" -gt 1 ]; then sed -i 1d ${folder}/scenarios; fi
while IFS= read -r line; do printf '%s\\n' "$line"; sleep 0.05; done < ${FIXTURES}/$1
last=$(tail -n 1 ${FIXTURES}/$1)
case $2 in
  on) while :; do printf '%s\\n' "$last"; sleep 0.05; done ;;
  halves) while :; do printf '%s\\n' "$last" '2026/10/05 12:00:01.105, 12227, 89'; sleep 0.05; done ;;
  exit) exit $3 ;;
  hang) exec sleep 1000 ;;
  torn) printf '2026/10/05 12:00:09.000, 12227, 999, 1, 1, 1, 1.00, 1'; exit 0 ;;
esac
`;
    await writeFile(path.join(folder, "starts"), "");
    await writeFile(path.join(folder, "processes"), "");
    await writeFile(path.join(folder, "nvidia-smi"), script);
    await chmod(path.join(folder, "nvidia-smi"), 0o755);
    process.env.PATH = `${folder}:${before}`;
  }

  const starts = async () => (await readFile(path.join(folder, "starts"), "utf8")).trim().split("\n").filter(Boolean);
  const pids = async () => (await starts()).map((line) => Number(line.split(" ")[0]));
  const warnings = () => logged.filter(({ level }) => level >= 40).map(({ msg }) => msg);
  /** A zombie has ended. */
  const isRunning = (pid: number) => isAlive({ pid, startTicks: startTicksOf(pid) });

  async function start(scenarios: string[], over: Partial<typeof timings> = {}, gpuId = "gpu-1"): Promise<GpuMonitor> {
    await writeFile(path.join(folder, "scenarios"), `${scenarios.join("\n")}\n`);
    const log = pino({ level: "info" }, { write: (line: string) => logged.push(JSON.parse(line)) });
    monitor = new GpuMonitor({ gpuId, modelServerPid: () => serverPid, log, timings: { ...timings, ...over } });
    await monitor.start();
    return monitor;
  }

  test("one child tells again and again, of one GPU", async () => {
    const monitor = await start(["normal.csv on"], {}, "GPU-11111111-2222-3333-4444-555555555555");
    expect(monitor.latest).toMatchObject({ vramTotalBytes: 12_227 * MEBIBYTE });
    await expect.poll(() => monitor.latest?.gpuPercent).toBe(97);
    expect(monitor.vram).toEqual({ usedBytes: 10_421 * MEBIBYTE, totalBytes: 12_227 * MEBIBYTE });
    await delay(2 * timings.silentMs);
    expect(monitor.latest?.powerWatts).toBe(203.41);
    expect(await starts()).toEqual([
      expect.stringMatching(
        /^\d+ -i GPU-11111111-2222-3333-4444-555555555555 --query-gpu=timestamp,memory\.total,\S+ --format=csv,noheader,nounits -lms 1000$/,
      ),
    ]);
    expect(logged).toEqual([]);
    await monitor.stop();
    expect(monitor.latest).toBeNull();
  });

  test("fields that the GPU doesn't tell are null; without its memory there is no VRAM use", async () => {
    const monitor = await start(["unified-memory.csv on"]);
    expect(monitor.latest).toMatchObject({ vramUsedBytes: null, vramTotalBytes: null, gpuPercent: 12 });
    expect(monitor.vram).toBeNull();
    await monitor.stop();
    const other = await start(["not-available.csv on"]);
    expect(other.latest).toEqual({ ...IDLE, gpuPercent: null, temperatureCelsius: null, powerWatts: null, smClockMhz: null });
    expect(other.vram).toEqual({ usedBytes: 612 * MEBIBYTE, totalBytes: 12_227 * MEBIBYTE });
    expect(logged).toEqual([]);
  });

  test("torn lines are left out, one that never ends too, and it is said once", async () => {
    const monitor = await start(["torn.csv torn", "normal.csv on"]);
    const seen = new Set<number | undefined>();
    for (let i = 0; i < 60; i++) {
      seen.add((monitor.latest?.vramUsedBytes ?? -MEBIBYTE) / MEBIBYTE);
      await delay(10);
    }
    for (const value of seen) expect([-1, 612, 700, 8904, 10_421]).toContain(value);
    expect(seen).toContain(700);
    expect(warnings()).toEqual([expect.stringContaining("no readings"), expect.stringContaining("ended by itself")]);
  });

  test("torn lines that go on and on are said once", async () => {
    const monitor = await start(["normal.csv halves"]);
    await delay(3 * timings.healthyMs);
    expect(monitor.latest?.gpuPercent).toBe(97);
    expect(warnings()).toEqual([expect.stringContaining("no readings")]);
    expect(await starts()).toHaveLength(1);
  });

  test("a GPU that is lost and comes back: unknown meanwhile, said once each", async () => {
    const monitor = await start([
      "gpu-lost.csv hang",
      "gpu-lost.csv exit 15",
      "driver-failed.txt exit 9",
      "driver-failed.txt exit 9",
      "normal.csv on",
    ]);
    expect(monitor.vram).not.toBeNull();
    await expect.poll(() => monitor.latest, { timeout: 5000 }).toBeNull();
    await expect.poll(() => monitor.latest?.gpuPercent, { timeout: 5000 }).toBe(97);
    expect(warnings()).toEqual([expect.stringContaining("lost"), expect.stringContaining("ended by itself")]);
    expect(logged[0]?.detail).toContain("GPU is lost");
    expect(logged.find(({ msg }) => msg.includes("ended"))?.detail).toMatch(/^Code 9, .*couldn't communicate with the NVIDIA driver/);
    expect(logged.at(-1)).toMatchObject({ level: 30, msg: "nvidia-smi tells of the GPU again" });
    // Well for long, it is news again.
    await delay(timings.healthyMs);
    process.kill((await pids()).at(-1)!, "SIGKILL");
    await expect.poll(() => warnings().length).toBe(3);
  });

  test("one that hangs is ended and started again", async () => {
    const monitor = await start(["normal.csv hang", "normal.csv on"]);
    const [first] = await pids();
    await expect.poll(() => monitor.latest, { timeout: 5000 }).toBeNull();
    expect(isRunning(first!)).toBe(true);
    await expect.poll(() => monitor.latest, { timeout: 5000 }).not.toBeNull();
    expect(isRunning(first!)).toBe(false);
    expect(warnings()).toEqual([expect.stringContaining("hangs")]);
    const second = (await pids()).at(-1)!;
    process.kill(second, "SIGSTOP");
    await expect.poll(async () => (await pids()).length, { timeout: 5000 }).toBe(3);
    expect(isRunning(second)).toBe(false);
  });

  test("one that hangs from the start doesn't hold up the worker for long", async () => {
    const at = performance.now();
    const monitor = await start(["driver-failed.txt hang"]);
    expect(performance.now() - at).toBeLessThan(timings.silentMs + 1000);
    expect(monitor.latest).toBeNull();
    await expect.poll(() => String(logged[0]?.detail)).toContain("couldn't communicate");
  });

  test("one that only fails is tried ever more seldom, and said once", async () => {
    const monitor = await start(["driver-failed.txt exit 9"]);
    await delay(2500);
    const { length } = await starts();
    expect(length).toBeGreaterThanOrEqual(4);
    expect(length).toBeLessThanOrEqual(9);
    expect(warnings().length).toBe(1);
    expect(monitor.latest).toBeNull();
  });

  test("without nvidia-smi nothing is known, said or tried again", async () => {
    process.env.PATH = "/nowhere";
    const monitor = await start(["normal.csv on"]);
    process.env.PATH = `${folder}:${before}`;
    await delay(300);
    expect(monitor.latest).toBeNull();
    expect(monitor.vram).toBeNull();
    expect(monitor.modelServerVramBytes).toBeNull();
    expect(await starts()).toEqual([]);
    expect(logged).toEqual([]);
  });

  test("one that is gone for a moment, as while the driver is renewed, is tried again", async () => {
    const monitor = await start(["normal.csv exit 0", "normal.csv on"]);
    await rm(path.join(folder, "nvidia-smi"));
    await expect.poll(warnings, { timeout: 5000 }).toContain("nvidia-smi could not be started");
    expect(await starts()).toHaveLength(1);
    const log = await starts();
    await install();
    await writeFile(path.join(folder, "starts"), `${log.join("\n")}\n`);
    await expect.poll(() => monitor.latest?.gpuPercent, { timeout: 5000 }).toBe(97);
  });

  test.each(["normal.csv on", "normal.csv hang"])("stop ends it at once (%s)", async (scenario) => {
    const monitor = await start([scenario]);
    const [pid] = await pids();
    const at = performance.now();
    await monitor.stop();
    expect(performance.now() - at).toBeLessThan(500);
    expect(isRunning(pid!)).toBe(false);
    await delay(4 * timings.restartMs);
    expect((await starts()).length).toBe(1);
    expect(logged).toEqual([]);
  });

  test("stop while it rests: no other is started", async () => {
    const monitor = await start(["driver-failed.txt exit 9"], { restartMs: 200 });
    await monitor.stop();
    await delay(500);
    expect((await starts()).length).toBe(1);
  });

  /** Another process that has a monitor. */
  async function startOwner(scenario: string, thenEnd: boolean): Promise<number> {
    await writeFile(path.join(folder, "scenarios"), `${scenario}\n`);
    const module = path.join(import.meta.dirname, "..", "..", "workers", "gpu", "gpu-monitor.ts");
    const source = `import { GpuMonitor } from ${JSON.stringify(module)};
await new GpuMonitor({ gpuId: "gpu-1", modelServerPid: () => null, log: { info() {}, warn() {} }, timings: ${JSON.stringify(timings)} }).start();
console.log("ready");
${thenEnd ? "" : "setInterval(() => {}, 1000);"}`;
    owner = spawn(process.execPath, ["--input-type=module", "--eval", source], { stdio: ["ignore", "pipe", "inherit"] });
    expect(await Promise.race([once(owner.stdout!, "data").then(String), once(owner, "exit")])).toBe("ready\n");
    return (await pids())[0]!;
  }

  test.each(["normal.csv on", "normal.csv hang"])("it doesn't outlive a kill -9 of its owner (%s)", async (scenario) => {
    const pid = await startOwner(scenario, false);
    await delay(300);
    expect(isRunning(pid)).toBe(true);
    owner!.kill("SIGKILL");
    await expect.poll(() => isRunning(pid), { timeout: 3000 }).toBe(false);
  });

  test("an owner that was stopped for long doesn't take it for hanging", async () => {
    const pid = await startOwner("normal.csv on", false);
    await delay(300);
    owner!.kill("SIGSTOP");
    await delay(2 * timings.silentMs);
    owner!.kill("SIGCONT");
    await delay(500);
    expect(await pids()).toEqual([pid]);
    expect(isRunning(pid)).toBe(true);
    owner!.kill("SIGKILL");
    await expect.poll(() => isRunning(pid), { timeout: 3000 }).toBe(false);
  });

  test("it keeps no process from ending", async () => {
    const pid = await startOwner("normal.csv on", true);
    if (owner!.exitCode === null) await once(owner!, "exit");
    await expect.poll(() => isRunning(pid), { timeout: 3000 }).toBe(false);
  });

  test("the model server's own memory, by its process group, while it is up", async () => {
    const server = spawn("/bin/sh", ["-c", "sleep 1000 & echo $!; wait"], { stdio: ["ignore", "pipe", "ignore"], detached: true });
    try {
      const child = Number(String((await once(server.stdout!, "data"))[0]));
      await writeFile(path.join(folder, "processes"), `${server.pid}, 400\n${child}, 7800\n${process.pid}, 90\n`);
      const monitor = await start(["normal.csv on"]);
      expect(monitor.modelServerVramBytes).toBeNull();
      serverPid = server.pid!;
      await expect.poll(() => monitor.modelServerVramBytes).toBe(8200 * MEBIBYTE);
      await writeFile(path.join(folder, "processes"), `${server.pid}, [N/A]\n`);
      await expect.poll(() => monitor.modelServerVramBytes).toBeNull();
      await writeFile(path.join(folder, "processes"), `${server.pid}, 400\n`);
      await expect.poll(() => monitor.modelServerVramBytes).toBe(400 * MEBIBYTE);
      serverPid = process.pid;
      expect(monitor.modelServerVramBytes).toBeNull();
    } finally {
      process.kill(-server.pid!, "SIGKILL");
    }
  });
});
