//! One task for each client connection: it moves bytes between the client, RabbitMQ and the protocol core, and carries
//! out the core's commands on the store.

mod begun;
mod buffers;
mod client;
mod entry;
mod heartbeat;
pub mod listener;
mod metrics;
mod routing;
mod share;
mod side;

pub use self::metrics::SessionMetrics;

use self::routing::Routing;
use crate::config::{self, Config};
use crate::health::Health;
use crate::memory::Memory;
use crate::places::Capacity;
use crate::protocol::command::ConnectionSettings;
use crate::protocol::handshake::LoginRules;
use crate::roster::Roster;
use crate::signals::Shutdown;
use crate::store::{ForSessions, Shortcut};
use crate::tx::checker::Rules;
use crate::tx::id::TransactionId;
use crate::upstream::Upstream;
use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use uuid::Builder;

/// What sessions stand on.
pub struct Parts {
    /// Where half messages are kept.
    pub store: Arc<dyn ForSessions>,
    /// The way of a transaction of one message to RabbitMQ, before it is kept.
    pub shortcut: Arc<dyn Shortcut>,
    /// Dials RabbitMQ.
    pub upstream: Arc<Upstream>,
    /// What they count.
    pub metrics: Arc<SessionMetrics>,
    /// What they notice.
    pub health: Arc<Health>,
    /// When they have to end.
    pub shutdown: Shutdown,
    /// Where they tell of themselves.
    pub roster: Arc<Roster>,
    /// What their clients may hold.
    pub memory: Arc<Memory>,
}

/// What all sessions share.
pub struct Shared {
    store: Arc<dyn ForSessions>,
    shortcut: Arc<dyn Shortcut>,
    upstream: Arc<Upstream>,
    metrics: Arc<SessionMetrics>,
    health: Arc<Health>,
    shutdown: Shutdown,
    roster: Arc<Roster>,
    memory: Arc<Memory>,
    terms: watch::Sender<Arc<Terms>>,
    routing: Routing,
    /// Users whom RabbitMQ lets open no channel beside their own.
    without_spare_channel: Mutex<HashSet<Arc<str>>>,
}

/// The part of the configuration by which clients are served. It may change while they are.
#[derive(Debug)]
pub struct Terms {
    connections_max: usize,
    /// For those who have not logged in.
    handshakes: Capacity,
    handshake_timeout: Duration,
    /// How long a client may wait for RabbitMQ.
    wait: Duration,
    loopback_users: Vec<String>,
    transaction: config::Transaction,
    lanes: u16,
    rules: Arc<Rules>,
    control_exchange: Arc<str>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// Puts together what sessions need.
    pub fn new(terms: Terms, parts: Parts) -> Self {
        let Parts { store, shortcut, upstream, metrics, health, shutdown, roster, memory } = parts;
        let terms = watch::Sender::new(Arc::new(terms));
        let (routing, without_spare_channel) = (Routing::default(), Mutex::default());
        Self {
            store,
            shortcut,
            upstream,
            metrics,
            health,
            shutdown,
            roster,
            memory,
            terms,
            routing,
            without_spare_channel,
        }
    }

    /// Serves by these terms from now on. A transaction that has begun keeps its limits, and a connection what it was
    /// opened with: its lanes, its control exchange, its login.
    ///
    /// What RabbitMQ allows a user may have changed as well, and the only way to find out is to try again.
    pub fn change_terms(&self, terms: Terms) {
        self.without_spare_channel().clear();
        self.terms.send_replace(Arc::new(terms));
    }

    fn without_spare_channel(&self) -> MutexGuard<'_, HashSet<Arc<str>>> {
        self.without_spare_channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn terms(&self) -> Arc<Terms> {
        Arc::clone(&self.terms.borrow())
    }
}

impl Terms {
    /// By a configuration, and the rules of its checkers.
    pub fn new(config: &Config, rules: Rules) -> Self {
        Self {
            connections_max: config.listen.max_connections as usize,
            handshakes: Capacity {
                all: config.listen.max_handshakes as usize,
                each: config.listen.max_handshakes.div_ceil(2) as usize,
            },
            handshake_timeout: config.listen.handshake_timeout,
            wait: config.upstream.wait,
            loopback_users: config.listen.loopback_users.clone(),
            transaction: config.transaction.clone(),
            lanes: config.relay.lanes,
            rules: Arc::new(rules),
            control_exchange: config.transaction.control_exchange.as_str().into(),
        }
    }

    fn settings(&self, from_loopback: bool) -> ConnectionSettings {
        let transaction = &self.transaction;
        ConnectionSettings {
            login: LoginRules { from_loopback, loopback_users: self.loopback_users.clone() },
            forward_wait: transaction.forward_wait,
            judgement: transaction.judgement,
            age_max: transaction.max_age,
            mandatory_wait: transaction.mandatory_wait,
            limits: transaction.limits(),
            rules: Arc::clone(&self.rules),
            control_exchange: Arc::clone(&self.control_exchange),
            new_id,
        }
    }
}

/// A new id. Its 74 random bits come from a generator in this process: ids have to differ, not to be secret, and asking
/// the system for each is a call per transaction.
fn new_id() -> TransactionId {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut random = [0; 10];
    random.fill_with(|| fastrand::u8(..));
    let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    TransactionId(Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
}
