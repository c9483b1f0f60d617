import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

/** One file as browsers get it. */
export interface Asset {
  type: string;
  body: Buffer;
  gzipped: Buffer;
  etag: string;
}

const TYPES = {
  html: "text/html; charset=utf-8",
  css: "text/css; charset=utf-8",
  js: "text/javascript; charset=utf-8",
  svg: "image/svg+xml",
} as const;

const MODULES = [
  "dom",
  "event-stream",
  "format",
  "history",
  "main",
  "maths-text",
  "numbers",
  "problem",
  "segments",
  "streamed-text",
  "timeline",
  "try-it",
  "words",
];

/** What is served, by its name. Libraries come from their packages, so that the page asks nothing of other servers. */
const FILES: Record<string, string> = {
  ...Object.fromEntries(["index.html", "page.css", "icon.svg", ...MODULES.map((name) => `${name}.js`)].map((name) => [name, own(name)])),
  "eventsource-parser.js": library("eventsource-parser"),
  "katex.js": library("katex/dist/katex.min.js"),
};

const loaded = new Map<string, Asset>();

/** Read and compressed when it is first asked for; undefined when there is no such file. */
export function assetOf(name: string): Asset | undefined {
  const path = Object.hasOwn(FILES, name) ? FILES[name] : undefined;
  if (path === undefined) return undefined;
  let asset = loaded.get(name);
  if (asset === undefined) {
    const body = readFileSync(path);
    const type = TYPES[name.split(".").at(-1) as keyof typeof TYPES];
    asset = { type, body, gzipped: gzipSync(body), etag: `"${createHash("sha256").update(body).digest("base64url").slice(0, 22)}"` };
    loaded.set(name, asset);
  }
  return asset;
}

function own(name: string): string {
  return `${import.meta.dirname}/browser/${name}`;
}

function library(specifier: string): string {
  return fileURLToPath(import.meta.resolve(specifier));
}
