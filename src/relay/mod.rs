//! Committed half messages to RabbitMQ: in order, with publisher confirms, until it has them.
//!
//! One connection a virtual host, one channel a lane. In health a transaction comes from memory and leaves at once; when
//! RabbitMQ is slower than the producers, or away, what is committed stays in the store and is read in pages later. So
//! memory is bounded whatever the backlog.
//!
//! What arrives twice carries the same `x-half-id`, and `x-half-possible-duplicate` on every copy that may be the second.

mod aside;
mod backoff;
mod channels;
mod connection;
mod forward;
mod inbox;
mod lane;
mod letters;
mod login;
mod message;
mod metrics;
mod outgoing;
mod queue;
mod rights;
mod status;
mod trial;
mod wire;

pub use backoff::Backoff;
pub use login::{Credentials, LoginError};
pub use metrics::RelayMetrics;
pub use rights::{Rights, RightsError, find_rights};
pub use status::{Link, RelayStatus, Stuck, VhostSnapshot};

use crate::store::{Commit, Committed, Committing, Outlet, Reply, Shortcut, Store, StoreError};
use crate::upstream::Upstream;
use connection::{Shared, Vhost};
use inbox::Inbox;
use lane::Lone;
use queue::Budget;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes of messages, over all lanes, that wait in memory for their turn; what comes on top is read from the store later.
const QUEUED_BYTES_MAX: usize = 16 << 20;

/// Bytes of a message that goes to RabbitMQ before the store has it, at most: a large one takes longer than a moment.
const LONE_BYTES_MAX: usize = 64 << 10;

/// See [`RelaySettings::nack_pauses`]: a queue that is full for a while is waited for, and a queue with `reject-publish-dlx`, or
/// one beside a full one, gets few copies.
pub const NACK_PAUSES: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(300),
];

/// See [`RelaySettings::idle_after`].
pub const IDLE_AFTER: Duration = Duration::from_secs(300);

/// How the relay works.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// Its account: needs write permission and, to keep `user-id`, the tag `impersonator`.
    pub credentials: Credentials,
    /// Messages published and not yet confirmed, per lane.
    pub window: usize,
    /// Pauses after a failure.
    pub retry: Backoff,
    /// Pauses before a message that RabbitMQ nacked is sent again; when none is left it becomes a dead letter.
    pub nack_pauses: &'static [Duration],
    /// How long the oldest message of a lane may wait for its confirm before the lane counts as stalled and starts anew.
    pub confirm_timeout: Duration,
    /// How long a connection stays when there is nothing to send.
    pub idle_after: Duration,
    /// Whether a message that is not mandatory and reaches no queue becomes a dead letter; otherwise it is dropped, as
    /// RabbitMQ does.
    pub keep_unroutable: bool,
}

/// The part that publishes committed messages to RabbitMQ. Made first, because the store needs it as its [`Outlet`];
/// works from [`Relay::start`] to [`Relay::drain`].
pub struct Relay {
    settings: watch::Sender<RelaySettings>,
    upstream: Arc<Upstream>,
    status: Arc<RelayStatus>,
    budget: Arc<Budget>,
    first_own: Arc<AtomicI64>,
    draining: watch::Sender<bool>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    inboxes: HashMap<Arc<str>, Arc<Inbox>>,
    /// From start to drain.
    running: Option<(Arc<Shared>, Handle)>,
    tasks: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Makes a relay that does nothing yet but hold on to what it is given.
    pub fn new(settings: RelaySettings, upstream: Arc<Upstream>) -> Self {
        Self {
            settings: watch::Sender::new(settings),
            upstream,
            status: Arc::default(),
            budget: Budget::new(QUEUED_BYTES_MAX),
            first_own: Arc::new(AtomicI64::new(i64::MAX)),
            draining: watch::Sender::new(false),
            state: Mutex::default(),
        }
    }

    /// What it does at the moment.
    pub fn status(&self) -> Arc<RelayStatus> {
        Arc::clone(&self.status)
    }

    /// Starts to forward: what the store holds from earlier, and everything that becomes committed. Call it on a tokio
    /// runtime, before the first commit.
    ///
    /// # Errors
    /// [`StoreError`] if the store can't tell which lanes it holds transactions of.
    pub async fn start(&self, store: Arc<dyn Store>) -> Result<(), StoreError> {
        let lanes = store.lanes().await?;
        let shared = Arc::new(Shared {
            settings: self.settings.subscribe(),
            upstream: Arc::clone(&self.upstream),
            store,
            first_own: Arc::clone(&self.first_own),
            draining: self.draining.subscribe(),
        });
        let mut state = self.state();
        state.running = Some((shared, Handle::current()));
        for (vhost, inbox) in state.inboxes.clone() {
            self.spawn(&mut state, vhost, inbox);
        }
        for lane in lanes {
            self.inbox(&mut state, &lane.vhost).add_lane(lane.number, lane.aside);
        }
        Ok(())
    }

    /// Works by these settings from now on; a new account counts from the next connection on.
    pub fn change_settings(&self, settings: RelaySettings) {
        self.settings.send_replace(settings);
    }

    /// Sends nothing more, waits at most `limit` for the answers to what is in flight, and ends. What was not sent stays
    /// in the store.
    pub async fn drain(&self, limit: Duration) {
        self.draining.send_replace(true);
        let tasks = {
            let mut state = self.state();
            // The store has an arc of this relay, and this one of the store: here the circle is opened.
            state.running = None;
            std::mem::take(&mut state.tasks)
        };
        let deadline = tokio::time::Instant::now() + limit;
        for mut task in tasks {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inbox(&self, state: &mut State, vhost: &Arc<str>) -> Arc<Inbox> {
        if let Some(inbox) = state.inboxes.get(vhost) {
            return Arc::clone(inbox);
        }
        let inbox = Arc::new(Inbox::new(Arc::clone(&self.budget)));
        state.inboxes.insert(Arc::clone(vhost), Arc::clone(&inbox));
        self.spawn(state, Arc::clone(vhost), Arc::clone(&inbox));
        inbox
    }

    fn spawn(&self, state: &mut State, name: Arc<str>, inbox: Arc<Inbox>) {
        if let Some((shared, handle)) = &state.running {
            let status = self.status.vhost(&name);
            let task = handle.spawn(Vhost::new(name, Arc::clone(shared), inbox, status).run());
            state.tasks.push(task);
        }
    }
}

impl Shortcut for Relay {
    fn take(&self, commit: Commit) -> Result<Reply<Committing>, Box<Commit>> {
        let inbox = self.state().inboxes.get(&commit.origin.lane.vhost).map(Arc::clone);
        let Some(inbox) = inbox.filter(|_| commit.batch.bytes() <= LONE_BYTES_MAX) else {
            return Err(Box::new(commit));
        };
        let (answer, reply) = Reply::pair();
        let lone = Lone { commit, answer, since: Instant::now() };
        inbox.push_lone(lone).map(|()| reply).map_err(|lone| Box::new(lone.commit))
    }
}

impl Outlet for Relay {
    fn committed(&self, transactions: Vec<Committed>) {
        if let Some(first) = transactions.first() {
            self.first_own.fetch_min(first.sequence.0, Ordering::Relaxed);
        }
        let mut transactions = transactions.into_iter().peekable();
        while let Some(first) = transactions.peek() {
            let vhost = Arc::clone(&first.lane.vhost);
            let inbox = self.inbox(&mut self.state(), &vhost);
            inbox.push(std::iter::from_fn(|| transactions.next_if(|next| next.lane.vhost == vhost)));
        }
    }
}
