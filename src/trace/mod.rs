//! Spans for OpenTelemetry: when messages became durable, were decided about, asked about and forwarded, with links to the
//! spans of their producers.
//!
//! The spans of one transaction are one trace, whose id is the transaction's. So the parts need to tell each other nothing,
//! and neither need two processes, one of which takes up what the other left. The store that the parts are given is
//! wrapped ([`TracedStore`], [`TracedOutlet`], [`TracedShortcut`]); where no collector is configured it is not, and nothing of this runs.

mod about;
mod export;
mod metrics;
mod otlp;
mod store;

pub(crate) use about::{About, Context};
pub(crate) use export::start;
pub(crate) use metrics::SpanMetrics;
pub(crate) use store::{TracedOutlet, TracedShortcut, TracedStore};

use crate::store::Sequence;
use crate::tx::id::TransactionId;
use export::{BATCH_MAX, QUEUE_MAX};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tokio::sync::{Notify, mpsc};

/// Transactions that are remembered between their spans, and as many that are being forwarded. Of more, later spans have no
/// links, or are left out.
const KNOWN_MAX: usize = 16_384;

/// What happened to a transaction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// Messages became durable.
    Stage,
    /// A decision became durable.
    Decide,
    /// Its checker was asked.
    Check,
    /// RabbitMQ got all of its messages.
    Forward,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stage => "stage",
            Self::Decide => "decide",
            Self::Check => "check",
            Self::Forward => "forward",
        }
    }

    /// The nearest of the types that the semantic conventions for messaging know.
    fn kind_of_messaging(self) -> Option<&'static str> {
        match self {
            Self::Stage => Some("receive"),
            Self::Decide => Some("settle"),
            Self::Check => None,
            Self::Forward => Some("send"),
        }
    }

    /// `SpanKind`, as a number: 1 internal, 3 client, 4 producer, 5 consumer.
    fn kind(self) -> i32 {
        match self {
            Self::Stage => 5,
            Self::Decide => 1,
            Self::Check => 3,
            Self::Forward => 4,
        }
    }
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A whole number.
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// One thing that happened to a transaction, and how long it took.
#[derive(Clone, Debug)]
pub struct Span {
    /// Whose.
    pub transaction: TransactionId,
    /// What.
    pub operation: Operation,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// What is known of its messages.
    pub about: Option<Arc<About>>,
    /// What is told besides.
    pub more: Vec<(&'static str, Value)>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Span {
    fn name(&self) -> String {
        let operation = self.operation.as_str();
        self.destination().map_or_else(|| operation.to_owned(), |destination| format!("{operation} {destination}"))
    }

    /// As the semantic conventions for RabbitMQ name it.
    fn destination(&self) -> Option<&str> {
        let about = self.about.as_ref().filter(|about| about.messages > 0)?;
        Some(if about.exchange.is_empty() { "amq.default" } else { &about.exchange })
    }

    fn links(&self) -> &[Context] {
        self.about.as_ref().map_or(&[], |about| &about.links)
    }

    fn attributes(&self) -> Vec<(&'static str, Value)> {
        let mut attributes = vec![
            ("messaging.system", "rabbitmq".into()),
            ("messaging.operation.name", self.operation.as_str().into()),
            ("halfway.transaction.id", Value::Text(self.transaction.to_string())),
        ];
        attributes.extend(self.operation.kind_of_messaging().map(|kind| ("messaging.operation.type", kind.into())));
        if let Some(about) = &self.about {
            attributes.push(("halfway.vhost", (&*about.vhost).into()));
            attributes.extend(about.name.as_deref().map(|name| ("halfway.transaction.name", name.into())));
        }
        if let (Some(about), Some(destination)) = (&self.about, self.destination()) {
            attributes.push(("messaging.destination.name", destination.into()));
            attributes.push(("messaging.rabbitmq.destination.routing_key", about.routing_key.as_str().into()));
            let messages = i64::try_from(about.messages).unwrap_or(i64::MAX);
            attributes.push(("messaging.batch.message_count", Value::Number(messages)));
        }
        attributes.extend(self.error.as_ref().map(|error| ("error.type", error.as_str().into())));
        attributes.extend(self.more.iter().cloned());
        attributes
    }
}

/// Takes spans, and passes them on to the [`Exporter`] without waiting.
pub struct Tracer {
    queue: mpsc::Sender<Span>,
    /// Tells that there is enough for a request.
    enough: Arc<Notify>,
    /// Of the 2^56 that the random end of an id can be, so many have spans.
    sampled: u64,
    metrics: SpanMetrics,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    about: HashMap<TransactionId, Arc<About>>,
    /// The keys, in the order in which they came; those that left among them.
    order: VecDeque<TransactionId>,
    forwarding: HashMap<Sequence, Forwarding>,
}

struct Forwarding {
    transaction: TransactionId,
    since: SystemTime,
    about: Option<Arc<About>>,
}

impl Tracer {
    fn new(queue: mpsc::Sender<Span>, enough: Arc<Notify>, sample: f64, metrics: SpanMetrics) -> Self {
        let sampled = (sample * (1_u64 << RANDOM_BITS) as f64) as u64;
        Self { queue, enough, sampled, metrics, known: Mutex::default() }
    }

