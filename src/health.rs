//! Whether the proxy can do its work: each part reports its own state here, and `/readyz` shows them all.

use std::sync::{Mutex, MutexGuard};

/// The parts that report. Each starts as not ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Component {
    /// The AMQP ports.
    Listener,
    /// The store.
    Store,
    /// The connections to RabbitMQ that sessions make.
    Upstream,
    /// The connections to RabbitMQ that carry committed messages.
    Relay,
}

/// How a part is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Condition {
    /// It works.
    Ready,
    /// Something needs a person, but clients are served: the reason. The proxy stays ready.
    Degraded(String),
    /// It doesn't work: the reason.
    NotReady(String),
}

/// The state of all parts, shared by `Arc`.
#[derive(Debug)]
pub struct Health {
    state: Mutex<Report>,
}

/// All parts at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// In the order of [`COMPONENTS`].
    pub components: [Condition; COMPONENTS.len()],
    /// Whether the proxy is about to end and takes no new connections.
    pub draining: bool,
}

impl Report {
    /// Whether new clients should come here.
    pub fn is_ready(&self) -> bool {
        !self.draining && !self.components.iter().any(|condition| matches!(condition, Condition::NotReady(_)))
    }
}

impl Health {
    /// Nothing is ready yet.
    pub fn new() -> Self {
        let components = COMPONENTS.map(|_| Condition::NotReady("starting".into()));
        Health { state: Mutex::new(Report { components, draining: false }) }
    }

    /// Reports `component`; a change is logged.
    pub fn set(&self, component: Component, condition: Condition) {
        let mut state = self.state();
        let held = &mut state.components[component as usize];
        if *held == condition {
            return;
        }
        let component = component.name();
        match &condition {
            Condition::Ready => tracing::info!(component, "ready"),
            Condition::Degraded(reason) => tracing::warn!(component, reason, "degraded"),
            Condition::NotReady(reason) => tracing::warn!(component, reason, "not ready"),
        }
        *held = condition;
    }

    /// Whether `component` works, degraded or not.
    pub fn is_ready(&self, component: Component) -> bool {
        !matches!(self.state().components[component as usize], Condition::NotReady(_))
    }

    /// From now on no new clients should come.
    pub fn drain(&self) {
        self.state().draining = true;
    }

    /// How everything is now.
    pub fn report(&self) -> Report {
        self.state().clone()
    }

    fn state(&self) -> MutexGuard<'_, Report> {
        // Every change is a single assignment, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Default for Health {
    fn default() -> Self {
        Health::new()
    }
}

impl Component {
    /// The name in `/readyz` and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Component::Listener => "listener",
            Component::Store => "store",
            Component::Upstream => "upstream",
            Component::Relay => "relay",
        }
    }
}

/// Every part, in the order of its number.
pub(crate) const COMPONENTS: [Component; 4] =
    [Component::Listener, Component::Store, Component::Upstream, Component::Relay];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_every_part_is_and_that_nothing_drains() {
        let health = Health::new();
        for component in COMPONENTS {
            assert!(!health.report().is_ready(), "{} has not reported yet", component.name());
            health.set(component, Condition::Ready);
        }
        assert!(health.report().is_ready());
        health.set(Component::Relay, Condition::Degraded("no permission".into()));
        assert!(health.report().is_ready(), "clients are still served");
        health.set(Component::Upstream, Condition::NotReady("refused".into()));
        assert!(!health.report().is_ready());
        health.set(Component::Upstream, Condition::Ready);
        health.drain();
        assert!(!health.report().is_ready());
    }
}
