//! The producers' database, which survives everything, and what the producers know besides.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How a producer's local transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Local {
    /// It committed.
    Committed,
    /// It rolled back, or the checker made sure that it can't commit any more.
    RolledBack,
}

/// A named transaction.
#[derive(Debug, Clone)]
pub struct Row {
    /// How many messages it has if it is whole.
    pub messages: u64,
    /// What the database says. The first entry stays: so the checker's marker and the commit exclude each other.
    pub local: Option<Local>,
    /// A moment before which it was not in doubt. For half messages of ordinary channels: before the first publish. For
    /// transactional channels: when something was last sent that was answered, as the channel lived longer than that.
    pub undecided_at: Instant,
    /// How long after that it may be asked about.
    pub check_after: Duration,
    /// When the proxy had confirmed the producer's decision.
    pub known: Option<Instant>,
}

/// All of them by name.
#[derive(Default)]
pub struct Ledger {
    rows: Mutex<BTreeMap<String, Row>>,
    unexpected: Mutex<Vec<String>>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, name: &str, change: impl FnOnce(&mut Row) -> T) -> T {
        change(self.lock().get_mut(name).unwrap_or_else(|| panic!("nobody has published {name}")))
    }

    /// The producer is about to publish the first message.
    pub fn begin(&self, name: &str, messages: u64, check_after: Duration) {
        let row = Row { messages, local: None, undecided_at: Instant::now(), check_after, known: None };
        assert!(self.lock().insert(name.to_owned(), row).is_none(), "{name} comes twice");
    }

    /// The transaction's channel answered what was sent at `sent`.
    pub fn channel_lived(&self, name: &str, sent: Instant) {
        self.change(name, |row| row.undecided_at = sent);
    }

    /// Ends the local transaction, if nobody has; how it ended.
    pub fn end(&self, name: &str, local: Local) -> Local {
        self.change(name, |row| *row.local.get_or_insert(local))
    }

    /// What a checker does: looks how the local transaction ended, and if it did not, makes sure that it never commits.
    pub fn look_or_mark(&self, name: &str) -> Local {
        self.end(name, Local::RolledBack)
    }

    /// The proxy has confirmed the decision.
    pub fn decided(&self, name: &str) {
        self.change(name, |row| row.known = Some(Instant::now()));
    }

    /// A producer was answered what no crash explains.
    pub fn note_unexpected(&self, what: String) {
        self.unexpected.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// What was noted so.
    pub fn unexpected(&self) -> Vec<String> {
        self.unexpected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything.
    pub fn rows(&self) -> BTreeMap<String, Row> {
        self.lock().clone()
    }
}
