//! Logs, traces and metrics.
//!
//! Logs go to standard error, so that a command's output stays clean; those of `demo` go to a file. Traces go to a
//! collector if one is configured. Metrics are kept in memory and rendered for `/metrics`. Nothing here waits for an
//! outside system while the service runs: an unavailable collector costs traces, not payments.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{self, LogFormat};

/// The upper bounds of the histogram buckets. All histograms measure seconds, from half a millisecond in the database
/// to the longest call to Stripe.
const SECONDS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 20.0, 120.0];
/// How often measurements are aggregated into buckets while nobody scrapes them (P11).
const AGGREGATION_INTERVAL: Duration = Duration::from_secs(5);
/// The time limit for sending the last traces.
const LAST_TRACES_TIMEOUT: Duration = Duration::from_secs(3);

/// The running log and trace pipelines.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

/// Starts logs and traces, once per process, within the tokio runtime. An error means that they were already started,
/// or that the collector's address is invalid; a collector that does not respond is not an error.
pub fn start(settings: config::Telemetry) -> Result<Telemetry> {
    let traces = settings.otlp_endpoint.as_ref().map(|endpoint| trace_provider(endpoint.as_str())).transpose()?;
    let layer = traces.as_ref().map(|provider| {
        // Only our spans: those of the exporter's own connection would be exported for ever.
        let ours = Targets::new().with_target("paybridge", LevelFilter::INFO);
        tracing_opentelemetry::layer().with_tracer(provider.tracer("paybridge")).with_filter(ours)
    });
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let lines = match &settings.file {
        None => log_lines(settings.format, color(), std::io::stderr),
        Some(file) => {
            // An existing file is not ours.
            let opened = OpenOptions::new().create_new(true).append(true).mode(0o600).open(file);
            let opened = opened.with_context(|| format!("cannot write {}", file.display()))?;
            log_lines(settings.format, false, Mutex::new(opened))
        }
    };
    let registry = tracing_subscriber::registry().with(lines.with_filter(settings.filter));
    registry.with(layer).try_init().context("cannot start logging")?;
    Ok(Telemetry { traces })
}

impl Telemetry {
    /// Sends the last traces. An unavailable collector delays this by at most 3 s.
    pub async fn stop(self) {
        let Some(traces) = self.traces else { return };
        let sent = tokio::task::spawn_blocking(move || traces.shutdown_with_timeout(LAST_TRACES_TIMEOUT)).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::warn!("could not send the last traces to the collector");
        }
    }
}

/// One layer per format, because their types differ. The caller adds the filter.
fn log_lines<S, W>(format: LogFormat, color: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'line> fmt::MakeWriter<'line> + Send + Sync + 'static,
{
    match format {
        LogFormat::Text => fmt::layer().with_writer(writer).with_ansi(color).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(writer).boxed(),
    }
}

/// Colors only for terminals, unless `NO_COLOR` is set (no-color.org).
fn color() -> bool {
    use std::io::IsTerminal;
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn trace_provider(endpoint: &str) -> Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
    let exporter = exporter.context("cannot use the OTLP endpoint")?;
    let resource = Resource::builder().with_service_name("paybridge").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// The metrics of this process. Clones share them.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Renders all metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }

    /// Aggregates measurements for ever, so that memory is bounded while nobody scrapes them (P11).
    pub async fn aggregate(self) {
        let mut ticks = tokio::time::interval(AGGREGATION_INTERVAL);
        loop {
            ticks.tick().await;
            self.0.run_upkeep();
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Metrics")
    }
}

/// The metrics of this process. The first call installs the recorder behind the macros of the `metrics` crate.
pub fn metrics() -> Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS
        .get_or_init(|| {
            let (recorder, handle) = recorder();
            // It fails only in a program with a recorder of its own, which then receives the measurements.
            let _ = metrics::set_global_recorder(recorder);
            Metrics(handle)
        })
        .clone()
}

fn recorder() -> (metrics_exporter_prometheus::PrometheusRecorder, PrometheusHandle) {
    let builder = PrometheusBuilder::new().set_buckets(&SECONDS).unwrap_or_default();
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    (recorder, handle)
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::registry().with(log_lines(format, false, move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::info_span!("payment", payment.id = 7).entered();
            tracing::warn!(attempt.number = 2, "the card was declined");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_json_format_writes_one_object_per_line() {
        let line: serde_json::Value = serde_json::from_str(&logged(LogFormat::Json)).unwrap();
        assert_eq!(line["message"], "the card was declined");
        assert_eq!(line["attempt.number"], 2);
        assert_eq!(line["span"]["payment.id"], 7);
    }

    #[test]
    fn the_text_format_writes_message_and_fields() {
        let line = logged(LogFormat::Text);
        assert!(line.contains("WARN") && line.contains("the card was declined attempt.number=2"), "{line}");
    }

    #[test]
    fn histograms_are_rendered_with_buckets_that_replicas_can_add_up() {
        let (recorder, handle) = recorder();
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("paybridge_things_total", "kind" => "a").increment(2);
            metrics::histogram!("paybridge_work_seconds").record(0.003);
        });
        let text = Metrics(handle).render();
        assert!(text.contains("paybridge_things_total{kind=\"a\"} 2"), "{text}");
        assert!(text.contains("paybridge_work_seconds_bucket{le=\"0.005\"} 1"), "{text}");
    }

    #[test]
    fn a_process_has_one_recorder() {
        metrics();
        metrics::counter!("paybridge_shared_total").increment(1);
        assert!(metrics().render().contains("paybridge_shared_total 1"));
    }

    #[tokio::test]
    async fn an_unavailable_collector_delays_the_shutdown_by_seconds_at_most() {
        // Nothing listens on port 1.
        let traces = trace_provider("http://127.0.0.1:1").unwrap();
        let tracer = traces.tracer("test");
        drop(opentelemetry::trace::Tracer::start(&tracer, "span"));
        let stopped = Telemetry { traces: Some(traces) }.stop();
        tokio::time::timeout(LAST_TRACES_TIMEOUT * 3, stopped).await.unwrap();
    }
}
