//! Traces over OTLP: one span for each role that an exchange crosses, off unless configured.
//!
//! The context travels as W3C `traceparent`, from the client and from node to node.

use std::time::Duration;

use opentelemetry::{
    Context,
    trace::{
        SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
        TracerProvider as _,
    },
};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig as _};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};
use vector_proto::id::ExchangeId;

use crate::config::Role;

/// Spans with this target are exported, all others are not even made.
const TARGET: &str = "vector_edge::trace";

/// For sending one batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Traces(SdkTracerProvider);

impl Traces {
    pub(super) fn start(endpoint: &str) -> Result<Self, ExporterBuildError> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        let resource = Resource::builder().with_service_name("vector-edge").build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build();
        Ok(Self(provider))
    }

    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    {
        let tracer = self.0.tracer("vector-edge");
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_filter(filter_fn(|about| {
                about.is_span() && about.target() == TARGET
            }))
    }

    /// Sends what is left.
    pub(super) fn flush(&self) {
        // The process ends: nobody is left to tell.
        let _unsent = self.0.shutdown_with_timeout(EXPORT_TIMEOUT);
    }
}

pub(super) fn span(role: Role, exchange: ExchangeId, traceparent: &str) -> Span {
    let span = match role {
        Role::Ingress => tracing::info_span!(target: TARGET, "exchange.ingress", %exchange),
        Role::Relay => tracing::info_span!(target: TARGET, "exchange.relay", %exchange),
        Role::Egress => tracing::info_span!(target: TARGET, "exchange.egress", %exchange),
    };
    if let Some(parent) = parse(traceparent) {
        // Fails only where the span is not recorded.
        let _unrecorded = span.set_parent(Context::new().with_remote_span_context(parent));
    }
    span
}

pub(super) fn traceparent(span: &Span) -> Option<String> {
    let context = span.context();
    let at = context.span().span_context().clone();
    at.is_valid().then(|| {
        let flags = at.trace_flags().to_u8();
        format!("00-{}-{}-{flags:02x}", at.trace_id(), at.span_id())
    })
}

/// Strict: what is not of version 00 is ignored, since clients may send anything.
fn parse(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let (span, flags) = (parts.next()?, parts.next()?);
    let shape = version == "00" && (trace.len(), span.len(), flags.len()) == (32, 16, 2);
    if !shape || parts.next().is_some() {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt as _, Empty};
    use hyper::{body::Incoming, server::conn::http2, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::{net::TcpListener, sync::mpsc};
    use tokio_util::task::TaskTracker;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// A collector that takes one connection, and what it was sent.
    async fn collector(tasks: &TaskTracker) -> (String, mpsc::Receiver<(String, Bytes)>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (told, heard) = mpsc::channel(8);
        tasks.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let told = told.clone();
                async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    told.send((path, body)).await.unwrap();
                    let answer = Response::builder()
                        .header("content-type", "application/grpc")
                        .header("grpc-status", "0");
                    Ok::<_, Infallible>(answer.body(Empty::<Bytes>::new()).unwrap())
                }
            });
            let (socket, _) = listener.accept().await.unwrap();
            let server = http2::Builder::new(TokioExecutor::new());
            let served = server.serve_connection(TokioIo::new(socket), service);
            // It ends with the exporter.
            let _gone = served.await;
        });
        (endpoint, heard)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_spans_of_an_exchange_are_exported_one_below_the_other() {
        let tasks = TaskTracker::new();
        let (endpoint, mut heard) = collector(&tasks).await;
        let traces = Traces::start(&endpoint).unwrap();
        let subscriber = tracing_subscriber::registry().with(traces.layer());
        let exchange = ExchangeId::fresh();
        let came = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        tracing::subscriber::with_default(subscriber, || {
            let mut above = came.to_owned();
            let mut spans = Vec::new();
            for role in [Role::Ingress, Role::Relay, Role::Egress] {
                let span = span(role, exchange, &above);
                let below = traceparent(&span).unwrap();
                assert_eq!(below[..35], came[..35], "another trace");
                assert_ne!(below, above);
                above = below;
                spans.push(span);
            }
        });
        tasks.spawn_blocking(move || traces.flush()).await.unwrap();
        let (path, body) = heard.recv().await.unwrap();
        assert_eq!(
            path,
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
        );
        let id = exchange.to_string();
        for wanted in [
            "vector-edge",
            "exchange.ingress",
            "exchange.relay",
            "exchange.egress",
            &id,
        ] {
            let found = memchr::memmem::find(&body, wanted.as_bytes());
            assert!(found.is_some(), "{wanted}");
        }
    }

    #[test]
    fn only_a_well_formed_context_is_taken() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(parse(good).unwrap().is_remote());
        for bad in [
            "",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-0af7651916cd43dd8448eb211c8031zz-b7ad6b7169203331-01",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
