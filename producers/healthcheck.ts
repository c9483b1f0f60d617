import { MathllmError } from "../queues/errors.ts";

export interface Health {
  url: string;
  /** The models it serves. */
  models: string[];
  /** Milliseconds from the request for one token to its answer. */
  oneTokenMs: number;
}

const TIMEOUT_MS = 30_000;

/**
 * Whether an OpenAI-compatible model server answers: its list of models, and one token of the first. `url` with or without `/v1`.
 * Throws `engine-failed` with what was expected and what came.
 */
export async function checkHealth(url: string, apiKey?: string): Promise<Health> {
  const base = `${url.replace(/\/+$/, "").replace(/\/v1$/, "")}/v1`;
  const headers = { "content-type": "application/json", ...(apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` }) };
  const { data } = (await ask(`${base}/models`, { headers })) as { data?: { id: string }[] };
  const models = (data ?? []).map(({ id }) => id);
  if (models.length === 0) throw new MathllmError("engine-failed", `Expected ${base}/models to list a model; it lists none.`);
  const body = JSON.stringify({ model: models[0], max_tokens: 1, messages: [{ role: "user", content: "1 + 1" }] });
  const startedAt = performance.now();
  await ask(`${base}/chat/completions`, { method: "POST", headers, body });
  return { url: base, models, oneTokenMs: performance.now() - startedAt };
}

async function ask(url: string, init: RequestInit): Promise<unknown> {
  let response: Response;
  try {
    response = await fetch(url, { ...init, signal: AbortSignal.timeout(TIMEOUT_MS) });
  } catch (error) {
    const reason = (error as Error).cause instanceof Error ? ((error as Error).cause as Error).message : (error as Error).message;
    throw new MathllmError("engine-failed", `Expected a model server at ${url}; ${reason}.`);
  }
  const text = await response.text();
  if (!response.ok) throw new MathllmError("engine-failed", `${url} answered ${response.status}: ${text.slice(0, 300)}`);
  try {
    return JSON.parse(text);
  } catch {
    throw new MathllmError("engine-failed", `Expected JSON from ${url}; got ${text.slice(0, 100)}.`);
  }
}
