import { randomUUID } from "node:crypto";
import { once } from "node:events";
import http from "node:http";
import net, { type AddressInfo } from "node:net";
import path from "node:path";
import { setTimeout as delay, setImmediate } from "node:timers/promises";
import { createParser } from "eventsource-parser";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { createApp } from "../../api/app.ts";
import { GpuEventFeed } from "../../api/gpu-event-feed.ts";
import { JobCompletions } from "../../api/job-completions.ts";
import { type RunningApi, startApi } from "../../api/main.ts";
import { type Config, readConfig } from "../../queues/config.ts";
import { type JobView, jobViewSchema, SERVER_STATES, type ServerState, TERMINAL_STATUSES } from "../../queues/contracts.ts";
import { MathllmError } from "../../queues/errors.ts";
import { addGpuEvent } from "../../queues/gpu-events.ts";
import { type GpuView, gpuViewSchema } from "../../queues/gpu-view.ts";
import { keys } from "../../queues/names.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { publishStatus } from "../../queues/worker-status.ts";
import { type GpuWorker, startGpuWorker } from "../../workers/main.ts";
import { appDeps } from "../app-deps.ts";
import { FakeGpu } from "../fakes/fake-engine.ts";
import { expectProblem } from "../problem-document.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";
import { modelStatus, workerStatus } from "../worker-status.ts";

const silent = pino({ level: "silent" });
/** Addresses of the requests that the API has ended, in order. */
const ended: string[] = [];
const apiLog = pino({ level: "info" }, { write: (line: string) => ended.push(JSON.parse(line).path) });
const endedStreams = () => ended.filter((address) => address === "/gpu/events").length;

let redis: RedisFixture;
let queues: Queues;
let config: Config;
let api: RunningApi;
let gpu: FakeGpu;
let gpuId: string;
const workers: GpuWorker[] = [];
const streams: EventStream[] = [];
const ends: (() => Promise<void>)[] = [];

beforeAll(async () => {
  redis = await startRedisFixture();
  queues = openQueues(redis.connect(), () => {});
});
afterAll(async () => {
  await queues.close();
  await redis.stop();
});
beforeEach(async () => {
  gpu = new FakeGpu();
  gpuId = `test-${randomUUID()}`;
  config = readConfig({
    PORT: "0",
    DATA_DIR: redis.dataDir,
    TELEMETRY_LOG: path.join(redis.dataDir, "telemetry.jsonl"),
    GPU_ID: gpuId,
    STUDENT_MAX_NUM_SEQS: "2",
    TALKER_MAX_NUM_SEQS: "2",
  });
  api = await startApi({ config, redisUrl: redis.url, log: apiLog });
  ended.length = 0;
});
afterEach(async () => {
  for (const stream of streams.splice(0)) stream.leave();
  for (const worker of workers.splice(0)) await worker.stop(0);
  await api.close();
  for (const end of ends.splice(0)) await end();
  await queues.redis.flushall();
  expect(gpu.violations).toEqual([]);
});

/** What a heartbeat tells is up to a second old, and the machine may be busy. */
const soon = <T>(look: () => T) => expect.poll(look, { timeout: 15_000, interval: 20 });

const json = { "content-type": "application/json" };
const get = async <T>(address: string) => (await fetch(api.url + address)).json() as Promise<T>;
const gpuView = async (): Promise<GpuView> => gpuViewSchema.strict().parse(await get("/gpu"));
const jobView = async (jobId: string, waitSeconds = 0): Promise<JobView> =>
  jobViewSchema.parse(await get(`/jobs/${jobId}?wait=${waitSeconds}`));
const send = async (body: object = {}): Promise<string> => {
  const response = await fetch(`${api.url}/solve`, {
    method: "POST",
    headers: json,
    body: JSON.stringify({ problem: "1 + 0", cache: "off", ...body }),
  });
  expect(response.status).toBe(202);
  return ((await response.json()) as { jobId: string }).jobId;
};
const sendMany = async (count: number, body: object = {}) => Promise.all(Array.from({ length: count }, () => send(body)));
const completed = async (jobId: string): Promise<JobView> => {
  for (let tries = 0; ; tries++) {
    const view = await jobView(jobId, 10);
    if (TERMINAL_STATUSES.includes(view.status) || tries > 2) {
      expect(view.status).toBe("completed");
      return view;
    }
  }
};
const command = (name: string, body?: unknown, headers: Record<string, string> = json) =>
  fetch(`${api.url}/gpu/${name}`, {
    method: "POST",
    ...(body === undefined ? {} : { headers, body: typeof body === "string" ? body : JSON.stringify(body) }),
  });
const told = async (name: string, body?: unknown) => {
  const response = await command(name, body);
  expect([response.status, await response.json()]).toEqual([202, { gpuIds: [gpuId], links: { gpu: "/gpu", events: "/gpu/events" } }]);
};

async function startWorker(): Promise<GpuWorker> {
  const worker = await startGpuWorker({
    config,
    redisUrl: redis.url,
    createEngine: gpu.create,
    log: silent,
    onFatal: (error) => gpu.violations.push(error.message),
  });
  workers.push(worker);
  return worker;
}

async function stopWorker(worker: GpuWorker): Promise<void> {
  workers.splice(workers.indexOf(worker), 1);
  await worker.stop(5000);
}

