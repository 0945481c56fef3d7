//! The SQLite store over restarts, on files that are not its own, and on disks that fail.

/// A clock that stands still until it is set on, and then as much has passed.
macro_rules! clock {
    ($now:ident) => {
        Clock { wall: || Timestamp($now.load(Ordering::Relaxed)), passed: || $now.load(Ordering::Relaxed) }
    };
}

#[path = "store_sqlite/aside.rs"]
mod aside;
#[path = "store_sqlite/clock.rs"]
mod clock;
#[path = "store_sqlite/damage.rs"]
mod damage;
#[path = "store_sqlite/file.rs"]
mod file;
#[path = "store_sqlite/history.rs"]
mod history;
#[path = "store_sqlite/shares.rs"]
mod shares;

use halfway::store::sqlite::{OpenError, SqliteSettings, SqliteStore, ToolError, backup, check, stats};
use halfway::store::{
    Backend, Bookmark, Check, Clock, Commit, Committed, Committing, DeadLetter, Filter, Lane, Limits, Named, Origin,
    Outlet, Room, Sequence, StoreError, Stored, Strand, Summary,
};
use halfway::tx::batch::{Batch, HalfMessage};
use halfway::tx::checker::CheckPlan;
use halfway::tx::decision::{Actor, Decision, Target, Verdict};
use halfway::tx::id::{Timestamp, TransactionId};
use halfway::tx::name::TransactionName;
use halfway::tx::state::State;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);

/// A relay that RabbitMQ never answers.
struct Silent;

impl Outlet for Silent {
    fn committed(&self, _: Vec<Committed>) {}
}

fn open(path: &Path) -> Arc<dyn Backend> {
    try_open(path).unwrap()
}

/// Opens it to remember for a minute what is finished.
fn open_for_a_minute(path: &Path, clock: Clock) -> Arc<dyn Backend> {
    let settings = SqliteSettings { retention: Duration::from_secs(60), clock, ..SqliteSettings::new(path) };
    SqliteStore::open(settings, Arc::new(Silent)).unwrap()
}

fn try_open(path: &Path) -> Result<Arc<dyn Backend>, OpenError> {
    SqliteStore::open(SqliteSettings::new(path), Arc::new(Silent))
}

fn lane() -> Lane {
    Lane::new("/".into(), 0)
}

fn origin() -> Origin {
    let id = TransactionId(uuid::Uuid::now_v7());
    Origin { id, user: "guest".into(), lane: lane(), strand: Strand(0), created_at: Timestamp(0), named: None }
}

fn batch(body_bytes: usize) -> Batch {
    let mut batch = Batch::default();
    batch.push(HalfMessage { publish: b"publish", header: b"header", body: &vec![7; body_bytes] });
    batch
}

fn commit(origin: &Origin, body_bytes: usize) -> Commit {
    Commit { origin: origin.clone(), batch: batch(body_bytes), parked: false, forwarded: None }
}

fn now(committing: Result<Committing, StoreError>) -> Sequence {
    match committing {
        Ok(Committing::Now(sequence)) => sequence,
        other => panic!("{other:?}"),
    }
}

