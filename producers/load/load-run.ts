import { z } from "zod";
import { equivalent } from "../../maths/equivalence.ts";
import { MathllmError } from "../../queues/errors.ts";
import { ApiTarget } from "./api-target.ts";
import { type Dispatch, Generator } from "./generator.ts";
import { type LoadOptions, type LoadPlan, loadPlanSchema } from "./load-options.ts";
import { figuresOf } from "./measurement.ts";
import { OpenAiTarget } from "./openai-target.ts";
import { type LoadTick, Progress } from "./progress.ts";
import type { LoadRecord } from "./record.ts";
import { Recorder } from "./recorder.ts";
import { fillerText, type PlannedRequest, type PromptScale, requestSource } from "./request-plan.ts";
import { phaseAt, scheduleOf } from "./schedule.ts";
import { ServerSampler } from "./server-sampler.ts";
import { parseSlo } from "./slo.ts";
import type { LoadSummary } from "./summary.ts";
import { type Answer, failedAnswer, nowMs, type Target } from "./target.ts";
import { EventLoopProbe } from "./validity.ts";

const TICK_MS = 250;
/** What runs at an interruption may take so long to end. */
const GRACE_MS = 5000;
/** Lengths of the two prompts by which a server's tokens are counted. */
const PROBE_CHARS = [100, 400] as const;

export interface LoadControls {
  /** Aborted: no more is sent, what runs gets five seconds and is then cancelled, and the summary says `interrupted`. */
  signal?: AbortSignal;
  onTick?: (tick: LoadTick) => void;
}

/** The plan with its defaults. @throws MathllmError `invalid-configuration` that names what is wrong. */
export function parsePlan(options: Omit<LoadOptions, "url" | "outDir">): LoadPlan {
  const { url: _, apiKey: _key, outDir: _dir, resume: _resume, command: _command, ...plan } = options as LoadOptions;
  const parsed = loadPlanSchema.safeParse(plan);
  if (!parsed.success) throw new MathllmError("invalid-configuration", `Load plan: ${z.prettifyError(parsed.error)}`);
  if (parsed.data.slo !== undefined) parseSlo(parsed.data.slo);
  return parsed.data;
}

/**
 * Sends the plan's requests and resolves with what was measured. An invalid run or a missed SLO is no error: see `validity` and `slo`.
 * @throws MathllmError `invalid-configuration`: the plan is wrong, or `outDir` holds another run; `engine-failed`: nobody answers at
 *   `url`; `invalid-request`: a bank or trace can't be read, or `outDir` can't be written.
 */
export async function runLoad(options: LoadOptions, { signal, onTick }: LoadControls = {}): Promise<LoadSummary> {
  const plan = parsePlan(options);
  const { url, apiKey, outDir, command = null } = options;
  if (!URL.canParse(url)) throw new MathllmError("invalid-configuration", `Expected a URL; came "${url}".`);
  const schedule = await scheduleOf(plan);
  const recorder = await Recorder.open({ outDir, resume: options.resume ?? false, plan, url });
  const sampler = plan.target === "api" ? new ServerSampler(url, (line) => recorder.server(line), apiKey) : null;
  const runKey = `${recorder.run.runId}-${recorder.run.sessions.length}`;
  const target = openTarget(plan, { url, apiKey, runKey, sampler });
  // From the first request on: what is prepared before it delays none.
  let probe: EventLoopProbe | undefined;
  const stopping = new AbortController();
  const progress = new Progress();
  const timers: NodeJS.Timeout[] = [];
  const requests = new Requests(plan, target, stopping.signal);
  try {
    await target.check();
    if (plan.promptTokens !== undefined) recorder.run.promptScale ??= await measureScale(plan, { url, apiKey, runKey });
    const nextRequest = await requestSource(plan, recorder.run.promptScale);
    await recorder.openFiles();
    sampler?.start();
    const generator = new Generator({
      plan,
      schedule,
      nextRequest,
      isRecorded: (index) => recorder.isRecorded(index),
      fromMs: recorder.records.reduce((latest, { offsetMs }) => Math.max(latest, offsetMs), 0),
      signal: signal ?? new AbortController().signal,
      dispatch: async (dispatch) => {
        progress.begun(nowMs());
        const record = await requests.send(dispatch, recorder.session);
        if (record === null) return;
        progress.ended(record);
        try {
          recorder.record(record);
        } catch (error) {
          // What still runs would be measured for nothing.
          stopping.abort();
          throw error;
        }
      },
    });
    signal?.addEventListener("abort", () => timers.push(setTimeout(() => stopping.abort(new Error("Interrupted.")), GRACE_MS)));
    let begun: Promise<void> | undefined;
    const { toMs } = await generator.send((times) => {
      probe = new EventLoopProbe();
      begun = recorder.beginSession(times);
      // Told of below; until then nobody waits for it.
      begun.catch(() => {});
      const tick = () => {
        const now = nowMs();
        const elapsedMs = now - times.baseAt;
        onTick?.({
          elapsedS: elapsedMs / 1000,
          totalS: schedule.endMs === null ? null : schedule.endMs / 1000,
          planned: schedule.count,
          phase: phaseAt(elapsedMs, schedule),
          sent: progress.sent,
          completed: progress.completed,
          failed: progress.failed,
          inFlight: generator.inFlight,
          ...progress.rates(now, elapsedMs - times.fromMs),
          p50Ms: progress.e2e.count === 0 ? null : progress.e2e.percentileMs(50),
          p95Ms: progress.e2e.count === 0 ? null : progress.e2e.percentileMs(95),
          residentModel: sampler?.latest?.residentModel ?? null,
          swaps: sampler?.swaps ?? null,
        });
      };
      timers.push(setInterval(tick, TICK_MS));
    });
    await begun;
    await generator.settled();
    if (begun !== undefined) await recorder.endSession(toMs);
    const eventLoopDelayMs = probe?.stop() ?? { p50: 0, p99: 0, max: 0 };
    await sampler?.stop();
    await recorder.close();
    const { records, run } = recorder;
    const summary: LoadSummary = {
      schemaVersion: 1,
      runId: run.runId,
      fingerprint: run.fingerprint,
      command,
      url,
      plan: { ...plan },
      startedAt: run.sessions[0]?.startedAt ?? Date.now(),
      finishedAt: Date.now(),
      sessions: run.sessions.length,
      interrupted: signal?.aborted ?? false,
      ...figuresOf({
        plan,
        schedule,
        records,
        sessions: run.sessions,
        cutOff: requests.cutOff,
        eventLoopDelayMs,
        peakInFlight: generator.peakInFlight,
      }),
      server: sampler?.summary() ?? null,
      files: recorder.files,
    };
    await recorder.writeSummary(summary);
    return summary;
  } finally {
    for (const timer of timers) clearInterval(timer);
    stopping.abort();
    probe?.stop();
    await sampler?.stop();
    await target.close();
    await recorder.close();
  }
}