    /// Whether a transaction has spans. Every part, and every process, comes to the same answer.
    pub fn samples(&self, id: TransactionId) -> bool {
        let random = (id.0.as_u128() & ((1 << RANDOM_BITS) - 1)) as u64;
        random < self.sampled
    }

    /// Passes a span on; if nobody takes them off as fast as they come, it is lost, and counted.
    pub fn send(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.metrics.dropped.inc();
        } else if self.queue.capacity() <= QUEUE_MAX - BATCH_MAX {
            self.enough.notify_one();
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change is whole before the lock is let go.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn about(&self, id: TransactionId) -> Option<Arc<About>> {
        self.known().about.get(&id).cloned()
    }

    /// Remembers messages of a transaction, and gives what is known of it now.
    fn remember(&self, id: TransactionId, vhost: &Arc<str>, name: Option<&str>, messages: &[u8]) -> Arc<About> {
        let mut known = self.known();
        let Known { about, order, .. } = &mut *known;
        let entry = about.entry(id).or_insert_with(|| {
            order.push_back(id);
            Arc::new(About::new(vhost, name))
        });
        Arc::make_mut(entry).read(messages);
        let remembered = Arc::clone(entry);
        while order.len() > KNOWN_MAX {
            let oldest = order.pop_front();
            oldest.map(|oldest| about.remove(&oldest));
        }
        remembered
    }

    fn forget(&self, id: TransactionId) {
        self.known().about.remove(&id);
    }

    /// A transaction is on its way to RabbitMQ.
    fn began_forwarding(&self, sequence: Sequence, transaction: TransactionId, about: Option<Arc<About>>) {
        let mut known = self.known();
        if known.forwarding.len() < KNOWN_MAX {
            let since = SystemTime::now();
            known.forwarding.entry(sequence).or_insert(Forwarding { transaction, since, about });
        } else {
            drop(known);
            self.metrics.dropped.inc();
        }
    }

    /// RabbitMQ has them.
    fn forwarded(&self, sequences: &[Sequence]) {
        let end = SystemTime::now();
        for sequence in sequences {
            let mut known = self.known();
            let Some(Forwarding { transaction, since, about }) = known.forwarding.remove(sequence) else { continue };
            let remembered = known.about.remove(&transaction);
            drop(known);
            let (operation, about) = (Operation::Forward, about.or(remembered));
            self.send(Span { transaction, operation, start: since, end, about, more: Vec::new(), error: None });
        }
    }
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracer").finish_non_exhaustive()
    }
}

/// As many as W3C Trace Context wants to be random at the end of a trace's id. A UUID of version 7 has six more.
const RANDOM_BITS: u32 = 56;

#[cfg(test)]
mod tests;
