//! SIGHUP: what of a changed configuration counts without a restart, and what is said of the rest.

use halfway::amqp::wire::Write;
use rustix::process::Signal;

use super::support::checker::HttpChecker;
use super::support::id;
use super::support::proxy::Proxy;
use super::support::raw::{Login, Raw};
use super::support::table::{Properties, Table};
use super::support::{PATIENCE, broker, deadline, free_port, transactional, unique, wait_until, with_relay_account};

const DONE: &str = "configuration reloaded";
const REFUSED: &str = "the configuration was not reloaded; the old one stays in force";

/// Changes settings, and waits until the proxy has said something about it once more.
#[track_caller]
fn reload(proxy: &mut Proxy, settings: &[(&str, &str)], said: &str) {
    settings.iter().for_each(|(key, value)| proxy.set(key, value));
    reload_file(proxy, said);
}

/// As [`reload`], with the file as it is.
#[track_caller]
fn reload_file(proxy: &Proxy, said: &str) {
    let before = proxy.log().matches(said).count();
    proxy.signal(Signal::HUP);
    wait_until(deadline(PATIENCE), said, || proxy.log().matches(said).count() > before);
}

fn half(raw: &mut Raw, queue: &str, name: &str, more: &[(&str, &str)]) {
    let table = Table::new().string("x-half-transaction", name);
    let table = more.iter().fold(table, |table, (key, value)| table.string(key, value));
    raw.publish_with(1, ("", queue.as_bytes()), 0, &Properties::persistent().headers(table), name.as_bytes());
}

/// Has a message of a named transaction kept.
#[track_caller]
fn park(raw: &mut Raw, queue: &str, name: &str) {
    half(raw, queue, name, &[]);
    raw.call(1, id::TX_SELECT, id::TX_SELECT_OK, |_| {});
}

#[test]
fn limits_count_for_transactions_that_begin_later() {
    let mut proxy = Proxy::start_with(broker().port, &[("transaction.max_messages", "3")]);
    let queue = unique("limits");
    let mut raw = transactional(proxy.port, &queue);
    raw.publish(1, &queue, "one");
    // The answer tells that the transaction has begun.
    raw.declare(1, &queue);
    reload(&mut proxy, &[("transaction.max_messages", "1")], DONE);
    raw.publish(1, &queue, "two");
    raw.publish(1, &queue, "three");
    raw.commit(1);
    raw.publish(1, &queue, "four");
    raw.publish(1, &queue, "five");
    let close = raw.expect_close(1);
    assert!(close.text.contains("transaction of more than 1 messages"), "{close:?}");
    raw.open(3);
    assert_eq!(raw.get_soon(3, &queue).text(), "one");
    assert_eq!(raw.drain(3, &queue), ["two", "three"]);
}

#[test]
fn the_limit_of_connections_follows_and_cuts_nobody_off() {
    let mut proxy = Proxy::start(broker().port);
    let mut first = Raw::login(proxy.port);
    // Somebody looked whether the port is open.
    wait_until(deadline(PATIENCE), "the first to be alone", || proxy.metric("halfway_connections") == 1.0);
    reload(&mut proxy, &[("listen.max_connections", "1")], DONE);
    assert!(Raw::try_login(proxy.port).is_err());
    reload(&mut proxy, &[("listen.max_connections", "2")], DONE);
    let mut second = Raw::login(proxy.port);
    assert!(Raw::try_login(proxy.port).is_err());
    reload(&mut proxy, &[("listen.max_connections", "1")], DONE);
    first.open(1);
    second.open(1);
    assert!(Raw::try_login(proxy.port).is_err());
    drop(first);
    let queue = unique("limits");
    second.declare(1, &queue);
    wait_until(deadline(PATIENCE), "one to be gone", || proxy.metric("halfway_connections") == 1.0);
    assert!(Raw::try_login(proxy.port).is_err(), "one is one too many still");
    assert!(proxy.stop().success());
}

