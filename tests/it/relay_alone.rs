//! The relay without a proxy around it, between a store in memory and a real RabbitMQ: what can't be aimed at from a
//! client's side.

use crate::support::id;
use crate::support::raw::Login;
use crate::support::table::{Properties, Table};
use crate::support::{Broker, PATIENCE, Raw, broker, deadline, unique, wait_until};
use halfway::relay::{Backoff, Credentials, Link, Relay, RelaySettings, find_rights};
use halfway::store::memory::MemoryStore;
use halfway::store::{Commit, Committed, ForSessions, Forwarded, Lane, Origin, Outlet, Strand, Wait, Waiter};
use halfway::tx::batch::{Batch, HalfMessage};
use halfway::tx::id::{Timestamp, TransactionId};
use halfway::upstream::{Upstream, UpstreamUrl};
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use uuid::Uuid;

/// Before what RabbitMQ nacked goes again.
const NACK_PAUSES: [Duration; 2] = [Duration::from_millis(300); 2];

/// After which a connection is left.
const IDLE_AFTER: Duration = Duration::from_millis(500);

/// The relay of the moment: a store keeps its outlet, a process that starts anew has another one.
#[derive(Default)]
struct Outlets(Mutex<Option<Arc<Relay>>>);

impl Outlet for Outlets {
    fn committed(&self, transactions: Vec<Committed>) {
        if let Some(relay) = self.0.lock().unwrap().as_ref() {
            relay.committed(transactions);
        }
    }
}

struct Alone {
    runtime: Runtime,
    outlets: Arc<Outlets>,
    store: Arc<MemoryStore>,
    account: String,
}

impl Alone {
    /// A store without a relay: what is committed now is what an earlier process left behind.
    fn new() -> Self {
        let outlets = Arc::new(Outlets::default());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { runtime, store: MemoryStore::new(outlets.clone()), outlets, account: unique("relay-alone") }
    }

    /// Starts a relay to these ports.
    fn start(&self, ports: &[u16]) -> Arc<Relay> {
        self.start_for(ports, IDLE_AFTER)
    }

    /// The same, and how long its connection stays without work.
    fn start_for(&self, ports: &[u16], idle_after: Duration) -> Arc<Relay> {
        let settings = RelaySettings {
            credentials: Credentials { username: self.account.clone(), password: self.account.clone() },
            window: 100,
            retry: Backoff { initial: Duration::from_millis(20), max: Duration::from_millis(200) },
            nack_pauses: &NACK_PAUSES,
            idle_after,
            confirm_timeout: Duration::from_secs(30),
            keep_unroutable: false,
        };
        let relay = Arc::new(Relay::new(settings, Arc::new(upstream(ports))));
        *self.outlets.0.lock().unwrap() = Some(relay.clone());
        self.runtime.block_on(relay.start(self.store.clone())).unwrap();
        relay
    }

    /// Commits one message to a queue.
    fn commit(&self, vhost: &str, queue: &str, body: &str) -> oneshot::Receiver<Forwarded> {
        self.commit_with(vhost, queue, body, 3, 0)
    }

    /// Commits one message on a lane, with the bits mandatory and immediate.
    fn commit_with(&self, vhost: &str, queue: &str, body: &str, lane: u16, bits: u8) -> oneshot::Receiver<Forwarded> {
        self.commit_of(0, (vhost, queue, body), lane, bits)
    }

    /// The same, of a client channel.
    fn commit_of(
        &self,
        strand: u32,
        (vhost, queue, body): (&str, &str, &str),
        lane: u16,
        bits: u8,
    ) -> oneshot::Receiver<Forwarded> {
        self.commit_publish(strand, vhost, ("", queue), body, lane, bits)
    }

    /// Commits one message to an exchange.
    fn commit_to(&self, exchange: &str, body: &str) -> oneshot::Receiver<Forwarded> {
        self.commit_publish(0, "/", (exchange, ""), body, 3, 0)
    }

