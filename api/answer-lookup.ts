import type { AnswerCache, CacheEntry } from "../queues/answer-cache.ts";
import { publishedModels } from "../queues/answer-cache.ts";
import { digestOf, explainKey, isCacheable, solveKey, talkKey } from "../queues/cache-key.ts";
import type { Redis } from "../queues/connection.ts";
import type { JobRequest, PublishedModel, StageResult } from "../queues/contracts.ts";
import { type JobKind, ROLES, type Role, rolesOfKind } from "../queues/names.ts";
import { EventLoopTurns } from "./event-loop-turns.ts";

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
  /** Under which the whole answer will be there, where that is known already. */
  answerKey?: string;
  /** The answer may come from the cache: when it does not, that is a miss. */
  isCacheable: boolean;
  /** Of an explanation, the solution is there. */
  solved?: StageResult;
}

const NOT_SOUGHT: Lookup = { hit: null, flightKey: null, isCacheable: false };
const NO_MODEL: Lookup = { hit: null, flightKey: null, isCacheable: true };

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

  async find(kind: JobKind, request: JobRequest): Promise<Lookup> {
    const [found] = await this.findMany([{ kind, request }]);
    return found!;
  }

  /** The same for many, with one look into the cache for all of them, and a second one for explanations of solutions that are there. */
  async findMany(asked: { kind: JobKind; request: JobRequest }[]): Promise<Lookup[]> {
    const isSought = ({ request }: { request: JobRequest }) => isCacheable(request) && request.cache !== "refresh";
    if (!asked.some(isSought)) return asked.map(() => NOT_SOUGHT);
    const needed = ROLES.filter((role) => asked.some((each) => isSought(each) && rolesOfKind(each.kind).includes(role)));
    const { student, talker } = await this.#published(needed);
    const stageOf = (each: { kind: JobKind; request: JobRequest }): Lookup | string => {
      const { kind, request } = each;
      if (!isSought(each)) return NOT_SOUGHT;
      if (kind === "talk") return talker === undefined ? NO_MODEL : talkKey(talker, request);
      if (student === undefined || (kind === "explain" && talker === undefined)) return NO_MODEL;
      return solveKey(student, request);
    };
    const turns = new EventLoopTurns();
    const stages: (Lookup | string)[] = [];
    for (const each of asked) {
      stages.push(stageOf(each));
      await turns.after(charsOf(each.request));
    }
    const found = await this.#cache.getMany(stages.filter((stage) => typeof stage === "string"));
    const explanations = asked.map(({ kind, request }, i) => {
      const stage = stages[i]!;
      const solved = kind === "explain" && typeof stage === "string" ? found.get(stage)?.result : undefined;
      return solved === undefined ? null : explainKey(talker!, request, solved);
    });
    const explained = await this.#cache.getMany(explanations.filter((key) => key !== null));
    return asked.map(({ kind, request }, i) => {
      const stage = stages[i]!;
      if (typeof stage !== "string") return stage;
      if (kind !== "explain") return { hit: hitOf(stage, found), flightKey: stage, answerKey: stage, isCacheable: true };
      const flightKey = digestOf(["explain", stage, talkKey(talker!, request)]);
      const answerKey = explanations[i] ?? undefined;
      const hit = answerKey === undefined ? null : hitOf(answerKey, explained);
      const solved = hit === null ? found.get(stage)?.result : undefined;
      return { hit, flightKey, answerKey, isCacheable: true, ...(solved === undefined ? {} : { solved }) };
    });
  }

  /** A model that is missing from what is remembered may have been loaded since: it is asked for again. */
  async #published(needed: readonly Role[]): Promise<Partial<Record<Role, PublishedModel>>> {
    const askedAt = this.#askedAt;
    const remembered = await this.#lately();
    if (this.#askedAt !== askedAt || needed.every((role) => remembered[role] !== undefined)) return remembered;
    this.#models = undefined;
    return this.#lately();
  }

  #lately(): Promise<Partial<Record<Role, PublishedModel>>> {
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

function charsOf({ problem, messages = [] }: JobRequest): number {
  return messages.reduce((sum, { content }) => sum + content.length, problem.length);
}

function hitOf(cacheKey: string, found: Map<string, CacheEntry>): Hit | null {
  const entry = found.get(cacheKey);
  return entry === undefined ? null : { cacheKey, entry };
}
