import { pino } from "pino";
import { expect, test } from "vitest";
import { redaction } from "../../queues/log-redaction.ts";

const line = {
  requestId: "r",
  headers: { authorization: "Bearer k1", host: "h" },
  jobs: [{ data: { problem: "p1", sampling: { apiKey: "k2" }, messages: [{ content: "p2" }] } }],
  result: { solution: "p3" },
};

test.each([
  [false, /k1|k2|p1|p2|p3/],
  [true, /k1|k2/],
])("a line's secrets are left out, its problems unless they may be logged (%s)", (problemsToo, hidden) => {
  const written: string[] = [];
  const log = pino({ formatters: { log: redaction(problemsToo) } }, { write: (text: string) => void written.push(text) });
  log.info(line, "message");
  log.warn({ err: new Error("told") }, "failed");
  expect(written[0]).not.toMatch(hidden);
  expect(JSON.parse(written[0]!)).toMatchObject({ requestId: "r", headers: { host: "h" }, msg: "message" });
  expect(written[0]!.includes("p1")).toBe(problemsToo);
  expect(JSON.parse(written[1]!)).toMatchObject({ err: { message: "told" }, msg: "failed" });
});

test("an error is told with its class, code and cause, and without the Redis command that it carries", () => {
  const written: string[] = [];
  const log = pino({ formatters: { log: redaction(false) } }, { write: (text: string) => void written.push(text) });
  const command = { name: "evalsha", args: ['{"problem":"p1"}'] };
  const cause = Object.assign(new RangeError("deeper"), { command });
  const error = Object.assign(new TypeError("refused", { cause }), { code: "OOM", command });
  log.error(error);
  log.error({ err: error, other: error, gone: new DOMException("left", "AbortError") }, "failed");
  expect(written.join()).not.toContain("p1");
  for (const line of written) expect(JSON.parse(line).err).toMatchObject({ type: "TypeError", message: "refused: deeper", code: "OOM" });
  expect(JSON.parse(written[0]!).err.stack).toContain("log-redaction.test.ts");
});
