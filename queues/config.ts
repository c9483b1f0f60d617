import path from "node:path";
import { z } from "zod";
import type { KeySeed } from "./api-keys.ts";
import { MathllmError } from "./errors.ts";
import type { PriorityClass, Role } from "./names.ts";
import { areRedisUrls } from "./redis-urls.ts";
import { bytes, depth, flag, keySeeds, milliseconds, origins, port, serverUrl, variableNames, webhookSecrets } from "./setting-values.ts";

/**
 * The environment: one schema with units, bounds and defaults. `.env.example` documents the same names.
 * An empty value counts as unset, so that `NAME=` in a file means the default.
 */

/**
 * Which settings are secrets, and the field of `Config` that each becomes. A secret stands in no error, log, report or file, and in no
 * environment of a program that doesn't need it: whatever leaves settings out asks `isSecretSetting`, and has no list of its own.
 */
const secrets = z.registry<{ configField: string }>();

/** User and password of a URL, be it a valid one or not. */
const USER_INFO = /(?<=:\/\/).*(?=@)/;

/** `llamacpp` starts llama-server; `ollama` and `remote` use a server that runs already. */
export const ENGINE_MODES = ["embedded", "vllm", "llamacpp", "ollama", "remote"] as const;
export type EngineMode = (typeof ENGINE_MODES)[number];

const DEFAULT_OLLAMA_URL = "http://127.0.0.1:11434";

const shippedModel = (file: string) => path.join(import.meta.dirname, "..", "models", file);

function profileShape<R extends string>(prefix: R, defaults: { port: number; maxNumSeqs: number }) {
  return {
    [`${prefix}_MODE`]: z.enum(ENGINE_MODES).default("embedded"),
    [`${prefix}_URL`]: serverUrl.optional(),
    [`${prefix}_API_KEY`]: z.string().optional().register(secrets, { configField: "apiKey" }),
    [`${prefix}_MODEL`]: z.string().optional(),
    [`${prefix}_PORT`]: port(defaults.port),
    [`${prefix}_MAX_MODEL_LEN`]: z.coerce.number().int().min(64).max(1_048_576).default(4096),
    [`${prefix}_MAX_NUM_SEQS`]: z.coerce.number().int().min(1).max(256).default(defaults.maxNumSeqs),
    [`${prefix}_KV_CACHE_BITS`]: z.enum(["16", "8"], { error: "expected 16 or 8" }).default("16"),
    [`${prefix}_MAX_TOKENS`]: z.coerce.number().int().min(1).max(131_072).default(1024),
    [`${prefix}_SPECULATIVE_ENABLED`]: flag.default(false),
    [`${prefix}_DRAFT_MODEL`]: z.string().optional(),
    [`${prefix}_GPU_MEMORY_UTILIZATION`]: z.coerce.number().min(0.05).max(1).default(0.85),
    [`${prefix}_SWAP_SPACE`]: z.coerce.number().min(0).max(1024).optional(),
    [`${prefix}_ENFORCE_EAGER`]: flag.default(false),
    [`${prefix}_SLEEP_LEVEL`]: z.coerce.number().int().min(0).max(2).default(0),
    [`${prefix}_NGL`]: z.coerce.number().int().min(0).max(10_000).optional(),
    [`${prefix}_THREADS`]: z.coerce.number().int().min(1).max(1024).optional(),
  };
}

