/** The OpenAPI 3.1 document that the API makes, as far as the pages below `/docs` read it. */
export interface ApiDocument {
  openapi: string;
  info: { title: string; version: string; summary: string; description: string; license: object };
  tags: { name: string; description: string }[];
  paths: Record<string, Record<string, ApiOperation>>;
  servers: { url: string; description: string }[];
  components: { schemas: Record<string, JsonSchema>; securitySchemes: Record<string, object> };
  "x-problem-types": { code: string; status: number; title: string; retryable: boolean; cause: string; remedy: string }[];
  "x-metrics": { name: string; type: string; labels: readonly string[]; help: string }[];
}

export interface ApiOperation {
  operationId: string;
  tags: string[];
  summary: string;
  description?: string;
  security: object[];
  /** What an API key needs. */
  "x-role": string;
  parameters?: { name: string; in: string; required: boolean; description: string; schema: JsonSchema; example?: unknown }[];
  requestBody?: { required: boolean; content: Record<string, Content> };
  responses: Record<string, { description: string; headers?: Record<string, { description: string }>; content?: Record<string, Content> }>;
}

export interface Content {
  schema: JsonSchema;
  example?: unknown;
  examples?: Record<string, unknown>;
}

export interface JsonSchema {
  [keyword: string]: unknown;
  $ref?: string;
  type?: string | string[];
  enum?: readonly unknown[];
  const?: unknown;
  anyOf?: JsonSchema[];
  items?: JsonSchema;
  properties?: Record<string, JsonSchema>;
  required?: string[];
  additionalProperties?: JsonSchema | boolean;
  default?: unknown;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  minLength?: number;
  maxLength?: number;
  description?: string;
}
