//! What each user has in the store that is undecided, or committed and not delivered.
//!
//! It is counted as it comes and goes.

use super::stats::{Stats, set};
use super::{Heavy, Limits};
use crate::tx::state::State;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch;

/// What a transaction costs beside its messages.
pub(super) const ROW_BYTES: i64 = 256;

/// Hundredths of a share below which who had too much has room again.
const ROOM_AGAIN_PERCENT: u64 = 95;

/// See the module.
pub(super) struct Shares {
    max: Option<u64>,
    users: HashMap<Arc<str>, u64>,
    heavy: watch::Sender<Heavy>,
    stats: Arc<Stats>,
}

impl Shares {
    pub(super) fn new(max: Option<u64>, heavy: watch::Sender<Heavy>, stats: Arc<Stats>) -> Self {
        Self { max, users: HashMap::new(), heavy, stats }
    }

    /// What each has.
    #[cfg(test)]
    pub(super) fn users(&self) -> &HashMap<Arc<str>, u64> {
        &self.users
    }

    pub(super) fn change_limits(&mut self, limits: Limits) {
        self.max = Some(limits.max_size_per_user);
        let users = self.users.keys().cloned().collect::<Vec<_>>();
        users.iter().for_each(|user| self.look_at(user));
    }

    /// What a SQL transaction that is durable changed.
    pub(super) fn change(&mut self, changes: &[(Arc<str>, i64)]) {
        for (user, by) in changes {
            let bytes = self.users.get(user).copied().unwrap_or_default().saturating_add_signed(*by);
            match bytes {
                0 => drop(self.users.remove(user)),
                _ => drop(self.users.insert(Arc::clone(user), bytes)),
            }
            self.look_at(user);
        }
    }

    fn look_at(&self, user: &Arc<str>) {
        let Some(max) = self.max else { return };
        let bytes = self.users.get(user).copied().unwrap_or_default();
        self.heavy.send_if_modified(|heavy| {
            let was = heavy.contains(user);
            let is = if was { bytes > max / 100 * ROOM_AGAIN_PERCENT } else { bytes >= max };
            if is != was {
                tracing::warn!(user = &**user, bytes, max, full = is, "a user's share of the store");
                let users = Arc::make_mut(heavy);
                if is {
                    users.insert(Arc::clone(user));
                } else {
                    users.remove(user);
                }
                set(&self.stats.heavy_users, users.len() as u64);
            }
            is != was
        });
    }
}

/// Whether the messages of a transaction are its user's in this state.
pub(super) fn holds(state: State) -> bool {
    match state {
        State::Open | State::InDoubt | State::Committed => true,
        State::Delivered | State::RolledBack | State::DeadLettered => false,
    }
}

/// One more change: most are of the same user as the one before.
pub(super) fn add(changes: &mut Vec<(Arc<str>, i64)>, user: &str, by: i64) {
    match changes.last_mut() {
        Some((last, bytes)) if **last == *user => *bytes += by,
        _ => changes.push((user.into(), by)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_too_much_is_told_until_there_is_some_room() {
        let (heavy, told) = watch::channel(Heavy::default());
        let mut shares = Shares::new(Some(1_000), heavy, Arc::default());
        let is_heavy = |user: &str| told.borrow().contains(user);
        for (by, expected) in [(999, false), (1, true), (-49, true), (-1, false), (49, false), (10_000, true)] {
            shares.change(&[("much".into(), by), ("little".into(), 1)]);
            assert_eq!((is_heavy("much"), is_heavy("little")), (expected, false), "{by}");
        }
        shares.change(&[("much".into(), -11_009)]);
        assert!(!is_heavy("much") && !shares.users.contains_key("much"), "who has nothing is forgotten");
    }
}