async fn committed(store: &Arc<dyn Backend>) -> BTreeSet<TransactionId> {
    store.page(&lane(), None, usize::MAX).await.unwrap().into_iter().map(|pack| pack.id).collect()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn assert_sound(path: &Path) {
    assert_eq!(check(path).unwrap().problems, Vec::<String>::new());
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn db(&self) -> PathBuf {
        self.0.path().join("halfway.db")
    }
}

#[tokio::test]
async fn a_restart_keeps_what_is_committed_and_rolls_back_what_is_open() {
    let folder = Folder::new();
    let (plain, large, undecided) = (origin(), origin(), origin());
    let store = open(&folder.db());
    store.park(large.clone(), batch(10)).await.unwrap();
    store.park(undecided.clone(), batch(10)).await.unwrap();
    store.commit(commit(&plain, 10)).await.unwrap();
    let last = now(store.commit(Commit { parked: true, ..commit(&large, 10) }).await);
    store.close();
    drop(store);

    let store = open(&folder.db());
    assert_eq!(committed(&store).await, BTreeSet::from([plain.id, large.id]));
    assert_eq!(store.lanes().await.unwrap(), [lane()]);
    assert_eq!(store.stats().backlog.load(Ordering::Relaxed), 2);
    let late = store.commit(Commit { parked: true, ..commit(&undecided, 10) }).await;
    assert!(matches!(late, Err(StoreError::Conflict(state)) if state == "rolled_back"));
    let next = now(store.commit(commit(&origin(), 10)).await);
    assert!(next > last, "a place is never used twice");
    assert_sound(&folder.db());
}

#[tokio::test]
async fn a_place_is_not_used_again_when_everything_is_gone() {
    let folder = Folder::new();
    let store = open(&folder.db());
    let first = now(store.commit(commit(&origin(), 10)).await);
    store.delivered(vec![first]);
    store.close();
    let store = open(&folder.db());
    assert_eq!(store.stats().backlog.load(Ordering::Relaxed), 0);
    assert!(now(store.commit(commit(&origin(), 10)).await) > first);
}

/// What is in the files at the moment of the answer is what a crash leaves.
#[tokio::test]
async fn an_answered_commit_is_in_the_files() {
    let folder = Folder::new();
    let store = open(&folder.db());
    for round in 0..20 {
        let tx = origin();
        store.commit(commit(&tx, 1000)).await.unwrap();
        let copy = Folder::new();
        for suffix in ["", "-wal"] {
            let name = format!("halfway.db{suffix}");
            std::fs::copy(folder.0.path().join(&name), copy.0.path().join(&name)).unwrap();
        }
        let after_crash = open(&copy.db());
        let found = committed(&after_crash).await;
        assert_eq!(found.len(), round + 1);
        assert!(found.contains(&tx.id));
    }
}

#[tokio::test]
async fn closing_finishes_what_was_asked_and_refuses_what_comes() {
    let folder = Folder::new();
    let store = open(&folder.db());
    let replies: Vec<_> = (0..500).map(|_| store.commit(commit(&origin(), 100))).collect();
    store.close();
    for reply in replies {
        reply.await.unwrap();
    }
    assert!(matches!(store.commit(commit(&origin(), 100)).await, Err(StoreError::Closed)));
    assert!(matches!(store.lanes().await, Err(StoreError::Closed)));
    store.delivered(vec![Sequence(1)]);
    store.close();
    assert!(!folder.0.path().join("halfway.db-wal").exists(), "the log is in the file");
    assert_eq!(committed(&open(&folder.db())).await.len(), 500);
}

#[tokio::test]
async fn one_process_at_a_time() {
    let folder = Folder::new();
    let store = open(&folder.db());
    let error = try_open(&folder.db()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }));
    let words = error.to_string();
    for part in ["halfway.db is in use", "halfway.db.lock", &format!("process {}", std::process::id())] {
        assert!(words.contains(part), "{words}");
    }
    store.commit(commit(&origin(), 10)).await.unwrap();
    drop(store);
    open(&folder.db());
}

#[test]
fn a_file_that_is_not_a_store_is_refused_and_left_alone() {
    let folder = Folder::new();
    for content in [b"dear diary".to_vec(), b"dear diary, ".repeat(1000)] {
        std::fs::write(folder.db(), &content).unwrap();
        let error = try_open(&folder.db()).unwrap_err();
        assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
        assert_eq!(std::fs::read(folder.db()).unwrap(), content);
        assert!(matches!(check(&folder.db()), Err(ToolError::Open(OpenError::NotAStore { .. }))));
    }

    std::fs::remove_file(folder.db()).unwrap();
    rusqlite::Connection::open(folder.db()).unwrap().execute_batch("CREATE TABLE recipes (name)").unwrap();
    let content = std::fs::read(folder.db()).unwrap();
    let error = try_open(&folder.db()).unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
    assert_eq!(std::fs::read(folder.db()).unwrap(), content);
}

#[test]
fn an_empty_file_becomes_a_store() {
    let folder = Folder::new();
    std::fs::write(folder.db(), b"").unwrap();
    drop(open(&folder.db()));
    assert_sound(&folder.db());

    // What a first start leaves that was cut off before it made the tables.
    std::fs::remove_file(folder.db()).unwrap();
    let sql = rusqlite::Connection::open(folder.db()).unwrap();
    sql.pragma_update(None, "journal_mode", "wal").unwrap();
    drop(sql);
    assert_ne!(std::fs::metadata(folder.db()).unwrap().len(), 0);
    drop(open(&folder.db()));
    assert_sound(&folder.db());
}

#[test]
fn a_store_of_a_later_version_is_refused_and_left_alone() {
    let folder = Folder::new();
    drop(open(&folder.db()));
    rusqlite::Connection::open(folder.db()).unwrap().pragma_update(None, "user_version", 1000).unwrap();
    let error = try_open(&folder.db()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 1000, .. }), "{error}");
    let sql = rusqlite::Connection::open(folder.db()).unwrap();
    assert_eq!(sql.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).unwrap(), 1000);
}

#[test]
fn a_path_that_can_hold_no_store_is_told_as_such() {
    let folder = Folder::new();
    assert!(matches!(try_open(folder.0.path()), Err(OpenError::Folder { .. })));
    let error = try_open(&folder.0.path().join("none/halfway.db")).unwrap_err();
    assert!(matches!(&error, OpenError::Missing { path } if path.ends_with("none")), "{error}");
    for tool in [|path: &Path| stats(path).map(drop), |path: &Path| check(path).map(drop)] {
        assert!(matches!(tool(&folder.db()), Err(ToolError::Open(OpenError::Missing { .. }))));
    }
    assert!(!folder.db().exists(), "a command that reads makes no file");
}

