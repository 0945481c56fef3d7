//! One story told to every store: what `halfway::store` promises, chapter by chapter.

#[path = "store_contract/letters.rs"]
mod letters;
#[path = "store_contract/named.rs"]
mod named;
mod servers;

use bytes::Bytes;
use halfway::config::PostgresUrl;
use halfway::store::memory::MemoryStore;
use halfway::store::postgres::{PostgresSettings, PostgresStore};
use halfway::store::sqlite::{SqliteSettings, SqliteStore};
use halfway::store::{
    Clock, Commit, Committed, Committing, Cursor, DeadLetter, Lane, Origin, Outlet, Pack, Room, Sequence, Store,
    StoreError, Stored, Strand, Wait, Waiter,
};
use halfway::tx::batch::{Batch, HalfMessage, iter};
use halfway::tx::id::{Timestamp, TransactionId};
use halfway::tx::state::State;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Remembers what it was told.
#[derive(Default)]
struct Relay(Mutex<Vec<Committed>>);

impl Outlet for Relay {
    fn committed(&self, transactions: Vec<Committed>) {
        self.0.lock().unwrap().extend(transactions);
    }
}

impl Relay {
    fn told(&self) -> Vec<Committed> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn lane(vhost: &str, number: u16) -> Lane {
    Lane::new(vhost.into(), number)
}

fn origin(lane: Lane) -> Origin {
    let id = TransactionId(uuid::Uuid::now_v7());
    Origin { id, user: "guest".into(), lane, strand: Strand(0), created_at: Timestamp(1_000), named: None }
}

/// A batch with a message for each body.
fn batch(bodies: &[&str]) -> Batch {
    let mut batch = Batch::default();
    for body in bodies {
        batch.push(HalfMessage { publish: b"\0\0\x01x\x01k\0", header: b"header", body: body.as_bytes() });
    }
    batch
}

fn bodies(messages: &Bytes) -> Vec<String> {
    iter(messages).map(|message| String::from_utf8(message.unwrap().body.to_vec()).unwrap()).collect()
}

fn page_bodies(packs: &[Pack]) -> Vec<String> {
    packs.iter().flat_map(|pack| bodies(pack.messages.bytes())).collect()
}

fn plain(origin: &Origin, bodies: &[&str]) -> Commit {
    Commit { origin: origin.clone(), batch: batch(bodies), parked: false, forwarded: None }
}

fn parked(origin: &Origin, bodies: &[&str]) -> Commit {
    Commit { parked: true, ..plain(origin, bodies) }
}

fn letter(sequence: Sequence, index: u32) -> DeadLetter {
    DeadLetter {
        sequence,
        index,
        message: Stored::Sound(batch(&["dead"]).into_bytes().into()),
        reply_code: 404,
        reply_text: "NOT_FOUND - no exchange 'x' in vhost '/'".into(),
        since: Timestamp(2_000),
    }
}

/// Commits what was not committed before.
async fn commit(store: &dyn Store, commit: Commit) -> Sequence {
    now(store.commit(commit).await)
}

fn now(committing: Result<Committing, StoreError>) -> Sequence {
    match committing {
        Ok(Committing::Now(sequence)) => sequence,
        other => panic!("{other:?}"),
    }
}

async fn all(store: &dyn Store, lane: &Lane) -> Vec<Pack> {
    store.page(lane, None, usize::MAX).await.unwrap()
}

/// Waits until the lane holds these bodies: what is delivered leaves a little later.
async fn wait_for(store: &dyn Store, lane: &Lane, expected: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = page_bodies(&all(store, lane).await);
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "found {found:?} instead of {expected:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn what_is_committed_reaches_the_relay_in_order(store: &dyn Store, relay: &Relay) {
    let way = lane("/", 0);
    let (first, second) = (origin(way.clone()), origin(way.clone()));
    // Not awaited in between: calls take their places when they are made.
    let replies = (store.commit(plain(&first, &["a", "b"])), store.commit(plain(&second, &["c"])));
    let (first_place, second_place) = (now(replies.0.await), now(replies.1.await));
    assert!(first_place < second_place);

    let told = relay.told();
    assert_eq!(
        told.iter().map(|tx| (tx.sequence, tx.id)).collect::<Vec<_>>(),
        [(first_place, first.id), (second_place, second.id)]
    );
    assert_eq!(bodies(told[0].messages.as_ref().unwrap()), ["a", "b"]);
    assert_eq!(told[0].lane, way);

    let packs = all(store, &way).await;
    assert_eq!(page_bodies(&packs), ["a", "b", "c"]);
    assert!(packs.iter().all(|pack| pack.last && pack.number == 0 && pack.first_index == 0));
    assert_eq!(packs[0].id, first.id);

    store.delivered(vec![first_place]);
    wait_for(store, &way, &["c"]).await;
    store.delivered(vec![second_place]);
    wait_for(store, &way, &[]).await;
    assert_eq!(store.lanes().await.unwrap(), []);

    let third = commit(store, plain(&origin(way), &["d"])).await;
    assert!(third > second_place, "a place is never used twice");
    store.delivered(vec![third]);
    wait_for(store, &lane("/", 0), &[]).await;
    relay.told();
}

async fn what_was_parked_is_committed_behind_what_was_committed_before_it(store: &dyn Store, relay: &Relay) {
    let way = lane("parked", 3);
    let (large, small) = (origin(way.clone()), origin(way.clone()));
    store.park(large.clone(), batch(&["1", "2"])).await.unwrap();
    store.park(large.clone(), batch(&["3"])).await.unwrap();
    assert_eq!(all(store, &way).await, [], "nobody sees what is not committed");
    assert_eq!(store.lanes().await.unwrap(), []);

    let before = commit(store, plain(&small, &["0"])).await;
    let sequence = commit(store, parked(&large, &["4"])).await;
    assert!(before < sequence);
    let told = relay.told();
    assert_eq!(told[1].id, large.id);
    assert_eq!(told[1].messages, None);

    let packs = all(store, &way).await;
    assert_eq!(page_bodies(&packs), ["0", "1", "2", "3", "4"]);
    let large_packs: Vec<_> = packs[1..].iter().map(|pack| (pack.number, pack.first_index, pack.last)).collect();
    assert_eq!(large_packs, [(0, 0, false), (1, 2, false), (2, 3, true)]);

    // An equal decision is no news; one that brings messages is not equal.
    assert_eq!(store.commit(parked(&large, &[])).await.unwrap(), Committing::Before);
    let more = store.commit(parked(&large, &["lost"])).await;
    assert!(matches!(more, Err(StoreError::Conflict(state)) if state == "committed"));
    let contrary = store.rollback(large.id, None).await;
    assert!(matches!(contrary, Err(StoreError::Conflict(state)) if state == "committed"));
    let late = store.park(large.clone(), batch(&["late"])).await;
    assert!(matches!(late, Err(StoreError::Conflict(state)) if state == "committed"));
    assert_eq!(relay.told().len(), 0);
    assert_eq!(page_bodies(&all(store, &way).await), ["0", "1", "2", "3", "4"]);

    store.delivered(vec![before, sequence]);
    wait_for(store, &way, &[]).await;
}

async fn without_a_last_batch_the_last_park_is_the_last_pack(store: &dyn Store, relay: &Relay) {
    let tx = origin(lane("/", 1));
    store.park(tx.clone(), batch(&["1"])).await.unwrap();
    let sequence = commit(store, parked(&tx, &[])).await;
    let packs = all(store, &tx.lane).await;
    assert_eq!(packs.iter().map(|pack| (pack.number, pack.last)).collect::<Vec<_>>(), [(0, true)]);
    store.delivered(vec![sequence]);
    wait_for(store, &tx.lane, &[]).await;
    relay.told();
}

async fn what_is_rolled_back_is_never_seen(store: &dyn Store, relay: &Relay) {
    let tx = origin(lane("/", 0));
    store.park(tx.clone(), batch(&["never"])).await.unwrap();
    store.rollback(tx.id, None).await.unwrap();
    store.rollback(tx.id, None).await.unwrap();
    for contrary in [store.commit(parked(&tx, &[])).await.map(drop), store.park(tx.clone(), batch(&["x"])).await] {
        assert!(matches!(contrary, Err(StoreError::Conflict(state)) if state == "rolled_back"));
    }
    assert_eq!(all(store, &tx.lane).await, []);
    assert_eq!(relay.told().len(), 0);

    let unknown = TransactionId(uuid::Uuid::now_v7());
    assert!(matches!(store.rollback(unknown, None).await, Err(StoreError::Conflict(state)) if state == "not there"));
    let nothing = store.commit(parked(&origin(lane("/", 0)), &["x"])).await;
    assert!(matches!(nothing, Err(StoreError::Conflict(state)) if state == "not there"));
}

async fn a_page_goes_on_where_the_last_one_ended(store: &dyn Store, relay: &Relay) {
    let way = lane("pages", 7);
    let large = origin(way.clone());
    let mut sequences = vec![commit(store, plain(&origin(way.clone()), &["a"])).await];
    for body in ["b", "c"] {
        store.park(large.clone(), batch(&[body])).await.unwrap();
    }
    sequences.push(commit(store, parked(&large, &["d", "e"])).await);
    sequences.push(commit(store, plain(&origin(way.clone()), &["f"])).await);
    let elsewhere = commit(store, plain(&origin(lane("pages", 8)), &["elsewhere"])).await;
    assert_eq!(store.lanes().await.unwrap(), [way.clone(), lane("pages", 8)]);

    let one = batch(&["a"]).bytes();
    for (bytes_max, pages) in [
        (0, vec!["a", "b", "c", "de", "f"]),
        (1, vec!["a", "b", "c", "de", "f"]),
        (one + 1, vec!["ab", "cde", "f"]),
        (3 * one, vec!["abc", "def"]),
        (usize::MAX, vec!["abcdef"]),
    ] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let packs = store.page(&way, after, bytes_max).await.unwrap();
            let Some(last) = packs.last() else { break };
            after = Some(Cursor { sequence: last.sequence, pack: last.number });
            found.push(page_bodies(&packs).concat());
            assert!(found.len() <= pages.len(), "pages of {bytes_max} bytes: {found:?}");
        }
        assert_eq!(found, pages, "pages of {bytes_max} bytes");
    }
    assert_eq!(store.page(&lane("nowhere", 0), None, 1).await.unwrap(), []);

    // What was read may leave before the next page is asked for.
    store.delivered(vec![sequences[0], sequences[1]]);
    wait_for(store, &way, &["f"]).await;
    let after = Cursor { sequence: sequences[1], pack: 1 };
    assert_eq!(page_bodies(&store.page(&way, Some(after), usize::MAX).await.unwrap()), ["f"]);
    store.delivered(vec![sequences[2], elsewhere]);
    wait_for(store, &way, &[]).await;
    wait_for(store, &lane("pages", 8), &[]).await;
    relay.told();
}

