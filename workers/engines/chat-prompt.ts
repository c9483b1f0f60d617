import {
  type ChatHistoryItem,
  type ChatWrapper,
  JinjaTemplateChatWrapper,
  type LlamaModel,
  LlamaText,
  resolveChatWrapper,
  type Token,
} from "node-llama-cpp";
import type { TextRules } from "./answer-text.ts";
import type { CompletionRequest } from "./completion-request.ts";
import { triggerText } from "./token-text.ts";

export interface ChatPrompt {
  tokens: Token[];
  rules: TextRules;
}

/** Renders conversations as the model was trained on them: by the chat template of its file, or by the form that is known for its family. */
export class ChatPrompts {
  readonly #model: LlamaModel;
  readonly #wrapper: ChatWrapper;

  constructor(model: LlamaModel) {
    const template = model.fileInfo.metadata.tokenizer?.chat_template;
    this.#model = model;
    this.#wrapper = template === undefined ? resolveChatWrapper(model) : new JinjaTemplateChatWrapper({ template });
  }

  render({ messages, stop }: CompletionRequest): ChatPrompt {
    const thought = thoughtOf(this.#wrapper);
    const history = messages.map((message): ChatHistoryItem => {
      if (message.role === "assistant") return { type: "model", response: [message.content] };
      return { type: message.role === "user" ? "user" : "system", text: message.content };
    });
    const answer: ChatHistoryItem = {
      type: "model",
      response: thought.opensAnswer ? [{ type: "segment", segmentType: "thought", text: "", ended: false }] : [],
    };
    const state = this.#wrapper.generateContextState({ chatHistory: [...history, answer] });
    return {
      tokens: state.contextText.tokenize(this.#model.tokenizer),
      rules: {
        stops: this.#triggers([...state.stopGenerationTriggers, ...(stop ?? [])]),
        ignoredStarts: this.#triggers(state.ignoreStartText ?? []),
        thoughtOpeners: this.#triggers(thought.openers),
        thoughtClosers: this.#triggers(thought.closers),
        beginsInThought: thought.opensAnswer,
      },
    };
  }

  #triggers(triggers: (string | LlamaText)[]): string[] {
    return triggers.map((trigger) => triggerText(trigger, this.#model)).filter((text) => text !== "");
  }
}

interface ThoughtForm {
  openers: (string | LlamaText)[];
  closers: (string | LlamaText)[];
  /** An answer begins with a thought that the prompt opens. */
  opensAnswer: boolean;
}

function thoughtOf({ settings }: ChatWrapper): ThoughtForm {
  const thought = settings.segments?.thought;
  if (thought === undefined) return { openers: [], closers: [], opensAnswer: false };
  // The template itself opens it: it never stands in what the model writes.
  const opened = typeof thought.prefix === "object" && !LlamaText.isLlamaText(thought.prefix);
  return {
    openers: opened ? [] : [thought.prefix as string | LlamaText],
    closers: [thought.suffix, settings.segments?.closeAllSegments].filter((closer) => closer !== undefined),
    opensAnswer: opened || thought.openOnResponseStart === true,
  };
}
