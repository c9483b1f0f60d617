import { z } from "zod";

const CLOSED_CONNECTION = new Set(["UND_ERR_SOCKET", "ECONNRESET", "EPIPE"]);

/** The other side closed the connection; whether it had read the request is not known. */
export function isClosedConnection(error: unknown): boolean {
  return CLOSED_CONNECTION.has((error as NodeJS.ErrnoException).code ?? "");
}

const ourProblem = z.object({ code: z.string(), detail: z.string() });
const openAiError = z.object({ error: z.object({ message: z.string(), code: z.union([z.string(), z.number()]).nullish() }) });

/** The class and text of an error answer: our problem document's, the OpenAI envelope's, or the status and the body. */
export function problemOfBody(status: number, body: string): { code: string; detail: string } {
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch {
    return { code: `http-${status}`, detail: body };
  }
  const ours = ourProblem.safeParse(value);
  if (ours.success) return ours.data;
  const openAi = openAiError.safeParse(value);
  if (openAi.success) return { code: `http-${status}`, detail: openAi.data.error.message };
  return { code: `http-${status}`, detail: body };
}
