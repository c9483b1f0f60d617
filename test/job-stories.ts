import type { JobCompletions } from "../api/job-completions.ts";
import { JobLookup } from "../api/job-lookup.ts";
import { JobStories } from "../api/job-stories.ts";
import { TokenFeed } from "../api/token-feed.ts";
import { AnswerCache } from "../queues/answer-cache.ts";
import type { Config } from "../queues/config.ts";
import type { Queues } from "../queues/open-queues.ts";
import type { RedisFixture } from "./redis-fixture.ts";

/** The stories of an app that a test puts together itself. */
export function jobStories(redis: RedisFixture, queues: Queues, config: Config, completions: JobCompletions): JobStories {
  const onError = () => {};
  const cache = new AnswerCache(redis.connect(), { ttlSeconds: 60, maxBytes: 1e6 }, onError);
  const tokens = new TokenFeed(redis.connect(), redis.connect(), onError);
  return new JobStories({ queues, lookup: new JobLookup(queues, config, cache), completions, tokens, onError });
}
