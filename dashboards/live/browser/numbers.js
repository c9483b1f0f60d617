import { byId, h, setText } from "./dom.js";
import { bytes, count, duration, percent, plural } from "./format.js";
import { waitQuantile } from "./history.js";
import { NAMES } from "./words.js";

/** @import { GpuView } from "../../../queues/gpu-view.ts" */
/** @import { PriorityClass, Role } from "../../../queues/names.ts" */
/** @import { GpuHistory } from "./history.js" */

const CLASSES = /** @type {PriorityClass[]} */ (["interactive", "normal", "batch"]);
const ROLES = /** @type {Role[]} */ (["student", "talker"]);
/** Throughput is of the last minute. */
const RATE_MS = 60_000;
const NOTHING = "–";

/**
 * @param {GpuView} view
 * @param {GpuHistory} history
 * @param {number} now
 * @param {number} spanMs
 */
export function showNumbers(view, history, now, spanMs) {
  const samples = history.samplesSince(now - spanMs);
  showThroughput(history, samples, now);
  for (const name of CLASSES) {
    const waits = samples.map((sample) => sample.waits[name]);
    const waiting = ROLES.reduce((sum, role) => sum + view.queues[role].waiting[name], 0);
    setText(byId(`waiting-${name}`), count(waiting));
    setText(
      byId(`expected-${name}`),
      known(view.queues.student.estimatedWaitMs[name], (ms) => (ms < 50 ? "at once" : duration(ms))),
    );
    setText(byId(`p50-${name}`), known(waitQuantile(waits, 0.5), duration));
    setText(byId(`p95-${name}`), known(waitQuantile(waits, 0.95), duration));
  }
  showCache(view);
  showModels(view, now);
}

/**
 * @param {GpuHistory} history
 * @param {ReturnType<GpuHistory["samplesSince"]>} samples
 * @param {number} now
 */
function showThroughput(history, samples, now) {
  const lately = history.samplesSince(now - RATE_MS);
  const total = (/** @type {typeof samples} */ of, /** @type {"completed" | "failed"} */ what) =>
    of.reduce((sum, { ended }) => sum + ended.student[what] + ended.talker[what], 0);
  const observedS = Math.max((now - (lately[0]?.ts ?? now)) / 1000, 1);
  setText(byId("stages-per-minute"), lately.length === 0 ? NOTHING : count(Math.round((total(lately, "completed") * 60) / observedS)));
  const tokens = lately.reduce((sum, { tokensPerSecond }) => sum + (tokensPerSecond ?? 0), 0);
  const isKnown = lately.some(({ tokensPerSecond }) => tokensPerSecond !== null);
  setText(byId("tokens-per-second"), isKnown ? count(Math.round(tokens / observedS)) : NOTHING);
  const failed = total(samples, "failed");
  setText(
    byId("throughput-more"),
    `${plural(total(samples, "completed"), "answer")} written, ${failed === 0 ? "none" : count(failed)} failed`,
  );
}

/** @param {GpuView} view */
function showCache({ cache }) {
  if (cache === undefined) return;
  const { hit, miss, coalesced, entries, bytes: size, maxBytes } = cache;
  const asked = hit + miss + coalesced;
  setText(byId("cache-share"), asked === 0 ? NOTHING : percent((hit + coalesced) / asked));
  setText(
    byId("cache-more"),
    asked === 0 ? "Nothing was asked yet" : `${count(hit)} known, ${count(coalesced)} shared, of ${count(asked)} asked`,
  );
  setText(byId("cache-size"), `${plural(entries, "answer")} kept, ${bytes(size)} of ${bytes(maxBytes)}`);
}

/**
 * @param {GpuView} view
 * @param {number} now
 */
function showModels({ gpus, queues }, now) {
  const several = gpus.length > 1;
  byId("models-tile").hidden = gpus.length === 0;
  rebuild(
    byId("memory"),
    gpus.flatMap(({ gpuId, vram }) =>
      vram === null ? [] : [{ key: several ? gpuId : "", value: `${bytes(vram.usedBytes)} of ${bytes(vram.totalBytes)}` }],
    ),
  );
  rebuild(
    byId("swaps"),
    gpus.map(({ gpuId, swaps, lastSwap, startedAt }) => {
      const last = lastSwap === null ? "" : `, the last load took ${duration(lastSwap.totalMs)}`;
      return { key: several ? gpuId : "", value: `${plural(swaps, "swap")} in ${duration(now - startedAt)}${last}` };
    }),
  );
  const rows = gpus.flatMap((gpu) =>
    ROLES.map((role) => {
      const { model, capacity, contextTokens, serviceMs, swapMs, arrivalsPerMs } = gpu.models[role];
      const cells = [
        plural(several ? (gpu.residentModel === role ? gpu.running : 0) : queues[role].active, "job"),
        known(serviceMs, duration),
        known(swapMs, duration),
        count(arrivalsPerMs * 60_000),
        `${capacity.maxNumSeqs} × ${count(Math.min(capacity.maxModelLen, contextTokens ?? capacity.maxModelLen))}`,
      ];
      return { role, name: several ? `${NAMES[role]}, ${gpu.gpuId}` : NAMES[role], model: model.split("/").at(-1) ?? model, cells };
    }),
  );
  const body = byId("models");
  const key = JSON.stringify(rows);
  if (body.dataset.key === key) return;
  body.dataset.key = key;
  // On a small screen each cell tells its column itself.
  const columns = [...(body.parentElement?.querySelectorAll("thead th") ?? [])].slice(1).map(({ textContent }) => textContent);
  body.replaceChildren(
    ...rows.map(({ role, name, model, cells }) =>
      h(
        "tr",
        {},
        h(
          "th",
          { scope: "row" },
          h("span", { class: `dot dot-${role}`, "aria-hidden": "true" }),
          name,
          h("small", { class: "model-file" }, model),
        ),
        ...cells.map((cell, i) => h("td", { "data-name": columns[i] ?? "" }, cell)),
      ),
    ),
  );
}

/**
 * @param {HTMLElement} list
 * @param {{ key: string, value: string }[]} lines
 */
function rebuild(list, lines) {
  const key = JSON.stringify(lines);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(...lines.map(({ key: name, value }) => h("p", {}, name === "" ? null : h("b", {}, `${name} `), value)));
}

/**
 * @param {number | null} value
 * @param {(value: number) => string} format
 */
function known(value, format) {
  return value === null ? NOTHING : format(value);
}
