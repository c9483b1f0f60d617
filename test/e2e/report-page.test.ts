import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { type Browser, chromium, type Page } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { COLOURS } from "../../producers/report/charts/chart.ts";
import { publishReport, renderReport } from "../../producers/report/render.ts";
import type { Evidence } from "../../producers/report/schema.ts";
import { fixtureEvidence } from "../fixtures/report/evidence.ts";

const CHROMIUM = "/usr/bin/chromium";
const missing = !existsSync(CHROMIUM);
if (missing) console.warn(`The browser tests need ${CHROMIUM} (Debian: apt-get install chromium): skipped.`);

const HOSTILE = `<img src=x onerror="document.title='hacked'"><script>document.title='hacked'</script>]]>'"&`;
const ENDLESS = "unbreakable".repeat(16);

let browser: Browser;
let folder = "";
let hostileFolder = "";
beforeAll(async () => {
  if (missing && process.env.CI) throw new Error(`CI has to have ${CHROMIUM}`);
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-report-"));
  hostileFolder = path.join(folder, "hostile");
  await publishReport(folder, fixtureEvidence());
  await publishReport(hostileFolder, hostile(fixtureEvidence()));
  if (missing) return;
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
  });
});
afterAll(async () => {
  await browser?.close();
  await rm(folder, { recursive: true, force: true });
});

/** Every text that isn't one of fixed choices, replaced by one that tries to be markup or one without a place to break. */
function hostile(evidence: Evidence): Evidence {
  const texts = [HOSTILE, ENDLESS];
  let nth = 0;
  const next = () => texts[nth++ % texts.length]!;
  for (const phase of evidence.phases) {
    phase.title = next();
    phase.notes = texts;
    phase.configuration = Object.fromEntries(texts.map((text) => [text.slice(0, 190), next()]));
    if (phase.decision !== null) phase.decision = { chosen: next(), reason: next() };
    phase.evidence = [`evidence/${ENDLESS}`, 'evidence/"><script>x</script>'];
    for (const target of phase.targets) target.name = next();
    for (const run of phase.runs) {
      run.label = next();
      run.errors = [{ errorClass: next(), count: 1, example: next() }];
      run.settings = { ...run.settings, [ENDLESS.slice(0, 60)]: next() };
    }
  }
  for (const graph of [
    ...evidence.graphs.latencySpectrum,
    ...evidence.graphs.cacheHits,
    ...evidence.graphs.waterfall,
    ...evidence.graphs.acceptance,
  ])
    graph.label = next();
  for (const row of evidence.beforeAfter.rows) Object.assign(row, { run: next(), metric: next() });
  for (const limit of evidence.limits) Object.assign(limit, { name: next(), finding: next() });
  evidence.run.commands = texts;
  evidence.run.id = ENDLESS;
  evidence.hardware.gpus[0]!.name = HOSTILE;
  evidence.finalConfiguration!.env = texts.join("\n");
  return evidence;
}

const address = (of: string) => pathToFileURL(path.join(of, "report.html")).href;

