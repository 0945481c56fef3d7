//! The proxy and RabbitMQ are killed at random moments under load, and then every client's word is held against what is
//! in the queues. `plain` does it with plain transactions, `half` with named ones.
//!
//! The moments come from a seed, which is printed; `HALFWAY_CRASH_SEED` sets it, `HALFWAY_CRASH_KILLS` the number of
//! kills. The seed repeats what is done and when, not how the machine interleaves it.

mod half;
mod plain;

use crate::support::id;
use crate::support::table::Properties;
use crate::support::{Broker, PATIENCE, Proxy, Raw};
use halfway::amqp::frame;
use halfway::amqp::wire::Write;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Classic ones: a quorum queue of RabbitMQ 3.10 whose node was killed hangs by itself, without any proxy, when it is
/// published to in its first moments.
const QUEUES: [&str; 2] = ["crash-a", "crash-b"];
/// Of so many kills, one is RabbitMQ's: its restart takes seconds.
const KILLS_A_BROKER: u32 = 10;

/// What the environment says of a run.
struct Run {
    seed: u64,
    kills: u32,
}

impl Run {
    /// Reads and prints it.
    fn from_environment(kills: u32) -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
        let seed = number("HALFWAY_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
        println!("HALFWAY_CRASH_SEED={seed}");
        Self { seed, kills: number("HALFWAY_CRASH_KILLS").map_or(kills, |kills| kills as u32) }
    }

    /// Lets so many writers work, each in a thread and with a seed of its own, until all kills are done: what they give
    /// back. A writer ends soon when its flag is set.
    fn go<T: Send>(
        &self,
        broker: &Broker,
        proxy: &mut Proxy,
        writers: u64,
        write: impl Fn(u64, u64, &AtomicBool) -> T + Sync,
    ) -> Vec<T> {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (write, done) = (&write, &done);
            let writers: Vec<_> =
                (0..writers).map(|writer| scope.spawn(move || write(writer, self.seed ^ writer, done))).collect();
            // A failure in here must end the writers too, or the scope waits for them for ever.
            let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.kill(broker, proxy)));
            done.store(true, Ordering::Relaxed);
            let ended = writers.into_iter().map(|writer| writer.join().expect("a writer ends")).collect();
            killed.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            ended
        })
    }

    /// Kills and restarts, at moments that the seed decides.
    fn kill(&self, broker: &Broker, proxy: &mut Proxy) {
        let mut random = fastrand::Rng::with_seed(self.seed);
        for number in 1..=self.kills {
            std::thread::sleep(Duration::from_millis(random.u64(20..500)));
            if number % KILLS_A_BROKER == 0 {
                broker.kill();
                std::thread::sleep(Duration::from_millis(random.u64(0..500)));
                // Sometimes both are gone, and the proxy is back first.
                if random.bool() {
                    proxy.kill();
                    proxy.spawn(&[]);
                }
                broker.resume();
            } else if number % KILLS_A_BROKER == KILLS_A_BROKER / 2 {
                // It answers nothing for longer than a single message waits for it; and then the proxy, perhaps, never hears.
                broker.freeze();
                std::thread::sleep(Duration::from_millis(random.u64(5..300)));
                if random.bool() {
                    proxy.kill();
                    broker.thaw();
                    proxy.spawn(&[]);
                }
                broker.thaw();
            } else {
                proxy.kill();
                proxy.spawn(&[]);
            }
            proxy.wait_for_port();
        }
    }
}

/// Connects again and again, and lets `work` do its work there until `done`. It is told the number of the connection.
fn connect_and_work(port: u16, done: &AtomicBool, mut work: impl FnMut(&mut Raw, u64) -> io::Result<()>) {
    for connection in 0.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let Ok(mut raw) = Raw::try_login(port) else {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        // An error is a crash that this connection has not survived; the ledger says what it knows.
        let _ = work(&mut raw, connection);
    }
}

fn declare_queues(port: u16) {
    let mut raw = Raw::login(port);
    raw.open(1);
    for queue in QUEUES {
        raw.declare(1, queue);
    }
}

/// Sends a method without arguments.
fn say(raw: &mut Raw, channel: u16, id: id::Id) -> io::Result<()> {
    raw.method(channel, id, |_| {})
}

