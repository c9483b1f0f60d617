import { type Request, type Response, Router } from "express";
import { z } from "zod";
import type { AnswerCache } from "../../queues/answer-cache.ts";
import type { Config } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import { commandGpu, type GpuCommand } from "../../queues/gpu-control.ts";
import { type GpuEvent, gpuEventsSince } from "../../queues/gpu-events.ts";
import { KEPT_MINUTES, readGpuSamples } from "../../queues/gpu-samples.ts";
import { loadGpuView } from "../../queues/gpu-view.ts";
import { ROLES } from "../../queues/names.ts";
import type { Queues } from "../../queues/open-queues.ts";
import { liveWorkers } from "../../queues/worker-status.ts";
import { type GpuEventFeed, isAfter, missedGpuEvents, newestGpuEventId } from "../gpu-event-feed.ts";
import { GpuStateFeed } from "../gpu-state-feed.ts";
import { jsonBody } from "../middleware/json-body.ts";
import { onlyMethods } from "../middleware/problems.ts";
import { parseBody } from "../parse-body.ts";

const HEARTBEAT_MS = 15_000;
/** A reader that leaves so much unread is cut off; it may come back with `Last-Event-ID`. */
const MAX_UNREAD_BYTES = 1_048_576;
const EVENT_ID = /^\d{1,16}-\d{1,16}$/;

const gpuIdSchema = z.string().min(1).max(100);
export const commandSchema = z.strictObject({ gpuId: gpuIdSchema.optional() });
export const swapSchema = z.strictObject({ gpuId: gpuIdSchema.optional(), model: z.enum(ROLES) });

/** `GET /gpu`, `GET /gpu/history`, `GET /gpu/events` and the operator's commands. A command without `gpuId` goes to every GPU. */
export function gpuRoute(queues: Queues, config: Config, cache: AnswerCache, feed: GpuEventFeed): Router {
  const router = Router();
  const load = async () => ({ ...(await loadGpuView(queues, config)), cache: await cache.stats() });
  const states = new GpuStateFeed(queues, load);
  router.get("/", async (_request, response) => {
    response.json(await load());
  });
  router.all("/", onlyMethods("GET"));

  router.get("/history", async (request, response) => {
    const now = Date.now();
    const sinceMs = now - minutesOf(request) * 60_000;
    const [samples, events] = await Promise.all([readGpuSamples(queues.redis, { sinceMs }), gpuEventsSince(queues.redis, sinceMs)]);
    response.json({ now, samples, events: events.map(({ id, kind, data }) => ({ id, kind, ...JSON.parse(data) })) });
  });
  router.all("/history", onlyMethods("GET"));

  // Otherwise it would be answered as a stream without a body, and never end.
  router.head("/events", (_request, response) => {
    response.type("text/event-stream").end();
  });
  router.get("/events", async (request, response) => {
    const lastId = request.get("last-event-id");
    if (lastId !== undefined && !EVENT_ID.test(lastId)) {
      throw new MathllmError(
        "invalid-request",
        `Last-Event-ID: expected the id of an event of this stream; got ${JSON.stringify(lastId)}.`,
      );
    }
    const { samples = "false" } = request.query;
    if (samples !== "true" && samples !== "false")
      throw new MathllmError("invalid-request", `samples: expected true or false; got ${JSON.stringify(samples).slice(0, 100)}.`);
    await streamEvents(response, lastId, samples === "true");
  });
  router.all("/events", onlyMethods("GET"));

  async function streamEvents(response: Response, lastId: string | undefined, withSamples: boolean): Promise<void> {
    const newestId = await newestGpuEventId(queues.redis);
    if (response.destroyed) return;
    const pending: GpuEvent[] = [];
    let send = (event: GpuEvent): void => {
      pending.push(event);
    };
    const stopListening = feed.listen(
      newestId,
      (event) => send(event),
      () => (response.headersSent ? response.end() : response.destroy()),
    );
    response.on("close", stopListening);
    const missed = lastId === undefined ? [] : await missedGpuEvents(queues.redis, lastId);
    let view = JSON.stringify(await load());
    // The client has left, or the API closes.
    if (response.destroyed) return;
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no" });
    const write = (text: string) => {
      if (response.writableEnded) return;
      if (response.writableLength > MAX_UNREAD_BYTES) response.destroy();
      else response.write(text);
    };
    const writeEvent = ({ id, kind, data }: GpuEvent) => write(`id: ${id}\nevent: ${kind}\ndata: ${data}\n\n`);
    write(`event: state\ndata: ${view}\n\n`);
    for (const event of missed) writeEvent(event);
    // The feed may be behind what the listener knows.
    let sentId = missed.at(-1)?.id ?? newestId;
    send = (event) => {
      if (!isAfter(event.id, sentId)) return;
      sentId = event.id;
      writeEvent(event);
    };
    for (const event of pending) send(event);
    const stopLooking = states.listen((current, samples) => {
      if (withSamples) for (const sample of samples) write(`event: sample\ndata: ${JSON.stringify(sample)}\n\n`);
      if (current !== view) write(`event: state\ndata: ${current}\n\n`);
      view = current;
    });
    const beatTimer = setInterval(() => write(": still here\n\n"), HEARTBEAT_MS);
    response.on("close", () => {
      stopLooking();
      clearInterval(beatTimer);
    });
  }

  const command = (
    path: string,
    schema: typeof commandSchema | typeof swapSchema,
    toCommand: (body: z.infer<typeof swapSchema>) => GpuCommand,
  ) => {
    router.post(path, jsonBody(config, { optional: true }), async (request, response) => {
      const body = parseBody(schema, request.body ?? {});
      const gpuIds = await addressed(body.gpuId);
      for (const gpuId of gpuIds) await commandGpu(queues.redis, gpuId, toCommand(body as z.infer<typeof swapSchema>));
      response.status(202).json({ gpuIds, links: { gpu: "/gpu", events: "/gpu/events" } });
    });
    router.all(path, onlyMethods("POST"));
  };
  command("/drain", commandSchema, () => ({ drained: true }));
  command("/resume", commandSchema, () => ({ drained: false }));
  command("/swap", swapSchema, ({ model }) => ({ swapTo: model }));
  command("/release", commandSchema, () => ({ release: true }));
  command("/reset", commandSchema, () => ({ reset: true }));

  async function addressed(gpuId: string | undefined): Promise<string[]> {
    const live = [...new Set((await liveWorkers(queues.redis)).map((worker) => worker.gpuId))];
    const found = gpuId === undefined ? live : live.filter((id) => id === gpuId);
    if (found.length > 0) return found;
    throw new MathllmError(
      "unknown-gpu",
      gpuId === undefined
        ? "No worker is alive. Start one with mathllm worker or mathllm start."
        : `No live worker has GPU ${gpuId}; ${live.length === 0 ? "none is alive" : `there are ${live.join(", ")}`}.`,
    );
  }

  return router;
}

function minutesOf(request: Request): number {
  const { minutes = "10" } = request.query;
  if (typeof minutes === "string" && /^\d{1,2}$/.test(minutes) && Number(minutes) >= 1 && Number(minutes) <= KEPT_MINUTES)
    return Number(minutes);
  throw new MathllmError(
    "invalid-request",
    `minutes: expected a whole number from 1 to ${KEPT_MINUTES}; got ${JSON.stringify(minutes).slice(0, 100)}.`,
  );
}
