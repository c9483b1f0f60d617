import { byId, h, setText } from "./dom.js";
import { readEvents } from "./event-stream.js";
import { count, duration, plural } from "./format.js";
import { mathsText } from "./maths-text.js";
import { problemOf, UNREACHABLE } from "./problem.js";
import { StreamedText } from "./streamed-text.js";
import { NAMES, sentence, waitingReason } from "./words.js";

/** @import { JobEvent } from "../../../queues/job-events.ts" */
/** @import { JobView } from "../../../queues/contracts.ts" */
/** @import { Role } from "../../../queues/names.ts" */
/** @import { Failure } from "./problem.js" */

/** @typedef {Extract<JobEvent, { event: "state" }>["data"]} JobState */
/** @typedef {Extract<JobEvent, { event: "position" }>["data"]} JobPosition */

const ROLES = /** @type {Role[]} */ (["student", "talker"]);
const TICK_MS = 100;

/**
 * The form, and the one job that is watched:
 *
 *   empty ──submit──► sending ──202──► watched ──result──► ended
 *                       │  ▲              └──its stream is refused──► refused
 *                       │  └──try again: same problem, same Idempotency-Key──┐
 *                       ├──refused, or the API is away──► refused ───────────┘
 *                       └──200: known already──► ended
 *
 * The watched job's id stands in the address, so that a reload goes on watching it.
 */
export class TryIt {
  #form = /** @type {HTMLFormElement} */ (byId("try-form"));
  #problem = /** @type {HTMLTextAreaElement} */ (byId("problem"));
  #texts = { student: new StreamedText(byId("text-student")), talker: new StreamedText(byId("text-talker")) };
  /** @type {JobState | null} */
  #state = null;
  /** @type {JobPosition | null} */
  #position = null;
  /** @type {string | null} */
  #jobId = null;
  #lost = false;
  #sentAt = 0;
  #stopWatching = () => {};
  #clock = 0;

