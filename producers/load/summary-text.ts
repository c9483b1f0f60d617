import Table from "cli-table3";
import type { KneeResult } from "./knee.ts";
import { METRICS } from "./metrics.ts";
import type { Distribution, Estimate, LoadSummary, SloResult } from "./summary.ts";

const ms = (value: number) => (value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0));
const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
const plain = { head: [], border: [] };

function withInterval({ value, low, high }: Estimate): string {
  return low === null || high === null ? ms(value) : `${ms(value)} (${ms(low)}–${ms(high)})`;
}

/** What a run measured, for a reader. */
export function summaryText(summary: LoadSummary): string {
  const { requests, total, window, throughput, accuracy, tokens, server } = summary;
  const lines = [headline(summary), latencyTable(summary)];
  const { sent, completed, failed, refused, truncated, cached, coalesced } = requests;
  const more = [
    failed > 0 ? `${failed} failed` : "",
    refused > 0 ? `${refused} refused` : "",
    truncated > 0 ? `${truncated} truncated` : "",
    cached + coalesced > 0 ? `${cached} from the cache, ${coalesced} coalesced` : "",
  ];
  const outside = total.byPhase["warm-up"] + total.byPhase["cool-down"];
  lines.push(
    `${sent} requests in ${window.steadyS.toFixed(1)} steady seconds${outside > 0 ? ` (${outside} more in warm-up and cool-down)` : ""}: ${[`${completed} completed`, ...more.filter(Boolean)].join(", ")}.`,
  );
  lines.push(
    `${throughput.requestsPerS.toFixed(2)} requests/s, ${throughput.tokensInPerS.toFixed(0)} tokens/s in, ${throughput.tokensOutPerS.toFixed(0)} out${
      tokens.inMean === null || tokens.outMean === null ? "" : ` (${tokens.inMean.toFixed(0)} and ${tokens.outMean.toFixed(0)} a request)`
    }${throughput.goodputPerS === null ? "" : `; goodput ${throughput.goodputPerS.toFixed(2)} requests/s (${percent(throughput.goodShare ?? 0)})`}.`,
  );
  if (accuracy !== null) {
    const undecided = accuracy.undecided > 0 ? `, ${accuracy.undecided} undecided` : "";
    lines.push(
      `Accuracy ${percent(accuracy.accuracy)} (${percent(accuracy.low)} to ${percent(accuracy.high)}): ${accuracy.equal} of ${accuracy.graded} right${undecided}.`,
    );
  }
  if (server !== null) {
    const { student, talker, none } = server.residentShare;
    lines.push(
      `Server: ${server.swaps} swaps (${(server.swapMsTotal / 1000).toFixed(1)} s), Student resident ${percent(student)} of the time, Talker ${percent(talker)}, neither ${percent(none)}; deepest queues ${server.maxDepth.student} and ${server.maxDepth.talker}.`,
    );
  }
  for (const { errorClass, count, example } of summary.errors) lines.push(`  ${errorClass}: ${count}, such as: ${example ?? "no detail"}`);
  if (summary.groups.length > 0) lines.push(groupTable(summary));
  if (summary.slo !== null) lines.push(sloText(summary.slo));
  return `${lines.join("\n")}\n`;
}

function headline({ validity, interrupted, total }: LoadSummary): string {
  const { dispatchDelayMs, achievedRatePerS, requestedRatePerS } = validity;
  const rate =
    achievedRatePerS === null || requestedRatePerS === null
      ? ""
      : ` ${achievedRatePerS.toFixed(2)} of ${requestedRatePerS.toFixed(2)} requests/s sent, dispatch delay p50 ${ms(dispatchDelayMs.p50)} ms, p99 ${ms(dispatchDelayMs.p99)} ms.`;
  const notes = interrupted ? [`Interrupted: ${total.cutOff} requests were cut off; the figures are of what was sent until then.`] : [];
  if (!validity.valid) notes.push(`INVALID, the generator was the limit or measured nothing:\n  ${validity.reasons.join("\n  ")}`);
  else notes.push(`Valid: the generator kept up.${rate}`);
  return notes.join("\n");
}

function latencyTable({ latencies }: LoadSummary): string {
  const table = new Table({ head: ["ms (95 % interval)", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"], style: plain });
  for (const { key, name } of METRICS) {
    const distribution: Distribution | null = latencies[key];
    if (distribution === null) continue;
    const { mean, p50, p90, p95, p99, p99_9, max } = distribution;
    table.push([
      name.replace(/ \(.*/, ""),
      withInterval(mean),
      withInterval(p50),
      ms(p90.value),
      withInterval(p95),
      withInterval(p99),
      ms(p99_9.value),
      ms(max),
    ]);
  }
  return table.toString();
}

function groupTable({ groups }: LoadSummary): string {
  const table = new Table({ head: ["", "sent", "completed", "E2E p50", "p95", "p99", "TTFT p95", "queue wait p95", "SLO"], style: plain });
  for (const { by, value, ratePerS, requests, latencies, slo } of groups) {
    const { e2eMs, ttftMs, queueWaitMs } = latencies;
    table.push([
      by === "step" ? `${ratePerS ?? value}/s` : value,
      requests.sent,
      requests.completed,
      ...[e2eMs?.p50, e2eMs?.p95, e2eMs?.p99, ttftMs?.p95, queueWaitMs?.p95].map((estimate) => (estimate ? ms(estimate.value) : "–")),
      slo === null ? "" : slo.met ? "met" : "missed",
    ]);
  }
  return table.toString();
}

function sloText({ met, terms }: SloResult): string {
  const lines = terms.map(({ term, observed, unit, met, note }) => {
    const value = observed === null ? "–" : unit === "share" ? percent(observed) : `${ms(observed)} ${unit}`;
    return `  ${met ? "met   " : "missed"}  ${term}: ${value}${note === null ? "" : ` (${note})`}`;
  });
  return `SLO ${met ? "met" : "MISSED"}\n${lines.join("\n")}`;
}

/** A search for the knee, point by point. */
export function kneeText({ points, highestMetPerS, firstMissedPerS, note }: KneeResult): string {
  const table = new Table({ head: ["requests/s", "completed", "E2E p50", "p95", "errors", "valid", "SLO"], style: plain });
  for (const { ratePerS, completed, sent, e2eP50Ms, e2eP95Ms, valid, sloMet } of points) {
    table.push([
      ratePerS.toFixed(2),
      `${completed} of ${sent}`,
      e2eP50Ms === null ? "–" : ms(e2eP50Ms),
      e2eP95Ms === null ? "–" : ms(e2eP95Ms),
      sent - completed,
      valid ? "yes" : "no",
      sloMet ? "met" : "missed",
    ]);
  }
  const rate = (value: number | null) => (value === null ? "none" : `${value.toFixed(2)} requests/s`);
  return `${table.toString()}\nHighest rate that meets the SLO: ${rate(highestMetPerS)}. First that doesn't: ${rate(firstMissedPerS)}.${note === null ? "" : ` ${note}`}\n`;
}
