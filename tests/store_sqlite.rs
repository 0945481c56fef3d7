//! The SQLite store over restarts, on files that are not its own, and on disks that fail.

use halfway::store::sqlite::{OpenError, SqliteSettings, SqliteStore, ToolError, backup, check, stats};
use halfway::store::{Commit, Committed, Committing, DeadLetter, Lane, Origin, Outlet, Sequence, Store, StoreError};
use halfway::tx::batch::{Batch, HalfMessage};
use halfway::tx::id::{Timestamp, TransactionId};
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

fn open(path: &Path) -> Arc<SqliteStore> {
    try_open(path).unwrap()
}

fn try_open(path: &Path) -> Result<Arc<SqliteStore>, OpenError> {
    SqliteStore::open(SqliteSettings::new(path), Arc::new(Silent))
}

fn lane() -> Lane {
    Lane { vhost: "/".into(), number: 0 }
}

fn origin() -> Origin {
    let id = TransactionId(uuid::Uuid::now_v7());
    Origin { id, user: "guest".into(), lane: lane(), created_at: Timestamp(0), named: None }
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

async fn committed(store: &SqliteStore) -> BTreeSet<TransactionId> {
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
    let mut fullness = store.fullness();
    let mut sequences = Vec::new();
    while !store.is_full() {
        sequences.push(now(store.commit(commit(&origin(), 50_000)).await));
        assert!(sequences.len() < 30, "1 MiB holds fewer");
    }
    assert!(sequences.len() > 10);
    assert!(*fullness.borrow_and_update());
    // What is asked all the same is kept: publishers are asked to wait, not cut off.
    sequences.push(now(store.commit(commit(&origin(), 10)).await));
    drop(store);

    let store = SqliteStore::open(settings, Arc::new(Silent)).unwrap();
    assert!(store.is_full(), "known from the start");
    let mut fullness = store.fullness();
    store.delivered(sequences);
    tokio::time::timeout(DEADLINE, fullness.wait_for(|full| !full)).await.unwrap().unwrap();
    assert!(!store.is_full());
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
    let settings = || SqliteSettings {
        retention: Duration::from_secs(60),
        clock: || Timestamp(NOW.load(Ordering::Relaxed)),
        ..SqliteSettings::new(folder.db())
    };
    let store = SqliteStore::open(settings(), Arc::new(Silent)).unwrap();
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
    assert_sound(&folder.db());
    store.close();

    NOW.fetch_add(60_001, Ordering::Relaxed);
    let store = SqliteStore::open(settings(), Arc::new(Silent)).unwrap();
    eventually("the rows leave later", || count("SELECT count(*) FROM transactions") == 1).await;
    assert_eq!(committed(&store).await, BTreeSet::from([waiting.id]));
    assert_eq!(count("SELECT count(DISTINCT transaction_id) FROM history"), 1);
    assert_sound(&folder.db());
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
        message: batch(10).into_bytes().into(),
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

#[tokio::test]
async fn a_check_finds_what_is_wrong() {
    for (damage, problem) in [
        ("UPDATE transactions SET body = substr(body, 2) WHERE packs = 0", "can't be read"),
        ("UPDATE transactions SET messages = 2 WHERE packs = 0", "should have 2 messages"),
        ("UPDATE transactions SET body = NULL WHERE packs = 0", "in no place, or in two"),
        ("DELETE FROM packs WHERE first_index = 0", "lacks its pack 0"),
        ("UPDATE packs SET first_index = 7 WHERE first_index = 1", "counts its message 1 as 7"),
        ("INSERT INTO packs VALUES (1 << 50, 0, x'')", "1 packs belong to no transaction"),
        ("UPDATE store SET sequence_reserved = 1", "will be given out again"),
        ("UPDATE transactions SET decided_at = NULL WHERE packs = 0", "a decision and are undecided"),
        ("UPDATE transactions SET letters = 1 WHERE packs = 0", "miscount their dead letters"),
        ("PRAGMA foreign_keys = OFF; UPDATE transactions SET lane = 99", "refers to a row of lanes"),
        ("DELETE FROM transactions WHERE packs > 0", "entries of the history belong to no transaction"),
    ] {
        let folder = Folder::new();
        let store = open(&folder.db());
        let large = origin();
        store.commit(commit(&origin(), 10)).await.unwrap();
        store.park(large.clone(), batch(10)).await.unwrap();
        store.commit(Commit { parked: true, ..commit(&large, 10) }).await.unwrap();
        store.close();
        assert_eq!(check(&folder.db()).unwrap().messages, 3);
        rusqlite::Connection::open(folder.db()).unwrap().execute_batch(damage).unwrap();
        let problems = check(&folder.db()).unwrap().problems;
        assert!(problems.iter().any(|found| found.contains(problem)), "{damage}: {problems:?}");
    }
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
