import { z } from "zod";

/** The OpenAI chat request as our server takes it. Fields it does not know are ignored, as clients of that API expect. */
const contentSchema = z.union([
  z.string(),
  z.array(z.object({ type: z.literal("text"), text: z.string() })).transform((parts) => parts.map((part) => part.text).join("")),
]);

export const completionRequestSchema = z.object({
  model: z.string().optional(),
  messages: z
    .array(z.object({ role: z.enum(["system", "developer", "user", "assistant"]), content: contentSchema }))
    .min(1, "expected at least one message"),
  max_tokens: z.number().int().min(1).nullish(),
  max_completion_tokens: z.number().int().min(1).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().gt(0).max(1).nullish(),
  top_k: z.number().int().min(0).nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  seed: z.number().int().nullish(),
  stop: z
    .union([z.string(), z.array(z.string())])
    .transform((stop) => (typeof stop === "string" ? [stop] : stop))
    .nullish(),
  stream: z.boolean().nullish(),
  stream_options: z.object({ include_usage: z.boolean().nullish() }).nullish(),
});
export type CompletionRequest = z.infer<typeof completionRequestSchema>;

/** An error in OpenAI's envelope. */
export class RequestError extends Error {
  readonly status: number;
  readonly code: string | null;

  constructor(status: number, code: string | null, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }

  get body(): { error: { message: string; type: string; param: null; code: string | null } } {
    return {
      error: { message: this.message, type: this.status < 500 ? "invalid_request_error" : "server_error", param: null, code: this.code },
    };
  }
}
