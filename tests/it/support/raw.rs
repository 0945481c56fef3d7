//! A small AMQP client that sends exactly the bytes it is told to and shows exactly what comes back.

use super::id::{self, Id};
use super::table::Properties;
use halfway::amqp::frame::{self, Split, kind};
use halfway::amqp::wire::{Reader, Write as _};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// One frame, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The type octet.
    pub kind: u8,
    /// The channel.
    pub channel: u16,
    /// What stands between header and end octet.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Class and method id; (0, 0) for what is not a method.
    pub fn id(&self) -> Id {
        let raw = &[][..];
        frame::Frame { kind: self.kind, channel: self.channel, payload: &self.payload, raw }
            .method_id()
            .unwrap_or((0, 0))
    }

    /// The arguments of a method.
    pub fn arguments(&self) -> &[u8] {
        self.payload.get(4..).unwrap_or_default()
    }
}

/// The arguments of `connection.start` as the proxy lets them pass: of the mechanisms those with a user and a password.
pub fn start_with_passwords(arguments: &[u8]) -> Vec<u8> {
    let mut reader = Reader::new(arguments);
    let mut out = vec![reader.u8().expect("a major version"), reader.u8().expect("a minor version")];
    out.put_long_string(reader.long_string().expect("server properties"));
    let mechanisms = String::from_utf8_lossy(reader.long_string().expect("mechanisms")).into_owned();
    let left: Vec<_> = mechanisms.split(' ').filter(|name| ["PLAIN", "AMQPLAIN"].contains(name)).collect();
    out.put_long_string(left.join(" ").as_bytes());
    out.put_long_string(reader.long_string().expect("locales"));
    out
}

/// The end of a connection or a channel, in the server's words: reply code, text, and the method it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// Reply code.
    pub code: u16,
    /// Reply text.
    pub text: String,
    /// The method that failed; (0, 0) if none.
    pub about: Id,
}

impl Close {
    /// Reads the arguments of `channel.close` or `connection.close`.
    pub fn read(arguments: &[u8]) -> Self {
        let mut reader = Reader::new(arguments);
        let code = reader.u16().expect("a reply code");
        let text = String::from_utf8_lossy(reader.short_string().expect("a reply text")).into_owned();
        Self { code, text, about: (reader.u16().expect("a class"), reader.u16().expect("a method")) }
    }
}

/// A content with the method before it: a delivery, the answer to a get, a return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The method.
    pub id: Id,
    /// The method's arguments.
    pub arguments: Vec<u8>,
    /// The content header's properties.
    pub properties: Properties,
    /// The body.
    pub body: Vec<u8>,
}

impl Content {
    /// The delivery tag of a delivery or of the answer to a get.
    pub fn tag(&self) -> u64 {
        let mut reader = Reader::new(&self.arguments);
        if self.id == id::DELIVER {
            reader.short_string().expect("a consumer tag");
        }
        reader.u64().expect("a delivery tag")
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// How to log in.
#[derive(Clone)]
pub struct Login<'a> {
    /// User name; the password is the same, as for all users of the tests.
    pub user: &'a str,
    /// Password.
    pub password: &'a str,
    /// Virtual host.
    pub vhost: &'a str,
    /// What tune-ok asks for; 0 takes what the server offers.
    pub frame_max: u32,
    /// What tune-ok asks for, in seconds.
    pub heartbeat: u16,
    /// What tune-ok asks for.
    pub channel_max: u16,
}

impl Default for Login<'_> {
    fn default() -> Self {
        Self { user: "guest", password: "guest", vhost: "/", frame_max: 131_072, heartbeat: 0, channel_max: 2047 }
    }
}

/// A connection.
pub struct Raw {
    stream: TcpStream,
    input: Vec<u8>,
    /// The negotiated frame_max.
    pub frame_max: u32,
    /// The arguments of the server's `connection.start`.
    pub start: Vec<u8>,
    /// The arguments of the server's `connection.tune`.
    pub tune: Vec<u8>,
}

impl Raw {
    /// Opens a socket and sends nothing.
    pub fn dial(port: u16) -> io::Result<Self> {
        Self::dial_at(&format!("127.0.0.1:{port}"))
    }

