import { type Job, Worker } from "bullmq";
import type { JobData, StageResult } from "../queues/contracts.ts";
import { clientJobId, KEY_PREFIX, ROLES, type Role } from "../queues/names.ts";
import { TokenStreamWriter } from "../queues/token-stream.ts";
import type { RedisFixture } from "./redis-fixture.ts";
import { stageResult } from "./stand-in-worker.ts";

/** A stage that was picked and does what the test says. */
export class ScriptedStage {
  readonly job: Job<JobData, StageResult>;
  readonly #redis: RedisFixture["connect"] extends () => infer R ? R : never;
  readonly #end = Promise.withResolvers<StageResult>();
  #text = "";

  constructor(job: Job<JobData, StageResult>, redis: ReturnType<RedisFixture["connect"]>) {
    this.job = job;
    this.#redis = redis;
  }

  get ended(): Promise<StageResult> {
    return this.#end.promise;
  }

  /** Writes one chunk. */
  write(text: string, attempt = this.job.attemptsStarted): void {
    const of = { role: this.job.queueName as Role, attempt, sample: null };
    const writer = new TokenStreamWriter(this.#redis, clientJobId(this.job.id!), of, 60, () => {});
    writer.write(text);
    writer.end();
    this.#text += text;
  }

  /** What was written is the whole text. */
  complete(result: Partial<StageResult> = {}): void {
    this.#end.resolve({ ...stageResult(this.job.queueName as Role), text: this.#text, ...result });
  }

  fail(error: Error): void {
    this.#end.reject(error);
  }
}

/** Takes the jobs of both queues, as many at once as there are, and leaves the rest to the test. */
export class ScriptedWorkers {
  readonly #workers: Worker[];
  readonly #picked = new Map<string, PromiseWithResolvers<ScriptedStage>>();
  /** What every stage does by itself. */
  script: (stage: ScriptedStage) => void = () => {};

  constructor(redis: RedisFixture, concurrency = 100) {
    const connection = redis.connect();
    this.#workers = ROLES.map(
      (role) =>
        new Worker<JobData, StageResult>(
          role,
          (job) => {
            const stage = new ScriptedStage(job, connection);
            this.#of(`${job.id} ${job.attemptsStarted}`).resolve(stage);
            this.script(stage);
            return stage.ended;
          },
          { connection, prefix: KEY_PREFIX, concurrency, drainDelay: 1 },
        ),
    );
  }

  #of(name: string): PromiseWithResolvers<ScriptedStage> {
    const picked = this.#picked.get(name) ?? Promise.withResolvers<ScriptedStage>();
    this.#picked.set(name, picked);
    return picked;
  }

  /** Resolves when that stage is begun for that time. */
  picked(stageId: string, attempt = 1): Promise<ScriptedStage> {
    return this.#of(`${stageId} ${attempt}`).promise;
  }

  pause(): Promise<unknown> {
    return Promise.all(this.#workers.map((worker) => worker.pause(true)));
  }

  resume(): void {
    for (const worker of this.#workers) worker.resume();
  }

  async close(): Promise<void> {
    await Promise.all(this.#workers.map((worker) => worker.close(true)));
  }
}
