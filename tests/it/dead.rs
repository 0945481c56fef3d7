//! Dead letters decided about by hand, on the command line and against a real RabbitMQ.

use crate::support::table::Properties;
use crate::support::{PATIENCE, Proxy, Raw, broker, deadline, transactional, unique, wait_until, with_relay_account};
use serde_json::Value;
use std::process::Output;

const REASON: &[&str] = &["--reason", "by hand"];

/// A proxy with dead letters in it.
struct Stage {
    proxy: Proxy,
    account: String,
    queue: String,
    exchange: String,
}

impl Stage {
    /// Commits to the queue and, `count` times, to an exchange that is deleted before the relay gets there.
    fn new(count: usize) -> Self {
        let (mut proxy, account) = with_relay_account(&[]);
        proxy.resume();
        let (queue, exchange) = (unique("dead"), unique("dead-exchange"));
        let mut raw = transactional(proxy.port, &queue);
        raw.declare_exchange(2, &exchange, "fanout");
        broker().lock_out(&account);
        raw.publish(1, &queue, "alive");
        for number in 1..=count {
            let body = format!("dead {number}");
            let properties = Properties::persistent().text(7, &format!("id-{number}"));
            raw.publish_with(1, (&exchange, b"key"), 0, &properties, body.as_bytes());
        }
        raw.commit(1);
        raw.delete_exchange(2, &exchange);
        broker().let_in(&account);
        let stage = Self { proxy, account, queue, exchange };
        wait_until(deadline(PATIENCE), "the dead letters", || stage.letters().len() == count);
        stage.wait_for_state("dead_lettered");
        // The refusals close the relay's channel, so it may have come more than once.
        let alive = raw.drain(2, &stage.queue);
        assert!(!alive.is_empty() && alive.iter().all(|text| text == "alive"), "{alive:?}");
        stage
    }

    /// Runs `halfway dead`.
    fn dead(&self, arguments: &[&str]) -> Output {
        self.proxy.command(&[&["dead"], arguments].concat())
    }

