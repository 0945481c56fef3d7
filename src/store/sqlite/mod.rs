//! The store in a SQLite file.
//!
//! One thread writes. It takes everything that waits in its queue, puts it into one SQL transaction and answers
//! everybody when that is synced, so one sync serves many commits and nobody waits for a timer. Two more threads read, each
//! over a connection of its own: one pages for the relay, one for everybody else. Write-ahead logging keeps the three out of
//! each other's way.
//!
//! ```text
//! what writes (park, commit, decide, ...) ──► queue ──► writer ──► file ──► Outlet, then the replies
//! what the relay reads (lanes, page) ────────► queue ──► reader ──► the replies
//! what else reads (due, transactions, ...) ──► queue ──► reader ──► the replies
//! ```
//!
//! The queues have no bound of their own. A session has at most one unanswered call for a channel, and the messages in
//! it were in the session's memory before: what bounds a session's memory bounds its share of the queue.

mod book;
mod file;
mod history;
mod letters;
mod listing;
mod named;
mod open;
mod packs;
mod reader;
mod row;
mod rows;
mod shares;
mod tools;
mod turns;
mod upkeep;
mod writer;

pub use open::OpenError;
pub use tools::{ToolError, backup, check, check_telling, stats, written};

use self::open::Opened;
use self::reader::{Question, Reader};
use self::writer::{Call, Writer};
use super::request::{Answer, Request};
use super::shares::Shares;
use super::{
    Backend, Bookmark, Bounded, Check, Clock, Commit, Committing, Cursor, DeadLetter, DueNow, Event, Filter, ForAdmin,
    ForApp, ForCheckBack, ForRelay, ForSessions, Heavy, Lane, Letter, LetterFilter, LetterId, LetterMessage, Limits,
    Listing, Origin, Outlet, Outside, Pack, Reply, Room, Sequence, Stats, Summary,
};
use crate::tx::batch::Batch;
use crate::tx::decision::{Actor, Decision, Target, Verdict};
use crate::tx::id::TransactionId;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;

/// What a store on SQLite is made of.
#[derive(Debug, Clone)]
pub struct SqliteSettings {
    /// The file. Made if it is not there; its folder is not.
    pub path: PathBuf,
    /// Bytes that may be in use in the file before there is no [`Room`], or `None`.
    pub max_size: Option<u64>,
    /// The same for one user's, or `None`.
    pub max_size_per_user: Option<u64>,
    /// How long a finished transaction that was parked is kept, from its end.
    pub retention: Duration,
    /// What time it is.
    pub clock: Clock,
}

impl SqliteSettings {
    /// The defaults for a file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            max_size: None,
            max_size_per_user: None,
            retention: Duration::from_secs(24 * 60 * 60),
            clock: Clock::default(),
        }
    }
}

/// The store in a SQLite file: see the module.
#[derive(Debug)]
pub struct SqliteStore {
    writer: mpsc::Sender<Call>,
    /// For the relay.
    pager: mpsc::Sender<Question>,
    /// For everybody else.
    lister: mpsc::Sender<Question>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stats: Arc<Stats>,
    room: watch::Receiver<Room>,
    heavy: watch::Receiver<Heavy>,
}

impl SqliteStore {
    /// Opens the file, makes it if there is none, brings it to this version's schema, ends what an earlier
    /// process left open (unnamed: rolled back, named: in doubt), and starts the threads.
    ///
    /// How long it takes does not depend on the backlog, but for counts over small indexes (about 30 ms a million).
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing has been changed then, unless a migration failed half-way through several versions.
    pub fn open(settings: SqliteSettings, outlet: Arc<dyn Outlet>) -> Result<Arc<dyn Backend>, OpenError> {
        let Opened { own, readers } = open::open(&settings)?;
        let time = own.time.clone();
        let (room_sender, room) = watch::channel(Room::Free);
        let stats = Arc::new(Stats::default());
        let (heavy_sender, heavy) = watch::channel(Heavy::default());
        let shares = Shares::new(settings.max_size_per_user, heavy_sender, Arc::clone(&stats));
        let (writer, calls) = mpsc::channel();
        let [(pager, pager_thread), (lister, lister_thread)] = readers.map(|sql| {
            let (sender, questions) = mpsc::channel();
            (sender, Reader::new(sql, time.clone(), questions))
        });
        let writer_thread = Writer::new(own, calls, &settings, Arc::clone(&stats), room_sender, shares, outlet)
            .map_err(|error| OpenError::from_sqlite(&settings.path, &error))?;
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.into())
                .spawn(run)
                .map_err(|error| OpenError::Failed { path: settings.path.clone(), reason: error.to_string() })
        };
        let threads = vec![
            spawn("store-writer", Box::new(move || writer_thread.run()))?,
            spawn("store-pager", Box::new(move || pager_thread.run()))?,
            spawn("store-lister", Box::new(move || lister_thread.run()))?,
        ];
        Ok(Arc::new(Self { writer, pager, lister, threads: Mutex::new(threads), stats, room, heavy }))
    }

    fn write<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Reply<T> {
        let (answer, reply) = Reply::pair();
        self.stats.queued.fetch_add(1, Ordering::Relaxed);
        // If the writer is gone, the request is dropped with its answer, and the reply says that the store is closed.
        if self.writer.send(Call::Request(request(answer))).is_err() {
            self.stats.queued.fetch_sub(1, Ordering::Relaxed);
        }
        reply
    }
}

