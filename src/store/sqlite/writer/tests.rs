//! The writer without its thread: groups are made by hand, and the file is made to fail.

mod shares;

use super::*;
use crate::store::sqlite::{check, open};
use crate::store::{Committed, Committing, DeadLetter, Lane, LetterId, Messages, Named, Origin, Strand};
use crate::tx::batch::{Batch, HalfMessage};
use crate::tx::decision::{Decision, Target, Verdict};
use crate::tx::id::Timestamp;
use crate::tx::name::TransactionName;
use bytes::Bytes;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use std::sync::{Mutex, mpsc};
use tempfile::TempDir;
use tokio::sync::oneshot;

#[derive(Default)]
struct Relay {
    told: Mutex<Vec<TransactionId>>,
    /// Of those, the ones that need not be read.
    in_hand: Mutex<Vec<(TransactionId, Bytes)>>,
}

impl Outlet for Relay {
    fn committed(&self, transactions: Vec<Committed>) {
        self.told.lock().unwrap().extend(transactions.iter().map(|tx| tx.id));
        let in_hand = transactions.into_iter().filter_map(|tx| Some((tx.id, tx.messages?)));
        self.in_hand.lock().unwrap().extend(in_hand);
    }
}

struct Bench {
    writer: Writer,
    relay: Arc<Relay>,
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = SqliteSettings::new(folder.path().join("halfway.db"));
        let opened = open::open(&settings).unwrap();
        let relay = Arc::new(Relay::default());
        let (full, _) = watch::channel(Room::Free);
        let (_, queue) = mpsc::channel();
        let shares = Shares::new(None, watch::Sender::default(), Arc::default());
        let writer = Writer::new(opened.own, queue, &settings, Arc::default(), full, shares, relay.clone()).unwrap();
        Self { writer, relay, folder }
    }

    /// Writes these as one group.
    fn write(&mut self, group: impl IntoIterator<Item = Request>) {
        let mut group = group.into_iter().collect::<Vec<_>>();
        add(&self.writer.stats.queued, group.len() as u64);
        self.writer.write(&mut group);
        assert!(group.is_empty());
    }

    /// Lets the disk be full after so many pages more, as SQLite sees it.
    fn leave_pages(&self, pages: i64) {
        let sql = &self.writer.sql;
        let now: i64 = sql.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        sql.pragma_update_and_check(None, "max_page_count", now + pages, |_| Ok(())).unwrap();
    }

    /// Takes the file's write lock from under the writer, until it is dropped.
    fn lock_out(&self) -> Connection {
        let other = Connection::open(self.folder.path().join("halfway.db")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        self.writer.sql.busy_timeout(Duration::ZERO).unwrap();
        other
    }

    fn told(&self) -> Vec<TransactionId> {
        std::mem::take(&mut self.relay.told.lock().unwrap())
    }

    fn stat(&self, stat: fn(&Stats) -> &std::sync::atomic::AtomicU64) -> u64 {
        stat(&self.writer.stats).load(Ordering::Relaxed)
    }

    fn assert_sound(&self) {
        let report = check(&self.folder.path().join("halfway.db")).unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
    }
}

fn origin(lane: u16) -> Origin {
    let id = TransactionId(uuid::Uuid::now_v7());
    Origin {
        id,
        user: "guest".into(),
        lane: Lane::new("/".into(), lane),
        strand: Strand(0),
        created_at: Timestamp(0),
        named: None,
    }
}

fn named(name: &str, transactional: bool) -> Origin {
    let name = TransactionName::new(name.as_bytes()).unwrap();
    Origin { named: Some(Arc::new(Named { name, check: None, transactional })), ..origin(0) }
}

fn messages(body_bytes: usize) -> Messages {
    let mut batch = Batch::default();
    batch.push(HalfMessage { publish: b"", header: b"", body: &vec![7; body_bytes] });
    batch.into()
}

type Answered<T> = oneshot::Receiver<Result<T, StoreError>>;

