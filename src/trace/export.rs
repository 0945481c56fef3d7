//! Brings spans to a collector, in requests of many. A collector that is away, slow or wrong costs spans, which are counted,
//! and nothing else.

use super::{Span, SpanMetrics, Tracer, otlp};
use crate::config::{HttpUrl, Telemetry, UpstreamTls};
use crate::http::{dial, send};
use crate::tls::{ClientTls, TlsError};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use prost::Message;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Spans that wait for a request; more are lost.
pub(super) const QUEUE_MAX: usize = 8192;
/// Spans of one request.
pub(super) const BATCH_MAX: usize = 512;
/// How long spans wait for others.
const EVERY: Duration = Duration::from_secs(1);
/// One request, from the connection to the last byte of the answer.
const REQUEST: Duration = Duration::from_secs(10);
/// Attempts with one request, and the pause after the first; it doubles.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The task that sends.
#[derive(Debug)]
pub(crate) struct Exporter {
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

/// Starts to send what the tracer takes, if a collector is configured. Must be called within the runtime.
/// # Errors
/// [`TlsError`], where the system has no certificate authorities and the collector is `https://`.
pub(crate) fn start(telemetry: &Telemetry, metrics: &SpanMetrics) -> Result<Option<(Arc<Tracer>, Exporter)>, TlsError> {
    let Some(url) = &telemetry.otlp_url else { return Ok(None) };
    let tls = url.tls.then(|| ClientTls::load(&UpstreamTls { ca: None })).transpose()?;
    let (sender, queue) = mpsc::channel(QUEUE_MAX);
    let (stop, stopped) = watch::channel(false);
    let enough = Arc::new(Notify::new());
    let tracer = Tracer::new(sender, Arc::clone(&enough), telemetry.sample, metrics.clone());
    let courier = Courier {
        path: format!("{}/v1/traces", url.path.trim_end_matches('/')),
        url: url.clone(),
        tls,
        service_name: telemetry.service_name.clone(),
        metrics: metrics.clone(),
        stopped,
        failing: false,
    };
    tracing::info!(%url, sample = telemetry.sample, "spans go to a collector");
    let task = tokio::spawn(courier.run(queue, enough));
    Ok(Some((Arc::new(tracer), Exporter { task, stop })))
}

impl Exporter {
    /// Sends what there is, within `limit`, and ends.
    pub(crate) async fn finish(mut self, limit: Duration) {
        self.stop.send_replace(true);
        if timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

struct Courier {
    url: HttpUrl,
    path: String,
    tls: Option<ClientTls>,
    service_name: String,
    metrics: SpanMetrics,
    stopped: watch::Receiver<bool>,
    failing: bool,
}

/// Why a request came to nothing.
struct Failure {
    text: String,
    /// Whether another attempt may help.
    again: bool,
}

impl Failure {
    fn lost(error: impl Display) -> Self {
        Failure { text: error.to_string(), again: true }
    }
}

impl Courier {
    async fn run(mut self, mut queue: mpsc::Receiver<Span>, enough: Arc<Notify>) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                _ = self.stopped.wait_for(|stopped| *stopped) => {}
                () = enough.notified() => {}
                () = sleep(EVERY) => {}
            }
            let last = *self.stopped.borrow();
            loop {
                batch.clear();
                batch.extend(std::iter::from_fn(|| queue.try_recv().ok()).take(BATCH_MAX));
                if batch.is_empty() {
                    break;
                }
                self.deliver(&batch).await;
            }
            if last {
                return;
            }
        }
    }

    async fn deliver(&mut self, spans: &[Span]) {
        let body = Bytes::from(otlp::request(&self.service_name, spans));
        let count = spans.len() as u64;
        let mut pause = PAUSE;
        for attempt in 1..=ATTEMPTS {
            let sent = timeout(REQUEST, self.send(body.clone())).await;
            match sent.unwrap_or_else(|_| Err(Failure::lost(format_args!("no answer within {REQUEST:?}")))) {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    self.metrics.exported.inc_by(count - rejected);
                    self.metrics.failed.inc_by(rejected);
                    if std::mem::replace(&mut self.failing, false) {
                        tracing::info!(url = %self.url, "the collector takes spans again");
                    }
                    return;
                }
                Err(failure) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(url = %self.url, error = failure.text, "the collector takes no spans; they are lost");
                    }
                    if !failure.again || attempt == ATTEMPTS || *self.stopped.borrow() {
                        break;
                    }
                }
            }
            tokio::select! {
                _ = self.stopped.wait_for(|stopped| *stopped) => {}
                () = sleep(pause) => {}
            }
            pause *= 2;
        }
        self.metrics.failed.inc_by(count);
    }

    /// One request on a connection of its own; how many spans the collector rejected.
    async fn send(&self, body: Bytes) -> Result<u64, Failure> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.path)
            .header(HOST, &self.url.authority)
            .header(USER_AGENT, concat!("halfway/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(CONNECTION, "close")
            .body(Full::new(body))
            .map_err(Failure::lost)?;
        let stream = dial(&self.url, self.tls.as_ref()).await.map_err(Failure::lost)?;
        let answer = send(stream, request).await.map_err(Failure::lost)?;
        let status = answer.head.status;
        let body = answer.body(ANSWER_BYTES_MAX).await.map_err(Failure::lost)?;
        if !status.is_success() {
            let again = status == StatusCode::TOO_MANY_REQUESTS || [502, 503, 504].contains(&status.as_u16());
            return Err(Failure { text: format!("it answers with status {}", status.as_u16()), again });
        }
        // An answer that can't be read is one that rejects nothing.
        let answer = otlp::ExportTraceServiceResponse::decode(body).unwrap_or_default();
        let rejected = answer.partial_success.unwrap_or_default();
        if rejected.rejected_spans > 0 {
            let reason = rejected.error_message;
            tracing::warn!(url = %self.url, rejected = rejected.rejected_spans, reason, "the collector rejected spans");
        }
        Ok(rejected.rejected_spans.try_into().unwrap_or_default())
    }
}
