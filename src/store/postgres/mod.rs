//! The store in a PostgreSQL database, for one proxy at a time.
//!
//! As with SQLite, one thread writes: it takes everything that waits in its queue, puts it into one SQL transaction and answers
//! everybody when that is durable. A group of plain commits is one statement. Two more threads read, one clears away, and one
//! shows that the process lives; each has a connection of its own, dialed again when it is lost.
//!
//! ```text
//! what writes (park, commit, decide, ...) ──► queue ──► writer ──► PostgreSQL ──► Outlet, then the replies
//! what is delivered ─────────────────────────► queue ──► writer ──► janitor
//! what the relay reads (lanes, page) ────────► queue ──► reader ──► the replies
//! what else reads (due, transactions, ...) ──► queue ──► reader ──► the replies
//! ```
//!
//! Every write holds a lock on this process's row in `instances`, and who takes over deletes that row: so nothing of an earlier
//! process comes after. A SQL transaction whose answer was lost is sent again until it is known what became of it, in a form
//! that takes effect once (`plain.rs`, `once.rs`).

mod accounts;
mod book;
mod history;
mod janitor;
mod letters;
mod life;
mod listing;
mod named;
mod once;
mod open;
mod packs;
mod plain;
mod reader;
mod row;
mod rows;
mod sql;
mod tools;
mod turns;
mod writer;

pub use open::OpenError;
pub use tools::{check, stats, weaknesses};

use self::accounts::Accounts;
use self::janitor::{Chore, Janitor};
use self::open::{Dial, Opened};
use self::reader::{Question, Reader};
use self::sql::{Failed, Sql, words};
use self::writer::{Call, Writer};
use super::request::{Answer, Desk, Request};
use super::shares::{ROW_BYTES, Shares};
use super::stats::set;
use super::{
    Backend, Bookmark, Bounded, Check, Clock, Commit, Committing, Cursor, DeadLetter, DueNow, Event, Filter, ForAdmin,
    ForApp, ForCheckBack, ForRelay, ForSessions, Heavy, Lane, Letter, LetterFilter, LetterId, LetterMessage, Limits,
    Listing, Origin, Outlet, Outside, Pack, Reply, Room, Sequence, Stats, Summary,
};
use crate::config::PostgresUrl;
use crate::tx::batch::Batch;
use crate::tx::decision::{Actor, Decision, Target, Verdict};
use crate::tx::id::TransactionId;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;

/// What a store on PostgreSQL is made of.
#[derive(Debug, Clone)]
pub struct PostgresSettings {
    /// The database, and the account there. It has to take writes, whatever `target_session_attrs` says.
    pub url: PostgresUrl,
    /// Bytes of transactions that are undecided, or committed and not delivered, before there is no [`Room`], or `None`.
    pub max_size: Option<u64>,
    /// The same for one user's, or `None`.
    pub max_size_per_user: Option<u64>,
    /// How long a finished transaction that was parked is kept, from its end.
    pub retention: Duration,
    /// What time it is.
    pub clock: Clock,
}

impl PostgresSettings {
    /// The defaults for a database.
    pub fn new(url: PostgresUrl) -> Self {
        let retention = Duration::from_secs(24 * 60 * 60);
        Self { url, max_size: None, max_size_per_user: None, retention, clock: Clock::default() }
    }
}

/// The store in a PostgreSQL database: see the module.
pub struct PostgresStore {
    writer: mpsc::Sender<Call>,
    /// For the relay.
    pager: mpsc::Sender<Question>,
    /// For everybody else.
    lister: mpsc::Sender<Question>,
    threads: Mutex<Option<Threads>>,
    closing: Arc<AtomicBool>,
    stats: Arc<Stats>,
    room: watch::Receiver<Room>,
    heavy: watch::Receiver<Heavy>,
    taken: watch::Receiver<bool>,
}

/// In the order in which they end.
struct Threads {
    writer: JoinHandle<()>,
    readers: [JoinHandle<()>; 2],
    janitor: (mpsc::Sender<Chore>, JoinHandle<()>),
    beat: (mpsc::Sender<()>, JoinHandle<()>),
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects, makes the schema or brings it to this version, ends what an earlier process left open (unnamed: rolled back,
    /// named: in doubt), and starts the threads. Blocks until done: up to some seconds if an earlier process did not end
    /// cleanly, for it may live. The backlog is counted, about a second for a few million rows.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(settings: PostgresSettings, outlet: Arc<dyn Outlet>) -> Result<Arc<dyn Backend>, OpenError> {
        alone(|| Self::open_here(&settings, outlet))
    }

