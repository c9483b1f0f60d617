import Table from "cli-table3";
import { ROLES, type Role } from "../../queues/names.ts";
import type { Plan, PlannedModel } from "./plan.ts";
import { effectiveContext, memoryText } from "./vram.ts";

/** A plan for people. Memory is in GiB (2³⁰ bytes), as a card shows it; file sizes in GB (10⁹), as a hub shows them. */

const MEBIBYTE = 1_048_576;
const gb = (bytes: number) => (bytes < 1e7 ? `${(bytes / 1e6).toFixed(2)} MB` : `${(bytes / 1e9).toFixed(2)} GB`);
const mib = (bytes: number) => `${Math.round(bytes / MEBIBYTE)} MiB`;
const grouped = (value: number) => Math.round(value).toLocaleString("en-US");
const parameters = (count: number) => (count < 1e8 ? `${(count / 1e6).toFixed(2)} M` : `${(count / 1e9).toFixed(3)} B`);
/** What comes from other programs and files is shown without control characters. */
const plain = (text: string) => text.replaceAll(/[^\x20-\x7e\u00a0-\uffff]/g, "?");
const TITLES: Record<Role, string> = { student: "Student", talker: "Talker" };
const MOST_PROCESSES = 10;
const bare = { style: { head: [], border: [] } };

export function planReport(plan: Plan): string {
  return [cardLines(plan), modelTable(plan), ...ROLES.map((role) => modelNotes(plan.models[role])), together(plan), envLines(plan)].join(
    "\n",
  );
}

function cardLines({ card, processes, note }: Plan): string {
  const seen = card.kind === "gpu" ? `, of which programs see ${memoryText(card.usableTotalBytes)}` : "";
  const lines = [
    ...(note === null ? [] : [plain(note)]),
    `${plain(card.name)}: ${mib(card.totalBytes)}${seen}; ${memoryText(card.usableFreeBytes)} free`,
    ...(card.kind === "host" ? ["Planned for host memory: the models would run on the CPU."] : []),
  ];
  for (const { pid, name, usedBytes } of processes.slice(0, MOST_PROCESSES)) {
    lines.push(`  ${plain(name)} (process ${pid}) holds ${usedBytes === null ? "an unknown amount" : mib(usedBytes)}`);
  }
  if (processes.length > MOST_PROCESSES) lines.push(`  and ${processes.length - MOST_PROCESSES} more processes`);
  return `${lines.join("\n")}\n`;
}

function modelTable({ models, card }: Plan): string {
  const table = new Table({ head: ["", ...ROLES.map((role) => TITLES[role])], ...bare });
  const row = (title: string, cell: (model: PlannedModel) => string) => table.push([title, ...ROLES.map((role) => cell(models[role]))]);
  row("weights", ({ shape }) => `${memoryText(shape.weightsBytes)} (${gb(shape.weightsBytes)}), ${shape.quantisation}`);
  row("parameters", ({ shape }) => parameters(shape.parameters));
  row("layers / hidden / KV heads\nhead size / vocabulary", ({ shape }) => {
    const { layers, hiddenSize, kvHeads, headDim, vocabularySize } = shape;
    return `${[layers, hiddenSize, kvHeads].map(grouped).join(" / ")}\n${[headDim, vocabularySize].map(grouped).join(" / ")}`;
  });
  row("engine", ({ engine, settings }) => (engine === "vllm" ? `vllm, share ${settings.utilisation}` : engine));
  row("KV cache a token", ({ kvBytesPerToken, settings }) => `${grouped(kvBytesPerToken)} bytes, ${settings.kvCacheBits}-bit`);
  row("tokens a sequence", ({ shape, settings }) => grouped(effectiveContext(shape, settings.contextTokens)));
  models.student.sweep.forEach(({ sequences }, i) => {
    row(`${sequences} full sequences`, ({ sweep }) => {
      const { kv16Bytes, kv8Bytes, needBytes, fits } = sweep[i]!;
      return `KV ${memoryText(kv16Bytes)}, 8-bit ${memoryText(kv8Bytes)}\nin all ${memoryText(needBytes)}: ${fits ? "fits" : "does not fit"}`;
    });
  });
  row(
    "as asked",
    ({ settings, fit }) => `${settings.sequences} sequences, ${memoryText(fit.needBytes)}: ${fit.fits ? "FITS" : "DOES NOT FIT"}`,
  );
  row("largest MAX_NUM_SEQS", ({ fit }) => (fit.largestSequences === 0 ? "none" : String(fit.largestSequences)));
  row("largest MAX_MODEL_LEN\nwith the sequences asked", ({ fit }) =>
    fit.largestContextTokens === 0 ? "none" : grouped(fit.largestContextTokens),
  );
  if (card.kind === "gpu" && ROLES.some((role) => models[role].engine === "vllm")) {
    row("largest share that starts now", ({ fit, engine }) =>
      engine !== "vllm"
        ? ""
        : fit.utilisationNow === null
          ? "none"
          : `${fit.utilisationNow}${fit.fitsUtilisationNow ? ", fits" : ", does not fit"}`,
    );
  }
  return `${table.toString()}\n`;
}

function modelNotes({ role, shape, draft, variants, safe, remarks, settings, fit }: PlannedModel): string {
  const lines = [
    `${TITLES[role]}: ${plain(shape.reference)}, from ${plain(shape.source)}`,
    `  ${fit.arithmetic}`,
    ...remarks.map((remark) => `  ${plain(remark)}`),
  ];
  if (draft !== null) {
    lines.push(`  Draft ${plain(draft.reference)}: ${draft.verdict.valid ? "valid" : "NOT valid"}, ${plain(draft.verdict.reason)}.`);
    if (draft.instead !== null) lines.push(`  Use instead: ${draft.instead}.`);
  }
  for (const change of safe?.changes ?? []) lines.push(`  To fit: ${plain(change)}`);
  if (!fit.fits && variants.length > 0) {
    const table = new Table({ head: ["kept as", "weights", `need for ${settings.sequences}`, "", "most sequences", "where"], ...bare });
    for (const each of variants) {
      table.push([
        `${each.variant}, ${each.engine}`,
        memoryText(each.weightsBytes),
        memoryText(each.needBytes),
        each.fits ? "fits" : "does not fit",
        String(each.largestSequences),
        each.model ?? "",
      ]);
    }
    lines.push(table.toString());
  }
  return `${lines.join("\n")}\n`;
}

function together({ together: { fits, needBytes, haveBytes } }: Plan): string {
  const verdict = fits ? "would fit, though only one is ever loaded" : "do not fit, so they take turns";
  return `Both at once, set as below: ${memoryText(needBytes)} of ${memoryText(haveBytes)}: ${verdict}.
Weights and KV caches are exact; activations, CUDA graphs, non-torch memory and process memory are estimates.
`;
}

function envLines({ env, safe }: Plan): string {
  return `${safe ? "A configuration that fits, for .env:" : "No configuration fits for both:"}\n\n${env}`;
}
