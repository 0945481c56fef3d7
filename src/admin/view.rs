//! The JSON shapes; core types stay free of serde.

use std::collections::BTreeMap;

use ring::digest;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::Admin;
use super::sessions::Caller;
use crate::amqp::method::Publish;
use crate::amqp::properties::Properties;
use crate::config::{self, Role};
use crate::health::{COMPONENTS, Condition, Report};
use crate::store::{self, Event, LetterId, Listing, Summary};
use crate::tx::batch::{self, HalfMessage};
use crate::tx::decision::Fate;
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::state;
use crate::values::{self, Typed};

/// Bytes of a body that are shown.
const BODY_BYTES_MAX: usize = 50_000;

/// A time as every surface shows it.
pub(super) fn time(at: Timestamp) -> String {
    at.to_string()
}

/// A number of 64 bits: digits in a string, because a JavaScript number would round it.
#[derive(Clone, Copy, Debug, Default, ToSchema)]
#[schema(value_type = String, format = "uint64", pattern = "^[0-9]+$")]
pub(super) struct Count(pub(super) u64);

/// Where a transaction stands.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Open,
    InDoubt,
    Committed,
    Delivered,
    RolledBack,
    DeadLettered,
}

impl From<state::State> for State {
    fn from(state: state::State) -> Self {
        match state {
            state::State::Open => Self::Open,
            state::State::InDoubt => Self::InDoubt,
            state::State::Committed => Self::Committed,
            state::State::Delivered => Self::Delivered,
            state::State::RolledBack => Self::RolledBack,
            state::State::DeadLettered => Self::DeadLettered,
        }
    }
}

impl Count {
    /// Of a gauge, which is never below zero for long.
    pub(super) fn gauge(value: i64) -> Self {
        Self(value.try_into().unwrap_or_default())
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Who asks, and what that one may do and see.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Session {
    name: String,
    #[schema(value_type = String, pattern = "^(viewer|operator)$")]
    role: Role,
    open: bool,
    show_bodies: bool,
    version: &'static str,
}

impl Session {
    pub(super) fn new(caller: &Caller, admin: &Admin) -> Self {
        Self {
            name: caller.name.to_string(),
            role: caller.role,
            open: admin.access.is_open(),
            show_bodies: admin.setup().show_bodies,
            version: VERSION,
        }
    }
}

/// The version that runs.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A page of transactions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page {
    items: Vec<Transaction>,
    next_cursor: Option<String>,
}

impl From<Listing<Summary>> for Page {
    fn from(listing: Listing<Summary>) -> Self {
        Self {
            items: listing.items.into_iter().map(Transaction::from).collect(),
            next_cursor: listing.next.map(|next| next.to_string()),
        }
    }
}

/// A transaction.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Transaction {
    id: String,
    name: Option<String>,
    vhost: String,
    user: String,
    state: State,
    created_at: String,
    parked_at: Option<String>,
    decided_at: Option<String>,
    decided_by: Option<String>,
    messages: Count,
    bytes: Count,
    checker: Option<String>,
    checks_answered: u32,
    next_check_at: Option<String>,
    /// Another one whenever any of this changes; see `If-Match`.
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Vec<Happened>>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Happened {
    at: String,
    event: String,
    actor: String,
    reason: Option<String>,
}

impl From<Summary> for Transaction {
    fn from(summary: Summary) -> Self {
        Self {
            version: version(&summary),
            id: summary.id.to_string(),
            name: summary.name.map(|name| name.to_string()),
            vhost: summary.vhost.to_string(),
            user: summary.user.to_string(),
            state: summary.state.into(),
            created_at: time(summary.created_at),
            parked_at: summary.parked_at.map(time),
            decided_at: summary.decided_at.map(time),
            decided_by: summary.decided_by,
            messages: Count(summary.messages),
            bytes: Count(summary.bytes),
            checker: summary.checker.map(|checker| checker.to_string()),
            checks_answered: summary.checks_answered,
            next_check_at: summary.next_check_at.map(time),
            history: None,
        }
    }
}

/// What a transaction is like, in a few digits: two that differ have different ones.
pub(super) fn version(summary: &Summary) -> String {
    let Summary { state, decided_at, messages, bytes, checker, attempts, checks_answered, next_check_at, .. } = summary;
    let changing = (state, decided_at, messages, bytes, checker, attempts, checks_answered, next_check_at);
    let digest = digest::digest(&digest::SHA256, format!("{changing:?}").as_bytes());
    values::hex(&digest.as_ref()[..8])
}

impl Transaction {
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn with_history(summary: Summary, history: Vec<Event>) -> Self {
        let happened = |Event { at, event, actor, reason }| Happened { at: time(at), event, actor, reason };
        Self { history: Some(history.into_iter().map(happened).collect()), ..summary.into() }
    }
}

/// The answer to a decision.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Decided {
    id: String,
    state: State,
    decided_at: String,
    decided_by: String,
    changed: bool,
}

