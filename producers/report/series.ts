import { MAX_POINTS } from "./schema.ts";

export type Point = [x: number, y: number];

/**
 * At most `limit` points of a series that is sorted by x: each stretch keeps its lowest and its highest, in their order, so that peaks stay
 * where they were. The first and the last point stay.
 */
export function boundedSeries(points: readonly Point[], limit = MAX_POINTS): Point[] {
  if (points.length <= limit) return [...points];
  const inner = points.slice(1, -1);
  const stretches = Math.floor((limit - 2) / 2);
  const kept: Point[] = [points[0]!];
  for (let stretch = 0; stretch < stretches; stretch++) {
    const from = Math.floor((stretch * inner.length) / stretches);
    const to = Math.floor(((stretch + 1) * inner.length) / stretches);
    let low = from;
    let high = from;
    for (let at = from + 1; at < to; at++) {
      if (inner[at]![1] < inner[low]![1]) low = at;
      if (inner[at]![1] > inner[high]![1]) high = at;
    }
    for (const at of new Set([Math.min(low, high), Math.max(low, high)])) kept.push(inner[at]!);
  }
  kept.push(points.at(-1)!);
  return kept;
}