async fn what_is_large_is_read_as_it_was_kept(store: &dyn Store, relay: &Relay) {
    let way = lane("large", 0);
    let texts = ["a", "b", "c"].map(|text| text.repeat(3_000_000));
    let large = texts.each_ref().map(String::as_str);
    let (small, tx) = (["small"].as_slice(), origin(way.clone()));
    store.park(tx.clone(), batch(small)).await.unwrap();
    store.park(tx.clone(), batch(&large)).await.unwrap();
    let expected = [small, &large, small, &large];
    assert_eq!(store.messages(tx.id, 0, usize::MAX).await.unwrap().len(), 2);
    store.park(tx.clone(), batch(small)).await.unwrap();
    let sequence = commit(store, parked(&tx, &large)).await;
    let (mut after, mut first_index) = (None, 0);
    for (number, texts) in expected.iter().enumerate() {
        let pack = store.page(&way, after, 1).await.unwrap().remove(0);
        assert!(matches!(&pack.messages, Stored::Sound(_)));
        assert!(bodies(pack.messages.bytes()) == *texts, "pack {number}");
        assert_eq!((pack.first_index, pack.last), (first_index, number == 3));
        first_index += texts.len() as u32;
        after = Some(Cursor { sequence, pack: pack.number });
    }
    assert_eq!(store.page(&way, after, 1).await.unwrap(), []);
    store.delivered(vec![sequence]);
    wait_for(store, &way, &[]).await;
    relay.told();
}

