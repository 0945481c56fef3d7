//! A collector of spans, as OpenTelemetry's own reads them.

use super::http::read_request;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use std::io::Write;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

/// A collector on a port of its own.
pub struct Collector {
    /// Where it listens.
    pub url: String,
    status: Arc<AtomicU16>,
    requests: Arc<Mutex<Vec<(String, ExportTraceServiceRequest)>>>,
}

impl Collector {
    /// Starts one that takes everything.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let url = format!("http://{}", listener.local_addr().expect("a listener has an address"));
        let (requests, status) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU16::new(200)));
        let (keep, answer) = (Arc::clone(&requests), Arc::clone(&status));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                // Whoever connected may be gone before it has said all.
                let Some((head, body)) = read_request(&mut stream) else { continue };
                let request = ExportTraceServiceRequest::decode(&*body).expect("protobuf of OTLP");
                let status = answer.load(Ordering::SeqCst);
                let answer = format!("HTTP/1.1 {status} -\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes());
                if status == 200 {
                    keep.lock().expect("no thread panics with it").push((head, request));
                }
            }
        });
        Self { url, status, requests }
    }

    /// From now on, answers with this status; what is not answered with 200 is not kept.
    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// The heads of the requests that it took.
    pub fn heads(&self) -> Vec<String> {
        self.requests.lock().expect("no thread panics with it").iter().map(|(head, _)| head.clone()).collect()
    }

    /// What the spans are said to come from.
    pub fn resource(&self, key: &str) -> Option<String> {
        let requests = self.requests.lock().expect("no thread panics with it");
        let resource = requests.first()?.1.resource_spans.first()?.resource.clone()?;
        text(&resource.attributes, key)
    }

    /// Every span that came, in the order in which they came.
    pub fn spans(&self) -> Vec<Span> {
        let requests = self.requests.lock().expect("no thread panics with it");
        let resources = requests.iter().flat_map(|(_, request)| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }
}

/// The value of an attribute.
pub fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        any_value::Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key} is {other:?}"),
    }
}