  constructor() {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit("auto");
    });
    this.#problem.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#form.requestSubmit();
    });
    for (const button of document.querySelectorAll("[data-example]")) {
      button.addEventListener("click", () => {
        this.#problem.value = button.textContent ?? "";
        this.#problem.focus();
      });
    }
    byId("cancel").addEventListener("click", () => this.#cancel());
    byId("anew").addEventListener("click", () => this.#submit("refresh"));
    const watchAddressed = () => {
      const jobId = new URLSearchParams(location.hash.slice(1)).get("job");
      if (jobId === null || jobId === this.#jobId) return;
      this.#begin();
      this.#watch(jobId);
    };
    window.addEventListener("hashchange", watchAddressed);
    watchAddressed();
  }

  /** @param {"auto" | "refresh"} cache */
  #submit(cache) {
    const problem = this.#problem.value.trim();
    if (problem === "") {
      this.#problem.setCustomValidity("Write a problem first.");
      this.#problem.reportValidity();
      this.#problem.addEventListener("input", () => this.#problem.setCustomValidity(""), { once: true });
      return;
    }
    const fields = new FormData(this.#form);
    const body = { problem, explain: fields.has("explain"), priority: fields.get("priority"), cache };
    void this.#send(JSON.stringify(body), newKey());
  }

  /**
   * @param {string} body
   * @param {string} idempotencyKey the same for every attempt, so that a problem sent twice is solved once
   */
  async #send(body, idempotencyKey) {
    this.#begin();
    setText(byId("job-status"), "Sending the problem …");
    const again = () => this.#send(body, idempotencyKey);
    /** @type {Response} */
    let response;
    try {
      const headers = { "content-type": "application/json", "idempotency-key": idempotencyKey };
      response = await fetch("/solve", { method: "POST", headers, body });
    } catch {
      return this.#refuse(UNREACHABLE, again);
    }
    if (!response.ok) return this.#refuse(await problemOf(response), again);
    const answer = await response.json();
    if (response.status === 200) {
      this.#setJob(answer.jobId);
      return this.#end(answer);
    }
    this.#watch(answer.jobId);
  }

  #begin() {
    this.#stopWatching();
    this.#stopWatching = () => {};
    this.#state = null;
    this.#position = null;
    this.#jobId = null;
    this.#lost = false;
    this.#sentAt = performance.now();
    for (const role of ROLES) {
      this.#texts[role].begin();
      byId(`part-${role}`).hidden = true;
    }
    byId("job").hidden = false;
    byId("job").setAttribute("aria-busy", "true");
    for (const id of ["answer", "job-failure", "anew", "cancel"]) byId(id).hidden = true;
    byId("stages").replaceChildren();
    setText(byId("job-facts"), "");
    clearInterval(this.#clock);
    this.#clock = window.setInterval(() => setText(byId("elapsed"), duration(performance.now() - this.#sentAt)), TICK_MS);
  }

  /** @param {string} jobId */
  #setJob(jobId) {
    this.#jobId = jobId;
    history.replaceState(null, "", `#job=${encodeURIComponent(jobId)}`);
  }

  /** @param {string} jobId */
  #watch(jobId) {
    this.#setJob(jobId);
    byId("cancel").hidden = false;
    this.#say();
    this.#stopWatching = readEvents(`/jobs/${encodeURIComponent(jobId)}/events`, {
      onOpen: () => {
        this.#lost = false;
        this.#say();
      },
      onLost: () => {
        this.#lost = true;
        this.#say();
      },
      onRefused: (failure) => this.#refuse(failure, null),
      onEvent: (event, data) => this.#hear(/** @type {JobEvent} */ ({ event, data })),
    });
  }

  /** @param {JobEvent} told */
  #hear(told) {
    switch (told.event) {
      case "state":
        this.#state = told.data;
        break;
      case "position":
        this.#position = told.data;
        break;
      case "model":
        this.#texts[told.data.model].begin();
        byId(`part-${told.data.model}`).hidden = false;
        byId(`part-${told.data.model}`).classList.add("is-writing");
        return;
      case "token":
        byId(`part-${told.data.model}`).hidden = false;
        this.#texts[told.data.model].append(told.data.text);
        return;
      case "result":
        this.#end(told.data);
        return;
    }
    this.#say();
  }

  /** How the job stands, in one sentence. */
  #say() {
    if (this.#jobId === null) return;
    this.#showStages(this.#state?.stages ?? []);
    setText(byId("job-status"), this.#lost ? "The connection was lost; the job goes on. Trying again …" : this.#sentence());
  }

  #sentence() {
    const state = this.#state;
    if (state === null) return "The problem was taken.";
    const active = state.stages.find(({ status }) => status === "active");
    if (active !== undefined) return active.model === "student" ? "The Student is solving it." : "The Talker is writing.";
    const waiting = state.stages.find(({ status }) => status === "waiting" || status === "delayed");
    const whom = waiting === undefined ? "It waits" : `It waits for the ${NAMES[waiting.model]}`;
    const { position = null, estimatedStartMs = null } = this.#position ?? {};
    const place = position === null ? "" : position === 0 ? ", next in line" : `, ${plural(position, "job")} before it`;
    const start =
      estimatedStartMs === null ? "" : estimatedStartMs < 500 ? ", begins at once" : `, begins in about ${duration(estimatedStartMs)}`;
    return [`${whom}${place}${start}.`, waitingReason(state.reason)].filter(Boolean).join(" ");
  }

  /** @param {JobState["stages"]} stages */
  #showStages(stages) {
    const marks = /** @type {Record<string, string>} */ ({ completed: "✓", failed: "✕", cancelled: "✕", active: "●" });
    const text = JSON.stringify(stages.map(({ model, status }) => [model, status]));
    const list = byId("stages");
    if (list.dataset.key === text && list.childElementCount > 0) return;
    list.dataset.key = text;
    list.replaceChildren(
      ...stages.map(({ model, status }) =>
        h(
          "li",
          { class: `stage stage-${model} is-${status}` },
          h("span", { "aria-hidden": "true" }, marks[status] ?? "○"),
          ` ${NAMES[model]} `,
          h("small", {}, status === "completed" ? "done" : status),
        ),
      ),
    );
    for (const { model, status } of stages) byId(`part-${model}`).classList.toggle("is-writing", status === "active");
  }

  /** @param {JobView} view */
  #end(view) {
    this.#stop();
    this.#showStages(view.stages);
    const { result, error } = view;
    if (result !== null) {
      for (const [role, text] of /** @type {[Role, string | null][]} */ ([
        ["student", result.solution],
        ["talker", result.explanation],
      ])) {
        byId(`part-${role}`).hidden = text === null;
        if (text !== null) this.#texts[role].end(text);
      }
    }
    for (const role of ROLES) byId(`part-${role}`).classList.remove("is-writing");
    byId("answer").hidden = view.status !== "completed";
    byId("answer-text").replaceChildren(answerOf(view));
    setText(
      byId("cached"),
      result?.cached
        ? "From the cache: it was solved before."
        : result?.coalesced
          ? "Solved together with the same problem of somebody else."
          : "",
    );
    byId("anew").hidden = result?.cached !== true || this.#problem.value.trim() === "";
    setText(byId("job-status"), endOf(view));
    const failed = error ?? view.stages.find((stage) => stage.error !== null)?.error ?? null;
    if (failed !== null && view.status !== "cancelled") {
      const title = error === null ? `The explanation failed: ${failed.title}` : failed.title;
      this.#showFailure({ status: 0, code: failed.code, title, detail: failed.detail, retryAfterSeconds: null }, null);
    }
    setText(byId("job-facts"), factsOf(view, performance.now() - this.#sentAt));
  }

  #stop() {
    this.#stopWatching();
    this.#stopWatching = () => {};
    clearInterval(this.#clock);
    setText(byId("elapsed"), "");
    byId("cancel").hidden = true;
    byId("job").setAttribute("aria-busy", "false");
  }

  /**
   * @param {Failure} failure
   * @param {(() => void) | null} again
   */
  #refuse(failure, again) {
    this.#stop();
    setText(byId("job-status"), again === null ? "The job can't be watched." : "The problem was not taken.");
    this.#showFailure(failure, again);
  }

  /**
   * @param {Failure} failure
   * @param {(() => void) | null} again
   */
  #showFailure({ title, detail, retryAfterSeconds }, again) {
    const when = retryAfterSeconds === null ? "" : ` Trying again is worth it in ${duration(retryAfterSeconds * 1000)}.`;
    const button = again === null ? null : h("button", { type: "button", class: "quiet", click: again }, "Try again");
    const box = byId("job-failure");
    box.hidden = false;
    box.replaceChildren(h("strong", {}, sentence(title)), ` ${detail}${when} `, button ?? "");
  }

  async #cancel() {
    if (this.#jobId === null) return;
    setText(byId("job-status"), "Cancelling …");
    try {
      const response = await fetch(`/jobs/${encodeURIComponent(this.#jobId)}`, { method: "DELETE" });
      if (!response.ok) this.#showFailure(await problemOf(response), null);
    } catch {
      this.#showFailure({ ...UNREACHABLE, detail: "The job was not cancelled." }, () => this.#cancel());
    }
  }
}

