//! The relay's account, seen from RabbitMQ: a short conversation that publishes nothing, because every probe is in a
//! transaction that is rolled back.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{Finding, Verdict};
use crate::{
    amqp::{
        frame::{self, Split},
        method::{self, Close, Publish, Start, StartOk, Tune, id},
        reply_code::ReplyCode,
        table,
        wire::Write,
    },
    config::{Relay, UpstreamUrl},
    upstream::{Stream, Upstream},
};

/// Whether one node is reached and speaks AMQP 0-9-1, and what it says of itself.
pub(super) async fn greet(upstream: &Upstream, url: &UpstreamUrl) -> Finding {
    let hello = async {
        let (_, product) = Conversation::begin(upstream).await?;
        Ok::<_, Trouble>(product)
    };
    let what = format!("upstream {url}");
    match within_patience(hello).await {
        Ok(product) => Finding::new(what, Verdict::Fine, product),
        Err(trouble) => Finding::new(what, Verdict::Failed, trouble.text()),
    }
}

/// Whether the account can log in, write to any exchange, and keep the user-id of other users' messages.
pub(super) async fn examine(upstream: &Upstream, relay: &Relay, vhost: &str) -> Vec<Finding> {
    let what = |part: &str| format!("relay account `{}`, virtual host `{vhost}`: {part}", relay.username);
    let mut conversation = match within_patience(Conversation::log_in(upstream, relay, vhost)).await {
        Ok(conversation) => conversation,
        Err(trouble) => return vec![Finding::new(what("login"), Verdict::Failed, trouble.text())],
    };
    let mut findings = vec![Finding::new(what("login"), Verdict::Fine, "accepted")];

    // RabbitMQ asks for the permission before it looks for the exchange, so an exchange that is not there shows whether
    // the permission holds for any name.
    let write = match within_patience(conversation.probe(1, b"halfway-doctor", None)).await {
        Ok(()) => Finding::new(what("write"), Verdict::Fine, "permitted"),
        Err(Trouble::Refused(ReplyCode::NOT_FOUND, _)) => Finding::new(what("write"), Verdict::Fine, "permitted"),
        Err(trouble) => Finding::new(what("write"), Verdict::Failed, trouble.text()),
    };
    findings.push(write);

    let user_id = match within_patience(conversation.probe(2, b"", Some(b"halfway-doctor"))).await {
        Ok(()) => Finding::new(what("user-id"), Verdict::Fine, "kept, whoever published"),
        Err(Trouble::Refused(ReplyCode::PRECONDITION_FAILED, _)) => {
            let text = "the account lacks the tag `impersonator`: messages with a user-id become dead letters";
            Finding::new(what("user-id"), Verdict::Warning, text)
        }
        Err(trouble) => Finding::new(what("user-id"), Verdict::Failed, trouble.text()),
    };
    findings.push(user_id);
    // RabbitMQ needs no good-bye; one merely keeps its log clean.
    let _ = within_patience(conversation.end()).await;
    findings
}

async fn within_patience<T>(step: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    timeout(PATIENCE, step).await.unwrap_or_else(|_| Err(Trouble::Other("no answer in time".into())))
}

/// What went wrong.
enum Trouble {
    /// RabbitMQ closed the channel or the connection, with this code and text.
    Refused(ReplyCode, String),
    /// Anything else, in words.
    Other(String),
}

impl Trouble {
    fn text(self) -> String {
        match self {
            Trouble::Refused(_, text) | Trouble::Other(text) => text,
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                Trouble::Other("RabbitMQ closed the connection without a word".into())
            }
            _ => Trouble::Other(error.to_string()),
        }
    }
}

/// One connection, one question at a time.
struct Conversation {
    stream: Stream,
    received: Vec<u8>,
}

impl Conversation {
    /// Connects as far as connection.start; also tells what the server says that it is.
    async fn begin(upstream: &Upstream) -> Result<(Self, String), Trouble> {
        let mut stream = upstream.connect(None).await.map_err(|error| match error.tried.as_slice() {
            // The finding names the only node already.
            [(_, reason)] => Trouble::Other(reason.to_string()),
            _ => Trouble::Other(error.to_string()),
        })?;
        stream.write_all(&frame::PROTOCOL_HEADER).await?;
        let mut conversation = Conversation { stream, received: Vec::new() };
        let arguments = conversation.expect(0, id::CONNECTION_START).await?;
        let start = Start::parse(&arguments).map_err(|_| Trouble::Other(NOT_AMQP.into()))?;
        let property = |name: &[u8]| match table::find(start.server_properties, name) {
            Some(entry) => String::from_utf8_lossy(entry.value).into_owned(),
            None => "(unknown)".into(),
        };
        let product = format!("{} {}", property(b"product"), property(b"version"));
        Ok((conversation, product))
    }

