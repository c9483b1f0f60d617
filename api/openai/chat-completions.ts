import { type Response, Router } from "express";
import type { Logger } from "pino";
import { requestCancel } from "../../queues/cancellation.ts";
import type { Config } from "../../queues/config.ts";
import type { JobView, Usage } from "../../queues/contracts.ts";
import { type ErrorCode, MathllmError } from "../../queues/errors.ts";
import type { Queues } from "../../queues/open-queues.ts";
import { EventWriter } from "../event-writer.ts";
import { unknownJob } from "../job-lookup.ts";
import type { JobStories } from "../job-stories.ts";
import type { JobStory } from "../job-story.ts";
import { keyOf } from "../middleware/authenticate.ts";
import { jsonBody } from "../middleware/json-body.ts";
import { onlyMethods } from "../middleware/problems.ts";
import { type SubmitOptions, submit } from "../submission.ts";
import { parseChatRequest } from "./chat-request.ts";
import { Completion } from "./completion.ts";
import { envelopeOf } from "./errors.ts";

/**
 * A stream's headers wait for the first token, so that they can tell the wait, and a failure can have a status of its own; but no longer than
 * this, since somebody in between may take silence for death.
 */
const HOLD_HEADERS_MS = 10_000;

export interface ChatDeps {
  queues: Queues;
  config: Config;
  stories: JobStories;
  submitOptions: Pick<SubmitOptions, "admission" | "answers">;
  usageOf: (jobId: string, usage: Usage) => Promise<Usage>;
  log: Logger;
}

/** `POST /v1/chat/completions`: one job, whose conversation goes to the model as it is. A client that leaves cancels it. */
export function chatCompletionsRoute({ queues, config, stories, submitOptions, usageOf, log }: ChatDeps): Router {
  const router = Router();
  router.post("/", jsonBody(config), async (request, response) => {
    const chat = parseChatRequest(request.body, request.headers);
    const writer = new EventWriter(response);
    const { jobId, estimatedWaitMs } = await submit(queues, config, chat.job, { owner: keyOf(response) ?? undefined, ...submitOptions });
    response.set("X-Mathllm-Job-Id", jobId);
    response.locals.jobId = jobId;
    const end = await stories.with(jobId, async (story) => {
      const completion = new Completion(jobId, { ...chat.job, includeUsage: chat.includeUsage }, story.view!.timestamps.acceptedAt);
      if (chat.stream) return stream(story, completion, writer, response, estimatedWaitMs);
      const view = await story.ended(writer.left);
      if (view !== undefined)
        response.set(headersOf(story)).json(completion.whole(completed(view), await usageOf(jobId, view.result!.usage)));
      return view;
    });
    if (end !== undefined) return;
    await requestCancel(queues, jobId).catch((error) => log.warn({ err: error, jobId }, "an answer that nobody waits for goes on"));
    if (writer.left.aborted) return;
    if (response.headersSent) response.end();
    else throw stories.closed ? shuttingDown() : unknownJob();
  });
  router.all("/", onlyMethods("POST"));

  /** Resolves with the view when it was told to the end. */
  async function stream(
    story: JobStory,
    completion: Completion,
    writer: EventWriter,
    response: Response,
    estimatedWaitMs: number | null,
  ): Promise<JobView | undefined> {
    const open = async () => {
      if (writer.isOpen) return;
      response.set(headersOf(story));
      if (estimatedWaitMs !== null) response.set("X-Mathllm-Estimated-Wait-Ms", String(Math.round(estimatedWaitMs)));
      writer.open();
      await writer.send(completion.first());
    };
    const held = setTimeout(() => void open(), HOLD_HEADERS_MS);
    const text = new RetriedText();
    try {
      for await (const event of story.events(undefined, writer.left)) {
        if (event.event === "model") text.begin();
        if (event.event === "token") {
          const piece = text.add(event.data.text);
          if (piece === "") continue;
          if (story.view?.timestamps.pickedAt === null) await story.look();
          await open();
          await writer.send(completion.piece(piece));
        }
        if (event.event !== "result") continue;
        const view = event.data;
        if (!writer.isOpen) completed(view);
        await open();
        const error = view.error ?? text.lost;
        const last =
          error === null
            ? completion.last(view.result!, await usageOf(view.jobId, view.result!.usage))
            : `data: ${JSON.stringify({ error: envelopeOf(error).error })}\n\n`;
        await writer.send(last);
        writer.end();
        return view;
      }
      return undefined;
    } finally {
      clearTimeout(held);
    }
  }

  return router;
}

/**
 * What can be told of a text that may be begun anew, to somebody who can't take anything back: a deterministic one goes on where it was; one that
 * comes out differently is lost.
 */
class RetriedText {
  #told = "";
  #now = "";
  #differs = false;

  begin(): void {
    this.#now = "";
  }

  /** What is new of it. */
  add(text: string): string {
    this.#now += text;
    const shared = Math.min(this.#now.length, this.#told.length);
    this.#differs ||= this.#now.slice(0, shared) !== this.#told.slice(0, shared);
    if (this.#differs || this.#now.length <= this.#told.length) return "";
    const piece = this.#now.slice(this.#told.length);
    this.#told = this.#now;
    return piece;
  }

  get lost(): MathllmError | null {
    return this.#differs
      ? new MathllmError(
          "engine-failed",
          "The model was lost, and its second answer differs from what was sent of the first. Send it again.",
        )
      : null;
  }
}

/** Throws what the job failed with. */
function completed(view: JobView): NonNullable<JobView["result"]> {
  if (view.result !== null) return view.result;
  if (view.error === null) throw new Error("the job ended with neither a result nor an error");
  throw new MathllmError(view.error.code as ErrorCode, view.error.detail);
}

function shuttingDown(): MathllmError {
  return new MathllmError("shutting-down", "The server is being stopped, and the job was cancelled. Send it again.");
}

/** `X-Mathllm-Queue-Wait-Ms` from acceptance to the pick, once it was picked. */
function headersOf({ view, follows }: JobStory): Record<string, string> {
  if (view === undefined) return {};
  const { timestamps, result } = view;
  const { acceptedAt, pickedAt } = timestamps;
  return {
    "X-Mathllm-Cache": result?.cached === true ? "hit" : follows ? "coalesced" : "miss",
    ...(result?.cached === true ? { "X-Mathllm-Queue-Wait-Ms": "0" } : {}),
    ...(pickedAt === null ? {} : { "X-Mathllm-Queue-Wait-Ms": String(Math.max(pickedAt - acceptedAt, 0)) }),
  };
}
