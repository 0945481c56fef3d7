//! Who the client is, and that nothing is believed, kept or done before RabbitMQ has said so.

use super::*;

fn open(vhost: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    method::write_open(&mut out, vhost);
    out
}

fn start_from(version: &[u8]) -> Vec<u8> {
    let (mut properties, mut out) = (Vec::new(), Vec::new());
    table::write_string(&mut properties, b"version", version);
    let start = Start { version: (0, 9), server_properties: &properties, mechanisms: b"PLAIN", locales: b"en_US" };
    start.write(&mut out);
    out
}

/// A burst that has to wait at some byte, and the session that shows the rest again, as the real one does.
struct Burst {
    script: Script,
    rest: Vec<u8>,
}

impl Burst {
    /// RabbitMQ is connected, and the client sends all of this at once.
    fn new(bytes: &[u8]) -> Self {
        let mut script = Script::new(settings());
        script.client(&PROTOCOL_HEADER);
        assert!(matches!(script.command(), Command::Connect));
        script.connection.handle_upstream_connected();
        script.sent();
        let mut burst = Self { script, rest: bytes.to_vec() };
        burst.go_on();
        burst
    }

    fn go_on(&mut self) {
        while !self.rest.is_empty() && self.script.connection.wants_client() {
            let used = self.script.connection.handle_client(&self.rest);
            self.rest.drain(..used);
            if used == 0 {
                break;
            }
        }
        self.script.collect();
    }

    /// RabbitMQ says something; gives back what it has got since it spoke last.
    fn upstream(&mut self, bytes: &[u8]) -> Vec<(u16, (u16, u16))> {
        self.script.upstream(bytes);
        self.go_on();
        methods(&self.script.sent().1)
    }
}

fn parked(script: &mut Script) -> bool {
    script.commands.iter().any(|command| !matches!(command, Command::Connect | Command::Opened(_)))
}

#[test]
fn a_second_login_changes_nothing_and_goes_to_rabbitmq() {
    for second in [login("bob", b"PLAIN"), tune(id::CONNECTION_TUNE_OK), open(b"b")] {
        let mut script = Script::transactional(settings());
        let before = script.connection.io.identity.clone().unwrap();
        script.client(&second);
        assert_eq!(script.sent().1, second, "RabbitMQ ends it");
        assert_eq!(script.connection.io.identity, Some(before));
    }
}

#[test]
fn the_burst_of_two_logins_is_one_login() {
    let channels = (2..1_500).flat_map(|number| {
        let mut out = Vec::new();
        method::write_channel_open(&mut out, number);
        out
    });
    let first = [login("alice", b"PLAIN"), tune(id::CONNECTION_TUNE_OK), open(b"a"), bare(1, id::TX_SELECT)].concat();
    let rest = [publish(1, b"body"), bare(1, id::TX_COMMIT), channels.collect(), login("bob", b"PLAIN"), open(b"b")];
    let mut burst = Burst::new(&[first, rest.concat()].concat());
    assert_eq!(burst.upstream(&start()), [(0, id::CONNECTION_START_OK)]);
    assert_eq!(burst.upstream(&tune(id::CONNECTION_TUNE)), [(0, id::CONNECTION_TUNE_OK), (0, id::CONNECTION_OPEN)]);
    burst.upstream(&bare(0, id::CONNECTION_OPEN_OK));
    let Command::Opened(opened) = burst.script.command() else { panic!("it is open") };
    assert_eq!((&*opened.identity.user, &*opened.identity.vhost), ("alice", "a"));
    burst.upstream(&bare(0, id::CONNECTION_OPEN_OK));
    assert_eq!(burst.script.connection.io.identity, Some(opened.identity));
}

