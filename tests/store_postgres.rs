//! The PostgreSQL store where the contract of every store does not look: who has it, answers that are lost, and a database
//! that goes away.

mod servers;

use halfway::config::PostgresUrl;
use halfway::store::postgres::{OpenError, PostgresSettings, PostgresStore};
use halfway::store::{
    Backend, Commit, Committed, Committing, Lane, Named, Origin, Outlet, Pack, Reply, Room, StoreError, Strand,
};
use halfway::tx::batch::{Batch, HalfMessage, iter};
use halfway::tx::id::{Timestamp, TransactionId};
use halfway::tx::name::TransactionName;
use halfway::tx::state::State;
use servers::{PATIENCE, Postgres, deadline, wait_until};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Remembers what it was told.
#[derive(Default)]
struct Relay(Mutex<Vec<TransactionId>>);

impl Outlet for Relay {
    fn committed(&self, transactions: Vec<Committed>) {
        self.0.lock().unwrap().extend(transactions.iter().map(|tx| tx.id));
    }
}

fn url(port: u16) -> PostgresUrl {
    PostgresUrl::try_from(format!("postgres://shop@127.0.0.1:{port}/postgres?sslmode=disable")).unwrap()
}

fn open(port: u16, relay: &Arc<Relay>) -> Result<Arc<dyn Backend>, OpenError> {
    PostgresStore::open(PostgresSettings::new(url(port)), relay.clone())
}

/// Waits for an answer.
fn answer<T>(reply: Reply<T>) -> Result<T, StoreError> {
    Runtime::new().unwrap().block_on(async { tokio::time::timeout(PATIENCE, reply).await.expect("an answer in time") })
}

fn lane() -> Lane {
    Lane::new("/".into(), 0)
}

fn origin() -> Origin {
    let id = TransactionId(uuid::Uuid::now_v7());
    Origin { id, user: "guest".into(), lane: lane(), strand: Strand(0), created_at: Timestamp(1_000), named: None }
}

fn attempt(name: &str) -> Origin {
    let name = TransactionName::new(name.as_bytes()).unwrap();
    Origin { named: Some(Arc::new(Named { name, check: None, transactional: true })), ..origin() }
}

fn batch(body: &str) -> Batch {
    let mut batch = Batch::default();
    batch.push(HalfMessage { publish: b"\0\0\x01x\x01k\0", header: b"header", body: body.as_bytes() });
    batch
}

fn commit(origin: &Origin, body: &str) -> Commit {
    Commit { origin: origin.clone(), batch: batch(body), parked: false, forwarded: None }
}

fn bodies(packs: &[Pack]) -> Vec<String> {
    let messages = packs.iter().flat_map(|pack| iter(pack.messages.bytes()));
    messages.map(|message| String::from_utf8(message.unwrap().body.to_vec()).unwrap()).collect()
}

fn all(store: &dyn Backend) -> Vec<Pack> {
    answer(store.page(&lane(), None, usize::MAX)).unwrap()
}

#[test]
fn what_was_left_is_found_by_the_next_process() {
    let server = Postgres::start();
    let relay = Arc::new(Relay::default());
    let store = open(server.port(), &relay).unwrap();
    let (plain, unnamed, named) = (origin(), origin(), attempt("a\0\\b"));
    let first = answer(store.commit(commit(&plain, "plain"))).unwrap();
    answer(store.park(unnamed.clone(), batch("never"))).unwrap();
    answer(store.park(named.clone(), batch("half"))).unwrap();
    assert_eq!(store.stats().backlog.load(Ordering::Relaxed), 1);
    store.close();
    assert!(matches!(answer(store.commit(commit(&origin(), "late"))), Err(StoreError::Closed)));
    // A clean end: the next one need not wait whether it lives.
    let begun = Instant::now();
    let store = open(server.port(), &relay).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let state = |of: &Origin| answer(store.transaction(of.id)).unwrap().expect("it is remembered").0;
    assert_eq!(state(&unnamed).state, State::RolledBack);
    let doubtful = state(&named);
    assert_eq!((doubtful.state, doubtful.name.as_ref().map(|name| name.as_str())), (State::InDoubt, Some("a\0\\b")));
    assert_eq!(bodies(&all(&*store)), ["plain"]);
    let counted = [&store.stats().backlog, &store.stats().in_doubt].map(|gauge| gauge.load(Ordering::Relaxed));
    assert_eq!(counted, [1, 1]);
    let second = answer(store.commit(commit(&origin(), "second"))).unwrap();
    assert!(matches!((first, second), (Committing::Now(first), Committing::Now(second)) if first < second));
    assert_eq!(bodies(&all(&*store)), ["plain", "second"]);
}