async fn what_steps_aside_is_read_beside_its_lane(store: &dyn Store, relay: &Relay) {
    let way = lane("/", 4);
    let aside = Lane { aside: Some(Strand(7)), ..way.clone() };
    let of = |strand| Origin { strand: Strand(strand), ..origin(way.clone()) };
    let named = Origin { named: named::attempt("stuck").named, ..of(7) };
    store.park(named.clone(), batch(&["b", "c"])).await.unwrap();
    let sequences = [
        commit(store, plain(&of(7), &["a"])).await,
        commit(store, parked(&named, &[])).await,
        commit(store, plain(&of(8), &["d"])).await,
        commit(store, plain(&of(7), &["e"])).await,
    ];
    assert!(relay.told().iter().map(|tx| tx.strand.0).eq([7, 7, 8, 7]));
    assert!(all(store, &way).await.iter().map(|pack| pack.strand.0).eq([7, 7, 8, 7]));
    // More than once is once.
    for _ in 0..2 {
        store.step_aside(&aside, sequences[..2].to_vec()).await.unwrap();
    }
    assert_eq!(page_bodies(&all(store, &way).await), ["d", "e"]);
    assert_eq!(page_bodies(&all(store, &aside).await), ["a", "b", "c"]);
    store.step_aside(&aside, vec![sequences[3]]).await.unwrap();
    assert_eq!(page_bodies(&all(store, &aside).await), ["a", "b", "c", "e"]);
    let after = Cursor { sequence: sequences[1], pack: u32::MAX };
    assert_eq!(page_bodies(&store.page(&aside, Some(after), usize::MAX).await.unwrap()), ["e"]);
    assert_eq!(store.lanes().await.unwrap(), [way.clone(), aside.clone()]);
    store.delivered(sequences.to_vec());
    wait_for(store, &way, &[]).await;
    wait_for(store, &aside, &[]).await;
    assert_eq!(store.lanes().await.unwrap(), []);
    let (summary, _) = store.transaction(named.id).await.unwrap().expect("it is remembered");
    assert_eq!((summary.state, summary.lane), (State::Delivered, 4));
    // What is gone can't step aside.
    store.step_aside(&aside, vec![sequences[0]]).await.unwrap();
    assert_eq!(all(store, &aside).await, []);
}

