//! Decisions: what was decided, by whom, and what a further decision finds.

use super::id::{Timestamp, TransactionId};
use super::name::TransactionName;
use super::state::State;
use std::sync::Arc;

/// What becomes of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Every message goes to RabbitMQ.
    Commit,
    /// None does.
    RollBack,
}

impl Decision {
    /// The word on every surface: `commit` or `rollback`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::RollBack => "rollback",
        }
    }

    /// The state that it leads to.
    pub fn state(self) -> State {
        match self {
            Self::Commit => State::Committed,
            Self::RollBack => State::RolledBack,
        }
    }

    /// Whether a transaction in this state was decided in this way.
    pub fn is_of(self, state: State) -> bool {
        match self {
            Self::Commit => matches!(state, State::Committed | State::Delivered | State::DeadLettered),
            Self::RollBack => state == State::RolledBack,
        }
    }
}

/// Who did something to a transaction. [`Actor`]'s text is what the store keeps and users see.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Actor {
    /// The channel that published, or its end.
    Channel,
    /// A message to the control exchange.
    Control,
    /// A checker's answer.
    Checker(Arc<str>),
    /// `when_exhausted` of a checker that gave `max_checks` answers and knew nothing.
    Exhausted(Arc<str>),
    /// Somebody with a token of the admin port: the token's name, or `local` where none is needed.
    Operator(Arc<str>),
    /// A later attempt under the same name.
    Attempt(TransactionId),
    /// The start of the proxy, which finds what its last run left open.
    Restart,
    /// The relay.
    Relay,
}

impl Actor {
    /// Every label that decisions are counted under, in the order of [`Actor::kind`].
    pub const SOURCES: [&'static str; 8] =
        ["channel", "control", "checker", "exhausted", "operator", "attempt", "restart", "relay"];

    /// The label that decisions are counted under.
    pub fn source(&self) -> &'static str {
        Self::SOURCES[self.kind()]
    }

    /// Its place in [`Actor::SOURCES`].
    pub fn kind(&self) -> usize {
        match self {
            Self::Channel => 0,
            Self::Control => 1,
            Self::Checker(_) => 2,
            Self::Exhausted(_) => 3,
            Self::Operator(_) => 4,
            Self::Attempt(_) => 5,
            Self::Restart => 6,
            Self::Relay => 7,
        }
    }

    /// How many answers of a checker its decision stands for: one, if it is a checker's, for that is what decided.
    pub fn answers(&self) -> u32 {
        u32::from(matches!(self, Self::Checker(_)))
    }
}

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Checker(name) => write!(f, "checker {name}"),
            Self::Exhausted(name) => write!(f, "exhausted {name}"),
            Self::Operator(name) => write!(f, "operator {name}"),
            Self::Attempt(id) => write!(f, "attempt {id}"),
            Self::Channel | Self::Control | Self::Restart | Self::Relay => f.write_str(self.source()),
        }
    }
}

/// Which transaction is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// This one.
    Id(TransactionId),
    /// The undecided one under this name; if there is none, the one that was committed; else the one rolled back last.
    Name(Owned),
}

/// A name with those to whom it belongs: names of different users, or in different virtual hosts, never meet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owned {
    /// The virtual host.
    pub vhost: Arc<str>,
    /// The user.
    pub user: Arc<str>,
    /// The name.
    pub name: TransactionName,
}

/// A decision that is made, and where it has led by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fate {
    /// Whose.
    pub id: TransactionId,
    /// The state now.
    pub state: State,
    /// When it was decided.
    pub decided_at: Timestamp,
    /// Who decided: an [`Actor`]'s text.
    pub decided_by: String,
}

/// What a decision came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was the first, and is durable.
    Decided(Fate),
    /// An equal one was there before: nothing changed.
    Before(Fate),
    /// The opposite one was there before: nothing changed.
    Contradicted(Fate),
    /// There is no such transaction, or not any more.
    Unknown,
}
