/** What one caller of a shared piece of work wants. */
export interface SharedCaller<P> {
  signal?: AbortSignal;
  onProgress?: (progress: P) => void;
}

type Work<T, P> = (signal: AbortSignal, onProgress: (progress: P) => void) => Promise<T>;

interface Running<T, P> {
  result: Promise<T>;
  stop: AbortController;
  callers: Set<SharedCaller<P>>;
}

/**
 * One promise a key: who asks for what is already being done gets the same result, and the progress from then on. The work is aborted when
 * nobody wants it any more; its last caller is answered only once it has really ended, so that it can be begun anew at once.
 */
export class SharedWork<T, P> {
  readonly #running = new Map<string, Running<T, P>>();

  /** Rejects with the work's error, or with the reason of the caller's own `signal`. */
  run(key: string, { signal, onProgress }: SharedCaller<P>, work: Work<T, P>): Promise<T> {
    if (signal?.aborted) return Promise.reject(signal.reason);
    const earlier = this.#running.get(key);
    const { result, stop, callers } =
      earlier === undefined || earlier.stop.signal.aborted ? this.#begin(key, work, earlier?.result) : earlier;
    const caller = { signal, onProgress };
    callers.add(caller);
    return new Promise((resolve, reject) => {
      const leave = () => {
        callers.delete(caller);
        if (callers.size > 0) reject(signal!.reason);
        else stop.abort(signal!.reason);
      };
      signal?.addEventListener("abort", leave, { once: true });
      const settled = (settle: () => void) => {
        signal?.removeEventListener("abort", leave);
        callers.delete(caller);
        if (signal?.aborted) reject(signal.reason);
        else settle();
      };
      result.then(
        (value) => settled(() => resolve(value)),
        (error) => settled(() => reject(error)),
      );
    });
  }

  #begin(key: string, work: Work<T, P>, after?: Promise<T>): Running<T, P> {
    const stop = new AbortController();
    const callers = new Set<SharedCaller<P>>();
    const tell = (progress: P) => {
      for (const { onProgress } of callers) onProgress?.(progress);
    };
    const result = (async () => {
      await after?.catch(() => {});
      stop.signal.throwIfAborted();
      return work(stop.signal, tell);
    })();
    const running = { result, stop, callers };
    this.#running.set(key, running);
    const forget = () => {
      if (this.#running.get(key) === running) this.#running.delete(key);
    };
    result.then(forget, forget);
    return running;
  }
}
