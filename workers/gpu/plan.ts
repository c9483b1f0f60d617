import { execFile } from "node:child_process";
import os from "node:os";
import { promisify } from "node:util";
import type { ModelProfile } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import { ROLES, type Role } from "../../queues/names.ts";
import { DEFAULT_GGUF, ggufShape, KNOWN_MODELS, type KnownModel, knownModel, type TokenizerFamily } from "./known-models.ts";
import { type ModelShapeOptions, readModelShape, readTokens, sameTokenizerFamily } from "./model-shape.ts";
import { type ModelShape, VARIANTS, type Variant, variantOf } from "./model-shape-config.ts";
import {
  bothFit,
  type Card,
  DEFAULT_UTILISATION,
  type DraftVerdict,
  draftVerdict,
  ENGINE_KINDS,
  type EngineKind,
  effectiveContext,
  type Fit,
  fitOf,
  freeNowBytes,
  kvBytes,
  kvBytesPerToken,
  LEAST_CONTEXT_TOKENS,
  type LoadSettings,
  memoryText,
  usableTotalBytes,
} from "./vram.ts";

/** What a plan needs of a profile; an engine without a setting has no use for it. */
export type PlannedProfile = Pick<
  ModelProfile,
  "role" | "mode" | "model" | "maxModelLen" | "maxNumSeqs" | "kvCacheBits" | "speculative" | "ngl"
> &
  Partial<Pick<ModelProfile, "gpuMemoryUtilization" | "enforceEager" | "sleepLevel">> & {
    /** The other role's vLLM sleeps on the card meanwhile, beyond what its free memory shows. */
    besideSleeping?: boolean;
  };

export interface GpuProcess {
  pid: number;
  name: string;
  /** null: the driver does not say. */
  usedBytes: number | null;
}

export interface DetectedCard {
  /** null: no GPU that can be asked. */
  card: Card | null;
  processes: GpuProcess[];
  /** Why there is no card, or what was left open. */
  note: string | null;
}

const MEBIBYTE = 1_048_576;
const NVIDIA_SMI_TIMEOUT_MS = 5000;
const run = promisify(execFile);

async function nvidiaSmi(args: string[]): Promise<string> {
  return (await run("nvidia-smi", args, { timeout: NVIDIA_SMI_TIMEOUT_MS, maxBuffer: 4 * MEBIBYTE })).stdout;
}

/** A whole number of MiB in bytes; undefined for N/A and the like. */
function mebibytes(field: string | undefined): number | undefined {
  return field !== undefined && /^\d+$/.test(field.trim()) ? Number(field) * MEBIBYTE : undefined;
}

const fieldsOf = (line: string) => line.split(",").map((field) => field.trim());

/** The first GPU, or the one with this UUID, with what it holds now. Never throws: a GPU that can't be asked is a note. */
export async function detectCard(gpuId?: string): Promise<DetectedCard> {
  const only = gpuId?.startsWith("GPU-") ? ["-i", gpuId] : [];
  const query = (fields: string) => nvidiaSmi([...only, `--query-gpu=${fields}`, "--format=csv,noheader,nounits"]);
  const none = (note: string): DetectedCard => ({ card: null, processes: [], note });
  let line: string;
  try {
    // Older drivers don't know what they reserve.
    const answer = await query("name,memory.total,memory.free,memory.reserved").catch(() => query("name,memory.total,memory.free"));
    line = answer.split("\n")[0] ?? "";
  } catch (error) {
    const { code, stdout, stderr } = error as { code?: unknown; stdout?: string; stderr?: string };
    if (code === "ENOENT") return none("There is no nvidia-smi, so no NVIDIA GPU was looked at.");
    const said = `${stdout ?? ""} ${stderr ?? ""}`.trim().split("\n")[0];
    return none(`nvidia-smi does not answer for the GPU: ${said || (error as Error).message}`);
  }
  const fields = fieldsOf(line);
  // A name may have commas; the numbers are at the end.
  const numbers = fields.length > 3 ? fields.slice(-3) : fields.slice(-2);
  const name = fields.slice(0, fields.length - numbers.length).join(", ");
  const [totalBytes, freeBytes, reservedBytes] = numbers.map(mebibytes);
  if (totalBytes === undefined || totalBytes === 0) {
    return none(`nvidia-smi does not tell the memory of ${name || "the GPU"} (it said ${line.trim() || "nothing"}); say it with --vram.`);
  }
  return {
    card: { kind: "gpu", name, totalBytes, freeBytes: freeBytes ?? totalBytes, reservedBytes, hostFreeBytes: hostCard().freeBytes },
    processes: await gpuProcesses(only),
    note: freeBytes === undefined ? "nvidia-smi does not tell what is free; all is taken as free." : null,
  };
}