fn commit(origin: &Origin, body_bytes: usize, parked: bool) -> (Request, Answered<Committing>) {
    let (answer, answered) = oneshot::channel();
    let (origin, messages) = (origin.clone(), messages(body_bytes));
    (Request::Commit { origin, messages, parked, forwarded: None, answer }, answered)
}

fn park(origin: &Origin, body_bytes: usize) -> (Request, Answered<()>) {
    let (answer, answered) = oneshot::channel();
    (Request::Park { origin: origin.clone(), messages: messages(body_bytes), answer }, answered)
}

fn rollback(origin: &Origin) -> (Request, Answered<()>) {
    let (answer, answered) = oneshot::channel();
    (Request::Rollback { id: origin.id, reason: None, answer }, answered)
}

fn abandon(origin: &Origin) -> (Request, Answered<()>) {
    let (answer, answered) = oneshot::channel();
    (Request::Abandon { id: origin.id, answer }, answered)
}

fn decide(origin: &Origin, decision: Decision) -> (Request, Answered<Verdict>) {
    let (answer, answered) = oneshot::channel();
    let (target, actor) = (Target::Id(origin.id), Actor::Control);
    (Request::Decide { target, decision, actor, reason: None, answer }, answered)
}

fn place(committing: Result<Committing, StoreError>) -> Sequence {
    match committing {
        Ok(Committing::Now(sequence)) => sequence,
        other => panic!("{other:?}"),
    }
}

fn answer<T>(mut answered: Answered<T>) -> Result<T, StoreError> {
    answered.try_recv().expect("answered")
}

#[test]
fn neighbours_make_a_run() {
    assert_eq!(runs(&[7, 3, 1, 2, 2, 9, 8]), [1..=3, 7..=9]);
    assert!(runs(&[]).is_empty());
}

#[test]
fn a_group_shares_one_sql_transaction() {
    let mut bench = Bench::new();
    let (requests, answers): (Vec<_>, Vec<_>) = (0..50).map(|lane| commit(&origin(lane % 4), 100, false)).unzip();
    bench.write(requests);
    let sequences: Vec<_> = answers.into_iter().map(|answered| place(answer(answered))).collect();
    assert!(sequences.is_sorted());
    assert_eq!(bench.writer.stats.groups.snapshot().count(), 1);
    assert_eq!(bench.stat(|stats| &stats.group_requests), 50);
    assert_eq!(bench.stat(|stats| &stats.commits), 50);
    assert_eq!(bench.stat(|stats| &stats.backlog), 50);
    assert_eq!(bench.stat(|stats| &stats.queued), 0);
    bench.assert_sound();
}

#[test]
fn what_is_too_large_for_the_disk_does_not_take_down_what_is_small() {
    let mut bench = Bench::new();
    bench.leave_pages(20);
    // The large one is the first on its lane: the lane must be written again with the second.
    let (large, before, after) = (origin(1), origin(0), origin(1));
    let (requests, answers): (Vec<_>, Vec<_>) =
        [commit(&before, 10, false), commit(&large, 1_000_000, false), commit(&after, 10, false)].into_iter().unzip();
    bench.write(requests);
    let answers: Vec<_> = answers.into_iter().map(answer).collect();
    assert!(matches!(answers[..], [Ok(_), Err(StoreError::Full(_)), Ok(_)]), "{answers:?}");
    assert_eq!(bench.told(), [before.id, after.id]);
    bench.assert_sound();

    bench.leave_pages(1000);
    let (request, answered) = commit(&large, 1_000_000, false);
    bench.write([request]);
    answer(answered).unwrap();
    bench.assert_sound();
}