export const environmentShape: Record<string, z.ZodType> = {
  REDIS_URL: z
    .string()
    .refine(
      areRedisUrls,
      "expected redis://host:port or rediss://host:port; for a cluster several of one kind with commas between, without a database number",
    )
    .optional()
    .register(secrets, { configField: "redisUrl" }),
  REDIS_APPENDFSYNC: z.enum(["always", "everysec"]).default("always"),
  REDIS_SERVER_BIN: z.string().optional(),
  HOST: z.string().default("127.0.0.1"),
  PORT: port(3000),
  API_KEYS: keySeeds.optional().register(secrets, { configField: "keySeeds" }),
  API_KEY: z.string().optional().register(secrets, { configField: "apiKey" }),
  CORS_ORIGINS: origins.optional(),
  LOG_PROBLEMS: flag.default(false),
  WEBHOOK_SECRET: webhookSecrets.optional().register(secrets, { configField: "secrets" }),
  WEBHOOK_ALLOW_PRIVATE: flag.default(false),
  WEBHOOK_ATTEMPTS: z.coerce.number().int().min(1).max(20).default(8),
  WEBHOOK_RETRY_MS: milliseconds(5000),
  WEBHOOK_TIMEOUT_MS: milliseconds(10_000),
  DATA_DIR: z.string().default(".mathllm"),
  TELEMETRY_LOG: z.string().optional(),
  LOG_LEVEL: z.enum(["fatal", "error", "warn", "info", "debug", "trace", "silent"]).default("info"),
  OTEL_EXPORTER_OTLP_ENDPOINT: serverUrl.optional(),
  HF_TOKEN: z.string().optional().register(secrets, { configField: "hfToken" }),
  GPU_ID: z
    .string()
    .regex(/^[\w.:-]{1,100}$/, "expected up to 100 letters, digits, and any of . : _ -")
    .optional(),
  TALKER_CORESIDENT: flag.default(false),
  FORCE_LOAD: flag.default(false),
  ENGINE_ENV: variableNames.optional(),
  VLLM_BIN: z.string().default("vllm"),
  LLAMA_SERVER_BIN: z.string().default("llama-server"),
  GPU_POLICY: z.enum(["ge", "exhaustive", "fifo"]).default("ge"),
  INTERACTIVE_DEADLINE_MS: milliseconds(60_000),
  NORMAL_DEADLINE_MS: milliseconds(300_000),
  BATCH_DEADLINE_MS: milliseconds(3_600_000),
  LEASE_TTL_MS: milliseconds(15_000),
  INTERACTIVE_MAX_DEPTH: depth(10_000),
  NORMAL_MAX_DEPTH: depth(50_000),
  BATCH_MAX_DEPTH: depth(200_000),
  ENGINE_START_TIMEOUT_MS: milliseconds(300_000),
  ENGINE_HEALTH_TIMEOUT_MS: milliseconds(15_000),
  ENGINE_RAM_CAP_BYTES: bytes,
  ENGINE_VRAM_CAP_BYTES: bytes,
  IDLE_UNLOAD_SECONDS: z.coerce.number().int().min(0).max(31_536_000).default(600),
  VRAM_FREED_TIMEOUT_MS: milliseconds(30_000),
  VRAM_WATERMARK: z.coerce.number().min(0.1).max(1).default(0.98),
  SHUTDOWN_GRACE_MS: milliseconds(30_000),
  CACHE_TTL_SECONDS: z.coerce.number().int().min(1).max(31_536_000).default(3600),
  CACHE_MAX_BYTES: z.coerce.number().int().min(0).max(1e12).default(67_108_864),
  JOB_TIMEOUT_MS: milliseconds(300_000),
  JOB_ATTEMPTS: z.coerce.number().int().min(1).max(100).default(3),
  JOB_RETENTION_SECONDS: z.coerce.number().int().min(60).max(31_536_000).default(86_400),
  BODY_LIMIT_BYTES: z.coerce.number().int().min(1024).max(104_857_600).default(262_144),
  FILE_LIMIT_BYTES: z.coerce.number().int().min(1024).max(1e11).default(209_715_200),
  FILES_MAX_BYTES: z.coerce.number().int().min(1024).max(1e13).default(2_147_483_648),
  ...profileShape("STUDENT", { port: 8009, maxNumSeqs: 8 }),
  ...profileShape("TALKER", { port: 8010, maxNumSeqs: 6 }),
};

/** The names of the secret settings. */
export const SECRET_SETTINGS: readonly string[] = Object.keys(environmentShape).filter((name) => secrets.has(environmentShape[name]!));
/** The fields of `Config` that hold them. */
export const SECRET_CONFIG_FIELDS: readonly string[] = SECRET_SETTINGS.map((name) => secrets.get(environmentShape[name]!)!.configField);

export function isSecretSetting(name: string): boolean {
  return SECRET_SETTINGS.includes(name);
}

