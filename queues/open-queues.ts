import { FlowProducer, Queue } from "bullmq";
import { type Backlog, backlogReader } from "./backlog.ts";
import { type Redis, waitForRedis } from "./connection.ts";
import type { JobData, StageResult } from "./contracts.ts";
import { KEY_PREFIX, ROLES, type Role } from "./names.ts";

export type MathsQueue = Queue<JobData, StageResult, string>;

/** A producer's handles on both queues, over one connection that the caller owns and closes after `close()`. */
export interface Queues {
  redis: Redis;
  student: MathsQueue;
  talker: MathsQueue;
  flows: FlowProducer;
  /** What stands in both queues, in one look. */
  readBacklog: (now: number) => Promise<Backlog>;
  close(): Promise<void>;
}

export function openQueues(redis: Redis, onError: (error: Error) => void): Queues {
  const open = (role: Role): MathsQueue => {
    const queue: MathsQueue = new Queue(role, { connection: redis, prefix: KEY_PREFIX, skipWaitingForReady: true, skipVersionCheck: true });
    queue.on("error", onError);
    return queue;
  };
  const [student, talker] = ROLES.map(open) as [MathsQueue, MathsQueue];
  const flows = new FlowProducer({ connection: redis, prefix: KEY_PREFIX, skipWaitingForReady: true });
  flows.on("error", onError);
  return {
    redis,
    student,
    talker,
    flows,
    readBacklog: backlogReader(redis),
    close: async () => {
      await Promise.all([student.close(), talker.close(), flows.close()]);
    },
  };
}

/**
 * The same, when each handle has got an answer from Redis. BullMQ asks for the server's version once, as a handle is made, and a handle
 * whose question was lost fails for as long as it lives: so it is made anew. Throws `redis-unavailable` when Redis does not come back
 * within `timeoutMs` of being lost.
 */
export async function openAnsweredQueues(redis: Redis, onError: (error: Error) => void, timeoutMs: number): Promise<Queues> {
  for (;;) {
    const queues = openQueues(redis, onError);
    const { student, talker, flows } = queues;
    const answers = await Promise.allSettled([student.waitUntilReady(), talker.waitUntilReady(), flows.waitUntilReady()]);
    if (answers.every(({ status }) => status === "fulfilled")) return queues;
    await queues.close();
    await waitForRedis(redis, timeoutMs);
  }
}