#[test]
fn a_step_out_of_turn_is_the_last_one() {
    let whole = [login("alice", b"PLAIN"), tune(id::CONNECTION_TUNE_OK), open(b"a")];
    for wrong in [tune(id::CONNECTION_TUNE_OK), open(b"b"), publish(1, b"body"), bare(0, id::CONNECTION_CLOSE)] {
        let mut burst = Burst::new(&[wrong.clone(), whole.concat()].concat());
        let passed = burst.upstream(&start());
        assert_eq!(passed, methods(&wrong)[..1], "what came instead is RabbitMQ's to answer, and nothing behind it");
        burst.upstream(&bare(0, id::CONNECTION_OPEN_OK));
        assert!(
            matches!(burst.script.command(), Command::Close),
            "RabbitMQ can't be taken at its word for another login"
        );
        assert_eq!(burst.script.connection.io.identity, None);
    }
    // Twice the same step is one out of turn as well.
    let mut burst = Burst::new(&[whole[0].clone(), whole[0].clone(), whole[1].clone(), whole[2].clone()].concat());
    burst.upstream(&start());
    assert_eq!(burst.upstream(&tune(id::CONNECTION_TUNE)), [(0, id::CONNECTION_START_OK)]);
}

#[test]
fn what_comes_behind_open_waits_for_open_ok_and_is_then_handled() {
    let first = [login("alice", b"PLAIN"), tune(id::CONNECTION_TUNE_OK), open(b"a")].concat();
    let behind = [bare(1, id::CHANNEL_OPEN), bare(1, id::CONFIRM_SELECT), half(1, "order", b"body")].concat();
    let mut burst = Burst::new(&[first, behind.clone()].concat());
    burst.upstream(&start());
    assert_eq!(burst.upstream(&tune(id::CONNECTION_TUNE)), [(0, id::CONNECTION_TUNE_OK), (0, id::CONNECTION_OPEN)]);
    assert_eq!(burst.rest, behind, "not a byte of it is looked at");
    assert_eq!(burst.script.connection.channels(), (0, 0));
    assert!(!parked(&mut burst.script));
    let passed = burst.upstream(&bare(0, id::CONNECTION_OPEN_OK));
    assert_eq!(passed[..2], [(1, id::CHANNEL_OPEN), (1, id::CONFIRM_SELECT)]);
    assert!(!passed.contains(&(1, id::BASIC_PUBLISH)), "the half message is held back, not delivered");
}

#[test]
fn nothing_is_kept_behind_a_wrong_password() {
    let behind = [bare(1, id::CHANNEL_OPEN), bare(1, id::TX_SELECT), half(1, "order", &[7; 9_000])].concat();
    let whole = [login("alice", b"PLAIN"), tune(id::CONNECTION_TUNE_OK), open(b"a"), behind.repeat(20)].concat();
    let mut burst = Burst::new(&whole);
    assert_eq!(burst.upstream(&start()), [(0, id::CONNECTION_START_OK)]);
    let refused = close(0, 403, "ACCESS_REFUSED");
    assert_eq!(burst.upstream(&refused), [], "nothing behind the login reaches RabbitMQ");
    assert!(burst.rest.is_empty() && !parked(&mut burst.script));
    assert_eq!(burst.script.connection.channels(), (0, 0));
    burst.rest = bare(0, id::CONNECTION_CLOSE_OK);
    assert_eq!(burst.upstream(&[]), [(0, id::CONNECTION_CLOSE_OK)]);
}

#[test]
fn a_login_frame_is_bounded_as_by_rabbitmq() {
    for (version, max) in [(&b"3.10.8"[..], 4_096), (b"4.0.5", 4_096), (b"4.1.0", 8_192)] {
        for (bytes, fits) in [(max, true), (max + 1, false)] {
            let header = |bytes: usize| [&[1, 0, 0][..], &(bytes as u32).to_be_bytes()].concat();
            let mut burst = Burst::new(&header(bytes));
            burst.upstream(&start_from(version));
            assert_eq!(burst.rest.is_empty(), !fits, "{bytes} bytes for {}", String::from_utf8_lossy(version));
            assert!(burst.script.connection.input_bytes_max().is_some_and(|kept| kept <= max + 8));
            let commands = burst.script.commands.len();
            burst.script.later(REFUSED_FOR);
            assert_eq!(burst.script.commands.len() > commands, !fits, "what is too large is closed after a while");
        }
    }
}