/** For a program that needs none of our secrets. */
export function withoutSecrets(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !isSecretSetting(name)));
}

/** How one role's model server is run. Token counts are per sequence. */
export interface ModelProfile {
  role: Role;
  mode: EngineMode;
  /**
   * embedded, llamacpp: a path to a GGUF file, or `hf:user/repository:quantisation`; vllm: a Hugging Face name or folder; ollama, remote:
   * the name the server knows it by.
   */
  model: string;
  /** ollama, remote: where the server is, without `/v1`. */
  url?: string;
  apiKey?: string;
  /** 0 takes a free port. */
  port: number;
  maxModelLen: number;
  maxNumSeqs: number;
  kvCacheBits: 16 | 8;
  /** The most tokens one answer may have. */
  maxTokens: number;
  speculative: { enabled: boolean; draftModel?: string };
  /** vllm: the share of the GPU's memory that it takes. */
  gpuMemoryUtilization: number;
  /** vllm: GiB of host memory for what does not fit into the KV cache. */
  swapSpaceGib?: number;
  /** vllm: no CUDA graphs, less memory, slower. */
  enforceEager: boolean;
  /** vllm: instead of being stopped it sleeps, its weights in host memory (1) or dropped (2); 0: it is stopped. */
  sleepLevel: 0 | 1 | 2;
  /** Layers on the GPU; undefined lets the engine choose. */
  ngl?: number;
  /** CPU threads; undefined lets the engine choose by the model's size. */
  threads?: number;
}

export interface Config {
  /** undefined: a private embedded Redis under `dataDir`. Several with commas: nodes of a cluster. */
  redisUrl?: string;
  redisAppendfsync: "always" | "everysec";
  redisServerBin?: string;
  host: string;
  port: number;
  /** Brought into the store of API keys when the API starts. */
  keySeeds: KeySeed[];
  /** What the command line sends. */
  apiKey?: string;
  /** Web pages of other origins that may use the API. */
  corsOrigins: string[];
  /** Problems' texts may stand in the log. */
  logProblems: boolean;
  webhooks: {
    /** The keys that deliveries are signed with; without any no request may ask for a webhook. */
    secrets: Buffer[];
    /** Loopback and private addresses may be called. */
    allowPrivate: boolean;
    attempts: number;
    /** Before the second attempt; each further wait is `WEBHOOK_BACKOFF` times as long. */
    retryMs: number;
    /** For one attempt, from the look-up of the name to the answer. */
    timeoutMs: number;
  };
  /** Absolute. */
  dataDir: string;
  /** Absolute. */
  telemetryLog: string;
  logLevel: string;
  /** Where traces are sent, over OTLP/HTTP; without it there are none. */
  otlpEndpoint?: string;
  hfToken?: string;
  gpuId?: string;
  /** The Talker, on llama-server with no layer on the GPU, stays up beside the Student. */
  talkerCoresident: boolean;
  /** Load even what is reckoned not to fit. */
  forceLoad: boolean;
  /** Variables that a model server is started with beside those that every one gets. */
  engineEnv: string[];
  vllmBin: string;
  llamaServerBin: string;
  gpuPolicy: "ge" | "exhaustive" | "fifo";
  /** How long a job of each class may wait before its model is swapped in; held only as far as swaps don't eat the GPU's time. */
  deadlinesMs: Record<PriorityClass, number>;
  /** The most jobs of each class that may wait in one queue. */
  maxDepths: Record<PriorityClass, number>;
  leaseTtlMs: number;
  engineStartTimeoutMs: number;
  /** A model server that has not answered its health check for so long is killed. */
  engineHealthTimeoutMs: number;
  /** The embedded engine refuses a model whose estimate is above. */
  engineRamCapBytes?: number;
  engineVramCapBytes?: number;
  /** After so long without work the model is unloaded; 0: never. */
  idleUnloadSeconds: number;
  /** How long the memory of a stopped model may take to come back before the next one is loaded all the same. */
  vramFreedTimeoutMs: number;
  /** Share of the VRAM in use above which only one job runs at a time. */
  vramWatermark: number;
  shutdownGraceMs: number;
  cacheTtlSeconds: number;
  /** All cached answers together; 0: nothing is cached. */
  cacheMaxBytes: number;
  jobTimeoutMs: number;
  jobAttempts: number;
  jobRetentionSeconds: number;
  bodyLimitBytes: number;
  /** One file of `/v1/files`, and all of them together. */
  fileLimitBytes: number;
  filesMaxBytes: number;
  profiles: Record<Role, ModelProfile>;
}