impl Decided {
    /// `changed`: this decision was the first.
    pub(super) fn new(fate: Fate, changed: bool) -> Self {
        Self {
            id: fate.id.to_string(),
            state: fate.state.into(),
            decided_at: time(fate.decided_at),
            decided_by: fate.decided_by,
            changed,
        }
    }
}

/// A page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LetterPage {
    items: Vec<Letter>,
    next_cursor: Option<String>,
}

impl From<Listing<store::Letter>> for LetterPage {
    fn from(letters: Listing<store::Letter>) -> Self {
        Self {
            items: letters.items.into_iter().map(Letter::from).collect(),
            next_cursor: letters.next.map(|next| next.to_string()),
        }
    }
}

/// A dead letter.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Letter {
    id: String,
    transaction: String,
    exchange: String,
    routing_key: String,
    message_id: Option<String>,
    reply_code: u16,
    reply_text: String,
    since: String,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message>,
}

impl Letter {
    /// The one that somebody looks at.
    pub(super) fn with_message(letter: store::Letter, message: Option<Message>) -> Self {
        Self { message, ..letter.into() }
    }
}

impl From<store::Letter> for Letter {
    fn from(letter: store::Letter) -> Self {
        let store::Envelope { exchange, routing_key, message_id } = letter.envelope;
        Self {
            id: letter.id.to_string(),
            transaction: letter.transaction.to_string(),
            exchange,
            routing_key,
            message_id,
            reply_code: letter.reply_code,
            reply_text: letter.reply_text,
            since: time(letter.since),
            attempts: letter.attempts,
            message: None,
        }
    }
}

/// The answer to what was decided about a dead letter.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LetterDecided {
    id: String,
    transaction: String,
    decision: &'static str,
}

impl LetterDecided {
    pub(super) fn new(id: LetterId, transaction: TransactionId, decision: &'static str) -> Self {
        Self { id: id.to_string(), transaction: transaction.to_string(), decision }
    }
}

/// The configuration in force, without its secrets.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Configuration {
    items: Vec<Setting>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Setting {
    key: String,
    value: serde_json::Value,
    source: String,
}

impl From<&[config::Entry]> for Configuration {
    fn from(entries: &[config::Entry]) -> Self {
        let setting =
            |config::Entry { key, value, origin }: config::Entry| Setting { key, value, source: origin.to_string() };
        Self { items: entries.iter().cloned().map(setting).collect() }
    }
}

/// The body of `/readyz`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    ready: bool,
    components: BTreeMap<&'static str, Component>,
}

/// How a part is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Component {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl From<&Report> for Readiness {
    fn from(report: &Report) -> Self {
        Readiness { ready: report.is_ready(), components: components(report).collect() }
    }
}

/// Every part by its name, and whether the proxy drains.
pub(super) fn components(report: &Report) -> impl Iterator<Item = (&'static str, Component)> {
    let names = COMPONENTS.into_iter().map(|component| component.name());
    let draining = match report.draining {
        false => Component { status: "ready", reason: None },
        true => Component { status: "not_ready", reason: Some("the proxy is shutting down".into()) },
    };
    names.zip(report.components.iter().map(Component::from)).chain([("draining", draining)])
}

impl From<&Condition> for Component {
    fn from(condition: &Condition) -> Self {
        let (status, reason) = match condition {
            Condition::Ready => ("ready", None),
            Condition::Degraded(reason) => ("degraded", Some(reason.clone())),
            Condition::NotReady(reason) => ("not_ready", Some(reason.clone())),
        };
        Component { status, reason }
    }
}

