//! RabbitMQ's yes counts for a moment: what happens when it becomes a no.

use crate::support::raw::{Close, Login};
use crate::support::table::Properties;
use crate::support::{PATIENCE, Proxy, Raw, broker, deadline, id, proxy, transactional, unique, wait_until};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn login(port: u16, user: &str) -> Raw {
    let mut raw = Raw::login_as(port, &Login { user, password: user, ..Login::default() }).unwrap();
    raw.open_tx(1);
    raw
}

/// Publishes and commits; the refusal if there is one.
fn commit(raw: &mut Raw, to: (&str, &str)) -> Result<(), Close> {
    raw.publish_with(1, (to.0, to.1.as_bytes()), 0, &Properties::persistent(), b"body");
    raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
    loop {
        let frame = raw.read(PATIENCE).expect("an answer");
        match frame.id() {
            id::TX_COMMIT_OK => return Ok(()),
            id::CHANNEL_CLOSE => return Err(Close::read(frame.arguments())),
            _ => {}
        }
    }
}

#[test]
fn a_permission_that_is_revoked_while_commits_run_is_noticed() {
    let (user, queue) = (unique("busy"), unique("busy"));
    broker().add_user(&user, [".*", ".*", ".*"]);
    let mut watcher = Raw::login(broker().port);
    watcher.open(1);
    watcher.declare(1, &queue);
    let (mut native, mut halfway) = (login(broker().port, &user), login(proxy().port, &user));
    let over = AtomicBool::new(false);
    let (native, refused) = std::thread::scope(|scope| {
        // Both without a pause, while the permission is revoked and behind that.
        let native = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                commit(&mut native, ("", &queue))?;
            }
            Ok::<_, Close>(())
        });
        let halfway = scope.spawn(|| {
            let until = deadline(2 * PATIENCE);
            while Instant::now() < until {
                commit(&mut halfway, ("", &queue))?;
            }
            Ok::<_, Close>(())
        });
        broker().ctl(&["set_permissions", &user, ".*", "^$", ".*"]);
        let refused = halfway.join().unwrap();
        over.store(true, Ordering::Relaxed);
        (native.join().unwrap(), refused)
    });
    assert_eq!(native, Ok(()), "RabbitMQ's own channel goes by its yes for as long as it is busy");
    let close: Close = refused.expect_err("it is noticed");
    assert_eq!((close.code, close.about), (403, id::PUBLISH), "{close:?}");
    broker().ctl(&["delete_user", &user]);
}

#[test]
fn a_permission_that_is_revoked_while_nobody_commits_is_noticed() {
    let (user, queue) = (unique("silent"), unique("silent"));
    broker().add_user(&user, [".*", ".*", ".*"]);
    let mut raw = login(proxy().port, &user);
    raw.open(2);
    raw.declare(2, &queue);
    commit(&mut raw, ("", &queue)).unwrap();
    broker().ctl(&["set_permissions", &user, ".*", "^$", ".*"]);
    let revoked = Instant::now();
    wait_until(deadline(PATIENCE), "RabbitMQ's channel to fall asleep", || revoked.elapsed() > Duration::from_secs(3));
    let close = commit(&mut raw, ("", &queue)).unwrap_err();
    assert_eq!((close.code, close.about), (403, id::PUBLISH), "{close:?}");
    broker().ctl(&["delete_user", &user]);
}

#[test]
fn an_exchange_that_is_deleted_through_the_proxy_is_gone_for_all() {
    let (queue, exchange) = (unique("deleted"), unique("deleted"));
    let mut raw = transactional(proxy().port, &queue);
    raw.declare_exchange(2, &exchange, "fanout");
    commit(&mut raw, (&exchange, "k")).unwrap();
    let mut other = Raw::login(proxy().port);
    other.open(1);
    other.delete_exchange(1, &exchange);
    let close = commit(&mut raw, (&exchange, "k")).unwrap_err();
    assert_eq!((close.code, close.about), (404, id::PUBLISH), "{close:?}");
}

/// What is deleted behind the proxy's back it learns at the next question: a channel error, or a dead letter, and never
/// silence.
#[test]
fn an_exchange_that_is_deleted_behind_the_proxy_is_never_passed_over_in_silence() {
    let account = format!("'{}'", crate::support::broker::RELAY);
    let own = [("relay.username", account.as_str()), ("relay.password", &account), ("transaction.judgement", "'30s'")];
    let proxy = Proxy::start_with(broker().port, &own);
    let (queue, exchange) = (unique("behind"), unique("behind"));
    let mut raw = transactional(proxy.port, &queue);
    raw.declare_exchange(2, &exchange, "fanout");
    commit(&mut raw, (&exchange, "k")).unwrap();
    let mut other = Raw::login(broker().port);
    other.open(1);
    other.delete_exchange(1, &exchange);
    // Two: a single one may be refused before it is kept.
    raw.publish_with(1, (&exchange, b"k"), 0, &Properties::persistent(), b"body");
    commit(&mut raw, (&exchange, "k")).expect("RabbitMQ's word counts");
    wait_until(deadline(PATIENCE), "the dead letters", || proxy.metric("halfway_dead_letters") == 2.0);
}
