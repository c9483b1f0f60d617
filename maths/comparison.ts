import { NUMERALS } from "./answer-words.ts";
import type { Evaluation } from "./evaluation.ts";
import { type Expression, hasVariable, minus, number, over, PI, product, traitsOf } from "./expression.ts";
import { different, equal, type Judgement, undecided } from "./judgement.ts";
import { allOf, matchInAnyOrder, matchInOrder } from "./matching.ts";
import { numberSetOf, sameNumberSet } from "./number-line.ts";
import { compareExpressions, proportion } from "./scalars.ts";
import type { RelationOperator, Statement } from "./statements.ts";
import type { Unit } from "./units.ts";
import { NotJudged, OutOfWork } from "./work-budget.ts";

/** Comparing what two answers say, form by form. Every rule here is the same for both orders. */

export interface Convention {
  evaluation: Evaluation;
  /** 28 % is 0.28 (and not 28). */
  percentIsValue: boolean;
}

type Of<K extends Statement["kind"]> = Extract<Statement, { kind: K }>;

/** The kind that is earlier here decides how a pair is compared, so that the order of the two doesn't matter. */
const RANKS: Statement["kind"][] = [
  ...(["labelled", "choice", "relation", "conditions", "union", "reals"] as const),
  ...(["text", "ratio", "list", "set", "tuple", "matrix", "quantity"] as const),
];

/** @throws OutOfWork */
export function compareStatements(a: Statement, b: Statement, convention: Convention): Judgement {
  try {
    return compareKinds(a, b, convention);
  } catch (error) {
    // One part that can't be judged leaves the others to be judged, in either order.
    if (error instanceof OutOfWork || !(error instanceof NotJudged)) throw error;
    return undecided(error.message);
  }
}

function compareKinds(a: Statement, b: Statement, convention: Convention): Judgement {
  const [first, second] = RANKS.indexOf(a.kind) <= RANKS.indexOf(b.kind) ? [a, b] : [b, a];
  switch (first.kind) {
    case "labelled":
      return compareLabelled(first, second, convention);
    case "choice":
      return compareChoice(first, second, convention);
    case "relation":
    case "conditions":
      return compareRelation(first, second, convention);
    case "union":
    case "reals":
      return compareNumberSets(first, second, convention) ?? undecided("A set is not understood.");
    case "text":
      return compareText(first, second);
    case "ratio":
      return compareRatio(first, second, convention);
    case "list":
    case "set":
      return compareCollection(first, second, convention);
    case "tuple":
      return compareTuple(first, second, convention);
    case "matrix":
      return second.kind === "matrix" ? compareMatrices(first, second, convention) : different("One is a matrix.");
    case "quantity":
      return compareQuantities(first, second as Of<"quantity">, convention);
  }
}

function compareLabelled(a: Of<"labelled">, b: Statement, convention: Convention): Judgement {
  if (b.kind === "labelled") {
    const values = compareStatements(a.value, b.value, convention);
    if (a.label === b.label) return values;
    const [left, right] = [equationOf(a), equationOf(b)];
    if (left !== undefined && right !== undefined) {
      const isConstant = ![left, right].some(({ sides }) => hasVariable(sides[1]!));
      return isConstant ? different("They are about different variables.") : compareRelation(left, right, convention);
    }
    return values.verdict === "equal" ? undecided("The values are the same, their names differ.") : values;
  }
  if (b.kind === "relation" || b.kind === "conditions") {
    const equation = equationOf(a);
    if (equation !== undefined) return compareRelation(equation, b, convention);
    return compareNumberSets(a, b, convention) ?? undecided("An equation and a condition are not understood together.");
  }
  return compareStatements(a.value, b, convention);
}

/** x = 5 as an equation. */
function equationOf({ variable, value }: Of<"labelled">): Of<"relation"> | undefined {
  if (variable === null || value.kind !== "quantity") return undefined;
  return { kind: "relation", sides: [variable, value.expression], operators: ["="] };
}

function compareChoice(a: Of<"choice">, b: Statement, convention: Convention): Judgement {
  if (b.kind === "choice") {
    if (a.letter !== b.letter) return different("The choices differ.");
    const content = compareStatements(a.content, b.content, convention);
    return content.verdict === "equal" ? content : undecided("The choices are the same, their contents are not.");
  }
  if (b.kind === "quantity" && b.expression.kind === "variable" && /^[A-J]$/.test(b.expression.name)) {
    return a.letter === b.expression.name ? equal("The choices are the same.") : different("The choices differ.");
  }
  return compareStatements(a.content, b, convention);
}

function compareNumberSets(a: Statement, b: Statement, { evaluation }: Convention): Judgement | undefined {
  const [left, right] = [numberSetOf(a, evaluation), numberSetOf(b, evaluation)];
  if (left === undefined || right === undefined) return undefined;
  return sameNumberSet(left, right, evaluation) ? equal("They hold for the same numbers.") : different("They hold for different numbers.");
}

