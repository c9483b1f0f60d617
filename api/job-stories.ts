import { JobStory, type StorySources } from "./job-story.ts";

/** Every story is looked at so often even if nothing is heard of it, for its position and its deadline: so many of them a pass. */
const PASS_MS = 1000;
const LOOKS_A_PASS = 100;

/** The stories that somebody of this process listens to, one for each job. */
export class JobStories {
  readonly #from: StorySources;
  readonly #open = new Map<string, { story: JobStory; holders: number }>();
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(from: StorySources) {
    this.#from = from;
  }

  /** Runs `use` with the job's story; undefined when the job is unknown or expired. Rejects when Redis can't be reached. */
  async with<T>(jobId: string, use: (story: JobStory) => Promise<T>): Promise<T | undefined> {
    const held = this.#open.get(jobId) ?? { story: new JobStory(jobId, this.#from), holders: 0 };
    this.#open.set(jobId, held);
    held.holders++;
    try {
      if (held.story.view === undefined) await held.story.look();
      if (this.#closed) held.story.close();
      this.#passSoon();
      return held.story.view === undefined ? undefined : await use(held.story);
    } finally {
      held.holders--;
      if (held.holders === 0) {
        held.story.close();
        this.#open.delete(jobId);
      }
    }
  }

  /** How many jobs are listened to. */
  get size(): number {
    return this.#open.size;
  }

  /** No API goes on. */
  get closed(): boolean {
    return this.#closed;
  }

  /** Ends every story where it stands. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    for (const { story } of this.#open.values()) story.close();
    this.#from.tokens.close();
  }

  #passSoon(): void {
    if (!this.#closed) this.#timer ??= setTimeout(() => void this.#pass(), PASS_MS).unref();
  }

  async #pass(): Promise<void> {
    const next = [...this.#open].filter(([, { story }]) => !story.finished).slice(0, LOOKS_A_PASS);
    for (const [jobId, held] of next) {
      // To the end of the line.
      this.#open.delete(jobId);
      this.#open.set(jobId, held);
    }
    await Promise.all(next.map(([, { story }]) => story.look().catch(this.#from.onError)));
    this.#timer = undefined;
    if (this.#open.size > 0) this.#passSoon();
  }
}
