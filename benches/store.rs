//! How fast the SQLite store is: commits by several writers with the deletes that follow them, then the start with a
//! backlog and how fast it is read and deleted.
//!
//! ```text
//! cargo bench --bench store                                # a second or two for each line
//! cargo bench --bench store -- --seconds 10 --backlog 1000000 --folder /var/lib/halfway
//! cargo bench --bench store -- --doubts 1000000            # only: the start and questions with so many in doubt
//! ```
//!
//! The folder decides what a sync costs; a RAM disk would flatter.

use halfway::store::sqlite::{SqliteSettings, SqliteStore};
use halfway::store::{
    Backend, Bookmark, Check, Commit, Committed, Cursor, Filter, Lane, NameFilter, Named, Origin, Outlet, Sequence,
    Strand,
};
use halfway::tx::batch::{Batch, HalfMessage};
use halfway::tx::checker::CheckPlan;
use halfway::tx::id::{Timestamp, TransactionId};
use halfway::tx::name::TransactionName;
use halfway::tx::state::State;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use wildmatch::WildMatch;

/// Lanes that the writers are spread over.
const LANES: u16 = 8;

fn main() {
    let options = Options::read();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(doubts) = options.doubts {
        return runtime.block_on(doubtful(&options, doubts));
    }
    println!("writers  messages  body    commits/s  p50 ms  p99 ms  p999 ms  a group  log MiB");
    for (writers, messages, body_bytes) in [
        (1, 1, 1024),
        (10, 1, 1024),
        (100, 1, 1024),
        (1000, 1, 1024),
        (1, 100, 1024),
        (10, 100, 1024),
        (100, 100, 1024),
        (10, 1, 64 * 1024),
        (4, 1, 1024 * 1024),
    ] {
        runtime.block_on(commits(&options, writers, messages, body_bytes));
    }
    runtime.block_on(backlog(&options));
}

struct Options {
    folder: PathBuf,
    seconds: u64,
    backlog: usize,
    doubts: Option<usize>,
}

impl Options {
    fn read() -> Self {
        let arguments: Vec<_> = std::env::args().collect();
        let value = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name)?;
            arguments.get(at + 1).cloned()
        };
        Self {
            folder: value("--folder").map_or_else(|| PathBuf::from("target"), PathBuf::from),
            seconds: value("--seconds").map_or(2, |seconds| seconds.parse().expect("--seconds is a number")),
            backlog: value("--backlog").map_or(200_000, |rows| rows.parse().expect("--backlog is a number")),
            doubts: value("--doubts").map(|rows| rows.parse().expect("--doubts is a number")),
        }
    }
}

/// Says at once that RabbitMQ has everything.
struct Relay(mpsc::UnboundedSender<Vec<Sequence>>);

impl Outlet for Relay {
    fn committed(&self, transactions: Vec<Committed>) {
        let _ = self.0.send(transactions.iter().map(|tx| tx.sequence).collect());
    }
}

/// Remembers nothing, so that everything stays.
struct Nowhere;

impl Outlet for Nowhere {
    fn committed(&self, _: Vec<Committed>) {}
}

fn open(folder: &Path, outlet: Arc<dyn Outlet>) -> Arc<dyn Backend> {
    SqliteStore::open(SqliteSettings::new(folder.join("bench.db")), outlet).expect("the folder can be written")
}

fn commit(lane: u16, messages: usize, body: &[u8]) -> Commit {
    let mut batch = Batch::default();
    for _ in 0..messages {
        batch.push(HalfMessage { publish: b"\0\0\x08exchange\x03key\0", header: &[0; 60], body });
    }
    let origin = Origin {
        id: TransactionId(uuid::Uuid::now_v7()),
        user: "guest".into(),
        lane: Lane::new("/".into(), lane),
        strand: Strand(0),
        created_at: Timestamp(0),
        named: None,
    };
    Commit { origin, batch, parked: false, forwarded: None }
}