#[test]
fn a_virtual_host_that_is_no_text_is_not_taken_for_another() {
    let mut burst = Burst::new(&[login("alice", b"PLAIN"), tune(id::CONNECTION_TUNE_OK), open(b"\xff")].concat());
    burst.upstream(&start());
    burst.upstream(&tune(id::CONNECTION_TUNE));
    burst.upstream(&bare(0, id::CONNECTION_OPEN_OK));
    assert!(matches!(burst.script.command(), Command::Close));
}

#[test]
fn what_a_proxy_must_not_offer_is_not_offered() {
    let mut script = Script::new(settings());
    script.client(&PROTOCOL_HEADER);
    script.connection.handle_upstream_connected();
    script.upstream(&start());
    let (to_client, _) = script.sent();
    let Split::Frame(frame) = frame::split(&to_client, 1000) else { panic!("start") };
    assert_eq!(Start::parse(frame.arguments()).unwrap().mechanisms, b"PLAIN AMQPLAIN");
}

#[test]
fn a_guarded_user_is_refused_as_by_a_wrong_password() {
    let mut script = Script::new(settings());
    script.client(&PROTOCOL_HEADER);
    script.connection.handle_upstream_connected();
    script.upstream(&start());
    script.sent();
    script.client(&login("guest", b"PLAIN"));
    let (to_client, to_upstream) = script.sent();
    let Split::Frame(frame) = frame::split(&to_client, 1000) else { panic!("close") };
    let close = Close::parse(frame.arguments()).unwrap();
    assert_eq!((close.code, close.method), (ReplyCode::ACCESS_REFUSED, (0, 0)));
    assert!(close.text.starts_with(b"ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN."));
    assert_eq!(to_upstream, b"", "RabbitMQ never hears of it");
    script.client(&login("orders", b"PLAIN"));
    assert_eq!(script.sent().1, b"", "nor of what comes behind");
    script.commands.clear();
    script.later(REFUSED_FOR);
    assert!(matches!(script.command(), Command::Abort));
}

#[test]
fn who_is_refused_is_counted_once() {
    let refusals = |connection: &mut Connection| {
        let commands = std::iter::from_fn(|| connection.poll_command());
        commands.filter_map(|it| if let Command::Refused(why) = it { Some(why) } else { None }).collect::<Vec<_>>()
    };
    let mut rubbish = Script::new(settings());
    rubbish.connection.handle_client(b"GET / HTTP/1.1");
    assert_eq!(refusals(&mut rubbish.connection), [Refusal::Protocol]);
    let mut silent = Script::new(settings());
    silent.connection.handle_time(silent.now + Duration::from_secs(10));
    assert_eq!(refusals(&mut silent.connection), [Refusal::Timeout]);
    let mut late = Script::new(settings());
    late.connection.drain();
    assert_eq!(refusals(&mut late.connection), [Refusal::Draining]);
    let mut guest = Script::new(settings());
    guest.client(&PROTOCOL_HEADER);
    guest.connection.handle_upstream_connected();
    guest.upstream(&start());
    guest.connection.handle_client(&login("guest", b"PLAIN"));
    guest.connection.handle_time(guest.now + REFUSED_FOR);
    assert_eq!(refusals(&mut guest.connection), [Refusal::Login]);
}

#[test]
fn external_is_refused_even_when_chosen() {
    let mut script = Script::new(settings());
    script.client(&PROTOCOL_HEADER);
    script.connection.handle_upstream_connected();
    script.upstream(&start());
    script.sent();
    script.client(&login("orders", b"EXTERNAL"));
    assert_eq!(script.sent(), (Vec::new(), Vec::new()), "silence, as from RabbitMQ");
}