/** Compute processes, and, where the driver lists them, those that draw. */
async function gpuProcesses(only: string[]): Promise<GpuProcess[]> {
  const byPid = new Map<number, GpuProcess>();
  const compute = await nvidiaSmi([...only, "--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader,nounits"]).catch(
    () => "",
  );
  for (const line of compute.split("\n")) {
    const fields = fieldsOf(line);
    const pid = Number(fields[0]);
    if (fields.length < 3 || !Number.isInteger(pid) || pid <= 0) continue;
    byPid.set(pid, { pid, name: fields.slice(1, -1).join(", "), usedBytes: mebibytes(fields.at(-1)) ?? null });
  }
  const all = await nvidiaSmi([...only, "pmon", "-c", "1", "-s", "m"]).catch(() => "");
  const heading = /^#\s*(gpu\s.*)$/m.exec(all)?.[1]?.trim().split(/\s+/) ?? [];
  const [pidAt, memoryAt, nameAt] = ["pid", "fb", "command"].map((name) => heading.indexOf(name)) as [number, number, number];
  for (const line of pidAt < 0 || nameAt < 0 ? [] : all.split("\n")) {
    const fields = line.trim().split(/\s+/);
    const pid = Number(fields[pidAt]);
    if (line.startsWith("#") || !Number.isInteger(pid) || pid <= 0 || byPid.has(pid)) continue;
    byPid.set(pid, { pid, name: fields.slice(nameAt).join(" "), usedBytes: mebibytes(fields[memoryAt]) ?? null });
  }
  return [...byPid.values()].sort((a, b) => (b.usedBytes ?? 0) - (a.usedBytes ?? 0));
}

/** The memory of this machine or container. */
export function hostCard(): Card {
  const limit = process.constrainedMemory();
  const totalBytes = limit > 0 && limit < os.totalmem() ? limit : os.totalmem();
  return { kind: "host", name: "host memory", totalBytes, freeBytes: Math.min(process.availableMemory(), totalBytes) };
}

const UNITS: Record<string, number> = { "": 1, B: 1, KIB: 1024, MIB: MEBIBYTE, GIB: 1024 ** 3, KB: 1e3, MB: 1e6, GB: 1e9 };

/** `12GiB`, `12227MiB`, `12GB` (decimal) or bytes; null when it is none of them. */
export function parseMemory(text: string): number | null {
  const [, digits, unit] = /^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]{0,3})\s*$/.exec(text) ?? [];
  const factor = UNITS[(unit ?? "").toUpperCase()];
  const bytes = digits === undefined || factor === undefined ? Number.NaN : Math.floor(Number(digits) * factor);
  return Number.isSafeInteger(bytes) && bytes > 0 ? bytes : null;
}

export interface PlanOptions extends ModelShapeOptions {
  card: Card;
  processes?: GpuProcess[];
  note?: string | null;
  /** A draft for the Student, checked whether or not speculation is on. */
  draft?: string;
}

export interface PlannedDraft {
  reference: string;
  verdict: DraftVerdict;
  /** What to do instead of an invalid draft. */
  instead: string | null;
}

export interface SafeSettings {
  model: string;
  engine: EngineKind;
  settings: LoadSettings;
  draftModel: string | null;
  fit: Fit;
  /** In what it differs from what was asked. */
  changes: string[];
}

export interface PlannedVariant {
  variant: Variant;
  engine: EngineKind;
  weightsBytes: number;
  needBytes: number;
  fits: boolean;
  largestSequences: number;
  /** Where to get it, where that is known. */
  model: string | null;
}