    fn commit_publish(
        &self,
        strand: u32,
        vhost: &str,
        (exchange, key): (&str, &str),
        body: &str,
        lane: u16,
        bits: u8,
    ) -> oneshot::Receiver<Forwarded> {
        let mut publish = vec![0, 0];
        for text in [exchange, key] {
            publish.push(text.len() as u8);
            publish.extend_from_slice(text.as_bytes());
        }
        publish.push(bits);
        let header = Properties::persistent().encode(body.len() as u64);
        let mut batch = Batch::default();
        batch.push(HalfMessage { publish: &publish, header: &header, body: body.as_bytes() });
        let (sender, receiver) = Waiter::pair(Wait::new(bits & 1 != 0));
        let origin = Origin {
            id: TransactionId(Uuid::now_v7()),
            user: "guest".into(),
            lane: Lane::new(vhost.into(), lane),
            strand: Strand(strand),
            created_at: Timestamp(0),
            named: None,
        };
        let commit = Commit { origin, batch, parked: false, forwarded: Some(sender) };
        self.runtime.block_on(self.store.commit(commit)).unwrap();
        receiver
    }

    fn wait_for_empty_store(&self) {
        wait_until(deadline(PATIENCE), "everything to be delivered", || self.store.backlog() == 0);
    }
}

fn upstream(ports: &[u16]) -> Upstream {
    let url = |port: &u16| UpstreamUrl { tls: false, host: "127.0.0.1".into(), port: *port };
    Upstream::new(ports.iter().map(url).collect(), None, false, Duration::from_secs(5))
}

fn link(relay: &Relay, vhost: &str) -> Option<Link> {
    relay.status().snapshot().into_iter().find(|it| &*it.vhost == vhost).map(|it| it.link)
}

/// A connection with an empty queue on channel 1.
fn reader(broker: &Broker, vhost: &str, queue: &str) -> Raw {
    let mut raw = Raw::login_as(broker.port, &Login { vhost, ..Login::default() }).unwrap();
    raw.open(1);
    raw.declare(1, queue);
    raw
}

/// The number that each of `count` messages begins with, and whether it says that it may be a duplicate.
fn arrivals(raw: &mut Raw, queue: &str, count: usize) -> Vec<(usize, bool)> {
    raw.consume(1, queue, "reader", true);
    let mut arrival = || {
        let content = raw.expect_content(1, id::DELIVER);
        let flagged = content.properties.header_entries().iter().any(|(name, _)| name == b"x-half-possible-duplicate");
        (content.text().trim_end_matches('.').parse().unwrap(), flagged)
    };
    (0..count).map(|_| arrival()).collect()
}

#[test]
fn a_backlog_and_a_flood_leave_in_one_order_without_a_gap_or_a_duplicate() {
    const BACKLOG: usize = 500;
    const COUNT: usize = 6000;
    let (alone, queue) = (Alone::new(), unique("alone-order"));
    let mut raw = reader(broker(), "/", &queue);
    let relay = alone.start(&[broker().port]);
    // The account is not there yet, so RabbitMQ refuses it.
    let padding = ".".repeat(8 << 10);
    for number in 0..BACKLOG {
        drop(alone.commit("/", &queue, &number.to_string()));
    }
    wait_until(deadline(PATIENCE), "the refusal to be known", || {
        matches!(link(&relay, "/"), Some(Link::Refused(403, _)))
    });
    broker().add_relay_account(&alone.account);
    // More than the relay keeps in memory, faster than RabbitMQ takes it.
    let receivers: Vec<_> = (BACKLOG..COUNT)
        .map(|number| alone.commit_with("/", &queue, &format!("{number}{padding}"), 3, MANDATORY))
        .collect();
    let expected: Vec<_> = (0..COUNT).map(|number| (number, false)).collect();
    assert_eq!(arrivals(&mut raw, &queue, COUNT), expected);
    alone.wait_for_empty_store();
    for receiver in receivers {
        assert_eq!(alone.runtime.block_on(receiver), Ok(Forwarded::default()), "nobody is forgotten on the way");
    }
    assert!(matches!(link(&relay, "/"), Some(Link::Connected | Link::Idle)));
    alone.runtime.block_on(relay.drain(PATIENCE));
    assert_eq!(raw.get(1, &queue), None);
}

