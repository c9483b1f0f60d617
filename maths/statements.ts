import { textStatement, wordsOf } from "./answer-words.ts";
import { type Expression, number, product } from "./expression.ts";
import { parseExpression, type Reading } from "./expression-parser.ts";
import { labelOf } from "./labels.ts";
import { canonicalText, type Token } from "./latex.ts";
import { closingPlace, OPENERS, type Part, signChoices, splitAt, splitList } from "./token-lists.ts";
import { peelUnit, type Unit } from "./units.ts";
import { NotJudged, OutOfWork } from "./work-budget.ts";

/** What an answer says, by its form. */
export type Statement =
  | { kind: "quantity"; expression: Expression; unit: Unit | null }
  | { kind: "text"; words: string[] }
  /** (C) 12 */
  | { kind: "choice"; letter: string; content: Statement }
  /** Ordered. With two parts it may be an interval. */
  | { kind: "tuple"; open: "(" | "["; close: ")" | "]"; items: Statement[] }
  | { kind: "set"; items: Statement[] }
  /** Several answers, in any order. */
  | { kind: "list"; items: Statement[] }
  | { kind: "union"; parts: Statement[] }
  | { kind: "reals"; without: Statement | null }
  /** 3:4, or 12:30 */
  | { kind: "ratio"; terms: Expression[]; time: ClockTime | null }
  | { kind: "matrix"; rows: Statement[][] }
  /** x = 5: a name for a value; `variable` when the name is one. */
  | { kind: "labelled"; label: string; variable: Expression | null; value: Statement }
  | { kind: "relation"; sides: Expression[]; operators: RelationOperator[] }
  | { kind: "conditions"; joint: "and" | "or" | ","; parts: Statement[] };

export interface ClockTime {
  minutes: number;
  half: "am" | "pm" | null;
}

export type RelationOperator = "=" | "<" | ">" | "≤" | "≥" | "≠";

const RELATIONS = new Set(["=", "<", ">", "≤", "≥", "≠", "≈", "∈"]);
const MAX_ITEMS = 2000;
const MAX_DEPTH = 20;

/** @throws NotJudged for what has no form that is known. */
export function parseStatement(tokens: readonly Token[], reading: Reading): Statement {
  return new StatementParser(reading).answer(tokens);
}

class StatementParser {
  readonly #reading: Reading;
  #depth = 0;

  constructor(reading: Reading) {
    this.#reading = reading;
  }

