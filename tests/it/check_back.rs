//! The check-back before a real RabbitMQ: checkers that answer by AMQP and by HTTP, and such as die in mid-answer. The
//! first half stands on a store alone, the second on a whole proxy.

use crate::support::checker::{HttpChecker, Reply};
use crate::support::child::Process;
use crate::support::{PATIENCE, Proxy, Raw, broker, deadline, free_port, unique, wait_until};
use futures_util::StreamExt;
use halfway::check_back::{CheckBack, CheckMetrics, Parts, queue_exists};
use halfway::config::{Checker, HttpUrl};
use halfway::metrics::Registry;
use halfway::relay::Credentials;
use halfway::store::memory::MemoryStore;
use halfway::store::{Committed, ForSessions, Lane, Named, Origin, Outlet, Outside, Strand, Summary, system_clock};
use halfway::tx::batch::{Batch, HalfMessage};
use halfway::tx::checker::CheckPlan;
use halfway::tx::id::TransactionId;
use halfway::tx::name::TransactionName;
use halfway::tx::state::State;
use halfway::upstream::{Upstream, UpstreamUrl};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use std::collections::BTreeMap;
use std::net::TcpStream;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use uuid::Uuid;

/// A store without a relay: what is committed stays there.
struct Nowhere;

impl Outlet for Nowhere {
    fn committed(&self, _: Vec<Committed>) {}
}

/// A check-back on a store of its own, in front of the shared broker.
pub struct Alone {
    pub runtime: Runtime,
    store: Arc<MemoryStore>,
    parts: Parts,
    running: Option<CheckBack>,
}

impl Alone {
    pub fn start(checkers: &[Checker]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = MemoryStore::new(Arc::new(Nowhere));
        let parts = Parts {
            store: store.clone(),
            upstream: upstream(),
            credentials: credentials(),
            tls: None,
            metrics: CheckMetrics::new(&mut Registry::default()),
            roster: Arc::default(),
            tracer: None,
        };
        let mut alone = Self { runtime, store, parts, running: None };
        let _in_runtime = alone.runtime.enter();
        alone.running = Some(CheckBack::start(checkers, &alone.parts));
        drop(_in_runtime);
        alone
    }

    /// A transaction that is in doubt from now on.
    pub fn doubt(&self, name: &str, checker: &str, first_after: Duration) -> TransactionId {
        let id = TransactionId(Uuid::now_v7());
        let check = CheckPlan { checker: checker.into(), first_after };
        let named =
            Named { name: TransactionName::new(name.as_bytes()).unwrap(), check: Some(check), transactional: false };
        let origin = Origin {
            id,
            user: "guest".into(),
            lane: Lane::new("/".into(), 0),
            strand: Strand(0),
            created_at: system_clock(),
            named: Some(Arc::new(named)),
        };
        let mut batch = Batch::default();
        // basic.publish to the default exchange with routing key "q", and a content header without properties.
        let header = [&[0, 60, 0, 0][..], &4_u64.to_be_bytes(), &[0, 0]].concat();
        batch.push(HalfMessage { publish: b"\0\0\0\x01q\0", header: &header, body: b"body" });
        self.runtime.block_on(self.store.park(origin, batch)).unwrap();
        id
    }

    /// What is known of it, and the reasons in its history.
    pub fn look(&self, id: TransactionId) -> (Summary, Vec<String>) {
        let (summary, history) = self.runtime.block_on(self.store.transaction(id)).unwrap().expect("it is there");
        (summary, history.into_iter().filter_map(|event| event.reason).collect())
    }

    #[track_caller]
    pub fn wait_for(&self, id: TransactionId, state: State) {
        let what = format!("{id} to be {state}");
        wait_until(deadline(PATIENCE), &what, || self.look(id).0.state == state);
    }
}

fn upstream() -> Arc<Upstream> {
    let url = UpstreamUrl { tls: false, host: "127.0.0.1".into(), port: broker().port };
    Arc::new(Upstream::new(vec![url], None, false, Duration::from_secs(5)))
}

fn credentials() -> Credentials {
    Credentials { username: "relay".into(), password: "relay".into() }
}

