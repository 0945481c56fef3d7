//! What fails, and what then: each row of the table in docs/operations.md, provoked for real.

use crate::support::id;
use crate::support::raw::Login;
use crate::support::table::{Properties, Table};
use crate::support::{
    Broker, PATIENCE, Proxy, Raw, broker, deadline, transactional, unique, wait_until, with_relay_account,
};
use std::io::ErrorKind;
use std::process::Command;
use std::time::{Duration, Instant};

/// A proxy with an account of its own for its relay, not started yet, and the account's name.
fn prepared(settings: &[(&str, &str)]) -> (Proxy, String) {
    let quick = [("transaction.forward_wait", "'100ms'")];
    with_relay_account(&[&quick, settings].concat())
}

#[test]
fn a_killed_proxy_keeps_what_was_committed_and_nothing_else() {
    let (mut proxy, account) = prepared(&[]);
    proxy.resume();
    let queue = unique("fault-killed");
    broker().lock_out(&account);
    let mut raw = transactional(proxy.port, &queue);
    raw.publish(1, &queue, "committed");
    raw.commit(1);
    raw.publish(1, &queue, "rolled back");
    raw.rollback(1);
    raw.publish(1, &queue, "not decided");
    // What is this large has been parked in the store, undecided.
    for _ in 0..8 {
        raw.publish(1, &queue, vec![b'x'; 1 << 20]);
    }
    raw.call(2, id::CHANNEL_FLOW, id::CHANNEL_FLOW_OK, |out| out.push(1));
    proxy.kill();
    assert!(raw.read(PATIENCE).is_err_and(|error| error.kind() != ErrorKind::TimedOut));
    broker().let_in(&account);
    proxy.resume();
    let mut raw = transactional(proxy.port, &queue);
    assert_eq!(raw.get_soon(2, &queue).text(), "committed");
    raw.publish(1, &queue, "later");
    raw.commit(1);
    assert_eq!(raw.get_soon(2, &queue).text(), "later");
    assert_eq!(raw.get(2, &queue), None);
}

#[test]
fn without_rabbitmq_a_connection_ends_in_its_handshake_and_the_proxy_lives() {
    let mut own = Proxy::prepare(crate::support::free_port(), &[]);
    own.spawn(&[]);
    own.wait_for_port();
    let begin = Instant::now();
    assert!(Raw::try_login(own.port).is_err_and(|error| error.kind() != ErrorKind::TimedOut));
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    assert!(own.runs());
    assert_eq!(own.http("/healthz").expect("the admin port answers").0, 200);
    assert_eq!(own.http("/readyz").expect("the admin port answers").0, 503);
}

#[test]
fn a_frozen_rabbitmq_stops_its_own_sessions_and_the_proxy_answers() {
    let own = Broker::start();
    let proxy = Proxy::start(own.port);
    let mut raw = transactional(proxy.port, "fault-frozen");
    raw.publish(1, "fault-frozen", "body");
    own.freeze();
    raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
    assert_eq!(raw.transcript(Duration::from_secs(1)), ["silence"]);
    assert_eq!(proxy.http("/healthz").expect("the admin port answers").0, 200);
    own.thaw();
    raw.expect(1, id::TX_COMMIT_OK);
    assert_eq!(raw.get_soon(2, "fault-frozen").text(), "body");
}

/// Commits one message of `size` bytes; the reply code if that failed. The channel is open again afterwards.
fn try_commit(raw: &mut Raw, queue: &str, body: Vec<u8>) -> Result<(), u16> {
    raw.publish(1, queue, body);
    raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
    let frame = raw.read(PATIENCE).expect("a commit is answered");
    match frame.id() {
        id::TX_COMMIT_OK => Ok(()),
        id::CHANNEL_CLOSE => {
            raw.method(1, id::CHANNEL_CLOSE_OK, |_| {}).unwrap();
            raw.open_tx(1);
            Err(crate::support::raw::Close::read(frame.arguments()).code)
        }
        other => panic!("{other:?}"),
    }
}

