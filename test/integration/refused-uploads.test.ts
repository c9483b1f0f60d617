import { once } from "node:events";
import { readdir } from "node:fs/promises";
import net from "node:net";
import path from "node:path";
import { Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { setImmediate as turn } from "node:timers/promises";
import express from "express";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { openaiErrors } from "../../api/openai/errors.ts";
import { readUpload } from "../../api/openai/file-upload.ts";
import { readConfig } from "../../queues/config.ts";
import type { MetricCounts } from "../../queues/metrics.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

/** What is refused half-way through its body is answered, whatever its size; a client may read nothing before it has sent everything. */
const SIZES = [60_000, 70_000, 150_000, 5_000_000];
const KEPT_BYTES = 45_000;

let redis: RedisFixture;
let api: RunningApi;
let folder: string;

beforeAll(async () => {
  redis = await startRedisFixture();
  folder = path.join(redis.dataDir, "files");
  const config = readConfig({ PORT: "0", DATA_DIR: redis.dataDir, FILES_MAX_BYTES: "100000", BODY_LIMIT_BYTES: "50000" });
  api = await startApi({ config, redisUrl: redis.url, log: pino({ level: "silent" }) });
  expect((await upload(KEPT_BYTES)).status).toBe(200);
});
afterAll(async () => {
  await api.close();
  await redis.stop();
});

const formOf = (bytes: number): [head: string, body: Buffer, tail: string] => [
  '--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\nContent-Type: application/octet-stream\r\n\r\n',
  Buffer.alloc(bytes, "x"),
  '\r\n--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n',
];
const FORM = "multipart/form-data; boundary=x";

/** Writes the whole request in pieces, and only then reads. */
async function sendThenRead(address: string, type: string, pieces: (string | Buffer)[], port = api.port): Promise<number> {
  const socket = net.connect({ port, host: "127.0.0.1" });
  socket.pause();
  const length = pieces.reduce((sum, piece) => sum + Buffer.byteLength(piece), 0);
  socket.write(
    `POST ${address} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: ${type}\r\nContent-Length: ${length}\r\n\r\n`,
  );
  for (const piece of pieces) {
    await turn();
    if (!socket.write(piece)) await once(socket, "drain");
  }
  let text = "";
  for await (const chunk of socket.setEncoding("utf8")) text += chunk;
  return Number(/^HTTP\/1\.1 (\d+)/.exec(text)?.[1]);
}

async function upload(bytes: number): Promise<{ status: number; code: string }> {
  const [head, body, tail] = formOf(bytes);
  const response = await fetch(`${api.url}/v1/files`, {
    method: "POST",
    headers: { "content-type": FORM },
    body: Buffer.concat([Buffer.from(head), body, Buffer.from(tail)]),
  });
  const { error } = (await response.json()) as { error?: { code: string } };
  return { status: response.status, code: error?.code ?? "" };
}

const chunked = (body: Buffer, bytes: number) =>
  Array.from({ length: Math.ceil(body.length / bytes) }, (_, i) => body.subarray(i * bytes, (i + 1) * bytes));

describe("a file for which there is no room", () => {
  test.each(SIZES)("of %i bytes is refused, and nothing of it stays", async (bytes) => {
    expect(await upload(bytes)).toEqual({ status: 507, code: "files-full" });
    expect(await readdir(folder)).toHaveLength(2);
  });

  test.each(SIZES)("of %i bytes in small pieces, read only then", async (bytes) => {
    const [head, body, tail] = formOf(bytes);
    expect(await sendThenRead("/v1/files", FORM, [head, ...chunked(body, 10_000), tail])).toBe(507);
  });

  test("that never ends is cut off after the refusal", async () => {
    const socket = net.connect({ port: api.port, host: "127.0.0.1" });
    socket.on("error", () => {});
    let answer = "";
    socket.setEncoding("utf8").on("data", (text) => {
      answer += text;
    });
    const [head, body] = formOf(100_000);
    socket.write(`POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${FORM}\r\nContent-Length: 100000000000\r\n\r\n${head}`);
    let sent = 0;
    while (!socket.destroyed && sent < 1e9) {
      sent += body.length;
      if (!socket.write(body)) await once(socket, "drain").catch(() => {});
      await turn();
    }
    expect(socket.destroyed).toBe(true);
    expect(answer === "" || answer.startsWith("HTTP/1.1 507")).toBe(true);
    expect((await upload(10)).status).toBe(200);
  });
});

test.each([70_000, 5_000_000])("an upload of %i bytes whose storage fails half-way is answered", async (bytes) => {
  const app = express();
  app.post("/v1/files", async (request, response) => {
    const full = new Writable({ highWaterMark: 1, write: (_chunk, _encoding, done) => done(new Error("no space left")) });
    await readUpload(request, (source) => pipeline(source, full));
    response.end();
  });
  const log = pino({ level: "silent" });
  const counts = { count: () => {} } as unknown as MetricCounts;
  const connection = redis.connect();
  await connection.ping();
  app.use(openaiErrors(connection, log, counts));
  const server = app.listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    const [head, body, tail] = formOf(bytes);
    const { port } = server.address() as net.AddressInfo;
    expect(await sendThenRead("/v1/files", FORM, [head, body, tail], port)).toBe(500);
  } finally {
    server.close();
  }
});

describe("every other address that takes a body answers a refused one", () => {
  const jsonOf = (bytes: number) => Buffer.from(JSON.stringify({ problem: "1".repeat(bytes) }));

  test.each(
    SIZES.flatMap((bytes) => ["/solve", "/batches", "/v1/chat/completions", "/v1/batches", "/gpu/swap"].map((to) => [to, bytes] as const)),
  )("%s with %i bytes of JSON", async (address, bytes) => {
    expect(await sendThenRead(address, "application/json", chunked(jsonOf(bytes), 20_000))).toBe(413);
  });

  test.each(SIZES)("/batches with %i bytes of JSONL, whose defaults are wrong", async (bytes) => {
    const wrong = Buffer.from(`${"x".repeat(40_000)}\n`.repeat(Math.ceil(bytes / 40_001)));
    expect(await sendThenRead("/batches?defaults=no", "application/jsonl", chunked(wrong, 20_000))).toBe(400);
  });

  test.each(["/solve", "/v1/files", "/batches", "/nowhere", "/healthz"])("%s with 5 MB of another kind", async (address) => {
    expect(await sendThenRead(address, "text/plain", chunked(Buffer.alloc(5_000_000, "x"), 20_000))).toBeGreaterThanOrEqual(400);
  });
});
