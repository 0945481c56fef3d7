//! Clocks that are set: while the store runs, while it does not, and before it counted time by itself.

use super::*;

const HOUR: i64 = 60 * 60 * 1000;

/// What passed, and what the wall clock is ahead of that.
struct Hands {
    passed: AtomicI64,
    set: AtomicI64,
}

impl Hands {
    const fn new() -> Self {
        Self { passed: AtomicI64::new(1_000 * HOUR), set: AtomicI64::new(0) }
    }

    fn wall(&self) -> Timestamp {
        Timestamp(self.passed() + self.set.load(Ordering::Relaxed))
    }

    fn passed(&self) -> i64 {
        self.passed.load(Ordering::Relaxed)
    }

    fn pass(&self, milliseconds: i64) {
        self.passed.fetch_add(milliseconds, Ordering::Relaxed);
    }

    fn set(&self, by: i64) {
        self.set.fetch_add(by, Ordering::Relaxed);
    }
}

macro_rules! hands {
    () => {{
        static HANDS: Hands = Hands::new();
        (&HANDS, Clock { wall: || HANDS.wall(), passed: || HANDS.passed() })
    }};
}

async fn due(store: &Arc<dyn Backend>) -> Vec<TransactionId> {
    store.due("orders", "", 9).await.unwrap().due.iter().map(|due| due.id).collect()
}

/// What was parked while the clock was two days fast was asked two days later.
#[tokio::test]
async fn a_fast_clock_that_is_corrected_during_a_restart_delays_no_check() {
    let (hands, clock) = hands!();
    let folder = Folder::new();
    let open = || SqliteStore::open(SqliteSettings { clock, ..SqliteSettings::new(folder.db()) }, Arc::new(Silent));
    hands.set(48 * HOUR);
    let store = open().unwrap();
    hands.pass(HOUR);
    let (left, open_still) = (named("left", Some(6)), named("open still", Some(6)));
    store.park(left.clone(), batch(1)).await.unwrap();
    store.abandon(left.id).await.unwrap();
    store.park(open_still.clone(), batch(1)).await.unwrap();
    store.close();

    hands.set(-48 * HOUR);
    hands.pass(1_000);
    let store = open().unwrap();
    // How long nobody counted, a clock that was set back can't tell; no more than that is lost.
    hands.pass(5_999);
    assert_eq!(due(&store).await, []);
    hands.pass(1);
    assert_eq!(due(&store).await, [left.id, open_still.id]);
    store.close();

    // A clock that was not set counts the time between.
    let later = named("later", Some(6));
    let store = open().unwrap();
    store.park(later.clone(), batch(1)).await.unwrap();
    store.abandon(later.id).await.unwrap();
    store.close();
    hands.pass(6_000);
    let store = open().unwrap();
    assert_eq!(due(&store).await.len(), 3);
    let shown = summary(&store, &later).await;
    assert_eq!(shown.next_check_at, Some(hands.wall()));
    assert_eq!(shown.parked_at, Some(Timestamp(hands.wall().0 - 6_000)));
}

/// A crash finds in the file what the clock was set to while the store ran, though nobody wrote anything.
#[tokio::test]
async fn what_the_clock_was_set_to_survives_a_crash() {
    let (hands, clock) = hands!();
    let folder = Folder::new();
    let open = |path: &Path| {
        let retention = Duration::from_secs(60);
        let settings = SqliteSettings { clock, retention, ..SqliteSettings::new(path) };
        SqliteStore::open(settings, Arc::new(Silent)).unwrap()
    };
    let store = open(&folder.db());
    let done = named("done", None);
    let sequence = now(store.commit(commit(&done, 1)).await);
    store.delivered(vec![sequence]);
    eventually("it is delivered", || stats(&folder.db()).unwrap().delivered == 1).await;
    let sql = rusqlite::Connection::open(folder.db()).unwrap();
    let difference = || sql.query_row("SELECT wall - count FROM store", [], |row| row.get::<_, i64>(0)).unwrap();
    hands.set(24 * HOUR);
    // Wakes the writer; by itself it wakes every half minute.
    store.change_limits(Limits { max_size: u64::MAX, max_size_per_user: u64::MAX, retention: Duration::from_secs(60) });
    eventually("the new time is written down", || difference() == 24 * HOUR).await;

    let copy = Folder::new();
    for suffix in ["", "-wal"] {
        let name = format!("halfway.db{suffix}");
        std::fs::copy(folder.0.path().join(&name), copy.0.path().join(&name)).unwrap();
    }
    let after_crash = open(&copy.db());
    assert_eq!(after_crash.commit(commit(&named("done", None), 1)).await.unwrap(), Committing::Before);
}

