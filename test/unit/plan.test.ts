import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { readConfig } from "../../queues/config.ts";
import type { Role } from "../../queues/names.ts";
import { checkFits, detectCard, hostCard, makePlan, type PlannedProfile, type PlanOptions, parseMemory } from "../../workers/gpu/plan.ts";
import { planReport } from "../../workers/gpu/plan-report.ts";
import { type Card, GIBIBYTE } from "../../workers/gpu/vram.ts";

const MEBIBYTE = 1_048_576;
const MODELS = path.join(import.meta.dirname, "../../models");
const STUDENT = "nvidia/OpenMath-Nemotron-7B";
const TALKER = "meta-llama/Llama-3.1-8B-Instruct";
const AWQ_TALKER = "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4";
const TINYLLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0";
const STUDENT_GGUF = "hf:bartowski/nvidia_OpenMath-Nemotron-7B-GGUF:Q4_K_M";
const TALKER_GGUF = "hf:bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q4_K_M";
const card = (changes: Partial<Card> = {}): Card => ({
  kind: "gpu",
  name: "NVIDIA GeForce RTX 5070",
  totalBytes: 12_227 * MEBIBYTE,
  freeBytes: 12_227 * MEBIBYTE,
  ...changes,
});

function profile(role: Role, changes: Partial<PlannedProfile> = {}): PlannedProfile {
  return {
    role,
    mode: "embedded",
    model: role === "student" ? STUDENT_GGUF : TALKER_GGUF,
    maxModelLen: 4096,
    maxNumSeqs: role === "student" ? 8 : 6,
    kvCacheBits: 16,
    speculative: { enabled: false },
    ngl: undefined,
    ...changes,
  };
}

const plan = (student: Partial<PlannedProfile>, talker: Partial<PlannedProfile> = {}, options: Partial<PlanOptions> = {}) =>
  makePlan({ student: profile("student", student), talker: profile("talker", talker) }, { card: card(), ...options });

/** The environment that a `.env` block sets, as Node reads it. */
async function envOf(block: string): Promise<Record<string, string | undefined>> {
  const { parseEnv } = await import("node:util");
  return parseEnv(block);
}

