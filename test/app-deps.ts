import { pino } from "pino";
import { AnswerLookup } from "../api/answer-lookup.ts";
import type { AppDeps } from "../api/app.ts";
import { Batches } from "../api/batches.ts";
import { GpuEventFeed } from "../api/gpu-event-feed.ts";
import type { JobCompletions } from "../api/job-completions.ts";
import { JobLookup } from "../api/job-lookup.ts";
import { KeyGate } from "../api/key-gate.ts";
import { openapiDocument } from "../api/openapi.ts";
import { Webhooks } from "../api/webhooks.ts";
import { AnswerCache } from "../queues/answer-cache.ts";
import { ApiKeys } from "../queues/api-keys.ts";
import type { Config } from "../queues/config.ts";
import { MetricCounts } from "../queues/metrics.ts";
import type { Queues } from "../queues/open-queues.ts";
import { jobStories } from "./job-stories.ts";
import type { RedisFixture } from "./redis-fixture.ts";

/** What `createApp` needs, for a test that looks into a part of it. Nothing is started. */
export function appDeps(redis: RedisFixture, queues: Queues, config: Config, completions: JobCompletions): AppDeps {
  const onError = () => {};
  const log = pino({ level: "silent" });
  const cache = new AnswerCache(redis.connect(), { ttlSeconds: 60, maxBytes: 1e6 }, onError);
  const lookup = new JobLookup(queues, config, cache);
  const counts = new MetricCounts(queues.redis, onError);
  const apiKeys = new ApiKeys(queues.redis);
  return {
    batches: new Batches({ queues, config, cache, answers: new AnswerLookup(queues.redis, cache), lookup, onError }),
    cache,
    queues,
    config,
    completions,
    stories: jobStories(redis, queues, config, completions),
    gpuEvents: new GpuEventFeed(redis.connect(), onError),
    apiKeys,
    gate: new KeyGate(apiKeys, config.host, onError),
    webhooks: new Webhooks({ redis: queues.redis, connect: () => redis.connect(), config, lookup, completions, counts, log, onError }),
    counts,
    document: openapiDocument("0"),
    log,
  };
}