/// Root may write anywhere but in the kernel's own file system.
#[test]
fn a_folder_that_can_not_be_written_is_told_as_such() {
    let error = try_open(Path::new("/sys/halfway.db")).unwrap_err();
    assert!(matches!(error, OpenError::ReadOnly { .. }), "{error}");
    assert!(error.to_string().contains("/sys/halfway.db"), "{error}");
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    let folder = Folder::new();
    let store = open(&folder.db());
    for _ in 0..100 {
        store.commit(commit(&origin(), 2000)).await.unwrap();
    }
    drop(store);
    let mut content = std::fs::read(folder.db()).unwrap();
    let half = content.len() / 2;
    content[half..half + 30_000].fill(0xff);
    std::fs::write(folder.db(), content).unwrap();
    let error = try_open(&folder.db()).unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    assert_ne!(check(&folder.db()).unwrap().problems, Vec::<String>::new());
}

#[tokio::test]
async fn past_its_size_it_is_full_until_there_is_room_again() {
    let folder = Folder::new();
    let settings = SqliteSettings { max_size: Some(1 << 20), ..SqliteSettings::new(folder.db()) };
    let store = SqliteStore::open(settings.clone(), Arc::new(Silent)).unwrap();
    let mut room = store.room();
    let mut sequences = Vec::new();
    while store.room().borrow().is_free() {
        sequences.push(now(store.commit(commit(&origin(), 50_000)).await));
        assert!(sequences.len() < 30, "1 MiB holds fewer");
    }
    assert!(sequences.len() > 10);
    assert_eq!(*room.borrow_and_update(), Room::Full);
    // What is asked all the same is kept: publishers are asked to wait, not cut off.
    sequences.push(now(store.commit(commit(&origin(), 10)).await));
    drop(store);

    let store = SqliteStore::open(settings, Arc::new(Silent)).unwrap();
    assert_eq!(*store.room().borrow(), Room::Full, "known from the start");
    let mut room = store.room();
    store.delivered(sequences);
    tokio::time::timeout(DEADLINE, room.wait_for(|room| room.is_free())).await.unwrap().unwrap();
    assert!(store.room().borrow().is_free());
}

#[tokio::test]
async fn its_limits_can_change() {
    static NOW: AtomicI64 = AtomicI64::new(1_000_000);
    let folder = Folder::new();
    let settings = SqliteSettings { max_size: Some(1 << 30), clock: clock!(NOW), ..SqliteSettings::new(folder.db()) };
    let store = SqliteStore::open(settings, Arc::new(Silent)).unwrap();
    let old = origin();
    store.park(old.clone(), batch(1_500_000)).await.unwrap();
    store.rollback(old.id, None).await.unwrap();
    now(store.commit(commit(&origin(), 1_500_000)).await);
    let mut room = store.room();
    assert!(store.room().borrow().is_free());
    let day = Duration::from_secs(24 * 60 * 60);
    store.change_limits(Limits { max_size: 1 << 20, max_size_per_user: 1 << 20, retention: day });
    tokio::time::timeout(DEADLINE, room.wait_for(|room| *room == Room::Full)).await.unwrap().unwrap();
    assert_eq!(stats(&folder.db()).unwrap().rolled_back, 1);
    NOW.fetch_add(61_000, Ordering::Relaxed);
    store.change_limits(Limits { max_size: 1 << 30, max_size_per_user: 1 << 30, retention: Duration::from_secs(60) });
    tokio::time::timeout(DEADLINE, room.wait_for(|room| room.is_free())).await.unwrap().unwrap();
    eventually("the old one is forgotten", || stats(&folder.db()).unwrap().rolled_back == 0).await;
}

#[tokio::test]
async fn idle_it_gives_back_the_log() {
    let folder = Folder::new();
    let store = open(&folder.db());
    for _ in 0..100 {
        store.commit(commit(&origin(), 10_000)).await.unwrap();
    }
    let log = || std::fs::metadata(folder.0.path().join("halfway.db-wal")).map_or(0, |log| log.len());
    assert!(log() > 1_000_000);
    eventually("the log is empty", || log() == 0).await;
}

