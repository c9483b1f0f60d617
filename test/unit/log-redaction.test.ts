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