export interface PlannedModel {
  role: Role;
  shape: ModelShape;
  engine: EngineKind;
  settings: LoadSettings;
  /** vLLM: how deep it sleeps while the other is loaded; 0: it is ended. */
  sleepLevel: number;
  kvBytesPerToken: number;
  sweep: { sequences: number; kv16Bytes: number; kv8Bytes: number; needBytes: number; fits: boolean }[];
  fit: Fit;
  draft: PlannedDraft | null;
  variants: PlannedVariant[];
  safe: SafeSettings | null;
  remarks: string[];
}

export interface Plan {
  card: Card & { usableTotalBytes: number; usableFreeBytes: number };
  processes: GpuProcess[];
  note: string | null;
  models: Record<Role, PlannedModel>;
  together: { fits: boolean; needBytes: number; haveBytes: number };
  /** A configuration that fits exists for both. */
  safe: boolean;
  /** For a `.env` file. */
  env: string;
}

const SWEEP = [8, 10, 12];

/** Safetensors are for vLLM; a GGUF file is for whichever engine was asked for. */
export function engineFor(mode: string, shape: ModelShape): EngineKind {
  if (mode === "vllm" || shape.format === "safetensors") return "vllm";
  return mode === "llamacpp" ? "llamacpp" : "embedded";
}

/** A server that someone else runs. */
const runsElsewhere = ({ mode }: Pick<PlannedProfile, "mode">) => !(ENGINE_KINDS as readonly string[]).includes(mode);

function settingsOf(profile: PlannedProfile, engine: EngineKind, draft?: ModelShape): LoadSettings {
  return {
    engine,
    contextTokens: profile.maxModelLen,
    // The embedded engine drafts for one request at a time.
    sequences: engine === "embedded" && draft !== undefined ? 1 : profile.maxNumSeqs,
    kvCacheBits: profile.kvCacheBits,
    utilisation: profile.gpuMemoryUtilization ?? DEFAULT_UTILISATION,
    enforceEager: profile.enforceEager ?? false,
    gpuLayers: profile.ngl,
    draft,
    besideSleeping: profile.besideSleeping ?? false,
  };
}

/** Reads both models' shapes and works out what fits on the card. Throws what `readModelShape` throws. */
export async function makePlan(profiles: Record<Role, PlannedProfile>, options: PlanOptions): Promise<Plan> {
  const sleeps = (role: Role) => profiles[role].mode === "vllm" && (profiles[role].sleepLevel ?? 0) > 0;
  const besideSleeping = { student: sleeps("talker"), talker: sleeps("student") };
  const [student, talker] = await Promise.all(
    ROLES.map((role) => {
      const profile = { ...profiles[role], besideSleeping: besideSleeping[role] };
      return planModel(profile, role === "student" ? options.draft : undefined, options);
    }),
  );
  const models = { student: student!, talker: talker! };
  const safe = ROLES.every((role) => models[role].safe !== null);
  // Both as they would be run; as asked where nothing fits.
  const placed = await Promise.all(ROLES.map(async (role) => placement(models[role], options)));
  const { card } = options;
  return {
    card: { ...card, usableTotalBytes: usableTotalBytes(card), usableFreeBytes: freeNowBytes(card, false) },
    processes: options.processes ?? [],
    note: options.note ?? null,
    models,
    together: bothFit(placed, card),
    safe,
    env: envBlock(models, card),
  };
}

async function placement(
  { safe, shape, settings }: PlannedModel,
  options: PlanOptions,
): Promise<{ shape: ModelShape; settings: LoadSettings }> {
  if (safe === null || safe.model === shape.reference) return { shape, settings: safe?.settings ?? settings };
  return { shape: await readModelShape(safe.model, options), settings: safe.settings };
}