interface SentEvent {
  id: string | undefined;
  event: string | undefined;
  data: Record<string, unknown>;
}

/** A listener of `/gpu/events`, on a connection of its own. */
class EventStream {
  readonly events: SentEvent[] = [];
  readonly response: http.IncomingMessage;
  /** The server ended it, or it left. */
  ended = false;

  static async open(lastId?: string, url = api.url): Promise<EventStream> {
    const headers: Record<string, string> = lastId === undefined ? {} : { "last-event-id": lastId };
    const request = http.get(`${url}/gpu/events`, { headers, agent: false });
    const [response] = (await once(request, "response")) as [http.IncomingMessage];
    expect(response.statusCode).toBe(200);
    const stream = new EventStream(response);
    streams.push(stream);
    return stream;
  }

  constructor(response: http.IncomingMessage) {
    this.response = response;
    const parser = createParser({ onEvent: ({ id, event, data }) => this.events.push({ id, event, data: JSON.parse(data) }) });
    response.setEncoding("utf8");
    response.on("data", (text: string) => parser.feed(text));
    response.on("error", () => {});
    response.on("close", () => {
      this.ended = true;
    });
  }

  /** All but the states. */
  get happened(): SentEvent[] {
    return this.events.filter(({ event }) => event !== "state");
  }

  get ids(): string[] {
    return this.happened.map(({ id }) => id!);
  }

  of(kind: string): Record<string, unknown>[] {
    return this.events.filter(({ event }) => event === kind).map(({ data }) => data);
  }

  leave(): void {
    this.response.destroy();
  }
}

const storedIds = async () => (await queues.redis.xrange(keys.gpuEvents, "-", "+")).map(([id]) => id);
/** Over one connection, so in order. */
const addEvents = (count: number, from = 0) =>
  Promise.all(Array.from({ length: count }, (_, i) => addGpuEvent(queues.redis, "decision", { ts: i, gpuId, n: from + i })));
const numbers = (stream: EventStream) => stream.of("decision").map(({ n }) => n);
const upTo = (count: number) => Array.from({ length: count }, (_, n) => n);

describe("GET /gpu", () => {
  test("no worker: no GPU, no model, and both queues", async () => {
    await send({ priority: "interactive" });
    await sendMany(2, { priority: "batch" });
    await send({ model: "talker" });
    const view = await gpuView();
    expect(view).toMatchObject({ residentModel: null, gpus: [] });
    expect(view.queues.student).toMatchObject({
      depth: 3,
      waiting: { interactive: 1, normal: 0, batch: 2 },
      maxDepths: config.maxDepths,
      active: 0,
      delayed: 0,
      estimatedWaitMs: { interactive: null, normal: null, batch: null },
      rateLimit: null,
      limitedMs: 0,
    });
    expect(view.queues.talker).toMatchObject({ depth: 1, waiting: { interactive: 0, normal: 1, batch: 0 } });
    expect(view.queues.student.oldestAgeMs.normal).toBeNull();
    expect(view.queues.student.oldestAgeMs.batch).toBeGreaterThanOrEqual(0);
    expect(view.queues.student.oldestAgeMs.batch).toBeLessThan(10_000);
    expect(await get("/queues")).toEqual({
      student: { ...view.queues.student, oldestAgeMs: expect.anything() },
      talker: { ...view.queues.talker, oldestAgeMs: expect.anything() },
    });
  });

  test("a worker and its stand-by: the lease's holder, who stands by and why; the heartbeat's own fields stay inside", async () => {
    await publishStatus(
      queues.redis,
      workerStatus({
        workerId: "second",
        gpuId,
        pid: 22,
        startedAt: 1,
        phase: "standby",
        waitsFor: "another worker holds the GPU's lease",
      }),
    );
    const decisions = [
      { at: 2, action: "stay", reason: "the student is resident and has work" },
      { at: 1, action: "swap", reason: "no model is resident and the oldest job is the student's" },
    ];
    await publishStatus(
      queues.redis,
      workerStatus({ workerId: "first", gpuId, host: "here", pid: 11, fence: 4, startedAt: 2, lastDecision: decisions[0], decisions }),
    );
    const view = await gpuView();
    expect(view.residentModel).toBe("student");
    expect(view.gpus).toHaveLength(1);
    expect(view.gpus[0]).toMatchObject({
      gpuId,
      lease: { fence: 4, workerId: "first", host: "here", pid: 11 },
      standbys: [{ workerId: "second", host: "h", pid: 22, waitsFor: "another worker holds the GPU's lease" }],
      lastDecision: decisions[0],
      decisions,
    });
    expect(await get<{ gpus: object[] }>("/gpu").then(({ gpus }) => Object.keys(gpus[0]!))).toEqual(
      expect.not.arrayContaining(["beatAt", "host"]),
    );
  });

  test("estimated waits rise with what waits ahead, class by class", async () => {
    await publishStatus(
      queues.redis,
      workerStatus({ gpuId, models: { student: { ...modelStatus, serviceMs: 1000 }, talker: modelStatus } }),
    );
    await sendMany(2, { priority: "interactive" });
    await sendMany(4, { priority: "batch" });
    const { student } = (await gpuView()).queues;
    expect(student.estimatedWaitMs).toEqual({ interactive: 1500, normal: 1500, batch: 3500 });
  });

  test("several GPUs are listed by age, the first one's model is the resident one; a dead worker is gone", async () => {
    await publishStatus(queues.redis, workerStatus({ workerId: "b", gpuId: "two", startedAt: 2, residentModel: "talker" }));
    await publishStatus(
      queues.redis,
      workerStatus({ workerId: "a", gpuId: "one", startedAt: 1, residentModel: null, residentSince: null }),
    );
    await publishStatus(queues.redis, workerStatus({ workerId: "c", gpuId: "three", startedAt: 0, beatAt: Date.now() - 6000 }));
    const view = await gpuView();
    expect(view.gpus.map((each) => each.gpuId)).toEqual(["one", "two"]);
    expect(view.residentModel).toBeNull();
  });

  test("with the real worker: what it has resident, its lease, and why it decided so", async () => {
    await startWorker();
    await soon(async () => (await gpuView()).gpus[0]?.phase).toBe("idle");
    expect((await gpuView()).gpus[0]).toMatchObject({ residentModel: null, server: { state: "stopped" }, drained: false, swaps: 0 });
    await completed(await send({ model: "talker" }));
    await soon(async () => (await gpuView()).gpus[0]?.models.talker.serviceMs).toBeGreaterThan(0);
    const view = await gpuView();
    expect(view.residentModel).toBe("talker");
    expect(view.gpus[0]).toMatchObject({
      gpuId,
      server: { state: "ready", lastError: null },
      lease: { fence: 1, workerId: workers[0]!.workerId, pid: process.pid },
      standbys: [],
      lastSwap: { from: null, to: "talker" },
    });
    expect(view.gpus[0]!.decisions.map(({ action, reason }) => `${action}: ${reason}`)).toContain(
      "swap: no model is resident and the oldest job is the talker's",
    );
    await startWorker();
    await soon(async () => (await gpuView()).gpus[0]?.standbys.length).toBe(1);
    expect((await gpuView()).gpus[0]!.standbys[0]).toMatchObject({
      workerId: workers[1]!.workerId,
      waitsFor: expect.stringMatching(/lease/),
    });
  });

  test.each(["/gpu", "/gpu/events"])("%s takes GET only", async (address) => {
    for (const method of ["POST", "PUT", "DELETE", "PATCH"]) {
      const response = await fetch(api.url + address, { method });
      expect(response.headers.get("allow")).toBe("GET");
      await expectProblem(response, 405, "method-not-allowed");
    }
  });
});