/// Commits until the store can't any more, makes room with `heal`, and looks what has become of everything.
fn fill_and_heal(proxy: &Proxy, account: &str, expected_code: u16, heal: impl FnOnce()) {
    let queue = unique("fault-full");
    broker().lock_out(account);
    let mut raw = transactional(proxy.port, &queue);
    let body = |number: usize| [format!("{number} ").into_bytes(), vec![b'x'; 60_000]].concat();
    let mut committed = Vec::new();
    let mut number = 0;
    let code = loop {
        match try_commit(&mut raw, &queue, body(number)) {
            Ok(()) => committed.push(number),
            Err(code) => break code,
        }
        number += 1;
        assert!(number < 2000, "the store takes more than there is room for");
    };
    assert_eq!(code, expected_code);
    assert!(!committed.is_empty());
    // The connection and its other channels work on.
    raw.call(2, id::CHANNEL_FLOW, id::CHANNEL_FLOW_OK, |out| out.push(1));
    heal();
    wait_until(deadline(PATIENCE), "commits to succeed again", || {
        number += 1;
        let done = try_commit(&mut raw, &queue, body(number)).is_ok();
        if done {
            committed.push(number);
        }
        done
    });
    broker().let_in(account);
    for number in committed {
        let text = raw.get_soon(2, &queue).text();
        assert_eq!(text.split(' ').next(), Some(number.to_string().as_str()));
    }
    assert_eq!(raw.get(2, &queue), None, "what was refused never comes");
}

/// A folder on a small disk of its own, in a mount namespace of the process that the shell then becomes. Seen from
/// outside, it lies under `/proc/PID/root`.
const SMALL_DISK: &[&str] = &[
    "unshare",
    "--map-root-user",
    "--mount",
    "sh",
    "-c",
    r#"mount -t tmpfs -o size=3m none "$0" && dd if=/dev/zero of="$0/filler" bs=1k count=1024 2>/dev/null && exec "$@""#,
];

#[test]
fn a_full_disk_fails_commits_and_passes() {
    let disk = tempfile::tempdir().expect("a folder can be made");
    let url = format!("'sqlite:{}'", disk.path().join("halfway.db").display());
    let (mut proxy, account) = prepared(&[("store.url", &url)]);
    let folder = disk.path().to_str().expect("a path in UTF-8");
    proxy.spawn(&[SMALL_DISK, &[folder]].concat());
    proxy.wait_for_port();
    let filler = format!("/proc/{}/root{folder}/filler", proxy.process_id());
    fill_and_heal(&proxy, &account, 506, || std::fs::remove_file(filler).expect("the filler can be removed"));
}