async function planModel(profile: PlannedProfile, asked: string | undefined, options: PlanOptions): Promise<PlannedModel> {
  const { card } = options;
  const name = profile.role.toUpperCase();
  if (runsElsewhere(profile)) {
    throw new MathllmError(
      "invalid-configuration",
      `${name}_MODE: expected ${ENGINE_KINDS.join(", ")} for a plan, got ${profile.mode}: that server's memory is its own. Name a model with --${profile.role} to plan for it here.`,
    );
  }
  const shape = await readModelShape(profile.model, options);
  const engine = engineFor(profile.mode, shape);
  const draftReference = asked ?? (profile.speculative.enabled ? profile.speculative.draftModel : undefined);
  const draft = draftReference === undefined ? null : await planDraft(profile.model, shape, draftReference, engine, options);
  const draftShape = draft?.verdict.valid ? await readModelShape(draftReference!, options) : undefined;
  const settings = settingsOf(profile, engine, draftShape);
  const fit = fitOf(shape, settings, card);
  const context = effectiveContext(shape, settings.contextTokens);
  const sweep = SWEEP.map((sequences) => {
    const swept = fitOf(shape, { ...settings, sequences }, card);
    return {
      sequences,
      kv16Bytes: kvBytes(shape, engine, context, sequences, 16),
      kv8Bytes: kvBytes(shape, engine, context, sequences, 8),
      needBytes: swept.needBytes,
      fits: swept.fits,
    };
  });
  const safe =
    safeSettings(profile.model, shape, settings, draft?.verdict.valid ? draftReference! : null, card) ??
    (await safeGguf(profile, shape, draftReference, options));
  const planned: PlannedModel = {
    role: profile.role,
    shape,
    engine,
    settings,
    sleepLevel: profile.sleepLevel ?? 0,
    kvBytesPerToken: kvBytesPerToken(shape, engine, settings.kvCacheBits),
    sweep,
    fit,
    draft,
    variants: variantsOf(profile, shape, card),
    safe,
    remarks: [],
  };
  if (draft !== null && !draft.verdict.valid) {
    draft.instead =
      safe?.draftModel != null
        ? `${safe.draftModel} on the ${safe.engine} engine`
        : draftInstead(profile.model, shape, safe?.engine ?? engine);
  }
  planned.remarks.push(...remarksOn(profile, planned, card));
  return planned;
}

/** The nearest settings of this very model that fit: a smaller share, fewer sequences, an 8-bit cache, a shorter context. */
function safeSettings(model: string, shape: ModelShape, asked: LoadSettings, draftModel: string | null, card: Card): SafeSettings | null {
  const changes: string[] = [];
  let settings = asked;
  const found = (fit: Fit): SafeSettings => ({ model, engine: settings.engine, settings, draftModel, fit, changes });
  let fit = fitOf(shape, settings, card);
  if (fit.fits) return found(fit);
  if (fit.utilisationNow !== null && fit.utilisationNow < settings.utilisation) {
    changes.push(`GPU_MEMORY_UTILIZATION ${fit.utilisationNow} instead of ${settings.utilisation}: no more is free now`);
    settings = { ...settings, utilisation: fit.utilisationNow };
    fit = fitOf(shape, settings, card);
    if (fit.fits) return found(fit);
  }
  if (fit.largestSequences === 0 && settings.kvCacheBits === 16) {
    changes.push("KV_CACHE_BITS 8 instead of 16");
    settings = { ...settings, kvCacheBits: 8 };
    fit = fitOf(shape, settings, card);
  }
  if (fit.largestSequences > 0) {
    const sequences = Math.min(settings.sequences, fit.largestSequences);
    if (sequences < settings.sequences) changes.push(`MAX_NUM_SEQS ${sequences} instead of ${settings.sequences}`);
    settings = { ...settings, sequences };
    return found(fitOf(shape, settings, card));
  }
  if (settings.sequences > 1) changes.push(`MAX_NUM_SEQS 1 instead of ${settings.sequences}`);
  settings = { ...settings, sequences: 1 };
  fit = fitOf(shape, settings, card);
  if (fit.largestContextTokens < Math.min(LEAST_CONTEXT_TOKENS, shape.trainedContextTokens)) return null;
  changes.push(`MAX_MODEL_LEN ${fit.largestContextTokens} instead of ${settings.contextTokens}`);
  settings = { ...settings, contextTokens: fit.largestContextTokens };
  return found(fitOf(shape, settings, card));
}