#[test]
fn what_counts_at_once_and_what_needs_a_restart_is_said() {
    let mut proxy = Proxy::start(broker().port);
    assert!(!proxy.log().contains("DEBUG"), "{}", proxy.log());
    let elsewhere = format!("'127.0.0.1:{}'", free_port());
    let settings = [
        ("log.level", "'info,halfway::session=debug'"),
        ("listen.address", elsewhere.as_str()),
        ("relay.password", "'hidden'"),
        ("store.url", "'sqlite:/nowhere/halfway.db'"),
    ];
    reload(&mut proxy, &settings, DONE);
    let log = proxy.log();
    let line = |text: &str| log.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text}: {log}"));
    assert!(line("key=log.level").contains("to=\"info,halfway::session=debug\""));
    for key in ["listen.address", "store.url"] {
        let line = line(&format!("key={key} "));
        assert!(line.contains("WARN") && line.contains("needs a restart"), "{line}");
    }
    assert!(line("key=relay.password").contains("<redacted>"));
    assert!(!log.contains("hidden"), "{log}");
    assert!(line(DONE).contains("changes=4 waiting_for_restart=2"));
    // The old port answers; what is logged about a client that breaks off is below `info`.
    Raw::login(proxy.port).open(1);
    drop(Raw::dial(proxy.port));
    // Nothing else has changed since; what waits is said once more.
    reload(&mut proxy, &[], DONE);
    assert_eq!(proxy.log().matches("needs a restart").count(), 4);
    assert_eq!(proxy.log().matches("key=log.level").count(), 1);
}

#[test]
fn whatever_is_wrong_everything_stays_as_it_was() {
    let mut proxy = Proxy::start_with(broker().port, &[("transaction.max_messages", "1")]);
    let wrong = [
        ("transaction.max_mesages", "7", "the nearest valid one is `transaction.max_messages`"),
        ("relay.window", "0", "`relay.window`: must be at least 1"),
        ("admin.tokens", "[{ token_file = '/nowhere/token', role = 'viewer' }]", "cannot read /nowhere/token"),
        ("relay.password_file", "'/nowhere/password'", "cannot read /nowhere/password"),
    ];
    for (key, value, reason) in wrong {
        let text = std::fs::read_to_string(proxy.configuration()).expect("it was written");
        // Beside what is wrong there is a change that would be right.
        let right = text.replace("transaction.max_messages = 1\n", "transaction.max_messages = 9\n");
        std::fs::write(proxy.configuration(), format!("{right}{key} = {value}\n")).expect("written");
        reload_file(&proxy, REFUSED);
        assert!(proxy.log().contains(reason), "{}", proxy.log());
        std::fs::write(proxy.configuration(), text).expect("written");
    }
    assert!(!proxy.log().contains(DONE));
    let queue = unique("wrong");
    let mut raw = transactional(proxy.port, &queue);
    raw.publish(1, &queue, "one");
    raw.publish(1, &queue, "two");
    assert!(raw.expect_close(1).text.contains("more than 1 messages"));
    let (status, _) = proxy.http("/api/transactions").expect("the port answers");
    assert_eq!(status, 200, "no token is needed still");
    reload(&mut proxy, &[("transaction.max_messages", "9")], DONE);
}

#[test]
fn a_new_password_of_the_relay_counts_from_its_next_connection() {
    let (mut proxy, account) = with_relay_account(&[("relay.password", "'outdated'")]);
    proxy.resume();
    let queue = unique("rotated");
    let mut raw = transactional(proxy.port, &queue);
    raw.publish(1, &queue, "kept");
    raw.commit(1);
    raw.open(3);
    assert!(raw.get(3, &queue).is_none());
    reload(&mut proxy, &[("relay.password", &format!("'{account}'"))], DONE);
    assert_eq!(raw.get_soon(3, &queue).text(), "kept");
}

#[test]
fn the_next_checkers_take_over_from_those_that_are_gone() {
    let old = HttpChecker::start(|_| "{\"decision\":\"unknown\"}");
    let new = HttpChecker::start(|_| "{\"decision\":\"commit\"}");
    let checker = |name: &str, server: &HttpChecker| {
        format!("[{{ name = '{name}', url = '{}', first_after = '100ms', interval = '200ms' }}]", server.url)
    };
    let mut proxy = Proxy::start_with(broker().port, &[("checker", &checker("old", &old))]);
    let queue = unique("heirs");
    let (early, late) = (unique("early"), unique("late"));
    let mut producer = transactional(proxy.port, &queue);
    park(&mut producer, &queue, &early);
    drop(producer);
    wait_until(deadline(PATIENCE), "the old checker to be asked", || !old.asked().is_empty());
    // This one has begun under the old rules, and is in doubt only when its checker is gone.
    let mut producer = transactional(proxy.port, &queue);
    park(&mut producer, &queue, &late);
    let mut third = transactional(proxy.port, &queue);

    reload(&mut proxy, &[("checker", &checker("new", &new))], DONE);
    let reloaded =
        || proxy.http("/metrics").is_ok_and(|(_, text)| text.contains("reloads_total{result=\"success\"} 1\n"));
    wait_until(deadline(PATIENCE), "the reload to be counted", reloaded);
    let metrics = proxy.http("/metrics").expect("the admin port answers").1;
    assert!(metrics.contains("{checker=\"new\"}") && !metrics.contains("\"old\""), "{metrics}");
    third.open(3);
    assert_eq!(third.get_soon(3, &queue).text(), early);
    drop(producer);
    assert_eq!(third.get_soon(3, &queue).text(), late);
    let names = |server: &HttpChecker| server.asked().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(&new), [early.clone(), late]);
    assert!(names(&old).iter().all(|name| *name == early));
    // A connection that was open before knows the new names, and the old one no more.
    half(&mut third, &queue, &unique("named"), &[("x-half-checker", "new")]);
    third.rollback(1);
    half(&mut third, &queue, &unique("named"), &[("x-half-checker", "old")]);
    let close = third.expect_close(1);
    assert!(close.text.contains("'old', which is not among the configured checkers"), "{close:?}");
}

