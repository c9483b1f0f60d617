import type { Accepted, JobView } from "../queues/contracts.ts";

/** Examples of the OpenAPI document; each is valid. */
export const JOB_ID = "solve-0b1f4a52c9d84e6f9a3e7c1d2b5f8a60";
export const BATCH_ID = "batch-0b1f4a52c9d84e6f9a3e7c1d2b5f8a60";

export const SOLVE = { problem: "What is 17 + 25?", priority: "interactive", expected: "42", metadata: { course: "5b" } };
export const ACCEPTED: Accepted = { jobId: JOB_ID, status: "waiting", estimatedStartMs: 850, links: { self: `/jobs/${JOB_ID}` } };

const ACCEPTED_AT = 1_780_000_000_000;
export const JOB_VIEW: JobView = {
  jobId: JOB_ID,
  status: "completed",
  model: "student",
  priority: "interactive",
  stages: [
    {
      model: "student",
      status: "completed",
      attempts: 1,
      pickedAt: ACCEPTED_AT + 4,
      firstTokenAt: ACCEPTED_AT + 25,
      finishedAt: ACCEPTED_AT + 61,
      truncated: false,
      error: null,
    },
  ],
  position: null,
  estimatedStartMs: null,
  reason: null,
  timestamps: { acceptedAt: ACCEPTED_AT, pickedAt: ACCEPTED_AT + 4, firstTokenAt: ACCEPTED_AT + 25, finishedAt: ACCEPTED_AT + 61 },
  result: {
    answer: "42",
    solution: "17 + 25 = 42. The answer is \\boxed{42}.",
    explanation: null,
    truncated: false,
    cached: false,
    coalesced: false,
    usage: { promptTokens: 21, completionTokens: 19 },
    agreement: null,
    votes: null,
    samples: null,
    grade: { verdict: "equal", reason: "the same number" },
  },
  error: null,
  metadata: { course: "5b" },
  links: { self: `/jobs/${JOB_ID}` },
};
const CACHED_ID = `cached-${JOB_ID}`;
export const CACHED_VIEW: JobView = {
  ...JOB_VIEW,
  jobId: CACHED_ID,
  result: { ...JOB_VIEW.result!, cached: true, usage: { promptTokens: 0, completionTokens: 0 } },
  links: { self: `/jobs/${CACHED_ID}` },
};

export const EVENTS = `event: position
data: {"position":0,"estimatedStartMs":850}

id: 1780000000025-0
event: token
data: {"model":"student","attempt":1,"sample":null,"text":"17 + 25"}
`;

export const BATCH = {
  requests: [
    { custom_id: "a", problem: "What is 17 + 25?", expected: "42" },
    { custom_id: "b", problem: "What is 6 * 7?" },
  ],
  defaults: { explain: false },
};
export const BATCH_LINES = `${BATCH.requests.map((each) => JSON.stringify(each)).join("\n")}\n`;

export const CHAT = { model: "student", messages: [{ role: "user", content: "What is 17 + 25?" }], max_tokens: 200, stream: false };
export const OPENAI_BATCH = { input_file_id: "file-5d0c1e", endpoint: "/v1/chat/completions", completion_window: "24h" };
