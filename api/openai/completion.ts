import type { JobView, SolveRequest, Usage } from "../../queues/contracts.ts";

type Result = NonNullable<JobView["result"]>;

export interface CompletionOptions extends Pick<SolveRequest, "model" | "priority"> {
  /** A stream ends with the usage. */
  includeUsage?: boolean;
}

/** One answer in the forms of the OpenAI API. */
export class Completion {
  readonly #id: string;
  readonly #created: number;
  readonly #options: CompletionOptions;

  constructor(jobId: string, options: CompletionOptions, acceptedAt: number) {
    this.#id = `chatcmpl-${jobId}`;
    this.#created = Math.floor(acceptedAt / 1000);
    this.#options = options;
  }

  whole(result: Result, usage: Usage) {
    return {
      ...this.#envelope("chat.completion"),
      choices: [
        {
          index: 0,
          message: {
            role: "assistant",
            content: (this.#options.model === "student" ? result.solution : result.explanation) ?? "",
            refusal: null,
          },
          logprobs: null,
          finish_reason: finishReason(result),
        },
      ],
      usage: usageForm(result, usage),
    };
  }

  first(): string {
    return this.#chunk([{ index: 0, delta: { role: "assistant", content: "" }, logprobs: null, finish_reason: null }]);
  }

  piece(text: string): string {
    return this.#chunk([{ index: 0, delta: { content: text }, logprobs: null, finish_reason: null }]);
  }

  /** The end: why it ended, the usage where it was asked for, and the mark. */
  last(result: Result, usage: Usage): string {
    const end = this.#chunk([{ index: 0, delta: {}, logprobs: null, finish_reason: finishReason(result) }]);
    return `${end}${this.#options.includeUsage ? this.#chunk([], usageForm(result, usage)) : ""}data: [DONE]\n\n`;
  }

  #envelope(object: string) {
    const { model, priority } = this.#options;
    return { id: this.#id, object, created: this.#created, model, service_tier: SERVICE_TIER[priority] };
  }

  #chunk(choices: object[], usage: object | null = null): string {
    const body = { ...this.#envelope("chat.completion.chunk"), choices, ...(this.#options.includeUsage ? { usage } : {}) };
    return `data: ${JSON.stringify(body)}\n\n`;
  }
}

const SERVICE_TIER = { interactive: "priority", normal: "default", batch: "flex" } as const;

function finishReason({ truncated }: Result): "stop" | "length" {
  return truncated ? "length" : "stop";
}

function usageForm({ cached }: Result, { promptTokens, completionTokens }: Usage) {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
    prompt_tokens_details: { cached_tokens: cached ? promptTokens : 0 },
  };
}