async fn commits(options: &Options, writers: usize, messages: usize, body_bytes: usize) {
    let folder = tempfile::tempdir_in(&options.folder).unwrap();
    let (sender, mut committed) = mpsc::unbounded_channel();
    let store = open(folder.path(), Arc::new(Relay(sender)));
    let relay = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            while let Some(sequences) = committed.recv().await {
                store.delivered(sequences);
            }
        }
    });
    let started = Instant::now();
    let end = started + Duration::from_secs(options.seconds);
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let body = vec![7; body_bytes];
                let mut latencies = Vec::new();
                while Instant::now() < end {
                    let commit = commit((writer % usize::from(LANES)) as u16, messages, &body);
                    let asked = Instant::now();
                    store.commit(commit).await.unwrap();
                    latencies.push(asked.elapsed());
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.unwrap());
    }
    let took = started.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let percentile = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    let stats = store.stats();
    let group = stats.group_requests.load(Ordering::Relaxed) as f64 / stats.groups.snapshot().count() as f64;
    let log = std::fs::metadata(folder.path().join("bench.db-wal")).map_or(0, |log| log.len()) >> 20;
    println!(
        "{writers:7}  {messages:8}  {body_bytes:7} {:8.0}  {:6.2}  {:6.2}  {:7.2}  {group:7.1}  {log:7}",
        latencies.len() as f64 / took,
        percentile(0.5),
        percentile(0.99),
        percentile(0.999),
    );
    store.close();
    relay.await.unwrap();
}

async fn backlog(options: &Options) {
    let folder = tempfile::tempdir_in(&options.folder).unwrap();
    let store = open(folder.path(), Arc::new(Nowhere));
    let body = vec![7; 1024];
    let mut made = 0;
    while made < options.backlog {
        let replies: Vec<_> =
            (0..4000).map(|row| store.commit(commit((row % usize::from(LANES)) as u16, 1, &body))).collect();
        made += replies.len();
        for reply in replies {
            reply.await.unwrap();
        }
    }
    store.close();
    drop(store);

    let started = Instant::now();
    let store = open(folder.path(), Arc::new(Nowhere));
    let lanes = store.lanes().await.unwrap();
    println!("start with {made} committed: {:.0} ms, {} lanes", started.elapsed().as_secs_f64() * 1000.0, lanes.len());

    let started = Instant::now();
    let mut cursors: Vec<(Lane, Option<Cursor>)> = lanes.into_iter().map(|lane| (lane, None)).collect();
    let (mut read, mut bytes) = (0, 0);
    while !cursors.is_empty() {
        let mut ended = Vec::new();
        for (place, (lane, after)) in cursors.iter_mut().enumerate() {
            let packs = store.page(lane, *after, 1 << 20).await.unwrap();
            match packs.last() {
                Some(last) => *after = Some(Cursor { sequence: last.sequence, pack: last.number }),
                None => ended.push(place),
            }
            read += packs.len();
            bytes += packs.iter().map(|pack| pack.messages.bytes().len()).sum::<usize>();
            store.delivered(packs.iter().map(|pack| pack.sequence).collect());
        }
        ended.into_iter().rev().for_each(|place| drop(cursors.remove(place)));
    }
    let took = started.elapsed().as_secs_f64();
    println!(
        "read {read} in pages of 1 MiB: {:.0}/s, {:.0} MiB/s",
        read as f64 / took,
        bytes as f64 / took / 1048576.0
    );
    while store.stats().backlog.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("read and deleted: {:.0}/s", read as f64 / started.elapsed().as_secs_f64());
    println!("memory at most: {}", memory("VmHWM:"));
    store.close();
}