/** @param {JobView} view */
function answerOf({ result, stages }) {
  const solutionIsCut = stages.some(({ model, truncated }) => model === "student" && truncated);
  if (result?.answer == null) return solutionIsCut ? "none: the token limit cut it (STUDENT_MAX_TOKENS)" : "none stands in the solution";
  return /[\\^_{}]/.test(result.answer) ? mathsText(`\\(${result.answer}\\)`) : result.answer;
}

/** @param {JobView} view */
function endOf({ status, result, stages }) {
  if (status === "completed") {
    if (stages.some(({ model, truncated }) => model === "student" && truncated))
      return "The token limit cut the solution before its answer.";
    const what = result?.explanation == null ? "Solved" : "Solved and explained";
    if (result?.answer == null) return `${what}, without an answer.`;
    const spoken = result.answer.replace(/\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}/g, "$1/$2");
    return spoken.includes("\\") ? `${what}.` : `${what}. The answer is ${spoken}.`;
  }
  return status === "cancelled" ? "Cancelled." : "It failed.";
}

/**
 * @param {JobView} view
 * @param {number} elapsedMs
 */
function factsOf({ jobId, result, timestamps }, elapsedMs) {
  const { acceptedAt, pickedAt, firstTokenAt, finishedAt } = timestamps;
  if (result?.cached) return `Answered in ${Math.max(Math.round(elapsedMs), 1)} ms`;
  const facts = [
    ...(pickedAt === null ? [] : [`waited ${duration(pickedAt - acceptedAt)}`]),
    ...(pickedAt === null || firstTokenAt === null ? [] : [`first token ${duration(firstTokenAt - pickedAt)} later`]),
    ...(finishedAt === null ? [] : [`${duration(finishedAt - acceptedAt)} in all`]),
    ...(result === null ? [] : [`${count(result.usage.completionTokens)} tokens written`]),
  ];
  return `${facts.join(" · ")}${facts.length === 0 ? "" : " · "}${jobId}`;
}

/** `crypto.randomUUID` is not there on a page that came over plain HTTP from another machine. */
function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
