//! The process around it all: how it ends, whom it lets in, where it connects to.

use crate::support::id;
use crate::support::raw::Login;
use crate::support::table::Properties;
use crate::support::{Broker, PATIENCE, Proxy, Raw, broker, deadline, free_port, unique, wait_until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn sigterm_lets_running_commits_finish_and_then_closes_with_320() {
    let account = unique("relay-of-drain");
    broker().add_relay_account(&account);
    let quoted = format!("'{account}'");
    let settings =
        [("relay.username", quoted.as_str()), ("relay.password", &quoted), ("transaction.mandatory_wait", "'2s'")];
    let mut proxy = Proxy::start_with(broker().port, &settings);
    let queue = unique("drain");
    let mut raw = Raw::login(proxy.port);
    raw.open(2);
    raw.declare(2, &queue);
    raw.open_tx(1);
    let mut idle = Raw::login(proxy.port);
    // The relay can't send, so this commit runs for two seconds: something may come back.
    broker().lock_out(&account);
    raw.publish_with(1, ("", queue.as_bytes()), 1, &Properties::persistent(), b"committed");
    raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    proxy.signal(Signal::TERM);
    wait_until(deadline(PATIENCE), "readiness to turn false", || {
        proxy.http("/readyz").is_ok_and(|(status, _)| status == 503)
    });
    assert!(Raw::try_login(proxy.port).is_err(), "there are no new connections");
    raw.expect(1, id::TX_COMMIT_OK);
    let closes = [raw.expect_close(0), idle.expect_close(0)];
    assert!(closes.iter().all(|close| close.code == 320), "{closes:?}");
    assert!(proxy.wait_for_end().success());
    broker().let_in(&account);
    proxy.resume();
    let mut raw = Raw::login(proxy.port);
    raw.open(2);
    assert_eq!(raw.get_soon(2, &queue).text(), "committed");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let own = Broker::start();
    let mut proxy = Proxy::start_with(own.port, &[("transaction.mandatory_wait", "'20s'")]);
    let mut raw = Raw::login(proxy.port);
    raw.open(2);
    raw.declare(2, "second-signal");
    raw.open_tx(1);
    own.lock_out("relay");
    raw.publish_with(1, ("", b"second-signal"), 1, &Properties::persistent(), b"body");
    raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let begin = Instant::now();
    proxy.signal(Signal::TERM);
    wait_until(deadline(PATIENCE), "the drain to begin", || {
        proxy.http("/readyz").map_or(true, |(status, _)| status == 503)
    });
    assert!(proxy.runs(), "it waits for the commit");
    proxy.signal(Signal::TERM);
    proxy.wait_for_end();
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn upstream_urls_are_tried_in_their_order() {
    let dead = free_port();
    let urls = format!("['amqp://127.0.0.1:{dead}', 'amqp://127.0.0.1:{}']", broker().port);
    let proxy = Proxy::start_with(broker().port, &[("upstream.urls", &urls)]);
    let queue = unique("second-url");
    let mut raw = Raw::login(proxy.port);
    raw.open_tx(1);
    raw.declare(1, &queue);
    raw.publish(1, &queue, "body");
    raw.commit(1);
    assert_eq!(raw.get_soon(1, &queue).text(), "body");
}

#[test]
fn users_of_loopback_only_are_refused_from_other_addresses() {
    let address = other_address();
    let listen = format!("'0.0.0.0:{}'", free_port());
    let port: u16 = listen.trim_matches('\'').rsplit(':').next().unwrap().parse().unwrap();
    let mut proxy = Proxy::prepare(broker().port, &[("listen.address", &listen)]);
    proxy.port = port;
    proxy.resume();
    broker().add_user("from-anywhere", [".*", ".*", ".*"]);
    let login = |user: &str, address: &str| {
        let host = format!("{address}:{port}");
        Raw::login_at(&host, &Login { user, password: user, ..Login::default() })
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert_eq!(login("guest", "127.0.0.1"), Ok(()));
    assert_eq!(login("from-anywhere", &address), Ok(()));
    let refused = login("guest", &address).expect_err("guest is for loopback only");
    assert!(refused.contains("ACCESS_REFUSED"), "{refused}");
}

/// An address of this machine that is not loopback's.
fn other_address() -> String {
    // Connecting a datagram socket sends nothing; it only asks for the way.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect("192.0.2.1:9").expect("this test needs a network interface besides loopback");
    socket.local_addr().expect("an address").ip().to_string()
}

#[test]
fn a_list_of_addresses_makes_localhost_work_by_ipv6_too() {
    let mut proxy = Proxy::prepare(broker().port, &[]);
    let both = |port: u16| format!("['127.0.0.1:{port}', '[::1]:{port}']");
    let (clients, admin) = (both(proxy.port), both(proxy.admin_port));
    proxy.set("listen.address", &clients);
    proxy.set("admin.address", &admin);
    proxy.resume();
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        let mut raw = Raw::login_at(&format!("{host}:{}", proxy.port), &Login::default()).expect("guest can log in");
        raw.open_tx(1);
        raw.commit(1);
        let mut stream = TcpStream::connect(format!("{host}:{}", proxy.admin_port)).expect("connected");
        write!(stream, "GET /api/overview HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    assert_eq!(proxy.log().matches("AMQP port open").count(), 2);
}

#[test]
fn there_is_a_limit_to_connections() {
    let proxy = Proxy::start_with(broker().port, &[("listen.max_connections", "3")]);
    let mut open: Vec<Raw> = (0..3).map(|_| Raw::login(proxy.port)).collect();
    assert!(Raw::try_login(proxy.port).is_err());
    open.pop();
    wait_until(deadline(PATIENCE), "the place to be free", || Raw::try_login(proxy.port).is_ok());
}

#[test]
fn logs_are_json_with_ids_and_never_bodies_or_secrets() {
    let settings = [("log.format", "'json'"), ("log.level", "'trace'"), ("relay.password", "'relay'")];
    let proxy = Proxy::start_with(broker().port, &settings);
    broker().ctl(&["add_user", "secretive", "a-password-of-mine"]);
    broker().ctl(&["set_permissions", "secretive", ".*", ".*", ".*"]);
    let login = Login { user: "secretive", password: "a-password-of-mine", ..Login::default() };
    let mut raw = Raw::login_as(proxy.port, &login).unwrap();
    raw.open_tx(1);
    raw.declare(1, "logged");
    raw.publish(1, "logged", "a-body-of-mine");
    raw.commit(1);
    assert_eq!(raw.get_soon(1, "logged").text(), "a-body-of-mine");
    drop(raw);
    wait_until(deadline(PATIENCE), "the log to have the user", || proxy.log().contains("secretive"));
    let log = proxy.log();
    assert!(!log.contains("a-password-of-mine") && !log.contains("a-body-of-mine"));
    for line in log.lines().filter(|line| !line.is_empty()) {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

#[test]
fn a_proxy_header_tells_rabbitmq_where_the_client_is() {
    let own = Broker::start_behind_proxy_protocol();
    let proxy = Proxy::start_with(own.port, &[("upstream.proxy_protocol", "'v2'")]);
    let mut raw = Raw::login(proxy.port);
    let peer = raw.local_port();
    raw.open_tx(1);
    raw.declare(1, "behind-proxy-protocol");
    raw.publish(1, "behind-proxy-protocol", "body");
    raw.commit(1);
    assert_eq!(raw.get_soon(1, "behind-proxy-protocol").text(), "body");
    let peers = own.ctl(&["list_connections", "--no-table-headers", "user", "peer_port"]);
    assert!(peers.contains(&format!("guest\t{peer}")), "{peers} has no {peer}");
}

/// An authority and a certificate of 127.0.0.1 from it, as PEM files in `folder`.
fn certificates(folder: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.distinguished_name.push(rcgen::DnType::CommonName, "authority of the tests");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let server = CertificateParams::new(names).expect("parameters").signed_by(&key, &authority).expect("a certificate");
    let write = |name: &str, text: String| {
        let file = folder.join(name);
        std::fs::write(&file, text).expect("a file can be written");
        file
    };
    (write("ca.pem", authority.pem()), write("cert.pem", server.pem()), write("key.pem", key.serialize_pem()))
}

#[test]
fn tls_on_both_sides() {
    let folder = broker::folder();
    let (ca, certificate, key) = certificates(folder.path());
    let [its_ca, its_certificate, its_key] = [&ca, &certificate, &key].map(|file| broker::as_seen_by_rabbitmq(file));
    let upstream_port = free_port();
    let own = Broker::start_with(&format!(
        "listeners.ssl.1 = 127.0.0.1:{upstream_port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
         ssl_options.keyfile = {}\nssl_options.verify = verify_none\n",
        its_ca.display(),
        its_certificate.display(),
        its_key.display()
    ));
    let (ca, certificate, key) = (ca.display(), certificate.display(), key.display());
    let tls_port = free_port();
    let quoted = |text: &dyn std::fmt::Display| format!("'{text}'");
    let mut proxy = Proxy::start_with(
        own.port,
        &[
            ("upstream.urls", &format!("['amqps://127.0.0.1:{upstream_port}']")),
            ("upstream.tls.ca", &quoted(&ca)),
            ("listen.tls_address", &format!("'127.0.0.1:{tls_port}'")),
            ("listen.tls.certificate", &quoted(&certificate)),
            ("listen.tls.key", &quoted(&key)),
        ],
    );
    let mut raw = Raw::login(proxy.port);
    raw.open_tx(1);
    raw.declare(1, "over-tls");
    raw.publish(1, "over-tls", "body");
    raw.commit(1);
    assert_eq!(raw.get_soon(1, "over-tls").text(), "body");
    let subject = || {
        let mut client = Command::new("openssl");
        client.args(["s_client", "-connect", &format!("127.0.0.1:{tls_port}"), "-CAfile", &ca.to_string()]);
        let output = client.arg("-verify_return_error").stdin(Stdio::null()).output().expect("openssl can be started");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (verified, before) = subject();
    assert!(verified, "{before}");
    let print = |text: &str| text.split("-----BEGIN CERTIFICATE-----").nth(1).map(ToOwned::to_owned);
    // Certificates are read again on SIGHUP.
    certificates(folder.path());
    proxy.signal(Signal::HUP);
    wait_until(deadline(PATIENCE), "the new certificate", || {
        let (verified, after) = subject();
        verified && print(&after) != print(&before)
    });
    assert!(proxy.runs());
    // An authority that the proxy does not know is refused, and with it the connection.
    let stranger = tempfile::tempdir().expect("a folder can be made");
    let (unknown, ..) = certificates(stranger.path());
    proxy.kill();
    proxy.set("upstream.tls.ca", &quoted(&unknown.display()));
    proxy.spawn(&[]);
    proxy.wait_for_port();
    assert!(Raw::try_login(proxy.port).is_err());
}

#[test]
fn half_open_upstreams_do_not_hold_clients_for_ever() {
    // Somebody listens and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = silent.local_addr().expect("an address").port();
    let mut proxy = Proxy::prepare(upstream, &[("listen.handshake_timeout", "'2s'")]);
    proxy.spawn(&[]);
    proxy.wait_for_port();
    let mut raw = Raw::dial(proxy.port).expect("the port is open");
    raw.send(&halfway::amqp::frame::PROTOCOL_HEADER).unwrap();
    raw.expect_end(Duration::from_secs(10));
    assert!(TcpStream::connect(("127.0.0.1", proxy.port)).is_ok());
}

#[test]
fn a_log_that_can_not_be_written_stops_nothing() {
    // A full device from the start, and a pipe that nobody reads.
    for wrapper in ["exec \"$@\" >/dev/full 2>&1", "exec \"$@\" > >(exec true) 2>&1"] {
        let mut proxy = Proxy::prepare(broker().port, &[]);
        proxy.spawn(&["bash", "-c", wrapper, "bash"]);
        proxy.wait_for_port();
        let queue = unique("unlogged");
        let mut raw = Raw::login(proxy.port);
        raw.open(2);
        raw.declare(2, &queue);
        raw.open_tx(1);
        raw.publish(1, &queue, "body");
        raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
        raw.expect(1, id::TX_COMMIT_OK);
        assert_eq!(raw.get_soon(2, &queue).text(), "body");
        assert_eq!(proxy.http("/healthz").unwrap().0, 200);
        assert!(proxy.metric("halfway_log_lines_dropped_total") > 0.0);
        assert!(proxy.stop().success(), "{wrapper}");
    }
}