/** The same model as a GGUF file on the embedded engine, where its repository is known. */
async function safeGguf(
  profile: PlannedProfile,
  asked: ModelShape,
  draftReference: string | undefined,
  options: PlanOptions,
): Promise<SafeSettings | null> {
  const model = knownModel(profile.model)?.model;
  if (model?.ggufRepository === undefined || (asked.format === "gguf" && asked.quantisation === DEFAULT_GGUF)) return null;
  const reference = `hf:${model.ggufRepository}:${DEFAULT_GGUF}`;
  const shape = ggufShape(model, reference, DEFAULT_GGUF);
  const engine = profile.mode === "llamacpp" ? "llamacpp" : "embedded";
  const draftModel = draftReference === undefined ? null : ggufReference(draftReference);
  const draft = draftModel === null ? null : await planDraft(reference, shape, draftModel, engine, options);
  const draftShape = draft?.verdict.valid ? await readModelShape(draftModel!, options) : undefined;
  const safe = safeSettings(
    reference,
    shape,
    settingsOf(profile, engine, draftShape),
    draftShape === undefined ? null : draftModel,
    options.card,
  );
  return safe && { ...safe, changes: [`${reference} on the ${engine} engine instead of ${profile.model}`, ...safe.changes] };
}

/** The GGUF file of a model that is known by its name on the hub; other references stay as they are. */
function ggufReference(reference: string): string {
  const known = knownModel(reference);
  if (known === undefined || known.quantisation !== undefined || known.model.ggufRepository === undefined) return reference;
  return `hf:${known.model.ggufRepository}:${DEFAULT_GGUF}`;
}

async function planDraft(
  target: string,
  shape: ModelShape,
  reference: string,
  engine: EngineKind,
  options: PlanOptions,
): Promise<PlannedDraft> {
  const draft = await readModelShape(reference, options);
  return { reference, verdict: await judgeDraft(target, shape, reference, draft, engine, options), instead: null };
}

const FAMILY_SIZES: Record<TokenizerFamily, number[]> = { qwen2: [152_064, 151_936], llama3: [128_256], llama2: [32_000] };
const FAMILY_DRAFTS: Partial<Record<TokenizerFamily, string[]>> = {
  qwen2: ["Qwen/Qwen2.5-0.5B-Instruct", "nvidia/OpenMath-Nemotron-1.5B"],
  llama3: ["meta-llama/Llama-3.2-1B-Instruct"],
};

function familyOf(reference: string, shape: ModelShape): TokenizerFamily | undefined {
  const known = knownModel(reference)?.model.tokenizer;
  return known ?? (Object.keys(FAMILY_SIZES) as TokenizerFamily[]).find((family) => FAMILY_SIZES[family].includes(shape.vocabularySize));
}

/** What drafts for a model of this family, or how to speculate without a draft. */
function draftInstead(reference: string, target: ModelShape, engine: EngineKind): string {
  const family = familyOf(reference, target);
  const named = (family === undefined ? [] : (FAMILY_DRAFTS[family] ?? [])).map((name) => knownModel(name)!.model);
  const without = {
    vllm: 'no draft: --speculative-config {"method":"ngram", …}',
    llamacpp: "no draft: --spec-type ngram-…",
    embedded: "no draft: SPECULATIVE_ENABLED=0",
  }[engine];
  const fitting = named.filter((model) => engine !== "vllm" || model.config.vocab_size === target.vocabularySize);
  const references = fitting.map((model) => (engine === "vllm" ? model.names[0]! : `hf:${model.ggufRepository}:${DEFAULT_GGUF}`));
  return references.length === 0 ? without : `${references.join(" or ")}, or ${without}`;
}

/** The model with its weights kept in other ways, and what each would need with the settings that were asked for. */
function variantsOf(profile: PlannedProfile, asked: ModelShape, card: Card): PlannedVariant[] {
  return VARIANTS.flatMap((variant) => {
    const shape = variantOf(asked, variant);
    if (shape === undefined) return [];
    const engine = shape.format === "safetensors" ? "vllm" : profile.mode === "llamacpp" ? "llamacpp" : "embedded";
    const fit = fitOf(shape, settingsOf(profile, engine), card);
    return [
      {
        variant,
        engine,
        weightsBytes: shape.weightsBytes,
        needBytes: fit.needBytes,
        fits: fit.fits,
        largestSequences: fit.largestSequences,
        model: variantReference(variant, knownModel(profile.model)?.model),
      },
    ];
  });
}