#[test]
fn an_io_error_fails_commits_and_passes() {
    let (mut proxy, account) = prepared(&[]);
    // A limit for the size of files fails writes with EFBIG, if nobody dies of the signal that comes with it.
    proxy.spawn(&["sh", "-c", r#"trap '' XFSZ; exec "$0" "$@""#]);
    proxy.wait_for_port();
    let process = proxy.process_id().to_string();
    let limit = |bytes: &str| {
        let fsize = format!("--fsize={bytes}:unlimited");
        let status = Command::new("prlimit").args(["--pid", &process, &fsize]).status();
        assert!(status.expect("prlimit is there").success());
    };
    limit("1000000");
    fill_and_heal(&proxy, &account, 541, || limit("unlimited"));
}

/// Commits were answered, and lost with the process.
#[test]
fn a_store_that_is_deleted_takes_no_commits() {
    let (mut proxy, account) = prepared(&[]);
    proxy.resume();
    let queue = unique("fault-deleted");
    broker().lock_out(&account);
    let mut raw = transactional(proxy.port, &queue);
    raw.publish(1, &queue, "before");
    raw.commit(1);
    let path = proxy.folder().join("halfway.db");
    std::fs::remove_file(&path).expect("it is there");
    assert_eq!(try_commit(&mut raw, &queue, b"lost".to_vec()), Err(541));
    wait_until(deadline(PATIENCE), "word of it", || {
        let (_, body) = proxy.http("/readyz").expect("the admin port answers");
        body.contains("deleted, moved or replaced")
    });
    broker().let_in(&account);
    assert_eq!(raw.get_soon(2, &queue).text(), "before", "what was committed is forwarded all the same");
    // Two: a single message needs no store while RabbitMQ takes it.
    raw.publish(1, &queue, "lost");
    assert_eq!(try_commit(&mut raw, &queue, b"lost".to_vec()), Err(541));
    assert!(!path.exists(), "nothing is made in its place");
    proxy.kill();
    proxy.resume();
    let mut raw = transactional(proxy.port, &queue);
    assert_eq!(try_commit(&mut raw, &queue, b"after".to_vec()), Ok(()));
    assert_eq!(raw.get_soon(2, &queue).text(), "after");
    assert_eq!(raw.get(2, &queue), None);
}

#[test]
fn a_store_past_its_size_blocks_publishers_of_transactions() {
    let (mut proxy, account) = prepared(&[("store.max_size", "'2MiB'"), ("transaction.max_size", "'1MiB'")]);
    proxy.resume();
    let queue = unique("fault-max-size");
    broker().lock_out(&account);
    let mut raw = transactional(proxy.port, &queue);
    let mut sent = 0;
    loop {
        raw.publish(1, &queue, format!("{sent} {}", "x".repeat(60_000)));
        raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
        sent += 1;
        let frame = raw.read(PATIENCE).expect("a commit is answered, or the client is told to wait");
        if frame.id() == id::BLOCKED {
            break;
        }
        assert_eq!(frame.id(), id::TX_COMMIT_OK);
        assert!(sent < 500, "nothing blocks");
    }
    broker().let_in(&account);
    // The relay makes room; then everything that was asked for is done.
    let mut seen = vec![raw.read(PATIENCE).unwrap().id(), raw.read(PATIENCE).unwrap().id()];
    seen.sort();
    if seen[0] != id::UNBLOCKED {
        panic!("{seen:?}");
    }
    for number in 0..sent {
        assert!(raw.get_soon(2, &queue).text().starts_with(&format!("{number} ")));
    }
}

/// It once was read no more from its first publish on: what it had open in the store was never decided, and the store never
/// had room again.
#[test]
fn whoever_has_something_in_a_full_store_decides_it() {
    let limits = [
        ("store.max_size", "'8MiB'"),
        ("store.max_size_per_user", "'8MiB'"),
        ("transaction.memory", "'64KiB'"),
        ("transaction.max_size", "'1MiB'"),
    ];
    let (mut proxy, account) = prepared(&limits);
    proxy.resume();
    let queue = unique("fault-full");
    broker().lock_out(&account);
    let mut owner = transactional(proxy.port, &queue);
    let large = "x".repeat(100_000);
    for channel in [1, 3, 4] {
        if channel != 1 {
            owner.open_tx(channel);
        }
        owner.publish(channel, &queue, format!("{channel} {large}"));
    }
    let mut others = transactional(proxy.port, &queue);
    loop {
        others.publish(1, &queue, &large);
        others.method(1, id::TX_COMMIT, |_| {}).unwrap();
        if others.read(PATIENCE).expect("an answer").id() == id::BLOCKED {
            break;
        }
    }
    wait_until(deadline(PATIENCE), "word of it", || proxy.metric("halfway_store_full") == 1.0);
    // What is rolled back here is less than what has to go before there is room again.
    // What has nothing in the store waits, what has something is refused; and all that decides is read behind both.
    owner.open_tx(5);
    owner.publish(5, &queue, "waits");
    assert_eq!(owner.read(PATIENCE).expect("word of it").id(), id::BLOCKED);
    owner.method(5, id::TX_COMMIT, |_| {}).unwrap();
    owner.publish(4, &queue, "too much");
    let close = owner.expect_close(4);
    assert!(close.code == 506 && close.text.contains("store.max_size"), "{close:?}");
    owner.commit(1);
    owner.rollback(3);
    owner.publish(3, &queue, "dropped");
    owner.rollback(3);
    owner.open(6);
    assert_eq!(owner.get(6, &queue), None);
    broker().let_in(&account);
    // The relay makes room; then what waits goes on.
    let mut seen = [(); 2].map(|()| owner.read(PATIENCE).expect("room").id());
    seen.sort_unstable();
    assert_eq!(seen, [id::UNBLOCKED, id::TX_COMMIT_OK]);
    let mut bodies: Vec<String> = Vec::new();
    wait_until(deadline(PATIENCE), "all of it", || {
        bodies.extend(owner.drain(6, &queue));
        bodies.iter().any(|body| body == "waits")
    });
    assert_eq!(bodies.iter().filter(|body| body.starts_with("1 ")).count(), 1);
    assert!(!bodies.iter().any(|body| body.starts_with("3 ") || body.starts_with("4 ") || body == "dropped"));
}

/// One user in doubt with 24 MB once blocked everybody else, and still did after a restart.
#[test]
fn a_user_who_has_filled_a_share_of_the_store_holds_up_nobody_else() {
    let (mut proxy, _) = prepared(&[("store.max_size", "'16MiB'"), ("transaction.max_size", "'8MiB'")]);
    proxy.resume();
    let (hog, queue) = (unique("fault-hog"), unique("fault-share"));
    broker().add_user(&hog, [".*", ".*", ".*"]);
    let login = Login { user: &hog, password: &hog, ..Login::default() };
    let name = unique("order");
    let properties = Properties::persistent().headers(Table::new().string("x-half-transaction", &name));
    let mut victim = transactional(proxy.port, &queue);
    let mut filling = Raw::login_as(proxy.port, &login).expect("logged in");
    filling.open(1);
    filling.call(1, id::CONFIRM_SELECT, id::CONFIRM_SELECT_OK, |out| out.push(0));
    let heavy = || proxy.metric("halfway_store_heavy_users");
    let mut blocked = false;
    for number in 0..24 {
        // It does not mind that it is told to wait; what waits on a channel has its end.
        filling.publish_with(1, ("", queue.as_bytes()), 0, &properties, &vec![b'x'; 1_000_000]);
        let frame = filling.read(PATIENCE).expect("an answer");
        blocked |= frame.id() == id::BLOCKED;
        if blocked {
            assert!(number >= 7, "a share is half of the store, and not {number} MB");
            break;
        }
    }
    assert!(blocked, "24 MB fill more than a share of 8 MiB");
    wait_until(deadline(PATIENCE), "the share to be seen", || heavy() == 1.0);
    assert_eq!(proxy.metric("halfway_store_full"), 0.0);
    for number in 0..3 {
        victim.publish(1, &queue, format!("victim {number}"));
        victim.commit(1);
    }
    drop((victim, filling));
    assert!(proxy.stop().success());
    proxy.resume();
    wait_until(deadline(PATIENCE), "the share to be counted again", || {
        proxy.metric("halfway_store_heavy_users") == 1.0
    });
    let mut waiting = Raw::login_as(proxy.port, &login).expect("logged in");
    waiting.open_tx(1);
    waiting.publish(1, &queue, "behind");
    waiting.method(1, id::TX_COMMIT, |_| {}).unwrap();
    assert_eq!(waiting.read(PATIENCE).expect("word of it").id(), id::BLOCKED);
    let mut victim = transactional(proxy.port, &queue);
    victim.publish(1, &queue, "victim 3");
    victim.commit(1);
    // Its own decision makes room for it, on a channel beside the one that waits.
    waiting.open(2);
    let decided = Properties::persistent().headers(Table::new().string("x-half-transaction", &name));
    waiting.publish_with(2, ("halfway", b"rollback"), 0, &decided, b"");
    let mut seen = [(); 2].map(|()| waiting.read(PATIENCE).expect("room").id());
    seen.sort_unstable();
    assert_eq!(seen, [id::UNBLOCKED, id::TX_COMMIT_OK]);
    let mut bodies = Vec::new();
    wait_until(deadline(PATIENCE), "all of it", || {
        bodies.extend(victim.drain(2, &queue));
        bodies.len() == 5
    });
    bodies.sort();
    assert_eq!(bodies, ["behind", "victim 0", "victim 1", "victim 2", "victim 3"]);
}

/// The proxy must refuse to start: its exit code is 1, and its last words have all of `words`.
fn refuses_to_start(proxy: &mut Proxy, wrapper: &[&str], words: &[&str]) {
    proxy.spawn(wrapper);
    let status = proxy.wait_for_end();
    let log = proxy.log();
    assert_eq!(status.code(), Some(1), "{log}");
    for word in words {
        assert!(log.contains(word), "{word:?} is not in: {log}");
    }
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    let (mut proxy, _) = prepared(&[]);
    let file = proxy.folder().join("halfway.db");
    std::fs::write(&file, "Dear diary, ".repeat(1000)).unwrap();
    refuses_to_start(&mut proxy, &[], &["halfway.db", "not a store of halfway"]);
    assert_eq!(std::fs::read(&file).unwrap(), "Dear diary, ".repeat(1000).into_bytes());

    // Somebody else's SQLite file is no store either.
    let (mut proxy, _) = prepared(&[]);
    let file = proxy.folder().join("halfway.db");
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute_batch("CREATE TABLE recipes (name TEXT); INSERT INTO recipes VALUES ('soup');").unwrap();
    drop(other);
    refuses_to_start(&mut proxy, &[], &["halfway.db", "not a store of halfway"]);
}

#[test]
fn a_store_of_a_later_version_is_refused() {
    let (mut proxy, _) = prepared(&[]);
    proxy.resume();
    assert!(proxy.stop().success());
    let store = rusqlite::Connection::open(proxy.folder().join("halfway.db")).unwrap();
    store.pragma_update(None, "user_version", 4711).unwrap();
    drop(store);
    refuses_to_start(&mut proxy, &[], &["halfway.db", "4711", "later version"]);
}

#[test]
fn a_folder_that_is_not_there_or_cannot_be_written_is_named() {
    let (mut proxy, _) = prepared(&[("store.url", "'sqlite:/nowhere/at/all/halfway.db'")]);
    refuses_to_start(&mut proxy, &[], &["/nowhere/at/all"]);

    let disk = tempfile::tempdir().expect("a folder can be made");
    let url = format!("'sqlite:{}'", disk.path().join("halfway.db").display());
    let (mut proxy, _) = prepared(&[("store.url", &url)]);
    let folder = disk.path().to_str().expect("a path in UTF-8");
    let read_only = r#"mount -t tmpfs -o ro none "$0" && exec "$@""#;
    let wrapper = ["unshare", "--map-root-user", "--mount", "sh", "-c", read_only, folder];
    refuses_to_start(&mut proxy, &wrapper, &[folder, "written"]);
}

#[test]
fn a_store_has_one_process() {
    let (mut first, _) = prepared(&[]);
    first.resume();
    let url = format!("'sqlite:{}'", first.folder().join("halfway.db").display());
    let (mut second, _) = prepared(&[("store.url", &url)]);
    refuses_to_start(&mut second, &[], &["in use by another process"]);
    assert!(first.runs());
    // A lock does not outlive its process.
    first.kill();
    second.resume();
}

/// The flipped bit went out to the consumers, and `halfway store check` found nothing.
#[test]
fn a_message_in_which_a_bit_flipped_becomes_a_dead_letter() {
    let (mut proxy, account) = prepared(&[]);
    proxy.resume();
    let queue = unique("fault-flipped");
    broker().lock_out(&account);
    let mut raw = transactional(proxy.port, &queue);
    for body in ["before", "flipped", "after"] {
        raw.publish(1, &queue, body);
        raw.commit(1);
    }
    proxy.kill();
    let store = rusqlite::Connection::open(proxy.folder().join("halfway.db")).expect("the store");
    let second = "FROM transactions WHERE state = 'committed' ORDER BY sequence LIMIT 1 OFFSET 1";
    let mut body: Vec<u8> =
        store.query_row(&format!("SELECT body {second}"), [], |row| row.get(0)).expect("the second");
    *body.last_mut().expect("it has a body") ^= 1;
    let flip = format!("UPDATE transactions SET body = ?1 WHERE sequence = (SELECT sequence {second})");
    store.execute(&flip, [body]).expect("written");
    drop(store);
    let check = proxy.command(&["store", "check"]);
    let report = String::from_utf8_lossy(&check.stdout).into_owned() + &String::from_utf8_lossy(&check.stderr);
    assert!(!check.status.success() && report.contains("other bytes than were kept"), "{report}");
    broker().let_in(&account);
    proxy.resume();
    let mut raw = transactional(proxy.port, &queue);
    assert_eq!(raw.get_soon(2, &queue).text(), "before");
    assert_eq!(raw.get_soon(2, &queue).text(), "after");
    wait_until(deadline(PATIENCE), "the dead letter", || proxy.metric("halfway_dead_letters") == 1.0);
    let list = proxy.command(&["dead", "list", "--json"]);
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.contains("541") && list.contains("damaged in the store"), "{list}");
    assert_eq!(proxy.metric("halfway_relay_unreadable_transactions_total"), 1.0);
}

#[test]
fn the_store_can_be_looked_at_and_copied() {
    let (mut proxy, account) = prepared(&[]);
    proxy.resume();
    let queue = unique("fault-backup");
    broker().lock_out(&account);
    let mut raw = transactional(proxy.port, &queue);
    for _ in 0..3 {
        raw.publish(1, &queue, "body");
        raw.commit(1);
    }
    let run = |proxy: &Proxy, arguments: &[&str]| {
        let output = proxy.command(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {text}");
        text
    };
    assert!(run(&proxy, &["store", "stats", "--json"]).contains('3'));
    let copy = proxy.folder().join("copy.db");
    run(&proxy, &["store", "backup", copy.to_str().expect("a path in UTF-8")]);
    proxy.kill();
    run(&proxy, &["store", "check"]);
    // The copy has what the original had.
    proxy.set("store.url", &format!("'sqlite:{}'", copy.display()));
    broker().let_in(&account);
    proxy.resume();
    let mut raw = transactional(proxy.port, &queue);
    for _ in 0..3 {
        raw.get_soon(2, &queue);
    }
}
