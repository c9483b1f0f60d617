import { setTimeout as delay } from "node:timers/promises";
import { type KeptSample, newestGpuSampleId, readGpuSamples } from "../queues/gpu-samples.ts";
import type { Queues } from "../queues/open-queues.ts";

const EVERY_MS = 1000;

/** What stands now, as JSON, and the samples since the call before. */
type OnState = (view: string, samples: KeptSample[]) => void;

/** Looks at the GPUs once a second for all listeners of this process together, and not at all while there are none. */
export class GpuStateFeed {
  readonly #queues: Queues;
  readonly #load: () => Promise<object>;
  readonly #listeners = new Set<OnState>();
  #looking = false;

  constructor(queues: Queues, load: () => Promise<object>) {
    this.#queues = queues;
    this.#load = load;
  }

  /** Returns the end of it. Every sample is told that comes after this call. */
  listen(onState: OnState): () => void {
    this.#listeners.add(onState);
    if (!this.#looking) {
      this.#looking = true;
      void this.#look();
    }
    return () => this.#listeners.delete(onState);
  }

  async #look(): Promise<void> {
    const { redis } = this.#queues;
    let afterId: string | undefined;
    while (this.#listeners.size > 0) {
      try {
        afterId ??= await newestGpuSampleId(redis);
        await delay(EVERY_MS, undefined, { ref: false });
        const [view, samples] = await Promise.all([this.#load(), readGpuSamples(redis, { afterId })]);
        afterId = samples.at(-1)?.id ?? afterId;
        const text = JSON.stringify(view);
        for (const listener of this.#listeners) listener(text, samples);
      } catch {
        // Redis is away: the listeners keep what they know, and its connection says so in the log.
        await delay(EVERY_MS, undefined, { ref: false });
      }
    }
    this.#looking = false;
  }
}
