import { byId, h, setText } from "./dom.js";
import { readEvents } from "./event-stream.js";
import { clock } from "./format.js";
import { GpuHistory } from "./history.js";
import { showNumbers } from "./numbers.js";
import { Timeline } from "./timeline.js";
import { TryIt } from "./try-it.js";
import { headline, lineOf, linesOf, NAMES, notices } from "./words.js";

/** @import { GpuView } from "../../../queues/gpu-view.ts" */
/** @import { Failure } from "./problem.js" */
/** @import { Gpu } from "./words.js" */

const HISTORY_ADDRESS = "/gpu/history?minutes=10";
const EVENTS_ADDRESS = "/gpu/events?samples=true";
const TICK_MS = 1000;
/** What is told meanwhile is drawn together. */
const SOON_MS = 200;
/** A page that nobody sees listens no more. */
const HIDDEN_MS = 30_000;
const SHOWN_LINES = 8;
const MOST_LINES = 200;

const history = new GpuHistory();
const timeline = new Timeline();
/** @type {GpuView | null} */
let view = null;
/** Of the API's clock before this browser's. */
let clockOffsetMs = 0;
let spanMs = 10 * 60_000;
let allLines = false;
/** @type {(() => void) | null} */
let stopListening = listen();
let hiddenTimer = 0;

new TryIt();
setInterval(show, TICK_MS);
for (const choice of document.querySelectorAll("input[name=span]")) {
  choice.addEventListener("change", () => {
    spanMs = Number(/** @type {HTMLInputElement} */ (choice).value) * 60_000;
    show();
  });
}
byId("more-lines").addEventListener("click", () => {
  allLines = !allLines;
  show();
});
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiddenTimer);
  if (document.hidden) hiddenTimer = window.setTimeout(stop, HIDDEN_MS);
  else stopListening ??= listen();
});

function stop() {
  stopListening?.();
  stopListening = null;
}

/** Live first, then the last minutes: so none falls between. */
function listen() {
  let askedForHistory = false;
  return readEvents(EVENTS_ADDRESS, {
    onOpen: () => {
      askedForHistory = false;
      connection("live", "Live");
    },
    onLost: () => connection("lost", "The API is away. What is shown is old; trying again …"),
    onRefused: refused,
    onEvent: (name, data, id) => {
      if (name === "state") view = data;
      else if (name === "sample") history.addSamples([data]);
      else if (id !== undefined) history.addHappenings([{ id, kind: name, ...data }]);
      if (!askedForHistory) {
        askedForHistory = true;
        void readHistory();
      }
      soon();
    },
  });
}

async function readHistory() {
  try {
    const response = await fetch(HISTORY_ADDRESS, { cache: "no-store" });
    if (!response.ok) return;
    const { now, samples, events } = await response.json();
    clockOffsetMs = now - Date.now();
    history.addSamples(samples);
    history.addHappenings(events);
    soon();
  } catch {
    // The live connection breaks as well, says so, and asks again.
  }
}

/** @param {Failure} failure */
function refused({ code, title, detail }) {
  const said = code === "forbidden" ? "Your API key may not see the GPU" : title;
  connection("lost", said);
  setText(byId("headline"), `${said}.`);
  setText(byId("headline-more"), detail);
  // Problems can still be tried.
  document.body.classList.add("is-refused");
}

let isDue = false;
function soon() {
  if (isDue) return;
  isDue = true;
  setTimeout(() => {
    isDue = false;
    show();
  }, SOON_MS);
}

function show() {
  if (view === null || document.hidden) return;
  const now = Date.now() + clockOffsetMs;
  showNow(view, now);
  showNotices(view, now);
  timeline.draw(
    history,
    view.gpus.map(({ gpuId }) => gpuId),
    now,
    spanMs,
  );
  showNumbers(view, history, now, spanMs);
  showLines();
}

/**
 * @param {GpuView} view
 * @param {number} now
 */
function showNow({ gpus, queues }, now) {
  const [first, ...others] = gpus;
  const { title, more, model } = headline(first, now);
  const element = byId("headline");
  setText(element, title);
  element.className = model === null ? "" : `is-${model}`;
  const { student, talker } = queues;
  const waits = [
    ...(student.depth > 0 ? [`${student.depth} for the Student`] : []),
    ...(talker.depth > 0 ? [`${talker.depth} for the Talker`] : []),
  ];
  const waiting = waits.length === 0 ? "Nothing waits." : `Waiting: ${waits.join(", ")}.`;
  setText(byId("headline-more"), [more, waiting].filter(Boolean).join(" "));
  setText(byId("headline-why"), whyOf(first));
  const key = JSON.stringify(others.map((gpu) => headline(gpu, now)));
  const list = byId("other-gpus");
  if (list.dataset.key !== key) {
    list.dataset.key = key;
    list.replaceChildren(
      ...others.map((gpu) => {
        const said = headline(gpu, now);
        return h(
          "li",
          {},
          h("b", {}, gpu.gpuId),
          " ",
          h("span", { class: said.model === null ? "" : `is-${said.model}` }, said.title),
          ` ${said.more}`,
        );
      }),
    );
  }
  const resident = first?.residentModel ?? null;
  document.title = `${resident === null ? "no model" : NAMES[resident]} · mathllm`;
}

/** @param {Gpu | undefined} gpu */
function whyOf(gpu) {
  if (gpu?.lastDecision == null) return "";
  const line = lineOf({ id: "", kind: "decision", gpuId: gpu.gpuId, ts: gpu.lastDecision.at, ...gpu.lastDecision });
  return line === null ? "" : `Why: ${line.more}`;
}

/**
 * @param {GpuView} view
 * @param {number} now
 */
function showNotices(view, now) {
  const all = notices(view, now);
  byId("notices").hidden = all.length === 0;
  byId("notices").classList.toggle(
    "is-urgent",
    all.some(({ urgent }) => urgent),
  );
  const list = byId("notice-list");
  const key = JSON.stringify(all);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(...all.map(({ title, more }) => h("li", {}, h("strong", {}, title), ` ${more}`)));
}

function showLines() {
  const lines = linesOf(history.happenings);
  const several = new Set(lines.map(({ gpuId }) => gpuId)).size > 1;
  const shown = lines.slice(0, allLines ? MOST_LINES : SHOWN_LINES);
  const button = byId("more-lines");
  button.hidden = lines.length <= SHOWN_LINES;
  byId("no-lines").hidden = lines.length > 0;
  setText(button, allLines ? "Show fewer" : "Show more");
  const list = byId("lines");
  const key = shown.map(({ id }) => id).join();
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(
    ...shown.map(({ ts, tone, model, title, more, gpuId }) =>
      h(
        "li",
        { class: `line-${tone}${model === null ? "" : ` of-${model}`}` },
        h("time", { datetime: new Date(ts).toISOString() }, clock(ts)),
        h("div", {}, h("strong", {}, title), several ? h("small", {}, ` ${gpuId}`) : null, more === "" ? null : h("p", {}, more)),
      ),
    ),
  );
}

/**
 * @param {"live" | "lost"} state
 * @param {string} text
 */
function connection(state, text) {
  const element = byId("connection");
  element.className = `connection is-${state}`;
  setText(element, text);
  document.body.classList.toggle("is-stale", state === "lost");
}
