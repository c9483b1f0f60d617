import { Validator } from "@seriousme/openapi-schema-validator";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { ACCESS, BOARD_PATH } from "../../api/access.ts";
import { openapiDocument } from "../../api/openapi.ts";
import * as examples from "../../api/openapi-examples.ts";
import { OPERATIONS } from "../../api/openapi-operations.ts";
import { ANSWERS, REQUESTS } from "../../api/openapi-schemas.ts";
import type { ApiOperation } from "../../queues/api-document.ts";
import { ERRORS } from "../../queues/errors.ts";

const document = openapiDocument("1.2.3");
const operations = Object.values(document.paths).flatMap((methods) => Object.values(methods));

test("it is a valid OpenAPI 3.1 document", async () => {
  const result = await new Validator().validate(JSON.parse(JSON.stringify(document)));
  expect(result.errors ?? []).toEqual([]);
  expect(result.valid).toBe(true);
});

test("it has exactly the routes and methods that the application has", () => {
  const linesOf = (table: Record<string, object>) =>
    Object.entries(table).flatMap(([address, methods]) => Object.keys(methods).map((method) => `${method} ${address}`));
  const ours = linesOf(ACCESS).filter((line) => !line.endsWith(BOARD_PATH) || line.startsWith("GET"));
  expect(linesOf(OPERATIONS).sort()).toEqual(ours.sort());
  const ids = operations.map(({ operationId }) => operationId);
  expect(new Set(ids).size).toBe(ids.length);
});

test("every parameter of an address is described", () => {
  for (const [path, methods] of Object.entries(document.paths)) {
    const named = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name);
    for (const { parameters = [] } of Object.values(methods))
      expect(parameters.filter((each) => each.in === "path").map(({ name }) => name)).toEqual(named);
  }
});

test("every reference leads to a schema, and every schema is used", () => {
  const referred = [...JSON.stringify(document).matchAll(/"#\/components\/schemas\/(\w+)"/g)].map(([, name]) => name!);
  const told = [...JSON.stringify(operations).matchAll(/\b[A-Z]\w+\b/g)].map(([name]) => name);
  const names = Object.keys(document.components.schemas);
  expect(referred.filter((name) => !names.includes(name))).toEqual([]);
  expect(names.filter((name) => !referred.includes(name) && !told.includes(name))).toEqual([]);
});

describe("examples", () => {
  const named = (operation: ApiOperation) =>
    [operation.requestBody?.content, ...Object.values(operation.responses).map(({ content }) => content)].flatMap((content) =>
      Object.values(content ?? {}).flatMap(({ schema, example }) =>
        example === undefined || schema.$ref === undefined ? [] : [{ name: schema.$ref.split("/").at(-1)!, example }],
      ),
    );
  const all = operations.flatMap(named);

  test("are what the contracts take and answer", () => {
    expect(all.length).toBeGreaterThan(8);
    const schemas: Record<string, z.ZodType> = { ...REQUESTS, ...ANSWERS };
    for (const { name, example } of all) expect(schemas[name]!.safeParse(example).error, name).toBeUndefined();
    const lines = examples.BATCH_LINES.trim().split("\n");
    expect(lines.map((line) => JSON.parse(line))).toEqual(examples.BATCH.requests);
  });

  test("agree with the JSON Schema that clients read", () => {
    for (const { name, example } of all) {
      const schema = { ...document.components.schemas[name], $defs: document.components.schemas };
      const text = JSON.stringify(schema).replaceAll("#/components/schemas/", "#/$defs/");
      expect(z.fromJSONSchema(JSON.parse(text)).safeParse(example).error, name).toBeUndefined();
    }
  });
});

test("bodies that the API refuses are refused by the schema as well", () => {
  const { SolveRequest: schema, Sampling } = document.components.schemas;
  const text = JSON.stringify({ ...schema, $defs: { Sampling } }).replaceAll("#/components/schemas/", "#/$defs/");
  const solve = z.fromJSONSchema(JSON.parse(text));
  expect(solve.safeParse({ problem: "2 + 2" }).success).toBe(true);
  for (const wrong of [{}, { problem: 1 }, { problem: "x", model: "other" }, { problem: "x", samples: 33 }, { problem: "x", more: 1 }])
    expect(solve.safeParse(wrong).success, JSON.stringify(wrong)).toBe(false);
});

test("every error that a route may answer with stands at its status, and every code is documented", () => {
  expect(document["x-problem-types"].map(({ code }) => code)).toEqual(Object.keys(ERRORS));
  const { responses } = document.paths["/solve"]!.post!;
  const codesAt = (status: number) => Object.keys(responses[status]!.content!["application/problem+json"]!.examples!).sort();
  expect(codesAt(429)).toEqual(["deadline-unmeetable", "queue-full", "rate-limited", "too-many-jobs"]);
  expect(codesAt(409)).toEqual(["idempotency-conflict"]);
  const chat = document.paths["/v1/chat/completions"]!.post!.responses;
  expect(chat[400]!.content!["application/json"]!.examples).toMatchObject({
    "problem-too-long": { value: { error: { code: "context_length_exceeded", type: "invalid_request_error" } } },
  });
});