#[test]
fn a_transaction_that_lost_a_part_can_only_be_rolled_back() {
    let mut bench = Bench::new();
    bench.leave_pages(20);
    let (first_lost, second_lost) = (origin(0), origin(0));
    let (small_park, small_parked) = park(&second_lost, 10);
    bench.write([small_park]);
    answer(small_parked).unwrap();

    for tx in [&first_lost, &second_lost] {
        // All in one group: the caller need not wait for the first answer to make the second call.
        let (lost, lost_answer) = park(tx, 1_000_000);
        let (more, more_answer) = park(tx, 10);
        let (decision, decision_answer) = commit(tx, 10, true);
        bench.write([lost, more, decision]);
        assert!(matches!(answer(lost_answer), Err(StoreError::Full(_))));
        assert!(matches!(answer(more_answer), Err(StoreError::Full(_))));
        assert!(matches!(answer(decision_answer), Err(StoreError::Full(_))));
        assert_eq!(bench.told(), []);

        let (end, end_answer) = rollback(tx);
        bench.write([end]);
        answer(end_answer).unwrap();
    }
    assert!(bench.writer.desk.broken.is_empty());
    bench.assert_sound();
}

#[test]
fn a_transaction_in_too_many_parts_is_refused_as_a_whole() {
    let mut bench = Bench::new();
    let tx = origin(0);
    let (first, first_answer) = park(&tx, 10);
    bench.write([first]);
    answer(first_answer).unwrap();
    bench.writer.sql.execute("UPDATE transactions SET packs = (1 << 20) - 1", []).unwrap();

    let (last, last_answer) = park(&tx, 10);
    let (decision, decision_answer) = commit(&tx, 10, true);
    bench.write([last, decision]);
    assert!(matches!(answer(last_answer), Err(StoreError::Full(_))));
    assert!(matches!(answer(decision_answer), Err(StoreError::Full(_))));
    assert_eq!(bench.told(), []);
}

#[test]
fn a_failed_group_is_answered_as_failed_and_the_next_one_is_written() {
    let mut bench = Bench::new();
    let other = bench.lock_out();
    let (first, second) = (origin(0), origin(1));
    let (requests, answers): (Vec<_>, Vec<_>) =
        [commit(&first, 10, false), commit(&second, 10, false)].into_iter().unzip();
    bench.write(requests);
    for answered in answers {
        assert!(matches!(answer(answered), Err(StoreError::Io(_))));
    }
    assert_eq!(bench.told(), []);
    assert_eq!(bench.stat(|stats| &stats.backlog), 0);
    assert_eq!(bench.stat(|stats| &stats.errors), 1);
    assert!(bench.writer.stats.failing.load(Ordering::Relaxed));

    drop(other);
    let (request, answered) = commit(&second, 10, false);
    bench.write([request]);
    answer(answered).unwrap();
    assert_eq!(bench.told(), [second.id]);
    bench.assert_sound();
}

#[test]
fn it_notices_unasked_when_it_can_write_again() {
    let mut bench = Bench::new();
    let failing = |bench: &Bench| bench.writer.stats.failing.load(Ordering::Relaxed);
    // Only what is really written fails: to begin and to end a SQL transaction proves nothing.
    let spoil = "CREATE TEMP TRIGGER bad_disk BEFORE UPDATE ON main.store BEGIN SELECT RAISE(ABORT, 'bad disk'); END";
    bench.writer.sql.execute_batch(spoil).unwrap();
    let (request, answered) = commit(&origin(0), 10, false);
    bench.write([request]);
    assert!(matches!(answer(answered), Err(StoreError::Io(_))));
    assert!(failing(&bench) && bench.writer.write_at.is_some());
    assert!(bench.writer.attempt(&[], true).is_err(), "an attempt to write writes");
    assert!(failing(&bench) && bench.writer.write_at.is_some());

    bench.writer.sql.execute_batch("DROP TRIGGER bad_disk").unwrap();
    bench.writer.attempt(&[], true).unwrap();
    assert!(!failing(&bench));
    assert_eq!(bench.writer.write_at, None);
}