function compareRelation(a: Of<"relation"> | Of<"conditions">, b: Statement, convention: Convention): Judgement {
  if (b.kind === "quantity") return compareEquationWithValue(a, b, convention);
  if (["text", "ratio", "matrix"].includes(b.kind)) return different("One is a condition.");
  const sameVariable = variablesOf(a) === variablesOf(b) || variablesOf(b) === null;
  const sets = compareNumberSets(a, b, convention);
  if (sets !== undefined) {
    if (sets.verdict === "equal" && !sameVariable) return undecided("They say the same of different variables.");
    return sets;
  }
  if (a.kind === "conditions" && b.kind === "conditions") {
    const matched = matchInAnyOrder(a.parts, b.parts, (x, y) => compareStatements(x, y, convention), convention.evaluation.work);
    return matched.verdict === "equal" && a.joint === b.joint ? matched : undecided("Their conditions are not understood together.");
  }
  return a.kind === "relation" && b.kind === "relation"
    ? compareFormulaRelations(a, b, convention)
    : undecided("A condition is not understood.");
}

/** The names that a condition is about; null for other statements. */
function variablesOf(statement: Statement): string | null {
  const relations = statement.kind === "conditions" ? statement.parts : [statement];
  const sides = relations.flatMap((relation) => (relation.kind === "relation" ? relation.sides : []));
  return sides.length === 0 ? null : [...traitsOf(...sides).variables].toSorted().join(",");
}

/** 2 + 3 = 5 says 5; what 2x = 10 says depends on the question. */
function compareEquationWithValue(a: Of<"relation"> | Of<"conditions">, b: Of<"quantity">, convention: Convention): Judgement {
  if (a.kind !== "relation" || a.operators.some((operator) => operator !== "=")) return different("One is a condition.");
  const compareWith = (side: Expression) => compareQuantities({ kind: "quantity", expression: side, unit: null }, b, convention);
  const value = compareWith(a.sides.at(-1)!);
  if (a.sides.some(hasVariable)) return value.verdict === "different" ? value : undecided("One is an equation, the other a value.");
  return allOf(a.sides.map(compareWith));
}

const FLIPPED: Partial<Record<RelationOperator, RelationOperator>> = { ">": "<", "≥": "≤" };

function compareFormulaRelations(a: Of<"relation">, b: Of<"relation">, { evaluation }: Convention): Judgement {
  if (a.operators.length !== 1 || b.operators.length !== 1) return undecided("A chain of relations is not understood.");
  const [left, right] = [a, b].map(({ sides: [x, y], operators: [operator] }) => {
    const flipped = FLIPPED[operator!];
    return { difference: flipped === undefined ? minus(x!, y!) : minus(y!, x!), operator: flipped ?? operator! };
  }) as [Oriented, Oriented];
  const sign = proportion(left.difference, right.difference, evaluation);
  if (sign === undefined) return undecided("Two relations could not be compared.");
  const isDirected = left.operator === "<" || left.operator === "≤";
  if (left.operator !== right.operator) return different("The relations differ.");
  if (sign === 1 || (sign === -1 && !isDirected)) return equal("One relation is the other, multiplied by a number.");
  if (sign === -1) return different("The relations point in opposite directions.");
  return traitsOf(left.difference, right.difference).isPolynomial
    ? different("The relations differ.")
    : undecided("Two relations could not be compared.");
}

interface Oriented {
  difference: Expression;
  operator: RelationOperator;
}

function compareText(a: Of<"text">, b: Statement): Judgement {
  const isPlain = ({ words }: Of<"text">) => words.every((word) => /^\p{L}+$/u.test(word) && !NUMERALS.includes(word));
  if (b.kind !== "text") {
    return isPlain(a) && (b.kind === "tuple" || (b.kind === "quantity" && !hasVariable(b.expression)))
      ? different("One is a word, the other is none.")
      : undecided("Words and formulas are not compared.");
  }
  const [left, right] = [a, b].map(({ words }) => words.filter((word) => !/^(?:the|a|an)$/.test(word)));
  if (left!.join(" ") === right!.join(" ")) return equal("The words are the same.");
  const isPart = left!.every((word) => right!.includes(word)) || right!.every((word) => left!.includes(word));
  return isPart || !isPlain(a) || !isPlain(b) ? undecided("The words are not quite the same.") : different("The words differ.");
}

function compareRatio(a: Of<"ratio">, b: Statement, convention: Convention): Judgement {
  if (b.kind === "quantity") {
    if (a.terms.length !== 2 || a.time?.half != null) return different("One is a ratio or a time of day.");
    return compareQuantities({ kind: "quantity", expression: over(a.terms[0]!, a.terms[1]!), unit: null }, b, convention);
  }
  if (b.kind !== "ratio") return different("One is a ratio or a time of day.");
  if (a.time !== null && b.time !== null) {
    const isSame = a.time.minutes === b.time.minutes;
    if (isSame && (a.time.half === null) === (b.time.half === null)) return equal("The times are the same.");
    if (a.time.half !== null || b.time.half !== null) {
      const onClock = (a.time.minutes - b.time.minutes) % 720 === 0;
      if (a.time.half !== null && b.time.half !== null) return different("The times differ.");
      return onClock ? undecided("One time of day lacks its half of the day.") : different("The times differ.");
    }
    const asRatios = compareTerms(a, b, convention);
    return asRatios.verdict === "equal" ? undecided("The ratios are the same, but times of day would differ.") : different("They differ.");
  }
  return compareTerms(a, b, convention);
}

