/** What LaTeX commands mean in an answer. */

const words = (text: string) => text.split(" ");

export const IGNORED = new Set(
  words(
    "left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle textstyle scriptstyle limits nolimits mathstrut strut",
  ),
);
export const SPACES = new Set(words("quad qquad thinspace enspace medspace thickspace space nobreakspace"));
export const TEXTS = new Set(
  words("text textbf textit textrm texttt textsf textnormal mathrm mathbf mathit mathsf operatorname mbox hbox boldsymbol bm"),
);
export const DECORATIONS = new Set(
  words("vec hat bar overline overrightarrow overleftrightarrow widehat widetilde tilde overset underline"),
);
export const SAME = new Map(
  Object.entries({
    dfrac: "frac",
    tfrac: "frac",
    cfrac: "frac",
    dbinom: "binom",
    tbinom: "binom",
    le: "leq",
    leqslant: "leq",
    ge: "geq",
    geqslant: "geq",
    ne: "neq",
    varnothing: "emptyset",
    varphi: "phi",
    varepsilon: "epsilon",
    dots: "ldots",
    cdots: "ldots",
    dotsc: "ldots",
    asin: "arcsin",
    acos: "arccos",
    atan: "arctan",
    cosec: "csc",
    backslash: "setminus",
  }),
);
export const MARKS = new Map(
  Object.entries({
    lt: "<",
    gt: ">",
    leq: "≤",
    geq: "≥",
    neq: "≠",
    approx: "≈",
    in: "∈",
    cdot: "*",
    times: "*",
    ast: "*",
    div: "/",
    colon: ":",
    mid: "|",
    vert: "|",
    lvert: "|",
    rvert: "|",
    degree: "°",
    prime: "'",
    langle: "⟨",
    rangle: "⟩",
    lbrace: "\\{",
    rbrace: "\\}",
    lbrack: "[",
    rbrack: "]",
    lfloor: "⌊",
    rfloor: "⌋",
    lceil: "⌈",
    rceil: "⌉",
    lparen: "(",
    rparen: ")",
    pm: "±",
    mp: "∓",
    cup: "∪",
    cap: "∩",
    setminus: "∖",
  }),
);
export const ESCAPED_MARKS = new Map(
  Object.entries({
    "{": "\\{",
    "}": "\\}",
    "%": "%",
    $: "$",
    "\\": "\\\\",
    "#": "#",
    "&": "&",
    "|": "\\|",
  }),
);

/** Names that mean the same without a backslash, except in the middle of a word. */
export const NAMES = new Set(
  words(
    "sqrt sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp pi infty theta alpha beta gamma lambda omega phi mu asin acos atan",
  ),
);
export const PLAIN_NAMES = new Map(Object.entries({ infinity: "infty", inf: "infty", oo: "infty", union: "cup" }));

export const OPENING = new Set(["(", "[", "\\{", "⟨"]);
export const CLOSING = new Set([")", "]", "\\}", "⟩"]);
