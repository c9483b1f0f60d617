import { graphFile } from "./charts/chart.ts";
import type { Block, Inline, ReportDocument } from "./document.ts";

const SIGNS = { good: "✓", bad: "✗", open: "○" } as const;

/** The document as GitHub-flavoured Markdown. Texts are escaped: none of them can become markup. */
export function markdownOf({ title, subtitle, verdict, grade, ticks, blocks }: ReportDocument): string {
  const parts = [
    `# ${escaped(title)}`,
    inline(subtitle),
    `**${SIGNS[verdict.mark]} ${escaped(verdict.headline)}**`,
    `**Grade ${grade.text}** — ${grade.phases.map(({ id, mark, title: its }) => `${SIGNS[mark]} ${id} ${escaped(its)}`).join(" · ")}`,
    ...(verdict.reasons.length === 0 ? [] : [items(verdict.reasons.map((reason) => [reason]))]),
    "**What was to be done**",
    ticks.map(({ label, ticked }) => `- [${ticked ? "x" : " "}] ${escaped(label)}`).join("\n"),
    ...blocks.map(blockText),
  ];
  return `${parts.join("\n\n")}\n`;
}

function blockText(block: Block): string {
  switch (block.kind) {
    case "heading":
      return `${"#".repeat(block.level)} ${escaped(block.text)}${block.mark === null ? "" : ` — ${inline([block.mark])}`}`;
    case "paragraph":
      return inline(block.content);
    case "list":
      return items(block.items);
    case "code":
      return fenced(block.text);
    case "chart":
      return `![${escaped(block.chart.title)}. ${escaped(block.chart.description)}](${graphFile(block.chart.id)})`;
    case "table":
      return [
        `**${escaped(block.caption)}**`,
        "",
        `| ${block.columns.map(({ label }) => cell([label])).join(" | ")} |`,
        `|${block.columns.map(({ isNumber }) => (isNumber ? "--:" : "---")).join("|")}|`,
        ...block.rows.map((row) => `| ${row.map(cell).join(" | ")} |`),
      ].join("\n");
  }
}

const items = (rows: Inline[][]) => rows.map((row) => `- ${inline(row)}`).join("\n");
const cell = (content: Inline[]) => inline(content).replaceAll("|", "\\|");

const inline = (content: readonly Inline[]): string => content.map(partText).join("");

function partText(part: Inline): string {
  if (typeof part === "string") return escaped(part);
  switch (part.kind) {
    case "strong":
      return spaced(part.text, (text) => `**${escaped(text)}**`);
    case "code":
      return codeSpan(part.text);
    case "mark":
      return `${SIGNS[part.mark]} ${escaped(part.text)}`;
    case "link":
      return `[${escaped(part.text)}](<${part.href.replace(/[<>\\\n]/g, (char) => encodeURIComponent(char))}>)`;
  }
}

/** Emphasis must not end in a space. */
function spaced(text: string, wrap: (text: string) => string): string {
  const [, inner, end] = /^(.*?)(\s*)$/s.exec(text)!;
  return `${wrap(inner!)}${end}`;
}

/** What could begin markup gets a backslash; a line break would end a table's row. */
function escaped(text: string): string {
  return oneLine(text)
    .replace(/[\\`*_[\]<>~#|&!]/g, "\\$&")
    .replaceAll("\\|", "|");
}

function codeSpan(text: string): string {
  const fence = "`".repeat(longestRun(text) + 1);
  const line = oneLine(text);
  const pad = line.startsWith("`") || line.endsWith("`") || line === "" ? " " : "";
  return `${fence}${pad}${line}${pad}${fence}`;
}

function fenced(text: string): string {
  const fence = "`".repeat(Math.max(3, longestRun(text) + 1));
  return `${fence}\n${text}\n${fence}`;
}

const longestRun = (text: string) => Math.max(0, ...[...text.matchAll(/`+/g)].map(([run]) => run.length));
const oneLine = (text: string) => text.replace(/\s*[\r\n]+\s*/g, " ");
