import { setTimeout as delay } from "node:timers/promises";
import { type Attributes, type Context, context, propagation, ROOT_CONTEXT, SpanKind, SpanStatusCode, trace } from "@opentelemetry/api";

/**
 * OpenTelemetry traces: a request, its wait in the queue, its stage on a worker, and the call of the model server are spans of one trace. The
 * context travels in W3C headers and, through Redis, in the job's data. Until `startTracing` everything here does nothing.
 */
let started = false;

const SHUTDOWN_MS = 2000;

/**
 * Sends this process's spans to an OTLP/HTTP collector at `endpoint` (without `/v1/traces`), in batches. The SDK is loaded only now. Without an
 * `endpoint` nothing happens. Returns the end: what is left is sent.
 */
export async function startTracing(service: string, endpoint: string | undefined): Promise<() => Promise<void>> {
  if (endpoint === undefined || started) return async () => {};
  const [{ BatchSpanProcessor, NodeTracerProvider }, { OTLPTraceExporter }, { resourceFromAttributes }] = await Promise.all([
    import("@opentelemetry/sdk-trace-node"),
    import("@opentelemetry/exporter-trace-otlp-http"),
    import("@opentelemetry/resources"),
  ]);
  const exporter = new OTLPTraceExporter({ url: `${endpoint.replace(/\/+$/, "")}/v1/traces` });
  const provider = new NodeTracerProvider({
    resource: resourceFromAttributes({ "service.name": service }),
    spanProcessors: [new BatchSpanProcessor(exporter)],
  });
  provider.register();
  started = true;
  return async () => {
    started = false;
    // A collector that is away holds nothing up for longer.
    await Promise.race([provider.shutdown().catch(() => {}), delay(SHUTDOWN_MS, undefined, { ref: false })]);
    for (const api of [trace, context, propagation]) api.disable();
  };
}

export const isTracing = (): boolean => started;

interface SpanOptions {
  kind: "server" | "consumer" | "client";
  /** W3C headers, or what a job carries of them; default: what runs now. */
  parent?: Record<string, unknown>;
  attributes?: Attributes;
}

const KINDS = { server: SpanKind.SERVER, consumer: SpanKind.CONSUMER, client: SpanKind.CLIENT };
const tracer = () => trace.getTracer("mathllm");

/** Runs `body` within a span. Of an error it keeps what stands before the colon: the rest may hold what people ask. */
export function traced<T>(name: string, { kind, parent, attributes }: SpanOptions, body: () => Promise<T>): Promise<T> {
  if (!started) return body();
  return tracer().startActiveSpan(name, { kind: KINDS[kind], attributes }, contextOf(parent), async (span) => {
    try {
      return await body();
    } catch (error) {
      span.setStatus({ code: SpanStatusCode.ERROR, message: (error as Error).message.split(":")[0] });
      throw error;
    } finally {
      span.end();
    }
  });
}

/** A span that is over: from `fromMs` (epoch milliseconds) to now. */
export function tracePast(name: string, fromMs: number, parent: Record<string, unknown>, attributes: Attributes): void {
  if (started) tracer().startSpan(name, { startTime: fromMs, attributes }, contextOf(parent)).end();
}

/** The span that runs now, as W3C headers: `traceparent`, and `tracestate` where there is one. */
export function traceHeaders(): { traceparent?: string; tracestate?: string } {
  if (!started) return {};
  const headers: Record<string, string> = {};
  propagation.inject(context.active(), headers);
  // A caller's baggage stays here.
  const { traceparent, tracestate } = headers;
  return { ...(traceparent === undefined ? {} : { traceparent }), ...(tracestate === undefined ? {} : { tracestate }) };
}

function contextOf(parent: Record<string, unknown> | undefined): Context {
  return parent === undefined ? context.active() : propagation.extract(ROOT_CONTEXT, parent);
}
