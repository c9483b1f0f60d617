import type { LoadRecord } from "./record.ts";
import { distributionOf } from "./statistics.ts";
import type { Distribution, Latencies } from "./summary.ts";

/** The metrics, as they are printed. What is null in a record is left out of the metric. */
export const METRICS = [
  {
    key: "e2eMs",
    name: "E2E",
    unit: "ms",
    formula: "finishedAt − scheduledAt. From when the request was to be sent, so that a stall also counts for those that queue behind it",
  },
  {
    key: "ttftMs",
    name: "TTFT (time to first token)",
    unit: "ms",
    formula:
      "firstTokenAt − scheduledAt: queueing included. Through our API the worker's time stamp of the first stage's first token; streamed, the arrival of the first text",
  },
  {
    key: "itlMs",
    name: "ITL (inter-token latency)",
    unit: "ms",
    formula: "arrival of a streamed piece of text − arrival of the one before; all gaps of all requests",
  },
  {
    key: "tpotMs",
    name: "TPOT (time per output token)",
    unit: "ms",
    formula:
      "(end of generation − firstTokenAt) / (output tokens − 1): the first token is excluded. With an explanation, both stages' times added and one token left out of each",
  },
  {
    key: "queueWaitMs",
    name: "Queue wait",
    unit: "ms",
    formula: "pickedAt − acceptedAt, by the server's clock; with an explanation, plus the Talker's pickedAt − the Student's finishedAt",
  },
  {
    key: "swapWaitMs",
    name: "Swap wait",
    unit: "ms",
    formula: "the part of the queue wait during which models were being swapped, from the beginning of the drain to ready",
  },
] as const satisfies { key: keyof Latencies; name: string; unit: string; formula: string }[];

/** What is no latency. */
const OTHER_FORMULAS = [
  { name: "Requests/s", unit: "1/s", formula: "requests completed within the steady window / its length, whenever they were sent" },
  { name: "Tokens/s in, out", unit: "1/s", formula: "prompt tokens, and output tokens, of those requests / the window's length" },
  {
    name: "Goodput",
    unit: "1/s",
    formula:
      "steady requests sent a second × the share of them that was answered, not truncated (unless allowed) and within every latency limit of the SLO",
  },
  { name: "Errors", unit: "share", formula: "(failed + refused) / sent, by class" },
  { name: "Truncated", unit: "share", formula: "answers that the token limit cut / completed" },
  { name: "Accuracy", unit: "share", formula: "right / graded, with Wilson's 95 % interval; undecided counts as not right" },
  { name: "Dispatch delay", unit: "ms", formula: "sentAt − scheduledAt: how late the generator was; part of E2E and TTFT" },
  { name: "Intervals", unit: "", formula: "95 % percentile bootstrap over requests, seeded" },
];

export const FORMULAS = [...METRICS.map(({ name, unit, formula }) => ({ name, unit, formula })), ...OTHER_FORMULAS];

export function latenciesOf(records: readonly LoadRecord[], seed: number): Latencies {
  const completed = records.filter(({ status }) => status === "completed");
  const distribution = (key: keyof Latencies): Distribution | null =>
    distributionOf(
      completed.map((record) => {
        const value = record[key];
        return value === null ? [] : typeof value === "number" ? [value] : value;
      }),
      seed,
    );
  return Object.fromEntries(METRICS.map(({ key }) => [key, distribution(key)])) as Latencies;
}
