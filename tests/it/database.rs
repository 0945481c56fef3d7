//! The producers' database as a checker, a real PostgreSQL: what it says while local transactions run, and everything that
//! must not count as an answer.

use crate::check_back::Alone;
use crate::half::named;
use crate::support::postgres::Postgres;
use crate::support::{PATIENCE, Proxy, broker, deadline, id, transactional, unique, wait_until};
use halfway::config::{AbsentMeans, Checker, PostgresUrl};
use halfway::postgres::{Link, Postgres as Dialer};
use halfway::tx::id::TransactionId;
use halfway::tx::state::State;
use rustix::process::Signal;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const TABLE: &str = "CREATE TABLE half_barrier (
    vhost text NOT NULL, username text NOT NULL, name text NOT NULL,
    decision text NOT NULL CHECK (decision IN ('commit', 'rollback')),
    at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (vhost, username, name))";
/// The producer's row, as docs/barrier.md has it.
const INSERT: &str = "INSERT INTO half_barrier (vhost, username, name, decision) VALUES ('/', 'guest', $1, 'commit') \
                      ON CONFLICT DO NOTHING";

/// A server with the barrier, and the role that Halfway has there.
fn server() -> Postgres {
    let server = Postgres::start();
    server.query(TABLE);
    server.query("CREATE ROLE halfway LOGIN; GRANT SELECT, INSERT ON half_barrier TO halfway");
    server
}

fn url(server: &Postgres, more: &str) -> PostgresUrl {
    let text = format!("postgres://halfway@127.0.0.1:{}/postgres?sslmode=disable{more}", server.port());
    PostgresUrl::try_from(text).expect("a URL")
}

/// A checker that is asked often and forgives nothing.
fn often(postgres: PostgresUrl) -> Checker {
    let often = Duration::from_millis(100);
    Checker {
        name: "orders".into(),
        postgres: Some(postgres),
        first_after: Duration::ZERO,
        interval: often,
        max_interval: often,
        max_checks: 1_000_000,
        timeout: Duration::from_secs(2),
        rate: 10_000,
        ..Checker::default()
    }
}

fn with_barrier(server: &Postgres) -> Checker {
    Checker { barrier: Some("half_barrier".into()), ..often(url(server, "")) }
}

fn with_query(server: &Postgres, query: &str) -> Checker {
    Checker { query: Some(query.into()), ..often(url(server, "")) }
}

/// A producer's own connection.
async fn producer(server: &Postgres) -> Link {
    let text = format!("{}?sslmode=disable", server.url());
    let url = PostgresUrl::try_from(text).expect("a URL");
    Dialer::new(url, PATIENCE).expect("no files").connect().await.expect("a connection")
}

fn doubt(alone: &Alone, name: &str) -> TransactionId {
    alone.doubt(name, "orders", Duration::ZERO)
}

