/** @typedef {{ kind: "text" | "maths", source: string, display: boolean }} Piece */

const DELIMITERS = [
  { open: "$$", close: "$$", display: true },
  { open: "\\[", close: "\\]", display: true },
  { open: "\\(", close: "\\)", display: false },
  { open: "$", close: "$", display: false },
];
/** These stand in answers without delimiters, followed by so many groups in braces. */
const BARE = new Map([
  ["boxed", 1],
  ["frac", 2],
  ["dfrac", 2],
  ["tfrac", 2],
  ["sqrt", 1],
]);

/**
 * Cuts a text into plain text and LaTeX. A dollar sign opens maths only right before something and closes it only right behind something
 * and not before a digit, so that prices stay prices.
 * @param {string} text
 * @returns {Piece[]} put together they are the text, delimiters aside
 */
export function splitMaths(text) {
  /** @type {Piece[]} */
  const pieces = [];
  let plainFrom = 0;
  let at = 0;
  while (at < text.length) {
    const delimiter = DELIMITERS.find(({ open }) => text.startsWith(open, at)) ?? null;
    const end = delimiter === null ? bareEndOf(text, at) : closeOf(text, at, delimiter);
    if (end < 0) {
      at += delimiter?.open.length ?? 1;
      continue;
    }
    if (at > plainFrom) pieces.push({ kind: "text", source: text.slice(plainFrom, at), display: false });
    const { open, close, display } = delimiter ?? { open: "", close: "", display: false };
    pieces.push({ kind: "maths", source: text.slice(at + open.length, end - close.length), display });
    at = end;
    plainFrom = end;
  }
  if (plainFrom < text.length) pieces.push({ kind: "text", source: text.slice(plainFrom), display: false });
  return pieces;
}

/**
 * @param {string} text
 * @param {number} from
 * @param {{ open: string, close: string }} delimiter
 * @returns {number} behind the closing delimiter; -1 without one
 */
function closeOf(text, from, { open, close }) {
  const begin = from + open.length;
  if (open === "$" && /\s|\$/.test(text[begin] ?? " ")) return -1;
  let depth = 0;
  for (let at = begin; at < text.length; at++) {
    const closes = depth === 0 && text.startsWith(close, at);
    if (closes && (open !== "$" || (!/\s/.test(text[at - 1] ?? " ") && !/\d/.test(text[at + 1] ?? "")))) return at + close.length;
    if (text[at] === "\\" && !closes) at++;
    else if (text[at] === "{") depth++;
    else if (text[at] === "}") depth--;
    if (depth < 0 || (open === "$" && text[at] === "\n" && text[at + 1] === "\n")) return -1;
  }
  return -1;
}

/**
 * @param {string} text
 * @param {number} from
 * @returns {number} behind a command of `BARE` and its groups; -1 without them
 */
function bareEndOf(text, from) {
  const [command = "", name = ""] = text[from] === "\\" ? (/^\\([a-z]+)(?=\{)/.exec(text.slice(from, from + 10)) ?? []) : [];
  const groups = BARE.get(name);
  if (groups === undefined) return -1;
  let end = from + command.length;
  for (let nth = 0; nth < groups; nth++) {
    end = text[end] === "{" ? closeOf(text, end, { open: "{", close: "}" }) : -1;
    if (end < 0) return -1;
  }
  return end;
}

/** @type {Promise<{ render(source: string, element: Element, options: object): void }> | undefined} */
let loading;

function katex() {
  loading ??= import("/live/katex.js").then(() => /** @type {any} */ (globalThis).katex);
  return loading;
}

/**
 * The text as nodes, its maths as MathML. What can't be typeset, or not before the library is there, stands as it was written.
 * @param {string} text
 * @returns {DocumentFragment}
 */
export function mathsText(text) {
  const fragment = document.createDocumentFragment();
  for (const { kind, source, display } of splitMaths(text)) {
    if (kind === "text") fragment.append(source);
    else fragment.append(typeset(source, display));
  }
  return fragment;
}

/**
 * @param {string} source
 * @param {boolean} display
 */
function typeset(source, display) {
  const element = document.createElement("span");
  element.className = display ? "maths maths-display" : "maths";
  element.textContent = source;
  katex().then(
    ({ render }) => {
      const typesetted = document.createElement("span");
      try {
        render(source, typesetted, {
          output: "mathml",
          displayMode: display,
          throwOnError: true,
          trust: false,
          maxExpand: 200,
          strict: "ignore",
        });
        element.replaceChildren(...typesetted.childNodes);
      } catch {
        // Not LaTeX that can be typeset: it stays as it is written.
      }
    },
    () => {},
  );
  return element;
}
