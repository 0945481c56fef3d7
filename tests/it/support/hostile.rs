//! Neighbours that nobody wants: each floods a port in its own way until it is dropped.

use super::id;
use super::raw::Raw;
use super::table::{Properties, Table};
use halfway::amqp::frame::{self, kind};
use halfway::amqp::wire::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a neighbour does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Sends heartbeats.
    Heartbeats,
    /// Decides about others in transactions that it rolls back.
    Decisions,
    /// Sends bodies in frames of one byte.
    TinyFrames,
    /// Publishes with headers of 43,000 entries, in transactions that it rolls back.
    Headers,
    /// Consumes and does not read.
    UnreadConsumers,
    /// Connects, greets, and connects again.
    NoLogin,
    /// Publishes to a full queue that takes nothing, on a hundred channels.
    StuckQueue,
    /// Commits what RabbitMQ has judged and can't take any more, in ever new exchanges that are gone by then.
    Poison,
    /// Publishes half messages without end, and decides about none.
    HalfMessages,
}

/// Every one.
pub const ALL: [Kind; 9] = [
    Kind::Heartbeats,
    Kind::Decisions,
    Kind::TinyFrames,
    Kind::Headers,
    Kind::UnreadConsumers,
    Kind::NoLogin,
    Kind::StuckQueue,
    Kind::Poison,
    Kind::HalfMessages,
];

impl Kind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Heartbeats => "heartbeats",
            Self::Decisions => "decisions",
            Self::TinyFrames => "tiny frames",
            Self::Headers => "headers of 43,000 entries",
            Self::UnreadConsumers => "unread consumers",
            Self::NoLogin => "connections without a login",
            Self::StuckQueue => "a stuck queue, 100 channels",
            Self::Poison => "poison",
            Self::HalfMessages => "a million half messages",
        }
    }
}

/// Some connections that do the same; they end with it.
pub struct Neighbours {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Neighbours {
    /// `count` of them at `port`, where `broker`'s port is RabbitMQ's own. Decisions go to `control`, an exchange.
    pub fn start(kind: Kind, port: u16, broker: u16, control: &'static str, count: usize) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let neighbour = |number| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || run(kind, (port, broker), control, number, &stop))
        };
        Self { threads: (0..count).map(neighbour).collect(), stop }
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A server that cuts it off has every right to.
            let _ = thread.join();
        }
    }
}

fn run(kind: Kind, (port, broker): (u16, u16), control: &str, number: usize, stop: &AtomicBool) {
    if kind == Kind::NoLogin {
        while !stop.load(Ordering::Relaxed) {
            let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
            let _ = socket.and_then(|mut socket| socket.write_all(&frame::PROTOCOL_HEADER));
        }
        return;
    }
    let mut raw = Raw::login(port);
    raw.open(1);
    if kind == Kind::Poison {
        return poison(&mut raw, broker, stop);
    }
    let mut chunk = Vec::new();
    match kind {
        Kind::Heartbeats => chunk = frame::HEARTBEAT.repeat(8_000),
        Kind::Decisions => {
            raw.open_tx(2);
            let headers = Table::new().string("x-half-transaction", "nobody-has-this");
            for _ in 0..200 {
                publish(&mut chunk, 2, (control, "commit"), &Properties::new().headers(headers.clone()), b"", 0);
            }
            frame::write_method(&mut chunk, 2, id::TX_ROLLBACK, |_| {});
        }
        Kind::TinyFrames => publish(&mut chunk, 1, ("", "no-such-queue"), &Properties::new(), &[7; 8_000], 9),
        Kind::Headers => {
            raw.open_tx(2);
            let headers = (0..43_000).fold(Table::new(), |table, _| table.entry("", b'V', b""));
            publish(&mut chunk, 2, ("", "no-such-queue"), &Properties::new().headers(headers), b"", 0);
            frame::write_method(&mut chunk, 2, id::TX_ROLLBACK, |_| {});
        }
        Kind::UnreadConsumers => {
            let queue = format!("unread-{number}");
            raw.declare_with(1, &queue, Table::new().entry("x-max-length", b'I', &1_000_u32.to_be_bytes()));
            for channel in 2..=20 {
                raw.open(channel);
                raw.consume(channel, &queue, &format!("unread-{channel}"), true);
            }
            publish(&mut chunk, 1, ("", &queue), &Properties::new(), &[7; 10_000], 0);
        }
        Kind::StuckQueue => {
            let queue = format!("stuck-{number}");
            let limits =
                Table::new().entry("x-max-length", b'I', &1_u32.to_be_bytes()).string("x-overflow", "reject-publish");
            raw.declare_with(1, &queue, limits);
            for channel in 2..=101 {
                raw.open_tx(channel);
                publish(&mut chunk, channel, ("", &queue), &Properties::persistent(), b"stuck", 0);
                frame::write_method(&mut chunk, channel, id::TX_COMMIT, |_| {});
            }
        }
        Kind::HalfMessages => {
            let name = format!("flood-{}-{number}", super::unique("half"));
            let properties = Properties::persistent().headers(Table::new().string("x-half-transaction", &name));
            for _ in 0..100 {
                publish(&mut chunk, 1, ("", "no-such-queue"), &properties, &[7; 100], 0);
            }
        }
        Kind::NoLogin | Kind::Poison => {}
    }
    flood(&raw.into_stream(), &chunk, kind != Kind::UnreadConsumers, stop);
}

