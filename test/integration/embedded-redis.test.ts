import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import readline from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { Redis } from "ioredis";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type EmbeddedRedis, type EmbeddedRedisOptions, startEmbeddedRedis } from "../../queues/embedded-redis.ts";
import { isAlive, startTicksOf } from "../../queues/process-identity.ts";
import { findRedisBinary, libraryEnv } from "../../queues/redis-binary.ts";
import { redisServersOf } from "../faults/redis-servers.ts";

const repository = path.join(import.meta.dirname, "..", "..");
const NOBODY = 65_534;

let dataDir: string;
let servers: EmbeddedRedis[];
let owners: ChildProcess[];
let connections: Redis[];

beforeEach(async () => {
  dataDir = await mkdtemp(path.join(os.tmpdir(), "mathllm-test-"));
  servers = [];
  owners = [];
  connections = [];
});
afterEach(async () => {
  for (const redis of connections) redis.disconnect();
  for (const owner of owners) owner.kill("SIGKILL");
  for (const server of servers) await server.stop();
  // Servers of other processes, too, whatever the test broke.
  for (const server of redisServersOf(dataDir)) {
    if (isAlive(server)) process.kill(server.pid, "SIGKILL");
    await expect.poll(() => isAlive(server)).toBe(false);
  }
  await rm(dataDir, { recursive: true, force: true });
});

async function start(options: Partial<EmbeddedRedisOptions> = {}): Promise<EmbeddedRedis> {
  const server = await startEmbeddedRedis({ dataDir, appendfsync: "always", dieWithParent: true, ...options });
  servers.push(server);
  return server;
}

function connect(server: { url: string }): Redis {
  const redis = new Redis(server.url, { maxRetriesPerRequest: null, retryStrategy: () => 50 });
  redis.on("error", () => {});
  connections.push(redis);
  return redis;
}

interface Started {
  pid: number;
  url: string;
  joined: boolean;
}

/** Another process that starts or joins the server of the same folder and then waits to be ended. */
async function startInProcess(options: Partial<EmbeddedRedisOptions> = {}): Promise<Started & { owner: ChildProcess }> {
  const script = `
    import { startEmbeddedRedis } from "./queues/embedded-redis.ts";
    const redis = await startEmbeddedRedis(${JSON.stringify({ dataDir, appendfsync: "always", ...options })});
    const { pid, url, joined } = redis;
    console.log(JSON.stringify({ pid, url, joined }));
    process.once("SIGTERM", () => redis.stop().then(() => process.exit()));
    process.stdin.resume();`;
  const owner = spawn(process.execPath, ["--input-type=module", "-e", script], {
    cwd: repository,
    stdio: ["pipe", "pipe", "inherit"],
  });
  owners.push(owner);
  const [line] = (await once(readline.createInterface({ input: owner.stdout! }), "line")) as [string];
  const started = JSON.parse(line) as Started;
  return { ...started, owner };
}

async function killed(owner: ChildProcess): Promise<void> {
  const gone = once(owner, "exit");
  owner.kill("SIGKILL");
  await gone;
}

test("what was written survives a stop and a new start", async () => {
  const first = await start();
  await connect(first).set("job", "accepted");
  await first.stop();
  const second = await start();
  expect(second.pid).not.toBe(first.pid);
  expect(await connect(second).get("job")).toBe("accepted");
});

test("a kill -9 loses nothing: its keeper starts it again on the same address, and clients find it", async () => {
  const server = await start();
  const { pid } = server;
  const redis = connect(server);
  await redis.set("job", "accepted");
  process.kill(pid, "SIGKILL");
  expect(await redis.get("job")).toBe("accepted");
  await expect.poll(() => server.pid, { timeout: 10_000 }).not.toBe(pid);
});

test("killed while its keeper is stopped: started again once, and nothing stays behind when the keeper leaves", async () => {
  const { owner, pid, url } = await startInProcess();
  const redis = connect({ url });
  await redis.set("job", "accepted");
  owner.kill("SIGSTOP");
  process.kill(pid, "SIGKILL");
  // Longer than the keeper takes from one look to the next: when it goes on, its look is due and the exit is told in the same moment.
  await delay(1500);
  owner.kill("SIGCONT");
  expect(await redis.get("job")).toBe("accepted");
  const left = once(owner, "exit");
  owner.kill("SIGTERM");
  await left;
  expect(redisServersOf(dataDir)).toEqual([]);
  const log = await readFile(path.join(dataDir, "redis", "redis.log"), "utf8");
  expect(log.match(/Redis is starting/g)).toHaveLength(2);
  const next = await start();
  expect(redisServersOf(dataDir).map((server) => server.pid)).toEqual([next.pid]);
});

