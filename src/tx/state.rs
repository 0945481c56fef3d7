//! The states of a transaction, and the only arrows between them.
//!
//! ```text
//!            channel gone, named            decision: commit
//!   open ─────────────────────► in_doubt ─────────────────────► committed ──► delivered
//!    │ │                            │                              │             ▲ none of those is left
//!    │ └────── decision: commit ────┼──────────────────────────────┤             │
//!    │                              │ decision: rollback           └──► dead_lettered (some could not be delivered)
//!    └──── decision: rollback ──────┴──► rolled_back
//! ```

/// What the store holds of a transaction's fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Its channel lives and has not decided.
    Open,
    /// Named, undecided, and its channel is gone.
    InDoubt,
    /// Decided: every message goes to RabbitMQ.
    Committed,
    /// RabbitMQ has confirmed every message, but for those that somebody discarded.
    Delivered,
    /// Decided: no message ever goes to RabbitMQ.
    RolledBack,
    /// Committed; at least one message could not be delivered, the rest were.
    DeadLettered,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Open, Self::InDoubt, Self::Committed, Self::Delivered, Self::RolledBack, Self::DeadLettered];

    /// The word that users see, and that the store keeps.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::InDoubt => "in_doubt",
            Self::Committed => "committed",
            Self::Delivered => "delivered",
            Self::RolledBack => "rolled_back",
            Self::DeadLettered => "dead_lettered",
        }
    }

    /// Whether an arrow leads from this state to `next`.
    pub fn may_become(self, next: Self) -> bool {
        use State::{Committed, DeadLettered, Delivered, InDoubt, Open, RolledBack};
        matches!(
            (self, next),
            (Open, InDoubt | Committed | RolledBack)
                | (InDoubt, Committed | RolledBack)
                | (Committed, Delivered | DeadLettered)
                | (DeadLettered, Delivered)
        )
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_final() {
        for decided in [State::Committed, State::RolledBack] {
            for other in [State::Open, State::InDoubt, State::Committed, State::RolledBack] {
                assert!(!decided.may_become(other), "{decided} became {other}");
            }
        }
    }

    #[test]
    fn nothing_is_forwarded_undecided_or_after_a_rollback() {
        for from in [State::Open, State::InDoubt, State::RolledBack, State::Delivered] {
            assert!(!from.may_become(State::Delivered) && !from.may_become(State::DeadLettered));
        }
        let others = State::ALL.into_iter().filter(|state| *state != State::Delivered);
        assert!(others.into_iter().all(|other| !State::DeadLettered.may_become(other)));
    }
}
