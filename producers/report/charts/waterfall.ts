import { figure } from "../figure.ts";
import type { Graphs } from "../schema.ts";
import { belowAxis, type Chart, colour, seriesStyle, shortened } from "./chart.ts";

const ROW_PX = 30;
const HEAD_PX = 34;

/** Where a job's time goes: each stage begins where the medians of those before it end. */
export function waterfall(jobs: Graphs["waterfall"]): Chart {
  const tops = jobs.map((_, nth) => jobs.slice(0, nth).reduce((sum, { stages }) => sum + HEAD_PX + ROW_PX * stages.length, 0) + HEAD_PX);
  const bottomPx = jobs.reduce((sum, { stages }) => sum + HEAD_PX + ROW_PX * stages.length, 0);
  const lastMs = Math.max(...jobs.map(({ stages }) => stages.reduce((sum, { p50Ms }) => sum + p50Ms, 0)), 0.001);
  return {
    id: "waterfall",
    title: "Where a job's time goes (medians)",
    description: `${jobs
      .map(
        ({ label, stages }) =>
          `${label}: ${stages.map(({ name, p50Ms, p95Ms }) => `${name} ${figure(p50Ms, "ms")} (p95 ${figure(p95Ms, "ms")})`).join(", ")}`,
      )
      .join("; ")}.`,
    height: () => bottomPx + 52,
    option: (layout) => {
      const left = layout.narrow ? 96 : 150;
      const right = layout.narrow ? 84 : 170;
      return {
        grid: jobs.map(({ stages }, nth) => ({ left, right, top: tops[nth], height: ROW_PX * stages.length })),
        xAxis: jobs.map((_, nth) =>
          belowAxis(nth === jobs.length - 1 ? "ms" : "", {
            gridIndex: nth,
            min: 0,
            max: lastMs,
            splitNumber: layout.narrow ? 3 : 6,
            ...(nth === jobs.length - 1 ? { axisLabel: { showMaxLabel: false } } : { axisLabel: { show: false } }),
          }),
        ),
        yAxis: jobs.map(({ label, stages }, nth) => ({
          type: "category",
          gridIndex: nth,
          inverse: true,
          name: shortened(label, layout.narrow ? 44 : 90),
          nameLocation: "start",
          nameGap: 12,
          nameTextStyle: { color: colour("text"), fontWeight: "bold", fontSize: 12, align: "left", padding: [0, 0, 0, -left + 6] },
          data: stages.map(({ name }) => name),
          axisLine: { lineStyle: { color: colour("axis") } },
          axisTick: { show: false },
          axisLabel: { color: colour("text"), fontSize: 12, width: left - 12, overflow: "truncate" },
        })),
        series: jobs.flatMap(({ label, stages }, nth) => {
          const begins = stages.map((_, at) => stages.slice(0, at).reduce((sum, { p50Ms }) => sum + p50Ms, 0));
          const shared = { type: "bar", stack: label, xAxisIndex: nth, yAxisIndex: nth, silent: true, barWidth: ROW_PX - 12 };
          return [
            { ...shared, data: begins, itemStyle: { color: "transparent" } },
            {
              ...shared,
              data: stages.map(({ p50Ms }) => p50Ms),
              itemStyle: { color: seriesStyle(nth).color },
              label: {
                show: true,
                position: "right",
                color: colour("text"),
                fontSize: 12,
                formatter: ({ dataIndex }: { dataIndex: number }) => {
                  const { p50Ms, p95Ms } = stages[dataIndex]!;
                  return layout.narrow ? figure(p50Ms, "ms") : `${figure(p50Ms, "ms")}  (p95 ${figure(p95Ms, "ms")})`;
                },
              },
            },
          ];
        }),
      };
    },
  };
}