/** The keeper is stopped and the server killed; what `meanwhile` does is there when the keeper goes on. */
async function killedBehindItsBack<T>({ owner, pid }: Started & { owner: ChildProcess }, meanwhile: () => Promise<T>): Promise<T> {
  const server = { pid, startTicks: startTicksOf(pid) };
  owner.kill("SIGSTOP");
  process.kill(pid, "SIGKILL");
  await expect.poll(() => isAlive(server)).toBe(false);
  // Its other threads may hold the port a little longer than the first, which stays as a zombie, for its parent is stopped.
  await expect.poll(() => readdirSync(`/proc/${pid}/task`).length).toBe(1);
  const result = await meanwhile();
  owner.kill("SIGCONT");
  return result;
}

test("a server of this folder that has the port already is taken over, and ended by the keeper", async () => {
  const started = await startInProcess();
  const { path: command, libraryPath } = await findRedisBinary({ env: process.env, log: () => {} });
  const folder = path.join(dataDir, "redis");
  const other = await killedBehindItsBack(started, async () => {
    const child = spawn(command, [path.join(folder, "redis.conf")], { cwd: folder, stdio: "ignore", env: libraryEnv(libraryPath) });
    await connect(started).set("job", "accepted");
    return child;
  });
  const recorded = async () => JSON.parse(await readFile(path.join(folder, "instance.json"), "utf8")).server?.pid;
  await expect.poll(recorded, { timeout: 10_000 }).toBe(other.pid);
  const ended = once(other, "exit");
  started.owner.kill("SIGTERM");
  await ended;
  expect(redisServersOf(dataDir)).toEqual([]);
});

test("a port that another program took meanwhile is waited for, and the data come back", async () => {
  const started = await startInProcess();
  const redis = connect(started);
  await redis.set("job", "accepted");
  const stranger = net.createServer((socket) => socket.destroy());
  await killedBehindItsBack(started, async () => {
    await once(stranger.listen(Number(new URL(started.url).port), "127.0.0.1"), "listening");
  });
  const log = () => readFile(path.join(dataDir, "redis", "redis.log"), "utf8");
  await expect.poll(log, { timeout: 10_000 }).toMatch(/address already in use/i);
  stranger.close();
  expect(await redis.get("job")).toBe("accepted");
});

test("a server whose keeper was killed before it could record it is taken over, not doubled", async () => {
  const { owner, pid, url } = await startInProcess();
  await killed(owner);
  const file = path.join(dataDir, "redis", "instance.json");
  await writeFile(file, JSON.stringify({ ...JSON.parse(await readFile(file, "utf8")), server: null }));
  expect(await start()).toMatchObject({ pid, url, joined: false });
  expect(redisServersOf(dataDir).map((server) => server.pid)).toEqual([pid]);
});

test("killed together with its keeper, it comes back where those who had joined it look for it", async () => {
  const { owner, pid, url } = await startInProcess();
  const redis = connect({ url });
  await redis.set("job", "accepted");
  await killed(owner);
  process.kill(pid, "SIGKILL");
  expect((await start()).url).toBe(url);
  expect(await redis.get("job")).toBe("accepted");
});

test("a start that failed, and a stop, leave the address to the next start", async () => {
  const first = await start();
  const redis = connect(first);
  await redis.set("job", "accepted");
  await first.stop();
  await expect(start({ env: { ...process.env, REDIS_SERVER_BIN: "/nonexistent" } })).rejects.toMatchObject({
    code: "redis-binary-missing",
  });
  expect((await start()).url).toBe(first.url);
  expect(await redis.get("job")).toBe("accepted");
});

test("every restart is in the log", async () => {
  const lines: string[] = [];
  const server = await start({ log: pino({ base: null }, { write: (line: string) => lines.push(JSON.parse(line).msg) }) });
  const { pid } = server;
  process.kill(pid, "SIGKILL");
  await expect
    .poll(() => lines, { timeout: 10_000 })
    .toEqual(["the embedded Redis ended by itself and is started again", "the embedded Redis serves again"]);
  expect(server.pid).not.toBe(pid);
});

test("an append-only file whose last write was torn is loaded up to it", async () => {
  const first = await start();
  const redis = connect(first);
  await redis.set("one", "1");
  await redis.set("two", "2");
  await first.stop();
  const folder = path.join(dataDir, "redis", "appendonlydir");
  const file = path.join(folder, (await readdir(folder)).find((name) => name.endsWith(".incr.aof"))!);
  await truncate(file, (await stat(file)).size - 3);
  const again = connect(await start());
  expect(await again.mget("one", "two")).toEqual(["1", null]);
});

test("two processes that start at once share one server, and one of them keeps it", async () => {
  const both = await Promise.all([startInProcess({ dieWithParent: true }), startInProcess({ dieWithParent: true })]);
  expect(both[0].pid).toBe(both[1].pid);
  expect(both[0].url).toBe(both[1].url);
  expect(both.map(({ joined }) => joined).sort()).toEqual([false, true]);
});

