//! The JSON shapes; core types stay free of serde.

use std::collections::BTreeMap;

use serde::Serialize;

use super::request;
use crate::health::{COMPONENTS, Condition, Report};
use crate::store::{self, Event, LetterId, Letters, Listing, Summary};
use crate::tx::decision::Fate;
use crate::tx::id::{Timestamp, TransactionId};

/// A time as every surface shows it.
pub(super) fn time(at: Timestamp) -> String {
    at.to_string()
}

/// A page of transactions.
#[derive(Debug, Serialize)]
pub(super) struct Page {
    items: Vec<Transaction>,
    next_cursor: Option<String>,
}

impl From<Listing> for Page {
    fn from(listing: Listing) -> Self {
        Self {
            items: listing.items.into_iter().map(Transaction::from).collect(),
            next_cursor: listing.next.map(request::cursor),
        }
    }
}

/// A transaction.
#[derive(Debug, Serialize)]
pub(super) struct Transaction {
    id: String,
    name: Option<String>,
    vhost: String,
    user: String,
    state: &'static str,
    created_at: String,
    parked_at: Option<String>,
    decided_at: Option<String>,
    decided_by: Option<String>,
    messages: u64,
    bytes: u64,
    checker: Option<String>,
    checks_answered: u32,
    next_check_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Vec<Happened>>,
}

#[derive(Debug, Serialize)]
struct Happened {
    at: String,
    event: String,
    actor: String,
    reason: Option<String>,
}

impl From<Summary> for Transaction {
    fn from(summary: Summary) -> Self {
        Self {
            id: summary.id.to_string(),
            name: summary.name.map(|name| name.to_string()),
            vhost: summary.vhost.to_string(),
            user: summary.user.to_string(),
            state: summary.state.as_str(),
            created_at: time(summary.created_at),
            parked_at: summary.parked_at.map(time),
            decided_at: summary.decided_at.map(time),
            decided_by: summary.decided_by,
            messages: summary.messages,
            bytes: summary.bytes,
            checker: summary.checker.map(|checker| checker.to_string()),
            checks_answered: summary.checks_answered,
            next_check_at: summary.next_check_at.map(time),
            history: None,
        }
    }
}

impl Transaction {
    pub(super) fn with_history(summary: Summary, history: Vec<Event>) -> Self {
        let happened = |Event { at, event, actor, reason }| Happened { at: time(at), event, actor, reason };
        Self { history: Some(history.into_iter().map(happened).collect()), ..summary.into() }
    }
}

/// The answer to a decision.
#[derive(Debug, Serialize)]
pub(super) struct Decided {
    id: String,
    state: &'static str,
    decided_at: String,
    decided_by: String,
    changed: bool,
}

impl Decided {
    /// `changed`: this decision was the first.
    pub(super) fn new(fate: Fate, changed: bool) -> Self {
        Self {
            id: fate.id.to_string(),
            state: fate.state.as_str(),
            decided_at: time(fate.decided_at),
            decided_by: fate.decided_by,
            changed,
        }
    }
}

/// A page of dead letters.
#[derive(Debug, Serialize)]
pub(super) struct LetterPage {
    items: Vec<Letter>,
    next_cursor: Option<String>,
}

impl From<Letters> for LetterPage {
    fn from(letters: Letters) -> Self {
        Self {
            items: letters.items.into_iter().map(Letter::from).collect(),
            next_cursor: letters.next.map(request::cursor),
        }
    }
}

/// A dead letter.
#[derive(Debug, Serialize)]
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
}

impl From<store::Letter> for Letter {
    fn from(letter: store::Letter) -> Self {
        let store::Envelope { exchange, routing_key, message_id } = letter.envelope;
        Self {
            id: letter.id.0.to_string(),
            transaction: letter.transaction.to_string(),
            exchange,
            routing_key,
            message_id,
            reply_code: letter.reply_code,
            reply_text: letter.reply_text,
            since: time(letter.since),
            attempts: letter.attempts,
        }
    }
}

/// The answer to what was decided about a dead letter.
#[derive(Debug, Serialize)]
pub(super) struct LetterDecided {
    id: String,
    transaction: String,
    decision: &'static str,
}

impl LetterDecided {
    pub(super) fn new(id: LetterId, transaction: TransactionId, decision: &'static str) -> Self {
        Self { id: id.0.to_string(), transaction: transaction.to_string(), decision }
    }
}

/// The body of `/readyz`.
#[derive(Debug, Serialize)]
pub(super) struct Readiness {
    ready: bool,
    components: BTreeMap<&'static str, Component>,
}

#[derive(Debug, Serialize)]
struct Component {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl From<&Report> for Readiness {
    fn from(report: &Report) -> Self {
        let names = COMPONENTS.into_iter().map(|component| component.name());
        let mut components: BTreeMap<_, _> = names.zip(report.components.iter().map(Component::from)).collect();
        let draining = match report.draining {
            false => Component { status: "ready", reason: None },
            true => Component { status: "not_ready", reason: Some("the proxy is shutting down".into()) },
        };
        components.insert("draining", draining);
        Readiness { ready: report.is_ready(), components }
    }
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
