//! The proxy on a store in PostgreSQL: what it promises holds over a kill of either, and what will not do is named.

use crate::half::named;
use crate::support::postgres::Postgres;
use crate::support::{PATIENCE, Proxy, Raw, broker, deadline, id, transactional, unique, wait_until};
use std::process::Output;

fn url(port: u16, user: &str, database: &str) -> String {
    format!("'postgres://{user}@127.0.0.1:{port}/{database}?sslmode=disable'")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[test]
fn nothing_is_lost_when_the_proxy_is_killed_or_postgresql_goes_away() {
    let mut server = Postgres::start();
    let mut proxy = Proxy::start_with(broker().port, &[("store.url", &url(server.port(), "shop", "postgres"))]);
    let queue = unique("on-postgres");
    let mut raw = transactional(proxy.port, &queue);
    let mut watcher = transactional(broker().port, &queue);
    watcher.open(3);
    raw.publish(1, &queue, "plain");
    raw.commit(1);
    assert_eq!(watcher.get_soon(3, &queue).text(), "plain");
    // Before that it would be sent once more, as a possible duplicate.
    wait_until(deadline(PATIENCE), "that RabbitMQ has it to be written down", || {
        server.query("SELECT count(*) FROM halfway.transactions").trim() == "0"
    });

    // Half messages of a name are in doubt after a kill, and decided by somebody else.
    raw.publish_with(1, ("", queue.as_bytes()), 0, &named("order-1"), b"half");
    raw.call(1, id::TX_SELECT, id::TX_SELECT_OK, |_| {});
    proxy.kill();
    proxy.resume();
    assert!(proxy.log().contains("another process has the store, or had it"), "{}", proxy.log());
    assert_eq!(watcher.get(3, &queue).map(|content| content.text()), None);
    let decided = proxy.command(&["tx", "commit", "--name", "order-1", "--user", "guest", "--reason", "test"]);
    let shown = said(&decided);
    assert!(decided.status.success(), "{shown}");
    assert_eq!(watcher.get_soon(3, &queue).text(), "half");

    // A commit that begins while the database is away is answered when it is back.
    let mut raw = Raw::login(proxy.port);
    raw.open_tx(1);
    raw.publish(1, &queue, "before");
    raw.commit(1);
    assert_eq!(watcher.get_soon(3, &queue).text(), "before");
    server.stop();
    raw.publish_with(1, ("", queue.as_bytes()), 0, &named("order-2"), b"meanwhile");
    raw.method(1, id::TX_COMMIT, |_| {}).expect("the connection takes a commit");
    server.start_again();
    raw.expect(1, id::TX_COMMIT_OK);
    assert_eq!(watcher.get_soon(3, &queue).text(), "meanwhile");

    for command in [&["store", "check"][..], &["store", "stats"], &["doctor"]] {
        let output = proxy.command(command);
        assert!(output.status.success(), "{command:?}: {}", said(&output));
    }
    assert!(said(&proxy.command(&["doctor"])).contains("no standby has to confirm"));
    let output = proxy.command(&["store", "backup", "/nowhere/copy"]);
    assert!(!output.status.success() && said(&output).contains("pg_dump"), "{}", said(&output));
    proxy.stop();
}

#[test]
fn what_will_not_do_is_named() {
    let server = Postgres::start_with(&[], |data| data.ask_for_passwords());
    server.query("CREATE ROLE halfway LOGIN PASSWORD 'right'");
    let mut proxy = Proxy::prepare(broker().port, &[]);
    let file = proxy.folder().join("password");
    std::fs::write(&file, "wrong\n").expect("a file can be written");
    let refused = |proxy: &mut Proxy, user: &str, database: &str, expected: &str| {
        proxy.set("store.url", &url(server.port(), user, database));
        let file = if user == "halfway" { file.display().to_string() } else { String::new() };
        proxy.set("store.password_file", &format!("'{file}'"));
        let output = proxy.command(&["serve"]);
        assert!(!output.status.success() && said(&output).contains(expected), "{expected}: {}", said(&output));
    };
    refused(&mut proxy, "halfway", "postgres", "store.password_file has the account's password");
    std::fs::write(&file, "right\n").expect("a file can be written");
    refused(&mut proxy, "halfway", "postgres", "The account has to own the schema `halfway`");
    refused(&mut proxy, "shop", "nowhere", "The database has to be there");
    server.query("ALTER ROLE halfway SET default_transaction_read_only = on");
    refused(&mut proxy, "halfway", "postgres", "The store needs the primary");
    server.query("CREATE SCHEMA halfway; CREATE TABLE halfway.orders (id text)");
    refused(&mut proxy, "shop", "postgres", "it has other tables");
    server.query("DROP TABLE halfway.orders; CREATE TABLE halfway.meta (schema bigint, count bigint, wall bigint)");
    server.query("INSERT INTO halfway.meta VALUES (1000, NULL, NULL)");
    refused(&mut proxy, "shop", "postgres", "has schema 1000, and this version knows 1 at most");
}
