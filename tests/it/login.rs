//! Who the client is, against the real thing: bursts that would be somebody else, or somebody too early.

use crate::half::named;
use crate::support::raw::Login;
use crate::support::table::Properties;
use crate::support::{PATIENCE, Raw, broker, deadline, id, proxied_port, proxy, unique, wait_until};
use halfway::amqp::frame::{self, PROTOCOL_HEADER};
use halfway::amqp::wire::Write;
use std::time::Duration;

/// A client's bytes, put together before any of them is sent.
#[derive(Default)]
struct Burst(Vec<u8>);

impl Burst {
    fn method(mut self, channel: u16, method: id::Id, arguments: impl FnOnce(&mut Vec<u8>)) -> Self {
        frame::write_method(&mut self.0, channel, method, arguments);
        self
    }

    fn start_ok(self, user: &str, password: &str) -> Self {
        self.method(0, id::START_OK, |out| {
            out.put_long_string(&[]);
            out.put_short_string(b"PLAIN");
            out.put_long_string(format!("\0{user}\0{password}").as_bytes());
            out.put_short_string(b"en_US");
        })
    }

    fn tune_ok(self) -> Self {
        self.method(0, id::TUNE_OK, |out| {
            out.put_u16(2047);
            out.put_u32(131_072);
            out.put_u16(0);
        })
    }

    fn vhost(self, vhost: &str) -> Self {
        self.method(0, id::OPEN, |out| {
            out.put_short_string(vhost.as_bytes());
            out.put_short_string(b"");
            out.put_u8(0);
        })
    }

    fn channel(self, channel: u16) -> Self {
        self.method(channel, id::CHANNEL_OPEN, |out| out.put_short_string(b""))
    }

    fn publish(self, queue: &str, properties: &Properties) -> Self {
        let mut burst = self.method(1, id::PUBLISH, |out| {
            out.put_u16(0);
            out.put_short_string(b"");
            out.put_short_string(queue.as_bytes());
            out.put_u8(0);
        });
        frame::write_content(&mut burst.0, 1, &properties.encode(4), b"body", 131_072);
        burst
    }

    /// Sends all of it at once behind the greeting.
    fn send(self) -> Raw {
        let mut raw = Raw::dial(proxied_port()).expect("the port is open");
        raw.send(&[&PROTOCOL_HEADER[..], &self.0].concat()).expect("the proxy reads");
        raw
    }
}

fn transactions(name: &str) -> usize {
    let (status, text) = proxy().http(&format!("/api/transactions?name={name}")).unwrap();
    assert_eq!(status, 200, "{text}");
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    list["items"].as_array().unwrap().len()
}

#[test]
fn a_second_login_in_one_burst_is_nobody_else() {
    let (theirs, bob, queue) = (unique("login-theirs"), unique("login-bob"), unique("login-victim"));
    broker().add_vhost(&theirs);
    broker().add_user(&bob, [".*", ".*", ".*"]);
    let mut victim = Raw::login_as(broker().port, &Login { vhost: &theirs, ..Login::default() }).unwrap();
    victim.open(1);
    victim.declare(1, &queue);
    let mut ours = Raw::login(broker().port);
    ours.open(1);
    ours.declare(1, &queue);
    for _ in 0..3 {
        let burst = Burst::default().start_ok("guest", "guest").tune_ok().vhost("/").channel(1);
        let burst = burst.method(1, id::TX_SELECT, |_| {}).publish(&queue, &Properties::persistent());
        let burst = burst.method(1, id::TX_COMMIT, |_| {});
        let burst = (2..1_500).fold(burst, Burst::channel);
        let mut raw = burst.start_ok(&bob, &bob).vhost(&theirs).send();
        while raw.read(PATIENCE).expect("RabbitMQ ends it").id() != id::CLOSE {}
        raw.method(0, id::CLOSE_OK, |_| {}).expect("the proxy reads");
    }
    // One more, well behaved: what the bursts had committed goes the same way, before it.
    let mut raw = Raw::login(proxied_port());
    raw.open_tx(1);
    raw.publish(1, &queue, "last");
    raw.commit(1);
    wait_until(deadline(PATIENCE), "the relay to be through", || ours.drain(1, &queue).contains(&"last".to_owned()));
    assert_eq!(victim.drain(1, &queue), Vec::<String>::new(), "nothing comes from another virtual host");
}

#[test]
fn a_half_message_behind_connection_open_is_parked_and_behind_a_wrong_password_is_not() {
    let (queue, name, wrong) = (unique("login-half"), unique("order"), unique("order"));
    let mut raw = Raw::login(broker().port);
    raw.open(1);
    raw.declare(1, &queue);
    let behind = |burst: Burst, name: &str| {
        let burst = burst.tune_ok().vhost("/").channel(1);
        let burst = burst.method(1, id::CONFIRM_SELECT, |out| out.put_u8(0));
        burst.publish(&queue, &named(name)).publish(&queue, &Properties::persistent()).send()
    };
    let mut refused = behind(Burst::default().start_ok("guest", "wrong"), &wrong);
    let mut parked = behind(Burst::default().start_ok("guest", "guest"), &name);
    for (channel, answer) in
        [(0, id::START), (0, id::TUNE), (0, id::OPEN_OK), (1, id::CHANNEL_OPEN_OK), (1, id::CONFIRM_SELECT_OK)]
    {
        parked.expect(channel, answer);
    }
    let mut confirmed = 0;
    while confirmed < 2 {
        let ack = parked.expect(1, id::ACK);
        let (tag, multiple) = (ack[7], ack[8] & 1 == 1);
        assert!(tag <= 2, "RabbitMQ's numbers are the client's");
        confirmed = if multiple { usize::from(tag) } else { confirmed + 1 };
    }
    assert_eq!(transactions(&name), 1);
    assert_eq!(raw.drain(1, &queue), ["body"], "the ordinary message, and not the half one");
    refused.expect_end(Duration::from_secs(45));
    assert_eq!(transactions(&wrong), 0);
}
