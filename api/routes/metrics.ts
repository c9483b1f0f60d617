import { Router } from "express";
import { Gauge, Registry } from "prom-client";
import { type AnswerCache, CACHE_OUTCOMES } from "../../queues/answer-cache.ts";
import type { Config } from "../../queues/config.ts";
import { loadGpuView } from "../../queues/gpu-view.ts";
import { PRIORITY_CLASSES, ROLES } from "../../queues/names.ts";
import type { Queues } from "../../queues/open-queues.ts";
import { onlyMethods } from "../middleware/problems.ts";

/** `GET /metrics`: what Redis knows of the whole system, in Prometheus' text form. Every API process tells the same. */
export function metricsRoute(queues: Queues, config: Config, cache: AnswerCache): Router {
  const router = Router();
  const registry = new Registry();
  const gauge = <L extends string>(name: string, help: string, labelNames: L[]) =>
    new Gauge({ name: `mathllm_${name}`, help, labelNames, registers: [registry] });
  const waiting = gauge("jobs_waiting", "Jobs that wait for their model", ["model", "class"]);
  const active = gauge("jobs_active", "Jobs on their model", ["model"]);
  const oldest = gauge("oldest_job_age_seconds", "Age of the oldest waiting job", ["model", "class"]);
  const resident = gauge("model_resident", "1 for the model that is resident", ["gpu", "model"]);
  const swaps = gauge("swaps_total", "Swaps of this worker since its start", ["gpu"]);
  const requests = gauge("cache_requests_total", "Cacheable requests by what became of them", ["outcome"]);
  const bytes = gauge("cache_bytes", "Cached answers in Redis", []);
  router.get("/", async (_request, response) => {
    const [view, stats] = await Promise.all([loadGpuView(queues, config), cache.stats()]);
    registry.resetMetrics();
    for (const role of ROLES) {
      active.set({ model: role }, view.queues[role].active);
      for (const name of PRIORITY_CLASSES) {
        waiting.set({ model: role, class: name }, view.queues[role].waiting[name]);
        oldest.set({ model: role, class: name }, (view.queues[role].oldestAgeMs[name] ?? 0) / 1000);
      }
    }
    for (const { gpuId, residentModel, swaps: count } of view.gpus) {
      swaps.set({ gpu: gpuId }, count);
      for (const role of ROLES) resident.set({ gpu: gpuId, model: role }, residentModel === role ? 1 : 0);
    }
    for (const outcome of CACHE_OUTCOMES) requests.set({ outcome }, stats[outcome]);
    bytes.set(stats.bytes);
    response.set("content-type", registry.contentType).end(await registry.metrics());
  });
  router.all("/", onlyMethods("GET"));
  return router;
}
