//! What systemd is told, on a socket as systemd has it.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;

use super::support::proxy::Proxy;
use super::support::raw::Raw;
use super::support::{PATIENCE, broker};

/// The end that systemd has.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn listen(proxy: &Proxy) -> Self {
        let path = proxy.folder().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket can be made");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Self { socket, path: path.display().to_string() }
    }

    /// The lines of the next message that is no sign of life.
    #[track_caller]
    fn hear(&self) -> Vec<String> {
        loop {
            let lines = self.hear_any();
            if lines != ["WATCHDOG=1"] {
                return lines;
            }
        }
    }

    #[track_caller]
    fn hear_any(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let read = self.socket.recv(&mut bytes).expect("a message comes");
        String::from_utf8_lossy(&bytes[..read]).lines().map(String::from).collect()
    }
}

#[test]
fn systemd_hears_of_the_start_of_reloads_and_of_the_end() {
    let mut proxy = Proxy::prepare(broker().port, &[("shutdown.grace", "'100s'")]);
    let manager = Manager::listen(&proxy);
    proxy.spawn(&["env", &format!("NOTIFY_SOCKET={}", manager.path)]);
    let ready = ["READY=1", "STATUS=clients are served"];
    assert_eq!(manager.hear(), ready);
    Raw::login(proxy.port).open(1);

    let reload = |proxy: &Proxy| {
        proxy.signal(Signal::HUP);
        let lines = manager.hear();
        let [reloading, since, status] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((reloading.as_str(), status.as_str()), ("RELOADING=1", "STATUS=the configuration is reloaded"));
        since.strip_prefix("MONOTONIC_USEC=").and_then(|since| since.parse::<u64>().ok()).expect("a time")
    };
    let first = reload(&proxy);
    assert_eq!(manager.hear(), ready);
    proxy.set("relay.window", "0");
    assert!(reload(&proxy) > first);
    let lines = manager.hear();
    assert_eq!(lines[0], "READY=1");
    let status = &lines[1];
    assert!(
        status.starts_with("STATUS=the configuration was not reloaded: ") && status.contains("relay.window"),
        "{status}"
    );

    let _client = Raw::login(proxy.port);
    proxy.signal(Signal::TERM);
    assert_eq!(manager.hear(), ["STOPPING=1", "EXTEND_TIMEOUT_USEC=115000000", "STATUS=draining 1 connections"]);
    assert!(proxy.wait_for_end().success());
}

#[test]
fn signs_of_life_come_while_the_process_takes_turns_and_not_longer() {
    let mut proxy = Proxy::prepare(broker().port, &[]);
    let manager = Manager::listen(&proxy);
    proxy.spawn(&["env", &format!("NOTIFY_SOCKET={}", manager.path), "WATCHDOG_USEC=200000"]);
    assert_eq!(manager.hear()[0], "READY=1");
    for _ in 0..3 {
        assert_eq!(manager.hear_any(), ["WATCHDOG=1"]);
    }
    proxy.signal(Signal::STOP);
    manager.socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout can be set");
    let mut bytes = [0; 64];
    // What was said before it was stopped may still be there.
    while manager.socket.recv(&mut bytes).is_ok() {}
    proxy.signal(Signal::CONT);
    manager.socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    assert_eq!(manager.hear_any(), ["WATCHDOG=1"]);
}

#[test]
fn without_a_manager_or_with_one_that_is_gone_the_proxy_works() {
    let mut proxy = Proxy::prepare(broker().port, &[]);
    proxy.spawn(&["env", "NOTIFY_SOCKET=/nowhere/notify"]);
    proxy.wait_for_port();
    Raw::login(proxy.port).open(1);
    assert!(proxy.stop().success());
    assert!(proxy.log().contains("the service manager can't be told"), "{}", proxy.log());
}
