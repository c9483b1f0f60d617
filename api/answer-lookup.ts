import type { AnswerCache, CacheEntry } from "../queues/answer-cache.ts";
import { publishedModels } from "../queues/answer-cache.ts";
import { digestOf, explainKey, isCacheable, type PublishedModel, solveKey, talkKey } from "../queues/cache-key.ts";
import type { Redis } from "../queues/connection.ts";
import type { SolveRequest, StageResult } from "../queues/contracts.ts";
import type { JobKind, Role } from "../queues/names.ts";

/** Which model answers is asked of Redis this often at most. */
const MODELS_MS = 1000;

export interface Hit {
  cacheKey: string;
  entry: CacheEntry;
}

export interface Lookup {
  /** The whole answer is there. */
  hit: Hit | null;
  /** Identical requests meanwhile share this; null: nothing is shared. */
  flightKey: string | null;
  /** Of an explanation, the solution is there. */
  solved?: StageResult;
}

const NOTHING: Lookup = { hit: null, flightKey: null };

/** What the cache knows of a request. Nothing, while no worker has said which model answers. */
export class AnswerLookup {
  readonly #redis: Redis;
  readonly #cache: AnswerCache;
  #models: Promise<Partial<Record<Role, PublishedModel>>> | undefined;
  #askedAt = Number.NEGATIVE_INFINITY;

  constructor(redis: Redis, cache: AnswerCache) {
    this.#redis = redis;
    this.#cache = cache;
  }

  async find(kind: JobKind, request: SolveRequest): Promise<Lookup> {
    if (!isCacheable(request)) return NOTHING;
    const { student, talker } = await this.#published();
    if (request.cache === "refresh") return NOTHING;
    if (kind === "talk") return talker === undefined ? NOTHING : this.#stage(talkKey(talker, request));
    if (student === undefined) return NOTHING;
    const solving = await this.#stage(solveKey(student, request));
    if (kind === "solve") return solving;
    if (talker === undefined) return NOTHING;
    const flightKey = digestOf(["explain", solveKey(student, request), talkKey(talker, request)]);
    if (solving.hit === null) return { hit: null, flightKey };
    const solved = solving.hit.entry.result;
    const { hit } = await this.#stage(explainKey(talker, request, solved));
    return hit === null ? { hit: null, flightKey, solved } : { hit, flightKey };
  }

  async #stage(cacheKey: string): Promise<Lookup> {
    const entry = await this.#cache.get(cacheKey);
    return { hit: entry === undefined ? null : { cacheKey, entry }, flightKey: cacheKey };
  }

  #published(): Promise<Partial<Record<Role, PublishedModel>>> {
    if (this.#models === undefined || performance.now() - this.#askedAt > MODELS_MS) {
      this.#askedAt = performance.now();
      const asked = publishedModels(this.#redis);
      asked.catch(() => {
        this.#models = undefined;
      });
      this.#models = asked;
    }
    return this.#models;
  }
}
