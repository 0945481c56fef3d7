//! Becoming a connection of RabbitMQ's: the client's side of the AMQP handshake, with PLAIN.

use crate::amqp::frame::{self, Frame, Split};
use crate::amqp::method::{self, Close, Start, StartOk, Tune, id};
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::table;
use crate::amqp::wire::{Malformed, Write};
use crate::upstream::Stream;
use bytes::{Buf, BytesMut};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// RabbitMQ's own limit for the whole handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds between signs of life that we ask for: a RabbitMQ that is gone without a word is missed after twice that.
const HEARTBEAT_MAX: u16 = 15;
/// Payload that a frame may have that comes from RabbitMQ, at the least: it does not split content headers.
const PAYLOAD_BYTES: usize = 1 << 20;

/// The account that the relay publishes with. Its `Debug` shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub username: String,
    /// The user's password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Why RabbitMQ did not let us in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// It says why: 403 for a wrong account, 530 for a virtual host that is not there or not allowed.
    #[error("RabbitMQ refused: {0} {1}")]
    Refused(ReplyCode, String),
    /// What answers there is no RabbitMQ that we can talk to.
    #[error("the handshake failed: {0}")]
    Protocol(&'static str),
    /// The connection failed, or was closed without a word.
    #[error("the connection failed in the handshake: {0}")]
    Io(#[from] io::Error),
    /// It did not finish in time.
    #[error("the handshake took too long")]
    Timeout,
}

impl From<Malformed> for LoginError {
    fn from(Malformed: Malformed) -> Self {
        Self::Protocol("what came is no AMQP 0-9-1")
    }
}

/// A connection that RabbitMQ has opened.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: Stream,
    /// What was read and not looked at.
    pub(super) input: BytesMut,
    /// The largest frame that RabbitMQ takes, in bytes; 0 is no limit.
    pub(super) frame_bytes_max: u32,
    /// How many channels RabbitMQ offers.
    pub(super) channels_max: u16,
    /// How often each side gives a sign of life.
    pub(super) heartbeat: Duration,
}

impl Connection {
    /// Logs in and opens `vhost`.
    pub(super) async fn open(stream: Stream, credentials: &Credentials, vhost: &str) -> Result<Self, LoginError> {
        let heartbeat = Duration::from_secs(HEARTBEAT_MAX.into());
        let mut connection = Self { stream, input: BytesMut::new(), frame_bytes_max: 0, channels_max: 0, heartbeat };
        match timeout(HANDSHAKE_TIMEOUT, connection.shake_hands(credentials, vhost)).await {
            Ok(done) => done.map(|()| connection),
            Err(_) => Err(LoginError::Timeout),
        }
    }

    async fn shake_hands(&mut self, credentials: &Credentials, vhost: &str) -> Result<(), LoginError> {
        self.stream.write_all(&frame::PROTOCOL_HEADER).await?;
        let mut out = Vec::new();
        self.method(id::CONNECTION_START, |arguments| {
            let start = Start::parse(arguments)?;
            if !start.mechanisms.split(|byte| *byte == b' ').any(|mechanism| mechanism == b"PLAIN") {
                return Err(LoginError::Protocol("RabbitMQ does not offer PLAIN"));
            }
            let response = format!("\0{}\0{}", credentials.username, credentials.password);
            let client_properties = &client_properties();
            StartOk { client_properties, mechanism: b"PLAIN", response: response.as_bytes(), locale: b"en_US" }
                .write(&mut out);
            Ok(())
        })
        .await?;
        self.stream.write_all(&out).await?;
        self.stream.flush().await?;

        let mut tune = self.method(id::CONNECTION_TUNE, |arguments| Ok(Tune::parse(arguments)?)).await?;
        tune.heartbeat = if tune.heartbeat == 0 { HEARTBEAT_MAX } else { tune.heartbeat.min(HEARTBEAT_MAX) };
        self.heartbeat = Duration::from_secs(tune.heartbeat.into());
        // All that RabbitMQ allows: it splits no content header, so a smaller frame could make one impossible to send.
        self.frame_bytes_max = tune.frame_max;
        self.channels_max = if tune.channel_max == 0 { u16::MAX } else { tune.channel_max };
        out.clear();
        tune.write_ok(&mut out);
        method::write_open(&mut out, vhost.as_bytes());
        self.stream.write_all(&out).await?;
        self.stream.flush().await?;
        self.method(id::CONNECTION_OPEN_OK, |_| Ok(())).await
    }

    /// Waits for the method `expected`, and lets `read` see its arguments.
    async fn method<T>(
        &mut self,
        expected: (u16, u16),
        read: impl FnOnce(&[u8]) -> Result<T, LoginError>,
    ) -> Result<T, LoginError> {
        self.frame(|frame| match frame.method_id() {
            Some(id) if id == expected => read(frame.arguments()),
            Some(id::CONNECTION_CLOSE) => {
                let close = Close::parse(frame.arguments())?;
                Err(LoginError::Refused(close.code, String::from_utf8_lossy(close.text).into_owned()))
            }
            _ => Err(LoginError::Protocol("RabbitMQ sent another method than was due")),
        })
        .await
    }

    /// Waits for the next frame.
    pub(super) async fn frame<T>(
        &mut self,
        read: impl FnOnce(Frame<'_>) -> Result<T, LoginError>,
    ) -> Result<T, LoginError> {
        loop {
            if self.input.starts_with(b"AMQP") {
                return Err(LoginError::Protocol("RabbitMQ speaks another version of AMQP"));
            }
            match frame::split(&self.input, self.payload_bytes_max()) {
                Split::Frame(frame) => {
                    let length = frame.raw.len();
                    let result = read(frame);
                    self.input.advance(length);
                    return result;
                }
                Split::NeedBytes(_) => {
                    if self.stream.read_buf(&mut self.input).await? == 0 {
                        return Err(LoginError::Io(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
                Split::Malformed => return Err(Malformed.into()),
            }
        }
    }

    /// The largest payload of a frame that is read. Without a limit RabbitMQ gives back a message in a single frame.
    pub(super) fn payload_bytes_max(&self) -> usize {
        match self.frame_bytes_max {
            0 => u32::MAX as usize,
            max => PAYLOAD_BYTES.max(max as usize),
        }
    }
}

/// What we run on, as clients say it.
fn platform() -> String {
    format!("Rust on {} {}", std::env::consts::OS, std::env::consts::ARCH)
}

/// What RabbitMQ shows of us in its lists, all that clients tell of themselves and tools look for, and the capabilities
/// that change how it treats us.
fn client_properties() -> Vec<u8> {
    let mut properties = Vec::new();
    table::write_string(&mut properties, b"product", b"Halfway");
    table::write_string(&mut properties, b"version", env!("CARGO_PKG_VERSION").as_bytes());
    table::write_string(&mut properties, b"platform", platform().as_bytes());
    table::write_string(&mut properties, b"information", env!("CARGO_PKG_DESCRIPTION").as_bytes());
    table::write_string(&mut properties, b"connection_name", b"halfway relay");
    let mut capabilities = Vec::new();
    for capability in [
        &b"connection.blocked"[..],
        b"publisher_confirms",
        b"basic.nack",
        b"consumer_cancel_notify",
        b"authentication_failure_close",
    ] {
        table::write_bool(&mut capabilities, capability, true);
    }
    properties.put_short_string(b"capabilities");
    properties.put_u8(b'F');
    properties.put_long_string(&capabilities);
    properties
}
