import { expect } from "vitest";

/** Expects a problem document with this status and code that shows nothing of the server's inside, and returns it. */
export async function expectProblem(
  response: Response,
  status: number,
  code: string,
): Promise<{ detail: string; errors?: { path: string }[] }> {
  const text = await response.text();
  expect([response.status, response.headers.get("content-type")]).toEqual([status, "application/problem+json; charset=utf-8"]);
  expect(JSON.parse(text)).toMatchObject({ status, code, title: expect.any(String), type: expect.stringContaining(code) });
  expect(text).not.toMatch(/\n\s+at |node_modules|Error:/);
  expect(response.headers.get("x-powered-by")).toBeNull();
  return JSON.parse(text);
}
