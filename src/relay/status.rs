//! What the relay does at the moment, for health, metrics and people.

use crate::health::{Component, Condition, Health};
use crate::metrics::{Metrics, RelayState};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connection of one virtual host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Not there; why, unless it is the first attempt.
    Connecting(Option<String>),
    /// RabbitMQ does not let the account or the virtual host in: its code and text. Tried again all the same.
    Refused(u16, String),
    /// There.
    Connected,
    /// There, and RabbitMQ takes nothing because of an alarm: its words.
    Blocked(String),
}

/// One virtual host at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostState {
    /// Its connection.
    pub link: Link,
    /// Lanes whose oldest message has waited longer than the confirm timeout.
    pub stalled_lanes: usize,
    /// Transactions that the lanes passed over since the start, because the store gave bytes that are no messages.
    pub unreadable: usize,
}

impl VhostState {
    /// What a person has to know, or `None` if all is well.
    pub fn trouble(&self) -> Option<String> {
        let mut troubles = Vec::new();
        match &self.link {
            Link::Connected | Link::Connecting(None) => {}
            Link::Connecting(Some(why)) => troubles.push(format!("not connected: {why}")),
            Link::Refused(code, text) => troubles.push(format!("refused: {code} {text}")),
            Link::Blocked(why) => troubles.push(format!("blocked by RabbitMQ: {why}")),
        }
        if self.stalled_lanes > 0 {
            troubles.push(format!("stalled: {} lanes wait for confirms", self.stalled_lanes));
        }
        if self.unreadable > 0 {
            troubles.push(format!("{} transactions in the store can't be read", self.unreadable));
        }
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }
}

/// The state of the relay, shared by all who show it. What changes is told to [`Health`] and [`Metrics`] at once.
#[derive(Debug)]
pub struct RelayStatus {
    pub(super) metrics: Arc<Metrics>,
    health: Arc<Health>,
    vhosts: Mutex<BTreeMap<Arc<str>, (VhostState, RelayState)>>,
}

impl RelayStatus {
    pub(super) fn new(metrics: Arc<Metrics>, health: Arc<Health>) -> Self {
        Self { metrics, health, vhosts: Mutex::default() }
    }

    /// Every virtual host that had a committed transaction since the start, by name.
    pub fn vhosts(&self) -> BTreeMap<Arc<str>, VhostState> {
        self.lock().iter().map(|(name, (state, _))| (Arc::clone(name), state.clone())).collect()
    }

    /// From now on the relay counts as working: clients are served while RabbitMQ is away from it, so its troubles never
    /// make the proxy unready.
    pub(super) fn started(&self) {
        self.report(&self.lock());
    }

    /// Changes what is known of a virtual host.
    pub(super) fn change(&self, vhost: &Arc<str>, change: impl FnOnce(&mut VhostState)) {
        let mut vhosts = self.lock();
        let (state, gauges) = vhosts.entry(Arc::clone(vhost)).or_insert_with(|| {
            let state = VhostState { link: Link::Connecting(None), stalled_lanes: 0, unreadable: 0 };
            (state, self.metrics.relay_state(vhost))
        });
        change(state);
        gauges.connected.set(matches!(state.link, Link::Connected | Link::Blocked(_)).into());
        gauges.blocked.set(matches!(state.link, Link::Blocked(_)).into());
        gauges.stalled.set((state.stalled_lanes > 0).into());
        self.report(&vhosts);
    }

    fn report(&self, vhosts: &BTreeMap<Arc<str>, (VhostState, RelayState)>) {
        let trouble = |(name, (state, _)): (&Arc<str>, &(VhostState, RelayState))| {
            state.trouble().map(|trouble| format!("virtual host {name}: {trouble}"))
        };
        let troubles: Vec<String> = vhosts.iter().filter_map(trouble).take(TROUBLES_SHOWN).collect();
        let condition = if troubles.is_empty() { Condition::Ready } else { Condition::Degraded(troubles.join("; ")) };
        self.health.set(Component::Relay, condition);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, (VhostState, RelayState)>> {
        self.vhosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Virtual hosts in trouble that health names; there may be thousands.
const TROUBLES_SHOWN: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_in_one_virtual_host_is_told_and_gone_when_it_is_over() {
        let health = Arc::new(Health::new());
        let status = RelayStatus::new(Arc::new(Metrics::new()), Arc::clone(&health));
        let condition = || health.report().components[Component::Relay as usize].clone();
        status.started();
        assert_eq!(condition(), Condition::Ready);
        let (first, second) = (Arc::from("/"), Arc::from("second"));
        status.change(&first, |state| state.link = Link::Connected);
        status.change(&second, |state| state.link = Link::Refused(530, "NOT_ALLOWED - vhost second not found".into()));
        let Condition::Degraded(text) = condition() else { panic!("{:?}", condition()) };
        assert_eq!(text, "virtual host second: refused: 530 NOT_ALLOWED - vhost second not found");
        status.change(&second, |state| state.link = Link::Connected);
        status.change(&first, |state| state.stalled_lanes = 1);
        assert_eq!(condition(), Condition::Degraded("virtual host /: stalled: 1 lanes wait for confirms".into()));
        status.change(&first, |state| state.stalled_lanes = 0);
        assert_eq!(condition(), Condition::Ready);
    }
}