function compareTerms(a: Of<"ratio">, b: Of<"ratio">, { evaluation }: Convention): Judgement {
  if (a.terms.length !== b.terms.length) return different("The ratios have different lengths.");
  const [a0, ...restA] = a.terms;
  const [b0, ...restB] = b.terms;
  const values = [...a.terms, ...b.terms].map((term) => evaluation.exact(term));
  if (values.some((value) => value?.numerator === 0n)) {
    return matchInOrder(a.terms, b.terms, (x, y) => compareExpressions(x, y, evaluation));
  }
  return matchInOrder(restA, restB, (x, y) => compareExpressions(product([x, b0!]), product([y, a0!]), evaluation));
}

function compareCollection(a: Of<"list"> | Of<"set">, b: Statement, convention: Convention): Judgement {
  const compareItems = (x: Statement, y: Statement) => compareStatements(x, y, convention);
  if (b.kind === "set" || b.kind === "list") {
    // Sets know no repetition; of lists of answers it is not known whether they do.
    return matchInAnyOrder(a.items, b.items, compareItems, convention.evaluation.work, { asSets: a.kind === "set" || b.kind === "set" });
  }
  if (b.kind === "tuple") {
    if (a.kind === "set") return different("One is a set, the other is in order.");
    return matchInOrder(a.items, b.items, compareItems).verdict === "different"
      ? different("One is a list in any order, the other is in order.")
      : undecided("One is a list, the other a point or an interval.");
  }
  if (a.items.length === 1) return compareStatements(a.items[0]!, b, convention);
  return different("They have different numbers of parts.");
}

function compareTuple(a: Of<"tuple">, b: Statement, convention: Convention): Judgement {
  const compareItems = (x: Statement, y: Statement) => compareStatements(x, y, convention);
  if (b.kind === "matrix") {
    const isVector = b.rows.length === 1 || b.rows.every((row) => row.length === 1);
    if (!isVector || matchInOrder(a.items, b.rows.flat(), compareItems).verdict === "different") return different("One is a matrix.");
    return undecided("One is a matrix of one row or column, the other a point.");
  }
  if (b.kind !== "tuple") return different("They have different numbers of parts.");
  const items = matchInOrder(a.items, b.items, compareItems);
  if (items.verdict !== "equal" || (a.open === b.open && a.close === b.close)) return items;
  return a.items.length === 2 ? different("Their brackets differ.") : undecided("Their brackets differ.");
}

function compareMatrices(a: Of<"matrix">, b: Of<"matrix">, convention: Convention): Judgement {
  return matchInOrder(a.rows, b.rows, (x, y) => matchInOrder(x, y, (p, q) => compareStatements(p, q, convention)));
}

function compareQuantities(a: Of<"quantity">, b: Of<"quantity">, { evaluation, percentIsValue }: Convention): Judgement {
  const numbers = () => compareExpressions(a.expression, b.expression, evaluation);
  const [unitA, unitB] = [a.unit, b.unit];
  if (unitA === null && unitB === null) return numbers();
  if (unitA === null || unitB === null) {
    const [bare, measured, unit] = unitA === null ? [a.expression, b.expression, unitB!] : [b.expression, a.expression, unitA];
    if (unit.kind === "percent" && percentIsValue) return compareExpressions(bare, over(measured, number(100)), evaluation);
    const judgement = numbers();
    if (unit.kind !== "degree" || judgement.verdict === "equal") return judgement;
    const radians = compareExpressions(bare, over(product([measured, PI]), number(180)), evaluation);
    return radians.verdict === "equal" ? radians : judgement;
  }
  return compareMeasured(a.expression, unitA, b.expression, unitB, evaluation);
}

function compareMeasured(a: Expression, unitA: Unit, b: Expression, unitB: Unit, evaluation: Evaluation): Judgement {
  const areWords = unitA.kind === "things" || unitB.kind === "things";
  if (!areWords && unitA.kind === unitB.kind) {
    return compareExpressions(product([a, number(unitA.factor)]), product([b, number(unitB.factor)]), evaluation);
  }
  const numbers = compareExpressions(a, b, evaluation);
  if (numbers.verdict !== "equal") return areWords && unitA.kind === unitB.kind ? numbers : different("The units differ.");
  const isPart = unitA.words.every((word) => unitB.words.includes(word)) || unitB.words.every((word) => unitA.words.includes(word));
  if (unitA.kind === unitB.kind && isPart) return numbers;
  return areWords || unitA.kind === "unit" || unitB.kind === "unit"
    ? undecided("The units are not understood.")
    : different("The units differ.");
}
