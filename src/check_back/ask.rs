//! Asking a checker, whatever way it is asked.

use super::question::Question;
use crate::tx::check_back::Answer;

/// Why there is no answer, in words for the transaction's history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no answer: {0}")]
pub(super) struct NoAnswer(String);

impl NoAnswer {
    /// With this reason, which is cut where it gets long: it may quote what somebody else wrote.
    pub(super) fn new(reason: impl std::fmt::Display) -> Self {
        let reason = reason.to_string();
        let shown = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_CHARS_MAX);
        Self(shown.collect())
    }
}

/// A way to ask a checker.
pub(super) trait Ask: Send + Sync + 'static {
    /// Asks once. The caller gives up when the checker's timeout has passed, and drops the future.
    fn ask(&self, question: &Question) -> impl Future<Output = Result<Answer, NoAnswer>> + Send;
}

const REASON_CHARS_MAX: usize = 200;
