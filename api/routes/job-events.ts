import { type Response, Router } from "express";
import { MathllmError } from "../../queues/errors.ts";
import { END_ID, type JobEvent, LAST_EVENT_ID } from "../../queues/job-events.ts";
import { EventWriter } from "../event-writer.ts";
import { unknownJob } from "../job-lookup.ts";
import type { JobStories } from "../job-stories.ts";
import type { JobStory } from "../job-story.ts";
import { onlyMethods } from "../middleware/problems.ts";

/** `GET /jobs/:id/events`: the job's story as server-sent events, see `queues/job-events.ts`. */
export function jobEventsRoute(stories: JobStories): Router {
  const router = Router();
  // Otherwise it would be answered as a stream without a body, and never end.
  router.head("/:id/events", (_request, response) => {
    response.type("text/event-stream").end();
  });
  router.get("/:id/events", async (request, response) => {
    const lastId = request.get("last-event-id");
    if (lastId !== undefined && !LAST_EVENT_ID.test(lastId)) {
      throw new MathllmError(
        "invalid-request",
        `Last-Event-ID: expected the id of an event of this stream; got ${JSON.stringify(lastId.slice(0, 100))}.`,
      );
    }
    const found = await stories.with(request.params.id, async (story) => {
      if (lastId === END_ID) response.status(204).end();
      else await tell(story, lastId, response);
      return true;
    });
    if (found === undefined) throw unknownJob();
  });
  router.all("/:id/events", onlyMethods("GET"));
  return router;
}

async function tell(story: JobStory, lastId: string | undefined, response: Response): Promise<void> {
  const writer = new EventWriter(response);
  writer.open();
  for await (const event of story.events(lastId, writer.left)) await writer.send(textOf(event));
  writer.end();
}

/** Each event is written once for all its listeners. */
const texts = new WeakMap<JobEvent, string>();

function textOf(event: JobEvent): string {
  const known = texts.get(event);
  if (known !== undefined) return known;
  const id = "id" in event && event.id !== undefined ? `id: ${event.id}\n` : "";
  const text = `${id}event: ${event.event}\ndata: ${JSON.stringify(event.data)}\n\n`;
  texts.set(event, text);
  return text;
}