#[test]
fn what_waits_is_looked_at_and_no_chore_fails() {
    let server = Postgres::start();
    let store = open(server.port(), &Arc::default()).unwrap();
    answer(store.commit(commit(&origin(), "it waits"))).unwrap();
    let oldest = || store.stats().oldest_committed.load(Ordering::Relaxed);
    wait_until(deadline(PATIENCE), "a look at the oldest", || oldest() > 0);
    assert_eq!(store.stats().errors.load(Ordering::Relaxed), 0);
}

#[test]
fn one_process_has_it_at_a_time() {
    let server = Postgres::start();
    let relay = Arc::new(Relay::default());
    let store = open(server.port(), &relay).unwrap();
    let refused = open(server.port(), &relay).map(drop).unwrap_err();
    assert!(matches!(refused, OpenError::InUse { .. }), "{refused}");
    assert!(refused.to_string().contains("in use by another process, on "), "{refused}");
    answer(store.commit(commit(&origin(), "goes on"))).unwrap();
    store.close();
    // One that ended without a word: its beat stands still.
    server.query("INSERT INTO halfway.instances (key, host) VALUES (gen_random_uuid(), 'gone')");
    let begun = Instant::now();
    let store = open(server.port(), &relay).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(4), "taken after {:?}", begun.elapsed());
    assert_eq!(bodies(&all(&*store)), ["goes on"]);
}

#[test]
fn who_was_taken_over_writes_nothing_more() {
    let server = Postgres::start();
    let relay = Arc::new(Relay::default());
    let store = open(server.port(), &relay).unwrap();
    let (half, kept) = (attempt("half"), origin());
    answer(store.park(half.clone(), batch("half"))).unwrap();
    answer(store.commit(commit(&kept, "kept"))).unwrap();
    server.query("DELETE FROM halfway.instances");
    assert!(matches!(answer(store.commit(commit(&origin(), "x"))), Err(StoreError::Fenced)));
    assert!(matches!(answer(store.commit(Commit { parked: true, ..commit(&half, "x") })), Err(StoreError::Fenced)));
    assert!(matches!(answer(store.park(attempt("other"), batch("x"))), Err(StoreError::Fenced)));
    assert!(matches!(answer(store.rollback(half.id, None)), Err(StoreError::Fenced)));
    let room = store.room();
    wait_until(deadline(PATIENCE), "the beat to find out", || *room.borrow() == Room::Away);
    assert_eq!(relay.0.lock().unwrap()[..], [kept.id]);
    drop(store);
    let found = server.query("SELECT state FROM halfway.transactions ORDER BY sequence");
    assert_eq!(found.split_whitespace().collect::<Vec<_>>(), ["open", "committed"]);
}