function variantReference(variant: Variant, model: KnownModel | undefined): string | null {
  if (model === undefined) return null;
  // A quantised model's own name stands for its quantised weights; the others of its kind share the GGUF repository.
  const plain = KNOWN_MODELS.find((each) => each.ggufRepository === model.ggufRepository && each.config.quantization_config === undefined);
  if (variant === "BF16") return plain?.names[0] ?? null;
  if (variant === "AWQ 4-bit") return plain?.awqRepository ?? null;
  return variant === "FP8" || model.ggufRepository === undefined ? null : `hf:${model.ggufRepository}:${variant}`;
}

function remarksOn(profile: PlannedProfile, { shape, engine, settings, fit, safe, variants }: PlannedModel, card: Card): string[] {
  const remarks: string[] = [];
  if (settings.contextTokens > shape.trainedContextTokens) {
    remarks.push(
      `MAX_MODEL_LEN ${settings.contextTokens} is more than the model's own ${shape.trainedContextTokens} tokens, which bound it.`,
    );
  }
  if (engine === "vllm" && profile.mode !== "vllm")
    remarks.push(`${shape.quantisation} safetensors are planned for vLLM: the ${profile.mode} engine loads GGUF files.`);
  if (engine === "vllm" && card.kind === "host") remarks.push("vLLM needs a GPU.");
  else if (!fit.fits) {
    remarks.push(
      fit.largestSequences === 0 && fit.haveBytes > 0
        ? `${shape.quantisation} does not fit with even one sequence of ${effectiveContext(shape, settings.contextTokens)} tokens.`
        : `It does not fit as asked${fit.largestSequences > 0 ? `; MAX_NUM_SEQS ${fit.largestSequences} does` : ""}.`,
    );
  }
  if (!fit.fits && engine !== "vllm" && card.kind === "gpu" && fit.largestGpuLayers > 0 && settings.gpuLayers === undefined) {
    remarks.push(
      `${fit.largestGpuLayers} of its ${shape.layers + 1} layers would fit on the GPU (NGL=${fit.largestGpuLayers}), the rest in host memory, which is much slower.`,
    );
  }
  if (safe === null) {
    const fitting = variants.filter(({ largestSequences }) => largestSequences > 0).map(({ variant, engine: on }) => `${variant} (${on})`);
    remarks.push(fitting.length > 0 ? `What would fit: ${fitting.join(", ")}.` : "Nothing of this model fits: take a smaller one.");
  }
  return remarks;
}

const PLAIN_VALUE = /^[\w./:@+-]+$/;

function envValue(value: string | number): string {
  const text = String(value);
  if (PLAIN_VALUE.test(text)) return text;
  const quote = ["'", '"', "`"].find((mark) => !text.includes(mark));
  return quote === undefined ? text : `${quote}${text}${quote}`;
}

/** Lines for a `.env` file, in the names of `.env.example`. */
function envBlock(models: Record<Role, PlannedModel>, card: Card): string {
  const lines = ROLES.flatMap((role) => {
    const { safe, shape, sleepLevel } = models[role];
    const prefix = role.toUpperCase();
    if (safe === null)
      return [`# ${prefix}: nothing of ${shape.reference.replaceAll(/[\r\n]/g, " ")} fits in ${memoryText(freeNowBytes(card, false))}.`];
    const { settings } = safe;
    const values: Record<string, string | number | undefined> = {
      MODE: safe.engine,
      MODEL: safe.model,
      MAX_MODEL_LEN: settings.contextTokens,
      MAX_NUM_SEQS: settings.sequences,
      KV_CACHE_BITS: settings.kvCacheBits,
      GPU_MEMORY_UTILIZATION: safe.engine === "vllm" ? settings.utilisation : undefined,
      ENFORCE_EAGER: safe.engine === "vllm" && settings.enforceEager ? 1 : undefined,
      SLEEP_LEVEL: safe.engine === "vllm" && sleepLevel > 0 ? sleepLevel : undefined,
      NGL: settings.gpuLayers,
      SPECULATIVE_ENABLED: safe.draftModel === null ? 0 : 1,
      DRAFT_MODEL: safe.draftModel ?? undefined,
    };
    return [
      `# ${prefix}: needs ${memoryText(safe.fit.needBytes)} of ${memoryText(safe.fit.haveBytes)}`,
      ...Object.entries(values).flatMap(([name, value]) => (value === undefined ? [] : [`${prefix}_${name}=${envValue(value)}`])),
    ];
  });
  return `${lines.join("\n")}\n`;
}