    fn dial_at(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, input: Vec::new(), frame_max: 131_072, start: Vec::new(), tune: Vec::new() })
    }

    /// Logs in as guest.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn login(port: u16) -> Self {
        Self::try_login(port).expect("guest can log in")
    }

    /// Logs in as guest, if somebody is there.
    pub fn try_login(port: u16) -> io::Result<Self> {
        Self::login_as(port, &Login::default())
    }

    /// Logs in. An error with the kind `PermissionDenied` carries the server's `connection.close`.
    pub fn login_as(port: u16, login: &Login) -> io::Result<Self> {
        Self::login_at(&format!("127.0.0.1:{port}"), login)
    }

    /// As [`Raw::login_as`], at any address.
    pub fn login_at(address: &str, login: &Login) -> io::Result<Self> {
        let mut raw = Self::dial_at(address)?;
        raw.send(&frame::PROTOCOL_HEADER)?;
        raw.start = raw.handshake(id::START)?;
        let properties = super::table::Table::new().string("product", "raw").entry(
            "capabilities",
            b'F',
            &super::table::long(
                &["authentication_failure_close", "connection.blocked", "consumer_cancel_notify", "basic.nack"]
                    .iter()
                    .fold(super::table::Table::new(), |table, name| table.entry(name, b't', &[1]))
                    .0,
            ),
        );
        raw.method(0, id::START_OK, |out| {
            out.put_long_string(&properties.0);
            out.put_short_string(b"PLAIN");
            out.put_long_string(format!("\0{}\0{}", login.user, login.password).as_bytes());
            out.put_short_string(b"en_US");
        })?;
        raw.tune = raw.handshake(id::TUNE)?;
        let offered = u32::from_be_bytes(raw.tune[2..6].try_into().expect("four bytes"));
        raw.frame_max = if login.frame_max == 0 { offered } else { login.frame_max };
        let frame_max = raw.frame_max;
        let channels_offered = u16::from_be_bytes(raw.tune[..2].try_into().expect("two bytes"));
        // Who asks for nothing else takes what is offered.
        let is_default = login.channel_max == Login::default().channel_max;
        let channel_max = if is_default { channels_offered.min(login.channel_max) } else { login.channel_max };
        raw.method(0, id::TUNE_OK, |out| {
            out.put_u16(channel_max);
            out.put_u32(frame_max);
            out.put_u16(login.heartbeat);
        })?;
        raw.method(0, id::OPEN, |out| {
            out.put_short_string(login.vhost.as_bytes());
            out.put_short_string(b"");
            out.put_u8(0);
        })?;
        raw.handshake(id::OPEN_OK)?;
        Ok(raw)
    }

    fn handshake(&mut self, id: Id) -> io::Result<Vec<u8>> {
        let frame = self.read(ANSWER_LIMIT)?;
        if frame.id() == id::CLOSE {
            let close = Close::read(frame.arguments());
            return Err(io::Error::new(ErrorKind::PermissionDenied, format!("{close:?}")));
        }
        if frame.id() != id {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("{:?} instead of {id:?}", frame.id())));
        }
        Ok(frame.arguments().to_vec())
    }

    /// This end's port.
    pub fn local_port(&self) -> u16 {
        self.stream.local_addr().expect("a connected socket has an address").port()
    }

    /// The bare socket, without what came and was not read.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Writes bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Writes a method.
    pub fn method(&mut self, channel: u16, id: Id, arguments: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut out = Vec::new();
        frame::write_method(&mut out, channel, id, arguments);
        self.send(&out)
    }

    /// The next frame that is not a heartbeat. `TimedOut` after `limit`; `UnexpectedEof` or `ConnectionReset` when the
    /// server has closed.
    pub fn read(&mut self, limit: Duration) -> io::Result<Frame> {
        let deadline = Instant::now() + limit;
        loop {
            let frame = self.read_any(deadline.saturating_duration_since(Instant::now()))?;
            if frame.kind != kind::HEARTBEAT {
                return Ok(frame);
            }
        }
    }

    /// The next frame, heartbeats included.
    pub fn read_any(&mut self, limit: Duration) -> io::Result<Frame> {
        let deadline = Instant::now() + limit;
        loop {
            match frame::split(&self.input, usize::MAX >> 1) {
                Split::Frame(found) => {
                    let frame = Frame { kind: found.kind, channel: found.channel, payload: found.payload.to_vec() };
                    let len = found.raw.len();
                    self.input.drain(..len);
                    return Ok(frame);
                }
                Split::Malformed => return Err(ErrorKind::InvalidData.into()),
                Split::NeedBytes(_) => self.fill(deadline)?,
            }
        }
    }

    /// Reads what is there into the input buffer.
    fn fill(&mut self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut piece = [0; 65_536];
        match self.stream.read(&mut piece) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                self.input.extend_from_slice(&piece[..len]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::TimedOut.into()),
            Err(error) => Err(error),
        }
    }

    /// The next frame, which must be the method `id` on `channel`: its arguments.
    ///
    /// # Panics
    /// If anything else comes, or nothing.
    #[track_caller]
    pub fn expect(&mut self, channel: u16, id: Id) -> Vec<u8> {
        let frame = self.read(ANSWER_LIMIT).unwrap_or_else(|error| panic!("{id:?} did not come: {error}"));
        assert!(
            (frame.channel, frame.id()) == (channel, id),
            "expected {id:?} on channel {channel}, got {:?} on channel {}: {:?}",
            frame.id(),
            frame.channel,
            String::from_utf8_lossy(&frame.payload)
        );
        frame.arguments().to_vec()
    }

    /// Sends a method and expects its answer.
    #[track_caller]
    pub fn call(&mut self, channel: u16, id: Id, answer: Id, arguments: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        self.method(channel, id, arguments).expect("the connection takes a method");
        self.expect(channel, answer)
    }

    /// Expects the server to close `channel`, or the connection for 0, and answers close-ok.
    #[track_caller]
    pub fn expect_close(&mut self, channel: u16) -> Close {
        let (close, close_ok) =
            if channel == 0 { (id::CLOSE, id::CLOSE_OK) } else { (id::CHANNEL_CLOSE, id::CHANNEL_CLOSE_OK) };
        let close = Close::read(&self.expect(channel, close));
        // After a connection error RabbitMQ may have closed the socket already.
        let _ = self.method(channel, close_ok, |_| {});
        close
    }

    /// Opens a channel.
    #[track_caller]
    pub fn open(&mut self, channel: u16) {
        self.call(channel, id::CHANNEL_OPEN, id::CHANNEL_OPEN_OK, |out| out.put_short_string(b""));
    }

    /// Opens a channel and selects transactions.
    #[track_caller]
    pub fn open_tx(&mut self, channel: u16) {
        self.open(channel);
        self.call(channel, id::TX_SELECT, id::TX_SELECT_OK, |_| {});
    }

    /// Closes a channel.
    #[track_caller]
    pub fn close(&mut self, channel: u16) {
        self.call(channel, id::CHANNEL_CLOSE, id::CHANNEL_CLOSE_OK, |out| {
            out.put_u16(200);
            out.put_short_string(b"");
            out.put_u32(0);
        });
    }

    /// Commits.
    #[track_caller]
    pub fn commit(&mut self, channel: u16) {
        self.call(channel, id::TX_COMMIT, id::TX_COMMIT_OK, |_| {});
    }

    /// Rolls back.
    #[track_caller]
    pub fn rollback(&mut self, channel: u16) {
        self.call(channel, id::TX_ROLLBACK, id::TX_ROLLBACK_OK, |_| {});
    }

    /// Declares a durable queue with arguments.
    #[track_caller]
    pub fn declare_with(&mut self, channel: u16, queue: &str, arguments: super::table::Table) {
        self.call(channel, id::QUEUE_DECLARE, id::QUEUE_DECLARE_OK, |out| {
            out.put_u16(0);
            out.put_short_string(queue.as_bytes());
            out.put_u8(0b00010);
            out.put_long_string(&arguments.0);
        });
    }

    /// Declares a durable queue.
    #[track_caller]
    pub fn declare(&mut self, channel: u16, queue: &str) {
        self.declare_with(channel, queue, super::table::Table::new());
    }

    /// Declares a durable exchange.
    #[track_caller]
    pub fn declare_exchange(&mut self, channel: u16, exchange: &str, kind: &str) {
        self.call(channel, id::EXCHANGE_DECLARE, id::EXCHANGE_DECLARE_OK, |out| {
            out.put_u16(0);
            out.put_short_string(exchange.as_bytes());
            out.put_short_string(kind.as_bytes());
            out.put_u8(0b00010);
            out.put_long_string(&[]);
        });
    }

    /// Deletes an exchange.
    #[track_caller]
    pub fn delete_exchange(&mut self, channel: u16, exchange: &str) {
        self.call(channel, id::EXCHANGE_DELETE, id::EXCHANGE_DELETE_OK, |out| {
            out.put_u16(0);
            out.put_short_string(exchange.as_bytes());
            out.put_u8(0);
        });
    }

    /// Binds a queue.
    #[track_caller]
    pub fn bind(&mut self, channel: u16, queue: &str, exchange: &str, key: &str) {
        self.call(channel, id::QUEUE_BIND, id::QUEUE_BIND_OK, |out| {
            out.put_u16(0);
            for name in [queue, exchange, key] {
                out.put_short_string(name.as_bytes());
            }
            out.put_u8(0);
            out.put_long_string(&[]);
        });
    }

    /// Publishes with every detail; `mandatory` is bit 0.
    #[track_caller]
    pub fn publish_with(
        &mut self,
        channel: u16,
        target: (&str, &[u8]),
        bits: u8,
        properties: &Properties,
        body: &[u8],
    ) {
        let mut out = Vec::new();
        frame::write_method(&mut out, channel, id::PUBLISH, |out| {
            out.put_u16(0);
            out.put_short_string(target.0.as_bytes());
            out.put_short_string(target.1);
            out.put_u8(bits);
        });
        frame::write_content(&mut out, channel, &properties.encode(body.len() as u64), body, self.frame_max);
        self.send(&out).expect("the connection takes a publish");
    }

    /// Publishes a persistent message to a queue.
    #[track_caller]
    pub fn publish(&mut self, channel: u16, queue: &str, body: impl AsRef<[u8]>) {
        self.publish_with(channel, ("", queue.as_bytes()), 0, &Properties::persistent(), body.as_ref());
    }

    /// Begins to publish a body of `announced` bytes to a queue, of which `sent` come.
    #[track_caller]
    pub fn begin(&mut self, channel: u16, queue: &str, announced: u64, sent: usize) {
        let mut out = Vec::new();
        frame::write_method(&mut out, channel, id::PUBLISH, |out| {
            out.put_u16(0);
            out.put_short_string(b"");
            out.put_short_string(queue.as_bytes());
            out.put_u8(0);
        });
        let header = Properties::persistent().encode(announced);
        frame::write_content(&mut out, channel, &header, &vec![7; sent], self.frame_max);
        self.send(&out).expect("the connection takes a publish");
    }

    /// Expects a content: `id` is what comes before it.
    #[track_caller]
    pub fn expect_content(&mut self, channel: u16, id: Id) -> Content {
        let arguments = self.expect(channel, id);
        self.content(channel, id, arguments)
    }

    /// Reads the header and the body behind a method that was read already.
    #[track_caller]
    pub fn content(&mut self, channel: u16, id: Id, arguments: Vec<u8>) -> Content {
        let header = self.read(ANSWER_LIMIT).expect("a content header comes");
        assert_eq!((header.kind, header.channel), (kind::HEADER, channel));
        let (size, properties) = Properties::decode(&header.payload);
        let mut body = Vec::new();
        while (body.len() as u64) < size {
            let piece = self.read(ANSWER_LIMIT).expect("the body comes");
            assert_eq!((piece.kind, piece.channel), (kind::BODY, channel));
            body.extend(piece.payload);
        }
        Content { id, arguments, properties, body }
    }

    /// Gets one message; it need not be acknowledged.
    #[track_caller]
    pub fn get(&mut self, channel: u16, queue: &str) -> Option<Content> {
        self.get_with(channel, queue, true)
    }

    /// Gets one message.
    #[track_caller]
    pub fn get_with(&mut self, channel: u16, queue: &str, no_ack: bool) -> Option<Content> {
        self.method(channel, id::GET, |out| {
            out.put_u16(0);
            out.put_short_string(queue.as_bytes());
            out.put_u8(no_ack.into());
        })
        .expect("the connection takes a get");
        let frame = self.read(ANSWER_LIMIT).expect("a get is answered");
        match frame.id() {
            id::GET_EMPTY => None,
            id::GET_OK => Some(self.content(channel, id::GET_OK, frame.arguments().to_vec())),
            other => panic!("{other:?} instead of a message: {:?}", String::from_utf8_lossy(&frame.payload)),
        }
    }

    /// Gets one message, and waits for it; it need not be acknowledged.
    #[track_caller]
    pub fn get_soon(&mut self, channel: u16, queue: &str) -> Content {
        self.get_until(channel, queue, true)
    }

    /// As [`Raw::get_soon`], but the message must be acknowledged.
    #[track_caller]
    pub fn get_held_soon(&mut self, channel: u16, queue: &str) -> Content {
        self.get_until(channel, queue, false)
    }

    #[track_caller]
    fn get_until(&mut self, channel: u16, queue: &str, no_ack: bool) -> Content {
        let mut found = None;
        super::wait_until(Instant::now() + ANSWER_LIMIT, &format!("a message in {queue}"), || {
            found = self.get_with(channel, queue, no_ack);
            found.is_some()
        });
        found.expect("the condition above")
    }

    /// Empties a queue: the bodies, as text.
    #[track_caller]
    pub fn drain(&mut self, channel: u16, queue: &str) -> Vec<String> {
        std::iter::from_fn(|| self.get(channel, queue)).map(|content| content.text()).collect()
    }

    /// Starts a consumer.
    #[track_caller]
    pub fn consume(&mut self, channel: u16, queue: &str, tag: &str, no_ack: bool) {
        self.call(channel, id::CONSUME, id::CONSUME_OK, |out| {
            out.put_u16(0);
            out.put_short_string(queue.as_bytes());
            out.put_short_string(tag.as_bytes());
            out.put_u8(if no_ack { 0b0010 } else { 0 });
            out.put_long_string(&[]);
        });
    }

    /// Sends `ack`.
    pub fn ack(&mut self, channel: u16, tag: u64, multiple: bool) {
        let ack = |out: &mut Vec<u8>| {
            out.put_u64(tag);
            out.put_u8(multiple.into());
        };
        self.method(channel, id::ACK, ack).expect("the connection takes an ack");
    }

    /// What comes until the server closes or is silent for `silence`: frames in words, then how it ended.
    pub fn transcript(&mut self, silence: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.read(silence) {
                Ok(frame) => lines.push(describe(&frame)),
                Err(error) if error.kind() == ErrorKind::TimedOut => lines.push("silence".to_owned()),
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    lines.push(format!("not frames: {:?}", String::from_utf8_lossy(&self.input)));
                    return lines;
                }
                Err(_) => lines.push("closed".to_owned()),
            }
            if lines.last().is_some_and(|last| last == "silence" || last == "closed") {
                return lines;
            }
        }
    }

    /// Waits until the server has closed the socket; whatever comes before is dropped.
    ///
    /// # Panics
    /// If that takes longer than `limit`.
    #[track_caller]
    pub fn expect_end(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.input.is_empty() || Instant::now() < deadline {
            match self.fill(deadline) {
                Ok(()) => self.input.clear(),
                Err(error) if error.kind() == ErrorKind::TimedOut => break,
                Err(_) => return,
            }
        }
        panic!("the server did not close within {limit:?}");
    }

    /// All bytes until the server closes or is silent.
    pub fn read_bytes(&mut self, silence: Duration) -> (Vec<u8>, bool) {
        loop {
            match self.fill(Instant::now() + silence) {
                Ok(()) => {}
                Err(error) => return (std::mem::take(&mut self.input), error.kind() != ErrorKind::TimedOut),
            }
        }
    }
}

/// A frame in words, without what differs from run to run.
pub fn describe(frame: &Frame) -> String {
    let Frame { kind, channel, payload } = frame;
    match (*kind, frame.id()) {
        (kind::METHOD, id::CHANNEL_CLOSE | id::CLOSE) => format!("{channel}: {:?}", Close::read(frame.arguments())),
        (kind::METHOD, id) => format!("{channel}: {id:?} {:?}", String::from_utf8_lossy(frame.arguments())),
        (kind::HEADER, _) => {
            let (size, properties) = Properties::decode(payload);
            format!("{channel}: header {size} {:?}", properties.without_half_id())
        }
        (kind::BODY, _) => format!("{channel}: body {:?}", String::from_utf8_lossy(payload)),
        (kind, _) => format!("{channel}: kind {kind} {payload:?}"),
    }
}