    fn open_here(settings: &PostgresSettings, outlet: Arc<dyn Outlet>) -> Result<Arc<dyn Backend>, OpenError> {
        let Opened { me, time, writer: sql, janitor, beat, readers } = open::open(settings)?;
        let (me, stats) = (Arc::new(me), Arc::new(Stats::default()));
        let closing = Arc::new(AtomicBool::new(false));
        let (room_sender, room) = watch::channel(Room::Free);
        let (heavy_sender, heavy) = watch::channel(Heavy::default());
        let shares = Shares::new(settings.max_size_per_user, heavy_sender, Arc::clone(&stats));
        let accounts = Arc::new(Accounts::new(Arc::clone(&stats), shares, settings.max_size, room_sender));
        let (writer, calls) = mpsc::channel();
        let (chores_sender, chores) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let (taken_sender, taken) = watch::channel(false);
        let [(pager, pager_thread), (lister, lister_thread)] = readers.map(|sql| {
            let (sender, questions) = mpsc::channel();
            (sender, Reader::new(sql, time.clone(), questions, Arc::clone(&closing)))
        });
        let dial = Dial::new(&settings.url)?;
        let explain = |error| dial.explain(error);
        let desk = Desk::new(outlet, Arc::clone(&stats));
        let writer_thread = Writer::new(
            sql,
            calls,
            chores_sender.clone(),
            desk,
            time.clone(),
            Arc::clone(&accounts),
            Arc::clone(&me),
            Arc::clone(&closing),
        )
        .map_err(explain)?;
        count(writer_thread.sql(), &accounts).map_err(explain)?;
        let retention = settings.retention;
        let janitor_thread = Janitor::new(
            janitor,
            chores,
            time,
            Arc::clone(&accounts),
            Arc::clone(&me),
            retention,
            Arc::clone(&closing),
        );
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.into()).spawn(run);
            thread.map_err(|error| dial.failed(error.to_string()))
        };
        let beat = spawn("store-beat", Box::new(move || life::beat(&beat, &me, &accounts, &ended, &taken_sender)))?;
        let threads = Threads {
            writer: spawn("store-writer", Box::new(move || writer_thread.run()))?,
            readers: [
                spawn("store-pager", Box::new(move || pager_thread.run()))?,
                spawn("store-lister", Box::new(move || lister_thread.run()))?,
            ],
            janitor: (chores_sender, spawn("store-janitor", Box::new(move || janitor_thread.run()))?),
            beat: (end, beat),
        };
        let threads = Mutex::new(Some(threads));
        Ok(Arc::new(Self { writer, pager, lister, threads, closing, stats, room, heavy, taken }))
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

/// Works on a thread of its own, which may wait for answers wherever this is called.
fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join()).expect("a panic in there is a panic here")
}

/// Counts what the gauges start with, and what users have.
fn count(sql: &Sql, accounts: &Accounts) -> Result<(), Failed> {
    let stats = &accounts.stats;
    let rows = sql.query(
        "SELECT \"user\", sum(bytes)::bigint, count(*) FROM transactions
         WHERE state IN ('open', 'in_doubt', 'committed') AND NOT (packs > 0 AND parked_at IS NULL) GROUP BY \"user\"",
        &[],
    )?;
    let shares = rows.iter().map(|row| {
        let (bytes, transactions): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
        Ok((Arc::from(words(row, 0)?), bytes + transactions * ROW_BYTES))
    });
    accounts.begin(&shares.collect::<Result<Vec<_>, Failed>>()?);
    let count = |statement| Ok::<_, Failed>(sql.number(statement, &[])?.unsigned_abs());
    set(&stats.backlog, count("SELECT count(*) FROM transactions WHERE state = 'committed'")?);
    set(&stats.in_doubt, count("SELECT count(*) FROM transactions WHERE state <> 'committed' AND state = 'in_doubt'")?);
    set(&stats.dead_letters, letters::count_waiting(sql)?);
    Ok(())
}

fn ask<T>(reader: &mpsc::Sender<Question>, question: impl FnOnce(Answer<T>) -> Question) -> Reply<T> {
    let (answer, reply) = Reply::pair();
    // As with the writer, a question to nobody is dropped with its answer.
    let _ = reader.send(question(answer));
    reply
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl Bounded for PostgresStore {
    fn room(&self) -> watch::Receiver<Room> {
        self.room.clone()
    }
}

impl Outside for PostgresStore {
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

impl ForSessions for PostgresStore {
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

impl ForRelay for PostgresStore {
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

impl ForCheckBack for PostgresStore {
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

impl ForAdmin for PostgresStore {
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

impl ForApp for PostgresStore {
    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    fn change_limits(&self, limits: Limits) {
        // A writer that is gone has no use for the word.
        let _ = self.writer.send(Call::ChangeLimits(limits));
    }

    fn taken(&self) -> watch::Receiver<bool> {
        self.taken.clone()
    }

    fn close(&self) {
        let Some(threads) = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        self.closing.store(true, Ordering::Relaxed);
        // A thread that is gone already has no use for the word.
        let _ = self.writer.send(Call::Close);
        for reader in [&self.pager, &self.lister] {
            let _ = reader.send(Question::Close);
        }
        let me = std::thread::current().id();
        // The outlet may own this store, and then it is dropped on the writer's thread, which can't wait for itself.
        let join = |thread: JoinHandle<()>| {
            if thread.thread().id() != me && thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        };
        let Threads { writer, readers, janitor: (chores, janitor), beat: (end, beat) } = threads;
        join(writer);
        readers.into_iter().for_each(join);
        // What the writer left to it comes before.
        let _ = chores.send(Chore::Close);
        join(janitor);
        drop(end);
        join(beat);
    }
}