#[test]
fn an_answer_that_is_lost_is_asked_for_until_it_comes() {
    let server = Postgres::start();
    let relay = Arc::new(Relay::default());
    let road = Road::to(server.port());
    let store = open(road.port, &relay).unwrap();
    let mut expected = Vec::new();
    // Whichever of the answers it is, of a group that is one statement and of one that is several.
    for lost in 0..14 {
        for named in [false, true] {
            let body = format!("{lost}-{named}");
            let origin = if named { attempt(&body) } else { origin() };
            road.lose_answer(lost);
            let committed = answer(store.commit(commit(&origin, &body)));
            assert!(matches!(committed, Ok(Committing::Now(_))), "{body}: {committed:?}");
            road.lose_answer(-1);
            expected.push((origin.id, body));
        }
    }
    let told = std::mem::take(&mut *relay.0.lock().unwrap());
    assert_eq!(told, expected.iter().map(|(id, _)| *id).collect::<Vec<_>>(), "each is handed on once, in order");
    let packs = all(&*store);
    assert_eq!(packs.iter().map(|pack| pack.id).collect::<Vec<_>>(), told);
    assert_eq!(bodies(&packs), expected.into_iter().map(|(_, body)| body).collect::<Vec<_>>());
    // What is cleared away is counted once as well.
    road.lose_answer(7);
    store.delivered(packs.iter().map(|pack| pack.sequence).collect());
    let backlog = || store.stats().backlog.load(Ordering::Relaxed);
    wait_until(deadline(PATIENCE), "all to be cleared away", || backlog() == 0);
    assert_eq!(all(&*store), []);
    assert_eq!(store.stats().used_bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn a_database_that_goes_away_is_waited_for() {
    let mut server = Postgres::start();
    let relay = Arc::new(Relay::default());
    let store = open(server.port(), &relay).unwrap();
    let room = store.room();
    answer(store.commit(commit(&origin(), "before"))).unwrap();
    server.stop();
    let meanwhile = [store.commit(commit(&origin(), "plain")), store.commit(commit(&attempt("named"), "named"))];
    wait_until(deadline(PATIENCE), "that it is away", || *room.borrow() == Room::Away);
    server.start_again();
    for reply in meanwhile {
        assert!(matches!(answer(reply), Ok(Committing::Now(_))));
    }
    wait_until(deadline(PATIENCE), "that it is back", || *room.borrow() == Room::Free);
    assert_eq!(bodies(&all(&*store)), ["before", "plain", "named"]);
}

#[test]
fn what_ends_sessions_loses_and_doubles_nothing() {
    let server = Postgres::start();
    let relay = Arc::new(Relay::default());
    let store = open(server.port(), &relay).unwrap();
    let expected = std::thread::scope(|scope| {
        let committed = scope.spawn(|| {
            let until = Instant::now() + Duration::from_secs(3);
            let mut committed = Vec::new();
            for at in 0.. {
                if Instant::now() > until {
                    return committed;
                }
                let origins = [origin(), attempt(&format!("n-{at}")), origin()];
                let replies = origins.each_ref().map(|origin| store.commit(commit(origin, "x")));
                for (origin, reply) in origins.iter().zip(replies) {
                    assert!(matches!(answer(reply), Ok(Committing::Now(_))));
                    committed.push(origin.id);
                }
            }
            unreachable!("it ends with the time")
        });
        while !committed.is_finished() {
            server.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'halfway'");
            std::thread::sleep(Duration::from_millis(50));
        }
        committed.join().unwrap()
    });
    assert!(expected.len() > 30, "{}", expected.len());
    assert_eq!(*relay.0.lock().unwrap(), expected);
    assert_eq!(all(&*store).iter().map(|pack| pack.id).collect::<Vec<_>>(), expected);
}

/// A way to a server on which answers can be lost: with the one that is, both ends of the connection go.
struct Road {
    port: u16,
    /// Answers that come through before one is lost; below zero: none is.
    left: Arc<AtomicI64>,
}

impl Road {
    fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let left = Arc::new(AtomicI64::new(-1));
        let counted = left.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], server))).unwrap();
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass(from, to, || true));
                let counted = counted.clone();
                std::thread::spawn(move || {
                    pass(server, client, || {
                        counted.fetch_sub(i64::from(counted.load(Ordering::SeqCst) >= 0), Ordering::SeqCst) != 0
                    });
                });
            }
        });
        Self { port, left }
    }

    /// Lets so many answers pass, and loses the next.
    fn lose_answer(&self, behind: i64) {
        self.left.store(behind, Ordering::SeqCst);
    }
}

/// Hands on what comes as long as it may, then ends both.
fn pass(mut from: TcpStream, mut to: TcpStream, may: impl Fn() -> bool) {
    let mut bytes = [0; 65_536];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if !may() || to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    for end in [from, to] {
        // The other side may have ended it.
        let _ = end.shutdown(Shutdown::Both);
    }
}
