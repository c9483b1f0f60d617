import { duration, plural } from "./format.js";

/** @import { GpuView } from "../../../queues/gpu-view.ts" */
/** @import { Role } from "../../../queues/names.ts" */
/** @import { Happening } from "./history.js" */

/** @typedef {GpuView["gpus"][number]} Gpu */
/** @typedef {{ title: string, more: string, model: Role | null }} Sentence */
/** @typedef {{ ts: number, tone: "swap" | "stay" | "hold" | "idle" | "trouble" | "operator", model: Role | null, title: string, more: string }} Line */
/** @typedef {{ title: string, more: string, urgent: boolean }} Notice */
/** @typedef {Line & { id: string, gpuId: string, isPassing: boolean }} ListedLine `isPassing`: the next line takes its place */

export const NAMES = /** @type {Record<Role, string>} */ ({ student: "Student", talker: "Talker" });

/**
 * A worker's reason as a sentence for people.
 * @param {string} text
 */
export function sentence(text) {
  if (text === "") return "";
  const named = text.replace(/\b(student|talker)\b/g, (role) => NAMES[/** @type {Role} */ (role)]);
  const begun = named.charAt(0).toUpperCase() + named.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

/**
 * What the GPU is doing now.
 * @param {Gpu | undefined} gpu
 * @param {number} now epoch milliseconds
 * @returns {Sentence}
 */
export function headline(gpu, now) {
  if (gpu === undefined) {
    return {
      title: "No worker is running.",
      more: "Problems are accepted and wait. Start a worker with mathllm start, or mathllm worker.",
      model: null,
    };
  }
  const { phase, residentModel, loadingModel, server, running, waitsFor, drained } = gpu;
  const why = waitsFor === null ? "" : sentence(waitsFor);
  const since = gpu.residentSince === null ? "" : `Resident for ${duration(now - gpu.residentSince)}, server ${server.state}.`;
  const model = residentModel ?? loadingModel;
  if (phase === "stopping") return { title: "The worker is stopping.", more: "What waits stays in the queue.", model };
  if (loadingModel !== null) {
    const usual = gpu.models[loadingModel].swapMs;
    const more = `${server.state === "warming" ? "Warming up" : "Starting"} for ${duration(now - server.since)}${usual === null ? "" : `; a swap to it takes about ${duration(usual)}`}.`;
    return { title: `The ${NAMES[loadingModel]} is being loaded.`, more, model };
  }
  if ((phase === "draining" || server.state === "draining") && residentModel !== null && running > 0) {
    const jobs = plural(running, "job");
    return drained
      ? { title: `The ${NAMES[residentModel]} is finishing ${jobs}, then it rests.`, more: why, model }
      : { title: `The ${NAMES[residentModel]} is finishing ${jobs} before the swap.`, more: since, model };
  }
  if (drained) return { title: "The GPU is held by an operator.", more: why, model };
  if (residentModel !== null && running > 0) {
    const work = residentModel === "student" ? `solving ${plural(running, "problem")}` : `writing ${plural(running, "answer")}`;
    const beside = gpu.coresidentModel === null ? "" : ` beside the ${NAMES[gpu.coresidentModel]}`;
    return { title: `The ${NAMES[residentModel]} is ${work}${beside}.`, more: [since, why].filter(Boolean).join(" "), model };
  }
  if (residentModel !== null)
    return { title: `The ${NAMES[residentModel]} is ready, nothing runs.`, more: [since, why].filter(Boolean).join(" "), model };
  if (server.state === "stopping" || server.state === "failed") {
    const title = gpu.lastDecision?.action === "swap" ? "The models are being swapped." : "A model server is being stopped.";
    return { title, more: server.lastError === null ? "" : sentence(server.lastError), model };
  }
  return { title: "The GPU is free.", more: why || "No model is loaded; the next problem loads one.", model };
}

/**
 * What a happening is called in the list of decisions; null for what has no place there.
 * @param {Happening} happening
 * @returns {Line | null}
 */
export function lineOf(happening) {
  const { kind, ts } = happening;
  const model = /** @type {Role | null} */ (happening.role ?? happening.to ?? null);
  const of = model === null ? "" : ` (${NAMES[model]})`;
  switch (kind) {
    case "decision": {
      const titles = { swap: `Swapping to the ${NAMES[model ?? "student"]}`, stay: "Staying", hold: "Holding on", idle: "Resting" };
      const action = /** @type {"swap" | "stay" | "hold" | "idle"} */ (happening.action);
      return { ts, tone: action, model, title: titles[action] ?? action, more: sentence(happening.reason) };
    }
    case "swap": {
      const { from, reason, drainMs, stopMs, startMs, warmupMs, totalMs } = happening;
      const parts = [
        ["drain", drainMs],
        ["stop", stopMs],
        ["start", startMs],
        ["warm-up", warmupMs],
      ].flatMap(([name, ms]) => (ms >= 50 ? [`${name} ${duration(ms)}`] : []));
      const name = NAMES[model ?? "student"];
      const title = from === null ? `The ${name} was loaded` : `The ${name} came in for the ${NAMES[/** @type {Role} */ (from)]}`;
      return {
        ts,
        tone: "swap",
        model,
        title: `${title} in ${duration(totalMs)}`,
        more: `${sentence(reason)} ${sentence(parts.join(", "))}`.trim(),
      };
    }
    case "oom": {
      const step = happening.step === null ? "no smaller setting is left" : `from now on with less: ${happening.step}`;
      return { ts, tone: "trouble", model, title: `Out of memory${of}`, more: sentence(`${step}. ${happening.evidence}`) };
    }
    case "guardrail":
      return {
        ts,
        tone: happening.action === "reset" ? "operator" : "trouble",
        model,
        title: `${ACTIONS[happening.action] ?? sentence(happening.action).slice(0, -1)}${of}`,
        more: sentence(happening.reason),
      };
    case "control":
      return {
        ts,
        tone: "operator",
        model,
        title: "An operator's command was carried out",
        more: sentence(CONTROLS[happening.done] ?? happening.done),
      };
    default:
      return null;
  }
}

/**
 * The list of decisions, newest first. A swap that was carried out tells its decision's reason itself, and that nothing changed is news
 * only while it is the newest.
 * @param {Happening[]} happenings oldest first
 * @returns {ListedLine[]}
 */
export function linesOf(happenings) {
  /** @type {ListedLine[]} */
  const lines = [];
  for (const happening of happenings) {
    const line = lineOf(happening);
    if (line === null) continue;
    const { id, kind, gpuId } = happening;
    const before = lines.findIndex((each) => each.gpuId === gpuId);
    if (lines[before]?.isPassing) lines.splice(before, 1);
    lines.unshift({ ...line, id, gpuId, isPassing: kind === "decision" && !happening.reason.startsWith("the GPU is free") });
  }
  return lines;
}

const ACTIONS = /** @type {Record<string, string>} */ ({
  "circuit-open": "Set aside for a while",
  "preparation-failed": "The model can't be had",
  "server-died": "The model server died",
  "memory-not-freed": "Memory did not come back",
  "job-set-aside": "A job was set aside",
  reset: "Back to the configured settings",
});
const CONTROLS = /** @type {Record<string, string>} */ ({
  swapTo: "The model it asked for is resident",
  release: "The GPU was emptied",
  reset: "Ladders and circuits were reset",
});

/**
 * What is not as usual, most urgent first.
 * @param {GpuView} view
 * @param {number} now epoch milliseconds
 * @returns {Notice[]}
 */
export function notices({ gpus, queues }, now) {
  const roles = /** @type {Role[]} */ (["student", "talker"]);
  /** @type {Notice[]} */
  const told = [];
  for (const gpu of gpus) {
    for (const role of roles) {
      const { circuit, ladder, capacity, error, preparation } = gpu.models[role];
      const name = `The ${NAMES[role]}`;
      if (preparation.state === "failed") {
        const until = preparation.retryAt === null ? "" : ` It is tried again in ${duration(Math.max(preparation.retryAt - now, 0))}.`;
        told.push({ title: `${name} can't be had; its jobs wait.`, more: sentence(preparation.reason ?? "") + until, urgent: true });
      }
      if (preparation.state === "preparing") {
        told.push({ title: `${name} is not on this machine yet; its jobs wait.`, more: sentence(preparation.reason ?? ""), urgent: false });
      }
      if (circuit.state === "open") {
        const until = circuit.until === null ? "" : ` It is tried again in ${duration(circuit.until - now)}.`;
        const why = sentence(error ?? "it failed again and again");
        told.push({ title: `${name} is set aside; its jobs wait.`, more: why + until, urgent: true });
      }
      if (circuit.state === "half-open") {
        told.push({ title: `${name} is on probation.`, more: "It failed; the next load or job decides.", urgent: true });
      }
      if (ladder.length > 0) {
        const less = `${plural(capacity.maxNumSeqs, "request")} at once, ${capacity.maxModelLen} tokens each, ${capacity.kvCacheBits}-bit cache`;
        const more = `It ran out of memory ${plural(ladder.length, "time")}: now ${less}. mathllm gpu reset undoes it.`;
        told.push({ title: `${name} runs with less than configured.`, more, urgent: true });
      }
    }
  }
  for (const role of roles) {
    const { paused, limitedMs, rateLimit } = queues[role];
    const name = `The ${NAMES[role]}'s queue`;
    if (paused) told.push({ title: `${name} is paused.`, more: "Its jobs wait.", urgent: false });
    else if (rateLimit !== null) {
      const limit = `${plural(rateLimit.max, "job")} each ${duration(rateLimit.durationMs)}`;
      const more = limitedMs > 0 ? `${limit}; the next may begin in ${duration(limitedMs)}.` : `${limit}.`;
      told.push({ title: `${name} has a rate limit.`, more, urgent: false });
    }
  }
  for (const { standbys } of gpus) {
    if (standbys.length === 0) continue;
    const more = "Takes over if this one dies or stops.";
    told.push({ title: `${plural(standbys.length, "worker")} standing by.`, more, urgent: false });
  }
  return told;
}

/**
 * Why a job waits.
 * @param {string | null} reason as the job's view tells it
 * @returns {string}
 */
export function waitingReason(reason) {
  if (reason === null) return "";
  if (reason === "no-worker") return "No worker is running: it is solved as soon as one is started.";
  const [code = "", detail = ""] = /^([a-z-]+): (.*)$/s.exec(reason)?.slice(1) ?? ["", reason];
  return code === "model-unavailable" ? `Its model can't be loaded at the moment: ${detail}` : sentence(detail);
}
