import { expect, test } from "vitest";
import { JobStory, type StorySources } from "../../api/job-story.ts";
import type { JobView } from "../../queues/contracts.ts";
import { newJobId } from "../../queues/names.ts";

test("a story that is closed while it is looked at, and Redis goes, listens to nothing any more", async () => {
  const listening = new Set<object>();
  const closed = Promise.withResolvers<void>();
  const from = {
    completions: {
      listen: () => {
        const listener = {};
        listening.add(listener);
        return () => listening.delete(listener);
      },
    },
    lookup: { view: async () => ({ status: "active", stages: [] }) as unknown as JobView, leaderOf: () => closed.promise },
    queues: { talker: { getJob: () => Promise.reject(new Error("gone")) } },
  } as unknown as StorySources;
  const story = new JobStory(newJobId("explain"), from);
  const looking = story.look();
  await expect.poll(() => listening.size).toBe(1);
  story.close();
  closed.resolve();
  await expect(looking).rejects.toThrow("gone");
  expect(listening.size).toBe(0);
});