  answer(tokens: readonly Token[]): Statement {
    if (++this.#depth > MAX_DEPTH) throw new NotJudged("It is nested too deeply.");
    this.#reading.work.spend(tokens.length / 2);
    const statement = this.#answer(tokens);
    this.#depth--;
    return statement;
  }

  #answer(tokens: readonly Token[]): Statement {
    const known = wordsOf(tokens);
    if (known !== undefined) return textStatement(known);
    const parts = splitList(tokens).flatMap((part) => signChoices(part.tokens).map((choice) => ({ ...part, tokens: choice })));
    if (parts.length > MAX_ITEMS) throw new NotJudged("The list is too long.");
    const [first] = parts;
    if (first === undefined) throw new NotJudged("It says nothing.");
    if (parts.length === 1) return this.#statement(first.tokens);
    return joined(
      parts.map(({ tokens }) => this.#statement(tokens)),
      parts.slice(1).map(({ joint }) => joint),
    );
  }

  #statement(tokens: readonly Token[]): Statement {
    const { parts: sides, separators } = splitAt(tokens, (token) => token.kind === "mark" && RELATIONS.has(token.text));
    if (separators.length === 0) return this.#side(tokens);
    const operators = separators.map(({ text }) => (text === "≈" ? "=" : text));
    if (sides[0]!.length === 0 && separators.length === 1 && operators[0] === "=") return this.#side(sides[1]!);
    if (sides.some((side) => side.length === 0)) throw new NotJudged("A relation lacks a side.");
    if (operators.includes("∈")) {
      const label = labelOf(sides[0]!, this.#reading);
      if (separators.length > 1 || label === undefined) throw new NotJudged("It is not one relation.");
      return { ...label, value: this.#side(sides[1]!) };
    }
    if (operators.every((operator) => operator === "=")) {
      const labelled = this.#labelled(sides);
      if (labelled !== undefined) return labelled;
    }
    return {
      kind: "relation",
      sides: sides.map((side) => this.#plain(side)),
      operators: operators as RelationOperator[],
    };
  }

  /** x = 5, 5 = x, x = 2 + 3 = 5: a name with the value that stands last. */
  #labelled(sides: readonly Token[][]): Statement | undefined {
    const [label, isAtEnd] = [labelOf(sides[0]!, this.#reading), labelOf(sides.at(-1)!, this.#reading)];
    const named = label ?? (sides.length === 2 ? isAtEnd : undefined);
    if (named === undefined) return undefined;
    const side = label !== undefined ? sides.at(-1)! : sides[0]!;
    // x = x² − 2 is an equation.
    if (named.variable?.kind === "variable" && side.some(({ text }) => text === named.label)) return undefined;
    return { ...named, value: this.#side(side) };
  }

  #side(tokens: readonly Token[]): Statement {
    const words = wordsOf(tokens);
    if (words !== undefined) return textStatement(words);
    return (
      this.#sets(tokens) ??
      this.#bracketed(tokens) ??
      this.#matrix(tokens) ??
      this.#ratio(tokens) ??
      this.#choice(tokens) ??
      this.#quantity(tokens)
    );
  }

  #sets(tokens: readonly Token[]): Statement | undefined {
    const { parts, separators } = splitAt(tokens, ({ kind, text }) => kind === "mark" && /^[∪∩∖]$/.test(text));
    if (separators.length > 0) {
      if (separators.every(({ text }) => text === "∪")) return { kind: "union", parts: parts.map((part) => this.#side(part)) };
      const [reals, without] = parts.map((part) => this.#side(part));
      if (parts.length !== 2 || separators[0]!.text !== "∖" || reals?.kind !== "reals") throw new NotJudged("It has an operation on sets.");
      return { kind: "reals", without: without! };
    }
    if (tokens.length !== 1) return undefined;
    if (tokens[0]!.text === "mathbb{R}") return { kind: "reals", without: null };
    return tokens[0]!.text === "emptyset" ? { kind: "set", items: [] } : undefined;
  }

  #bracketed(tokens: readonly Token[]): Statement | undefined {
    const [first, last] = [tokens[0]?.text, tokens.at(-1)?.text];
    if (first === undefined || !OPENERS.has(first) || first === "{" || closingPlace(tokens) !== tokens.length - 1) return undefined;
    const content = tokens.slice(1, -1);
    if (first === "\\{") return last === "\\}" ? this.#set(content) : undefined;
    const { parts } = splitAt(content, ({ kind, text }) => kind === "mark" && (text === "," || text === ";"));
    // (5) is 5 in brackets, but [5] may be a list, and ⟨5⟩ a vector.
    if (parts.length < 2) return first === "(" && /^[)]$/.test(last!) && looksCompound(content) ? this.#side(content) : undefined;
    if (parts.some((part) => part.length === 0)) throw new NotJudged("A bracket has an empty place.");
    if (parts.length > MAX_ITEMS) throw new NotJudged("The list is too long.");
    const items = parts.map((part) => this.#nestedSide(part));
    const isAngle = first === "⟨";
    if (isAngle !== (last === "⟩") || last === "\\}") return undefined;
    return { kind: "tuple", open: isAngle ? "(" : (first as "(" | "["), close: isAngle ? ")" : (last as ")" | "]"), items };
  }

  #nestedSide(tokens: readonly Token[]): Statement {
    if (++this.#depth > MAX_DEPTH) throw new NotJudged("It is nested too deeply.");
    const side = this.#side(tokens);
    this.#depth--;
    return side;
  }

  #set(content: Token[]): Statement {
    if (content.length === 0) return { kind: "set", items: [] };
    // {x | x > 3} says what its condition says.
    const { parts: condition } = splitAt(content, ({ kind, text }) => kind === "mark" && (text === "|" || text === ":"));
    if (condition.length === 2 && (labelOf(condition[0]!, this.#reading) !== undefined || condition[0]!.some(({ text }) => text === "∈"))) {
      return this.answer(condition[1]!);
    }
    const { parts } = splitAt(content, ({ kind, text }) => kind === "mark" && (text === "," || text === ";"));
    const items = parts.flatMap((part) => signChoices(part)).map((part) => this.#nestedSide(part));
    if (items.length > MAX_ITEMS) throw new NotJudged("The list is too long.");
    return { kind: "set", items };
  }

  #matrix(tokens: readonly Token[]): Statement | undefined {
    const begin = tokens.findIndex(({ text }) => text.startsWith("begin{"));
    if (begin < 0) return undefined;
    const environment = tokens[begin]!.text.slice("begin{".length, -1);
    const isBracketed = tokens[begin - 1]?.text === "(" || tokens[begin - 1]?.text === "[";
    const end = isBracketed ? tokens.length - 2 : tokens.length - 1;
    if (!/^(?:p|b|B|small)?matrix$|^array$/.test(environment) || tokens[end]?.text !== `end{${environment}}`) {
      throw new NotJudged("It has an environment that is not understood.");
    }
    const before = tokens.slice(0, isBracketed ? begin - 1 : begin);
    const factor = this.#matrixFactor(before);
    const { parts: rows } = splitAt(tokens.slice(begin + 1, end), ({ text }) => text === "\\\\");
    const cells = rows
      .filter((row) => row.length > 0)
      .map((row) => splitAt(row, ({ text }) => text === "&").parts.map((cell) => this.#plain(cell)));
    return {
      kind: "matrix",
      rows: cells.map((row) =>
        row.map((cell) => ({ kind: "quantity", expression: factor === undefined ? cell : product([factor, cell]), unit: null })),
      ),
    };
  }

  /** What stands before a matrix: nothing, a sign, a number. */
  #matrixFactor(tokens: readonly Token[]): Expression | undefined {
    const last = tokens.at(-1)?.text;
    if (last === undefined) return undefined;
    const isSign = tokens.length === 1 && /^[+-]$/.test(last);
    if (isSign) return number(last === "-" ? -1 : 1);
    return this.#plain(last === "*" ? tokens.slice(0, -1) : tokens);
  }

  #ratio(tokens: readonly Token[]): Statement | undefined {
    const { parts, separators } = splitAt(tokens, ({ kind, text }) => kind === "mark" && text === ":");
    if (separators.length === 0) return undefined;
    const last = parts.at(-1)!;
    const half = /^([ap])m$/i.exec(last.at(-1)?.text ?? "")?.[1]?.toLowerCase();
    const bare = half === undefined ? parts : [...parts.slice(0, -1), last.slice(0, -1)];
    const time = clockTime(bare, half === undefined ? null : half === "a" ? "am" : "pm");
    if (half !== undefined && time === null) throw new NotJudged("It is no time of day.");
    return { kind: "ratio", terms: bare.map((part) => this.#plain(part)), time };
  }

  /** (C) 12, C. 12 */
  #choice(tokens: readonly Token[]): Statement | undefined {
    const isBracketed = tokens[0]?.text === "(";
    const [letter, mark, next] = tokens.slice(isBracketed ? 1 : 0, isBracketed ? 4 : 3);
    const isLetter = letter?.kind === "letter" && /^[A-J]$/.test(letter.text);
    const isMarked = mark?.text === ")" || (!isBracketed && mark?.text === ".");
    if (!isLetter || !isMarked || next === undefined || !(next.spaced || letter.upright) || OPENERS.has(next.text)) return undefined;
    if (next.kind === "mark" && next.text !== "-" && next.text !== "$") return undefined;
    return { kind: "choice", letter: letter.text, content: this.answer(tokens.slice(isBracketed ? 3 : 2)) };
  }

  #quantity(tokens: readonly Token[]): Statement {
    const { rest, unit, scale } = peelUnit(tokens, this.#reading.work);
    try {
      const value = parseExpression(rest, this.#reading);
      return { kind: "quantity", expression: scale.numerator === 1n ? value : product([value, number(scale)]), unit };
    } catch (error) {
      if (error instanceof OutOfWork || !(error instanceof NotJudged)) throw error;
      const hasWords = tokens.some(({ kind, upright }) => kind === "word" || upright);
      if (!hasWords || tokens.some(({ kind }) => kind === "command")) throw error;
      return { kind: "text", words: canonicalText(tokens).toLowerCase().split(" ") };
    }
  }

  #plain(tokens: readonly Token[]): Expression {
    const { rest, unit, scale } = peelUnit(tokens, this.#reading.work);
    if (unit !== null && unit.kind !== "things" && unit.kind === "percent") throw new NotJudged("It has a percentage inside.");
    const value = parseExpression(unit === null ? rest : tokens, this.#reading);
    return unit !== null || scale.numerator === 1n ? value : product([value, number(scale)]);
  }
}

/** A list of values, or conditions on the same variables. */
function joined(statements: Statement[], joints: Part["joint"][]): Statement {
  const isCondition = ({ kind }: Statement) => kind === "relation";
  if (statements.every(isCondition)) {
    const joint = joints.includes("or") ? "or" : joints.includes("and") ? "and" : ",";
    return { kind: "conditions", joint, parts: statements };
  }
  const [first, ...others] = statements;
  // x = 1, 2 and x = 1, x = 2 are one list with a name.
  if (first!.kind === "labelled") {
    const { label } = first!;
    if (others.every((other) => other.kind === "labelled" && other.label === label)) {
      return { ...first!, value: { kind: "list", items: statements.map((each) => (each as typeof first & { kind: "labelled" }).value) } };
    }
    if (others.every(({ kind }) => kind !== "labelled" && kind !== "relation")) {
      return { ...first!, value: { kind: "list", items: [first!.value, ...others] } };
    }
  }
  return { kind: "list", items: statements };
}

/** 9:05, 12:30: hours and minutes as a clock shows them. */
function clockTime(parts: readonly Token[][], half: ClockTime["half"]): ClockTime | null {
  if (parts.length !== 2 || parts.some((part) => part.length !== 1)) return null;
  const [hours, minutes] = parts.map((part) => part[0]!.text);
  if (!/^[0-9]{1,2}$/.test(hours!) || !/^[0-5][0-9]$/.test(minutes!)) return null;
  const hour = Number(hours);
  if (hour > (half === null ? 24 : 12)) return null;
  const inDay = half === null ? hour : (hour % 12) + (half === "pm" ? 12 : 0);
  return { minutes: 60 * inDay + Number(minutes), half };
}

/** Whether brackets around it hold more than a formula. */
function looksCompound(tokens: readonly Token[]): boolean {
  return tokens.some(({ text }) => text === "∪" || text === ":") || tokens.some(({ text }) => text.startsWith("begin{"));
}