async fn a_dead_letter_lets_the_rest_go(store: &dyn Store, relay: &Relay) {
    let tx = origin(lane("/", 2));
    let sequence = commit(store, plain(&tx, &["good", "bad"])).await;
    store.dead_letter(letter(sequence, 1)).await.unwrap();
    store.dead_letter(letter(sequence, 1)).await.unwrap();
    store.delivered(vec![sequence]);
    wait_for(store, &tx.lane, &[]).await;
    let unknown = store.dead_letter(letter(Sequence(i64::MAX), 0)).await;
    assert!(matches!(unknown, Err(StoreError::Conflict(state)) if state == "not there"));
    relay.told();
}

async fn the_answer_for_the_client_travels_with_the_commit(store: &dyn Store, relay: &Relay) {
    let tx = origin(lane("/", 0));
    let (waiter, receiver) = Waiter::pair(Wait::default());
    let sequence = commit(store, Commit { forwarded: Some(waiter), ..plain(&tx, &["x"]) }).await;
    let told = relay.told().remove(0);
    told.forwarded.unwrap().tell(Default::default());
    assert_eq!(receiver.await.unwrap().returned, []);
    store.delivered(vec![sequence]);
    wait_for(store, &tx.lane, &[]).await;
}

async fn it_has_room(store: &dyn Store, _: &Relay) {
    assert_eq!(*store.room().borrow(), Room::Free);
}

/// All chapters, one after the other, on one store.
async fn story(store: &dyn Store, relay: &Relay) {
    what_is_committed_reaches_the_relay_in_order(store, relay).await;
    what_was_parked_is_committed_behind_what_was_committed_before_it(store, relay).await;
    without_a_last_batch_the_last_park_is_the_last_pack(store, relay).await;
    what_is_rolled_back_is_never_seen(store, relay).await;
    a_page_goes_on_where_the_last_one_ended(store, relay).await;
    what_is_large_is_read_as_it_was_kept(store, relay).await;
    what_steps_aside_is_read_beside_its_lane(store, relay).await;
    a_dead_letter_lets_the_rest_go(store, relay).await;
    the_answer_for_the_client_travels_with_the_commit(store, relay).await;
    it_has_room(store, relay).await;
}

/// A clock that stands still until something passes or it is set.
macro_rules! clock {
    () => {{
        static NOW: AtomicI64 = AtomicI64::new(1_000_000);
        static SET: AtomicI64 = AtomicI64::new(0);
        let wall = || Timestamp(NOW.load(Ordering::Relaxed) + SET.load(Ordering::Relaxed));
        ((&NOW, &SET), Clock { wall, passed: || NOW.load(Ordering::Relaxed) })
    }};
}

#[tokio::test]
async fn memory() {
    let relay = Arc::new(Relay::default());
    let ((now, set), clock) = clock!();
    let store = MemoryStore::with_clock(relay.clone(), clock);
    story(&*store, &relay).await;
    let stage = named::Stage { store: &*store, relay: &relay, now, set };
    named::story(stage).await;
    letters::story(stage).await;
}

#[tokio::test]
async fn sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("halfway.db");
    let relay = Arc::new(Relay::default());
    let ((now, set), clock) = clock!();
    let store = SqliteStore::open(SqliteSettings { clock, ..SqliteSettings::new(&path) }, relay.clone()).unwrap();
    story(&*store, &relay).await;
    let stage = named::Stage { store: &*store, relay: &relay, now, set };
    named::story(stage).await;
    letters::story(stage).await;
    let report = halfway::store::sqlite::check(&path).unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    store.close();
    let report = halfway::store::sqlite::check(&path).unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
}

#[tokio::test]
async fn postgres() {
    let server = servers::Postgres::start();
    let url = PostgresUrl::try_from(format!("{}?sslmode=disable", server.url())).unwrap();
    let relay = Arc::new(Relay::default());
    let ((now, set), clock) = clock!();
    let settings = PostgresSettings { clock, ..PostgresSettings::new(url) };
    let store = PostgresStore::open(settings, relay.clone()).unwrap();
    story(&*store, &relay).await;
    let stage = named::Stage { store: &*store, relay: &relay, now, set };
    named::story(stage).await;
    letters::story(stage).await;
    store.close();
}