interface TargetOptions {
  url: string;
  apiKey: string | undefined;
  runKey: string;
  sampler?: ServerSampler | null;
}

function openTarget(plan: LoadPlan, { url, apiKey, runKey, sampler = null }: TargetOptions): Target {
  return plan.target === "api" ? new ApiTarget(url, plan, { runKey, sampler, apiKey }) : new OpenAiTarget(url, plan, apiKey);
}

/** How many tokens the server counts for prompts of two lengths. */
async function measureScale(plan: LoadPlan, options: TargetOptions): Promise<PromptScale> {
  const target = openTarget({ ...plan, maxTokens: 1, cache: "off", samples: 1 }, options);
  try {
    const tokens: number[] = [];
    for (const [i, chars] of PROBE_CHARS.entries()) {
      const problem = fillerText(chars, "scale");
      const kind = (plan.mix.student ?? 0) + (plan.mix.explain ?? 0) > 0 ? "student" : "talker";
      const request: PlannedRequest = {
        index: -1 - i,
        kind,
        priorityClass: "interactive",
        problemId: "scale",
        problem,
        expected: null,
        seed: undefined,
      };
      const { status, tokensIn, errorClass, errorDetail } = await target.send(request, AbortSignal.timeout(plan.timeoutS * 1000));
      if (status !== "completed" || tokensIn === null) {
        throw new MathllmError(
          "engine-failed",
          `Expected the prompt tokens of a request of ${chars} characters; ${errorClass ?? "none were told"} ${errorDetail ?? ""}`,
        );
      }
      tokens.push(tokensIn);
    }
    const charsPerToken = (PROBE_CHARS[1] - PROBE_CHARS[0]) / Math.max(tokens[1]! - tokens[0]!, 1);
    return { charsPerToken, baseTokens: tokens[0]! - PROBE_CHARS[0] / charsPerToken };
  } finally {
    await target.close();
  }
}

/** Sends single requests and makes their records; each is bounded in time. */
class Requests {
  readonly #plan: LoadPlan;
  readonly #target: Target;
  readonly #running = new Set<AbortController>();
  cutOff = 0;

  constructor(plan: LoadPlan, target: Target, stopping: AbortSignal) {
    this.#plan = plan;
    this.#target = target;
    stopping.addEventListener("abort", () => {
      for (const controller of this.#running) controller.abort(CUT_OFF);
    });
  }

  /** null: it was cut off by an interruption, and has no record. */
  async send({ request, phase, step, offsetMs, scheduledAt }: Dispatch, session: number): Promise<LoadRecord | null> {
    const controller = new AbortController();
    this.#running.add(controller);
    const { timeoutS } = this.#plan;
    const timer = setTimeout(() => controller.abort(TIMED_OUT), timeoutS * 1000);
    const sentAt = nowMs();
    let answer: Answer;
    try {
      answer = await this.#target.send(request, controller.signal);
    } catch (error) {
      if (error === CUT_OFF) {
        this.cutOff++;
        return null;
      }
      if (error !== TIMED_OUT) throw error;
      answer = failedAnswer("timeout", `No answer within ${timeoutS} s.`);
    } finally {
      clearTimeout(timer);
      this.#running.delete(controller);
    }
    const { firstTokenAt, finishedAt, answer: text, ...rest } = answer;
    return {
      index: request.index,
      session,
      kind: request.kind,
      priorityClass: request.priorityClass,
      phase,
      step,
      problemId: request.problemId,
      offsetMs,
      scheduledAt,
      sentAt,
      dispatchDelayMs: sentAt - scheduledAt,
      firstTokenAt,
      finishedAt,
      e2eMs: finishedAt - scheduledAt,
      ttftMs: firstTokenAt === null ? null : firstTokenAt - scheduledAt,
      verdict: answer.status === "completed" && request.expected !== null ? equivalent(request.expected, text).verdict : null,
      ...rest,
    };
  }
}

const CUT_OFF = new Error("Interrupted.");
const TIMED_OUT = new Error("Timed out.");