test("who joins a running server does not stop it; its keeper does", async () => {
  const keeper = await start();
  const joiner = await startEmbeddedRedis({ dataDir, appendfsync: "always" });
  expect(joiner).toMatchObject({ joined: true, pid: keeper.pid, url: keeper.url });
  const server = { pid: keeper.pid, startTicks: startTicksOf(keeper.pid) };
  await joiner.stop();
  expect(isAlive(server)).toBe(true);
  await keeper.stop();
  expect(isAlive(server)).toBe(false);
});

test("the server outlives its owner's kill -9; the next start joins it, keeps it and can stop it", async () => {
  const { owner, pid, url } = await startInProcess();
  await connect({ url }).set("job", "accepted");
  await killed(owner);
  const server = { pid, startTicks: startTicksOf(pid) };
  expect(isAlive(server)).toBe(true);
  const next = await start();
  expect(next).toMatchObject({ pid, url, joined: false });
  expect(await connect(next).get("job")).toBe("accepted");
  await next.stop();
  expect(isAlive(server)).toBe(false);
});

test("with dieWithParent the server ends with its owner, even by kill -9", async () => {
  const { owner, pid } = await startInProcess({ dieWithParent: true });
  const server = { pid, startTicks: startTicksOf(pid) };
  expect(isAlive(server)).toBe(true);
  await killed(owner);
  await expect.poll(() => isAlive(server), { timeout: 5000 }).toBe(false);
});

test("a lock or an instance left by a dead process is no obstacle", async () => {
  const folder = path.join(dataDir, "redis");
  await mkdir(folder);
  const dead = { pid: process.pid, startTicks: 1 };
  await writeFile(path.join(folder, "starting.lock"), JSON.stringify(dead));
  await writeFile(path.join(folder, "instance.json"), JSON.stringify({ server: dead, keeper: dead, port: 1, password: "x" }));
  const server = await start();
  expect(server.joined).toBe(false);
  expect(await connect(server).ping()).toBe("PONG");
});

test("a lock whose owner died before it wrote its name is no obstacle", async () => {
  await mkdir(path.join(dataDir, "redis"));
  await writeFile(path.join(dataDir, "redis", "starting.lock"), "");
  expect(await connect(await start()).ping()).toBe("PONG");
});

test("the server is for its owner only: loopback, password, private files", async () => {
  const server = await start();
  const { password, port, hostname } = new URL(server.url);
  expect(hostname).toBe("127.0.0.1");
  expect(password.length).toBeGreaterThanOrEqual(32);
  expect(await readFile(`/proc/${server.pid}/cmdline`, "latin1")).not.toContain(password);
  expect(await readFile(`/proc/${server.pid}/environ`, "latin1")).not.toContain(password);
  const folder = path.join(dataDir, "redis");
  for (const name of ["redis.conf", "instance.json"]) expect((await stat(path.join(folder, name))).mode & 0o777).toBe(0o600);
  expect((await stat(folder)).mode & 0o777).toBe(0o700);
  const stranger = connect({ url: `redis://127.0.0.1:${port}` });
  await expect(stranger.ping()).rejects.toThrow("NOAUTH");
});

test("it is set up to keep every accepted job", async () => {
  const redis = connect(await start());
  for (const [name, value] of Object.entries({ appendonly: "yes", appendfsync: "always", save: "", "maxmemory-policy": "noeviction" })) {
    expect(await redis.config("GET", name)).toEqual([name, value]);
  }
});

test("data that Redis can't read is an error with the end of its log", async () => {
  const first = await start();
  await connect(first).set("job", "accepted");
  await first.stop();
  const folder = path.join(dataDir, "redis", "appendonlydir");
  const manifest = (await readdir(folder)).find((name) => name.endsWith(".manifest"))!;
  await writeFile(path.join(folder, manifest), "this is no manifest\n");
  await expect(start()).rejects.toMatchObject({
    code: "redis-unavailable",
    message: expect.stringMatching(/ended at once.*redis\.log.*manifest/s),
  });
});

test("a folder that can't be made is an error that says so", async () => {
  await writeFile(path.join(dataDir, "file"), "");
  await expect(start({ dataDir: path.join(dataDir, "file") })).rejects.toMatchObject({
    code: "redis-unavailable",
    message: expect.stringContaining("Set DATA_DIR"),
  });
});

test("a folder that can't be written is an error that says so", async () => {
  await mkdir(path.join(dataDir, "redis"), { mode: 0o500 });
  await chmod(dataDir, 0o755);
  // Root may write anywhere.
  const isRoot = process.geteuid!() === 0;
  if (isRoot) process.seteuid!(NOBODY);
  try {
    await expect(start()).rejects.toMatchObject({
      code: "redis-unavailable",
      message: expect.stringMatching(/EACCES.*Set DATA_DIR/s),
    });
  } finally {
    if (isRoot) process.seteuid!(0);
  }
});
