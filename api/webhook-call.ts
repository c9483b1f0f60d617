import { createHmac } from "node:crypto";
import { type Dispatcher, request } from "undici";
import { checkWebhookUrl, RefusedAddress } from "./webhook-address.ts";

/** So much of an answer's body is read, and thrown away. */
const MAX_ANSWER_BYTES = 4096;

export interface WebhookMessage {
  /** The same for every attempt: a receiver knows by it what it has had. */
  id: string;
  url: string;
  body: string;
}

export interface CallResult {
  at: number;
  durationMs: number;
  /** The HTTP status; null without an answer. */
  status: number | null;
  /** null: delivered. */
  error: string | null;
  /** Trying again would not help. */
  isFinal: boolean;
}

/**
 * Standard Webhooks: `v1,` and the base64 of HMAC-SHA256 over id, timestamp (epoch seconds) and body with dots between; one for each secret,
 * with spaces between.
 */
export function signatureOf(secrets: Buffer[], id: string, timestampSeconds: number, body: string): string {
  return secrets
    .map((secret) => `v1,${createHmac("sha256", secret).update(`${id}.${timestampSeconds}.${body}`).digest("base64")}`)
    .join(" ");
}

/** Posts a message once. Only an answer of 2xx counts; a redirect is not followed; 410 asks for no more. It never rejects. */
export async function callWebhook(
  { id, url, body }: WebhookMessage,
  { secrets, allowPrivate, dispatcher, signal }: { secrets: Buffer[]; allowPrivate: boolean; dispatcher: Dispatcher; signal: AbortSignal },
): Promise<CallResult> {
  const at = Date.now();
  const startedAt = performance.now();
  const seconds = Math.floor(at / 1000);
  const done = (status: number | null, error: string | null, isFinal: boolean): CallResult => ({
    at,
    durationMs: Math.round(performance.now() - startedAt),
    status,
    error,
    isFinal,
  });
  try {
    // A literal address is connected to without a look-up.
    checkWebhookUrl(url, allowPrivate);
  } catch (error) {
    return done(null, (error as Error).message, true);
  }
  try {
    const answer = await request(url, {
      method: "POST",
      dispatcher,
      signal,
      body,
      headers: {
        "content-type": "application/json",
        "user-agent": "mathllm",
        "webhook-id": id,
        "webhook-timestamp": String(seconds),
        "webhook-signature": signatureOf(secrets, id, seconds, body),
      },
    });
    await answer.body.dump({ limit: MAX_ANSWER_BYTES, signal }).catch(() => {});
    const { statusCode } = answer;
    if (statusCode >= 200 && statusCode < 300) return done(statusCode, null, true);
    if (statusCode === 410) return done(statusCode, "it answered 410: it wants no more of this", true);
    return done(
      statusCode,
      `it answered ${statusCode}${statusCode >= 300 && statusCode < 400 ? "; redirects are not followed" : ""}`,
      false,
    );
  } catch (error) {
    if (signal.aborted) return done(null, "it did not answer in time", false);
    const { code, message } = error as NodeJS.ErrnoException;
    return done(null, code ?? message, error instanceof RefusedAddress);
  }
}
