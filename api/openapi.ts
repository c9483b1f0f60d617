import type { ApiDocument, ApiOperation } from "../queues/api-document.ts";
import { ERROR_GUIDE } from "../queues/error-guide.ts";
import { ERRORS, type ErrorCode, MathllmError, problemOf } from "../queues/errors.ts";
import { METRICS } from "../queues/metrics.ts";
import { ACCESS, type Need } from "./access.ts";
import { envelopeOf } from "./openai/errors.ts";
import { type Answer, OPERATIONS, type Operation, type Parameter, TAGS } from "./openapi-operations.ts";
import { componentSchemas } from "./openapi-schemas.ts";

/** The OpenAPI 3.1 document of `createApp`. `x-problem-types` and `x-metrics` carry what OpenAPI has no place for. */
export function openapiDocument(version: string): ApiDocument {
  return {
    openapi: "3.1.0",
    info: {
      title: "mathllm",
      version,
      summary: "Maths problems in, solutions and explanations out, on one GPU.",
      description:
        "Errors are problem documents (RFC 9457) with a `code`; below `/v1` they come in the OpenAI envelope. Without API keys the API answers on a loopback address only and any Authorization header is ignored.",
      license: { name: "MIT", identifier: "MIT" },
    },
    servers: [{ url: "/", description: "Where this document came from" }],
    tags: [...TAGS],
    paths: Object.fromEntries(
      Object.entries(OPERATIONS).map(([address, methods]) => [
        address.replace(/:(\w+)/g, "{$1}"),
        Object.fromEntries(
          Object.entries(methods).map(([method, operation]) => [method.toLowerCase(), operationObject(address, method, operation!)]),
        ),
      ]),
    ),
    components: {
      schemas: componentSchemas(),
      securitySchemes: {
        bearer: { type: "http", scheme: "bearer", description: "An API key, once there are any (mathllm keys add)." },
        basic: { type: "http", scheme: "basic", description: "For browsers: the API key as password, under any name." },
      },
    },
    "x-problem-types": Object.entries(ERRORS).map(([code, { status, title, retryable }]) => ({
      code,
      status,
      title,
      retryable,
      ...ERROR_GUIDE[code as ErrorCode],
    })),
    "x-metrics": METRICS.map(({ name, type, labels, help }) => ({ name, type, labels, help })),
  };
}

function operationObject(address: string, method: string, operation: Operation): ApiOperation {
  const { tag, summary, about, body, answers } = operation;
  const need = ACCESS[address]?.[method as keyof (typeof ACCESS)[string]] ?? "any";
  const parameters = [
    ...parametersOf("path", operation.path),
    ...parametersOf("query", operation.query),
    ...parametersOf("header", operation.headers),
  ];
  return {
    operationId: operationId(address, method),
    tags: [tag],
    summary,
    ...(about === undefined ? {} : { description: about }),
    security: need === "open" ? [] : [{}, { bearer: [] }, { basic: [] }],
    "x-role": need,
    ...(parameters.length === 0 ? {} : { parameters }),
    ...(body === undefined ? {} : { requestBody: requestBody(body) }),
    responses: {
      ...Object.fromEntries(Object.entries(answers).map(([status, answer]) => [status, responseOf(answer)])),
      ...problemResponses(address.startsWith("/v1/"), problemsOf(operation, need), answers),
    },
  };
}

/** `GET /jobs/:id/events` is `getJobsIdEvents`. */
function operationId(address: string, method: string): string {
  const words = address.split(/[^A-Za-z0-9]+/).filter((word) => word !== "");
  return method.toLowerCase() + words.map((word) => word[0]!.toUpperCase() + word.slice(1)).join("");
}

function parametersOf(
  place: "path" | "query" | "header",
  parameters: Record<string, Parameter> = {},
): NonNullable<ApiOperation["parameters"]> {
  return Object.entries(parameters).map(([name, { about, schema, example }]) => ({
    name,
    in: place,
    required: place === "path",
    description: about,
    schema,
    ...(example === undefined ? {} : { example }),
  }));
}

function requestBody(body: NonNullable<Operation["body"]>): NonNullable<ApiOperation["requestBody"]> {
  if ("types" in body) return { required: true, content: body.types };
  const { schema, example, optional = false } = body;
  return { required: !optional, content: { "application/json": { schema: reference(schema), example } } };
}

function responseOf({ about, type = "application/json", schema, example, headers }: Answer): ApiOperation["responses"][string] {
  const described = schema === "text" ? { type: "string" } : schema === "object" ? { type: "object" } : reference(schema ?? "");
  return {
    description: about,
    ...(headers === undefined
      ? {}
      : {
          headers: Object.fromEntries(
            Object.entries(headers).map(([name, description]) => [name, { description, schema: { type: "string" } }]),
          ),
        }),
    ...(schema === undefined ? {} : { content: { [type]: { schema: described, ...(example === undefined ? {} : { example }) } } }),
  };
}

const reference = (name: string) => ({ $ref: `#/components/schemas/${name}` });

/** The codes that an operation may answer with. */
export function problemsOf({ body, path, query, headers, problems = [], tag }: Operation, need: Need): ErrorCode[] {
  const codes: ErrorCode[] = ["forbidden-origin", "internal-error", ...problems];
  if (need !== "open") codes.push("unauthorized", "rate-limited");
  if (need !== "open" && need !== "any") codes.push("forbidden");
  if (body !== undefined) codes.push("malformed-json", "invalid-request", "body-too-large", "unsupported-media-type");
  else if ((path ?? query ?? headers) !== undefined) codes.push("invalid-request");
  if (tag !== "System") codes.push("redis-unavailable");
  return codes;
}

function problemResponses(isOpenai: boolean, codes: ErrorCode[], answers: Operation["answers"]): ApiOperation["responses"] {
  const shown = (code: ErrorCode) => {
    const error = new MathllmError(code, ERROR_GUIDE[code].cause);
    if (!isOpenai) return { status: error.status, body: problemOf(error) };
    const { status, ...body } = envelopeOf(error);
    return { status, body };
  };
  const byStatus = Map.groupBy(codes, (code) => shown(code).status);
  return Object.fromEntries(
    [...byStatus]
      .filter(([status]) => !(status in answers))
      .map(([status, of]) => [
        status,
        {
          description: of.map((code) => `${code}: ${ERRORS[code].title}.`).join(" "),
          ...(of.some((code) => ERRORS[code].retryable)
            ? { headers: { "Retry-After": { description: "Seconds.", schema: { type: "integer" } } } }
            : {}),
          content: {
            [isOpenai ? "application/json" : "application/problem+json"]: {
              schema: reference(isOpenai ? "ErrorEnvelope" : "Problem"),
              examples: Object.fromEntries(of.map((code) => [code, { value: shown(code).body }])),
            },
          },
        },
      ]),
  );
}