describe("a plan", () => {
  it("refuses the BF16 baseline on 12 GB, and has settings for the embedded engine that fit and that the system reads", async () => {
    const made = await plan({ model: STUDENT, mode: "vllm" }, { model: TALKER, mode: "vllm" }, { draft: TINYLLAMA });
    expect(made.safe).toBe(true);
    expect(made.models.student.fit).toMatchObject({ fits: false, largestSequences: 0 });
    expect(made.models.talker.fit).toMatchObject({ fits: false, largestSequences: 0 });
    expect(made.models.student.draft).toMatchObject({ verdict: { valid: false } });
    expect(made.models.student.draft!.instead).toContain("hf:bartowski/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M");
    expect(made.together.fits).toBe(false);
    const { profiles } = readConfig(await envOf(made.env));
    expect(profiles.student).toMatchObject({
      model: STUDENT_GGUF,
      mode: "embedded",
      maxNumSeqs: 8,
      maxModelLen: 4096,
      speculative: { enabled: false },
    });
    expect(profiles.talker).toMatchObject({ model: TALKER_GGUF, mode: "embedded", maxNumSeqs: 6 });
    const report = planReport(made);
    expect(report).toContain("BF16 does not fit with even one sequence of 4096 tokens.");
    expect(report).toContain(`Draft ${TINYLLAMA}: NOT valid, another vocabulary size (32000 tokens against 152064)`);
    expect(report).toContain("14.19 GiB (15.23 GB), BF16");
    expect(report).toMatch(/AWQ 4-bit, vllm *│ 5\.19 GiB/);
    expect(report).toMatch(/FP8, vllm *│ 8\.11 GiB/);
  });

  it("sweeps 8, 10 and 12 sequences in 16 and 8 bits", async () => {
    const { models } = await plan({}, {});
    const inGib = (role: Role) => models[role].sweep.map(({ sequences, kv16Bytes, fits }) => [sequences, kv16Bytes / GIBIBYTE, fits]);
    expect(inGib("student")).toEqual([
      [8, 1.75, true],
      [10, 2.1875, true],
      [12, 2.625, true],
    ]);
    expect(inGib("talker").map(([, bytes]) => bytes)).toEqual([4, 5, 6]);
    expect(models.talker.sweep[0]!.kv8Bytes / models.talker.sweep[0]!.kv16Bytes).toBe(34 / 64);
    expect(models.student.safe).toMatchObject({ changes: [], model: STUDENT_GGUF, engine: "embedded" });
  });

  it("lowers vLLM's share to what is free, then the sequences", async () => {
    const { models, env, safe } = await plan({}, { model: AWQ_TALKER, mode: "vllm" }, { card: card({ freeBytes: 9 * GIBIBYTE }) });
    expect(safe).toBe(true);
    expect(models.talker.safe!.changes).toEqual([
      "GPU_MEMORY_UTILIZATION 0.74 instead of 0.85: no more is free now",
      "MAX_NUM_SEQS 4 instead of 6",
    ]);
    expect(models.talker.safe!.fit.fits).toBe(true);
    expect(await envOf(env)).toMatchObject({ TALKER_MODE: "vllm", TALKER_GPU_MEMORY_UTILIZATION: "0.74", TALKER_MAX_NUM_SEQS: "4" });
  });

  it("keeps the residual of the other's sleeping vLLM free", async () => {
    const made = await plan({ model: "Qwen/Qwen2.5-7B-Instruct-AWQ", mode: "vllm", sleepLevel: 1 }, { model: AWQ_TALKER, mode: "vllm" });
    expect(made.models.talker.settings.besideSleeping).toBe(true);
    expect(made.models.student.settings.besideSleeping).toBe(false);
    expect(made.models.talker.fit.utilisationNow).toBeLessThan(made.models.student.fit.utilisationNow!);
    expect((await envOf(made.env)).STUDENT_SLEEP_LEVEL).toBe("1");
    expect(readConfig(await envOf(made.env)).profiles.student).toMatchObject({ mode: "vllm", sleepLevel: 1 });
  });

  it("does not plan for a server that someone else runs", async () => {
    await expect(plan({ mode: "remote", model: "anything" })).rejects.toMatchObject({ code: "invalid-configuration" });
    await expect(plan({}, { mode: "ollama", model: "llama3.1:8b" })).rejects.toThrow(/TALKER_MODE.*--talker/);
    expect(await checkFits(profile("student", { mode: "ollama", model: "qwen2.5:7b" }), card())).toMatchObject({
      fits: true,
      needBytes: 0,
    });
  });

  it("takes the 8-bit cache, then a shorter context, before it gives up", async () => {
    const safeWith = async (freeBytes: number, talker: Partial<PlannedProfile> = {}) =>
      (await plan({ model: path.join(MODELS, "student.gguf") }, { maxModelLen: 65_536, ...talker }, { card: card({ freeBytes }) })).models
        .talker;
    const enough = await safeWith(11 * GIBIBYTE);
    expect(enough.safe).toMatchObject({ settings: { sequences: 1, kvCacheBits: 8, contextTokens: 65_536 } });
    const shorter = (await safeWith(6 * GIBIBYTE)).safe!;
    expect(shorter.settings).toMatchObject({ sequences: 1, kvCacheBits: 8 });
    expect(shorter.settings.contextTokens).toBeLessThan(65_536);
    expect(shorter.fit.fits).toBe(true);
    expect(shorter.settings.contextTokens).toBe(shorter.fit.largestContextTokens);
    const none = await safeWith(4 * GIBIBYTE);
    expect(none.safe).toBeNull();
    expect(none.remarks.join(" ")).toMatch(/layers would fit on the GPU \(NGL=\d+\)/);
  });

  it("on a card that is too small says so for each model", async () => {
    const { safe, env, models } = await plan(
      { model: STUDENT, mode: "vllm" },
      {},
      { card: card({ totalBytes: 2 * GIBIBYTE, freeBytes: 2 * GIBIBYTE }) },
    );
    expect(safe).toBe(false);
    expect(env).toMatch(/^# STUDENT: nothing of nvidia\/OpenMath-Nemotron-7B fits in 1\.92 GiB\.\n# TALKER: nothing/);
    expect(models.student.remarks.at(-1)).toBe("Nothing of this model fits: take a smaller one.");
    expect(planReport(await plan({}, {}, { card: card({ totalBytes: 0, freeBytes: 0 }) }))).toContain("No configuration fits for both");
  });

  it("speculates with one sequence on the embedded engine, and with a GGUF draft where a hub name was given", async () => {
    const { models, env } = await plan({}, {}, { draft: "hf:bartowski/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M" });
    expect(models.student.draft).toMatchObject({ verdict: { valid: true, basis: "family" }, instead: null });
    expect(models.student.settings).toMatchObject({ sequences: 1 });
    expect(models.student.fit.need.draftBytes).toBeGreaterThan(0.39e9);
    expect(readConfig(await envOf(env)).profiles.student).toMatchObject({ maxNumSeqs: 1, speculative: { enabled: true } });
    const named = await plan({ model: STUDENT, mode: "vllm" }, {}, { draft: "Qwen/Qwen2.5-0.5B" });
    expect(named.models.student.draft).toMatchObject({
      verdict: { valid: false },
      instead: "hf:bartowski/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M on the embedded engine",
    });
    expect(named.models.student.safe).toMatchObject({ draftModel: "hf:bartowski/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M" });
  });

  it("compares the tokens of models that are on this machine", async () => {
    const [student, draft] = [path.join(MODELS, "student.gguf"), path.join(MODELS, "draft.gguf")];
    const { models } = await plan({ model: student, speculative: { enabled: true, draftModel: draft } }, {});
    expect(models.student.draft!.verdict).toEqual({
      valid: true,
      basis: "tokens",
      reason: "the same 1024 tokens (1024 tokens against 1024)",
    });
    const crossed = await plan({ model: student }, {}, { draft: TINYLLAMA });
    expect(crossed.models.student.draft!.verdict.valid).toBe(false);
    expect(crossed.models.student.draft!.instead).toBe("no draft: SPECULATIVE_ENABLED=0");
  });

  it("tells vLLM's and llama.cpp's own ways to do without a draft, and the Talker's draft", async () => {
    const on = async (mode: PlannedProfile["mode"], model: string, role: Role) => {
      const changed = { mode, model, speculative: { enabled: true, draftModel: TINYLLAMA } };
      const big = card({ totalBytes: 80 * GIBIBYTE, freeBytes: 80 * GIBIBYTE });
      const { models } = await plan(role === "student" ? changed : {}, role === "talker" ? changed : {}, { card: big });
      return models[role].draft!.instead!;
    };
    expect(await on("vllm", STUDENT, "student")).toMatch(/^no draft: --speculative-config .*ngram/);
    expect(await on("llamacpp", STUDENT_GGUF, "student")).toMatch(/OpenMath-Nemotron-1\.5B-GGUF:Q4_K_M, or no draft: --spec-type ngram/);
    expect(await on("vllm", TALKER, "talker")).toMatch(/^meta-llama\/Llama-3\.2-1B-Instruct, or/);
  });

  it("plans for host memory", async () => {
    const host: Card = { kind: "host", name: "host memory", totalBytes: 32 * GIBIBYTE, freeBytes: 30 * GIBIBYTE };
    const made = await plan({}, { model: AWQ_TALKER, mode: "vllm" }, { card: host });
    expect(made.models.student.safe).toMatchObject({ changes: [] });
    expect(made.models.talker.safe).toMatchObject({ model: TALKER_GGUF, engine: "embedded" });
    expect(made.models.talker.remarks).toContain("vLLM needs a GPU.");
    expect(planReport(made)).toContain("Planned for host memory");
  });

  it("quotes what a .env file would misread, and shows no control characters", async () => {
    const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm plan # "));
    try {
      const file = path.join(folder, "it's a model.gguf");
      const { cp } = await import("node:fs/promises");
      await cp(path.join(MODELS, "student.gguf"), file);
      const made = await plan({ model: file }, {}, { processes: [{ pid: 7, name: "evil\u001b[2Jname\u0007", usedBytes: null }] });
      expect((await envOf(made.env)).STUDENT_MODEL).toBe(file);
      expect(planReport(made)).toContain("evil?[2Jname? (process 7) holds an unknown amount");
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });

  it("is plain JSON with bytes", async () => {
    const made = await plan({}, {});
    expect(JSON.parse(JSON.stringify(made))).toMatchObject({ safe: true, card: { totalBytes: 12_227 * MEBIBYTE } });
    for (const line of planReport(made).split("\n")) expect(line.length).toBeLessThan(150);
  });
});

describe("the check before a load", () => {
  it("gives the sum, what is there, and the most sequences", async () => {
    const check = await checkFits(
      profile("talker", { model: AWQ_TALKER, mode: "vllm", maxNumSeqs: 8, gpuMemoryUtilization: 0.85 }),
      card(),
    );
    expect(check).toMatchObject({ fits: false, largestMaxNumSeqs: 7 });
    expect(check.needBytes).toBeGreaterThan(check.haveBytes);
    expect(check.arithmetic).toMatch(/^weights 5\.33 GiB \+ KV cache 4\.00 GiB .* > 0\.85 · 11\.49 GiB = 9\.77 GiB$/);
    expect((await checkFits(profile("talker", { model: AWQ_TALKER, mode: "vllm", maxNumSeqs: 7 }), card())).fits).toBe(true);
  });

  it("lets the embedded engine leave layers in host memory, unless NGL says otherwise or the host has no room", async () => {
    const small = card({ totalBytes: 4 * GIBIBYTE, freeBytes: 4 * GIBIBYTE, hostFreeBytes: 16 * GIBIBYTE });
    const partly = await checkFits(profile("student"), small);
    expect(partly.fits).toBe(true);
    expect(partly.arithmetic).toMatch(/with \d+ of 29 layers on the GPU/);
    expect((await checkFits(profile("student", { ngl: 29 }), small)).fits).toBe(false);
    expect((await checkFits(profile("student", { mode: "llamacpp" }), small)).fits).toBe(false);
    expect((await checkFits(profile("student"), { ...small, hostFreeBytes: GIBIBYTE })).fits).toBe(false);
  });

  it("lets the shipped models through on this machine", async () => {
    for (const [role, each] of Object.entries(readConfig({}).profiles)) {
      expect(await checkFits(each, hostCard()), role).toMatchObject({ fits: true });
    }
  });
});

describe("amounts of memory", () => {
  it.each([
    ["12GiB", 12 * GIBIBYTE],
    ["12227MiB", 12_227 * MEBIBYTE],
    ["12227 mib", 12_227 * MEBIBYTE],
    ["12GB", 12e9],
    ["1.5GiB", 1.5 * GIBIBYTE],
    ["4096", 4096],
    ["12XB", null],
    ["-1GiB", null],
    ["0", null],
    ["", null],
    ["1e9", null],
    ["99999999999999999999GiB", null],
  ])("%s is %d bytes", (text, bytes) => expect(parseMemory(text)).toBe(bytes));
});

describe("the card", () => {
  let folder = "";
  const pathBefore = process.env.PATH;
  beforeAll(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-smi-"));
  });
  afterEach(() => {
    process.env.PATH = pathBefore;
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  /** An nvidia-smi that answers each question, told apart by a word in its arguments, with a text. */
  async function nvidiaSmi(cases: string): Promise<void> {
    const file = path.join(folder, "nvidia-smi");
    await writeFile(file, `#!/bin/sh\ncase "$*" in\n${cases}\nesac\n`);
    await chmod(file, 0o755);
    process.env.PATH = `${folder}:${pathBefore}`;
  }

  it("of 12 GB on a desktop: name, total, free, what the driver keeps, and who holds memory", async () => {
    await nvidiaSmi(`
      *query-gpu*) echo "NVIDIA GeForce RTX 5070, 12227, 9831, 461";;
      *query-compute-apps*) echo "4242, /opt/a, b/blender, 1024"; echo "77, [Not Found], [N/A]";;
      *pmon*) printf '%s\\n' "# gpu         pid   type     fb   ccpm    command " "# Idx           #    C/G     MB     MB    name " "    0       1201     G    512      0    Xorg           " "    0       4242     C   1024      0    blender        " "    0       1999     G      -      -    firefox        ";;`);
    const { card: found, processes, note } = await detectCard();
    expect(found).toMatchObject({
      kind: "gpu",
      name: "NVIDIA GeForce RTX 5070",
      totalBytes: 12_227 * MEBIBYTE,
      freeBytes: 9831 * MEBIBYTE,
      reservedBytes: 461 * MEBIBYTE,
    });
    expect(found!.hostFreeBytes).toBeGreaterThan(0);
    expect(note).toBeNull();
    expect(processes).toEqual([
      { pid: 4242, name: "/opt/a, b/blender", usedBytes: 1024 * MEBIBYTE },
      { pid: 1201, name: "Xorg", usedBytes: 512 * MEBIBYTE },
      { pid: 77, name: "[Not Found]", usedBytes: null },
      { pid: 1999, name: "firefox", usedBytes: null },
    ]);
  });

  it("of an older driver, without what it keeps and without a list of processes", async () => {
    await nvidiaSmi(`
      *memory.reserved*) echo 'Field "memory.reserved" is not a valid field to query.'; exit 2;;
      *query-gpu*) echo "GeForce GTX 1080, 8119, 7900";;
      *) exit 1;;`);
    expect(await detectCard()).toMatchObject({
      card: { name: "GeForce GTX 1080", totalBytes: 8119 * MEBIBYTE, reservedBytes: undefined },
      processes: [],
    });
  });

  it("with N/A for its memory is not guessed", async () => {
    await nvidiaSmi('*query-gpu*) echo "NVIDIA GB10, [N/A], [N/A], [N/A]";; *) exit 1;;');
    const { card: found, note } = await detectCard();
    expect(found).toBeNull();
    expect(note).toMatch(/does not tell the memory of NVIDIA GB10.*--vram/);
    await nvidiaSmi('*query-gpu*) echo "NVIDIA X, 8000, [N/A], [N/A]";; *) exit 1;;');
    expect(await detectCard()).toMatchObject({ card: { freeBytes: 8000 * MEBIBYTE }, note: expect.stringContaining("what is free") });
  });

  it("that is lost, or whose driver is gone, is a note", async () => {
    await nvidiaSmi(
      '*) echo "Unable to determine the device handle for GPU0000:01:00.0: GPU is lost.  Reboot the system to recover this GPU"; exit 15;;',
    );
    expect((await detectCard()).note).toContain("GPU is lost");
    await nvidiaSmi('*) echo "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver."; exit 9;;');
    expect((await detectCard()).note).toContain("couldn't communicate");
    await nvidiaSmi("*) ;;");
    expect(await detectCard()).toMatchObject({ card: null });
    process.env.PATH = "/nonexistent";
    expect(await detectCard()).toMatchObject({ card: null, note: expect.stringContaining("no nvidia-smi") });
  });

  it("is the one that was asked for", async () => {
    await nvidiaSmi(
      '*GPU-b*query-gpu*) echo "Second, 100, 90, 1";; *query-gpu*) echo "First, 200, 90, 1"; echo "Second, 100, 90, 1";; *) exit 1;;',
    );
    expect((await detectCard("GPU-b")).card?.name).toBe("Second");
    expect((await detectCard("some-name")).card?.name).toBe("First");
  });
});
