import type { WorkerStatus } from "../queues/contracts.ts";

export const modelStatus: WorkerStatus["models"]["student"] = {
  model: "m",
  preparation: { state: "ready", reason: null, doneBytes: null, totalBytes: null, retryAt: null },
  capacity: { maxNumSeqs: 2, maxModelLen: 4096, kvCacheBits: 16 },
  ladder: [],
  circuit: { state: "closed", failures: 0, until: null },
  arrivalsPerMs: 0,
  serviceMs: 100,
  swapMs: 500,
  contextTokens: 512,
  digest: "d",
  error: null,
};

/** A heartbeat as of now: the Student is resident and serves. */
export function workerStatus(over: Partial<WorkerStatus> = {}): WorkerStatus {
  return {
    workerId: "w",
    gpuId: "g",
    host: "h",
    pid: 1,
    beatAt: Date.now(),
    startedAt: 1,
    phase: "serving",
    waitsFor: null,
    fence: 1,
    drained: false,
    residentModel: "student",
    residentSince: 1,
    loadingModel: null,
    coresidentModel: null,
    server: { state: "ready", pid: 2, since: 1, lastError: null },
    running: 2,
    swaps: 0,
    policy: "ge",
    lastDecision: null,
    decisions: [],
    lastSwap: null,
    deadlinesMs: { interactive: 60_000, normal: 300_000, batch: 3_600_000 },
    waitEstimate: { jobs: 0, meanAbsErrorMs: null, meanErrorMs: null },
    vram: null,
    models: { student: modelStatus, talker: modelStatus },
    ...over,
  };
}