#[test]
fn deletes_that_failed_are_kept_for_later() {
    let mut bench = Bench::new();
    let (request, answered) = commit(&origin(0), 10, false);
    bench.write([request]);
    bench.writer.gather(Call::Delivered(vec![place(answer(answered))]), &mut Vec::new());

    let other = bench.lock_out();
    assert!(bench.writer.attempt(&[], true).is_err());
    assert!(bench.writer.write_at.is_some_and(|at| at > Instant::now()));
    assert_eq!(bench.stat(|stats| &stats.backlog), 1);

    drop(other);
    bench.writer.attempt(&[], true).unwrap();
    assert_eq!(bench.stat(|stats| &stats.backlog), 0);
    assert_eq!(bench.writer.write_at, None);
}

/// A channel that ended while the disk was full left its transaction open until the next start.
#[test]
fn an_end_that_could_not_be_written_is_written_when_it_can_be() {
    let mut bench = Bench::new();
    let (left, dropped) = (named("left", true), origin(0));
    for tx in [&left, &dropped] {
        bench.write([park(tx, 10).0]);
    }
    let other = bench.lock_out();
    let (left_request, left_answer) = abandon(&left);
    let (dropped_request, dropped_answer) = rollback(&dropped);
    bench.write([left_request, dropped_request]);
    assert!(answer(left_answer).is_err() && answer(dropped_answer).is_err());
    bench.writer.write_unasked();
    assert!(bench.writer.write_at.is_some(), "it will be tried again");

    drop(other);
    bench.writer.write_unasked();
    assert_eq!(bench.writer.write_at, None);
    let states = |tx: &Origin| -> String {
        let query = "SELECT state FROM transactions WHERE id = ?1";
        bench.writer.sql.query_row(query, [tx.id.0.as_bytes()], |row| row.get(0)).unwrap()
    };
    assert_eq!((states(&left), states(&dropped)), ("in_doubt".into(), "rolled_back".into()));
    assert_eq!(bench.stat(|stats| &stats.queued), 0);
}

#[test]
fn what_is_left_without_a_part_is_in_doubt_to_nobody() {
    let mut bench = Bench::new();
    bench.leave_pages(20);
    for whole_start in [false, true] {
        let tx = named(&format!("broken-{whole_start}"), true);
        let (first, _) = park(&tx, if whole_start { 10 } else { 1_000_000 });
        let (second, second_answer) = park(&tx, if whole_start { 1_000_000 } else { 10 });
        bench.write([first, second]);
        assert!(matches!(answer(second_answer), Err(StoreError::Full(_))));
        let (decision, verdict) = decide(&tx, Decision::Commit);
        bench.write([decision]);
        match answer(verdict) {
            Ok(Verdict::Unknown) => assert!(!whole_start),
            Err(StoreError::Full(_)) => assert!(whole_start),
            other => panic!("{other:?}"),
        }
        let (end, ended) = abandon(&tx);
        bench.write([end]);
        answer(ended).unwrap();
    }
    assert!(bench.writer.desk.broken.is_empty());
    assert_eq!(bench.told(), []);
    assert_eq!((bench.stat(|stats| &stats.in_doubt), bench.stat(|stats| &stats.open_named)), (0, 0));
    let rolled_back = "SELECT count(*) FROM history WHERE event = 'rolled_back' AND reason LIKE 'a part of it %full%'";
    assert_eq!(bench.writer.sql.query_row(rolled_back, [], |row| row.get::<_, i64>(0)), Ok(1));
    bench.assert_sound();
}

#[test]
fn a_half_message_that_could_not_be_kept_breaks_no_other() {
    let mut bench = Bench::new();
    bench.leave_pages(20);
    let tx = named("halves", false);
    let (large, large_answer) = park(&tx, 1_000_000);
    let (small, small_answer) = park(&tx, 10);
    bench.write([large, small]);
    assert!(matches!(answer(large_answer), Err(StoreError::Full(_))), "whoever published it is told");
    answer(small_answer).unwrap();
    let (decision, verdict) = decide(&tx, Decision::Commit);
    bench.write([decision]);
    assert!(matches!(answer(verdict), Ok(Verdict::Decided(_))));
    assert_eq!(bench.told(), [tx.id]);
    bench.assert_sound();
}

