import path from "node:path";
import { z } from "zod";
import { ROLES } from "./names.ts";
import { profileSettings } from "./profile-settings.ts";
import { areRedisUrls } from "./redis-urls.ts";
import { optionalSetting, type Setting, type SettingTable, setting, settingsOf } from "./setting.ts";
import {
  depth,
  flag,
  keySeeds,
  memoryBytes,
  milliseconds,
  origins,
  port,
  serverUrl,
  variableNames,
  webhookSecrets,
  wholeNumber,
} from "./setting-values.ts";

/**
 * Every setting, declared once, under the field of `Config` that it becomes. From here come the configuration and its type, `.env.example`,
 * docs/settings.md, what `doctor` says of them, what is kept out of sight, and what a misspelt name may have meant.
 */

const redis = {
  /** undefined: a private embedded Redis under `dataDir`. Several with commas: nodes of a cluster. */
  redisUrl: optionalSetting(
    "REDIS_URL",
    z
      .string()
      .refine(
        areRedisUrls,
        "expected redis://host:port or rediss://host:port; for a cluster several of one kind with commas between, without a database number",
      ),
    {
      secret: true,
      example: "redis://127.0.0.1:6379",
      about:
        "A running Redis (6.2 or newer, appendonly, noeviction). Unset: a private embedded one under DATA_DIR. A Redis Cluster: several of its nodes with commas between, redis://node1:6379,redis://node2:6379 (user, password and TLS as in the first).",
    },
  ),
  redisAppendfsync: setting("REDIS_APPENDFSYNC", z.enum(["always", "everysec"]), {
    default: "always",
    about: "Embedded Redis only. always: an accepted job is on disk. everysec: faster, and a kill -9 can lose up to 2 s.",
  }),
  redisServerBin: optionalSetting("REDIS_SERVER_BIN", z.string(), {
    about: "Embedded Redis only: the redis-server or valkey-server to run. Unset: on the PATH, else fetched once into the cache.",
  }),
};

const api = {
  host: setting("HOST", z.string(), {
    default: "127.0.0.1",
    about: "Where the API listens. An address other than a loopback one needs API keys.",
  }),
  port: setting("PORT", port, { default: 3000, about: "The API's port; 0 takes a free one." }),
  bodyLimitBytes: setting("BODY_LIMIT_BYTES", wholeNumber(1024, 104_857_600), {
    default: 262_144,
    unit: "bytes",
    about: "The largest request body.",
  }),
  fileLimitBytes: setting("FILE_LIMIT_BYTES", wholeNumber(1024, 1e11), {
    default: 209_715_200,
    unit: "bytes",
    about: "The largest file of /v1/files.",
  }),
  filesMaxBytes: setting("FILES_MAX_BYTES", wholeNumber(1024, 1e13), {
    default: 2_147_483_648,
    unit: "bytes",
    about: "All files of /v1/files together.",
  }),
  /** Brought into the store of API keys when the API starts. */
  keySeeds: setting("API_KEYS", keySeeds, {
    unset: [],
    secret: true,
    about:
      "API keys: name:role:key with commas between (ann:submit+read:KEY,ops:admin:KEY2), role submit, read, submit+read or admin. They are brought into the store, hashed, when the API starts; one that stood here and does not any more is refused from then on. More of them: mathllm keys.",
  }),
  apiKey: optionalSetting("API_KEY", z.string(), { secret: true, about: "The key that the command line itself sends." }),
  corsOrigins: setting("CORS_ORIGINS", origins, {
    unset: [],
    about:
      "Web pages of other origins (another port is one, too) that may use the API, with commas between: https://app.example.org,http://localhost:5173",
  }),
  logProblems: setting("LOG_PROBLEMS", flag, { default: 0, about: "1: problems' texts may stand in the log." }),
};

const webhooks = {
  /** The keys that deliveries are signed with; without any no request may ask for a webhook. */
  secrets: setting("WEBHOOK_SECRET", webhookSecrets, {
    unset: [],
    secret: true,
    about:
      "What deliveries are signed with (Standard Webhooks): whsec_ and base64, such as whsec_$(openssl rand -base64 32). Without it no request may ask for a webhook. While it is changed: the new one, a comma, the old one; deliveries are then signed with both.",
  }),
  allowPrivate: setting("WEBHOOK_ALLOW_PRIVATE", flag, {
    default: 0,
    about: "1: loopback, private and other addresses that are not public may be called.",
  }),
  attempts: setting("WEBHOOK_ATTEMPTS", wholeNumber(1, 20), { default: 8, about: "How often a delivery is tried." }),
  /** Before the second attempt; each further wait is `WEBHOOK_BACKOFF` times as long. */
  retryMs: setting("WEBHOOK_RETRY_MS", milliseconds, {
    default: 5000,
    unit: "milliseconds",
    about:
      "The wait before a delivery's second time; each further one is five times as long (5 s, 25 s, 2 min, 10 min, 52 min, 4.3 h, 21.7 h).",
  }),
  timeoutMs: setting("WEBHOOK_TIMEOUT_MS", milliseconds, {
    default: 10_000,
    unit: "milliseconds",
    about: "The longest one attempt may take, from the look-up of the name to the answer.",
  }),
};

