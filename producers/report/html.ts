import { readFileSync } from "node:fs";
import path from "node:path";
import { darkRules, escapeXml, NARROW, renderSvg, WIDE } from "./charts/chart.ts";
import type { Block, Inline, ReportDocument } from "./document.ts";

const SIGNS = { good: "✓", bad: "✗", open: "○" } as const;
const STYLE = readFileSync(path.join(import.meta.dirname, "page.css"), "utf8");

/** The document as one page that loads nothing: no script, no font, no picture from elsewhere. Texts are escaped. */
export function htmlOf(document: ReportDocument): string {
  const { title, subtitle, blocks } = document;
  const sections = blocks.filter((block) => block.kind === "heading" && block.level === 2);
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="color-scheme" content="light dark">
<title>${escapeXml(`${title}: ${document.verdict.headline}`)}</title>
<style>
${STYLE}
@media screen and (prefers-color-scheme: dark) {
${darkRules("svg.chart")}
}
</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<nav class="contents" aria-label="Contents">
<ol>
${sections.map((block) => (block.kind === "heading" ? `<li><a href="#${block.id}">${escapeXml(block.text)}</a></li>` : "")).join("\n")}
</ol>
</nav>
<main id="content">
<header>
<p class="eyebrow">mathllm · ${escapeXml(title.toLowerCase())}</p>
${summary(document)}
<p class="subtitle">${inline(subtitle)}</p>
</header>
${blocks.map(blockHtml).join("\n")}
</main>
</body>
</html>
`;
}

function summary({ verdict, grade, ticks }: ReportDocument): string {
  return `<div class="summary ${verdict.mark}">
<div class="verdict">
<h1><span class="sign ${verdict.mark}" aria-hidden="true">${SIGNS[verdict.mark]}</span> ${escapeXml(verdict.headline)}</h1>
${verdict.reasons.length === 0 ? "" : `<ul class="reasons">${verdict.reasons.map((reason) => `<li>${escapeXml(reason)}</li>`).join("")}</ul>`}
</div>
<p class="grade"><span class="points">${grade.points}<span class="of">/${grade.of}</span></span><span class="label">grade</span></p>
<ol class="phases" aria-label="Phases">
${grade.phases
  .map(
    ({ id, title, mark }) =>
      `<li class="${mark}"><a href="#phase-${id.toLowerCase()}"><span class="id"><span aria-hidden="true">${SIGNS[mark]}</span> ${id}</span> <span class="name">${escapeXml(title)}</span><span class="hidden">: ${MARK_WORDS[mark]}</span></a></li>`,
  )
  .join("\n")}
</ol>
<ul class="ticks" aria-label="What was to be done">
${ticks
  .map(
    ({ label, ticked }) =>
      `<li><span class="sign ${ticked ? "good" : "bad"}" aria-hidden="true">${ticked ? SIGNS.good : SIGNS.bad}</span> ${escapeXml(label)}<span class="hidden">: ${ticked ? "yes" : "no"}</span></li>`,
  )
  .join("\n")}
</ul>
</div>`;
}

const MARK_WORDS = { good: "passed", bad: "failed", open: "not measured" } as const;

function blockHtml(block: Block): string {
  switch (block.kind) {
    case "heading":
      return `<h${block.level} id="${block.id}">${escapeXml(block.text)}${block.mark === null ? "" : ` ${inline([block.mark])}`}</h${block.level}>`;
    case "paragraph":
      return `<p>${inline(block.content)}</p>`;
    case "list":
      return `<ul>${block.items.map((item) => `<li>${inline(item)}</li>`).join("")}</ul>`;
    case "code":
      return `<pre tabindex="0"><code>${escapeXml(block.text)}</code></pre>`;
    case "chart":
      return `<figure id="graph-${block.chart.id}"><div class="wide">${renderSvg(block.chart, WIDE)}</div><div class="narrow">${renderSvg(block.chart, NARROW)}</div><figcaption><strong>${escapeXml(block.chart.title)}.</strong> ${escapeXml(block.chart.description)}</figcaption></figure>`;
    case "table":
      return tableHtml(block);
  }
}

/** On a phone the rows become cards (page.css); the roles keep it a table for screen readers, and each cell names its column. */
function tableHtml({ caption, columns, rows }: Extract<Block, { kind: "table" }>): string {
  const head = columns
    .map(
      ({ label, isNumber }) =>
        `<th role="columnheader" scope="col"${classes({ number: isNumber, long: label.length > LONG_LETTERS })}>${escapeXml(label)}</th>`,
    )
    .join("");
  const body = rows
    .map(
      (row) =>
        `<tr role="row">${row
          .map((content, at) => {
            const { label, isNumber } = columns[at]!;
            const tag = at === 0 ? "th" : "td";
            const role = at === 0 ? 'role="rowheader" scope="row"' : 'role="cell"';
            return `<${tag} ${role}${classes({ number: isNumber, long: textOf(content).length > LONG_LETTERS })} data-label="${escapeXml(label)}"><span>${inline(content)}</span></${tag}>`;
          })
          .join("")}</tr>`,
    )
    .join("\n");
  return `<table role="table"${classes({ dense: columns.length > 8, cards: columns.length > 2, short: rows.length <= SHORT_ROWS })}><caption>${escapeXml(caption)}</caption><thead role="rowgroup"><tr role="row">${head}</tr></thead><tbody role="rowgroup">
${body}
</tbody></table>`;
}

/** On paper so short a table is not divided. */
const SHORT_ROWS = 10;

/** On a phone a cell with a longer text takes the whole width. */
const LONG_LETTERS = 26;

function classes(which: Record<string, boolean>): string {
  const names = Object.keys(which).filter((name) => which[name]);
  return names.length === 0 ? "" : ` class="${names.join(" ")}"`;
}

const textOf = (content: readonly Inline[]) => content.map((part) => (typeof part === "string" ? part : part.text)).join("");

const inline = (content: readonly Inline[]): string => content.map(partHtml).join("");

function partHtml(part: Inline): string {
  if (typeof part === "string") return escapeXml(part);
  switch (part.kind) {
    case "strong":
      return `<strong>${escapeXml(part.text)}</strong>`;
    case "code":
      return `<code>${escapeXml(part.text)}</code>`;
    case "mark":
      return `<span class="mark ${part.mark}"><span aria-hidden="true">${SIGNS[part.mark]}</span> ${escapeXml(part.text)}</span>`;
    case "link":
      return `<a href="${escapeXml(relativeHref(part.href))}">${escapeXml(part.text)}</a>`;
  }
}

/** Evidence lies beside the page: whatever the path says, the link stays relative. */
function relativeHref(href: string): string {
  return href.startsWith("#") ? href : `./${href.split("/").map(encodeURIComponent).join("/")}`;
}