#[test]
fn what_was_parked_in_one_pack_a_moment_ago_need_not_be_read() {
    let mut bench = Bench::new();
    let (one, two, doubtful, dropped) =
        (named("one", true), named("two", true), named("doubtful", false), named("dropped", true));
    let parks = [&one, &two, &two, &doubtful, &dropped].map(|tx| park(tx, 10).0);
    bench.write(parks);
    // Even within one group.
    let late = named("late", true);
    let ends = [
        bare_commit(&one),
        bare_commit(&two),
        decide(&doubtful, Decision::Commit).0,
        decide(&dropped, Decision::RollBack).0,
        park(&late, 20).0,
        bare_commit(&late),
    ];
    bench.write(ends);
    assert_eq!(bench.told(), [one.id, two.id, doubtful.id, late.id]);
    let in_hand = std::mem::take(&mut *bench.relay.in_hand.lock().unwrap());
    assert_eq!(
        in_hand,
        [(one.id, messages(10).bytes), (doubtful.id, messages(10).bytes), (late.id, messages(20).bytes)]
    );
    for tx in [one, two, doubtful, dropped, late] {
        assert_eq!(bench.writer.desk.recent.take(tx.id), None, "what is decided is not remembered");
    }
    bench.assert_sound();
}

fn bare_commit(origin: &Origin) -> Request {
    let (answer, _) = oneshot::channel();
    let messages = Messages::default();
    Request::Commit { origin: origin.clone(), messages, parked: true, forwarded: None, answer }
}

/// SQLite asks the authorizer as it parses; so it tells when a statement is parsed that was already.
#[test]
fn a_statement_is_parsed_once_in_a_connections_life() {
    let mut bench = Bench::new();
    let parsed = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = Arc::clone(&parsed);
    let allow = move |context: AuthContext<'_>| {
        // BEGIN and COMMIT are no statements that are kept, and the size of the file is asked for now and then.
        if !matches!(context.action, AuthAction::Transaction { .. } | AuthAction::Pragma { .. }) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Authorization::Allow
    };
    bench.writer.sql.authorizer(Some(allow)).unwrap();

    let mut round = |number: u32| {
        let [decided, left, dropped] =
            ["decided", "left", "dropped"].map(|name| named(&format!("{name}-{number}"), true));
        for tx in [&decided, &left, &dropped] {
            bench.write([park(tx, 10).0, park(tx, 10).0]);
        }
        let (plain, plain_place) = commit(&origin(0), 10, false);
        let (named, named_place) = commit(&decided, 10, true);
        bench.write([plain, named, abandon(&left).0, rollback(&dropped).0]);
        let (decision, _) = decide(&left, Decision::Commit);
        bench.write([decision]);
        let delivered = [plain_place, named_place].map(|answered| place(answer(answered)));
        bench.writer.gather(Call::Delivered(delivered.into()), &mut Vec::new());
        bench.writer.attempt(&[], true).unwrap();
        parsed.load(Ordering::Relaxed)
    };
    let first = round(0);
    assert!(first > 0);
    assert_eq!(round(1), first);
}

/// Named transactions are counted where their decisions are durable: whoever asked may be gone by then, and a rollback is a
/// decision like any other.
#[test]
fn decisions_are_counted_whoever_waits_for_their_answers() {
    let mut bench = Bench::new();
    let [first, second, third] = ["a", "b", "c"].map(|name| named(name, true));
    bench.write([park(&first, 10).0, park(&second, 10).0, park(&third, 10).0]);
    // Nobody waits for any of these.
    bench.write([commit(&first, 10, true).0, rollback(&second).0, abandon(&third).0]);
    let plain = origin(0);
    bench.write([decide(&third, Decision::Commit).0, decide(&third, Decision::Commit).0, commit(&plain, 10, false).0]);
    let counts = bench.writer.stats.decisions.each_ref().map(|count| count.load(Ordering::Relaxed));
    let expected = Actor::SOURCES.map(|source| match source {
        "channel" => 2,
        "control" => 1,
        _ => 0,
    });
    assert_eq!(counts, expected);
    assert_eq!(bench.writer.stats.doubts.snapshot().count(), 1, "the third alone was in doubt");
}

