import { isDeepStrictEqual } from "node:util";
import { type Ballot, isSettled, tally } from "../../maths/vote.ts";
import { cancelledAt, endSamples, moveToEnding } from "../../queues/cancellation.ts";
import type { StageResult } from "../../queues/contracts.ts";
import { MathllmError, parseFailedReason } from "../../queues/errors.ts";
import { sampleJobs } from "../../queues/job-stages.ts";
import { clientJobId, NEXT_PRIORITY, sampleOfId } from "../../queues/names.ts";
import type { Queues } from "../../queues/open-queues.ts";
import type { StageJob } from "../gpu/manual-worker.ts";

/**
 * Self-consistency: k samples of one problem, sibling jobs under a vote that waits for all of them.
 *
 *   sample   waiting ──picked──► running ──► completed: a ballot
 *               │                   └─────► failed: a ballot less
 *               └──── the majority is settled ───► cancelled (before its pick, or on the model)
 *   vote     all samples ended ──► counted, without any model ──► completed, or failed when no sample completed
 *
 * Half of the samples may settle it, so as soon as the first one is picked the other half lets everyone pass who waits then, unless there is a
 * deadline: where nobody waits all run at once, and in a backlog most of them never run.
 *
 * What BullMQ has recorded of the samples is all there is: whoever looks at it, whenever, comes to the same conclusion. So a worker may
 * die anywhere. Samples look when they begin and when they end.
 */
interface Samples {
  results: { sample: number; result: StageResult }[];
  /** Not ended. */
  open: number[];
  /** Why each of the others has no result, as BullMQ keeps it. */
  failures: string[];
}

async function readSamples(vote: StageJob): Promise<Samples> {
  const { processed = {}, unprocessed = [], ignored = {} } = await vote.getDependencies();
  const results = Object.entries(processed as Record<string, StageResult>).map(([key, result]) => ({ sample: sampleOfKey(key), result }));
  return {
    results: results.sort((a, b) => a.sample - b.sample),
    open: unprocessed.map(sampleOfKey),
    failures: Object.values(ignored).map(String),
  };
}

function sampleOfKey(key: string): number {
  return sampleOfId(key.slice(key.lastIndexOf(":") + 1))!;
}

const ballots = ({ results }: Samples): Ballot[] => results.map(({ sample, result }) => ({ sample, answer: result.answer }));

/** A sample that would change nothing any more. */
export const SETTLED = new MathllmError("cancelled", "The majority of the samples is settled.");

/** This sample's siblings, and itself, that have not ended though the majority is settled; null while it is not. */
async function settledAmong(queues: Queues, { parent }: StageJob): Promise<number[] | null> {
  const vote = parent?.id === undefined ? undefined : await queues.student.getJob(parent.id);
  if (vote === undefined) return null;
  const samples = await readSamples(vote);
  return isSettled(ballots(samples), samples.open) ? samples.open : null;
}

/** The first sample begins: the half that may not be needed goes behind what waits now in their class. */
export async function letOthersPass(queues: Queues, { id, data }: StageJob): Promise<void> {
  if (data.deadlineAt !== undefined) return;
  const jobId = clientJobId(id!);
  const samples = await sampleJobs(queues, jobId, data);
  const waiting = samples.filter((job) => job.processedOn === undefined && job.priority > NEXT_PRIORITY);
  const spare = waiting.filter((job) => job.data.sample! >= data.samples! / 2);
  await Promise.all(spare.map((job) => job.changePriority({ priority: job.priority })));
  // A cancel meanwhile had brought them to the front.
  if ((await cancelledAt(queues.redis, jobId)) !== null) await moveToEnding(queues, jobId);
}

/** Throws `cancelled` when this sample would change nothing any more. */
export async function refuseIfSettled(queues: Queues, sample: StageJob): Promise<void> {
  if ((await settledAmong(queues, sample)) !== null) throw SETTLED;
}

/** A sample has ended: if that settles the majority, the others are cancelled. */
export async function endIfSettled(queues: Queues, sample: StageJob): Promise<void> {
  // One that was cancelled settles nothing.
  if (sample.failedReason && parseFailedReason(sample.failedReason).code === "cancelled") return;
  const open = await settledAmong(queues, sample);
  if (open !== null) await endSamples(queues, clientJobId(sample.id!), open);
}

/**
 * The vote's result: text and answer of the sample that speaks for the majority, `usage` of all together. Without any answer it is the
 * first sample's text. Throws the first error when no sample completed.
 */
export async function countVote(queues: Queues, vote: StageJob): Promise<StageResult> {
  const samples = await readSamples(vote);
  const { results, failures } = samples;
  const { winner, agreement, votes } = tally(ballots(samples));
  const spoken = results.find(({ sample }) => sample === winner) ?? results[0];
  const reasons = failures.map(parseFailedReason);
  if (spoken === undefined) {
    const { code, detail } = reasons.find((reason) => reason.code !== "cancelled") ?? reasons[0]!;
    throw new MathllmError(code, `None of the ${vote.data.samples} samples was completed. ${detail}`);
  }
  const jobs = await sampleJobs(queues, clientJobId(vote.id!), vote.data);
  const firstTokens = results.flatMap(({ result }) => result.firstTokenAt ?? []);
  const picks = jobs.flatMap((job) => job.processedOn ?? []);
  const { drawnBy: _, ...result } = spoken.result;
  return {
    ...result,
    usage: {
      promptTokens: results.reduce((sum, each) => sum + each.result.usage.promptTokens, 0),
      completionTokens: results.reduce((sum, each) => sum + each.result.usage.completionTokens, 0),
    },
    firstTokenAt: firstTokens.length === 0 ? null : Math.min(...firstTokens),
    vote: {
      agreement,
      votes,
      samples: {
        asked: vote.data.samples!,
        finished: results.length,
        cancelled: reasons.filter(({ code }) => code === "cancelled").length,
      },
      pickedAt: picks.length === 0 ? null : Math.min(...picks),
      attempts: Math.max(1, ...jobs.map(({ attemptsStarted }) => attemptsStarted)),
    },
    ...(results.every((each) => isDeepStrictEqual(each.result.drawnBy, spoken.result.drawnBy)) ? { drawnBy: spoken.result.drawnBy } : {}),
  };
}
