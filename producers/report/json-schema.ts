import { z } from "zod";
import { reportSchema } from "./schema.ts";

/** The form of report.json as JSON Schema (2020-12), for other programs; report.schema.json holds it. */
export function reportJsonSchema(): object {
  return { title: "Performance report of mathllm", ...z.toJSONSchema(reportSchema, { io: "input", reused: "ref" }) };
}
