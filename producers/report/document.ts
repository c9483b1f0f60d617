import type { Chart } from "./charts/chart.ts";
import { MISSING } from "./figure.ts";
import type { PhaseId, Report } from "./schema.ts";

/** What a report says, before it is Markdown or a page: both are written from this, so they can't say different things. */

/** `mark`: passed, missed, or neither; its text says it too, so that colour is not the only sign. */
export type Inline =
  | string
  | { kind: "strong" | "code"; text: string }
  | { kind: "mark"; mark: Mark; text: string }
  | { kind: "link"; href: string; text: string };
export type Mark = "good" | "bad" | "open";

export interface Column {
  label: string;
  /** Numbers stand at the right. */
  isNumber: boolean;
}

export type Block =
  | { kind: "heading"; level: 2 | 3; id: string; text: string; mark: Inline | null }
  | { kind: "paragraph"; content: Inline[] }
  | { kind: "list"; items: Inline[][] }
  | { kind: "table"; caption: string; columns: Column[]; rows: Inline[][][] }
  | { kind: "code"; text: string }
  | { kind: "chart"; chart: Chart };

export interface ReportDocument {
  title: string;
  /** Which run, when, on what. */
  subtitle: Inline[];
  verdict: { mark: Mark; headline: string; reasons: string[] };
  grade: { text: string; points: number; of: number; phases: { id: PhaseId; title: string; point: boolean; mark: Mark }[] };
  ticks: Report["grade"]["ticks"];
  blocks: Block[];
}

export const heading = (level: 2 | 3, id: string, text: string, mark: Inline | null = null): Block => ({
  kind: "heading",
  level,
  id,
  text,
  mark,
});
export const paragraph = (...content: Inline[]): Block => ({ kind: "paragraph", content });
export const list = (items: Inline[][]): Block => ({ kind: "list", items });
export const code = (text: string): Inline => ({ kind: "code", text });
export const strong = (text: string): Inline => ({ kind: "strong", text });
export const mark = (its: Mark, text: string): Inline => ({ kind: "mark", mark: its, text });

/** A column and what stands in it. */
export interface Field<T> {
  label: string;
  isNumber?: boolean;
  cell: (row: T) => Inline | Inline[];
}

/** One row for each of `rows`; nothing without rows. Columns without any value are left out, unless they are the first. */
export function table<T>(caption: string, rows: readonly T[], fields: readonly Field<T>[]): Block[] {
  if (rows.length === 0) return [];
  const filled = fields
    .map((field) => ({ field, cells: rows.map((row) => [field.cell(row)].flat()) }))
    .filter(({ cells }, nth) => nth === 0 || !cells.every(isEmpty));
  return [
    {
      kind: "table",
      caption,
      columns: filled.map(({ field }) => ({ label: field.label, isNumber: field.isNumber ?? false })),
      rows: rows.map((_, at) => filled.map(({ cells }) => (isEmpty(cells[at]!) ? [MISSING] : cells[at]!))),
    },
  ];
}

const isEmpty = (cell: Inline[]) => cell.length === 1 && cell[0] === "";

export const column = <T>(label: string, cell: (row: T) => Inline | Inline[]): Field<T> => ({ label, cell });
export const numberColumn = <T>(label: string, cell: (row: T) => Inline | Inline[]): Field<T> => ({ label, cell, isNumber: true });
