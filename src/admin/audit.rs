//! Who did what by hand, why, and what came of it: one line of the log for each, all of one shape.

use std::net::SocketAddr;

use crate::store::LetterId;
use crate::tx::decision::{Owned, Target};
use crate::tx::id::TransactionId;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Action {
    LogIn,
    LogOut,
    Commit,
    RollBack,
    Check,
    Retry,
    Discard,
    Close,
}

impl Action {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::LogIn => "log_in",
            Self::LogOut => "log_out",
            Self::Commit => "commit",
            Self::RollBack => "rollback",
            Self::Check => "check",
            Self::Retry => "retry",
            Self::Discard => "discard",
            Self::Close => "close",
        }
    }
}

/// One line.
#[derive(Debug)]
pub(super) struct Line<'a> {
    action: Action,
    actor: &'a str,
    peer: Option<SocketAddr>,
    transaction: Option<TransactionId>,
    named: Option<&'a Owned>,
    letter: Option<LetterId>,
    connection: Option<u64>,
    reason: Option<&'a str>,
    bulk: bool,
}

impl<'a> Line<'a> {
    /// `actor`: who it was, as the history has it; empty where that is not known.
    pub(super) fn new(action: Action, actor: &'a str) -> Self {
        Self {
            action,
            actor,
            peer: None,
            transaction: None,
            named: None,
            letter: None,
            connection: None,
            reason: None,
            bulk: false,
        }
    }

    pub(super) fn from(self, peer: SocketAddr) -> Self {
        Self { peer: Some(peer), ..self }
    }

    pub(super) fn to(self, target: &'a Target) -> Self {
        match target {
            Target::Id(id) => self.about(Some(*id)),
            Target::Name(owned) => Self { named: Some(owned), ..self },
        }
    }

    pub(super) fn about(self, transaction: Option<TransactionId>) -> Self {
        Self { transaction: transaction.or(self.transaction), ..self }
    }

    pub(super) fn letter(self, letter: LetterId) -> Self {
        Self { letter: Some(letter), ..self }
    }

    pub(super) fn connection(self, number: u64) -> Self {
        Self { connection: Some(number), ..self }
    }

    pub(super) fn because(self, reason: &'a str) -> Self {
        Self { reason: Some(reason), ..self }
    }

    /// One of many that fit a filter.
    pub(super) fn in_bulk(self, bulk: bool) -> Self {
        Self { bulk, ..self }
    }

    /// Writes it, with what came of it.
    pub(super) fn write(self, result: &str) {
        // Names and reasons are others' texts: `debug` shows control characters escaped.
        tracing::info!(
            target: "halfway::audit",
            action = self.action.as_str(),
            actor = (!self.actor.is_empty()).then(|| display(self.actor)),
            peer = self.peer.map(display),
            transaction = self.transaction.map(display),
            vhost = self.named.map(|owned| debug(&owned.vhost)),
            user = self.named.map(|owned| debug(&owned.user)),
            name = self.named.map(|owned| debug(owned.name.as_str())),
            letter = self.letter.map(display),
            connection = self.connection,
            bulk = self.bulk.then_some(true),
            reason = self.reason.map(debug),
            ?result,
            "by hand"
        );
    }
}