#[tokio::test]
async fn finished_transactions_that_were_parked_leave_after_their_retention() {
    static NOW: AtomicI64 = AtomicI64::new(1_000_000);
    let folder = Folder::new();
    let open = || open_for_a_minute(&folder.db(), clock!(NOW));
    let store = open();
    let (delivered, rolled_back, waiting) = (origin(), origin(), origin());
    for tx in [&delivered, &rolled_back, &waiting] {
        // More packs than one step of the purge takes.
        for _ in 0..200 {
            store.park(tx.clone(), batch(100)).await.unwrap();
        }
    }
    let commit = |tx: &Origin| Commit { origin: tx.clone(), batch: batch(1), parked: true, forwarded: None };
    let sequence = now(store.commit(commit(&delivered)).await);
    store.commit(commit(&waiting)).await.unwrap();
    store.rollback(rolled_back.id, None).await.unwrap();
    store.delivered(vec![sequence]);
    let sql = rusqlite::Connection::open(folder.db()).unwrap();
    let count = |query: &str| sql.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap();
    eventually("the packs of what is finished leave at once", || count("SELECT count(*) FROM packs") == 201).await;
    let found = stats(&folder.db()).unwrap();
    assert_eq!((found.delivered, found.rolled_back, found.committed), (1, 1, 1));
    assert_eq!(count("SELECT count(*) FROM history"), 1, "of what was rolled back");
    assert_sound(&folder.db());
    store.close();

    NOW.fetch_add(60_001, Ordering::Relaxed);
    let store = open();
    eventually("the rows leave later", || count("SELECT count(*) FROM transactions") == 1).await;
    assert_eq!(committed(&store).await, BTreeSet::from([waiting.id]));
    assert_eq!(count("SELECT count(*) FROM history"), 0, "and their history with them");
    assert_sound(&folder.db());
}

fn named(name: &str, first_after: Option<u64>) -> Origin {
    let plan = |seconds| CheckPlan { checker: "orders".into(), first_after: Duration::from_secs(seconds) };
    let name = TransactionName::new(name.as_bytes()).unwrap();
    let named = Named { name, check: first_after.map(plan), transactional: true };
    Origin { named: Some(Arc::new(named)), ..origin() }
}

/// A message with a message-id.
fn with_id(message_id: u8) -> Batch {
    let mut header = vec![0, 60, 0, 0];
    header.extend([0; 8]);
    header.extend((1u16 << 7).to_be_bytes());
    header.extend([1, message_id]);
    let mut batch = Batch::default();
    batch.push(HalfMessage { publish: b"publish", header: &header, body: b"" });
    batch
}

fn parked(origin: &Origin) -> Commit {
    Commit { batch: Batch::default(), parked: true, ..commit(origin, 0) }
}

async fn summary(store: &Arc<dyn Backend>, origin: &Origin) -> Summary {
    store.transaction(origin.id).await.unwrap().expect("it is there").0
}

async fn last_event(store: &Arc<dyn Backend>, origin: &Origin) -> (String, String) {
    let (_, mut history) = store.transaction(origin.id).await.unwrap().expect("it is there");
    let last = history.pop().expect("what was parked has a history");
    (last.event, last.actor)
}

fn gauges(store: &Arc<dyn Backend>) -> (u64, u64, u64) {
    let stats = store.stats();
    let gauges = [&stats.open_named, &stats.in_doubt, &stats.oldest_in_doubt];
    let [open, in_doubt, oldest] = gauges.map(|gauge| gauge.load(Ordering::Relaxed));
    (open, in_doubt, oldest)
}

#[tokio::test]
async fn a_restart_keeps_names_with_their_schedules_and_counts() {
    static NOW: AtomicI64 = AtomicI64::new(1_000_000);
    let folder = Folder::new();
    let settings = || SqliteSettings { clock: clock!(NOW), ..SqliteSettings::new(folder.db()) };
    let open = || SqliteStore::open(settings(), Arc::new(Silent)).unwrap();
    let store = open();
    assert_eq!(gauges(&store), (0, 0, 0));
    let (checked, done) = (named("checked", Some(6)), named("done", Some(6)));
    let (left, unasked) = (named("left", Some(7)), named("unasked", None));
    let (earlier, later) = (named("contested", Some(6)), named("contested", Some(6)));
    for tx in [&checked, &earlier] {
        store.park(tx.clone(), with_id(1)).await.unwrap();
        store.abandon(tx.id).await.unwrap();
        NOW.fetch_add(1, Ordering::Relaxed);
    }
    store.park(earlier.clone(), batch(1)).await.unwrap_err();
    let check = |result: &str, counted, at: i64| {
        let after = at - NOW.load(Ordering::Relaxed);
        let (checker, again_after) = ("orders".into(), Some(Duration::from_millis(after.unsigned_abs())));
        store.checked(checked.id, Check { checker, result: result.into(), answered: counted, counted, again_after })
    };
    assert!(check("unknown", true, 2_000_000).await.unwrap());
    assert!(check("timeout", false, 3_000_000).await.unwrap());
    for tx in [&left, &unasked, &later, &done] {
        store.park(tx.clone(), with_id(1)).await.unwrap();
    }
    assert_eq!(gauges(&store), (4, 2, 1_000_000));
    store.commit(parked(&done)).await.unwrap();
    assert_eq!(gauges(&store), (3, 2, 1_000_000));
    let before = (summary(&store, &checked).await, store.transaction(checked.id).await.unwrap());
    store.close();
    drop(store);

    NOW.store(5_000_000, Ordering::Relaxed);
    let store = open();
    assert_eq!((summary(&store, &checked).await, store.transaction(checked.id).await.unwrap()), before);
    assert_eq!((before.0.attempts, before.0.checks_answered), (2, 1));
    assert_eq!(before.0.next_check_at, Some(Timestamp(3_000_000)));
    for (tx, next_check_at) in [(&left, Some(Timestamp(5_007_000))), (&unasked, None)] {
        let found = summary(&store, tx).await;
        assert_eq!((found.state, found.next_check_at), (State::InDoubt, next_check_at));
        assert_eq!(last_event(&store, tx).await, ("in_doubt".into(), "restart".into()));
    }
    // As when its channel had ended: a name has one fate.
    assert_eq!(summary(&store, &later).await.state, State::InDoubt);
    assert_eq!(last_event(&store, &earlier).await, ("rolled_back".into(), format!("attempt {}", later.id)));
    assert_eq!(gauges(&store), (0, 4, 1_000_000));
    assert_sound(&folder.db());

    let due = store.due("orders", "", 10).await.unwrap();
    assert_eq!(due.due.iter().map(|due| due.id).collect::<Vec<_>>(), [checked.id]);
    assert!(due.next.is_some());
    assert_eq!(store.commit(commit(&named("done", None), 1)).await.unwrap(), Committing::Before);
    let half = Named { transactional: false, ..Named::clone(left.named.as_ref().unwrap()) };
    store.park(Origin { named: Some(Arc::new(half)), ..origin() }, with_id(1)).await.unwrap();
    assert_eq!(summary(&store, &left).await.messages, 1, "a message-id is known over a restart");
    let decided = store.decide(Target::Id(checked.id), Decision::Commit, Actor::Control, None).await.unwrap();
    assert!(matches!(decided, Verdict::Decided(_)));
    assert_eq!(committed(&store).await, BTreeSet::from([done.id, checked.id]));
    assert_eq!(gauges(&store), (0, 3, 5_000_000));
    store.close();
    assert_sound(&folder.db());
    drop(store);
    assert_eq!(committed(&open()).await, BTreeSet::from([done.id, checked.id]));
}

