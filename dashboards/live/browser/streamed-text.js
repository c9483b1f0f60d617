import { mathsText, splitMaths } from "./maths-text.js";

/** A text that is still being written. What is whole is typeset at once and never touched again; the rest stands as it came. */
export class StreamedText {
  /** @type {HTMLElement} */
  #element;
  #tail = document.createTextNode("");

  /** @param {HTMLElement} element */
  constructor(element) {
    this.#element = element;
    this.begin();
  }

  begin() {
    this.#tail.data = "";
    this.#element.replaceChildren(this.#tail);
  }

  /** @param {string} more */
  append(more) {
    const open = this.#tail.data + more;
    const pieces = splitMaths(open);
    const last = pieces.at(-1);
    const wholeChars = pieces.length > 1 && last?.kind === "text" ? open.length - last.source.length : 0;
    if (wholeChars > 0) this.#tail.before(mathsText(open.slice(0, wholeChars)));
    this.#tail.data = open.slice(wholeChars);
  }

  /** @param {string} text the whole of it */
  end(text) {
    this.#tail.data = "";
    this.#element.replaceChildren(mathsText(text), this.#tail);
  }
}
