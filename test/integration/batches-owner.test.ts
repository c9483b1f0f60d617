import { afterAll, beforeAll, expect, test } from "vitest";
import type { BatchView } from "../../queues/batch-contracts.ts";
import { BatchFixture, jsonl, problems, until } from "../batch-fixture.ts";
import { expectProblem } from "../problem-document.ts";

const ALICE = "alice-secret-1234567890";
const BOB = "bob-secret-1234567890";
const ADMIN = "admin-secret-1234567890";
let system: BatchFixture;

beforeAll(async () => {
  system = await BatchFixture.start({ API_KEYS: `alice:submit:${ALICE},bob:submit:${BOB},root:admin:${ADMIN}` });
});
afterAll(() => system?.stop());

test("a batch and its jobs belong to the key that handed them in, and so do its Idempotency-Keys", async () => {
  const body = jsonl(problems(2));
  const { batchId } = await system.accepted(body, { key: "k", secret: ALICE });
  const others = await system.accepted(body, { key: "k", secret: BOB });
  expect(others.batchId).not.toBe(batchId);
  for (const path of ["", "/results", "/errors"]) {
    await expectProblem(await system.fetch(`/batches/${batchId}${path}`, {}, BOB), 404, "unknown-batch");
    for (const secret of [ALICE, ADMIN]) expect((await system.fetch(`/batches/${batchId}${path}`, {}, secret)).status).toBe(200);
  }
  await expectProblem(await system.fetch(`/batches/${batchId}`, { method: "DELETE" }, BOB), 404, "unknown-batch");
  const listed = async (secret: string) => {
    const { batches } = (await (await system.fetch("/batches", {}, secret)).json()) as { batches: BatchView[] };
    return batches.map((batch) => batch.batchId).sort();
  };
  expect([await listed(ALICE), await listed(BOB)]).toEqual([[batchId], [others.batchId]]);
  expect(await listed(ADMIN)).toEqual([batchId, others.batchId].sort());
  const [line] = (await (await system.fetch(`/batches/${batchId}/results`, {}, ALICE)).text()).split("\n");
  const { jobId } = JSON.parse(line!) as { jobId: string };
  expect((await system.fetch(`/jobs/${jobId}`, {}, ALICE)).status).toBe(200);
  await expectProblem(await system.fetch(`/jobs/${jobId}`, {}, BOB), 404, "unknown-job");
  await system.fetch(`/batches/${batchId}`, { method: "DELETE" }, ALICE);
  await until(async () => ((await (await system.fetch(`/batches/${batchId}`, {}, ALICE)).json()) as BatchView).status).toBe("cancelled");
});

test("without a key nothing is taken", async () => {
  await expectProblem(await system.upload(jsonl(problems(1))), 401, "unauthorized");
});