#[test]
fn a_checker_that_changed_is_asked_where_it_is_now() {
    let silent = HttpChecker::start(|_| "{\"decision\":\"unknown\"}");
    let knows = HttpChecker::start(|_| "{\"decision\":\"commit\"}");
    let at = |server: &HttpChecker| {
        format!("[{{ name = 'orders', url = '{}', first_after = '0s', interval = '200ms' }}]", server.url)
    };
    let mut proxy = Proxy::start_with(broker().port, &[("checker", &at(&silent))]);
    let (queue, name) = (unique("moved"), unique("order"));
    let mut consumer = transactional(proxy.port, &queue);
    consumer.open(3);
    let mut producer = transactional(proxy.port, &queue);
    park(&mut producer, &queue, &name);
    drop(producer);
    wait_until(deadline(PATIENCE), "the checker to be asked", || !silent.asked().is_empty());
    reload(&mut proxy, &[("checker", &at(&knows))], DONE);
    assert_eq!(consumer.get_soon(3, &queue).text(), name);
    assert!(proxy.log().contains("key=checker.orders.url"), "{}", proxy.log());
}

/// RabbitMQ tells a user's limit by ending the connection with one channel too many. Once only: what is known by then is a
/// refusal of the half message, until somebody says that things have changed.
#[test]
fn a_user_with_no_channel_to_spare_loses_one_connection_and_a_reload_tries_again() {
    let proxy = Proxy::start(broker().port);
    let (user, name) = (unique("one-channel"), unique("order"));
    let limit = |channels: u32| {
        broker().ctl(&["set_user_limits", &user, &format!("{{\"max-channels\": {channels}}}")]);
    };
    broker().add_user(&user, [".*", ".*", ".*"]);
    limit(1);
    // RabbitMQ counts a channel that has just gone for a moment yet.
    let open = |port: u16| {
        let login = Login { user: &user, password: &user, ..Login::default() };
        let mut opened = None;
        wait_until(deadline(PATIENCE), "the only channel", || {
            let mut raw = Raw::login_as(port, &login).unwrap();
            raw.method(1, id::CHANNEL_OPEN, |out| out.put_short_string(b"")).unwrap();
            let is_open = raw.read(PATIENCE).is_ok_and(|frame| frame.id() == id::CHANNEL_OPEN_OK);
            opened = is_open.then_some(raw);
            is_open
        });
        opened.unwrap()
    };
    let mut first = open(proxy.port);
    half(&mut first, "anywhere", &name, &[]);
    let close = first.expect_close(0);
    assert!(close.code == 530 && close.text.contains("maximum allowed user limit"), "{close:?}");
    drop(first);

    let mut second = open(proxy.port);
    half(&mut second, "anywhere", &name, &[]);
    let close = second.expect_close(1);
    assert_eq!((close.code, close.about), (506, id::PUBLISH), "{close:?}");
    assert!(close.text.contains(&format!("lets user '{user}' open no more channels")), "{close:?}");
    second.method(1, id::CHANNEL_CLOSE_OK, |_| {}).unwrap();
    drop(second);
    let mut third = open(proxy.port);
    third.call(1, id::TX_SELECT, id::TX_SELECT_OK, |_| {});
    park(&mut third, "anywhere", &name);
    drop(third);

    limit(2);
    reload_file(&proxy, DONE);
    let mut fourth = open(proxy.port);
    fourth.call(1, id::CONFIRM_SELECT, id::CONFIRM_SELECT_OK, |out| out.put_u8(0));
    half(&mut fourth, "anywhere", &name, &[]);
    fourth.expect(1, id::ACK);
    broker().ctl(&["delete_user", &user]);
}