describe("GET /gpu/events", () => {
  test("the state comes first, then what happens, each with an id; a swap's server states follow each other legally", async () => {
    const followers: Record<ServerState, ServerState[]> = {
      stopped: ["starting"],
      starting: ["warming", "failed"],
      warming: ["ready", "failed"],
      ready: ["draining", "stopping", "failed"],
      draining: ["ready", "stopping", "failed"],
      failed: ["stopping"],
      stopping: ["stopped"],
    };
    const stream = await EventStream.open();
    expect(stream.response.headers["content-type"]).toBe("text/event-stream");
    expect(stream.response.headers["cache-control"]).toBe("no-store");
    await soon(() => stream.events.length).toBe(1);
    expect(stream.events[0]).toMatchObject({ event: "state", id: undefined, data: { gpus: [], residentModel: null } });
    await startWorker();
    await completed(await send());
    await completed(await send({ model: "talker" }));
    await told("reset");
    await soon(() => stream.of("control")).toHaveLength(1);
    expect(stream.of("control")[0]).toMatchObject({ gpuId, done: "reset", ts: expect.any(Number) });
    expect(stream.of("swap")).toMatchObject([
      { from: null, to: "student" },
      { from: "student", to: "talker" },
    ]);
    expect(stream.of("decision").filter(({ action }) => action === "swap")).toMatchObject([{ to: "student" }, { to: "talker" }]);
    for (const decision of stream.of("decision")) expect(decision).toMatchObject({ gpuId, reason: expect.stringMatching(/./) });
    expect(stream.of("guardrail").map(({ action }) => action)).toEqual(["reset", "reset"]);
    const states = stream.of("server").map(({ state }) => state as ServerState);
    expect(states.filter((state) => state === "ready")).toHaveLength(2);
    for (const [i, state] of states.entries()) {
      expect(SERVER_STATES).toContain(state);
      expect(followers[states[i - 1] ?? "stopped"]).toContain(state);
    }
    for (const { id } of stream.happened) expect(id).toMatch(/^\d+-\d+$/);
    expect(stream.ids).toEqual(await storedIds());
    await soon(() => stream.of("state").at(-1)).toMatchObject({ residentModel: "talker" });
    expect(gpuViewSchema.safeParse(stream.of("state").at(-1)).success).toBe(true);
  });

  test("a new listener hears nothing of the past", async () => {
    await addEvents(3);
    const stream = await EventStream.open();
    await soon(() => stream.events.length).toBe(1);
    await addEvents(1, 3);
    await soon(() => numbers(stream)).toEqual([3]);
  });

  test("Last-Event-ID: one that comes back again and again misses nothing and hears nothing twice", async () => {
    await addEvents(5);
    let writing = true;
    const written = (async () => {
      let n = 5;
      for (; writing; n++) await addEvents(1, n);
      return n;
    })();
    const heard: unknown[] = [];
    let lastId = (await storedIds())[1]!;
    for (let visit = 0; visit < 8; visit++) {
      const stream = await EventStream.open(lastId);
      await soon(() => stream.happened.length).toBeGreaterThan(10);
      stream.leave();
      heard.push(...numbers(stream));
      lastId = stream.ids.at(-1)!;
    }
    writing = false;
    const last = await EventStream.open(lastId);
    const count = await written;
    await soon(() => numbers(last).at(-1)).toBe(count - 1);
    heard.push(...numbers(last));
    expect(heard).toEqual(upTo(count).slice(2));
  });

  test("Last-Event-ID of long ago: at most the thousand newest, in order", async () => {
    await addEvents(1200);
    const stream = await EventStream.open("0-0");
    await soon(() => numbers(stream).at(-1)).toBe(1199);
    expect(numbers(stream)).toEqual(upTo(1200).slice(-numbers(stream).length));
    expect(numbers(stream).length).toBe(1000);
    const future = await EventStream.open("9999999999999999-0");
    await soon(() => future.events.length).toBe(1);
  });

  test.each(
    ["", "x", "1", "1-", "-1", "1-1-1", "$", "+", "1-1 ", "0x1-1", "1e3-1", "11111111111111111-1"].filter((id) => id.trim() === id),
  )("Last-Event-ID %j is a problem", async (id) => {
    const response = await fetch(`${api.url}/gpu/events`, { headers: { "last-event-id": id } });
    expect((await expectProblem(response, 400, "invalid-request")).detail).toContain("Last-Event-ID");
  });

  test("many listeners all hear the same, over one connection to Redis", async () => {
    const before = (await queues.redis.client("LIST")) as string;
    const listeners = await Promise.all(Array.from({ length: 100 }, () => EventStream.open()));
    await addEvents(50);
    for (const listener of listeners) await soon(() => numbers(listener)).toEqual(upTo(50));
    const after = (await queues.redis.client("LIST")) as string;
    expect(after.split("\n").length).toBe(before.split("\n").length);
  });

  test("closing the API ends the streams at once", async () => {
    const listeners = await Promise.all(Array.from({ length: 20 }, () => EventStream.open()));
    for (const listener of listeners) await soon(() => listener.events.length).toBe(1);
    const startedAt = performance.now();
    await api.close();
    expect(performance.now() - startedAt).toBeLessThan(1500);
    for (const listener of listeners) await soon(() => listener.ended).toBe(true);
  });

  test("a reader that never reads is cut off; the others hear everything", async () => {
    const other = await EventStream.open();
    await soon(() => other.events.length).toBe(1);
    const socket = net.connect(api.port, "127.0.0.1").pause();
    socket.on("error", () => {});
    socket.write("GET /gpu/events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    // Until more is unread than the kernel's buffers and the API's together hold.
    const padding = "x".repeat(200_000);
    let n = 0;
    const cutOff = async () => {
      for (const end = n + 20; n < end; n++) await addGpuEvent(queues.redis, "decision", { ts: n, gpuId, n, padding });
      return endedStreams();
    };
    await soon(cutOff).toBe(1);
    await soon(() => numbers(other).length).toBe(n);
    expect(numbers(other)).toEqual(upTo(n));
    socket.destroy();
  });

  describe("with a connection to Redis that is behind", () => {
    /** An API whose reading of the events waits for `open`, and whose views wait between `holdLooks` and `openLooks`. */
    async function startLateApi() {
      let gate = Promise.withResolvers<void>();
      let readings = 0;
      let lookGate: PromiseWithResolvers<void> | undefined;
      let looks = 0;
      const readBacklog: Queues["readBacklog"] = async (now) => {
        looks++;
        await lookGate?.promise;
        return queues.readBacklog(now);
      };
      const blocking = new Proxy(redis.connect(), {
        get: (target, name) => {
          const value = Reflect.get(target, name);
          if (typeof value !== "function") return value;
          return async (...args: unknown[]) => {
            await gate.promise;
            const result = await Reflect.apply(value, target, args);
            void setImmediate().then(() => readings++);
            return result;
          };
        },
      });
      const feed = new GpuEventFeed(blocking, () => {});
      let listening = 0;
      const listen = feed.listen.bind(feed);
      feed.listen = (...args) => {
        listening++;
        const stop = listen(...args);
        return () => {
          listening--;
          stop();
        };
      };
      const completions = new JobCompletions(
        () => redis.connect(),
        () => {},
      );
      const server = http.createServer(
        createApp({ ...appDeps(redis, queues, config, completions), queues: { ...queues, readBacklog }, gpuEvents: feed }),
      );
      const sockets: net.Socket[] = [];
      server.on("connection", (socket) => sockets.push(socket));
      server.listen(0, "127.0.0.1");
      await once(server, "listening");
      ends.push(async () => {
        gate.resolve();
        lookGate?.resolve();
        feed.close();
        completions.close();
        server.close();
        server.closeAllConnections();
      });
      const { port } = server.address() as AddressInfo;
      return {
        url: `http://127.0.0.1:${port}`,
        feed,
        sockets,
        get readings() {
          return readings;
        },
        get listening() {
          return listening;
        },
        get looks() {
          return looks;
        },
        holdLooks: () => {
          lookGate = Promise.withResolvers<void>();
        },
        openLooks: () => lookGate?.resolve(),
        open: () => gate.resolve(),
        hold: () => {
          gate = Promise.withResolvers<void>();
        },
      };
    }

    test("listeners that leave, at whatever moment, leave nothing running", async () => {
      const late = await startLateApi();
      late.open();
      const readers = await Promise.all(Array.from({ length: 10 }, () => EventStream.open(undefined, late.url)));
      await soon(() => late.listening).toBe(10);
      for (const reader of readers) reader.leave();
      await soon(() => late.listening).toBe(0);
      const looksBefore = late.looks;
      const leaveOnce = async (reached: () => Promise<void>) => {
        const connected = late.sockets.length;
        const sockets = Array.from({ length: 10 }, () => net.connect(Number(new URL(late.url).port), "127.0.0.1"));
        for (const socket of sockets) socket.write("GET /gpu/events HTTP/1.1\r\nHost: localhost\r\n\r\n");
        await soon(() => late.sockets.slice(connected).filter(({ bytesRead }) => bytesRead > 0).length).toBe(10);
        await reached();
        for (const socket of sockets) socket.destroy();
        await soon(() => late.sockets.slice(connected).filter(({ destroyed }) => destroyed).length).toBe(10);
      };
      // Before Redis has answered anything. This connection is the API's, too: what it asked is answered before the ping.
      void queues.redis.client("PAUSE", 500);
      await leaveOnce(async () => {});
      await queues.redis.ping();
      await setImmediate();
      expect(late.listening).toBe(0);
      // While the first state is being read.
      late.holdLooks();
      await leaveOnce(async () => {
        await soon(() => late.looks).toBe(looksBefore + 10);
      });
      late.openLooks();
      await soon(() => late.listening).toBe(0);
      await soon(async () => {
        const before = late.looks;
        await delay(1200);
        return late.looks - before;
      }).toBe(0);
    });

    test("what happens between the first listener's coming and the first reading is not missed", async () => {
      const late = await startLateApi();
      await addEvents(3);
      const [, second] = await storedIds();
      const [resumed, fresh] = [await EventStream.open(second, late.url), await EventStream.open(undefined, late.url)];
      await soon(() => numbers(resumed)).toEqual([2]);
      await soon(() => fresh.events.length).toBe(1);
      await addEvents(1, 3);
      late.open();
      await addEvents(1, 4);
      await soon(() => numbers(resumed)).toEqual([2, 3, 4]);
      await soon(() => numbers(fresh)).toEqual([3, 4]);
    });

    test("what a returning listener was told as missed is not told again", async () => {
      const late = await startLateApi();
      late.open();
      await addEvents(2);
      const first = await EventStream.open("0-0", late.url);
      await soon(() => numbers(first)).toEqual([0, 1]);
      // The reading under way ends with this one; the next waits.
      late.hold();
      await addEvents(1, 2);
      await soon(() => numbers(first)).toEqual([0, 1, 2]);
      await addEvents(2, 3);
      const second = await EventStream.open(first.ids[1], late.url);
      await soon(() => numbers(second)).toEqual([2, 3, 4]);
      late.open();
      await addEvents(1, 5);
      await soon(() => numbers(first)).toEqual(upTo(6));
      await soon(() => numbers(second)).toEqual([2, 3, 4, 5]);
    });

    test("nothing is written to a stream that has been ended and is not read to its end yet", async () => {
      const late = await startLateApi();
      late.open();
      const socket = net.connect(Number(new URL(late.url).port), "127.0.0.1").pause();
      socket.on("error", () => {});
      socket.write("GET /gpu/events HTTP/1.1\r\nHost: localhost\r\n\r\n");
      await soon(() => late.sockets[0]?.bytesWritten).toBeGreaterThan(0);
      const padding = "x".repeat(200_000);
      const unread = async () => {
        await addGpuEvent(queues.redis, "decision", { ts: 0, gpuId, padding });
        return late.sockets[0]!.writableLength;
      };
      await soon(unread).toBeGreaterThan(0);
      const reading = await EventStream.open(undefined, late.url);
      late.feed.close();
      await soon(() => reading.ended).toBe(true);
      // The reading under way ends with this one. A write after the end would be an error that nobody catches.
      const { readings } = late;
      await addEvents(1);
      await soon(() => late.readings).toBeGreaterThan(readings);
      socket.destroy();
    });

    test("a listener that comes while the API closes is not kept", async () => {
      const late = await startLateApi();
      late.open();
      late.feed.close();
      await expect(fetch(`${late.url}/gpu/events`, { signal: AbortSignal.timeout(5000) })).rejects.toMatchObject({
        message: "fetch failed",
      });
    });
  });
});

const COMMANDS = ["drain", "resume", "swap", "release", "reset"];

describe("POST /gpu/…", () => {
  const controlKeys = () => queues.redis.keys(keys.gpuControl("*"));

  test("drain: running jobs end, waiting ones stay and say why, through a restart of the worker; resume goes on", async () => {
    gpu.serviceMs = () => 700;
    const first = await startWorker();
    const jobs = await sendMany(5);
    await soon(() => gpu.engines[0]?.serving).toBe(2);
    await told("drain");
    await soon(async () => (await gpuView()).gpus[0]).toMatchObject({
      drained: true,
      running: 0,
      phase: "idle",
      residentModel: "student",
      waitsFor: expect.stringMatching(/^drained/),
    });
    const statuses = async () => (await Promise.all(jobs.map((jobId) => jobView(jobId)))).map(({ status }) => status).sort();
    const stayed = ["completed", "completed", "waiting", "waiting", "waiting"];
    expect(await statuses()).toEqual(stayed);
    for (const jobId of jobs) {
      const { status, reason, estimatedStartMs } = await jobView(jobId);
      if (status === "waiting")
        expect({ reason, estimatedStartMs }).toEqual({ reason: expect.stringMatching(/^drained/), estimatedStartMs: null });
    }
    expect((await gpuView()).queues.student).toMatchObject({ depth: 3, active: 0 });

    await stopWorker(first);
    const second = await startWorker();
    await soon(() => second.status().lastDecision?.reason).toBe("drained by an operator");
    await soon(async () => (await gpuView()).gpus[0]).toMatchObject({
      drained: true,
      phase: "idle",
      lease: { workerId: second.workerId },
      residentModel: null,
    });
    expect(await statuses()).toEqual(stayed);
    expect(gpu.loads).toEqual(["student"]);

    gpu.serviceMs = () => 1;
    await told("resume", {});
    for (const jobId of jobs) await completed(jobId);
    await soon(async () => (await gpuView()).gpus[0]?.drained).toBe(false);
    expect(await controlKeys()).toEqual([]);
  });

  test("swap: loads the other model though there is no work for it, lets running jobs end first, and is done once", async () => {
    gpu.serviceMs = () => 150;
    await startWorker();
    const jobs = await sendMany(6);
    await soon(() => gpu.engines[0]?.serving).toBe(2);
    const stream = await EventStream.open();
    await told("swap", { model: "talker", gpuId });
    await soon(() => stream.of("control")).toMatchObject([{ done: "swapTo", gpuId }]);
    for (const jobId of jobs) await completed(jobId);
    // The policy went back to its work by itself.
    expect(gpu.loads).toEqual(["student", "talker", "student"]);
    expect(stream.of("decision").map(({ reason }) => reason)).toContain("an operator asked for it");
    expect(stream.of("swap")[0]).toMatchObject({ from: "student", to: "talker", reason: "an operator asked for it" });

    await told("swap", { model: "talker" });
    await soon(async () => (await gpuView()).residentModel).toBe("talker");
    await told("swap", { model: "talker" });
    await soon(() => stream.of("control")).toHaveLength(3);
    expect(gpu.loads).toEqual(["student", "talker", "student", "talker"]);
    expect(await controlKeys()).toEqual([]);
  });

  test("swap loads a model even while drained, and takes nothing", async () => {
    await startWorker();
    await told("drain");
    const jobId = await send({ model: "talker" });
    await told("swap", { model: "talker" });
    await soon(async () => (await gpuView()).gpus[0]).toMatchObject({ residentModel: "talker", drained: true, phase: "idle", running: 0 });
    expect((await jobView(jobId)).status).toBe("waiting");
    await told("resume");
    await completed(jobId);
  });

  test("release: a running job ends first, then the model is unloaded, and the next job loads one again", async () => {
    gpu.serviceMs = () => 300;
    await startWorker();
    const jobId = await send();
    await soon(() => gpu.engines[0]?.serving).toBe(1);
    await told("release");
    await completed(jobId);
    await soon(async () => (await gpuView()).gpus[0]).toMatchObject({
      residentModel: null,
      phase: "idle",
      server: { state: "stopped", pid: null },
    });
    expect(gpu.up).toBe(0);
    expect((await gpuView()).gpus[0]!.lastDecision!.reason).not.toBe("");
    expect((await gpuView()).gpus[0]!.decisions.map(({ reason }) => reason)).toContain("the GPU is free: an operator asked for the GPU");
    await soon(controlKeys).toEqual([]);
    await completed(await send());
    expect(gpu.loads).toEqual(["student", "student"]);
  });

  test("reset: the steps down and the open circuit are forgotten, and the waiting job runs", async () => {
    gpu.loadError = () => new MathllmError("out-of-memory", "CUDA error: out of memory");
    await startWorker();
    const jobId = await send();
    await soon(async () => (await gpuView()).gpus[0]?.models.student.circuit.state).toBe("open");
    const failed = (await gpuView()).gpus[0]!.models.student;
    expect(failed.ladder.length).toBeGreaterThan(0);
    expect(failed.error).toContain("out of memory");
    expect((await jobView(jobId)).reason).toMatch(/^model-unavailable: /);
    gpu.loadError = () => null;
    await told("reset");
    await completed(jobId);
    await soon(async () => (await gpuView()).gpus[0]?.models.student).toMatchObject({
      ladder: [],
      error: null,
      circuit: { state: "closed", failures: 0, until: null },
      capacity: { maxNumSeqs: 2 },
    });
    expect(await queues.redis.exists(keys.gpuLadder(gpuId))).toBe(0);
    expect(await controlKeys()).toEqual([]);
  });

  test("a command goes to the GPU that is named, or to all; a stand-by counts, a dead worker does not", async () => {
    await publishStatus(queues.redis, workerStatus({ workerId: "a", gpuId: "one" }));
    await publishStatus(queues.redis, workerStatus({ workerId: "b", gpuId: "one", phase: "standby" }));
    await publishStatus(queues.redis, workerStatus({ workerId: "c", gpuId: "two", phase: "standby" }));
    await publishStatus(queues.redis, workerStatus({ workerId: "d", gpuId: "three", beatAt: Date.now() - 6000 }));
    const gpuIds = async (body?: unknown) => {
      const response = await command("drain", body);
      expect(response.status).toBe(202);
      return ((await response.json()) as { gpuIds: string[] }).gpuIds.sort();
    };
    expect(await gpuIds({ gpuId: "two" })).toEqual(["two"]);
    expect(await controlKeys()).toEqual([keys.gpuControl("two")]);
    expect(await gpuIds()).toEqual(["one", "two"]);
    expect((await controlKeys()).sort()).toEqual([keys.gpuControl("one"), keys.gpuControl("two")]);
    for (const unknown of ["three", "four", "*", "one ", "__proto__"]) {
      const problem = await expectProblem(await command("resume", { gpuId: unknown }), 404, "unknown-gpu");
      expect(problem.detail).toContain("one");
    }
    expect(await queues.redis.hgetall(keys.gpuControl("one"))).toEqual({ drained: "true" });
  });

  test.each(COMMANDS)("%s: no worker is 404, other methods are 405, a wrong body is a problem, and nothing is stored", async (name) => {
    const body = name === "swap" ? { model: "student" } : {};
    expect((await expectProblem(await command(name, body), 404, "unknown-gpu")).detail).toContain("mathllm worker");
    await publishStatus(queues.redis, workerStatus({ gpuId }));
    for (const method of ["GET", "PUT", "DELETE", "PATCH"]) {
      const response = await fetch(`${api.url}/gpu/${name}`, { method });
      expect(response.headers.get("allow")).toBe("POST");
      await expectProblem(response, 405, "method-not-allowed");
    }
    for (const wrong of [
      { ...body, gpuId: 7 },
      { ...body, gpuId: "" },
      { ...body, gpuId: null },
      { ...body, gpuId: "x".repeat(101) },
      { ...body, x: 1 },
      [],
    ])
      await expectProblem(await command(name, wrong), 400, "invalid-request");
    await expectProblem(await command(name, '{"__proto__":{"model":"student"}}'), 400, "invalid-request");
    if (name === "swap") {
      for (const wrong of [undefined, "", {}, { model: "gpt" }, { model: null }, { model: ["student"] }, { model: "Student" }])
        expect((await expectProblem(await command(name, wrong), 400, "invalid-request")).errors?.map(({ path }) => path)).toEqual([
          "model",
        ]);
    } else await expectProblem(await command(name, { model: "student" }), 400, "invalid-request");
    for (const malformed of ["{", "nonsense", '"text"', "null", "7", '{"a":1}}'])
      await expectProblem(await command(name, malformed), 400, "malformed-json");
    await expectProblem(await command(name, { ...body, gpuId: "x".repeat(300_000) }), 413, "body-too-large");
    for (const type of ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", ""])
      await expectProblem(await command(name, JSON.stringify(body), { "content-type": type }), 415, "unsupported-media-type");
    await expectProblem(await command(name, "", { "content-type": "application/x-www-form-urlencoded" }), 415, "unsupported-media-type");
    expect(await controlKeys()).toEqual([]);
  });

  test("other addresses under /gpu are 404", async () => {
    for (const address of ["/gpu/explode", "/gpu/drain/x", "/gpu/events/x"])
      await expectProblem(await fetch(api.url + address, { method: "POST" }), 404, "not-found");
  });
});

describe("PUT and DELETE /queues/…/rate-limit", () => {
  /** Longer than a test, and shorter than the deadline of class normal, past which a job is turned away. */
  const LONG_MS = 200_000;
  const limit = (role: string, body: unknown, headers: Record<string, string> = json) =>
    fetch(`${api.url}/queues/${role}/rate-limit`, {
      method: "PUT",
      ...(body === undefined ? {} : { headers, body: typeof body === "string" ? body : JSON.stringify(body) }),
    });
  const lift = (role: string) => fetch(`${api.url}/queues/${role}/rate-limit`, { method: "DELETE" });
  const queueViews = async () => (await gpuView()).queues;
  const pickedAt = async (jobs: string[]) =>
    (await Promise.all(jobs.map(completed))).map((view) => view.timestamps.pickedAt!).sort((a, b) => a - b);

  test("no more than max jobs are picked in a window, however many could run", async () => {
    const durationMs = 300;
    const response = await limit("student", { max: 3, durationMs });
    expect(response.status).toBe(200);
    expect(await response.json()).toMatchObject({ rateLimit: { max: 3, durationMs }, limitedMs: 0, depth: 0 });
    await startWorker();
    const picks = await pickedAt(await sendMany(10));
    // A window begins with its first pick. The worker's clock reads before Redis counts.
    for (let first = 0; first + 3 < picks.length; first += 3) expect(picks[first + 3]! - picks[first]!).toBeGreaterThan(durationMs - 50);
    expect(picks.at(-1)! - picks[0]!).toBeLessThan(10 * durationMs);
    expect(gpu.loads).toEqual(["student"]);
  });

  test("a limit that is used up: the other queue goes on without a swap for it, restarts change nothing, and lifting it is felt at once", async () => {
    expect((await limit("talker", { max: 1, durationMs: LONG_MS })).status).toBe(200);
    const worker = await startWorker();
    await completed(await send({ model: "talker" }));
    const waiting = await send({ model: "talker" });
    await soon(async () => (await queueViews()).talker.limitedMs > 0).toBe(true);
    for (const jobId of await sendMany(5)) await completed(jobId);
    expect(gpu.loads).toEqual(["talker", "student"]);

    await stopWorker(worker);
    await api.close();
    api = await startApi({ config, redisUrl: redis.url, log: apiLog });
    await startWorker();
    expect((await queueViews()).talker).toMatchObject({ rateLimit: { max: 1, durationMs: LONG_MS }, limitedMs: expect.any(Number) });
    await completed(await send());
    // The Student's queue is empty, the Talker's job still there.
    await soon(async () => (await gpuView()).gpus[0]?.lastDecision?.action).toBe("idle");
    expect((await jobView(waiting)).status).toBe("waiting");
    expect(gpu.loads).toEqual(["talker", "student", "student"]);

    const lifted = await lift("talker");
    expect([lifted.status, await lifted.json()]).toEqual([200, expect.objectContaining({ rateLimit: null, limitedMs: 0, depth: 1 })]);
    const liftedAt = Date.now();
    const view = await completed(waiting);
    expect(view.timestamps.pickedAt! - liftedAt).toBeLessThan(5000);
    expect(gpu.loads.at(-1)).toBe("talker");
    // There is no limit any more.
    for (const jobId of await sendMany(5, { model: "talker" })) await completed(jobId);
    expect((await lift("talker")).status).toBe(200);
  });

  test("a wider limit is felt in the middle of a long window", async () => {
    await limit("student", { max: 1, durationMs: LONG_MS });
    await startWorker();
    const jobs = await sendMany(6);
    await Promise.race(jobs.map(completed));
    await soon(async () => (await queueViews()).student.limitedMs > 0).toBe(true);
    await limit("student", { max: 3, durationMs: LONG_MS });
    const done = async () => (await Promise.all(jobs.map((jobId) => jobView(jobId)))).filter(({ status }) => status === "completed").length;
    await soon(done).toBe(4);
    await soon(async () => (await queueViews()).student.limitedMs > 0).toBe(true);
    await lift("student");
    for (const jobId of jobs) await completed(jobId);
  });

  test("a cancel of a limited job is seen at once", async () => {
    await limit("student", { max: 1, durationMs: LONG_MS });
    await startWorker();
    await completed(await send());
    const jobId = await send();
    expect((await fetch(`${api.url}/jobs/${jobId}`, { method: "DELETE" })).status).toBeLessThan(300);
    expect((await jobView(jobId, 5)).status).toBe("cancelled");
  });

  test.each(
    [
      "",
      {},
      [],
      { max: 1 },
      { durationMs: 1 },
      { max: 0, durationMs: 1000 },
      { max: -1, durationMs: 1000 },
      { max: 1.5, durationMs: 1000 },
      { max: "1", durationMs: 1000 },
      { max: 1_000_001, durationMs: 1000 },
      { max: 1, durationMs: 0 },
      { max: 1, durationMs: 86_400_001 },
      { max: null, durationMs: null },
      { max: 1, durationMs: 1000, extra: true },
    ].map((body) => ({ body })),
  )("$body is refused and changes nothing", async ({ body }) => {
    await limit("student", { max: 7, durationMs: 1000 });
    await expectProblem(await limit("student", body), 400, "invalid-request");
    expect((await queueViews()).student.rateLimit).toEqual({ max: 7, durationMs: 1000 });
  });

  test("malformed JSON, other content types, other methods and unknown queues are problems", async () => {
    const valid = { max: 1, durationMs: 1000 };
    for (const malformed of ["{", "1", "null"]) await expectProblem(await limit("student", malformed), 400, "malformed-json");
    await expectProblem(await limit("student", JSON.stringify(valid), { "content-type": "text/plain" }), 415, "unsupported-media-type");
    await expectProblem(await limit("student", undefined), 415, "unsupported-media-type");
    for (const method of ["GET", "POST", "PATCH"]) {
      const response = await fetch(`${api.url}/queues/student/rate-limit`, { method });
      expect(response.headers.get("allow")).toBe("PUT, DELETE");
      await expectProblem(response, 405, "method-not-allowed");
    }
    for (const role of ["teacher", "Student", "__proto__", "constructor", "%00", "student%20"]) {
      await expectProblem(await limit(role, valid), 404, "not-found");
      await expectProblem(await lift(role), 404, "not-found");
    }
    await expectProblem(await limit("%zz", valid), 400, "invalid-request");
    for (const method of ["POST", "PUT", "DELETE"]) {
      const response = await fetch(`${api.url}/queues`, { method });
      expect(response.headers.get("allow")).toBe("GET");
      await expectProblem(response, 405, "method-not-allowed");
    }
    const views = await queueViews();
    expect([views.student.rateLimit, views.talker.rateLimit]).toEqual([null, null]);
  });
});
