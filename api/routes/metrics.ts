import { Router } from "express";
import { type AnswerCache, CACHE_OUTCOMES } from "../../queues/answer-cache.ts";
import type { Config } from "../../queues/config.ts";
import { loadGpuView } from "../../queues/gpu-view.ts";
import { readMetricCounts } from "../../queues/metrics.ts";
import { PRIORITY_CLASSES, ROLES } from "../../queues/names.ts";
import type { Queues } from "../../queues/open-queues.ts";
import { liveWorkers } from "../../queues/worker-status.ts";
import { METRICS_TYPE, MetricsText } from "../metrics-text.ts";
import { onlyMethods } from "../middleware/problems.ts";

/** `GET /metrics`: what Redis knows of the whole system, in Prometheus' text form. Every API process tells the same. */
export function metricsRoute(queues: Queues, config: Config, cache: AnswerCache): Router {
  const router = Router();
  router.get("/", async (_request, response) => {
    const [view, workers, stats, counted] = await Promise.all([
      loadGpuView(queues, config),
      liveWorkers(queues.redis),
      cache.stats(),
      readMetricCounts(queues.redis),
    ]);
    const text = new MetricsText();
    for (const role of ROLES) {
      text.set("mathllm_jobs_active", { model: role }, view.queues[role].active);
      for (const name of PRIORITY_CLASSES) {
        text.set("mathllm_jobs_waiting", { model: role, class: name }, view.queues[role].waiting[name]);
        text.set("mathllm_oldest_job_age_seconds", { model: role, class: name }, (view.queues[role].oldestAgeMs[name] ?? 0) / 1000);
      }
    }
    text.set("mathllm_workers_live", {}, workers.length);
    for (const { gpuId: gpu, residentModel, swaps, models, vram } of view.gpus) {
      text.set("mathllm_swaps_total", { gpu }, swaps);
      if (vram !== null) {
        text.set("mathllm_vram_used_bytes", { gpu }, vram.usedBytes);
        text.set("mathllm_vram_total_bytes", { gpu }, vram.totalBytes);
      }
      for (const role of ROLES) {
        text.set("mathllm_model_resident", { gpu, model: role }, residentModel === role ? 1 : 0);
        text.set("mathllm_model_circuit_open", { gpu, model: role }, models[role].circuit.state === "open" ? 1 : 0);
      }
    }
    for (const outcome of CACHE_OUTCOMES) text.set("mathllm_cache_requests_total", { outcome }, stats[outcome]);
    text.set("mathllm_cache_bytes", {}, stats.bytes);
    for (const series of counted) text.add(series);
    response.set("content-type", METRICS_TYPE).end(text.toString());
  });
  router.all("/", onlyMethods("GET"));
  return router;
}
