// An application with the OpenTelemetry SDK for Node: spans, metrics and log records of every
// shape, each exported twice, to the collector itself and to the relay.
// What arrives at the end of both ways can then be compared field by field.
//
//   node client.mjs '{"protocol": "grpc|proto|json", "compression": "none|gzip",
//                     "direct": {"traces": URL, "metrics": URL, "logs": URL}, "relay": {...}}'
//
// Prints the outcomes as one line of JSON; exit code 1 when an export failed.

import { ROOT_CONTEXT, SpanKind, SpanStatusCode, diag, trace } from "@opentelemetry/api";
import { SeverityNumber } from "@opentelemetry/api-logs";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BatchLogRecordProcessor, LoggerProvider } from "@opentelemetry/sdk-logs";
import {
  AggregationType,
  MeterProvider,
  PeriodicExportingMetricReader,
} from "@opentelemetry/sdk-metrics";
import { BatchSpanProcessor, NodeTracerProvider } from "@opentelemetry/sdk-trace-node";

const SPANS = 700;
const LOGS = 300;

const { protocol, compression, direct, relay } = JSON.parse(process.argv[2]);
const suffix = { grpc: "grpc", proto: "proto", json: "http" };

// The exporters of a protocol, by signal.
async function exporters(name) {
  const load = (signal) => import(`@opentelemetry/exporter-${signal}-otlp-${suffix[name]}`);
  return {
    traces: (await load("trace")).OTLPTraceExporter,
    metrics: (await load("metrics")).OTLPMetricExporter,
    logs: (await load("logs")).OTLPLogExporter,
  };
}

// JSON is held against protobuf: what comes out behind the relay is protobuf either way.
const toCollector = await exporters(protocol === "json" ? "proto" : protocol);
const toRelay = await exporters(protocol);

const outcomes = { exports: 0, failures: [] };

// One exporter in front of two: both get the very same batch, and both must take it.
function both(signal) {
  const options = { compression, timeoutMillis: 30_000 };
  const exporters = [
    new toCollector[signal]({ url: direct[signal], ...options }),
    new toRelay[signal]({ url: relay[signal], ...options }),
  ];
  return {
    export(batch, done) {
      let left = exporters.length;
      let worst = { code: 0 };
      exporters.forEach((exporter, index) =>
        exporter.export(batch, (result) => {
          outcomes.exports += 1;
          if (result.code !== 0) {
            worst = result;
            outcomes.failures.push(`${signal} ${index ? "relay" : "direct"}: ${result.error}`);
          }
          left -= 1;
          if (left === 0) done(worst);
        }),
      );
    },
    forceFlush: () => Promise.all(exporters.map((exporter) => exporter.forceFlush())),
    shutdown: () => Promise.all(exporters.map((exporter) => exporter.shutdown())),
    selectAggregationTemporality: (kind) => exporters[0].selectAggregationTemporality(kind),
  };
}

diag.disable();
const resource = resourceFromAttributes({
  "service.name": "shop-node",
  "service.tags": ["a", "b"],
  "host.cores": 2,
});

// --- traces ---

const tracers = new NodeTracerProvider({
  resource,
  spanProcessors: [
    new BatchSpanProcessor(both("traces"), {
      maxQueueSize: 10_000,
      maxExportBatchSize: 300,
    }),
  ],
});
const tracer = tracers.getTracer("shop.checkout", "1.2.3", { schemaUrl: "https://example.com/s" });
let previous = null;
for (let number = 0; number < SPANS; number += 1) {
  const parent = number % 2 && previous ? trace.setSpan(ROOT_CONTEXT, previous) : ROOT_CONTEXT;
  const span = tracer.startSpan(
    `span ${number}`,
    {
      kind: [
        SpanKind.INTERNAL,
        SpanKind.SERVER,
        SpanKind.CLIENT,
        SpanKind.PRODUCER,
        SpanKind.CONSUMER,
      ][number % 5],
      links: previous ? [{ context: previous.spanContext(), attributes: { link: number } }] : [],
      attributes: {
        number,
        text: 'grüße "日本" 🎈 \\ \n',
        empty: "",
        ratio: number / 7,
        negative: -number,
        large: Number.MAX_SAFE_INTEGER,
        flag: number % 2 === 0,
        strings: ["a", ""],
        numbers: [1, 2.5],
        "cut inside a character": "🎈".slice(0, number % 10 === 9 ? 1 : 2),
      },
    },
    parent,
  );
  span.addEvent("happened", { what: "something", when: 1.5 });
  if (number % 3 === 0) span.setStatus({ code: SpanStatusCode.ERROR, message: "no" });
  if (number % 3 === 1) span.setStatus({ code: SpanStatusCode.OK });
  span.end();
  previous = span;
}
await tracers.forceFlush();

// --- metrics ---

const meters = new MeterProvider({
  resource,
  views: [
    {
      instrumentName: "sizes",
      aggregation: { type: AggregationType.EXPONENTIAL_HISTOGRAM },
    },
  ],
  readers: [
    new PeriodicExportingMetricReader({
      exporter: both("metrics"),
      exportIntervalMillis: 2 ** 30,
      exportTimeoutMillis: 30_000,
    }),
  ],
});
const meter = meters.getMeter("shop.meter", "2");
const counter = meter.createCounter("requests", { unit: "1", description: "requests served" });
const levels = meter.createUpDownCounter("in_use");
const durations = meter.createHistogram("duration", { unit: "s" });
const sizes = meter.createHistogram("sizes", { unit: "By" });
meter.createObservableGauge("temperature").addCallback((result) => {
  result.observe(-21.5, { room: "1" });
});
for (let number = 0; number < 40; number += 1) {
  counter.add(number, { route: `/r${number % 4}` });
  levels.add(number % 3 ? 1 : -1, { pool: "a" });
  durations.record(number / 10, { route: `/r${number % 4}` });
  sizes.record(number * 1000);
}

// --- logs ---

const loggers = new LoggerProvider({
  resource,
  processors: [
    new BatchLogRecordProcessor({
      exporter: both("logs"),
      maxQueueSize: 10_000,
      maxExportBatchSize: 300,
    }),
  ],
});
const logger = loggers.getLogger("shop.logs");
for (let number = 0; number < LOGS; number += 1) {
  logger.emit({
    severityNumber: SeverityNumber.WARN,
    severityText: "WARN",
    body: number % 2 ? `record ${number}` : { nested: { list: [1, "two", true, null] } },
    attributes: { number, raw: new Uint8Array([0, 1, 254, 255]) },
    timestamp: 1_700_000_000_000 + number,
    context: number % 4 ? undefined : trace.setSpan(ROOT_CONTEXT, previous),
  });
}
await loggers.forceFlush();

await Promise.all([tracers.shutdown(), meters.shutdown(), loggers.shutdown()]);
console.log(JSON.stringify(outcomes));
process.exitCode = outcomes.failures.length ? 1 : 0;