/// Has RabbitMQ judge two messages, takes their exchange away behind the proxy's back, and commits.
fn poison(raw: &mut Raw, broker: u16, stop: &AtomicBool) {
    let mut direct = Raw::login(broker);
    direct.open(1);
    raw.open_tx(2);
    while !stop.load(Ordering::Relaxed) {
        let exchange = super::unique("poison");
        direct.declare_exchange(1, &exchange, "fanout");
        let mut out = Vec::new();
        for _ in 0..2 {
            publish(&mut out, 2, (&exchange, "key"), &Properties::persistent(), b"poison", 0);
        }
        if raw.send(&out).is_err() {
            return;
        }
        // Answered behind what RabbitMQ was asked about them.
        raw.call(2, id::QOS, id::QOS_OK, |out| out.extend_from_slice(&[0; 7]));
        direct.delete_exchange(1, &exchange);
        raw.commit(2);
    }
}

/// Sends `chunk` again and again, and takes what comes back, or doesn't.
fn flood(mut stream: &TcpStream, chunk: &[u8], reads: bool, stop: &AtomicBool) {
    stream.set_nonblocking(true).expect("a socket");
    let (mut at, mut answers) = (0, vec![0; 64 << 10]);
    while !stop.load(Ordering::Relaxed) {
        let mut idle = true;
        match stream.write(&chunk[at..]) {
            Ok(written) => {
                at = (at + written) % chunk.len();
                idle = false;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        if reads {
            match stream.read(&mut answers) {
                Ok(0) => return,
                Ok(_) => idle = false,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
        if idle {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// Appends a message; its body in frames of `frame_max` bytes, 0 for one.
fn publish(
    out: &mut Vec<u8>,
    channel: u16,
    (exchange, routing_key): (&str, &str),
    properties: &Properties,
    body: &[u8],
    frame_max: u32,
) {
    frame::write_method(out, channel, id::PUBLISH, |out| {
        out.put_u16(0);
        out.put_short_string(exchange.as_bytes());
        out.put_short_string(routing_key.as_bytes());
        out.put_u8(0);
    });
    frame::write(out, kind::HEADER, channel, |out| out.extend_from_slice(&properties.encode(body.len() as u64)));
    let bytes = if frame_max == 0 { body.len().max(1) } else { frame_max as usize - frame::OVERHEAD_BYTES };
    for part in body.chunks(bytes) {
        frame::write(out, kind::BODY, channel, |out| out.extend_from_slice(part));
    }
}
