/**
 * A problem as everything here has it: its key in the cache and its model read this very text. It loses the blank lines before it, the blanks
 * after it and, when it is a single line, those before it, since people paste them without meaning anything; and every line ends with `\n`,
 * whatever system it was written on. Within the text nothing changes: the blanks of a program or a table carry meaning, and no Unicode form
 * is chosen, for which a model may read another text, and which takes time that is quadratic in a run of combining marks.
 */
export function problemText(text: string): string {
  const trimmed = text.replace(/\r\n?/g, "\n").trimEnd();
  const firstLineAt = trimmed.lastIndexOf("\n", trimmed.search(/\S/)) + 1;
  const lines = trimmed.slice(firstLineAt);
  return lines.includes("\n") ? lines : lines.trimStart();
}
