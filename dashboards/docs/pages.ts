import type { ApiDocument, ApiOperation } from "../../queues/api-document.ts";
import { html, type Markup, prose } from "./markup.ts";
import { schemaTable, typeOf } from "./schema-table.ts";

const PAGES = [
  { href: "/docs", name: "Routes" },
  { href: "/docs/errors", name: "Errors" },
  { href: "/docs/metrics", name: "Metrics" },
];

function page(document: ApiDocument, title: string, href: string, side: Markup, main: Markup): string {
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title} · ${document.info.title}</title>
<link rel="stylesheet" href="/docs/page.css">
<link rel="icon" href="data:,">
</head>
<body>
<a class="skip" href="#content">To the content</a>
<header>
<a class="brand" href="/">${document.info.title}</a>
<nav aria-label="Pages">${PAGES.map((each) => html`<a href="${each.href}" ${each.href === href && html`aria-current="page"`}>${each.name}</a>`)}<a href="/openapi.json">openapi.json</a></nav>
</header>
<div class="columns">
<nav class="side" aria-label="On this page"><details open><summary>On this page</summary>${side}</details></nav>
<main id="content">
<h1>${title}</h1>
${main}
</main>
</div>
</body>
</html>
`.text;
}

interface Route {
  method: string;
  path: string;
  operation: ApiOperation;
}

/** `/docs`: every route, and the forms of what is sent and answered. */
export function routesPage(document: ApiDocument): string {
  const routes = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]): Route => ({ method: method.toUpperCase(), path, operation })),
  );
  const of = (tag: string) => routes.filter(({ operation }) => operation.tags.includes(tag));
  const forms = Object.keys(document.components.schemas).sort();
  const side = html`${document.tags.map(
    ({ name }) =>
      html`<h2>${name}</h2><ul>${of(name).map(
        ({ method, path, operation }) =>
          html`<li><a href="#${operation.operationId}"><span class="method is-${method.toLowerCase()}">${method}</span> ${path}</a></li>`,
      )}</ul>`,
  )}<h2>Forms</h2><ul>${forms.map((name) => html`<li><a href="#form-${name}">${name}</a></li>`)}</ul>`;
  const main = html`<p class="lead">${document.info.summary}</p>
<p>${prose(document.info.description)} <a href="/docs/errors">Every problem type</a> says what to do, and <a href="/docs/metrics">every metric</a> what it counts.</p>
${document.tags.map(
  ({ name, description }) => html`<section><h2 id="${anchor(name)}">${name}</h2><p>${description}</p>${of(name).map(routeCard)}</section>`,
)}
<section><h2 id="forms">Forms</h2><p>Answers may gain fields. Times are milliseconds, epoch milliseconds where they name a moment.</p>
${forms.map((name) => html`<article id="form-${name}"><h3>${name}</h3>${schemaOf(document, name)}</article>`)}</section>`;
  return page(document, "HTTP API", "/docs", side, main);
}

function schemaOf(document: ApiDocument, name: string): Markup {
  const schema = document.components.schemas[name]!;
  return schema.properties === undefined ? html`<p>${typeOf(schema)}</p>` : schemaTable(schema);
}

const ROLES: Record<string, string> = {
  open: "no key needed",
  any: "any key",
  submit: "role submit",
  read: "role read",
  admin: "role admin",
};

function routeCard({ method, path, operation }: Route): Markup {
  const { operationId, summary, description, parameters = [], requestBody, responses } = operation;
  return html`<article id="${operationId}">
