import { setTimeout as delay } from "node:timers/promises";
import { createParser } from "eventsource-parser";
import { Agent } from "undici";
import { z } from "zod";
import { type GpuView, gpuViewSchema } from "../../queues/gpu-view.ts";
import { ROLES, type Role } from "../../queues/names.ts";
import type { Span } from "./api-target.ts";
import { nowMs } from "./target.ts";

const EVERY_MS = 1000;
const TIMEOUT_MS = 5000;
const RECONNECT_MS = 1000;
/** Jobs don't wait longer than this in any run that is measured. */
const REMEMBERED_MS = 3_600_000;

const swapSchema = z.object({ ts: z.number(), gpuId: z.string(), from: z.string().nullable(), to: z.string(), totalMs: z.number() });

/** Watches our API from the side while a run goes on: `/gpu` once a second, and every swap as `/gpu/events` tells of it. */
export class ServerSampler {
  readonly #url: string;
  readonly #headers: Record<string, string>;
  readonly #write: (line: object) => void;
  readonly #stopped = new AbortController();
  // Its own connections: samples don't stand in line with the load.
  readonly #agent = new Agent({ connections: 2 });
  readonly #resident: Record<Role | "none", number> = { student: 0, talker: 0, none: 0 };
  readonly #maxDepth: Record<Role, number> = { student: 0, talker: 0 };
  #done: Promise<unknown> | undefined;
  /** By the server's clock, oldest first. */
  #swapSpans: Span[] = [];
  #swapMsTotal = 0;
  #maxRunning = 0;
  #samples = 0;
  swaps = 0;
  latest: GpuView | null = null;

  constructor(url: string, write: (line: object) => void, apiKey?: string) {
    this.#url = url.replace(/\/+$/, "");
    this.#headers = apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` };
    this.#write = write;
  }

  start(): void {
    this.#done = Promise.all([this.#sampleLoop(), this.#eventLoop()]);
  }

  /** The part of these times in which a model was being swapped: no time counts twice, however many GPUs swapped. */
  swappingMs(spans: readonly Span[]): number {
    return spans.reduce((sum, span) => sum + overlapMs(span, this.#swapSpans), 0);
  }

  summary() {
    const share = (count: number) => (this.#samples === 0 ? 0 : count / this.#samples);
    const { student, talker, none } = this.#resident;
    return {
      samples: this.#samples,
      swaps: this.swaps,
      swapMsTotal: this.#swapMsTotal,
      residentShare: { student: share(student), talker: share(talker), none: share(none) },
      maxDepth: this.#maxDepth,
      maxRunning: this.#maxRunning,
    };
  }

  async stop(): Promise<void> {
    this.#stopped.abort();
    await this.#done;
    await this.#agent.destroy();
  }

  async #sampleLoop(): Promise<void> {
    const { signal } = this.#stopped;
    for (let next = nowMs(); !signal.aborted; next = Math.max(next + EVERY_MS, nowMs())) {
      await this.#pause(next - nowMs());
      if (signal.aborted) return;
      const at = nowMs();
      const view = await this.#view().catch((error: Error) => error);
      if (signal.aborted) return;
      if (view instanceof Error) this.#write({ at, kind: "no-answer", reason: view.message });
      else this.#see(at, view);
    }
  }

  async #view(): Promise<GpuView> {
    const signal = AbortSignal.any([this.#stopped.signal, AbortSignal.timeout(TIMEOUT_MS)]);
    const response = await this.#agent.request({ ...this.#to("/gpu"), signal });
    const text = await response.body.text();
    if (response.statusCode !== 200) throw new Error(`/gpu answered ${response.statusCode}`);
    return gpuViewSchema.parse(JSON.parse(text));
  }

  #see(at: number, view: GpuView): void {
    this.latest = view;
    this.#samples++;
    this.#resident[view.residentModel ?? "none"]++;
    for (const role of ROLES) this.#maxDepth[role] = Math.max(this.#maxDepth[role], view.queues[role].depth);
    const running = view.gpus.reduce((sum, gpu) => sum + gpu.running, 0);
    this.#maxRunning = Math.max(this.#maxRunning, running);
    const perRole = <T>(value: (role: Role) => T) => Object.fromEntries(ROLES.map((role) => [role, value(role)]));
    this.#write({
      at,
      kind: "sample",
      residentModel: view.residentModel,
      gpus: view.gpus.map(({ gpuId, residentModel, phase, running, swaps, vram }) => ({
        gpuId,
        residentModel,
        phase,
        running,
        swaps,
        vramUsedBytes: vram?.usedBytes ?? null,
      })),
      depth: perRole((role) => view.queues[role].depth),
      active: perRole((role) => view.queues[role].active),
      delayed: perRole((role) => view.queues[role].delayed),
      estimatedWaitMs: perRole((role) => view.queues[role].estimatedWaitMs),
      ...(view.cache === undefined ? {} : { cache: view.cache }),
    });
  }

  async #eventLoop(): Promise<void> {
    const { signal } = this.#stopped;
    let lastId: string | undefined;
    while (!signal.aborted) {
      try {
        const request = this.#to("/gpu/events");
        const headers = { ...request.headers, accept: "text/event-stream", ...(lastId === undefined ? {} : { "last-event-id": lastId }) };
        const response = await this.#agent.request({ ...request, headers, signal, bodyTimeout: 0 });
        if (response.statusCode !== 200) throw new Error(`/gpu/events answered ${response.statusCode}`);
        const parser = createParser({
          onEvent: ({ id, event, data }) => {
            lastId = id ?? lastId;
            if (event === "swap") this.#seeSwap(data);
          },
        });
        const decoder = new TextDecoder();
        for await (const bytes of response.body) parser.feed(decoder.decode(bytes as Buffer, { stream: true }));
      } catch {
        // Without its events a run still has its samples; the next try may find the API again.
      }
      await this.#pause(RECONNECT_MS);
    }
  }

  #seeSwap(data: string): void {
    const swap = swapSchema.safeParse(JSON.parse(data)).data;
    if (swap === undefined) return;
    const { ts, totalMs } = swap;
    this.swaps++;
    this.#swapMsTotal += totalMs;
    this.#swapSpans = [...this.#swapSpans.filter(({ to }) => to > ts - REMEMBERED_MS), { from: ts - totalMs, to: ts }];
    this.#write({ at: nowMs(), kind: "swap", ...swap });
  }

  #to(path: string) {
    const { origin, pathname } = new URL(this.#url);
    return { origin, path: pathname.replace(/\/$/, "") + path, method: "GET", headers: this.#headers } as const;
  }

  async #pause(ms: number): Promise<void> {
    if (ms > 0) await delay(ms, undefined, { signal: this.#stopped.signal }).catch(() => {});
  }
}

/** How much of `span` the others cover together. */
export function overlapMs(span: Span, others: readonly Span[]): number {
  let covered = 0;
  let reached = span.from;
  const touching = others.filter(({ from, to }) => from < span.to && to > span.from);
  for (const { from, to } of touching.sort((a, b) => a.from - b.from)) {
    const start = Math.max(from, reached);
    const end = Math.min(to, span.to);
    if (end <= start) continue;
    covered += end - start;
    reached = end;
  }
  return covered;
}