/**
 * Reads the environment. Throws `invalid-configuration` naming every wrong variable with what was expected and what came;
 * the value itself is left out where it is a secret.
 */
export function readConfig(env: Record<string, string | undefined> = process.env): Config {
  const given = Object.fromEntries(Object.keys(environmentShape).map((name) => [name, env[name] === "" ? undefined : env[name]]));
  const parsed = z.object(environmentShape).safeParse(given);
  if (!parsed.success) {
    const lines = parsed.error.issues.map((issue) => {
      const name = String(issue.path[0]);
      const came = isSecretSetting(name) ? "a value that is not shown" : JSON.stringify(given[name]?.replace(USER_INFO, "…"));
      return `${name}: ${issue.message}; got ${came}`;
    });
    throw new MathllmError("invalid-configuration", `${lines.join("\n")}\nSee .env.example for every variable with its unit and default.`);
  }
  // biome-ignore lint/suspicious/noExplicitAny: the shape is built from names, so its inferred type is a record
  const e = parsed.data as any;
  const shipped = { STUDENT: "student.gguf", TALKER: "talker.gguf" };
  const profile = (role: Role, p: "STUDENT" | "TALKER"): ModelProfile => ({
    role,
    mode: e[`${p}_MODE`],
    model: e[`${p}_MODEL`] ?? shippedModel(shipped[p]),
    url: e[`${p}_URL`] ?? (e[`${p}_MODE`] === "ollama" ? DEFAULT_OLLAMA_URL : undefined),
    apiKey: e[`${p}_API_KEY`],
    port: e[`${p}_PORT`],
    maxModelLen: e[`${p}_MAX_MODEL_LEN`],
    // The embedded engine drafts for one request at a time.
    maxNumSeqs: e[`${p}_MODE`] === "embedded" && e[`${p}_SPECULATIVE_ENABLED`] ? 1 : e[`${p}_MAX_NUM_SEQS`],
    kvCacheBits: e[`${p}_KV_CACHE_BITS`] === "8" ? 8 : 16,
    maxTokens: e[`${p}_MAX_TOKENS`],
    speculative: {
      enabled: e[`${p}_SPECULATIVE_ENABLED`],
      draftModel: e[`${p}_DRAFT_MODEL`] ?? (p === "STUDENT" && e.STUDENT_MODEL === undefined ? shippedModel("draft.gguf") : undefined),
    },
    gpuMemoryUtilization: e[`${p}_GPU_MEMORY_UTILIZATION`],
    swapSpaceGib: e[`${p}_SWAP_SPACE`],
    enforceEager: e[`${p}_ENFORCE_EAGER`],
    sleepLevel: e[`${p}_SLEEP_LEVEL`],
    ngl: e[`${p}_NGL`],
    threads: e[`${p}_THREADS`],
  });
  checkModes(e);
  return {
    redisUrl: e.REDIS_URL,
    redisAppendfsync: e.REDIS_APPENDFSYNC,
    redisServerBin: e.REDIS_SERVER_BIN,
    host: e.HOST,
    port: e.PORT,
    keySeeds: e.API_KEYS ?? [],
    apiKey: e.API_KEY,
    corsOrigins: e.CORS_ORIGINS ?? [],
    logProblems: e.LOG_PROBLEMS,
    webhooks: {
      secrets: e.WEBHOOK_SECRET ?? [],
      allowPrivate: e.WEBHOOK_ALLOW_PRIVATE,
      attempts: e.WEBHOOK_ATTEMPTS,
      retryMs: e.WEBHOOK_RETRY_MS,
      timeoutMs: e.WEBHOOK_TIMEOUT_MS,
    },
    dataDir: path.resolve(e.DATA_DIR),
    telemetryLog: path.resolve(e.TELEMETRY_LOG ?? path.join(e.DATA_DIR, "telemetry.jsonl")),
    logLevel: e.LOG_LEVEL,
    otlpEndpoint: e.OTEL_EXPORTER_OTLP_ENDPOINT,
    hfToken: e.HF_TOKEN,
    gpuId: e.GPU_ID,
    talkerCoresident: e.TALKER_CORESIDENT,
    forceLoad: e.FORCE_LOAD,
    engineEnv: e.ENGINE_ENV ?? [],
    vllmBin: e.VLLM_BIN,
    llamaServerBin: e.LLAMA_SERVER_BIN,
    gpuPolicy: e.GPU_POLICY,
    deadlinesMs: { interactive: e.INTERACTIVE_DEADLINE_MS, normal: e.NORMAL_DEADLINE_MS, batch: e.BATCH_DEADLINE_MS },
    maxDepths: { interactive: e.INTERACTIVE_MAX_DEPTH, normal: e.NORMAL_MAX_DEPTH, batch: e.BATCH_MAX_DEPTH },
    leaseTtlMs: e.LEASE_TTL_MS,
    engineStartTimeoutMs: e.ENGINE_START_TIMEOUT_MS,
    engineHealthTimeoutMs: e.ENGINE_HEALTH_TIMEOUT_MS,
    engineRamCapBytes: e.ENGINE_RAM_CAP_BYTES,
    engineVramCapBytes: e.ENGINE_VRAM_CAP_BYTES,
    idleUnloadSeconds: e.IDLE_UNLOAD_SECONDS,
    vramFreedTimeoutMs: e.VRAM_FREED_TIMEOUT_MS,
    vramWatermark: e.VRAM_WATERMARK,
    shutdownGraceMs: e.SHUTDOWN_GRACE_MS,
    cacheTtlSeconds: e.CACHE_TTL_SECONDS,
    cacheMaxBytes: e.CACHE_MAX_BYTES,
    jobTimeoutMs: e.JOB_TIMEOUT_MS,
    jobAttempts: e.JOB_ATTEMPTS,
    jobRetentionSeconds: e.JOB_RETENTION_SECONDS,
    bodyLimitBytes: e.BODY_LIMIT_BYTES,
    fileLimitBytes: e.FILE_LIMIT_BYTES,
    filesMaxBytes: e.FILES_MAX_BYTES,
    profiles: { student: profile("student", "STUDENT"), talker: profile("talker", "TALKER") },
  };
}

