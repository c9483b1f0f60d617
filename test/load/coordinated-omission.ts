import Table from "cli-table3";
import { runLoad } from "../../producers/load/load-run.ts";
import { nearestRank } from "../../producers/load/statistics.ts";
import type { LoadSummary } from "../../producers/load/summary.ts";
import { startTimedChat } from "../fakes/timed-chat-server.ts";

/**
 * Whether the load generator's figures are true: npm run test:load. Servers with a known service time of 100 ms, one with a scripted
 * stall of 3 s, one that serves a single request at once; every figure against its analytic value, within 5 %. About a minute and a half, on a machine that has nothing else to do.
 */
const SERVICE_MS = 100;
const STALL = { fromMs: 10_000, lengthMs: 3000 };
const RATE_PER_S = 50;
const OPEN_S = 30;
const CLOSED_S = 20;
const TOLERANCE = 0.05;

/** E2E of a request that is to be sent at this time: the stall holds up what runs when it begins, and what comes before it ends. */
function expectedMs(offsetMs: number): number {
  const stallEndMs = STALL.fromMs + STALL.lengthMs;
  if (offsetMs >= stallEndMs || offsetMs + SERVICE_MS <= STALL.fromMs) return SERVICE_MS;
  return offsetMs < STALL.fromMs ? SERVICE_MS + STALL.lengthMs : stallEndMs - offsetMs + SERVICE_MS;
}

interface Row {
  run: string;
  figure: string;
  measured: number;
  expected: number;
  /** Shown only: a tail of a few requests, which a busy machine moves. */
  shownOnly: boolean;
}
const rows: Row[] = [];
const problems: string[] = [];

async function measure(
  run: string,
  server: Awaited<ReturnType<typeof startTimedChat>>,
  plan: Partial<Parameters<typeof runLoad>[0]>,
): Promise<LoadSummary> {
  try {
    const warm = {
      target: "openai",
      url: server.url,
      outDir: null,
      arrivals: { pattern: "closed", concurrency: 4 },
    } as const;
    await runLoad({ ...warm, requests: 8 });
    server.startClock();
    const summary = await runLoad({ ...warm, ...plan });
    if (!summary.validity.valid) problems.push(`${run}: INVALID, ${summary.validity.reasons.join("; ")}`);
    if (summary.requests.completed !== summary.requests.sent) problems.push(`${run}: not every request was completed`);
    return summary;
  } finally {
    await server.stop();
  }
}

function check(run: string, figure: string, measured: number | undefined, expected: number, shownOnly = false): void {
  rows.push({ run, figure, measured: measured ?? Number.NaN, expected, shownOnly });
}

const offsets = Array.from({ length: RATE_PER_S * OPEN_S }, (_, n) => (1000 * n) / RATE_PER_S);
const expected = offsets.map(expectedMs).sort((a, b) => a - b);

const open = await measure("open loop, stall", await startTimedChat({ firstMs: SERVICE_MS, stall: STALL }), {
  arrivals: { pattern: "constant", ratePerS: RATE_PER_S },
  durationS: OPEN_S,
});
check("open loop, stall", "requests", open.requests.sent, offsets.length);
check("open loop, stall", "p50 ms", open.latencies.e2eMs?.p50.value, nearestRank(expected, 0.5));
check("open loop, stall", "p95 ms", open.latencies.e2eMs?.p95.value, nearestRank(expected, 0.95));
check("open loop, stall", "p99 ms", open.latencies.e2eMs?.p99.value, nearestRank(expected, 0.99));
check("open loop, stall", "max ms", open.latencies.e2eMs?.max, expected.at(-1)!);
check("open loop, stall", "mean ms", open.latencies.e2eMs?.mean.value, expected.reduce((sum, ms) => sum + ms, 0) / expected.length);

// A closed loop stops asking while nobody answers: its p99 hides the same stall. That is what it is, and why the rate is given openly.
const concurrency = 4;
const closed = await measure("closed loop of 4, stall", await startTimedChat({ firstMs: SERVICE_MS, stall: STALL }), {
  arrivals: { pattern: "closed", concurrency },
  durationS: CLOSED_S,
});
check(
  "closed loop of 4, stall",
  "requests/s",
  closed.throughput.requestsPerS,
  (concurrency * (CLOSED_S - STALL.lengthMs / 1000)) / (SERVICE_MS / 1000) / CLOSED_S,
);
check("closed loop of 4, stall", "p50 ms", closed.latencies.e2eMs?.p50.value, SERVICE_MS);
check("closed loop of 4, stall", "p99 ms", closed.latencies.e2eMs?.p99.value, SERVICE_MS, true);
check("closed loop of 4, stall", "max ms", closed.latencies.e2eMs?.max, SERVICE_MS + STALL.lengthMs);

// Little's law: with one slot, four in flight wait for three others each.
const serial = await measure("closed loop of 4, one slot", await startTimedChat({ firstMs: SERVICE_MS, slots: 1 }), {
  arrivals: { pattern: "closed", concurrency },
  durationS: CLOSED_S,
  warmUpS: 1,
});
check("closed loop of 4, one slot", "requests/s", serial.throughput.requestsPerS, 1000 / SERVICE_MS);
check("closed loop of 4, one slot", "p50 ms", serial.latencies.e2eMs?.p50.value, concurrency * SERVICE_MS);
check("closed loop of 4, one slot", "p95 ms", serial.latencies.e2eMs?.p95.value, concurrency * SERVICE_MS, true);

// 100 ms to the first of 11 pieces, 10 ms between them.
const streamed = await measure("closed loop of 2, streamed", await startTimedChat({ firstMs: SERVICE_MS, pieces: 11, gapMs: 10 }), {
  arrivals: { pattern: "closed", concurrency: 2 },
  durationS: CLOSED_S / 2,
});
check("closed loop of 2, streamed", "TTFT p50 ms", streamed.latencies.ttftMs?.p50.value, SERVICE_MS);
check("closed loop of 2, streamed", "ITL mean ms", streamed.latencies.itlMs?.mean.value, 10);
check("closed loop of 2, streamed", "TPOT p50 ms", streamed.latencies.tpotMs?.p50.value, 10);
check("closed loop of 2, streamed", "E2E p50 ms", streamed.latencies.e2eMs?.p50.value, 2 * SERVICE_MS);

const table = new Table({ head: ["run", "figure", "measured", "analytic", "off by", ""], style: { head: [], border: [] } });
for (const { run, figure, measured, expected, shownOnly } of rows) {
  const off = measured / expected - 1;
  const isRight = shownOnly || Math.abs(off) <= TOLERANCE;
  if (!isRight) problems.push(`${run}: ${figure} is off by ${(100 * off).toFixed(1)} %`);
  table.push([
    run,
    figure,
    measured.toFixed(1),
    expected.toFixed(1),
    `${(100 * off).toFixed(2)} %`,
    shownOnly ? "(shown only)" : isRight ? "" : "WRONG",
  ]);
}
console.log(table.toString());
const { p50, p99, max } = open.validity.dispatchDelayMs;
console.log(`open loop: dispatch delay p50 ${p50.toFixed(2)} ms, p99 ${p99.toFixed(2)} ms, max ${max.toFixed(1)} ms`);
for (const problem of problems) console.error(problem);
process.exit(problems.length === 0 ? 0 : 1);