/// What is in the files at the moment of the answer is what a crash leaves.
#[tokio::test]
async fn what_was_answered_about_a_name_is_in_the_files() {
    let folder = Folder::new();
    let store = open(&folder.db());
    let tx = named("crash", Some(6));
    let copy = || {
        let copy = Folder::new();
        for suffix in ["", "-wal"] {
            let name = format!("halfway.db{suffix}");
            std::fs::copy(folder.0.path().join(&name), copy.0.path().join(&name)).unwrap();
        }
        copy
    };
    store.park(tx.clone(), batch(10)).await.unwrap();
    let after_crash = copy();
    assert_eq!(summary(&open(&after_crash.db()), &tx).await.state, State::InDoubt);
    store.abandon(tx.id).await.unwrap();
    let again_after = Some(Duration::from_secs(1_000_000));
    let check =
        Check { checker: "orders".into(), result: "unknown".into(), answered: true, counted: true, again_after };
    assert!(store.checked(tx.id, check).await.unwrap());
    let after_crash = copy();
    let found = [summary(&open(&after_crash.db()), &tx).await, summary(&store, &tx).await];
    // Each process reads two clocks of its own.
    let [restored, kept] = found.each_ref().map(|found| found.next_check_at.expect("it is to be asked about").0);
    assert!((restored - kept).abs() <= 5, "{restored} is not {kept}");
    let [restored, kept] = found.map(|found| Summary { next_check_at: None, ..found });
    assert_eq!(restored, kept);
    store.decide(Target::Id(tx.id), Decision::Commit, Actor::Control, None).await.unwrap();
    let after_crash = copy();
    let reopened = open(&after_crash.db());
    assert_eq!(committed(&reopened).await, BTreeSet::from([tx.id]));
    assert_eq!(summary(&reopened, &tx).await.decided_by.as_deref(), Some("control"));
}