fn ask<T>(reader: &mpsc::Sender<Question>, question: impl FnOnce(Answer<T>) -> Question) -> Reply<T> {
    let (answer, reply) = Reply::pair();
    // As with the writer, a question to nobody is dropped with its answer.
    let _ = reader.send(question(answer));
    reply
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl Bounded for SqliteStore {
    fn room(&self) -> watch::Receiver<Room> {
        self.room.clone()
    }
}

impl Outside for SqliteStore {
    fn decide(&self, target: Target, decision: Decision, actor: Actor, reason: Option<String>) -> Reply<Verdict> {
        self.write(|answer| Request::Decide { target, decision, actor, reason, answer })
    }

    fn check_now(&self, id: TransactionId, checker: Option<Arc<str>>) -> Reply<bool> {
        self.write(|answer| Request::CheckNow { id, checker, answer })
    }

    fn transaction(&self, id: TransactionId) -> Reply<Option<(Summary, Vec<Event>)>> {
        ask(&self.lister, |answer| Question::Transaction { id, answer })
    }

    fn messages(&self, id: TransactionId, from: u32, bytes_max: usize) -> Reply<Vec<Pack>> {
        ask(&self.lister, |answer| Question::Messages { id, from, bytes_max, answer })
    }
}

impl ForSessions for SqliteStore {
    fn heavy_users(&self) -> watch::Receiver<Heavy> {
        self.heavy.clone()
    }

    fn park(&self, origin: Origin, batch: Batch) -> Reply<()> {
        self.write(|answer| Request::Park { origin, messages: batch.into(), answer })
    }

    fn commit(&self, commit: Commit) -> Reply<Committing> {
        let Commit { origin, batch, parked, forwarded } = commit;
        self.write(|answer| Request::Commit { origin, messages: batch.into(), parked, forwarded, answer })
    }

    fn rollback(&self, id: TransactionId, reason: Option<String>) -> Reply<()> {
        self.write(|answer| Request::Rollback { id, reason, answer })
    }

    fn abandon(&self, id: TransactionId) -> Reply<()> {
        self.write(|answer| Request::Abandon { id, answer })
    }
}

impl ForRelay for SqliteStore {
    fn lanes(&self) -> Reply<Vec<Lane>> {
        ask(&self.pager, |answer| Question::Lanes { answer })
    }

    fn page(&self, lane: &Lane, after: Option<Cursor>, bytes_max: usize) -> Reply<Vec<Pack>> {
        ask(&self.pager, |answer| Question::Page { lane: lane.clone(), after, bytes_max, answer })
    }

    fn delivered(&self, transactions: Vec<Sequence>) {
        // After the end there is nobody to remember it: what is forgotten is sent again.
        let _ = self.writer.send(Call::Delivered(transactions));
    }

    fn dead_letter(&self, letter: DeadLetter) -> Reply<()> {
        self.write(|answer| Request::DeadLetter { letter, answer })
    }

    fn step_aside(&self, aside: &Lane, transactions: Vec<Sequence>) -> Reply<()> {
        self.write(|answer| Request::StepAside { aside: aside.clone(), transactions, answer })
    }
}

impl ForCheckBack for SqliteStore {
    fn due(&self, checker: &str, after: &str, limit: usize) -> Reply<DueNow> {
        ask(&self.lister, |answer| Question::Due { checker: checker.into(), after: after.into(), limit, answer })
    }

    fn checked(&self, id: TransactionId, check: Check) -> Reply<bool> {
        self.write(|answer| Request::Checked { id, check, answer })
    }

    fn unasked(&self, known: Vec<Arc<str>>, after: Bookmark, limit: usize) -> Reply<Listing<Summary>> {
        ask(&self.lister, |answer| Question::Unasked { known, after, limit, answer })
    }
}

impl ForAdmin for SqliteStore {
    fn transactions(&self, filter: Filter, after: Bookmark, limit: usize) -> Reply<Listing<Summary>> {
        ask(&self.lister, |answer| Question::Transactions { filter, after, limit, answer })
    }

    fn dead_letters(&self, filter: LetterFilter, after: Bookmark, limit: usize) -> Reply<Listing<Letter>> {
        ask(&self.lister, |answer| Question::Letters { filter, after, limit, answer })
    }

    fn dead_letter_by_id(&self, letter: LetterId) -> Reply<Option<Letter>> {
        ask(&self.lister, |answer| Question::Letter { letter, answer })
    }

    fn dead_letter_message(&self, letter: LetterId) -> Reply<Option<LetterMessage>> {
        ask(&self.lister, |answer| Question::LetterMessage { letter, answer })
    }

    fn retry(&self, letter: LetterId, actor: Actor, reason: String) -> Reply<Option<TransactionId>> {
        self.write(|answer| Request::Retry { letter, actor, reason, answer })
    }

    fn discard(&self, letter: LetterId, actor: Actor, reason: String) -> Reply<Option<TransactionId>> {
        self.write(|answer| Request::Discard { letter, actor, reason, answer })
    }
}

impl ForApp for SqliteStore {
    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    fn change_limits(&self, limits: Limits) {
        // A writer that is gone has no use for the word.
        let _ = self.writer.send(Call::ChangeLimits(limits));
    }

    fn taken(&self) -> watch::Receiver<bool> {
        // A file is locked as long as its process lives.
        watch::Sender::new(false).subscribe()
    }

    fn close(&self) {
        // A thread that is gone already has no use for the word.
        let _ = self.writer.send(Call::Close);
        for reader in [&self.pager, &self.lister] {
            let _ = reader.send(Question::Close);
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let me = std::thread::current().id();
        // The outlet may own this store, and then it is dropped on the writer's thread, which can't wait for itself.
        for thread in threads.into_iter().filter(|thread| thread.thread().id() != me) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}
