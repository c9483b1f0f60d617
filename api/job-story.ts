import type { JobView } from "../queues/contracts.ts";
import { TERMINAL_STATUSES } from "../queues/contracts.ts";
import { END_ID, JOB_EVENTS, type JobEvent } from "../queues/job-events.ts";
import { cacheEntryOf, isExplainId } from "../queues/names.ts";
import type { Queues } from "../queues/open-queues.ts";
import type { JobChange, JobCompletions } from "./job-completions.ts";
import type { JobLookup } from "./job-lookup.ts";
import { comesAfter, JobText } from "./job-text.ts";
import type { TokenFeed, TokenFollower } from "./token-feed.ts";

export interface StorySources {
  queues: Queues;
  lookup: JobLookup;
  completions: JobCompletions;
  tokens: TokenFeed;
  onError: (error: Error) => void;
}

type StateEvent = Extract<JobEvent, { event: "state" }>;
type PositionEvent = Extract<JobEvent, { event: "position" }>;

/**
 * One job as all its listeners in this process see it: looked at when something happens to it, its text read once. A listener only holds how far
 * it has come, so a slow one costs nothing.
 *
 *   waiting ──picked──► its tokens are read ──terminal──► the rest of them ──► finished
 *
 * A follower's text is its leader's; when it gets another leader it is told anew.
 */
export class JobStory {
  readonly jobId: string;
  readonly #from: StorySources;
  readonly #waiters = new Set<() => void>();
  #view: JobView | undefined;
  #state: StateEvent | undefined;
  #position: PositionEvent | undefined;
  #version = 0;
  #looking: Promise<void> | undefined;
  #again = false;
  /** Somebody wants the text, not only the end. */
  #wantsText = false;
  #textIsWhole = false;
  #text = new JobText();
  #sourceId: string | undefined;
  #follower: TokenFollower | undefined;
  #unlisten: (() => void)[] = [];
  #ended = false;
  #closed = false;

  constructor(jobId: string, from: StorySources) {
    this.jobId = jobId;
    this.#from = from;
  }

  /** undefined: unknown or expired. */
  get view(): JobView | undefined {
    return this.#view;
  }

  /** Its work is an identical request's. */
  get follows(): boolean {
    return this.#sourceId !== undefined && this.#sourceId !== this.jobId;
  }

  /** Nothing more will happen. */
  get finished(): boolean {
    return this.#ended && (this.#textIsWhole || !this.#wantsText);
  }