#[test]
fn what_an_earlier_process_left_may_be_a_duplicate_and_what_is_new_is_not() {
    let (alone, queue) = (Alone::new(), unique("alone-restart"));
    let mut raw = reader(broker(), "/", &queue);
    broker().add_relay_account(&alone.account);
    for number in 0..3 {
        drop(alone.commit("/", &queue, &number.to_string()));
    }
    let relay = alone.start(&[broker().port]);
    drop(alone.commit("/", &queue, "3"));
    assert_eq!(arrivals(&mut raw, &queue, 4), [(0, true), (1, true), (2, true), (3, false)]);
    alone.runtime.block_on(relay.drain(PATIENCE));
}

/// Connections and channels of an account.
fn connections(account: &str) -> (usize, usize) {
    let count = |what: &str| broker().ctl(&[what, "-q", "user"]).lines().filter(|line| line.trim() == account).count();
    (count("list_connections"), count("list_channels"))
}

#[test]
fn a_connection_is_there_when_it_is_needed_with_the_channels_that_are() {
    let (alone, queue) = (Alone::new(), unique("alone-idle"));
    let mut raw = reader(broker(), "/", &queue);
    broker().add_relay_account(&alone.account);
    let relay = alone.start(&[broker().port]);
    let mut expected = Vec::new();
    for round in 0..3 {
        for lane in 0..=round {
            let number = expected.len();
            let told = alone.commit_with("/", &queue, &number.to_string(), lane, 0);
            assert_eq!(alone.runtime.block_on(told), Ok(Forwarded::default()), "the first one does not wait long");
            expected.push((number, false));
        }
        wait_until(deadline(PATIENCE), "the relay to leave", || link(&relay, "/") == Some(Link::Idle));
        wait_until(deadline(PATIENCE), "RabbitMQ to have noticed", || connections(&alone.account) == (0, 0));
    }
    assert_eq!(arrivals(&mut raw, &queue, expected.len()), expected);
    alone.runtime.block_on(relay.drain(PATIENCE));
    // One that is there has the channels that were needed.
    let relay = alone.start_for(&[broker().port], PATIENCE * 10);
    for (lane, channels) in [(5, 1), (2, 2), (5, 2)] {
        drop(alone.commit_with("/", &queue, "more", lane, 0));
        wait_until(deadline(PATIENCE), "the channels", || connections(&alone.account) == (1, channels));
    }
    alone.runtime.block_on(relay.drain(PATIENCE));
}

#[test]
fn copies_in_a_queue_beside_one_that_is_full_are_as_few_as_the_tries() {
    let (alone, exchange) = (Alone::new(), unique("alone-fanout"));
    let (full, good) = (unique("alone-fanout-full"), unique("alone-fanout-good"));
    let mut raw = reader(broker(), "/", &good);
    let limits = Table::new().entry("x-max-length", b'I', &[0, 0, 0, 1]).string("x-overflow", "reject-publish");
    raw.declare_with(1, &full, limits);
    raw.publish(1, &full, "fills it");
    raw.declare_exchange(1, &exchange, "fanout");
    raw.bind(1, &good, &exchange, "");
    raw.bind(1, &full, &exchange, "");
    // RabbitMQ's own transaction makes one copy, and its client is told.
    let mut native = Raw::login(broker().port);
    native.open_tx(1);
    native.publish_with(1, (&exchange, b""), 0, &Properties::persistent(), b"native");
    native.method(1, id::TX_COMMIT, |_| {}).unwrap();
    assert_eq!(native.expect_close(1).code, 406);
    assert_eq!(raw.drain(1, &good), ["native"]);

    broker().add_relay_account(&alone.account);
    let relay = alone.start(&[broker().port]);
    drop(alone.commit_to(&exchange, "0"));
    wait_until(deadline(PATIENCE), "the status to tell of it", || {
        let refused = relay.status().snapshot().pop().and_then(|vhost| vhost.refused);
        refused.is_some_and(|refused| refused.exchange == exchange && (refused.channels, refused.messages) == (1, 1))
    });
    alone.wait_for_empty_store();
    let letters = alone.store.letters();
    assert_eq!((letters.len(), letters[0].0.reply_code), (1, 406), "the code that RabbitMQ's own client gets");
    assert_eq!(raw.drain(1, &good), ["0"; 1 + NACK_PAUSES.len()]);
    assert_eq!(relay.status().snapshot()[0].refused, None);
    alone.runtime.block_on(relay.drain(PATIENCE));
}

