//! What the relay does at the moment, for health, metrics and people: cheap to write, cheap to read.

use crate::histogram::{Histogram, LATENCIES};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The connection of one virtual host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Not there; why, unless it is the first attempt.
    Connecting(Option<String>),
    /// RabbitMQ does not let the account or the virtual host in: its code and text. Tried again all the same.
    Refused(u16, String),
    /// Not there, because there has been nothing to send for a while.
    Idle,
    /// There.
    Connected,
    /// There, and RabbitMQ takes nothing because of an alarm: its words.
    Blocked(String),
}

/// Messages that RabbitMQ nacked and has not taken since; what comes behind them from the same client channels waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// How many.
    pub messages: u64,
    /// Client channels that wait.
    pub channels: u64,
    /// How often the first of them was nacked.
    pub nacks: u32,
    /// Where the first of them goes.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
}

impl Stuck {
    /// Both; the one that was nacked more often is told of.
    pub(super) fn and(self, other: Self) -> Self {
        let (messages, channels) = (self.messages + other.messages, self.channels + other.channels);
        let first = if self.nacks >= other.nacks { self } else { other };
        Self { messages, channels, ..first }
    }
}

/// What happened since the process started, and what is so now.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Messages that RabbitMQ confirmed.
    pub(super) confirmed: AtomicU64,
    /// Transactions of one message that RabbitMQ had before the store was asked.
    pub(super) direct: AtomicU64,
    /// Answers that a message was not taken.
    pub(super) nacked: AtomicU64,
    /// Mandatory messages that went back to their publisher.
    pub(super) returned: AtomicU64,
    /// Messages that were not mandatory and reached no queue.
    pub(super) unroutable: AtomicU64,
    /// Messages that became dead letters.
    pub(super) dead_lettered: AtomicU64,
    /// Times that the store gave messages that are not those it was given.
    pub(super) unreadable: AtomicU64,
    /// Connections made after the first.
    pub(super) reconnects: AtomicU64,
    /// Messages published and not answered, now.
    pub(super) in_flight: AtomicU64,
    /// Lanes whose oldest message has waited longer than the confirm timeout, now.
    pub(super) stalled_lanes: AtomicU64,
    /// Channels that RabbitMQ allows, where lanes have to share them; else 0.
    pub(super) channels: AtomicU64,
}

/// One virtual host, written by its task.
#[derive(Debug)]
pub(crate) struct VhostStatus {
    link: Mutex<Link>,
    refused: Mutex<Option<Stuck>>,
    trial: Mutex<Option<String>>,
    pub(super) counters: Counters,
    /// From the decision of a transaction to RabbitMQ's last answer, of all virtual hosts.
    pub(super) forwarded: Histogram,
}

impl VhostStatus {
    pub(super) fn new(forwarded: Histogram) -> Self {
        Self {
            link: Mutex::new(Link::Connecting(None)),
            refused: Mutex::default(),
            trial: Mutex::default(),
            counters: Counters::default(),
            forwarded,
        }
    }

    pub(super) fn set_refused(&self, refused: Option<Stuck>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
    }

    pub(super) fn set_trial(&self, trouble: Option<String>) {
        *self.trial.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    pub(super) fn set_link(&self, link: Link) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = link;
    }
}

/// Adds to a counter. Nothing else depends on the moment, so the order of memory does not matter.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// The state of the relay, shared by all who show it.
#[derive(Debug)]
pub struct RelayStatus {
    vhosts: Mutex<BTreeMap<Arc<str>, Arc<VhostStatus>>>,
    forwarded: Histogram,
}

impl Default for RelayStatus {
    fn default() -> Self {
        Self { vhosts: Mutex::default(), forwarded: Histogram::new(LATENCIES) }
    }
}

impl RelayStatus {
    /// From the decision of a transaction to RabbitMQ's answer for its last message.
    pub fn forwarded(&self) -> &Histogram {
        &self.forwarded
    }

    pub(crate) fn vhost(&self, name: &Arc<str>) -> Arc<VhostStatus> {
        let mut vhosts = self.vhosts.lock().unwrap_or_else(PoisonError::into_inner);
        let status = vhosts.entry(Arc::clone(name));
        Arc::clone(status.or_insert_with(|| Arc::new(VhostStatus::new(self.forwarded.clone()))))
    }

    /// Every virtual host that had a committed transaction since the start, by name.
    pub fn snapshot(&self) -> Vec<VhostSnapshot> {
        let vhosts = self.vhosts.lock().unwrap_or_else(PoisonError::into_inner);
        vhosts.iter().map(|(name, status)| VhostSnapshot::of(name, status)).collect()
    }
}

/// One virtual host at one moment. Counts are since the process started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostSnapshot {
    /// Its name.
    pub vhost: Arc<str>,
    /// Its connection.
    pub link: Link,
    /// Messages published and not answered, now.
    pub in_flight: u64,
    /// Lanes whose oldest message has waited longer than the confirm timeout, now.
    pub stalled_lanes: u64,
    /// What RabbitMQ nacked and has not taken since.
    pub refused: Option<Stuck>,
    /// Why there is no connection for messages that have to be tried before they go with others.
    pub trial: Option<String>,
    /// Channels that RabbitMQ allows, where lanes have to share them; else 0.
    pub shared_channels: u64,
    /// Messages that RabbitMQ confirmed.
    pub confirmed: u64,
    /// Transactions of one message that RabbitMQ had before the store was asked.
    pub direct: u64,
    /// Answers that a message was not taken.
    pub nacked: u64,
    /// Mandatory messages that went back to their publisher.
    pub returned: u64,
    /// Messages that were not mandatory and reached no queue.
    pub unroutable: u64,
    /// Messages that became dead letters.
    pub dead_lettered: u64,
    /// Times that the store gave messages that are not those it was given.
    pub unreadable: u64,
    /// Connections made after the first.
    pub reconnects: u64,
}

impl VhostSnapshot {
    fn of(name: &Arc<str>, status: &VhostStatus) -> Self {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &status.counters;
        Self {
            vhost: Arc::clone(name),
            link: status.link.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            in_flight: read(&counters.in_flight),
            stalled_lanes: read(&counters.stalled_lanes),
            refused: status.refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            trial: status.trial.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            shared_channels: read(&counters.channels),
            confirmed: read(&counters.confirmed),
            direct: read(&counters.direct),
            nacked: read(&counters.nacked),
            returned: read(&counters.returned),
            unroutable: read(&counters.unroutable),
            dead_lettered: read(&counters.dead_lettered),
            unreadable: read(&counters.unreadable),
            reconnects: read(&counters.reconnects),
        }
    }

    /// `connecting`, `refused`, `blocked`, `stalled`, `idle` or `connected`.
    pub fn state(&self) -> &'static str {
        match self.link {
            Link::Connecting(_) => "connecting",
            Link::Refused(..) => "refused",
            Link::Blocked(_) => "blocked",
            Link::Connected if self.stalled_lanes > 0 || self.refused.is_some() => "stalled",
            Link::Idle => "idle",
            Link::Connected => "connected",
        }
    }
}