/** What one variable demands of another. Throws `invalid-configuration`. */
// biome-ignore lint/suspicious/noExplicitAny: see readConfig
function checkModes(e: any): void {
  const wrong = (["STUDENT", "TALKER"] as const).flatMap((p) => {
    const mode: EngineMode = e[`${p}_MODE`];
    const lines: string[] = [];
    if (mode !== "embedded" && mode !== "llamacpp" && e[`${p}_MODEL`] === undefined) {
      lines.push(
        `${p}_MODEL: expected a model for ${p}_MODE=${mode}; the shipped ones are GGUF files for embedded and llamacpp; got nothing`,
      );
    }
    if (mode === "remote" && e[`${p}_URL`] === undefined)
      lines.push(`${p}_URL: expected the server's address for ${p}_MODE=remote; got nothing`);
    if (e[`${p}_SLEEP_LEVEL`] > 0 && mode !== "vllm")
      lines.push(`${p}_SLEEP_LEVEL: expected 0: only vllm can sleep; got ${e[`${p}_SLEEP_LEVEL`]}`);
    return lines;
  });
  if (e.TALKER_CORESIDENT && !(e.TALKER_MODE === "llamacpp" && e.TALKER_NGL === 0)) {
    wrong.push(
      "TALKER_CORESIDENT: expected TALKER_MODE=llamacpp and TALKER_NGL=0 beside it: only a Talker without VRAM may stay up beside the Student",
    );
  }
  if (wrong.length > 0) throw new MathllmError("invalid-configuration", `${wrong.join("\n")}\nSee .env.example.`);
}