#[test]
fn a_decision_that_is_not_durable_is_not_counted() {
    let mut bench = Bench::new();
    let first = named("a", true);
    bench.write([park(&first, 10).0]);
    let lock = bench.lock_out();
    bench.write([commit(&first, 10, true).0]);
    assert_eq!(bench.stat(|stats| &stats.decisions[Actor::Channel.kind()]), 0);
    drop(lock);
    bench.write([commit(&first, 10, true).0]);
    assert_eq!(bench.stat(|stats| &stats.decisions[Actor::Channel.kind()]), 1);
}

/// Each channel that published and was refused left an entry for as long as the disk was full.
#[test]
fn nothing_is_remembered_of_what_never_was_in_the_file() {
    let mut bench = Bench::new();
    let kept = origin(0);
    bench.write([park(&kept, 10).0]);
    let other = bench.lock_out();
    for number in 0..50 {
        for tx in [origin(0), named(&format!("refused-{number}"), true)] {
            let (first, refused) = park(&tx, 10);
            let (end, ended) = if tx.named.is_some() { abandon(&tx) } else { rollback(&tx) };
            bench.write([first, end]);
            assert!(answer(refused).is_err());
            answer(ended).expect("there is nothing to end");
        }
    }
    let (end, ended) = rollback(&kept);
    bench.write([end]);
    assert!(answer(ended).is_err());
    let (unknown, never) = rollback(&origin(0));
    bench.write([unknown]);
    assert!(answer(never).is_err(), "nobody knows it");
    assert_eq!((bench.writer.unfinished.len(), bench.writer.desk.broken.len()), (1, 0));
    drop(other);
    bench.writer.write_unasked();
    assert_eq!(bench.writer.unfinished.len(), 0);
    bench.assert_sound();
}

/// What a commit wrote to the log that failed in its sync came back with a crash, if a backup was reading meanwhile.
#[test]
fn a_failed_commit_does_not_come_back_with_a_crash_though_somebody_reads() {
    let mut bench = Bench::new();
    let whole = origin(0);
    let (request, answered) = commit(&whole, 10, false);
    bench.write([request]);
    answer(answered).unwrap();
    let path = bench.folder.path().join("halfway.db");
    let log = bench.folder.path().join("halfway.db-wal");
    let reader = Connection::open(&path).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM transactions").unwrap();

    // What a commit appends, made in a copy, because syncs don't fail on demand.
    let copied = tempfile::tempdir().unwrap();
    let copy = |to: &std::path::Path| {
        std::fs::copy(&path, to.join("halfway.db")).unwrap();
        std::fs::copy(&log, to.join("halfway.db-wal")).unwrap();
    };
    copy(copied.path());
    let elsewhere = Connection::open(copied.path().join("halfway.db")).unwrap();
    elsewhere.execute("UPDATE transactions SET user = 'failed'", []).unwrap();
    let appended = std::fs::read(copied.path().join("halfway.db-wal")).unwrap();
    let valid = std::fs::metadata(&log).unwrap().len();
    assert!(appended.len() as u64 > valid);
    std::fs::write(&log, &appended).unwrap();
    let after_crash = || {
        let folder = tempfile::tempdir().unwrap();
        copy(folder.path());
        let sql = Connection::open(folder.path().join("halfway.db")).unwrap();
        sql.query_row("SELECT user FROM transactions", [], |row| row.get::<_, String>(0)).unwrap()
    };
    assert_eq!(after_crash(), "failed", "it would come back");

    let error = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC), None);
    bench.writer.failed(&error, 1);
    assert_eq!(after_crash(), "guest");
    assert_eq!(std::fs::metadata(&log).unwrap().len(), valid, "what is valid stays, for somebody reads it");
    drop(reader);
    let (request, answered) = commit(&origin(0), 10, false);
    bench.write([request]);
    answer(answered).unwrap();
    bench.assert_sound();
}
