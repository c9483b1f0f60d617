import { BUCKETS_S, METRICS, type Series } from "../queues/metrics.ts";

export const METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8";

type Name = (typeof METRICS)[number]["name"];

/** One answer of `/metrics` in Prometheus' text form: a metric that was given no value stands there by its type alone. */
export class MetricsText {
  readonly #lines = new Map<string, string[]>(METRICS.map(({ name }) => [name, []]));

  set(name: Name, labels: Record<string, string>, value: number): void {
    this.#line(name, "", labels, value);
  }

  /** What was counted in Redis. */
  add({ name, labels, parts }: Series): void {
    const metric = METRICS.find((each) => each.name === name)!;
    if (metric.type !== "histogram") {
      this.set(metric.name, labels, parts.get("count") ?? 0);
      return;
    }
    let count = 0;
    for (const [i, le] of [...BUCKETS_S.map(String), "+Inf"].entries()) {
      count += parts.get(String(i)) ?? 0;
      this.#line(name, "_bucket", { ...labels, le }, count);
    }
    this.#line(name, "_sum", labels, (parts.get("ms") ?? 0) / 1000);
    this.#line(name, "_count", labels, count);
  }

  toString(): string {
    return METRICS.map(({ name, type, help }) =>
      [`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`, ...this.#lines.get(name)!, ""].join("\n"),
    ).join("");
  }

  #line(name: string, suffix: string, labels: Record<string, string>, value: number): void {
    const pairs = Object.entries(labels).map(([label, text]) => `${label}="${escaped(text)}"`);
    this.#lines.get(name)!.push(`${name}${suffix}${pairs.length === 0 ? "" : `{${pairs.join(",")}}`} ${value}`);
  }
}

function escaped(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}
