import type { Evaluation } from "./evaluation.ts";
import { call, type Expression, hasVariable, minus, number, over, product, substitute, traitsOf } from "./expression.ts";
import { compareExpressions, order } from "./scalars.ts";
import type { RelationOperator, Statement } from "./statements.ts";
import { NotJudged } from "./work-budget.ts";

/** Sets of real numbers: intervals and points, apart from each other and ascending. */
export type NumberSet = readonly Interval[];

interface Interval {
  low: Expression;
  high: Expression;
  hasLow: boolean;
  hasHigh: boolean;
}

const INFINITY: Expression = { kind: "constant", name: "infinity" };
const MINUS_INFINITY = call("negate", INFINITY);
const REALS: NumberSet = [{ low: MINUS_INFINITY, high: INFINITY, hasLow: false, hasHigh: false }];
const MAX_INTERVALS = 50;

/** What a statement says about one number; undefined when it is no such statement. @throws NotJudged */
export function numberSetOf(statement: Statement, evaluation: Evaluation): NumberSet | undefined {
  switch (statement.kind) {
    case "tuple": {
      const [low, high] = statement.items;
      if (statement.items.length !== 2 || low?.kind !== "quantity" || high?.kind !== "quantity") return undefined;
      if (order(low.expression, high.expression, evaluation) !== -1) return undefined;
      const interval = { low: low.expression, high: high.expression, hasLow: statement.open === "[", hasHigh: statement.close === "]" };
      return [interval];
    }
    case "quantity":
      return hasVariable(statement.expression) ? undefined : [pointAt(statement.expression)];
    case "set":
    case "list":
      return unionOf(statement.items, evaluation);
    case "union":
      return unionOf(statement.parts, evaluation);
    case "reals": {
      const without = statement.without === null ? [] : numberSetOf(statement.without, evaluation);
      return without === undefined ? undefined : complement(without);
    }
    case "labelled":
      return numberSetOf(statement.value, evaluation);
    case "relation":
      return relationSet(statement.sides, statement.operators, evaluation);
    case "conditions": {
      const sets = statement.parts.map((part) => numberSetOf(part, evaluation));
      if (!sets.every((set) => set !== undefined) || sets.length > MAX_INTERVALS) return undefined;
      const both = statement.joint === "or" ? [] : sets.reduce((a, b) => intersection(a, b, evaluation));
      // A comma means both, unless there is nothing that both could mean.
      return statement.joint === "or" || (statement.joint === "," && both.length === 0) ? merged(sets.flat(), evaluation) : both;
    }
    default:
      return undefined;
  }
}

export function sameNumberSet(a: NumberSet, b: NumberSet, evaluation: Evaluation): boolean {
  if (a.length !== b.length) return false;
  return a.every((interval, place) => {
    const other = b[place]!;
    if (interval.hasLow !== other.hasLow || interval.hasHigh !== other.hasHigh) return false;
    return sure(interval.low, other.low, evaluation) === 0 && sure(interval.high, other.high, evaluation) === 0;
  });
}

function pointAt(value: Expression): Interval {
  return { low: value, high: value, hasLow: true, hasHigh: true };
}

function sure(a: Expression, b: Expression, evaluation: Evaluation): -1 | 0 | 1 {
  const found = order(a, b, evaluation);
  if (found === undefined) throw new NotJudged("The order of two numbers is not known.");
  return found;
}

function unionOf(parts: readonly Statement[], evaluation: Evaluation): NumberSet | undefined {
  if (parts.length > MAX_INTERVALS) return undefined;
  const sets = parts.map((part) => numberSetOf(part, evaluation));
  return sets.every((set) => set !== undefined) ? merged(sets.flat(), evaluation) : undefined;
}

function merged(intervals: readonly Interval[], evaluation: Evaluation): NumberSet {
  const compareLow = (a: Interval, b: Interval) => sure(a.low, b.low, evaluation) || Number(b.hasLow) - Number(a.hasLow);
  const result: Interval[] = [];
  for (const interval of intervals.toSorted(compareLow)) {
    const last = result.at(-1);
    const gap = last === undefined ? -1 : sure(last.high, interval.low, evaluation);
    if (last === undefined || gap < 0 || (gap === 0 && !last.hasHigh && !interval.hasLow)) {
      result.push({ ...interval });
      continue;
    }
    const further = sure(interval.high, last.high, evaluation);
    if (further > 0) Object.assign(last, { high: interval.high, hasHigh: interval.hasHigh });
    else if (further === 0) last.hasHigh ||= interval.hasHigh;
  }
  return result;
}

