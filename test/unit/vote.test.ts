import fc from "fast-check";
import { expect, test } from "vitest";
import { type Ballot, isSettled, tally } from "../../maths/vote.ts";

const ballotsOf = (...answers: (string | null)[]): Ballot[] => answers.map((answer, sample) => ({ sample, answer }));

test.each([
  [
    "equal answers are one vote",
    ["1/2", "3", "0.5"],
    0,
    2 / 3,
    [
      ["1/2", 2],
      ["3", 1],
    ],
  ],
  [
    "of equally many the first drawn wins",
    ["7", "3", "3", "7"],
    0,
    1 / 2,
    [
      ["7", 2],
      ["3", 2],
    ],
  ],
  [
    "the first of the group speaks, whoever was first of all",
    ["1", "2", "2"],
    1,
    2 / 3,
    [
      ["2", 2],
      ["1", 1],
    ],
  ],
  ["no answer is a ballot for nobody", [null, "5", null], 1, 1 / 3, [["5", 1]]],
  ["without any answer nobody wins", [null, null], null, 0, []],
  [
    "what is undecided is not equal",
    ["a banana", "a fruit", "7"],
    0,
    1 / 3,
    [
      ["a banana", 1],
      ["a fruit", 1],
      ["7", 1],
    ],
  ],
] as const)("%s", (_, answers, winner, agreement, votes) => {
  const counted = tally(ballotsOf(...answers));
  expect(counted).toEqual({ winner, agreement, votes: votes.map(([answer, count]) => ({ answer, count })) });
});

test.each([
  [["1", "1", "1"], [3, 4], true],
  [["1", "1"], [2, 3, 4], false],
  // Even if both that are open say the same, they are as many, and later.
  [["1", "1"], [2, 3], true],
  [["1", "2", "2"], [3], false],
  [["1", "2", "2"], [3, 4], false],
  [["1", "2", "1"], [3], true],
  [[], [0, 1], false],
  [[null, null], [2], false],
  [["1"], [], true],
])("%j with %j open: settled is %s", (answers, open, settled) => {
  expect(isSettled(ballotsOf(...answers), open)).toBe(settled);
});

test("an open sample that was drawn earlier may win a tie", () => {
  const late: Ballot[] = [2, 3].map((sample) => ({ sample, answer: "1" }));
  expect(isSettled(late, [0, 1])).toBe(false);
  expect(isSettled([...late, { sample: 1, answer: "2" }], [0])).toBe(false);
});

const answer = fc.constantFrom("1", "2", "0.5", "1/2", null);

/** Everything that `count` samples can say, as far as it matters here: "9" is an answer that nobody has given. */
function* everything(count: number): Generator<(string | null)[]> {
  if (count === 0) yield [];
  else for (const rest of everything(count - 1)) for (const said of ["1", "2", "0.5", "9", null]) yield [said, ...rest];
}

test("it is settled exactly when nothing that the open samples can say changes the winning answer", () => {
  fc.assert(
    fc.property(fc.array(answer, { maxLength: 6 }), fc.uniqueArray(fc.nat(6), { minLength: 1, maxLength: 2 }), (answers, places) => {
      const open = places.filter((place) => place <= answers.length);
      fc.pre(open.length > 0);
      const finished = [...Array(answers.length + open.length).keys()].filter((sample) => !open.includes(sample));
      const ballots = finished.map((sample, i) => ({ sample, answer: answers[i]! }));
      const winners = new Set<string | undefined>();
      for (const said of everything(open.length)) {
        const winner = tally([...ballots, ...open.map((sample, i) => ({ sample, answer: said[i]! }))]).votes[0]?.answer;
        winners.add(winner === "1/2" ? "0.5" : winner);
      }
      expect(isSettled(ballots, open)).toBe(winners.size === 1);
    }),
  );
});

test("the order in which samples finish does not matter", () => {
  fc.assert(
    fc.property(fc.array(answer, { maxLength: 9 }), (answers) => {
      expect(tally(ballotsOf(...answers).toReversed())).toEqual(tally(ballotsOf(...answers)));
    }),
  );
});
