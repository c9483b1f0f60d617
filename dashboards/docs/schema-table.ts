import type { JsonSchema } from "../../queues/api-document.ts";
import { html, type Markup } from "./markup.ts";

/** Objects within objects are told in the same table, under names with dots, so deep. */
const MAX_DEPTH = 2;

interface Row {
  name: string;
  schema: JsonSchema;
  /** Said only where others need not be there. */
  required: boolean;
}

/** A table of a schema's properties. */
export function schemaTable(schema: JsonSchema): Markup {
  return html`<table>
<thead><tr><th>field</th><th>type</th><th>what it is</th></tr></thead>
<tbody>${rowsOf(schema).map(
    ({ name, schema: field, required }) =>
      html`<tr><td><code>${name}</code>${required && html` <span class="must">required</span>`}</td><td>${typeOf(field)}</td><td>${field.description}</td></tr>\n`,
  )}</tbody></table>`;
}

function rowsOf(schema: JsonSchema, prefix = "", depth = 0): Row[] {
  const { properties = {}, required = [] } = schema;
  const saysSo = required.length < Object.keys(properties).length;
  return Object.entries(properties).flatMap(([name, field]) => {
    const own = { name: prefix + name, schema: field, required: saysSo && required.includes(name) };
    const inner = innerObject(field);
    return inner === undefined || depth + 1 > MAX_DEPTH
      ? [own]
      : [own, ...rowsOf(inner, `${prefix}${name}${field.type === "array" ? "[]" : ""}.`, depth + 1)];
  });
}

function innerObject(schema: JsonSchema): JsonSchema | undefined {
  const candidates = [schema, ...(schema.anyOf ?? []), ...(schema.items === undefined ? [] : [schema.items])];
  return candidates.find(({ properties }) => properties !== undefined);
}

/** `integer, 1 to 32, default 1`. */
export function typeOf(schema: JsonSchema): Markup {
  const { minimum, maximum, exclusiveMinimum, maxLength } = schema;
  const low = minimum !== undefined ? `${minimum}` : exclusiveMinimum !== undefined ? `above ${exclusiveMinimum}` : null;
  const isAny = (maximum ?? 0) >= Number.MAX_SAFE_INTEGER;
  const range =
    low !== null && maximum !== undefined && !isAny
      ? `, ${low} to ${maximum}`
      : low !== null && low !== `${Number.MIN_SAFE_INTEGER}`
        ? `, from ${low}`
        : "";
  const length = maxLength === undefined ? "" : `, up to ${maxLength.toLocaleString("en")} characters`;
  const fallback = schema.default === undefined ? null : html`, default <code>${JSON.stringify(schema.default)}</code>`;
  return html`${kindOf(schema)}${range}${length}${fallback}`;
}

function kindOf(schema: JsonSchema): Markup {
  const { $ref, anyOf, items, const: only, additionalProperties } = schema;
  if ($ref !== undefined) {
    const name = $ref.split("/").at(-1)!;
    return html`<a href="#form-${name}">${name}</a>`;
  }
  if (anyOf !== undefined) return joined(anyOf.map(kindOf), " or ");
  if (schema.enum !== undefined)
    return joined(
      schema.enum.map((each) => html`<code>${String(each)}</code>`),
      ", ",
    );
  if (only !== undefined) return html`<code>${JSON.stringify(only)}</code>`;
  if (items !== undefined) return html`list of ${kindOf(items)}`;
  const type = [schema.type ?? "any"].flat().join(" or ");
  if (type === "object" && typeof additionalProperties === "object") return html`object of ${kindOf(additionalProperties)}`;
  return html`${type}`;
}

function joined(parts: Markup[], separator: string): Markup {
  return html`${parts.map((part, i) => html`${i > 0 && separator}${part}`)}`;
}