/// A message as it was published.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Message {
    /// Its place in the transaction, from 0.
    index: u32,
    exchange: String,
    routing_key: String,
    mandatory: bool,
    /// Of the body.
    bytes: Count,
    properties: Vec<Typed>,
    headers: Vec<Typed>,
    /// Null: bodies are not shown.
    body: Option<Body>,
}

/// What a message holds, or the first of it.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
struct Body {
    form: Form,
    text: String,
    truncated: bool,
}

/// What kind of text stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Form {
    Json,
    Text,
    Hex,
}

impl Message {
    /// The first of a batch; none if it can't be read.
    pub(super) fn first(index: u32, batch: &[u8], show_body: bool) -> Option<Self> {
        Some(Self::of(index, batch::iter(batch).next()?.ok()?, show_body))
    }

    pub(super) fn of(index: u32, message: HalfMessage<'_>, show_body: bool) -> Self {
        // What is stored was read before; a store that gives back something else still shows what it has.
        let publish = Publish::parse(message.publish).unwrap_or(Publish { exchange: b"", routing_key: b"", flags: 0 });
        let properties = Properties::parse(message.header).ok();
        let each = properties.iter().flat_map(Properties::each);
        Self {
            index,
            exchange: values::text(publish.exchange),
            routing_key: values::text(publish.routing_key),
            mandatory: publish.mandatory(),
            bytes: Count(message.body.len() as u64),
            properties: each.map(|(name, property)| values::property(name, property)).collect(),
            headers: values::typed(properties.as_ref().and_then(Properties::headers).unwrap_or_default()),
            body: show_body.then(|| Body::of(message.body)),
        }
    }
}

impl Body {
    fn of(body: &[u8]) -> Self {
        let truncated = body.len() > BODY_BYTES_MAX;
        let shown = &body[..body.len().min(BODY_BYTES_MAX)];
        let text = match std::str::from_utf8(shown) {
            Ok(text) => Some(text),
            // The cut may go through a character.
            Err(error) if truncated && error.error_len().is_none() => {
                std::str::from_utf8(&shown[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        match text.filter(|text| !text.chars().any(|c| c.is_control() && !c.is_ascii_whitespace())) {
            None => Self { form: Form::Hex, text: values::hex(shown), truncated },
            Some(text) => {
                let is_json = text.trim_start().starts_with(['{', '['])
                    && !truncated
                    && serde_json::from_str::<IgnoredAny>(text).is_ok();
                Self { form: if is_json { Form::Json } else { Form::Text }, text: text.to_owned(), truncated }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_shown_as_what_it_is() {
        let shown = |body: &[u8]| Body::of(body);
        let body = |form, text: &str| Body { form, text: text.into(), truncated: false };
        assert_eq!(shown(b""), body(Form::Text, ""));
        assert_eq!(shown("gr\u{fc}n\n".as_bytes()), body(Form::Text, "gr\u{fc}n\n"));
        assert_eq!(shown(b" {\"a\": [1]}"), body(Form::Json, " {\"a\": [1]}"));
        assert_eq!(shown(b"{\"a\": 1"), body(Form::Text, "{\"a\": 1"));
        assert_eq!(shown(&b"[".repeat(10_000)).form, Form::Text, "too deep to be told");
        assert_eq!(shown(b"\xff\0"), body(Form::Hex, "ff00"));
        assert_eq!(shown(b"a\x1b[2J"), body(Form::Hex, "611b5b324a"));
    }

    #[test]
    fn a_long_body_is_cut_between_characters() {
        let long = "\u{fc}".repeat(BODY_BYTES_MAX);
        let shown = Body::of(&[b"a", long.as_bytes()].concat());
        assert_eq!((shown.form, shown.text.len(), shown.truncated), (Form::Text, BODY_BYTES_MAX - 1, true));
        let hex = Body::of(&vec![0xff; BODY_BYTES_MAX + 1]);
        assert_eq!((hex.form, hex.text.len(), hex.truncated), (Form::Hex, 2 * BODY_BYTES_MAX, true));
        let exact = Body::of(&vec![b'a'; BODY_BYTES_MAX]);
        assert!(!exact.truncated);
    }
}