/// A checker that is asked often and forgives nothing.
fn amqp_checker(queue: &str) -> Checker {
    Checker {
        name: "orders".into(),
        queue: Some(queue.into()),
        interval: Duration::from_millis(200),
        timeout: Duration::from_secs(10),
        ..Checker::default()
    }
}

/// An instance of a producer, that answers questions.
struct Instance {
    connection: Connection,
    channel: Channel,
    /// The transactions that it was asked about, and the correlation-ids.
    asked: Arc<Mutex<Vec<(String, String)>>>,
}

impl Instance {
    /// `answer` says what to do with a question: what to answer, or nothing, and then it stays unacknowledged.
    fn start(runtime: &Runtime, queue: &str, answer: fn(&str) -> Option<&'static str>) -> Self {
        runtime.block_on(async {
            let uri = format!("amqp://guest:guest@127.0.0.1:{}/%2f", broker().port);
            let connection = Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
            let channel = connection.create_channel().await.unwrap();
            channel.queue_declare(queue.into(), QueueDeclareOptions::default(), FieldTable::default()).await.unwrap();
            let options = BasicConsumeOptions::default();
            let mut questions =
                channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await.unwrap();
            let (asked, replies) = (Arc::new(Mutex::new(Vec::new())), channel.clone());
            let keep = Arc::clone(&asked);
            tokio::spawn(async move {
                while let Some(Ok(question)) = questions.next().await {
                    let text: serde_json::Value = serde_json::from_slice(&question.data).expect("JSON");
                    let name = text["transaction"].as_str().expect("a name").to_owned();
                    let correlation = question.properties.correlation_id().clone().expect("a correlation-id");
                    let reply_to = question.properties.reply_to().clone().expect("a reply-to");
                    assert!(question.properties.expiration().is_some());
                    keep.lock().unwrap().push((name.clone(), correlation.to_string()));
                    let Some(word) = answer(&name) else { continue };
                    let body = format!("{{\"decision\":\"{word}\"}}");
                    let properties = BasicProperties::default().with_correlation_id(correlation);
                    let options = BasicPublishOptions::default();
                    replies.basic_publish("".into(), reply_to, options, body.as_bytes(), properties).await.unwrap();
                    question.ack(BasicAckOptions::default()).await.unwrap();
                }
            });
            Self { connection, channel, asked }
        })
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// Ends its connection, and with it what it holds unacknowledged.
    fn kill(&self, runtime: &Runtime) {
        runtime.block_on(self.connection.close(200, "killed".into())).unwrap();
    }
}

#[test]
fn an_amqp_checker_decides() {
    let queue = unique("half-check");
    let alone = Alone::start(&[amqp_checker(&queue)]);
    let instance = Instance::start(&alone.runtime, &queue, |name| {
        Some(if name.starts_with("good") { "commit" } else { "rollback" })
    });
    let good = alone.doubt("good-1", "orders", Duration::ZERO);
    let bad = alone.doubt("bad-1", "orders", Duration::ZERO);
    alone.wait_for(good, State::Committed);
    alone.wait_for(bad, State::RolledBack);
    assert_eq!(instance.asked(), 2);
    assert_eq!(alone.look(good).0.decided_by.as_deref(), Some("checker orders"));
}

#[test]
fn of_two_instances_the_other_answers_when_one_dies_in_mid_answer() {
    let queue = unique("half-check");
    let alone = Alone::start(&[amqp_checker(&queue)]);
    let silent = Instance::start(&alone.runtime, &queue, |_| None);
    let id = alone.doubt("order-1", "orders", Duration::ZERO);
    wait_until(deadline(PATIENCE), "the question", || silent.asked() == 1);
    let other = Instance::start(&alone.runtime, &queue, |_| Some("commit"));
    assert_eq!(other.asked(), 0, "the silent one holds it");
    silent.kill(&alone.runtime);
    alone.wait_for(id, State::Committed);
    assert_eq!(other.asked(), 1);
    let (first, second) = (silent.asked.lock().unwrap()[0].clone(), other.asked.lock().unwrap()[0].clone());
    assert_eq!(first, second, "it is the same question, handed on by RabbitMQ");
}

#[test]
fn a_queue_that_is_not_there_is_no_answer_until_it_is() {
    let queue = unique("half-check");
    let alone = Alone::start(&[amqp_checker(&queue)]);
    let id = alone.doubt("order-1", "orders", Duration::ZERO);
    wait_until(deadline(PATIENCE), "a check", || alone.look(id).0.attempts > 0);
    let (summary, history) = alone.look(id);
    assert_eq!((summary.state, summary.checks_answered), (State::InDoubt, 0));
    assert!(history.iter().any(|reason| reason.contains("NO_ROUTE")), "{history:?}");
    let _instance = Instance::start(&alone.runtime, &queue, |_| Some("commit"));
    alone.wait_for(id, State::Committed);
}

#[test]
fn a_late_answer_is_nobodys() {
    let queue = unique("half-check");
    let checker = Checker { timeout: Duration::from_millis(300), ..amqp_checker(&queue) };
    let alone = Alone::start(&[checker]);
    let silent = Instance::start(&alone.runtime, &queue, |_| None);
    let id = alone.doubt("order-1", "orders", Duration::ZERO);
    wait_until(deadline(PATIENCE), "two questions", || silent.asked() >= 2);
    let asked = silent.asked.lock().unwrap().clone();
    assert_ne!(asked[0].1, asked[1].1, "each attempt has a correlation-id of its own");
    let (summary, history) = alone.look(id);
    assert_eq!((summary.state, summary.checks_answered), (State::InDoubt, 0));
    assert!(history.iter().any(|reason| reason == "no answer: nothing came within 300ms"), "{history:?}");
    drop(silent.channel);
}

#[test]
fn the_connection_is_made_anew_when_it_is_lost() {
    let queue = unique("half-check");
    let account = unique("check-account");
    broker().add_relay_account(&account);
    let mut alone = Alone::start(&[]);
    alone.parts.credentials = Credentials { username: account.clone(), password: account.clone() };
    let in_runtime = alone.runtime.enter();
    let running = CheckBack::start(&[amqp_checker(&queue)], &alone.parts);
    drop(in_runtime);
    alone.running = Some(running);
    let _instance = Instance::start(&alone.runtime, &queue, |_| Some("commit"));
    let first = alone.doubt("order-1", "orders", Duration::ZERO);
    alone.wait_for(first, State::Committed);
    broker().close_connections_of(&account);
    let second = alone.doubt("order-2", "orders", Duration::ZERO);
    alone.wait_for(second, State::Committed);
}

#[test]
fn doctor_finds_the_queue_or_not() {
    let queue = unique("half-check");
    let alone = Alone::start(&[]);
    let look = |queue: &str| {
        let (upstream, credentials) = (upstream(), credentials());
        alone.runtime.block_on(async { queue_exists(upstream, &credentials, "/", queue, PATIENCE).await })
    };
    let missing = look(&queue).expect_err("there is no such queue");
    assert!(missing.contains("NOT_FOUND"), "{missing}");
    let _instance = Instance::start(&alone.runtime, &queue, |_| None);
    assert_eq!(look(&queue), Ok(1));
}

#[test]
fn an_http_checker_decides_at_its_time_and_no_one_is_asked_after_the_end() {
    let server = HttpChecker::start(|_| "{\"decision\":\"commit\"}");
    let url = HttpUrl::try_from(server.url.clone()).unwrap();
    let checker = Checker { name: "orders".into(), url: Some(url), ..Checker::default() };
    let mut alone = Alone::start(&[checker]);
    let begun = Instant::now();
    let id = alone.doubt("order-1", "orders", Duration::from_secs(1));
    alone.wait_for(id, State::Committed);
    let (name, at) = server.asked()[0].clone();
    assert_eq!(name, "order-1");
    assert!(at.duration_since(begun) >= Duration::from_secs(1));
    let running = alone.running.take().expect("it was started");
    alone.runtime.block_on(running.drain(PATIENCE));
    alone.doubt("order-2", "orders", Duration::ZERO);
    // Nothing asks any more: there is no task left that could.
    assert_eq!(server.asked().len(), 1);
}

/// A proxy with one checker, `orders`, that is made of these lines of TOML.
fn proxy_with(checker: &str) -> Proxy {
    Proxy::start_with(broker().port, &[("checker", &format!("[{{ name = 'orders', {checker} }}]"))])
}

/// Publishes in a named transaction, passes the prepare barrier, and dies.
fn publish_and_die(port: u16, queue: &str, name: &str) {
    let runtime = Runtime::new().unwrap();
    let published = runtime.block_on(async {
        let uri = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
        let connection = Connection::connect(&uri, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.tx_select().await?;
        let headers = BTreeMap::from([("x-half-transaction".into(), AMQPValue::LongString(name.into()))]);
        let properties = BasicProperties::default().with_headers(headers.into()).with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        channel.basic_publish("".into(), queue.into(), options, name.as_bytes(), properties).await?;
        channel.tx_select().await?;
        connection.close(200, "".into()).await
    });
    published.expect("it is parked");
}

fn declare(queue: &str) -> Raw {
    let mut raw = Raw::login(broker().port);
    raw.open(1);
    raw.declare(1, queue);
    raw
}

#[test]
fn what_a_dead_producer_left_is_delivered_when_its_checker_knows() {
    let server = HttpChecker::start(|name| match name {
        "good" => "{\"decision\":\"commit\"}",
        _ => "{\"decision\":\"rollback\"}",
    });
    let queue = unique("orders");
    let mut consumer = declare(&queue);
    let proxy = proxy_with(&format!("url = '{}', first_after = '1s'", server.url));
    publish_and_die(proxy.port, &queue, "bad");
    publish_and_die(proxy.port, &queue, "good");
    let published = Instant::now();
    assert_eq!(consumer.get_soon(1, &queue).text(), "good");
    wait_until(deadline(PATIENCE), "both checks", || server.asked().len() == 2);
    let (_, at) = server.asked()[1].clone();
    assert!(at.duration_since(published) >= Duration::from_millis(900), "not before its time");
    assert!(consumer.drain(1, &queue).is_empty());
    assert_eq!(proxy.metric("halfway_checks_total"), 2.0);
}

/// 4,000 transactions of one user's took another's decision from a second to over a minute.
#[test]
fn a_user_with_much_in_doubt_keeps_nobody_waiting() {
    const FLOOD: usize = 200;
    let flooder = unique("flooder");
    broker().add_user(&flooder, [".*", ".*", ".*"]);
    let server = HttpChecker::start(|_| "{\"decision\":\"rollback\"}");
    let proxy = proxy_with(&format!("url = '{}', first_after = '0s', rate = 10", server.url));
    let runtime = Runtime::new().unwrap();
    let flood = runtime.block_on(async {
        let uri = format!("amqp://{flooder}:{flooder}@127.0.0.1:{}/%2f", proxy.port);
        let connection = Connection::connect(&uri, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let mut confirms = Vec::new();
        for number in 0..FLOOD {
            let name = AMQPValue::LongString(format!("flood-{number}").into());
            let headers = BTreeMap::from([("x-half-transaction".into(), name)]);
            let properties = BasicProperties::default().with_headers(headers.into());
            let options = BasicPublishOptions::default();
            confirms.push(channel.basic_publish("".into(), "nowhere".into(), options, b"", properties).await?);
        }
        for confirm in confirms {
            confirm.await?;
        }
        connection.close(200, "".into()).await
    });
    flood.expect("it is parked");
    let before = server.asked().len();
    publish_and_die(proxy.port, "nowhere", "victim");
    let place = || server.asked().iter().position(|(name, _)| name == "victim");
    wait_until(deadline(PATIENCE), "the victim's turn", || place().is_some());
    let place = place().expect("it is there");
    // Some are asked about meanwhile, or under way. At this rate it is one at each look, so the turn has to move on from
    // look to look.
    assert!(place < before + 40 && place + 40 < FLOOD, "asked about as number {place}, with {before} before it came");
}

#[test]
fn the_proxy_asks_competing_instances_by_amqp() {
    let (queue, questions) = (unique("orders"), unique("half-check"));
    let mut consumer = declare(&queue);
    let runtime = Runtime::new().unwrap();
    let silent = Instance::start(&runtime, &questions, |_| None);
    let proxy = proxy_with(&format!("queue = '{questions}', first_after = '0s', timeout = '20s'"));
    publish_and_die(proxy.port, &queue, "order-1");
    wait_until(deadline(PATIENCE), "the question", || silent.asked() == 1);
    let _other = Instance::start(&runtime, &questions, |_| Some("commit"));
    silent.kill(&runtime);
    assert_eq!(consumer.get_soon(1, &queue).text(), "order-1");
}

/// The two pieces of Python in docs/check-back.md, within a program that asks for them: it trusts signed questions only.
const DOCUMENTED: &str = r#"
import sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
SIGNATURE
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        trusted = is_from_halfway(self.headers["X-Half-Signature"], body, b"a secret")
        trusted = trusted and not is_from_halfway(self.headers["X-Half-Signature"], body + b" ", b"a secret")
        self.send_response(200 if trusted else 403)
        self.end_headers()
        self.wfile.write(b'{"decision": "commit"}')
import pika
channel = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", int(sys.argv[1]))).channel()
channel.queue_declare("orders.half-check", auto_delete=True)
look_up = {"by-amqp": "commit"}.get
ANSWER
# Who can be asked by HTTP can be asked by AMQP too.
server = HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
channel.start_consuming()
"#;

#[test]
fn the_checkers_of_the_documents_answer() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/check-back.md")).expect("the page can be read");
    let pieces: Vec<_> = page.split("```python\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let [signature, answer] = pieces[..] else { panic!("the page has two pieces of Python") };
    let (queue, questions, port) = (unique("orders"), unique("half-check"), free_port());
    let program = DOCUMENTED.replace("SIGNATURE", signature).replace("ANSWER", answer);
    let folder = tempfile::tempdir().expect("a folder can be made");
    std::fs::write(folder.path().join("checker.py"), program.replace("orders.half-check", &questions)).expect("a file");
    let mut command = Command::new(root.join(".venv/bin/python"));
    command.arg("checker.py").args([broker().port.to_string(), port.to_string()]);
    let _checker = Process::start(command, folder.path(), "checker.log");

    let mut consumer = declare(&queue);
    let checkers = format!(
        "[{{ name = 'amqp', queue = '{questions}', match = {{ transaction = 'by-amqp' }}, first_after = '0s' }},
          {{ name = 'http', url = 'http://127.0.0.1:{port}/', secret = 'a secret', first_after = '0s' }}]"
    )
    .replace('\n', " ");
    let proxy = Proxy::start_with(broker().port, &[("checker", &checkers)]);
    wait_until(deadline(PATIENCE), "the checker to listen", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    for name in ["by-amqp", "by-http"] {
        publish_and_die(proxy.port, &queue, name);
        assert_eq!(consumer.get_soon(1, &queue).text(), name);
    }
}

#[test]
fn a_restart_keeps_the_schedule_and_the_counts() {
    let server = HttpChecker::start(|_| "{\"decision\":\"unknown\"}");
    let queue = unique("orders");
    declare(&queue);
    let checker =
        format!("url = '{}', first_after = '0s', interval = '3s', max_interval = '3s', max_checks = 2", server.url);
    let mut proxy = proxy_with(&checker);
    publish_and_die(proxy.port, &queue, "order-1");
    wait_until(deadline(PATIENCE), "the first check", || proxy.metric("halfway_checks_total") >= 1.0);
    proxy.kill();
    proxy.resume();
    wait_until(deadline(PATIENCE), "the second check", || server.asked().len() == 2);
    let asked = server.asked();
    assert!(asked[1].1 - asked[0].1 >= Duration::from_millis(2_900), "the restart did not bring it forward");
    wait_until(deadline(PATIENCE), "its end", || proxy.metric("halfway_checks_exhausted_total") >= 1.0);
    assert_eq!(server.asked().len(), 2, "two answers count, one of them before the restart");
}

/// What lapin does on a confirm channel: the confirm says that the message is durable, and the check comes by itself.
#[test]
fn a_half_message_on_a_confirm_channel_is_checked_too() {
    let server = HttpChecker::start(|_| "{\"decision\":\"commit\"}");
    let queue = unique("orders");
    let mut consumer = declare(&queue);
    let proxy = proxy_with(&format!("url = '{}', first_after = '0s'", server.url));
    let runtime = Runtime::new().unwrap();
    let confirmed = runtime.block_on(async {
        let uri = format!("amqp://guest:guest@127.0.0.1:{}/%2f", proxy.port);
        let connection = Connection::connect(&uri, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let headers = BTreeMap::from([("x-half-transaction".into(), AMQPValue::LongString("order-1".into()))]);
        let properties = BasicProperties::default().with_headers(headers.into());
        let options = BasicPublishOptions::default();
        channel.basic_publish("".into(), queue.as_str().into(), options, b"half", properties).await?.await
    });
    assert!(confirmed.expect("a confirm").is_ack());
    assert_eq!(consumer.get_soon(1, &queue).text(), "half");
}

/// Each of them has a checker of its own, and a good one stands beside them.
#[test]
fn checkers_that_misbehave_decide_nothing_and_disturb_no_other() {
    let bad = [
        ("slow", "nothing came within 500ms"),
        ("never", "nothing came within 500ms"),
        ("rubbish", "the connection failed"),
        ("endless", "length limit exceeded"),
        ("status", "the status is 500, not 200"),
        ("redirect", "the status is 302, not 200"),
        ("twice", "the answer is not"),
        ("word", "`yes` is none of"),
    ];
    let server = HttpChecker::start(|name: &str| match name {
        "slow" => Reply::Slow,
        "never" => Reply::Never,
        "rubbish" => Reply::Rubbish,
        "endless" => Reply::Endless,
        "status" => Reply::Status(500),
        "redirect" => Reply::Status(302),
        "twice" => Reply::Body("{\"decision\":\"commit\",\"decision\":\"commit\"}"),
        "word" => Reply::Word("yes"),
        _ => Reply::Word("commit"),
    });
    let checkers: Vec<String> = bad
        .iter()
        .map(|(name, _)| *name)
        .chain(["good"])
        .map(|name| {
            format!(
                "{{ name = '{name}', url = '{}', match = {{ transaction = '{name}' }}, first_after = '0s', \
                 interval = '100ms', max_interval = '200ms', timeout = '500ms', max_checks = 1 }}",
                server.url
            )
        })
        .collect();
    let queue = unique("orders");
    let mut consumer = declare(&queue);
    let proxy = Proxy::start_with(broker().port, &[("checker", &format!("[{}]", checkers.join(", ")))]);
    for (name, _) in bad {
        publish_and_die(proxy.port, &queue, name);
    }
    // More than once: no answer uses up nothing, though `max_checks` is 1.
    let asked = |name: &str| server.asked().iter().filter(|(asked, _)| asked == name).count();
    wait_until(deadline(PATIENCE), "everybody to be asked again", || bad.iter().all(|(name, _)| asked(name) >= 3));
    publish_and_die(proxy.port, &queue, "good");
    assert_eq!(consumer.get_soon(1, &queue).text(), "good");
    let read = |path: &str| -> serde_json::Value {
        let (status, text) = proxy.http(path).unwrap();
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    };
    for (name, reason) in bad {
        let list = read(&format!("/api/transactions?name={name}"));
        let transaction = read(&format!("/api/transactions/{}", list["items"][0]["id"].as_str().unwrap()));
        assert_eq!(transaction["state"], "in_doubt", "{transaction}");
        assert_eq!(transaction["checks_answered"], 0, "{transaction}");
        let history = transaction["history"].as_array().unwrap();
        let said = |event: &serde_json::Value| event["reason"].as_str().is_some_and(|text| text.contains(reason));
        assert!(history.iter().any(said), "{name}: {transaction}");
    }
    assert!(consumer.drain(1, &queue).is_empty());
    assert!(proxy.memory_bytes() < 64 << 20, "an endless answer is not kept");
}
