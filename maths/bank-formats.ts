/**
 * Bytes to records, for files of one JSON object a line and for CSV (RFC 4180): nothing here knows what a problem is. Memory stays at one
 * record and one chunk, whatever the file's size and however it is cut into chunks.
 */

export type BankFormat = "jsonl" | "csv";

/** The bytes of one record, without its line end. `line` counts from 1 and is where the record begins. */
export interface RawRecord {
  line: number;
  /** Longer than allowed: only its beginning is here. */
  tooLong: boolean;
  /** CSV: the file ended within quotes. */
  unclosed: boolean;
  bytes: Uint8Array;
}

const LF = 10;
const CR = 13;
const QUOTE = 34;
const COMMA = 44;
const UTF8_BOM = [0xef, 0xbb, 0xbf];

/** The first bytes (3 or more, if there are so many) without a byte order mark, and how to get the rest. */
export async function beginning(chunks: AsyncIterable<Uint8Array>): Promise<{ head: Uint8Array; rest: AsyncIterator<Uint8Array> }> {
  const rest = chunks[Symbol.asyncIterator]();
  let head: Uint8Array = new Uint8Array();
  while (head.length < UTF8_BOM.length) {
    const next = await rest.next();
    if (next.done) break;
    head = Buffer.concat([head, next.value]);
  }
  return { head: UTF8_BOM.every((byte, i) => head[i] === byte) ? head.subarray(UTF8_BOM.length) : head, rest };
}

/** What a file without a telling name holds, by its first byte that is not blank: JSON begins with a brace or bracket. */
export function formatOf(head: Uint8Array): BankFormat {
  const first = head.find((byte) => byte > 32);
  return first === undefined || first === 0x7b || first === 0x5b ? "jsonl" : "csv";
}

/**
 * Records end at LF or CRLF; in CSV not within quotes. Blank lines between records are left out. Of a record longer than
 * `maxBytes` the beginning alone is kept, and reading goes on after its end.
 */
export async function* splitRecords(
  head: Uint8Array,
  rest: AsyncIterator<Uint8Array>,
  format: BankFormat,
  maxBytes: number,
): AsyncGenerator<RawRecord> {
  let held: Uint8Array[] = [];
  let heldBytes = 0;
  let tooLong = false;
  let line = 1;
  let linesInside = 0;
  const quotes = new QuoteState();

  const hold = (bytes: Uint8Array) => {
    const kept = bytes.subarray(0, maxBytes + 1 - heldBytes);
    if (kept.length < bytes.length) tooLong = true;
    if (kept.length > 0) held.push(kept);
    heldBytes += kept.length;
  };
  const release = (unclosed: boolean): RawRecord | null => {
    let bytes: Uint8Array = held.length === 1 ? held[0]! : Buffer.concat(held);
    if (bytes.at(-1) === CR && !unclosed && !tooLong) bytes = bytes.subarray(0, -1);
    const record = { line, tooLong: tooLong || bytes.length > maxBytes, unclosed, bytes };
    held = [];
    heldBytes = 0;
    tooLong = false;
    line += linesInside + 1;
    linesInside = 0;
    return bytes.every((byte) => byte === 32 || byte === 9 || byte === CR) ? null : record;
  };

  for (let chunk: Uint8Array | undefined = head; chunk !== undefined; ) {
    let begin = 0;
    if (format === "jsonl") {
      for (let end = chunk.indexOf(LF); end >= 0; end = chunk.indexOf(LF, begin)) {
        hold(chunk.subarray(begin, end));
        begin = end + 1;
        const record = release(false);
        if (record !== null) yield record;
      }
    } else {
      for (let i = 0; i < chunk.length; i++) {
        const byte = chunk[i]!;
        quotes.take(byte);
        if (byte !== LF) continue;
        if (quotes.isOpen) {
          linesInside++;
          continue;
        }
        hold(chunk.subarray(begin, i));
        begin = i + 1;
        const record = release(false);
        if (record !== null) yield record;
      }
    }
    hold(chunk.subarray(begin));
    const next = await rest.next();
    chunk = next.done ? undefined : next.value;
  }
  const record = release(quotes.isOpen);
  if (record !== null) yield record;
}

/** Whether a byte stands within a quoted field. A quote opens only at a field's beginning; a second one right after a closing one reopens. */
class QuoteState {
  isOpen = false;
  #atFieldStart = true;
  #hasJustClosed = false;

  take(byte: number): void {
    if (this.isOpen) {
      if (byte === QUOTE) {
        this.isOpen = false;
        this.#hasJustClosed = true;
      }
      return;
    }
    if (byte === QUOTE) this.isOpen = this.#atFieldStart || this.#hasJustClosed;
    this.#atFieldStart = byte === COMMA || byte === LF;
    this.#hasJustClosed = false;
  }
}

/** The fields of one CSV record, or what is wrong with it. */
export function csvFields(record: string): string[] | { expected: string; came: string } {
  const fields: string[] = [];
  for (let at = 0; ; ) {
    let end: number;
    if (record[at] === '"') {
      end = at + 1;
      for (; end < record.length; end++) {
        if (record[end] !== '"') continue;
        if (record[end + 1] !== '"') break;
        end++;
      }
      if (end >= record.length) return { expected: "a quote that closes the field", came: record.slice(at) };
      fields.push(record.slice(at + 1, end).replaceAll('""', '"'));
      end++;
    } else {
      const comma = record.indexOf(",", at);
      end = comma < 0 ? record.length : comma;
      const field = record.slice(at, end);
      if (field.includes('"')) return { expected: 'a field with a quote in it to be quoted, as in "say ""yes"""', came: field };
      fields.push(field);
    }
    if (end === record.length) return fields;
    if (record[end] !== ",") return { expected: "a comma or the line's end after the closing quote", came: record.slice(end) };
    at = end + 1;
  }
}
