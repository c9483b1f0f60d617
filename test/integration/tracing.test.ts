import http from "node:http";
import type { AddressInfo } from "node:net";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { startTracing } from "../../queues/tracing.ts";
import { type GpuSystem, startGpuSystem } from "../gpu-system.ts";

interface Span {
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  name: string;
  kind: number;
  startTimeUnixNano: string;
  endTimeUnixNano: string;
  status: { code: number; message?: string };
  attributes: { key: string; value: Record<string, unknown> }[];
}

let system: GpuSystem;
let running: RunningApi;
let collector: http.Server;
let stopTracing: () => Promise<void>;
let bodies: string[];

beforeEach(async () => {
  bodies = [];
  collector = http
    .createServer(async (request, response) => {
      let body = "";
      for await (const chunk of request) body += chunk;
      if (request.url === "/v1/traces") bodies.push(body);
      response.setHeader("content-type", "application/json").end("{}");
    })
    .listen(0, "127.0.0.1");
  await new Promise((resolve) => collector.once("listening", resolve));
  system = await startGpuSystem();
  running = await startApi({ config: system.configured({ PORT: "0" }), redisUrl: system.redis.url, log: pino({ level: "silent" }) });
});
afterEach(async () => {
  await stopTracing?.();
  await running?.close();
  await system?.stop();
  collector.close();
});

const spans = (): Span[] =>
  bodies.flatMap((body) =>
    JSON.parse(body).resourceSpans.flatMap(({ scopeSpans }: { scopeSpans: { spans: Span[] }[] }) =>
      scopeSpans.flatMap((each) => each.spans),
    ),
  );

async function solve(body: object, headers: Record<string, string> = {}): Promise<string> {
  const response = await fetch(`${running.url}/solve`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
  const { jobId } = (await response.json()) as { jobId: string };
  await (await fetch(`${running.url}/jobs/${jobId}?wait=30`)).text();
  return jobId;
}

test("a request, its queues, its stages and the calls of the model servers are one trace, which a caller's trace goes on into", async () => {
  stopTracing = await startTracing("mathllm-test", `http://127.0.0.1:${(collector.address() as AddressInfo).port}`);
  await system.startWorker();
  const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
  const secret = "What is the secret sum?";
  const jobId = await solve({ problem: secret, explain: true }, { traceparent: `00-${traceId}-00f067aa0ba902b7-01` });
  await stopTracing();

  const ours = spans().filter((span) => span.traceId === traceId);
  const one = (name: string) => {
    const found = ours.filter((span) => span.name === name);
    expect(found, name).toHaveLength(1);
    return found[0]!;
  };
  const request = one("POST /solve");
  expect(request.parentSpanId).toBe("00f067aa0ba902b7");
  for (const role of ["student", "talker"]) {
    expect(one(`${role} queue`).parentSpanId).toBe(request.spanId);
    const stage = one(`${role} stage`);
    expect(stage.parentSpanId).toBe(request.spanId);
    expect(stage.attributes).toContainEqual({ key: "mathllm.job_id", value: { stringValue: jobId } });
    expect(BigInt(one(`${role} queue`).endTimeUnixNano)).toBeLessThanOrEqual(BigInt(stage.endTimeUnixNano));
    const calls = ours.filter((span) => span.name === "chat" && span.parentSpanId === stage.spanId);
    expect(calls).toHaveLength(1);
    if (role === "talker") expect(system.gpu.lastHeaders.traceparent).toBe(`00-${traceId}-${calls[0]!.spanId}-01`);
  }
  expect(bodies[0]).toContain("mathllm-test");
  expect(bodies.join("")).not.toContain("secret sum");
  // Ids are no names.
  expect(spans().map(({ name }) => name)).toContain("GET /jobs/:id");
});

test("without an endpoint nothing is traced, sent or stored", async () => {
  stopTracing = await startTracing("mathllm-test", undefined);
  await system.startWorker();
  const jobId = await solve({ problem: "1 + 0" }, { traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" });
  expect((await system.queues.student.getJob(jobId))!.data.traceparent).toBeUndefined();
  expect(system.gpu.lastHeaders.traceparent).toBeUndefined();
  expect(bodies).toEqual([]);
});

test("a collector that is away disturbs nothing", async () => {
  const gone = http.createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => gone.once("listening", resolve));
  const { port } = gone.address() as AddressInfo;
  await new Promise((resolve) => gone.close(resolve));
  stopTracing = await startTracing("mathllm-test", `http://127.0.0.1:${port}`);
  await system.startWorker();
  expect((await system.view(await solve({ problem: "1 + 0" })))?.status).toBe("completed");
});