    async fn log_in(upstream: &Upstream, relay: &Relay, vhost: &str) -> Result<Self, Trouble> {
        let (mut conversation, _) = Self::begin(upstream).await?;
        // With this capability RabbitMQ says that a login failed; without it, it says nothing for three seconds.
        let mut capabilities = Vec::new();
        table::write_bool(&mut capabilities, b"authentication_failure_close", true);
        let mut properties = Vec::new();
        table::write_string(&mut properties, b"connection_name", b"halfway doctor");
        properties.put_short_string(b"capabilities");
        properties.put_u8(b'F');
        properties.put_long_string(&capabilities);
        let response = format!("\0{}\0{}", relay.username, relay.password.expose());
        let start_ok = StartOk {
            client_properties: &properties,
            mechanism: b"PLAIN",
            response: response.as_bytes(),
            locale: b"en_US",
        };
        let mut out = Vec::new();
        start_ok.write(&mut out);
        conversation.stream.write_all(&out).await?;

        let arguments = conversation.expect(0, id::CONNECTION_TUNE).await?;
        let tune = Tune::parse(&arguments).map_err(|_| Trouble::Other(NOT_AMQP.into()))?;
        let mut out = Vec::new();
        Tune { heartbeat: 0, ..tune }.write_ok(&mut out);
        method::write_open(&mut out, vhost.as_bytes());
        conversation.stream.write_all(&out).await?;
        conversation.expect(0, id::CONNECTION_OPEN_OK).await?;
        Ok(conversation)
    }

    /// Publishes an empty message to `exchange` on a channel of its own, in a transaction that is rolled back.
    async fn probe(&mut self, channel: u16, exchange: &[u8], user_id: Option<&[u8]>) -> Result<(), Trouble> {
        let mut out = Vec::new();
        frame::write_method(&mut out, channel, id::CHANNEL_OPEN, |out| out.put_short_string(b""));
        method::write_bare(&mut out, channel, id::TX_SELECT);
        Publish { exchange, routing_key: b"halfway-doctor", flags: 0 }.write(&mut out, channel);
        let mut header = Vec::new();
        header.put_u16(method::CLASS_BASIC);
        header.put_u16(0);
        header.put_u64(0);
        header.put_u16(if user_id.is_some() { USER_ID } else { 0 });
        if let Some(user_id) = user_id {
            header.put_short_string(user_id);
        }
        frame::write_content(&mut out, channel, &header, b"", 0);
        method::write_bare(&mut out, channel, id::TX_ROLLBACK);
        self.stream.write_all(&out).await?;
        self.expect(channel, id::CHANNEL_OPEN_OK).await?;
        self.expect(channel, id::TX_SELECT_OK).await?;
        self.expect(channel, id::TX_ROLLBACK_OK).await?;
        Ok(())
    }

    async fn end(&mut self) -> Result<(), Trouble> {
        let mut out = Vec::new();
        Close { code: ReplyCode::SUCCESS, text: b"", method: (0, 0) }.write(&mut out, 0);
        self.stream.write_all(&out).await?;
        self.expect(0, id::CONNECTION_CLOSE_OK).await?;
        Ok(())
    }

    /// The arguments of the next method on `channel`, which must be `wanted`.
    async fn expect(&mut self, channel: u16, wanted: (u16, u16)) -> Result<Vec<u8>, Trouble> {
        loop {
            let (used, found) = match frame::split(&self.received, FRAME_BYTES_MAX) {
                Split::Malformed => return Err(Trouble::Other(NOT_AMQP.into())),
                Split::NeedBytes(_) => {
                    if self.received.starts_with(b"AMQP") {
                        return Err(Trouble::Other("the server refuses AMQP 0-9-1".into()));
                    }
                    if self.stream.read_buf(&mut self.received).await? == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                    continue;
                }
                Split::Frame(frame) => {
                    let found = match frame.method_id() {
                        // A heartbeat, or connection.blocked: nothing that was asked for.
                        None | Some(id::CONNECTION_BLOCKED | id::CONNECTION_UNBLOCKED) => None,
                        Some(method) => Some((frame.channel, method, frame.arguments().to_vec())),
                    };
                    (frame.raw.len(), found)
                }
            };
            self.received.drain(..used);
            match found {
                None => {}
                Some((on, method, arguments)) if on == channel && method == wanted => return Ok(arguments),
                Some((_, id::CONNECTION_CLOSE | id::CHANNEL_CLOSE, arguments)) => {
                    let close = Close::parse(&arguments).map_err(|_| Trouble::Other(NOT_AMQP.into()))?;
                    return Err(Trouble::Refused(close.code, String::from_utf8_lossy(close.text).into_owned()));
                }
                Some((_, (class, method), _)) => {
                    return Err(Trouble::Other(format!(
                        "the server answers out of turn, with method {class}.{method}"
                    )));
                }
            }
        }
    }
}

const NOT_AMQP: &str = "the server does not speak AMQP 0-9-1";
/// The bit of the property flags.
const USER_ID: u16 = 1 << 4;
/// More than any method of the handshake takes.
const FRAME_BYTES_MAX: usize = 128 * 1024;
/// RabbitMQ's own limit for a handshake.
const PATIENCE: Duration = Duration::from_secs(10);