/// Whether the name is forgotten that was delivered before the clock was set, and so much passed.
async fn is_forgotten(set_before: i64, set: i64, pass: i64, hands: &Hands, clock: Clock) -> bool {
    let folder = Folder::new();
    let store = open_for_a_minute(&folder.db(), clock);
    hands.set(set_before);
    let done = now(store.commit(commit(&named("done", None), 1)).await);
    store.delivered(vec![done]);
    let sql = rusqlite::Connection::open(folder.db()).unwrap();
    let count = |query: &str| sql.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap();
    eventually("it is delivered", || stats(&folder.db()).unwrap().delivered == 1).await;
    let old = named("old", None);
    store.park(old.clone(), batch(100)).await.unwrap();
    hands.set(set);
    hands.pass(pass);
    // Garbage tells that the purge was there.
    for _ in 0..70 {
        store.park(old.clone(), batch(100)).await.unwrap();
    }
    store.rollback(old.id, None).await.unwrap();
    eventually("the purge was there", || {
        count("SELECT count(*) FROM garbage") == 0 && count("SELECT count(*) FROM packs") == 0
    })
    .await;
    store.close();
    stats(&folder.db()).unwrap().delivered == 0
}

/// The clock jumped a day, and every name was forgotten at once.
#[tokio::test]
async fn names_are_remembered_for_as_long_as_passes_and_no_longer() {
    let (hands, clock) = hands!();
    for (set_before, set) in [(0, 0), (0, 24 * HOUR), (0, -24 * HOUR), (24 * HOUR, 0), (-24 * HOUR, 0), (5, 48 * HOUR)]
    {
        assert!(!is_forgotten(set_before, set, 60_000, hands, clock).await, "{set_before} {set}");
        assert!(is_forgotten(set_before, set, 60_001, hands, clock).await, "{set_before} {set}");
    }
}

/// An earlier version took due times from the wall clock.
#[tokio::test]
async fn what_an_earlier_version_wrote_with_a_fast_clock_is_due() {
    let (hands, clock) = hands!();
    let folder = Folder::new();
    let open = || SqliteStore::open(SqliteSettings { clock, ..SqliteSettings::new(folder.db()) }, Arc::new(Silent));
    let store = open().unwrap();
    let (fast, right, held) = (named("fast", Some(6)), named("right", Some(6)), named("held", None));
    for tx in [&fast, &right, &held] {
        store.park(tx.clone(), batch(1)).await.unwrap();
        store.abandon(tx.id).await.unwrap();
    }
    store.close();
    drop(store);
    let sql = rusqlite::Connection::open(folder.db()).unwrap();
    let two_days = 48 * HOUR;
    let fast_then = format!(
        "UPDATE store SET count = NULL, wall = NULL; UPDATE transactions SET in_doubt_at = in_doubt_at + {two_days},
             next_check_at = next_check_at + {two_days} WHERE name <> 'right'"
    );
    sql.execute_batch(&fast_then).unwrap();
    drop(sql);
    let store = open().unwrap();
    assert_eq!(due(&store).await, [fast.id]);
    assert_eq!(summary(&store, &right).await.next_check_at, Some(Timestamp(hands.wall().0 + 6_000)));
    assert_eq!(summary(&store, &held).await.next_check_at, None);
    assert_sound(&folder.db());
}