#[tokio::test]
async fn a_store_of_version_1_is_brought_forward() {
    let folder = Folder::new();
    let sql = rusqlite::Connection::open(folder.db()).unwrap();
    sql.execute_batch(include_str!("../src/store/sqlite/schema/0001.sql")).unwrap();
    sql.execute_batch(
        "PRAGMA application_id = 0x68616c66; PRAGMA user_version = 1; UPDATE store SET sequence_reserved = 100",
    )
    .unwrap();
    sql.execute_batch("INSERT INTO lanes VALUES (1, '/', 0)").unwrap();
    let txs = [origin(), origin(), origin(), origin()];
    let body = batch(10).into_bytes();
    let add = |sequence: i64, tx: &Origin, state: &str, parked: bool, pack: bool, letters: i64| {
        let decided = (state != "open").then_some(7);
        let body_here = (!pack && state == "committed").then_some(&body);
        sql.execute(
            "INSERT INTO transactions VALUES (?1, ?2, ?3, 1, 'guest', 5, ?4, ?5, NULL, 1, ?6, ?7, ?8, ?9, ?10)",
            rusqlite::params![
                sequence,
                tx.id.0.into_bytes(),
                state,
                parked.then_some(6),
                decided,
                body.len() as i64,
                letters,
                parked.then_some(sequence),
                i64::from(parked),
                body_here
            ],
        )
        .unwrap();
        if pack {
            sql.execute("INSERT INTO packs VALUES (?1, 0, ?2)", rusqlite::params![sequence << 20, body]).unwrap();
        }
    };
    add(1, &txs[0], "committed", false, false, 0);
    add(2, &txs[1], "open", true, true, 0);
    add(3, &txs[2], "delivered", true, false, 0);
    add(4, &txs[3], "dead_lettered", false, false, 1);
    sql.execute("INSERT INTO dead_letters VALUES (1, 4, 0, ?1, 404, 'NOT_FOUND', 8, 1)", [&body]).unwrap();
    // The last of many, so that its numbers are above the sequences to come.
    for (entry, event) in [(1_000_000, "parked"), (1_000_001, "noted")] {
        sql.execute(
            "INSERT INTO history VALUES (?1, ?2, 6, ?3, 'channel', NULL)",
            rusqlite::params![entry, txs[1].id.0.into_bytes(), event],
        )
        .unwrap();
    }
    drop(sql);
    assert_sound(&folder.db());
    assert_eq!(stats(&folder.db()).unwrap().open, 1, "what only reads takes the file as it is");

    let settings =
        SqliteSettings { clock: Clock { wall: || Timestamp(1_000), passed: || 0 }, ..SqliteSettings::new(folder.db()) };
    let store = SqliteStore::open(settings, Arc::new(Silent)).unwrap();
    assert_sound(&folder.db());
    assert_eq!(stats(&folder.db()).unwrap().schema, 9);
    assert_eq!(store.lanes().await.unwrap(), [lane()]);
    let letter = store.dead_letter_by_id("1".parse().unwrap()).await.unwrap().expect("its number stays");
    assert_eq!((letter.transaction, letter.since, letter.attempts), (txs[3].id, Timestamp(8), 1));
    assert_eq!(committed(&store).await, BTreeSet::from([txs[0].id]));
    let listing = store.transactions(Filter::default(), Bookmark::START, 10).await.unwrap();
    let states: Vec<_> = listing.items.iter().map(|tx| (tx.id, tx.state)).collect();
    let expected = [State::Committed, State::RolledBack, State::Delivered, State::DeadLettered];
    assert_eq!(states, txs.iter().map(|tx| tx.id).zip(expected).collect::<Vec<_>>());
    let (_, history) = store.transaction(txs[1].id).await.unwrap().expect("it is remembered");
    let events: Vec<_> = history.iter().map(|event| event.event.as_str()).collect();
    assert_eq!(events, ["parked", "noted", "rolled_back"]);
    assert_eq!(summary(&store, &txs[3]).await.state, State::DeadLettered);
    let tx = named("new", Some(6));
    store.park(tx.clone(), batch(10)).await.unwrap();
    assert!(now(store.commit(parked(&tx)).await) >= Sequence(100));
    assert_sound(&folder.db());
}

#[tokio::test]
async fn names_leave_after_their_retention_with_what_is_known_of_their_messages() {
    static NOW: AtomicI64 = AtomicI64::new(1_000_000);
    let folder = Folder::new();
    let open = || open_for_a_minute(&folder.db(), clock!(NOW));
    let store = open();
    let (small, large, dropped, doubtful) =
        (named("small", None), named("large", None), named("dropped", None), named("doubtful", None));
    for tx in [&small, &large, &dropped, &doubtful] {
        store.park(tx.clone(), with_id(1)).await.unwrap();
        store.park(tx.clone(), with_id(2)).await.unwrap();
    }
    let replies: Vec<_> = (0..300).map(|_| store.park(large.clone(), batch(1000))).collect();
    for reply in replies {
        reply.await.unwrap();
    }
    let sql = rusqlite::Connection::open(folder.db()).unwrap();
    let count = |query: &str| sql.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM message_ids"), 8);
    let sequences = [now(store.commit(parked(&small)).await), now(store.commit(parked(&large)).await)];
    store.rollback(dropped.id, None).await.unwrap();
    store.abandon(doubtful.id).await.unwrap();
    store.delivered(sequences.to_vec());
    eventually("only what is in doubt keeps messages", || {
        count("SELECT count(*) FROM packs") == 2 && count("SELECT count(*) FROM message_ids") == 2
    })
    .await;
    eventually("the garbage is gone", || count("SELECT count(*) FROM garbage") == 0).await;
    let again = store.commit(commit(&named("large", None), 1)).await.unwrap();
    assert_eq!(again, Committing::Before, "the name is remembered");
    store.close();

    NOW.fetch_add(60_001, Ordering::Relaxed);
    let store = open();
    eventually("the rows leave", || count("SELECT count(*) FROM transactions") == 1).await;
    assert_eq!(summary(&store, &doubtful).await.state, State::InDoubt, "what is undecided stays for ever");
    now(store.commit(commit(&named("large", None), 1)).await);
    assert_sound(&folder.db());
}

