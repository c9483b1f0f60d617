import { groupAnswers } from "./equivalence.ts";

/** What one finished sample says; null when it gave no answer. */
export interface Ballot {
  /** Its place in the order in which the samples are drawn. */
  sample: number;
  answer: string | null;
}

export interface Tally {
  /** The sample whose answer, and solution, stands for all; null when no sample gave an answer. */
  winner: number | null;
  /** Share of the ballots in the winner's group; 0 without a winner. */
  agreement: number;
  /** Each group by its first answer, the largest first. */
  votes: { answer: string; count: number }[];
}

interface Group {
  answer: string;
  /** Ascending. */
  samples: number[];
}

/**
 * The result of a vote. Answers that are equal form a group; the largest group wins, and of equally large ones the one whose first
 * sample was drawn first. The first sample of the group speaks for it. A sample without an answer is a ballot for nobody.
 */
export function tally(ballots: readonly Ballot[]): Tally {
  const groups = groupsOf(ballots);
  const winner = groups[0];
  return {
    winner: winner?.samples[0] ?? null,
    agreement: winner === undefined ? 0 : winner.samples.length / ballots.length,
    votes: groups.map(({ answer, samples }) => ({ answer, count: samples.length })),
  };
}

/**
 * Whether the winning answer is the same whatever the samples in `open`, which have not finished, may say. Then no other group, nor one
 * that is still to come, can outgrow the leading one, or grow as large and have been drawn earlier.
 */
export function isSettled(ballots: readonly Ballot[], open: readonly number[]): boolean {
  if (open.length === 0) return true;
  const [leading, ...others] = groupsOf(ballots);
  if (leading === undefined) return false;
  const firstOpen = Math.min(...open);
  const rivals = [...others, { samples: [] }];
  return rivals.every(({ samples }) => {
    const most = samples.length + open.length;
    if (most !== leading.samples.length) return most < leading.samples.length;
    return leading.samples[0]! < Math.min(firstOpen, ...samples);
  });
}

function groupsOf(ballots: readonly Ballot[]): Group[] {
  const drawn = ballots.toSorted((a, b) => a.sample - b.sample);
  return groupAnswers(drawn.map(({ answer }) => answer)).map(({ answer, members }) => ({
    answer,
    samples: members.map((place) => drawn[place]!.sample),
  }));
}
