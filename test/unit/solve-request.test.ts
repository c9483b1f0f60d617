import { expect, test } from "vitest";
import { parseSolveRequest, requestHash } from "../../api/solve-request.ts";
import { MAX_PROBLEM_CHARS } from "../../queues/contracts.ts";
import { MathllmError } from "../../queues/errors.ts";

interface FieldError {
  path: string;
  expected: string;
  got: string;
}

/** The refusal of a body; fails the test when the body is taken. */
function refusal(body: unknown): { detail: string; errors: FieldError[] } {
  try {
    parseSolveRequest(body);
  } catch (error) {
    expect(error).toBeInstanceOf(MathllmError);
    const { code, message, extra } = error as MathllmError;
    expect(code).toBe("invalid-request");
    return { detail: message, errors: extra.errors as FieldError[] };
  }
  throw new Error(`expected a refusal of ${JSON.stringify(body)}`);
}

test("fills in every default", () => {
  expect(parseSolveRequest({ problem: "1 + 1" })).toEqual({
    problem: "1 + 1",
    explain: false,
    model: "student",
    priority: "normal",
    sampling: { temperature: 0 },
    samples: 1,
    cache: "auto",
  });
  expect(parseSolveRequest({ problem: "1", sampling: { seed: 3 } }).sampling).toEqual({ temperature: 0, seed: 3 });
});

test.each([
  [{ problem: 7 }, "problem", /string.*number/, "7"],
  [{}, "problem", /string/, "nothing"],
  [{ problem: null }, "problem", /string/, "null"],
  [{ problem: " \n\t " }, "problem", /not blank/, '" \\n\\t "'],
  [{ problem: "1", explain: "yes" }, "explain", /boolean.*string/, '"yes"'],
  [{ problem: "1", model: "teacher" }, "model", /student.*talker/, '"teacher"'],
  [{ problem: "1", priority: 5 }, "priority", /interactive.*normal.*batch/, "5"],
  [{ problem: "1", timeoutMs: 1.5 }, "timeoutMs", /int/, "1.5"],
  [{ problem: "1", timeoutMs: 86_400_001 }, "timeoutMs", /86400000/, "86400001"],
  [{ problem: "1", sampling: { temperature: 3 } }, "sampling.temperature", /2/, "3"],
  [{ problem: "1", sampling: { topP: 0 } }, "sampling.topP", />0/, "0"],
  [{ problem: "1", sampling: { stop: ["a", ""] } }, "sampling.stop.1", /1 char/, '""'],
  [{ problem: "1", sampling: { heat: 1 } }, "sampling", /heat/, '{"heat":1}'],
  [{ problem: "1", samples: 0, sampling: { temperature: 1 } }, "samples", />=1/, "0"],
  [{ problem: "1", samples: 33, sampling: { temperature: 1 } }, "samples", /<=32/, "33"],
  [{ problem: "1", samples: 8 }, "samples", /temperature above 0/, "8"],
  [{ problem: "1", samples: 8, model: "talker", sampling: { temperature: 1 } }, "samples", /model student/, "8"],
  [{ problem: "1", expected: "2", model: "talker" }, "expected", /model student/, '"2"'],
  [{ problem: "1", expected: " " }, "expected", /not blank/, '" "'],
  [{ problem: "1", expected: "1".repeat(2001) }, "expected", /2000/, "a text of 2001 characters"],
  [{ problem: "1", metadata: JSON.parse('{"a":"b","__proto__":"c"}') }, "metadata", /__proto__/, '{"a":"b","__proto__":"c"}'],
  [{ problem: "1", metadata: { a: 1 } }, "metadata.a", /string.*number/, "1"],
  [{ problem: "1", explain: true, model: "talker" }, "explain", /model student/, "true"],
  [{ problem: "1", explian: true }, "", /explian/, '{"problem":"1","explian":true}'],
  [[], "", /object.*array/, "[]"],
  [undefined, "", /object/, "nothing"],
])("refuses %j: path, expectation and what came", (body, path, expected, got) => {
  const { detail, errors } = refusal(body);
  expect(errors).toEqual([{ path, expected: expect.stringMatching(expected), got }]);
  expect(detail).toContain(`${path || "the body"}: `);
});

test("lists all wrong fields at once", () => {
  const { errors } = refusal({ problem: 7, explain: 1, sampling: { temperature: "hot", maxTokens: 0 } });
  expect(errors.map(({ path }) => path).sort()).toEqual(["explain", "problem", "sampling.maxTokens", "sampling.temperature"]);
});

test("does not echo a long text, a large value or a long name of a field", () => {
  const secret = "s".repeat(MAX_PROBLEM_CHARS + 1);
  for (const body of [{ problem: secret }, { problem: [secret] }, { problem: "1", [secret]: 1 }]) {
    const { detail, errors } = refusal(body);
    expect(JSON.stringify(errors).length).toBeLessThan(500);
    expect(detail.length).toBeLessThan(500);
  }
});

test.each(["__proto__", "constructor", "prototype"])(
  "a field named %s is refused, at the top and inside sampling, and pollutes nothing",
  (name) => {
    refusal(JSON.parse(`{"problem":"1","${name}":{"polluted":true}}`));
    refusal(JSON.parse(`{"problem":"1","sampling":{"${name}":{"polluted":true}}}`));
    expect("polluted" in {}).toBe(false);
  },
);

test("at most 16 entries of metadata", () => {
  const entries = (count: number) => Object.fromEntries(Array.from({ length: count }, (_, index) => [`k${index}`, "v"]));
  expect(Object.keys(parseSolveRequest({ problem: "1", metadata: entries(16) }).metadata!)).toHaveLength(16);
  expect(refusal({ problem: "1", metadata: entries(17) }).errors[0]).toMatchObject({
    path: "metadata",
    expected: expect.stringMatching(/16/),
  });
});

test("requests that mean the same have one hash, others have others", () => {
  const hash = (body: unknown) => requestHash(parseSolveRequest(body));
  const plain = hash({ problem: "1", sampling: { seed: 1, topK: 2 }, metadata: { a: "1", b: "2" } });
  expect(hash({ metadata: { b: "2", a: "1" }, sampling: { topK: 2, temperature: 0, seed: 1 }, explain: false, problem: "1" })).toBe(plain);
  expect(hash({ problem: "1", sampling: { seed: 1, topK: 3 }, metadata: { a: "1", b: "2" } })).not.toBe(plain);
  expect(hash({ problem: "1", sampling: { stop: ["a", "b"] } })).not.toBe(hash({ problem: "1", sampling: { stop: ["b", "a"] } }));
  expect(hash({ problem: "1", timeoutMs: 1 })).not.toBe(hash({ problem: "1" }));
});