/// Transactions in doubt, half of them due, over a restart.
async fn doubtful(options: &Options, doubts: usize) {
    let folder = tempfile::tempdir_in(&options.folder).unwrap();
    let store = open(folder.path(), Arc::new(Nowhere));
    let started = Instant::now();
    let mut made = 0;
    while made < doubts {
        let replies: Vec<_> = (made..made + 4000)
            .map(|row| {
                let commit = commit((row % usize::from(LANES)) as u16, 1, &[7; 256]);
                let first_after = Duration::from_secs(if row % 2 == 0 { 0 } else { 24 * 60 * 60 });
                let check = Some(CheckPlan { checker: format!("checker-{}", row % 4).into(), first_after });
                let name = TransactionName::new(format!("order-{row}").as_bytes()).unwrap();
                let named = Some(Arc::new(Named { name, check, transactional: false }));
                store.park(Origin { named, ..commit.origin }, commit.batch)
            })
            .collect();
        made += replies.len();
        for reply in replies {
            reply.await.unwrap();
        }
    }
    println!("{made} in doubt, made at {:.0}/s", made as f64 / started.elapsed().as_secs_f64());
    store.close();
    drop(store);

    let took = |started: Instant| started.elapsed().as_secs_f64() * 1000.0;
    let before = memory("VmRSS:");
    let started = Instant::now();
    let store = open(folder.path(), Arc::new(Nowhere));
    store.lanes().await.unwrap();
    println!("start: {:.0} ms", took(started));
    for (what, limit) in [("first", 100), ("next", 100), ("next", 1)] {
        let started = Instant::now();
        let found = store.due("checker-0", "", limit).await.unwrap();
        println!("{what} {limit} due: {:.2} ms, {} found", took(started), found.due.len());
        let started = Instant::now();
        for due in &found.due {
            let (checker, again_after) = ("checker-0".into(), Some(Duration::from_secs(30)));
            let check = Check { checker, result: "unknown".into(), answered: true, counted: true, again_after };
            assert!(store.checked(due.id, check).await.unwrap());
        }
        println!("    and written down as checked: {:.2} ms each", took(started) / found.due.len() as f64);
    }
    let started = Instant::now();
    assert_eq!(store.due("checker-1", "", 100).await.unwrap().due.len(), 0);
    println!("none due: {:.2} ms", took(started));
    let doubtful = || Filter { state: Some(State::InDoubt), ..Filter::default() };
    let pattern = |pattern: &str| Some(NameFilter::Pattern(WildMatch::new(pattern)));
    let filters = [
        ("in doubt", Filter { state: Some(State::InDoubt), ..Filter::default() }),
        ("any", Filter::default()),
        ("committed", Filter { state: Some(State::Committed), ..Filter::default() }),
        ("one name", Filter { name: Some(NameFilter::Whole(format!("order-{}", made / 2))), ..Filter::default() }),
        ("of nobody", Filter { user: Some("nobody".into()), ..Filter::default() }),
        ("by a pattern", Filter { name: pattern("order-*7"), ..doubtful() }),
        ("by a pattern that nothing fits", Filter { name: pattern("bill-*"), ..doubtful() }),
        ("to an exchange", Filter { exchange: Some("exchange".into()), ..doubtful() }),
        ("to no exchange", Filter { exchange: Some("nowhere".into()), ..doubtful() }),
        ("too old", Filter { created_before: Some(Timestamp(0)), ..doubtful() }),
    ];
    let middle = format!("{:016x}", made / 2).parse().expect("a bookmark");
    for (what, filter) in filters {
        for after in [Bookmark::START, middle] {
            let started = Instant::now();
            let found = store.transactions(filter.clone(), after, 100).await.unwrap();
            println!("list 100 {what}, behind {after}: {:.2} ms, {} found", took(started), found.items.len());
        }
    }
    let known: Vec<Arc<str>> = (0..3).map(|number| format!("checker-{number}").into()).collect();
    let started = Instant::now();
    let found = store.unasked(known, middle, 100).await.unwrap();
    println!("100 that nobody asks about: {:.2} ms, {} found", took(started), found.items.len());
    println!("memory: {before} before, {} now, {} at most", memory("VmRSS:"), memory("VmHWM:"));
    store.close();
}

fn memory(line: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|candidate| candidate.strip_prefix(line));
    found.map_or_else(|| "unknown".into(), |found| found.trim().into())
}