    /// The same, with an answer in JSON.
    #[track_caller]
    fn done(&self, arguments: &[&str]) -> Value {
        let output = self.dead(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn letters(&self) -> Vec<Value> {
        self.done(&["list"])["items"].as_array().expect("a list").clone()
    }

    fn transaction(&self) -> Value {
        let list = self.proxy.command(&["tx", "list", "--json"]);
        let list: Value = serde_json::from_slice(&list.stdout).expect("JSON");
        let items = list["items"].as_array().expect("a list");
        assert_eq!(items.len(), 1, "{list}");
        let id = items[0]["id"].as_str().expect("an id");
        let shown = self.proxy.command(&["tx", "show", id, "--json"]);
        serde_json::from_slice(&shown.stdout).expect("JSON")
    }

    #[track_caller]
    fn wait_for_state(&self, state: &str) {
        wait_until(deadline(PATIENCE), state, || self.transaction()["state"] == state);
    }

    /// What was done by hand, as the history has it.
    fn by_hand(&self) -> Vec<String> {
        let transaction = self.transaction();
        let history = transaction["history"].as_array().expect("a history");
        let by_hand = history.iter().filter(|event| event["actor"] == "operator local");
        by_hand.map(|it| format!("{}: {}", it["event"].as_str().unwrap(), it["reason"].as_str().unwrap())).collect()
    }

    /// Declares the exchange again, bound to the queue. Goes past the proxy, which may be down.
    fn restore_exchange(&self) -> Raw {
        let mut raw = Raw::login(broker().port);
        raw.open(2);
        raw.declare_exchange(2, &self.exchange, "fanout");
        raw.bind(2, &self.queue, &self.exchange, "");
        raw
    }
}

fn id(letter: &Value) -> &str {
    letter["id"].as_str().expect("an id is a string")
}

#[test]
fn a_retry_is_refused_as_long_as_the_cause_lasts_and_then_delivers_the_same_message() {
    let mut stage = Stage::new(1);
    let [letter] = &stage.letters()[..] else { panic!("one letter") };
    let transaction = stage.transaction()["id"].clone();
    assert_eq!((&letter["transaction"], letter["exchange"].as_str()), (&transaction, Some(stage.exchange.as_str())));
    assert_eq!((letter["routing_key"].as_str(), letter["message_id"].as_str()), (Some("key"), Some("id-1")));
    assert_eq!((&letter["reply_code"], &letter["attempts"]), (&Value::from(404), &Value::from(1)));
    let mut shown = stage.done(&["show", id(letter)]);
    let message = shown.as_object_mut().and_then(|shown| shown.remove("message")).expect("its message");
    assert_eq!((&message["bytes"], &message["properties"][1]["value"]), (&"6".into(), &"id-1".into()), "{message}");
    assert_eq!(&shown, letter, "but for the message, as in the list");
    let table = String::from_utf8(stage.dead(&["list"]).stdout).expect("UTF-8");
    assert!(table.contains(&stage.exchange) && table.contains("NOT_FOUND"), "{table}");

    // The exchange is still gone.
    let again = [&["retry", id(letter)], REASON].concat();
    assert_eq!(stage.done(&again)["transaction"], transaction);
    let attempts = |stage: &Stage| stage.letters().first().map(|letter| letter["attempts"].clone());
    wait_until(deadline(PATIENCE), "a second refusal", || attempts(&stage) == Some(2.into()));
    let [second] = &stage.letters()[..] else { panic!("one letter") };
    assert_eq!((id(second), &second["since"]), (id(letter), &letter["since"]));
    assert_eq!(stage.transaction()["state"], "dead_lettered");

    // It waits over a restart, and is not sent by itself although the exchange is back.
    stage.proxy.kill();
    let mut raw = stage.restore_exchange();
    stage.proxy.resume();
    assert_eq!(attempts(&stage), Some(2.into()));
    assert_eq!(raw.get(2, &stage.queue), None);

    stage.done(&again);
    let message = raw.get_soon(2, &stage.queue);
    assert_eq!(message.text(), "dead 1");
    let half_id = format!("{}/1", transaction.as_str().expect("an id"));
    assert_eq!(message.properties.header("x-half-id"), Some(half_id), "as it would have been the first time");
    let names = message.properties.header_entries();
    assert!(names.iter().any(|(name, _)| name == b"x-half-possible-duplicate"), "{names:?}");
    stage.wait_for_state("delivered");
    assert_eq!(stage.letters().len(), 0);
    assert_eq!(stage.by_hand(), ["retry: message 1: by hand", "retry: message 1: by hand"]);
    assert_eq!(raw.get(2, &stage.queue), None);
    wait_until(deadline(PATIENCE), "the gauges to follow", || {
        let [letters, backlog] = ["halfway_dead_letters", "halfway_backlog_transactions"];
        stage.proxy.metric(letters) == 0.0 && stage.proxy.metric(backlog) == 0.0
    });

    for gone in [&again[..], &["show", id(letter)], &[&["discard", id(letter)], REASON].concat()] {
        let output = stage.dead(gone);
        assert_eq!(output.status.code(), Some(1), "{gone:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("there is no such dead letter"), "{gone:?}: {said}");
    }
}

#[test]
fn a_discarded_letter_is_gone_and_a_retry_outlives_a_kill() {
    let mut stage = Stage::new(3);
    let letters = stage.letters();
    assert_eq!(stage.done(&[&["discard", id(&letters[1])], REASON].concat())["decision"], "discard");
    assert_eq!(stage.letters().len(), 2);
    assert_eq!(stage.transaction()["state"], "dead_lettered");

    let exchange = stage.exchange.clone();
    let all = [&["retry", "--all", "--exchange", exchange.as_str()], REASON].concat();
    let counted = stage.done(&all);
    assert_eq!((&counted["found"], &counted["dry_run"], &counted["retried"]), (&2.into(), &true.into(), &0.into()));
    assert_eq!(stage.done(&[&["retry", "--all", "--exchange", "other"], REASON].concat())["found"], 0);
    assert_eq!(stage.letters().len(), 2, "without --yes nothing is done");

    // What is durable as a retry goes out after a kill, though RabbitMQ was never reached before it.
    broker().lock_out(&stage.account);
    let done = stage.done(&[&all[..], &["--yes"]].concat());
    assert_eq!((&done["found"], &done["retried"]), (&2.into(), &2.into()));
    assert_eq!(stage.letters().len(), 0, "on its way it is nobody else's");
    stage.proxy.kill();
    let mut raw = stage.restore_exchange();
    broker().let_in(&stage.account);
    stage.proxy.resume();
    let bodies = [raw.get_soon(2, &stage.queue).text(), raw.get_soon(2, &stage.queue).text()];
    assert_eq!(bodies, ["dead 1", "dead 3"], "in their order, without the one that was discarded");
    stage.wait_for_state("delivered");
    assert_eq!(raw.get(2, &stage.queue), None);
    let expected = ["discard: message 2: by hand", "retry: message 1: by hand", "retry: message 3: by hand"];
    assert_eq!(stage.by_hand(), expected);
    assert!(stage.proxy.log().contains("halfway::audit"), "the log has who did what");
    let checked = stage.proxy.command(&["store", "check"]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