const system = {
  /** Absolute. */
  dataDir: setting(
    "DATA_DIR",
    z.string().transform((folder) => path.resolve(folder)),
    { default: ".mathllm", about: "The embedded Redis, downloaded models and their digests, files, telemetry." },
  ),
  telemetryLog: optionalSetting("TELEMETRY_LOG", z.string(), {
    example: ".mathllm/telemetry.jsonl",
    about: "What the worker measures and decides, one JSON object a line; rotated at 50 MB, two kept. Unset: telemetry.jsonl in DATA_DIR.",
  }),
  logLevel: setting("LOG_LEVEL", z.enum(["fatal", "error", "warn", "info", "debug", "trace", "silent"]), {
    default: "info",
    about: "fatal, error, warn, info, debug, trace, silent. Logs go to stderr.",
  }),
  otlpEndpoint: optionalSetting("OTEL_EXPORTER_OTLP_ENDPOINT", serverUrl, {
    about: "Send OpenTelemetry traces (request, queue, stage, model server) to this OTLP/HTTP collector, such as http://localhost:4318.",
  }),
  hfToken: optionalSetting("HF_TOKEN", z.string(), { secret: true, about: "For gated models on Hugging Face." }),
};

const gpuWorker = {
  gpuId: optionalSetting("GPU_ID", z.string().regex(/^[\w.:-]{1,100}$/, "expected up to 100 letters, digits, and any of . : _ -"), {
    about:
      "The GPU to use, by its UUID (nvidia-smi -L); workers exclude each other on it. Unset: that of CUDA_VISIBLE_DEVICES, else the first one; without a GPU a name made of DATA_DIR and the host. cpu, or cpu- and more, uses none. Any other name: the first GPU, under that name.",
  }),
  gpuPolicy: setting("GPU_POLICY", z.enum(["least-wait", "ge", "exhaustive", "fifo"]), {
    default: "least-wait",
    about:
      "ge: serve the resident model until its queue is empty, unless a job of the other would wait longer than its class's deadline and the resident model has had its quantum. least-wait: the same bound, but leave, or hold on, as the measured rates make the mean wait least. exhaustive: without that bound. fifo: strict arrival order over both queues.",
  }),
  /** How long a job of each class may wait before its model is swapped in; held only as far as swaps don't eat the GPU's time. */
  deadlinesMs: {
    interactive: deadline("INTERACTIVE", 60_000),
    normal: deadline("NORMAL", 300_000),
    batch: deadline("BATCH", 3_600_000),
  },
  /** The most jobs of each class that may wait in one queue. */
  maxDepths: { interactive: maxDepth("INTERACTIVE", 10_000), normal: maxDepth("NORMAL", 50_000), batch: maxDepth("BATCH", 200_000) },
  leaseTtlMs: setting("LEASE_TTL_MS", milliseconds, {
    default: 15_000,
    unit: "milliseconds",
    about: "How long a worker that died without a word keeps the GPU.",
  }),
  engineStartTimeoutMs: setting("ENGINE_START_TIMEOUT_MS", milliseconds, {
    default: 300_000,
    unit: "milliseconds",
    about: "The longest a model server may take to load.",
  }),
  engineHealthTimeoutMs: setting("ENGINE_HEALTH_TIMEOUT_MS", milliseconds, {
    default: 15_000,
    unit: "milliseconds",
    about: "A model server that has not answered its health check for so long is killed and started again.",
  }),
  idleUnloadSeconds: setting("IDLE_UNLOAD_SECONDS", wholeNumber(0, 31_536_000), {
    default: 600,
    unit: "seconds",
    about: "Without work for so long the model is unloaded; 0: never.",
  }),
  vramFreedTimeoutMs: setting("VRAM_FREED_TIMEOUT_MS", milliseconds, {
    default: 30_000,
    unit: "milliseconds",
    about: "How long a stopped model's VRAM may take to come back; then the next one is loaded all the same, and it is reported.",
  }),
  vramWatermark: setting("VRAM_WATERMARK", z.coerce.number().min(0.1).max(1), {
    default: 0.98,
    about: "Share of the VRAM in use above which only one job runs at a time.",
  }),
  engineRamCapBytes: engineCap("ENGINE_RAM_CAP_BYTES", "memory"),
  engineVramCapBytes: engineCap("ENGINE_VRAM_CAP_BYTES", "VRAM"),
  shutdownGraceMs: setting("SHUTDOWN_GRACE_MS", milliseconds, {
    default: 30_000,
    unit: "milliseconds",
    about: "How long running jobs may take to end when the worker stops.",
  }),
};