export interface FitCheck {
  fits: boolean;
  needBytes: number;
  haveBytes: number;
  arithmetic: string;
  largestMaxNumSeqs: number;
  /** vLLM: the largest share of the card that starts now, and whether the model fits within it. */
  utilisationNow: number | null;
  fitsUtilisationNow: boolean;
}

/**
 * Whether a profile's model fits on the card now, before it is loaded. The embedded engine puts as many layers on the GPU as fit when NGL
 * is unset, so there a model fits too when the rest of it fits in host memory. Throws what `readModelShape` throws.
 */
export async function checkFits(profile: PlannedProfile, card: Card, options: ModelShapeOptions = {}): Promise<FitCheck> {
  if (runsElsewhere(profile)) {
    const haveBytes = freeNowBytes(card, false);
    return {
      fits: true,
      needBytes: 0,
      haveBytes,
      arithmetic: `the ${profile.mode} server's memory is its own`,
      largestMaxNumSeqs: profile.maxNumSeqs,
      utilisationNow: null,
      fitsUtilisationNow: false,
    };
  }
  const shape = await readModelShape(profile.model, options);
  const { enabled, draftModel } = profile.speculative;
  const draft = enabled && draftModel ? await readModelShape(draftModel, options) : undefined;
  return fitCheckOf(profile, shape, draft, card);
}

/** The same with the shapes at hand. Pure. */
export function fitCheckOf(profile: PlannedProfile, shape: ModelShape, draft: ModelShape | undefined, card: Card): FitCheck {
  const settings = settingsOf(profile, engineFor(profile.mode, shape), draft);
  const fit = fitOf(shape, settings, card);
  const answer = ({ fits, needBytes, haveBytes, arithmetic, largestSequences, utilisationNow, fitsUtilisationNow }: Fit): FitCheck => ({
    fits,
    needBytes,
    haveBytes,
    arithmetic,
    largestMaxNumSeqs: largestSequences,
    utilisationNow,
    fitsUtilisationNow,
  });
  if (fit.fits || settings.engine !== "embedded" || settings.gpuLayers !== undefined || card.kind === "host") return answer(fit);
  const partly = fitOf(shape, { ...settings, gpuLayers: fit.largestGpuLayers }, card);
  if (!partly.fits) return answer(fit);
  return { ...answer(partly), arithmetic: `${partly.arithmetic}, with ${fit.largestGpuLayers} of ${shape.layers + 1} layers on the GPU` };
}

/** Whether `draft` can draft for `target`, by their tokens where both are at hand, else by family or size. */
export async function judgeDraft(
  target: string,
  shape: ModelShape,
  reference: string,
  draft: ModelShape,
  engine: EngineKind,
  options: ModelShapeOptions,
): Promise<DraftVerdict> {
  const [own, drafts] = await Promise.all([readTokens(target, options), readTokens(reference, options)]);
  // llama.cpp counts the tokens of the list, which a padded embedding may exceed; vLLM compares the embeddings.
  const sizeOf = (model: ModelShape, tokens: string[] | null) =>
    engine === "vllm" ? model.vocabularySize : (tokens?.length ?? model.vocabularySize);
  const bothTokens = own !== null && drafts !== null;
  return draftVerdict(
    { size: sizeOf(shape, bothTokens ? own : null), tokens: own },
    { size: sizeOf(draft, bothTokens ? drafts : null), tokens: drafts },
    engine,
    sameTokenizerFamily(target, reference),
  );
}