fn answer(raw: &mut Raw, channel: u16, id: id::Id) -> io::Result<()> {
    let frame = raw.read(PATIENCE)?;
    if (frame.channel, frame.id()) == (channel, id) {
        return Ok(());
    }
    Err(io::Error::other(format!("{} in place of {id:?}", crate::support::raw::describe(&frame))))
}

fn open(raw: &mut Raw, channel: u16) -> io::Result<()> {
    raw.method(channel, id::CHANNEL_OPEN, |out| out.put_short_string(b""))?;
    answer(raw, channel, id::CHANNEL_OPEN_OK)
}

fn open_tx(raw: &mut Raw, channel: u16) -> io::Result<()> {
    open(raw, channel)?;
    say(raw, channel, id::TX_SELECT)?;
    answer(raw, channel, id::TX_SELECT_OK)
}

/// A message of `owner`, for one of the two queues in turns: it says whose it is.
fn write_message(out: &mut Vec<u8>, channel: u16, owner: &str, index: u64, properties: &Properties) {
    let queue = QUEUES[(index % 2) as usize];
    write_publish(out, channel, ("", queue), properties, format!("{owner} {index}").as_bytes());
}

fn write_publish(out: &mut Vec<u8>, channel: u16, target: (&str, &str), properties: &Properties, body: &[u8]) {
    frame::write_method(out, channel, id::PUBLISH, |out| {
        out.put_u16(0);
        out.put_short_string(target.0.as_bytes());
        out.put_short_string(target.1.as_bytes());
        out.put_u8(0);
    });
    frame::write_content(out, channel, &properties.encode(body.len() as u64), body, 131_072);
}

/// The first copy of a message.
struct Arrival {
    owner: String,
    index: u64,
    properties: Properties,
}

/// What was in the queues.
struct Arrivals {
    /// The first copies, by queue, in their order.
    firsts: [Vec<Arrival>; 2],
    messages: usize,
    duplicates: usize,
}

impl Arrivals {
    /// Empties the queues. `wrong` gets what must not be, whoever published it: a message without its id or with
    /// another's, a copy that does not say so.
    fn take(port: u16, wrong: &mut Vec<String>) -> Self {
        let mut arrivals = Self { firsts: [Vec::new(), Vec::new()], messages: 0, duplicates: 0 };
        let (mut ids, mut all_ids) = (HashMap::new(), HashSet::new());
        let mut raw = Raw::login(port);
        raw.open(1);
        for (parity, queue) in QUEUES.iter().enumerate() {
            while let Some(content) = raw.get(1, queue) {
                arrivals.messages += 1;
                let text = content.text();
                let (owner, index) = text.rsplit_once(' ').unwrap_or_else(|| panic!("{text:?} is not ours"));
                let index: u64 = index.parse().expect("a number");
                if index % 2 != parity as u64 {
                    wrong.push(format!("{text} is in {queue}"));
                }
                let Some(half_id) = content.properties.header("x-half-id") else {
                    wrong.push(format!("{text} has no x-half-id"));
                    continue;
                };
                let headers = content.properties.header_entries();
                let marked =
                    headers.iter().any(|(key, value)| key == b"x-half-possible-duplicate" && value == b"t\x01");
                match ids.get(&text) {
                    None => {
                        if !all_ids.insert(half_id.clone()) {
                            wrong.push(format!("{text} has the x-half-id of another message"));
                        }
                        let first = Arrival { owner: owner.to_owned(), index, properties: content.properties };
                        arrivals.firsts[parity].push(first);
                        ids.insert(text, half_id);
                    }
                    Some(first) => {
                        arrivals.duplicates += 1;
                        if *first != half_id || !marked {
                            wrong.push(format!("{text} came again, with id {first} then {half_id}, marked: {marked}"));
                        }
                    }
                }
            }
        }
        arrivals
    }

    /// Which messages of each owner came.
    fn by_owner(&self) -> HashMap<&str, HashSet<u64>> {
        let mut owners: HashMap<&str, HashSet<u64>> = HashMap::new();
        for Arrival { owner, index, .. } in self.firsts.iter().flatten() {
            owners.entry(owner).or_default().insert(*index);
        }
        owners
    }
}

/// Fails if anything is wrong, with the beginning of it.
fn assert_right(mut wrong: Vec<String>) {
    let all = wrong.len();
    wrong.truncate(20);
    assert!(wrong.is_empty(), "{all} things are wrong: {wrong:#?}");
}