const jobs = {
  cacheTtlSeconds: setting("CACHE_TTL_SECONDS", wholeNumber(1, 31_536_000), {
    default: 3600,
    unit: "seconds",
    about: "How long answers at temperature 0 are kept.",
  }),
  cacheMaxBytes: setting("CACHE_MAX_BYTES", wholeNumber(0, 1e12), {
    default: 67_108_864,
    unit: "bytes",
    about: "What all kept answers together take of Redis at most; 0: nothing is cached.",
  }),
  jobTimeoutMs: setting("JOB_TIMEOUT_MS", milliseconds, {
    default: 300_000,
    unit: "milliseconds",
    about: "The longest one stage may take on its model.",
  }),
  jobAttempts: setting("JOB_ATTEMPTS", wholeNumber(1, 100), {
    default: 3,
    about: "How often a stage is tried when the model server fails.",
  }),
  jobRetentionSeconds: setting("JOB_RETENTION_SECONDS", wholeNumber(60, 31_536_000), {
    default: 86_400,
    unit: "seconds",
    about: "How long a finished job can be asked for.",
  }),
};

const profiles = {
  student: profileSettings("student", { port: 8009, maxNumSeqs: 8, example: "hf:bartowski/nvidia_OpenMath-Nemotron-7B-GGUF:Q4_K_M" }),
  talker: profileSettings("talker", { port: 8010, maxNumSeqs: 6, example: "hf:bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q4_K_M" }),
};

const coresidence = {
  talkerCoresident: setting("TALKER_CORESIDENT", flag, {
    default: 0,
    about: "1, with TALKER_MODE=llamacpp and TALKER_NGL=0 (no VRAM): the Talker stays up beside the Student, and nothing is swapped.",
  }),
};

const engines = {
  engineEnv: setting("ENGINE_ENV", variableNames, {
    unset: [],
    about:
      "Model servers get what they are steered by (PATH, HOME, LD_*, CUDA_*, NVIDIA_*, NCCL_*, HIP_*, ROCR_*, PYTORCH_*, OMP_*, VLLM_*, LLAMA_*, GGML_*, HF_*, proxies and their like: workers/engines/child-environment.ts), none of our keys and nothing else. More names, with commas.",
  }),
  vllmBin: setting("VLLM_BIN", z.string(), { default: "vllm", about: "The program to start for the mode vllm." }),
  llamaServerBin: setting("LLAMA_SERVER_BIN", z.string(), {
    default: "llama-server",
    about: "The program to start for the mode llamacpp.",
  }),
  modelApiKey: optionalSetting("MODEL_API_KEY", z.string(), {
    secret: true,
    about: "The key that mathllm healthcheck sends to the model server it asks.",
  }),
  forceLoad: setting("FORCE_LOAD", flag, { default: 0, about: "1: load a model even though it is reckoned not to fit." }),
};

function deadline(priority: string, fallback: number) {
  return setting(`${priority}_DEADLINE_MS`, milliseconds, {
    default: fallback,
    unit: "milliseconds",
    about: "The deadline of the class for least-wait and ge, from acceptance to pick. Raised where swaps alone take too long to hold it.",
  });
}

function maxDepth(priority: string, fallback: number) {
  return setting(`${priority}_MAX_DEPTH`, depth, {
    default: fallback,
    about: "The most jobs of the class that may wait in one queue; more are answered 429.",
  });
}

function engineCap(name: string, memory: string) {
  return optionalSetting(name, memoryBytes, {
    unit: "bytes",
    about: `embedded engine only: a load that is estimated to need more ${memory} is refused. Unset: what the machine has.`,
  });
}

/** All settings by the fields of `Config`. */
export const SETTINGS = { ...redis, ...api, webhooks, ...system, ...gpuWorker, ...jobs, profiles, ...coresidence, ...engines };

export interface SettingGroup {
  title: string;
  settings: Setting[];
}

const group = (title: string, table: SettingTable): SettingGroup => ({
  title,
  settings: [...settingsOf(table)].map(({ setting }) => setting),
});

/** All settings in the order in which they are explained. */
export const SETTING_GROUPS: readonly SettingGroup[] = [
  group("Redis", redis),
  group("API", api),
  group("Webhooks", webhooks),
  group("System", system),
  group("GPU worker", gpuWorker),
  group("Jobs", jobs),
  group("Student: solves", profiles.student),
  group("Talker: explains", { ...profiles.talker, ...coresidence }),
  group("Engines", engines),
];

const all = [...settingsOf(SETTINGS)];
const secrets = all.filter(({ setting }) => setting.secret);

export const SETTING_NAMES: readonly string[] = all.map(({ setting }) => setting.env);
/** The names of the secret settings: whatever leaves settings out asks for them here, and has no list of its own. */
export const SECRET_SETTINGS: readonly string[] = secrets.map(({ setting }) => setting.env);
/** The fields of `Config` that hold them. */
export const SECRET_CONFIG_FIELDS: readonly string[] = secrets.map(({ field }) => field);

export function isSecretSetting(name: string): boolean {
  return SECRET_SETTINGS.includes(name);
}

/** Such a name is ours, be there a setting of it or not. */
export function hasRolePrefix(name: string): boolean {
  return ROLES.some((role) => name.startsWith(`${role.toUpperCase()}_`));
}

/** For a program that is configured anew. */
export function withoutSettings(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !SETTING_NAMES.includes(name) && !hasRolePrefix(name)));
}

/** For a program that needs none of our secrets. */
export function withoutSecrets(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !isSecretSetting(name)));
}