#[test]
fn a_virtual_host_that_is_not_there_troubles_no_other() {
    let (alone, queue, vhost) = (Alone::new(), unique("alone-vhost"), unique("vhost-of-test"));
    let mut raw = reader(broker(), "/", &queue);
    broker().add_relay_account(&alone.account);
    let relay = alone.start(&[broker().port]);
    let missing = alone.commit_with(&vhost, &queue, "0", 3, MANDATORY);
    drop(alone.commit("/", &queue, "1"));
    assert_eq!(arrivals(&mut raw, &queue, 1), [(1, false)]);
    wait_until(deadline(PATIENCE), "the refusal", || matches!(link(&relay, &vhost), Some(Link::Refused(530, _))));
    wait_until(deadline(PATIENCE), "the other to be delivered", || alone.store.backlog() == 1);

    broker().add_vhost(&vhost);
    let mut raw = reader(broker(), &vhost, &queue);
    broker().ctl(&["set_permissions", "-p", &vhost, &alone.account, "^$", ".*", "^$"]);
    assert_eq!(arrivals(&mut raw, &queue, 1), [(0, false)]);
    assert_eq!(alone.runtime.block_on(missing), Ok(Forwarded::default()));
    alone.runtime.block_on(relay.drain(PATIENCE));
}

#[test]
fn a_node_that_accepts_and_says_nothing_sensible_is_passed_over() {
    let (alone, queue) = (Alone::new(), unique("alone-nodes"));
    let mut raw = reader(broker(), "/", &queue);
    broker().add_relay_account(&alone.account);
    let rubbish = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = rubbish.local_addr().unwrap().port();
    std::thread::spawn(move || rubbish.incoming().for_each(drop));
    let relay = alone.start(&[port, broker().port]);
    drop(alone.commit("/", &queue, "0"));
    assert_eq!(arrivals(&mut raw, &queue, 1), [(0, false)]);
    alone.runtime.block_on(relay.drain(PATIENCE));
}

/// It may come back, so it is waited for although the relay can't send.
const MANDATORY: u8 = 1;
/// RabbitMQ answers 540 to it, and closes the connection.
const IMMEDIATE: u8 = 2;

#[test]
fn a_channel_whose_messages_cost_the_connection_costs_the_others_one() {
    let (alone, queue) = (Alone::new(), unique("alone-suspects"));
    let mut raw = reader(broker(), "/", &queue);
    broker().add_relay_account(&alone.account);
    let relay = alone.start(&[broker().port]);
    raw.consume(1, &queue, "reader", true);
    let mut seen = BTreeSet::new();
    // 15 poisonous ones, all of one client channel, among those of everybody else.
    for number in 0..300 {
        let poisonous = number % 20 == 7;
        let (strand, lane, bits) = if poisonous { (1000, 1, IMMEDIATE) } else { (number, (number % 3) as u16, 0) };
        let text = number.to_string();
        drop(alone.commit_of(strand, ("/", &queue, &text), lane, bits));
        // Each is there before the next one goes.
        while !poisonous && !seen.contains(&text) {
            seen.insert(raw.expect_content(1, id::DELIVER).text());
        }
    }
    assert_eq!(seen.len(), 285);
    alone.wait_for_empty_store();
    let letters = alone.store.letters();
    assert_eq!(letters.len(), 15);
    assert!(letters.iter().all(|(letter, _)| letter.reply_code == 540));
    assert_eq!(relay.status().snapshot()[0].reconnects, 1);
    alone.runtime.block_on(relay.drain(PATIENCE));
}

#[test]
fn a_message_that_costs_the_connection_each_time_is_found_and_given_up() {
    let (alone, queue) = (Alone::new(), unique("alone-poison"));
    let mut raw = reader(broker(), "/", &queue);
    broker().add_relay_account(&alone.account);
    // All of them are there when the relay starts, on two lanes; RabbitMQ answers 540 to one, and closes the connection.
    for number in 0..20 {
        let bits = if number == 7 { IMMEDIATE } else { 0 };
        drop(alone.commit_with("/", &queue, &number.to_string(), number % 2, bits));
    }
    let relay = alone.start(&[broker().port]);
    alone.wait_for_empty_store();
    let mut numbers: Vec<usize> = raw.drain(1, &queue).iter().map(|text| text.parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (0..20).filter(|number| *number != 7).collect::<Vec<_>>());
    let letters = alone.store.letters();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].0.reply_code, 540);
    alone.runtime.block_on(relay.drain(PATIENCE));
}