  /** The whole story; `afterId` leaves out what a listener has. Ends after `result`, when `signal` aborts, or when the story is closed. */
  async *events(afterId: string | undefined, signal: AbortSignal): AsyncGenerator<JobEvent, void> {
    if (!this.#wantsText) {
      this.#wantsText = true;
      await this.look();
    }
    let [state, position, text, told] = [undefined as StateEvent | undefined, undefined as PositionEvent | undefined, this.#text, 0];
    while (!signal.aborted && !this.#closed) {
      const version = this.#version;
      const { finished } = this;
      if (this.#state !== undefined && this.#state !== state) {
        state = this.#state;
        yield state;
      }
      if (this.#position !== undefined && this.#position !== position) yield this.#position;
      position = this.#position;
      if (text !== this.#text) [text, told] = [this.#text, 0];
      for (; told < text.events.length && text === this.#text; told++) {
        const event = text.events[told]!;
        // A model event belongs to the token behind it.
        const { id } = event.event === "token" ? event : text.events[told + 1]!;
        if (afterId === undefined || comesAfter(id!, afterId)) yield event;
      }
      if (version !== this.#version) continue;
      if (finished) {
        if (this.#view !== undefined) yield { event: "result", id: END_ID, data: this.#view };
        return;
      }
      await this.#change(signal);
    }
  }

  /** The terminal view; undefined when `signal` aborts, the story is closed, or the job expires. */
  async ended(signal: AbortSignal): Promise<JobView | undefined> {
    while (!this.#ended && !this.#closed && !signal.aborted) await this.#change(signal);
    return this.#ended ? this.#view : undefined;
  }

  async #change(signal: AbortSignal): Promise<void> {
    await new Promise<void>((resolve) => {
      const wake = () => {
        signal.removeEventListener("abort", wake);
        this.#waiters.delete(wake);
        resolve();
      };
      this.#waiters.add(wake);
      signal.addEventListener("abort", wake);
    });
  }

  #tell(): void {
    this.#version++;
    for (const wake of [...this.#waiters]) wake();
  }

  /** Resolves when the job was looked at, after now. Rejects when Redis can't be reached. */
  look(): Promise<void> {
    this.#again = true;
    this.#looking ??= this.#looks();
    return this.#looking;
  }

  async #looks(): Promise<void> {
    try {
      while (this.#again && !this.finished && !this.#closed) {
        this.#again = false;
        await this.#lookOnce();
      }
    } finally {
      this.#looking = undefined;
      if (this.#closed) this.#leave();
    }
  }

  async #lookOnce(): Promise<void> {
    const { lookup } = this.#from;
    if (this.#sourceId === undefined) this.#listen(this.jobId);
    const view = await lookup.view(this.jobId);
    const isEnd = view === undefined || TERMINAL_STATUSES.includes(view.status);
    if (view === undefined) {
      this.#view = undefined;
      this.#textIsWhole = true;
    } else {
      // The look itself may have given a follower another leader.
      await this.#follow(cacheEntryOf(this.jobId) === undefined ? ((await lookup.leaderOf(this.jobId)) ?? this.jobId) : this.jobId);
      if (this.#wantsText) await this.#readText(view, isEnd);
      this.#show(view);
    }
    this.#ended = isEnd;
    this.#tell();
  }

  #listen(jobId: string): void {
    const onChange = (change: JobChange) => {
      if (change === "ended" || this.#wantsText) this.look().catch(this.#from.onError);
    };
    this.#unlisten.push(this.#from.completions.listen(jobId, onChange));
  }

  async #follow(sourceId: string): Promise<void> {
    if (sourceId === this.#sourceId) return;
    this.#leave();
    this.#sourceId = sourceId;
    this.#listen(this.jobId);
    if (sourceId !== this.jobId) {
      this.#listen(sourceId);
      // Something may have happened to it before.
      this.#again = true;
    }
    const solved = isExplainId(sourceId) ? (await this.#from.queues.talker.getJob(sourceId))?.data.solved : undefined;
    this.#text = new JobText(solved?.text);
  }

  async #readText(view: JobView, isEnd: boolean): Promise<void> {
    const { tokens } = this.#from;
    const sourceId = this.#sourceId!;
    const text = this.#text;
    const begun = view.stages.some(({ attempts }) => attempts > 0);
    if (this.#follower === undefined && begun) {
      this.#follower = {
        lastId: "0-0",
        onChunks: (chunks) => {
          text.add(chunks);
          this.#tell();
        },
      };
      if (!isEnd) tokens.follow(sourceId, this.#follower);
    }
    if (!isEnd) return;
    if (this.#follower !== undefined) await tokens.drain(sourceId, this.#follower);
    text.complete(view);
    this.#textIsWhole = true;
  }

  #show(view: JobView): void {
    this.#view = view;
    const data = JOB_EVENTS.state.parse(view);
    if (JSON.stringify(this.#state?.data) !== JSON.stringify(data)) this.#state = { event: "state", data };
    const { position, estimatedStartMs } = view;
    const shown = this.#position?.data;
    if (position === null) this.#position = undefined;
    else if (shown?.position !== position || (shown.estimatedStartMs === null) !== (estimatedStartMs === null)) {
      this.#position = { event: "position", data: { position, estimatedStartMs } };
    }
  }

  #leave(): void {
    for (const unlisten of this.#unlisten.splice(0)) unlisten();
    if (this.#follower !== undefined) this.#from.tokens.unfollow(this.#sourceId!, this.#follower);
    this.#follower = undefined;
  }

  close(): void {
    this.#closed = true;
    this.#leave();
    this.#tell();
  }
}
