//! Finding out, for `halfway doctor`, whether the relay's account can do its work.

use super::login::{Connection, Credentials, LoginError};
use crate::amqp::frame;
use crate::amqp::method::{self, Close, Publish, id};
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::wire::Write;
use crate::upstream::{ConnectError, Upstream};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A user name that is not the account's.
const SOMEBODY_ELSE: &[u8] = b"somebody else, asks halfway doctor";
/// Exchanges that every virtual host has: the account may be allowed to write to one of them.
const EXCHANGES: [&[u8]; 4] = [b"", b"amq.fanout", b"amq.direct", b"amq.topic"];

/// What an account may do in a virtual host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// Whether it may publish to the default exchange, through which queues are addressed by name. Other exchanges have
    /// permissions of their own.
    pub may_write_to_queues: bool,
    /// Whether it may publish in another user's name; `None` if that can't be found out, because the account may
    /// publish to no exchange that is always there.
    pub impersonator: Option<bool>,
    /// How many of the channels that the relay would open RabbitMQ allows: as many as could be opened, or as many as the
    /// account may have in all, if it has some open already.
    pub channels: u16,
}

/// Why it could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// RabbitMQ can't be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// RabbitMQ does not let the account in.
    #[error(transparent)]
    Login(LoginError),
    /// RabbitMQ lets it in, and open no channel more: the relay that runs has all that the account may have.
    #[error("{text}")]
    UsedUp {
        /// How many that are.
        limit: u16,
        /// RabbitMQ's words.
        text: String,
    },
}

impl From<LoginError> for RightsError {
    fn from(error: LoginError) -> Self {
        let limit = match &error {
            LoginError::Refused(_, text) => user_limit(text.as_bytes()),
            _ => None,
        };
        match (limit, error) {
            (Some(limit), LoginError::Refused(_, text)) => Self::UsedUp { limit, text },
            (_, error) => Self::Login(error),
        }
    }
}

/// Logs in as the relay does and publishes empty messages in a transaction that is rolled back: RabbitMQ judges them as
/// any other, and delivers none.
///
/// # Errors
/// [`RightsError`] if it does not get as far as that.
pub async fn find_rights(
    upstream: &Upstream,
    credentials: &Credentials,
    vhost: &str,
    lanes: u16,
) -> Result<Rights, RightsError> {
    let stream = upstream.connect(None).await?;
    let mut connection = Connection::open(stream, credentials, vhost).await?;
    let may_write_to_queues = ask(&mut connection, b"", None).await? != Some(ReplyCode::ACCESS_REFUSED);
    let mut impersonator = None;
    for exchange in EXCHANGES {
        match ask(&mut connection, exchange, Some(SOMEBODY_ELSE)).await? {
            None => impersonator = Some(true),
            Some(ReplyCode::PRECONDITION_FAILED) => impersonator = Some(false),
            Some(_) => continue,
        }
        break;
    }
    let channels = count_channels(&mut connection, lanes).await?;
    Ok(Rights { may_write_to_queues, impersonator, channels })
}

/// Opens channels up to `wanted`, and counts how many RabbitMQ opens. The account's limit counts those of a relay that
/// runs, too; RabbitMQ names it when it refuses one more. The last that is done with a connection.
async fn count_channels(connection: &mut Connection, wanted: u16) -> Result<u16, LoginError> {
    let mut opened = 0;
    while opened < wanted.min(connection.channels_max) {
        let mut out = Vec::new();
        frame::write_method(&mut out, opened + 1, id::CHANNEL_OPEN, |out| out.put_short_string(b""));
        connection.stream.write_all(&out).await?;
        connection.stream.flush().await?;
        let answer = connection.frame(|frame| match frame.method_id() {
            Some(id::CHANNEL_OPEN_OK) => Ok(None),
            Some(id::CONNECTION_CLOSE | id::CHANNEL_CLOSE) => Ok(Some(Close::parse(frame.arguments())?.text.to_vec())),
            _ => Ok(Some(Vec::new())),
        });
        match timeout(ANSWER_TIMEOUT, answer).await.unwrap_or(Err(LoginError::Timeout))? {
            None => opened += 1,
            Some(refusal) => return Ok(user_limit(&refusal).map_or(opened, |limit| limit.min(wanted).max(opened))),
        }
    }
    Ok(opened)
}

