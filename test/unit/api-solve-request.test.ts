import fc from "fast-check";
import { expect, test } from "vitest";
import { parseSolveRequest, requestHash } from "../../api/solve-request.ts";
import { MathllmError } from "../../queues/errors.ts";

const metadata = fc.dictionary(
  fc.string({ maxLength: 20 }).filter((key) => key !== "__proto__"),
  fc.string({ maxLength: 20 }),
  { maxKeys: 16 },
);
const body = fc.record(
  {
    problem: fc.string({ minLength: 1, maxLength: 50 }).filter((text) => text.trim() !== ""),
    metadata,
    timeoutMs: fc.integer({ min: 1, max: 1000 }),
  },
  { requiredKeys: ["problem"] },
);
const reversed = (value: object): object => Object.fromEntries(Object.entries(value).reverse());

test("the hash does not depend on the order of keys, at any depth, nor on spelled-out defaults", () => {
  fc.assert(
    fc.property(body, (request) => {
      const other = reversed({
        ...request,
        explain: false,
        priority: "normal",
        ...(request.metadata && { metadata: reversed(request.metadata) }),
      });
      expect(requestHash(parseSolveRequest(other))).toBe(requestHash(parseSolveRequest(request)));
    }),
  );
});

test.each([
  [{ problem: "1" }, { problem: "2" }],
  [{ problem: "1" }, { problem: "1", explain: true }],
  [{ problem: "1" }, { problem: "1", timeoutMs: 1 }],
  [
    { problem: "1", metadata: { a: "b" } },
    { problem: "1", metadata: { b: "a" } },
  ],
  [
    { problem: "1", sampling: { stop: ["a", "b"] } },
    { problem: "1", sampling: { stop: ["b", "a"] } },
  ],
])("another request has another hash: %j, %j", (one, other) => {
  expect(requestHash(parseSolveRequest(one))).not.toBe(requestHash(parseSolveRequest(other)));
});

test("whatever comes is either a request or an invalid-request of bounded size", () => {
  fc.assert(
    fc.property(fc.anything(), (value) => {
      try {
        expect(parseSolveRequest(value).problem).toBeTypeOf("string");
      } catch (error) {
        expect(error).toBeInstanceOf(MathllmError);
        expect(error).toMatchObject({ code: "invalid-request" });
        expect((error as Error).message.length).toBeLessThan(20_000);
      }
    }),
  );
});