<h3><span class="method is-${method.toLowerCase()}">${method}</span> <code>${path}</code></h3>
<p><strong>${summary}.</strong> ${description} <span class="role">${ROLES[operation["x-role"]]}</span></p>
${
  parameters.length > 0 &&
  html`<table><thead><tr><th>parameter</th><th>type</th><th>what it is</th></tr></thead><tbody>${parameters.map(
    ({ name, in: place, required, description: about, schema }) =>
      html`<tr><td><code>${name}</code> <span class="place">${place}</span>${required && html` <span class="must">required</span>`}</td><td>${typeOf(schema)}</td><td>${about}</td></tr>`,
  )}</tbody></table>`
}
${
  requestBody !== undefined &&
  html`<h4>Body${!requestBody.required && ", may be left out"}</h4>${Object.entries(requestBody.content).map(
    ([type, { schema, example }]) =>
      html`<p><code>${type}</code>: ${typeOf(schema)}</p>${exampleOf(example, `Example of a body for ${path}`)}`,
  )}`
}
<h4>Answers</h4>
<dl>${Object.entries(responses).map(([status, response]) => answerOf(status, response))}</dl>
</article>`;
}

function answerOf(status: string, { description, headers = {}, content = {} }: ApiOperation["responses"][string]): Markup {
  const [[type, { schema, example, examples }] = ["", { schema: {} }]] = Object.entries(content) as [
    string,
    NonNullable<typeof content>[string],
  ][];
  const isProblem = examples !== undefined;
  const headerList = Object.entries(headers).map(([name, { description: about }]) => html`<li><code>${name}</code>: ${about}</li>`);
  return html`<dt>${status}</dt><dd>${
    isProblem
      ? html`<ul class="codes">${Object.keys(examples).map((code) => html`<li><a href="/docs/errors#${code}">${code}</a></li>`)}</ul>`
      : html`${description} ${type !== "" && html`<code>${type}</code> ${schema.$ref !== undefined && typeOf(schema)}`}`
  }${!isProblem && headerList.length > 0 && html`<ul>${headerList}</ul>`}${exampleOf(example, `Example of an answer with ${status}`)}</dd>`;
}

/** A region that scrolls has to be reached with the keyboard, too. */
function exampleOf(example: unknown, label: string): Markup | false {
  if (example === undefined) return false;
  const text = typeof example === "string" ? example : JSON.stringify(example, null, 2);
  return html`<details><summary>Example</summary><pre tabindex="0" role="region" aria-label="${label}">${text}</pre></details>`;
}

/** `/docs/errors`: every problem type, where the `type` of a problem document leads. */
export function errorsPage(document: ApiDocument): string {
  const problems = document["x-problem-types"];
  const main = html`<p class="lead">Every error has a code. What comes over HTTP is a problem document (RFC 9457) with that <code>code</code>, a <code>detail</code> that says what was expected and what came, and a <code>type</code> that leads here.</p>
<p>The <code>error</code> of a job carries the same codes, and so does the command line.</p>
${problems.map(
  ({
    code,
    status,
    title,
    retryable,
    cause,
    remedy,
  }) => html`<article id="${code}"><h2><code>${code}</code> <span class="role">${status}</span></h2>
<p><strong>${title}.</strong> ${cause}</p>
<p>${remedy} <span class="role">${retryable ? "another attempt may help" : "the same again fails again"}</span></p></article>`,
)}`;
  const side = html`<ul>${problems.map(({ code }) => html`<li><a href="#${code}">${code}</a></li>`)}</ul>`;
  return page(document, "Errors", "/docs/errors", side, main);
}

/** `/docs/metrics`: what `/metrics` tells. */
export function metricsPage(document: ApiDocument): string {
  const metrics = document["x-metrics"];
  const main = html`<p class="lead">At <a href="/metrics">/metrics</a>, in Prometheus' text form. Every API process tells the same, of the whole system.</p>
<p>Counters and histograms are kept in Redis and outlive every process. A Grafana dashboard and alert rules that use them are in <code>dashboards/grafana</code>.</p>
${metrics.map(
  ({ name, type, labels, help }) => html`<article id="${name}"><h2><code>${name}</code></h2>
<p>${help}.</p><p>${type}${labels.length > 0 && html`, by ${labels.map((label, i) => html`${i > 0 && ", "}<code>${label}</code>`)}`}</p></article>`,
)}`;
  const side = html`<ul>${metrics.map(({ name }) => html`<li><a href="#${name}">${name.replace("mathllm_", "")}</a></li>`)}</ul>`;
  return page(document, "Metrics", "/docs/metrics", side, main);
}

function anchor(name: string): string {
  return name.toLowerCase().replace(/[^a-z0-9]+/g, "-");
}
