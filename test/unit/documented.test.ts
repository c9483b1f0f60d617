import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { ACCESS, BOARD_PATH } from "../../api/access.ts";
import { openapiDocument } from "../../api/openapi.ts";
import { ERRORS } from "../../queues/errors.ts";
import { METRICS, type Metric } from "../../queues/metrics.ts";
import { SETTING_NAMES } from "../../queues/settings.ts";

/** Code, OpenAPI document, README, dashboards and alerts name the same things. The document's routes: see openapi.test.ts. */
const root = path.join(import.meta.dirname, "../..");
const read = (file: string) => readFileSync(path.join(root, file), "utf8");

/** Files of pages, and what Bull Board does below its address. */
const isUnlisted = (line: string) => /\/:name$/.test(line) || (line.endsWith(BOARD_PATH) && !line.startsWith("GET"));

/** `GET`, `DELETE /cache`: methods go on to the next address, an address goes on with the method before. */
function routesOf(cell: string): string[] {
  const routes: string[] = [];
  let methods: string[] = [];
  let last: string[] = [];
  for (const [, text] of cell.matchAll(/`([^`]+)`/g)) {
    const [, method, address] = /^([A-Z]+)? ?(\/[^?]*)?/.exec(text!) ?? [];
    if (method !== undefined) methods.push(method);
    if (address === undefined) continue;
    last = methods.length > 0 ? methods : last;
    routes.push(...last.map((each) => `${each} ${address}`));
    methods = [];
  }
  return routes;
}

test("the README lists exactly the routes that there are, and links to what is said of errors and metrics", () => {
  const readme = read("README.md");
  const rows = readme.split("| address |")[1]!.split("\n\n")[0]!.split("\n").slice(2);
  const listed = rows.flatMap((row) => routesOf(row.split("|")[1]!));
  const routes = Object.entries(ACCESS).flatMap(([address, methods]) => Object.keys(methods).map((method) => `${method} ${address}`));
  expect(listed.sort()).toEqual(routes.filter((line) => !isUnlisted(line)).sort());
  for (const page of ["/docs/errors", "/docs/metrics"]) expect(readme).toContain(page);
});

test("every error code and metric of the code stands in the document, and no other", () => {
  const document = openapiDocument("1");
  expect(document["x-problem-types"].map(({ code }) => code)).toEqual(Object.keys(ERRORS));
  expect(document["x-metrics"].map(({ name }) => name)).toEqual(METRICS.map(({ name }) => name));
  for (const { code, cause, remedy } of document["x-problem-types"]) {
    expect(cause.length, code).toBeGreaterThan(15);
    for (const [name] of `${cause} ${remedy}`.matchAll(/\b[A-Z]+_[A-Z_]+\b/g)) expect(SETTING_NAMES).toContain(name);
  }
});

test("the code reads no variable of ours that the schema does not have", () => {
  const foreign = [
    "PATH",
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "HOME",
    "XDG_CACHE_HOME",
    "HF_ENDPOINT",
    "MODEL_ENDPOINT",
    "VLLM_SERVER_DEV_MODE",
    "API_URL",
  ];
  const known = new Set([...SETTING_NAMES, ...foreign]);
  for (const folder of ["api", "commands", "dashboards", "maths", "producers", "queues", "workers"]) {
    const files = readdirSync(path.join(root, folder), { recursive: true, encoding: "utf8" }).filter((file) => /\.[tj]s$/.test(file));
    for (const file of files) {
      const used = [...read(path.join(folder, file)).matchAll(/\benv\.([A-Z][A-Z_]+)\b/g)].map(([, name]) => name!);
      expect(
        used.filter((name) => !known.has(name)),
        path.join(folder, file),
      ).toEqual([]);
    }
  }
});

describe("Grafana's dashboard and Prometheus' alerts", () => {
  const dashboard = JSON.parse(read("dashboards/grafana/mathllm.json"));
  const expressions: string[] = dashboard.panels.flatMap(({ targets = [] }: { targets?: { expr: string }[] }) =>
    targets.map(({ expr }) => expr),
  );
  const alerts = read("dashboards/grafana/alerts.yaml");
  const metricsOf = (text: string): [string, Metric | undefined][] =>
    [...text.matchAll(/\bmathllm_\w+/g)].map(([used]) => [
      used,
      METRICS.find(({ name, type }) =>
        type === "histogram" ? ["_bucket", "_sum", "_count"].some((suffix) => used === name + suffix) : used === name,
      ),
    ]);

  test.each([...expressions, ...alerts.split(/\bexpr:/).slice(1)].map((text) => text.split(/\bfor:/)[0]!.trim()))("%s", (expression) => {
    const metrics = metricsOf(expression);
    expect(metrics.length).toBeGreaterThan(0);
    expect(metrics.filter(([, metric]) => metric === undefined)).toEqual([]);
    const labels = metrics.flatMap(([, metric]) => [...metric!.labels, ...(metric!.type === "histogram" ? ["le"] : [])]);
    const used = [
      ...[...expression.matchAll(/\bby \(([^)]*)\)/g)].flatMap(([, list]) => list!.split(/,\s*/)),
      ...[...expression.matchAll(/(\w+)=~?"/g)].map(([, label]) => label!),
    ];
    expect(used.filter((label) => !labels.includes(label))).toEqual([]);
  });

  test("every metric has its place on the dashboard", () => {
    const used = new Set(metricsOf(expressions.join("\n")).map(([, metric]) => metric?.name));
    expect(METRICS.filter(({ name }) => !used.has(name)).map(({ name }) => name)).toEqual([]);
  });

  test("an alert's words name labels that its expression keeps", () => {
    for (const rule of alerts.split("- alert:").slice(1)) {
      const kept = [...rule.matchAll(/\bby \(([^)]*)\)/g)].flatMap(([, list]) => list!.split(/,\s*/));
      for (const [, label] of rule.matchAll(/\$labels\.(\w+)/g)) expect(kept).toContain(label);
    }
  });
});