/// The promise that a plain commit pays for nothing of this: it stands in one index, and in no other table.
#[tokio::test]
async fn a_plain_commit_stands_in_one_index() {
    let folder = Folder::new();
    let store = open(&folder.db());
    for _ in 0..10 {
        store.commit(commit(&origin(), 10)).await.unwrap();
    }
    let sql = rusqlite::Connection::open(folder.db()).unwrap();
    let mut indexes =
        sql.prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'transactions'").unwrap();
    let indexes = indexes.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let indexes = indexes.collect::<Result<Vec<(String, String)>, _>>().unwrap();
    assert!(indexes.len() > 5, "{indexes:?}");
    for (name, definition) in indexes {
        let (_, condition) = definition.split_once(" WHERE ").expect("every index is partial");
        let query = format!("SELECT count(*) FROM transactions INDEXED BY {name} WHERE {condition}");
        let entries: i64 = sql.query_row(&query, [], |row| row.get(0)).unwrap();
        assert_eq!(entries, if name == "committed" { 10 } else { 0 }, "{name}");
    }
    for table in ["packs", "history", "message_ids", "garbage"] {
        let rows: i64 = sql.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 0, "{table}");
    }
}

#[tokio::test]
async fn what_people_look_for_does_not_hold_up_the_relay() {
    let folder = Folder::new();
    let store = open(&folder.db());
    let commits: Vec<_> = (0..5_000).map(|_| store.commit(commit(&origin(), 10))).collect();
    for commit in commits {
        commit.await.unwrap();
    }
    let nobodys = || Filter { user: Some("nobody".into()), ..Filter::default() };
    let lists: Vec<_> = (0..200).map(|_| store.transactions(nobodys(), Bookmark::START, 10)).collect();
    let last = lists.into_iter().next_back().expect("there are some");
    let page = store.page(&lane(), None, 1);
    tokio::select! {
        biased;
        _ = last => panic!("the relay had to wait for every list"),
        page = page => assert_eq!(page.unwrap().len(), 1),
    }
}

#[tokio::test]
async fn a_backup_is_a_store_and_the_original_goes_on() {
    let folder = Folder::new();
    let target = folder.0.path().join("backup.db");
    let store = open(&folder.db());
    let tx = origin();
    store.commit(commit(&tx, 100_000)).await.unwrap();
    backup(&folder.db(), &target).unwrap();
    store.commit(commit(&origin(), 10)).await.unwrap();
    assert_sound(&target);
    assert!(matches!(backup(&folder.db(), &target), Err(ToolError::Exists(_))));
    assert_eq!(committed(&open(&target)).await, BTreeSet::from([tx.id]));
    assert_eq!(committed(&store).await.len(), 2);
    let left: Vec<_> = std::fs::read_dir(folder.0.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("partial"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test]
async fn stats_count_beside_a_running_store() {
    let folder = Folder::new();
    let store = open(&folder.db());
    assert_eq!(stats(&folder.db()).unwrap().oldest_committed_at, None);
    let sequence = now(store.commit(commit(&origin(), 10)).await);
    let letter = DeadLetter {
        sequence,
        index: 0,
        message: Stored::Sound(batch(10).into_bytes().into()),
        reply_code: 404,
        reply_text: "NOT_FOUND".into(),
        since: Timestamp(5),
    };
    store.dead_letter(letter.clone()).await.unwrap();
    store.dead_letter(letter).await.unwrap();
    store.commit(commit(&origin(), 10)).await.unwrap();
    store.park(origin(), batch(10)).await.unwrap();
    let found = stats(&folder.db()).unwrap();
    assert_eq!((found.committed, found.open, found.dead_letters), (2, 1, 1));
    assert_eq!(found.lanes.iter().map(|lane| (lane.lane, lane.committed)).collect::<Vec<_>>(), [(0, 2)]);
    assert!(found.oldest_committed_at.is_some());
    assert_eq!(found.used_bytes, store.stats().used_bytes.load(Ordering::Relaxed));
    assert_eq!(store.stats().dead_letters.load(Ordering::Relaxed), 1);

    store.delivered(vec![sequence]);
    eventually("it left the backlog", || store.stats().backlog.load(Ordering::Relaxed) == 1).await;
    let sql = rusqlite::Connection::open(folder.db()).unwrap();
    let row = "SELECT state, body IS NULL, dead_letters.attempts FROM transactions JOIN dead_letters USING (sequence)";
    let row = sql.query_row(row, [], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))).unwrap();
    assert_eq!(row, ("dead_lettered".into(), true, 2));
    assert_sound(&folder.db());
}

/// In the child process, the folder to use.
const FAULT_FOLDER: &str = "HALFWAY_TEST_FAULT_FOLDER";

