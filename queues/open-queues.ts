import { FlowProducer, Queue } from "bullmq";
import { type Backlog, backlogReader } from "./backlog.ts";
import type { Redis } from "./connection.ts";
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