function intersection(a: NumberSet, b: NumberSet, evaluation: Evaluation): NumberSet {
  const common = a.flatMap((left) =>
    b.flatMap((right): Interval[] => {
      const lows = sure(left.low, right.low, evaluation);
      const highs = sure(left.high, right.high, evaluation);
      const interval = {
        low: lows < 0 ? right.low : left.low,
        hasLow: lows < 0 ? right.hasLow : lows > 0 ? left.hasLow : left.hasLow && right.hasLow,
        high: highs > 0 ? right.high : left.high,
        hasHigh: highs > 0 ? right.hasHigh : highs < 0 ? left.hasHigh : left.hasHigh && right.hasHigh,
      };
      const width = sure(interval.low, interval.high, evaluation);
      return width < 0 || (width === 0 && interval.hasLow && interval.hasHigh) ? [interval] : [];
    }),
  );
  return merged(common, evaluation);
}

/** Of a set that is apart and ascending. */
function complement(set: NumberSet): NumberSet {
  const rest: Interval[] = [];
  let [low, hasLow]: [Expression, boolean] = [MINUS_INFINITY, false];
  for (const interval of set) {
    if (interval.low !== MINUS_INFINITY) rest.push({ low, hasLow, high: interval.low, hasHigh: !interval.hasLow });
    [low, hasLow] = [interval.high, !interval.hasHigh];
  }
  return low === INFINITY ? rest : [...rest, { low, hasLow, high: INFINITY, hasHigh: false }];
}

/** Where a chain like −2 ≤ x < 7 holds, if it is about one variable and linear in it. */
function relationSet(sides: readonly Expression[], operators: readonly RelationOperator[], evaluation: Evaluation): NumberSet | undefined {
  const { variables } = traitsOf(...sides);
  const [variable] = variables;
  if (variable === undefined || variables.size > 1 || operators.length > 4) return undefined;
  let set = REALS;
  for (const [place, operator] of operators.entries()) {
    const link = linkSet(sides[place]!, sides[place + 1]!, operator, variable, evaluation);
    if (link === undefined) return undefined;
    set = intersection(set, link, evaluation);
  }
  return set;
}

const MIRRORED: Record<RelationOperator, RelationOperator> = { "=": "=", "≠": "≠", "<": ">", ">": "<", "≤": "≥", "≥": "≤" };

function linkSet(
  left: Expression,
  right: Expression,
  operator: RelationOperator,
  variable: string,
  evaluation: Evaluation,
): NumberSet | undefined {
  if (right.kind === "call" && right.name === "absolute" && hasVariable(right))
    return linkSet(right, left, MIRRORED[operator], variable, evaluation);
  if (left.kind === "call" && left.name === "absolute" && hasVariable(left)) {
    return hasVariable(right) ? undefined : distanceSet(left.args[0]!, right, operator, variable, evaluation);
  }
  const line = linearIn(minus(left, right), variable, evaluation);
  if (line === undefined) return undefined;
  const slope = order(line.slope, number(0), evaluation);
  if (slope === undefined || slope === 0) return undefined;
  const at = over(call("negate", line.constant), line.slope);
  return half(at, slope > 0 ? operator : MIRRORED[operator]);
}

/** |f| < c is −c < f < c; |f| > c is everything else but the ends. */
function distanceSet(
  inside: Expression,
  distance: Expression,
  operator: RelationOperator,
  variable: string,
  evaluation: Evaluation,
): NumberSet | undefined {
  if (order(distance, number(0), evaluation) !== 1) return undefined;
  if (operator === "=" || operator === "≠") {
    const ends = [distance, call("negate", distance)].map((end) => linkSet(inside, end, "=", variable, evaluation));
    if (!ends.every((end) => end !== undefined)) return undefined;
    const points = merged(ends.flat(), evaluation);
    return operator === "=" ? points : complement(points);
  }
  const isInside = operator === "<" || operator === "≤";
  const upper = linkSet(inside, distance, operator, variable, evaluation);
  const lower = linkSet(inside, call("negate", distance), MIRRORED[operator], variable, evaluation);
  if (upper === undefined || lower === undefined) return undefined;
  return isInside ? intersection(lower, upper, evaluation) : merged([...lower, ...upper], evaluation);
}

function half(at: Expression, operator: RelationOperator): NumberSet {
  if (operator === "=") return [pointAt(at)];
  if (operator === "≠") return complement([pointAt(at)]);
  const isClosed = operator === "≤" || operator === "≥";
  return operator === "<" || operator === "≤"
    ? [{ low: MINUS_INFINITY, high: at, hasLow: false, hasHigh: isClosed }]
    : [{ low: at, high: INFINITY, hasLow: isClosed, hasHigh: false }];
}

/** Slope and constant of a function that is linear in its only variable, which is tried out at further places. */
function linearIn(f: Expression, variable: string, evaluation: Evaluation): { slope: Expression; constant: Expression } | undefined {
  if (!traitsOf(f).isPolynomial) return undefined;
  const at = (x: number) => substitute(f, variable, number(x));
  const constant = at(0);
  const slope = minus(at(1), constant);
  for (const x of [2, -3, 7, 101]) {
    const line = call("add", product([slope, number(x)]), constant);
    if (compareExpressions(at(x), line, evaluation).verdict !== "equal") return undefined;
  }
  return { slope, constant };
}