/// Runs the named test again in a process of its own, in which faults hurt nobody else, under a shell script that gets
/// the folder as `$0` and the command as `$@`.
fn in_child(test: &str, shell: &mut Command, script: &str) {
    let folder = Folder::new();
    let status = shell
        .args(["sh", "-c", script])
        .arg(folder.0.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(FAULT_FOLDER, folder.0.path())
        .status()
        .expect("util-linux is installed");
    assert!(status.success(), "{test} failed in its child process");
}

/// Fills the disk, looks what fails and what stays, gives the space back, and looks again after a restart.
async fn a_bad_disk(folder: &Path, spoil: impl Fn(), heal: impl Fn(), is_expected: fn(&StoreError) -> bool) {
    let path = folder.join("halfway.db");
    let store = open(&path);
    let mut promised = BTreeSet::new();
    let first = origin();
    let first_sequence = now(store.commit(commit(&first, 1000)).await);
    promised.insert(first.id);
    spoil();
    let error = loop {
        let tx = origin();
        match store.commit(commit(&tx, 100_000)).await {
            Ok(_) => promised.insert(tx.id),
            Err(error) => break error,
        };
        assert!(promised.len() < 1000, "the disk never failed");
    };
    assert!(is_expected(&error), "{error:?}");
    assert_eq!(committed(&store).await, promised, "what was promised can be read");

    heal();
    let after = origin();
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = store.commit(commit(&after, 100_000)).await {
        assert!(Instant::now() < deadline, "still {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    promised.insert(after.id);
    store.delivered(vec![first_sequence]);
    promised.remove(&first.id);
    store.close();
    drop(store);

    assert_sound(&path);
    assert_eq!(committed(&open(&path)).await, promised, "nothing else came back");
}

#[tokio::test]
async fn a_full_disk_fails_commits_and_nothing_else() {
    let Some(folder) = std::env::var_os(FAULT_FOLDER).map(PathBuf::from) else {
        // A file system of 4 MiB, seen by the child only. Root needs no user namespace.
        let unshare = || Command::new("unshare");
        let mut shell = unshare();
        if !unshare().args(["--mount", "true"]).output().is_ok_and(|output| output.status.success()) {
            shell.arg("--map-root-user");
        }
        shell.arg("--mount");
        let script = r#"mount -t tmpfs -o size=4m none "$0" && exec "$@""#;
        return in_child("a_full_disk_fails_commits_and_nothing_else", &mut shell, script);
    };
    let ballast = folder.join("ballast");
    a_bad_disk(
        &folder,
        || std::fs::write(&ballast, vec![0; 2 << 20]).unwrap(),
        || std::fs::remove_file(&ballast).unwrap(),
        |error| matches!(error, StoreError::Full(_)),
    )
    .await;
}

#[tokio::test]
async fn an_io_error_fails_commits_and_nothing_else() {
    let Some(folder) = std::env::var_os(FAULT_FOLDER).map(PathBuf::from) else {
        // Writes past a file size limit fail, if the signal that comes with it is ignored.
        let script = r#"trap "" XFSZ; exec "$@""#;
        return in_child("an_io_error_fails_commits_and_nothing_else", &mut Command::new("env"), script);
    };
    let limit = |bytes: &str| {
        let process = std::process::id().to_string();
        let set = Command::new("prlimit").args(["--pid", &process, &format!("--fsize={bytes}:unlimited")]).status();
        assert!(set.unwrap().success());
    };
    a_bad_disk(&folder, || limit("1500000"), || limit("unlimited"), |error| matches!(error, StoreError::Io(_))).await;
}

#[tokio::test]
async fn the_age_of_the_backlog_is_that_of_its_oldest_transaction() {
    let folder = Folder::new();
    let store = open(&folder.db());
    let oldest = || store.stats().oldest_committed.load(Ordering::Relaxed);
    assert_eq!(oldest(), 0);
    let first = now(store.commit(commit(&origin(), 10)).await);
    eventually("the first is the oldest", || oldest() > 0).await;
    let before = oldest();
    tokio::time::sleep(Duration::from_millis(2)).await;
    let second = now(store.commit(commit(&origin(), 10)).await);
    store.delivered(vec![first]);
    eventually("the second is the oldest", || oldest() > before).await;
    store.delivered(vec![second]);
    eventually("there is none", || oldest() == 0).await;
    store.close();
}

/// A child has a copy of every open file until it runs its own program, the lock's among them.
#[tokio::test]
async fn a_closed_store_is_free_though_children_are_being_started() {
    let folder = Folder::new();
    let ended = Arc::new(AtomicI64::new(0));
    let watch = Arc::clone(&ended);
    let children = std::thread::spawn(move || {
        while watch.load(Ordering::Relaxed) == 0 {
            Command::new("true").status().unwrap();
        }
    });
    for _ in 0..50 {
        open(&folder.db()).close();
    }
    ended.store(1, Ordering::Relaxed);
    children.join().unwrap();
}