async function open(
  of: string,
  width: number,
  colorScheme: "light" | "dark",
): Promise<{ page: Page; requests: string[]; errors: string[] }> {
  const page = await browser.newPage({ viewport: { width, height: 900 }, colorScheme });
  const requests: string[] = [];
  const errors: string[] = [];
  page.on("request", (request) => requests.push(request.url()));
  page.on("console", (message) => errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.goto(address(of));
  return { page, requests, errors };
}

/** An expression of the page's own world, which the tests' types don't know. */
const inPage = <T>(page: Page, expression: string): Promise<T> => page.evaluate(expression) as Promise<T>;

test.skipIf(missing).each([
  ["fixture", 1280, "light"],
  ["fixture", 390, "dark"],
  ["hostile", 1280, "dark"],
  ["hostile", 390, "light"],
] as const)("the page loads nothing else, runs nothing and is no wider than the window: %s, %i px, %s", async (which, width, scheme) => {
  const of = which === "fixture" ? folder : hostileFolder;
  const { page, requests, errors } = await open(of, width, scheme);
  expect(requests).toEqual([address(of)]);
  expect(errors).toEqual([]);
  const seen = await inPage<{
    scrollWidth: number;
    title: string;
    foreign: number;
    visibleGraphs: number;
    graphs: number;
    background: string;
  }>(
    page,
    `({
      scrollWidth: document.documentElement.scrollWidth,
      title: document.title,
      foreign: document.querySelectorAll("script, img, iframe, link, object").length,
      visibleGraphs: [...document.querySelectorAll("figure svg")].filter((svg) => svg.getBoundingClientRect().width > 0).length,
      graphs: document.querySelectorAll("figure").length,
      background: getComputedStyle(document.body).backgroundColor,
    })`,
  );
  expect(seen.scrollWidth).toBe(width);
  expect(seen.title).not.toBe("hacked");
  expect(seen.foreign).toBe(0);
  expect(seen.graphs).toBeGreaterThan(6);
  expect(seen.visibleGraphs).toBe(seen.graphs);
  expect(seen.background).toBe(scheme === "dark" ? "rgb(22, 27, 34)" : "rgb(255, 255, 254)");
  if (which === "hostile") expect(await page.getByText("<img src=x onerror").count()).toBeGreaterThan(10);
  await page.close();
});

test.skipIf(missing)("verdict and grade are seen at once; headings, tables and graphs can be told by a screen reader", async () => {
  const { page } = await open(folder, 390, "light");
  for (const place of [page.locator("h1"), page.locator(".grade")]) {
    const box = (await place.boundingBox())!;
    expect(box.y + box.height).toBeLessThan(900);
  }
  expect(await page.locator(".grade").textContent()).toContain("5/7");
  const lacking = await inPage(
    page,
    `(() => {
      const count = (selector, lacks) => [...document.querySelectorAll(selector)].filter(lacks).length;
      const levels = [...document.querySelectorAll("h1, h2, h3")].map((heading) => Number(heading.tagName[1]));
      const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
      return {
        levels: levels.filter((level, at) => level > (levels[at - 1] ?? 0) + 1),
        captions: count("table", (table) => !table.caption?.textContent),
        headers: count("table th", (cell) => !cell.getAttribute("scope")),
        names: count("figure svg", (svg) => (svg.getAttribute("aria-labelledby") ?? "").split(" ").some((id) => !document.getElementById(id)?.textContent)),
        ids: ids.length - new Set(ids).size,
        targets: count('a[href^="#"]', (link) => !document.querySelector(link.getAttribute("href"))),
        marks: count(".mark", (mark) => mark.textContent.trim().length < 3),
      };
    })()`,
  );
  expect(lacking).toEqual({ levels: [], captions: 0, headers: 0, names: 0, ids: 0, targets: 0, marks: 0 });
  await page.close();
});

test("every colour of every graph has one for the dark theme, and the page stays below 2 MB", async () => {
  const html = await readFile(path.join(folder, "report.html"), "utf8");
  expect(Buffer.byteLength(html)).toBeLessThan(2_000_000);
  const light = new Set<string>(Object.values(COLOURS).map(([colour]) => colour));
  // What nobody sees has no colour: what clips, what is wholly transparent, and the inside of a line.
  const seen = html
    .slice(html.indexOf("<main"))
    .replace(/<clipPath[\s\S]*?<\/clipPath>/g, "")
    .replace(/<path [^>]*fill-opacity="0"[^>]*>/g, "")
    .replace(/(<path d="M0 5L26 5"[^>]*) fill="#000"/g, "$1");
  const used = new Set([...seen.matchAll(/ (?:fill|stroke)="([^"]*)"/g)].map(([, colour]) => colour!));
  for (const plain of ["none", "transparent"]) used.delete(plain);
  expect([...used].filter((colour) => !light.has(colour))).toEqual([]);
});

test.skipIf(missing)("graphs are SVG files of their own that parse, hostile texts or not", async () => {
  const page = await browser.newPage();
  for (const of of [folder, hostileFolder]) {
    const files = await readdir(path.join(of, "graphs"));
    expect(files).toContain("latency-spectrum.svg");
    for (const file of files) {
      const svg = await readFile(path.join(of, "graphs", file), "utf8");
      const parsed = `new DOMParser().parseFromString(${JSON.stringify(svg)}, "image/svg+xml")`;
      const broken = await inPage(page, `${parsed}.querySelector("parsererror, script")?.textContent ?? null`);
      expect(broken, file).toBeNull();
    }
  }
  await page.close();
});

test("rendering again gives the same files, byte for byte", async () => {
  const read = () =>
    Promise.all(["report.md", "report.html", "graphs/memory.svg"].map((file) => readFile(path.join(folder, file), "utf8")));
  const before = await read();
  expect((await renderReport(folder)).length).toBe(2 + (await readdir(path.join(folder, "graphs"))).length);
  expect(await read()).toEqual(before);
});