/// Waits until a question about it came to this, and it is still in doubt.
#[track_caller]
fn wait_for(alone: &Alone, id: TransactionId, result: &str) {
    let limit = deadline(PATIENCE);
    loop {
        let (summary, reasons) = alone.look(id);
        assert_eq!(summary.state, State::InDoubt, "{reasons:?}");
        if reasons.iter().any(|reason| reason.contains(result)) {
            return;
        }
        assert!(std::time::Instant::now() < limit, "waited in vain for {result}: {reasons:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_local_transaction_that_runs_is_ongoing_and_then_what_it_became() {
    let server = server();
    let alone = Alone::start(&[with_barrier(&server)]);
    let [before, never, commits, rolls_back] = ["before", "never", "commits", "rolls-back"];
    server.query(&INSERT.replace("$1", "'before'"));
    let (one, other) = alone.runtime.block_on(async {
        let (one, other) = (producer(&server).await, producer(&server).await);
        for (link, name) in [(&one, commits), (&other, rolls_back)] {
            link.batch_execute("BEGIN").await.expect("it begins");
            assert_eq!(link.execute(INSERT, &[&name]).await.expect("a row"), 1);
        }
        (one, other)
    });
    let [before, never, commits, rolls_back] = [before, never, commits, rolls_back].map(|name| doubt(&alone, name));
    alone.wait_for(before, State::Committed);
    alone.wait_for(never, State::RolledBack);
    wait_for(&alone, commits, "ongoing");
    wait_for(&alone, rolls_back, "ongoing");
    assert_eq!(alone.look(commits).0.checks_answered, 0, "ongoing counts for nothing");
    alone.runtime.block_on(async {
        one.batch_execute("COMMIT").await.expect("committed");
        other.batch_execute("ROLLBACK").await.expect("rolled back");
    });
    alone.wait_for(commits, State::Committed);
    alone.wait_for(rolls_back, State::RolledBack);
    // Whoever comes after the answer comes too late.
    let late = alone.runtime.block_on(async { producer(&server).await.execute(INSERT, &[&"never"]).await });
    assert_eq!(late.expect("no error"), 0);
    let connections = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'halfway'";
    assert_eq!(server.query(connections).trim(), "1");
}

#[test]
fn no_schedule_of_a_thousand_makes_a_decision_wrong() {
    const PRODUCERS: usize = 8;
    const EACH: usize = 125;
    let server = server();
    let query = "SELECT decision FROM half_barrier WHERE name = $1 AND vhost = $2 AND username = $3";
    for checker in [with_barrier(&server), with_query(&server, query)] {
        let (is_barrier, prefix) = (checker.barrier.is_some(), unique("t"));
        let alone = Alone::start(&[checker]);
        let mut ids = Vec::new();
        let mut tasks = Vec::new();
        for number in 0..PRODUCERS {
            let link = alone.runtime.block_on(producer(&server));
            let names: Vec<_> = (0..EACH).map(|at| format!("{prefix}-{number}-{at}")).collect();
            let (begins, begun) = std::sync::mpsc::channel();
            ids.push((names.clone(), begun));
            tasks.push(alone.runtime.spawn(async move {
                let mut committed = Vec::new();
                for name in names {
                    let some = |most: u64| Duration::from_millis(fastrand::u64(0..most));
                    // Half message first, as a producer does; the connection is lost at some time around the commit.
                    begins.send(fastrand::bool()).expect("the test waits for it");
                    tokio::time::sleep(some(10)).await;
                    link.batch_execute("BEGIN").await.expect("it begins");
                    let is_first = link.execute(INSERT, &[&name]).await.expect("an insert") == 1;
                    tokio::time::sleep(some(if fastrand::u8(..) < 16 { 1_000 } else { 15 })).await;
                    let commits = is_first && fastrand::u8(..) < 200;
                    link.batch_execute(if commits { "COMMIT" } else { "ROLLBACK" }).await.expect("an end");
                    if commits {
                        committed.push(name);
                    }
                }
                committed
            }));
        }
        let mut doubted = Vec::new();
        for at in 0..EACH {
            for (names, begun) in &ids {
                begun.recv_timeout(PATIENCE).expect("the producer goes on");
                doubted.push((names[at].clone(), doubt(&alone, &names[at])));
            }
        }
        let mut committed = std::collections::HashSet::new();
        for task in tasks {
            committed.extend(alone.runtime.block_on(task).expect("no panic"));
        }
        assert!(!committed.is_empty() && committed.len() < doubted.len());
        let mut rolled_back = 0;
        for (name, id) in doubted {
            match committed.contains(&name) {
                true => alone.wait_for(id, State::Committed),
                false if is_barrier => {
                    alone.wait_for(id, State::RolledBack);
                    rolled_back += 1;
                }
                false => assert_eq!(alone.look(id).0.state, State::InDoubt, "nobody has promised anything: {name}"),
            }
        }
        assert!(!is_barrier || rolled_back > 0);
    }
}

#[test]
fn a_name_is_a_value_whatever_stands_in_it() {
    let server = server();
    let alone = Alone::start(&[with_barrier(&server)]);
    let emoji = format!("{}abc", "🦀".repeat(63));
    assert_eq!(emoji.len(), 255);
    let names = ["it's \"one\"; DROP TABLE half_barrier; --", "$1", "\\", &emoji];
    alone.runtime.block_on(async {
        let link = producer(&server).await;
        for name in names {
            assert_eq!(link.execute(INSERT, &[&name]).await.expect("a row"), 1);
        }
    });
    for name in names {
        alone.wait_for(doubt(&alone, name), State::Committed);
    }
    alone.wait_for(doubt(&alone, &emoji.to_uppercase()), State::RolledBack);
    wait_for(&alone, doubt(&alone, "a\0b"), "no answer: the database: invalid byte sequence");
    alone.wait_for(doubt(&alone, "$1 "), State::RolledBack);
}

#[test]
fn without_the_right_to_look_nothing_is_decided() {
    let server = server();
    let alone = Alone::start(&[with_barrier(&server)]);
    server.query(&INSERT.replace("$1", "'a'"));
    server.query("REVOKE INSERT ON half_barrier FROM halfway");
    let id = doubt(&alone, "a");
    wait_for(&alone, id, "no answer: the database: permission denied for table half_barrier (SQLSTATE 42501)");
    server.query("GRANT INSERT ON half_barrier TO halfway; REVOKE SELECT ON half_barrier FROM halfway");
    wait_for(&alone, id, "permission denied");
    server.query("GRANT SELECT ON half_barrier TO halfway");
    alone.wait_for(id, State::Committed);
    // Without its key the table would let both in.
    server.query("ALTER TABLE half_barrier DROP CONSTRAINT half_barrier_pkey");
    wait_for(&alone, doubt(&alone, "b"), "no unique or exclusion constraint matching");
    server.query("DROP TABLE half_barrier");
    wait_for(&alone, doubt(&alone, "c"), "relation \"half_barrier\" does not exist");
}

#[test]
fn a_standby_is_not_asked() {
    let mut server = server();
    for name in ["'there'", "'read'", "'read-later'"] {
        server.query(&INSERT.replace("$1", name));
    }
    let any = Checker { barrier: Some("half_barrier".into()), ..often(url(&server, "&target_session_attrs=any")) };
    let reads =
        Checker { name: "reads".into(), ..with_query(&server, "SELECT decision FROM half_barrier WHERE name = $1") };
    let alone = Alone::start(&[any, reads]);
    alone.wait_for(doubt(&alone, "before"), State::RolledBack);
    server.swap_for_standby();
    let [there, absent] = ["there", "absent"].map(|name| doubt(&alone, name));
    for id in [there, absent] {
        wait_for(&alone, id, "no answer: the server is a standby");
    }
    wait_for(&alone, alone.doubt("read", "reads", Duration::ZERO), "is a standby");
    server.query("SELECT pg_promote()");
    alone.wait_for(there, State::Committed);
    alone.wait_for(absent, State::RolledBack);
    server.query("ALTER ROLE halfway SET default_transaction_read_only = on");
    server.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'halfway'");
    wait_for(&alone, doubt(&alone, "later"), "no answer: the database takes no writes");
    alone.wait_for(alone.doubt("read-later", "reads", Duration::ZERO), State::Committed);
}

#[test]
fn only_one_row_with_one_of_the_words_is_an_answer() {
    let server = server();
    server
        .query("CREATE TYPE word AS ENUM ('commit', 'maybe'); CREATE TABLE orders (id text, says word, number bigint)");
    server.query(
        "INSERT INTO orders VALUES ('commit', 'commit', 1), ('maybe', 'maybe', 2), ('null', NULL, 3), ('two', 'commit', 4), ('two', 'commit', 5)",
    );
    server.query("GRANT SELECT, INSERT ON orders TO halfway");
    let ask = |query: &str, name: &str, result: &str| {
        let alone = Alone::start(&[with_query(&server, query)]);
        wait_for(&alone, doubt(&alone, name), result);
    };
    let says = "SELECT says FROM orders WHERE id = $1";
    {
        let alone = Alone::start(&[with_query(&server, says)]);
        alone.wait_for(doubt(&alone, "commit"), State::Committed);
        wait_for(&alone, doubt(&alone, "nobody"), "unknown");
        wait_for(&alone, doubt(&alone, "maybe"), "no answer: `maybe` is none of");
        wait_for(&alone, doubt(&alone, "null"), "no answer: the row says NULL");
        wait_for(&alone, doubt(&alone, "two"), "no answer: there is more than one row");
    }
    ask("SELECT 'commit', 1 FROM orders WHERE id = $1", "commit", "no answer: the query must have one column");
    ask("SELECT number FROM orders WHERE id = $1", "commit", "no answer: the row has a int8, which is no text");
    ask("SELECT 'commit' FROM orders WHERE number = $1", "commit", "invalid input syntax for type bigint");
    ask(
        "SELECT 'commit' FROM (SELECT generate_series(1, 1000000000)) a WHERE $1 <> ''",
        "commit",
        "no answer: there is more than one row",
    );
    ask("INSERT INTO orders VALUES ($1) RETURNING 'commit'", "new", "cannot execute INSERT in a read-only transaction");
    ask("SELECT 'commit' WHERE $1 <> ''; DROP TABLE orders", "x", "cannot insert multiple commands");
    let absent = Checker { absent: Some(AbsentMeans::Ongoing), ..with_query(&server, says) };
    let alone = Alone::start(&[absent]);
    wait_for(&alone, doubt(&alone, "nobody"), "ongoing");
}

#[test]
fn that_nobody_is_there_is_a_rollback_only_with_a_promise_and_after_its_time() {
    let server = server();
    let query = "SELECT decision FROM half_barrier WHERE name = $1";
    let after = Duration::from_secs(2);
    let promise = Checker { absent_is_rollback_after: Some(after), ..with_query(&server, query) };
    let alone = Alone::start(&[promise]);
    let begun = std::time::Instant::now();
    let [never, late] = ["never", "late"].map(|name| doubt(&alone, name));
    wait_for(&alone, never, "ongoing");
    server.query(&INSERT.replace("$1", "'late'"));
    alone.wait_for(late, State::Committed);
    alone.wait_for(never, State::RolledBack);
    assert!(begun.elapsed() >= after);
}

#[test]
fn a_database_that_hangs_or_answers_late_gives_no_answer() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("bound");
    let hanging = PostgresUrl::try_from(format!("postgres://halfway@{address}/shop?sslmode=disable")).expect("a URL");
    let timeout = Duration::from_millis(500);
    let hanging = Checker { barrier: Some("half_barrier".into()), timeout, ..often(hanging) };
    let server = server();
    let late =
        "SELECT CASE WHEN pg_sleep(0.8) IS NULL THEN 'unknown' ELSE 'commit' END FROM half_barrier WHERE name = $1";
    let late = Checker { name: "late".into(), timeout, ..with_query(&server, late) };
    server.query(&INSERT.replace("$1", "'late'"));
    let alone = Alone::start(&[hanging, late]);
    wait_for(&alone, doubt(&alone, "hangs"), "no answer");
    let id = alone.doubt("late", "late", Duration::ZERO);
    wait_for(&alone, id, "no answer");
    // The next question is not taken for the one before.
    let absent = alone.doubt("absent", "late", Duration::ZERO);
    wait_for(&alone, absent, "unknown");
    assert_eq!(alone.look(id).0.state, State::InDoubt);
}

/// What `halfway` says of a configuration, and whether it is content.
fn halfway(arguments: &[&str], configuration: &Path) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halfway"));
    let output = command.args(arguments).arg("--config").arg(configuration).output().expect("it can be started");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn the_doctor_finds_what_is_missing_and_what_is_too_much() {
    let server = server();
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("config.toml");
    let check = |how: &str| {
        let store = folder.path().join("halfway.db").display().to_string();
        let url = String::from(url(&server, ""));
        let text = format!("[store]\nurl = 'sqlite:{store}'\n[[checker]]\nname = 'orders'\npostgres = '{url}'\n{how}");
        std::fs::write(&path, text).expect("a file can be written");
        halfway(&["config", "check", "--connect"], &path)
    };
    let barrier = || check("barrier = 'half_barrier'");
    let (fine, said) = barrier();
    assert!(fine && !said.contains("checker.0"), "{said}");
    assert!(check("barrier = 'public.half_barrier'").0);
    let (_, said) = halfway(&["doctor"], &path);
    assert!(said.contains("ok       checker orders: public.half_barrier in postgres://halfway@127.0.0.1"), "{said}");

    for (change, expected, fine) in [
        ("GRANT DELETE ON half_barrier TO halfway", "the account may also DELETE in half_barrier", true),
        ("REVOKE DELETE ON half_barrier FROM halfway", "", true),
        (
            "CREATE TABLE orders (id text, number bigint); GRANT UPDATE ON orders TO halfway",
            "can write to 1 other tables",
            true,
        ),
        ("REVOKE UPDATE ON orders FROM halfway; GRANT SELECT ON orders TO halfway", "", true),
        ("REVOKE INSERT ON half_barrier FROM halfway", "the account may not INSERT in half_barrier", false),
        (
            "GRANT INSERT ON half_barrier TO halfway; ALTER TABLE half_barrier SET UNLOGGED",
            "is unlogged or temporary",
            false,
        ),
        (
            "ALTER TABLE half_barrier SET LOGGED; ALTER ROLE halfway SET default_transaction_read_only = on",
            "default_transaction_read_only is on",
            false,
        ),
        (
            "ALTER ROLE halfway RESET default_transaction_read_only; ALTER TABLE half_barrier DROP CONSTRAINT half_barrier_pkey",
            "has no unique key",
            false,
        ),
        ("CREATE UNIQUE INDEX ON half_barrier (name, vhost, username) WHERE at IS NULL", "has no unique key", false),
        ("CREATE UNIQUE INDEX ON half_barrier (name, vhost, username)", "", true),
        ("ALTER TABLE half_barrier RENAME vhost TO host", "has no column vhost", false),
        ("DROP TABLE half_barrier", "there is no table half_barrier", false),
    ] {
        server.query(change);
        let (found, said) = barrier();
        assert!(found == fine && said.contains(expected), "{change}: {said}");
        assert!(!expected.is_empty() || !said.contains("checker.0"), "{change}: {said}");
    }
    for (query, expected) in [
        ("SELECT 'commit' FROM orders WHERE id = $1", ""),
        ("SELECT 'commit' FROM orders WHERE number = $1", ""),
        ("SELECT 'commit' FROM nothing WHERE id = $1", "relation \"nothing\" does not exist"),
        ("SELECT id, 1 FROM orders WHERE id = $1", "must have one column"),
        ("SELECT 'commit' FROM orders WHERE id = $1 OR id = $4", "could not determine data type of parameter $2"),
        ("DELETE FROM orders WHERE id = $1 RETURNING 'commit'", "cannot execute DELETE in a read-only transaction"),
    ] {
        let (fine, said) = check(&format!("query = \"{query}\""));
        assert!(fine == expected.is_empty() && said.contains(expected), "{query}: {said}");
    }
    drop(server);
    let (fine, said) = halfway(&["config", "check", "--connect"], &path);
    assert!(!fine && said.contains("checker.0.postgres") && said.contains("cannot connect"), "{said}");
    assert!(halfway(&["config", "check"], &path).0, "without --connect nobody is dialed");
}

#[test]
fn a_password_file_is_read_again_and_the_dashboard_shows_where_it_is_asked() {
    let server = Postgres::start_with(&[], |data| data.ask_for_passwords());
    server.query(TABLE);
    server.query("CREATE ROLE halfway LOGIN PASSWORD 'right'; GRANT SELECT, INSERT ON half_barrier TO halfway");
    let mut proxy = Proxy::prepare(broker().port, &[]);
    let file = proxy.folder().join("password");
    std::fs::write(&file, "wrong\n").expect("a file can be written");
    let checker = format!(
        "[{{ name = 'orders', postgres = '{}', password_file = '{}', barrier = 'half_barrier', first_after = '0s', \
         interval = '200ms', max_interval = '200ms' }}]",
        String::from(url(&server, "")),
        file.display()
    );
    proxy.set("checker", &checker);
    proxy.spawn(&[]);
    proxy.wait_for_port();
    let queue = unique("database");
    let mut raw = transactional(proxy.port, &queue);
    raw.publish_with(1, ("", queue.as_bytes()), 0, &named("order-1"), b"order-1");
    raw.call(1, id::TX_SELECT, id::TX_SELECT_OK, |_| {});
    server.query(&INSERT.replace("$1", "'order-1'"));
    drop(raw);
    let shown = || proxy.http("/api/checkers").expect("an answer").1;
    wait_until(deadline(PATIENCE), "a question without an answer", || {
        shown().contains("password authentication failed")
    });
    let text = shown();
    assert!(text.contains("\"kind\":\"postgres\"") && !text.contains("wrong"), "{text}");
    assert!(
        text.contains(&format!("\"target\":\"postgres://halfway@127.0.0.1:{}/postgres\"", server.port())),
        "{text}"
    );
    std::fs::write(&file, "right\n").expect("a file can be written");
    proxy.signal(Signal::HUP);
    let mut consumer = transactional(broker().port, &queue);
    consumer.open(3);
    assert_eq!(consumer.get_soon(3, &queue).text(), "order-1");
    assert!(proxy.log().contains("checker.orders.postgres"), "{}", proxy.log());
    assert_eq!(proxy.metric("halfway_checks_total{checker=\"orders\",result=\"commit\"}"), 1.0);
}