#[test]
fn each_try_with_a_queue_that_stays_full_makes_a_copy_and_there_are_few() {
    let (alone, full, good, dead) =
        (Alone::new(), unique("alone-full"), unique("alone-good"), unique("alone-overflow"));
    let mut raw = reader(broker(), "/", &dead);
    raw.declare(1, &good);
    let limits = Table::new()
        .entry("x-max-length", b'I', &[0, 0, 0, 1])
        .string("x-overflow", "reject-publish-dlx")
        .string("x-dead-letter-exchange", "")
        .string("x-dead-letter-routing-key", dead.as_str());
    raw.declare_with(1, &full, limits);
    raw.publish(1, &full, "fills it");
    broker().add_relay_account(&alone.account);
    let relay = alone.start(&[broker().port]);
    drop(alone.commit("/", &full, "0"));
    wait_until(deadline(PATIENCE), "the status to tell of it", || {
        let refused = relay.status().snapshot().pop().and_then(|vhost| vhost.refused);
        refused.is_some_and(|refused| refused.routing_key == full && refused.messages == 1)
    });
    drop(alone.commit("/", &good, "1"));
    assert_eq!(arrivals(&mut raw, &good, 1), [(1, false)], "the lane goes on");
    alone.wait_for_empty_store();
    let letters = alone.store.letters();
    assert_eq!((letters.len(), letters[0].0.reply_code), (1, 406));
    assert!(letters[0].0.reply_text.contains("nacked it 3 times"), "{}", letters[0].0.reply_text);
    assert_eq!(raw.drain(1, &dead), ["0", "0", "0"]);
    alone.runtime.block_on(relay.drain(PATIENCE));
}

#[test]
fn after_a_drain_each_message_is_in_one_place() {
    const COUNT: usize = 2000;
    let (alone, queue) = (Alone::new(), unique("alone-drain"));
    let mut raw = reader(broker(), "/", &queue);
    broker().add_relay_account(&alone.account);
    let relay = alone.start(&[broker().port]);
    for number in 0..COUNT {
        drop(alone.commit("/", &queue, &number.to_string()));
    }
    alone.runtime.block_on(relay.drain(PATIENCE));
    assert_eq!(raw.drain(1, &queue).len() + alone.store.backlog(), COUNT);
}

#[test]
fn the_probe_tells_what_an_account_lacks() {
    let (upstream, runtime) = (upstream(&[broker().port]), Runtime::new().unwrap());
    let probe = |user: &str, password: &str, vhost: &str| {
        let credentials = Credentials { username: user.into(), password: password.into() };
        runtime.block_on(find_rights(&upstream, &credentials, vhost, 3))
    };
    let names = [unique("probed"), unique("probed"), unique("probed"), unique("probed")];
    let [fit, plain, no_default, nothing] = names.each_ref().map(String::as_str);
    broker().add_relay_account(fit);
    broker().add_user(plain, ["^$", ".*", "^$"]);
    broker().add_user(no_default, ["^$", "^amq\\.topic$", "^$"]);
    broker().add_user(nothing, ["^$", "^$", "^$"]);
    for (user, may_write_to_queues, impersonator) in
        [(fit, true, Some(true)), (plain, true, Some(false)), (no_default, false, Some(false)), (nothing, false, None)]
    {
        let report = probe(user, user, "/").unwrap();
        assert_eq!((report.may_write_to_queues, report.impersonator), (may_write_to_queues, impersonator), "{user}");
        assert_eq!(report.channels, 3);
    }
    broker().ctl(&["set_user_limits", fit, "{\"max-channels\": 2}"]);
    assert_eq!(probe(fit, fit, "/").unwrap().channels, 2);
    let refused = |user, password, vhost| probe(user, password, vhost).unwrap_err().to_string();
    assert!(refused(fit, "wrong", "/").contains("403 ACCESS_REFUSED"));
    assert!(refused(fit, fit, "nowhere").contains("530 NOT_ALLOWED"));
}
