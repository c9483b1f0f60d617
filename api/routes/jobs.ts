import { type Request, type Response, Router } from "express";
import { requestCancel } from "../../queues/cancellation.ts";
import { type JobView, TERMINAL_STATUSES } from "../../queues/contracts.ts";
import { MathllmError } from "../../queues/errors.ts";
import { keys } from "../../queues/names.ts";
import type { Queues } from "../../queues/open-queues.ts";
import type { JobCompletions } from "../job-completions.ts";
import { type JobLookup, unknownJob } from "../job-lookup.ts";
import { onlyMethods } from "../middleware/problems.ts";

const MAX_WAIT_SECONDS = 60;
/** A timer may fire a millisecond before its time. */
const TIMER_SLACK_MS = 2;

const isTerminal = (view: JobView) => TERMINAL_STATUSES.includes(view.status);

/** `GET /jobs/:id[?wait=seconds]` and `DELETE /jobs/:id`. */
export function jobsRoute(queues: Queues, lookup: JobLookup, completions: JobCompletions): Router {
  const router = Router();
  const load = async (jobId: string): Promise<JobView> => {
    const view = await lookup.view(jobId);
    if (view === undefined) throw unknownJob();
    return view;
  };

  router.get("/:id", async (request, response) => {
    const waitSeconds = waitOf(request);
    response.json(await (waitSeconds === 0 ? load(request.params.id) : loadWhenEnded(request.params.id, waitSeconds, response)));
  });

  async function loadWhenEnded(jobId: string, waitSeconds: number, response: Response): Promise<JobView> {
    const enough = new AbortController();
    const waitMs = waitSeconds * 1000;
    const timers = [setTimeout(() => enough.abort(), waitMs)];
    response.on("close", () => enough.abort());
    try {
      // Past its deadline a job that no worker runs has failed, and nobody may be there to say so.
      const deadlineAt = await queues.redis.zscore(keys.deadlines, jobId);
      const untilDeadlineMs = deadlineAt === null ? Number.NaN : Number(deadlineAt) - Date.now() + TIMER_SLACK_MS;
      if (untilDeadlineMs < waitMs) timers.push(setTimeout(() => completions.notify(jobId), untilDeadlineMs));
      for (;;) {
        // A follower ends with its leader, which it may get another of meanwhile.
        const look = new AbortController();
        const signal = AbortSignal.any([enough.signal, look.signal]);
        const leaderId = await lookup.leaderOf(jobId);
        const ended = Promise.race([jobId, ...(leaderId === undefined ? [] : [leaderId])].map((id) => completions.ended(id, signal)));
        const view = await load(jobId);
        // A waiter is also woken when a running job is cancelled, which takes the worker another moment.
        if (isTerminal(view) || enough.signal.aborted || completions.closed) return view;
        await ended;
        look.abort();
      }
    } finally {
      for (const timer of timers) clearTimeout(timer);
      enough.abort();
    }
  }

  router.delete("/:id", async (request, response) => {
    const view = await load(request.params.id);
    if (isTerminal(view)) {
      response.json(view);
      return;
    }
    await requestCancel(queues, view.jobId);
    response.status(202).json(await load(view.jobId));
  });

  router.all("/:id", onlyMethods("GET", "DELETE"));
  return router;
}

function waitOf(request: Request): number {
  const { wait } = request.query;
  if (wait === undefined) return 0;
  const seconds = typeof wait === "string" && /^\d{1,2}(\.\d{1,3})?$/.test(wait) ? Number(wait) : Number.NaN;
  if (!(seconds <= MAX_WAIT_SECONDS)) {
    throw new MathllmError(
      "invalid-request",
      `wait: expected seconds from 0 to ${MAX_WAIT_SECONDS}; got ${JSON.stringify(wait).slice(0, 100)}.`,
    );
  }
  return seconds;
}