/// The number that RabbitMQ names in `number of channels opened for user 'relay' has reached the maximum allowed user limit of
/// (3)`, with or without the parentheses.
fn user_limit(refusal: &[u8]) -> Option<u16> {
    let text = str::from_utf8(refusal).ok()?;
    let (_, rest) = text.rsplit_once("user limit of ")?;
    let digits: String = rest.trim_start_matches('(').chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Publishes, rolls back, and gives the code that RabbitMQ closes the channel with, if it does.
async fn ask(
    connection: &mut Connection,
    exchange: &[u8],
    user_id: Option<&[u8]>,
) -> Result<Option<ReplyCode>, LoginError> {
    const CHANNEL: u16 = 1;
    let mut out = Vec::new();
    frame::write_method(&mut out, CHANNEL, id::CHANNEL_OPEN, |out| out.put_short_string(b""));
    method::write_bare(&mut out, CHANNEL, id::TX_SELECT);
    Publish { exchange, routing_key: b"halfway.doctor", flags: 0 }.write(&mut out, CHANNEL);
    frame::write_content(&mut out, CHANNEL, &empty_content(user_id), b"", 0);
    method::write_bare(&mut out, CHANNEL, id::TX_ROLLBACK);
    connection.stream.write_all(&out).await?;
    connection.stream.flush().await?;

    let mut refused = None;
    loop {
        let answer = connection.frame(|frame| match frame.method_id() {
            Some(id::CHANNEL_CLOSE) => Ok(Some((id::CHANNEL_CLOSE_OK, Some(Close::parse(frame.arguments())?.code)))),
            Some(id::TX_ROLLBACK_OK) => Ok(Some((id::CHANNEL_CLOSE, None))),
            Some(id::CHANNEL_CLOSE_OK) => Ok(Some(((0, 0), None))),
            Some(id::CONNECTION_CLOSE) => {
                let close = Close::parse(frame.arguments())?;
                Err(LoginError::Refused(close.code, String::from_utf8_lossy(close.text).into_owned()))
            }
            _ => Ok(None),
        });
        let Some((reply, code)) = timeout(ANSWER_TIMEOUT, answer).await.unwrap_or(Err(LoginError::Timeout))? else {
            continue;
        };
        out.clear();
        match reply {
            id::CHANNEL_CLOSE => {
                Close { code: ReplyCode::SUCCESS, text: b"", method: (0, 0) }.write(&mut out, CHANNEL);
            }
            id::CHANNEL_CLOSE_OK => {
                method::write_bare(&mut out, CHANNEL, id::CHANNEL_CLOSE_OK);
                refused = code;
            }
            _ => return Ok(None),
        }
        connection.stream.write_all(&out).await?;
        connection.stream.flush().await?;
        if refused.is_some() {
            return Ok(refused);
        }
    }
}

/// The payload of a content header without a body, with the property user-id or none.
fn empty_content(user_id: Option<&[u8]>) -> Vec<u8> {
    const USER_ID: u16 = 1 << 4;
    let mut header = Vec::new();
    header.put_u16(method::CLASS_BASIC);
    header.put_u16(0);
    header.put_u64(0);
    header.put_u16(if user_id.is_some() { USER_ID } else { 0 });
    if let Some(user_id) = user_id {
        header.put_short_string(user_id);
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_read_from_rabbitmqs_refusal() {
        let text = "NOT_ALLOWED - number of channels opened for user 'user limit of (7)' has reached the maximum allowed user limit of (3)";
        assert_eq!(user_limit(text.as_bytes()), Some(3));
        assert_eq!(user_limit(b"NOT_ALLOWED - the maximum allowed user limit of 12"), Some(12));
        assert_eq!(user_limit(b"CHANNEL_ERROR - second 'channel.open' seen"), None);
    }
}
