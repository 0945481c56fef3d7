//! What is told of the relay.

use super::status::{Link, RelayStatus, VhostSnapshot};
use crate::histogram::{Histogram, LATENCIES};
use crate::metrics::{Labelled, Registry, gauge_of, show};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Virtual hosts that have series of their own; those that are in use later share one, so that however many there are
/// Prometheus is not flooded.
const VHOSTS_MAX: usize = 100;
/// The label of the others.
const OTHER_VHOSTS: &str = "(others)";

/// What its [`RelayStatus`] says.
#[derive(Clone, Debug)]
pub struct RelayMetrics {
    /// Messages that RabbitMQ confirmed.
    pub(crate) forwarded: Counter,
    forward_seconds: Histogram,
    returned: Counter,
    unroutable: Counter,
    in_flight: Gauge,
    nacks: Counter,
    reconnects: Counter,
    connected: Labelled<Gauge>,
    blocked: Labelled<Gauge>,
    stalled: Labelled<Gauge>,
    direct: Counter,
    unreadable: Counter,
    dead_lettered: Counter,
    /// Virtual hosts that have their own label.
    labelled: HashSet<Arc<str>>,
}

impl RelayMetrics {
    /// At zero.
    pub fn new(registry: &mut Registry) -> Self {
        let mut state = |name, help| registry.add_labelled(name, help, ["vhost"], Gauge::default);
        let connected = state("relay_connected", "1 while the relay is connected");
        let blocked = state("relay_blocked", "1 while RabbitMQ blocks the relay by an alarm");
        let stalled = state("relay_stalled", "1 while messages are in flight and confirms fail to come");
        Self {
            forwarded: registry.add("messages_forwarded", "Messages that RabbitMQ confirmed"),
            forward_seconds: registry.add_histogram(
                "forward_seconds",
                "From the decision of a transaction to RabbitMQ's answer for its last message",
                LATENCIES,
            ),
            returned: registry.add("messages_returned", "Mandatory messages that went back to their publisher"),
            unroutable: registry.add("unroutable_messages", "Messages that reached no queue, whatever became of them"),
            in_flight: registry.add("relay_in_flight", "Messages published by the relay and not yet confirmed"),
            nacks: registry.add("relay_nacks", "Messages that RabbitMQ refused to confirm, to be sent again"),
            reconnects: registry.add("relay_reconnects", "Relay connections that were lost"),
            connected,
            blocked,
            stalled,
            direct: registry.add(
                "relay_direct_transactions",
                "Transactions of one message that RabbitMQ had before the store was asked",
            ),
            unreadable: registry.add(
                "relay_unreadable_transactions",
                "Times that the store gave the relay messages that are not those it was given",
            ),
            dead_lettered: registry.add("dead_lettered_messages", "Times that a message became a dead letter"),
            labelled: HashSet::new(),
        }
    }

    /// As it is now, in these virtual hosts.
    pub fn show(&mut self, status: &RelayStatus, vhosts: &[VhostSnapshot]) {
        let sum = |count: fn(&VhostSnapshot) -> u64| vhosts.iter().map(count).sum::<u64>();
        show(&self.forwarded, sum(|vhost| vhost.confirmed));
        show(&self.returned, sum(|vhost| vhost.returned));
        show(&self.unroutable, sum(|vhost| vhost.unroutable));
        show(&self.nacks, sum(|vhost| vhost.nacked));
        show(&self.reconnects, sum(|vhost| vhost.reconnects));
        show(&self.direct, sum(|vhost| vhost.direct));
        show(&self.unreadable, sum(|vhost| vhost.unreadable));
        show(&self.dead_lettered, sum(|vhost| vhost.dead_lettered));
        self.in_flight.set(gauge_of(sum(|vhost| vhost.in_flight)));
        self.forward_seconds.show(status.forwarded());
        for (label, shown) in by_label(vhosts, &mut self.labelled) {
            self.connected.of([label]).set(shown.connected.into());
            self.blocked.of([label]).set(shown.blocked.into());
            self.stalled.of([label]).set(shown.stalled.into());
        }
    }
}

/// What the gauges of a label show.
#[derive(Debug, PartialEq)]
struct Shown {
    connected: bool,
    blocked: bool,
    stalled: bool,
}

/// The state of each label: of a virtual host, or the worst of those that share one.
fn by_label<'a>(vhosts: &'a [VhostSnapshot], labelled: &mut HashSet<Arc<str>>) -> BTreeMap<&'a str, Shown> {
    let mut shown = BTreeMap::new();
    for vhost in vhosts {
        let has_own = labelled.contains(&vhost.vhost)
            || (labelled.len() < VHOSTS_MAX && labelled.insert(Arc::clone(&vhost.vhost)));
        let label = if has_own { &*vhost.vhost } else { OTHER_VHOSTS };
        let of = shown.entry(label).or_insert(Shown { connected: true, blocked: false, stalled: false });
        of.connected &= matches!(vhost.link, Link::Connected | Link::Idle | Link::Blocked(_));
        of.blocked |= matches!(vhost.link, Link::Blocked(_));
        of.stalled |= vhost.stalled_lanes > 0;
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_hosts_past_the_bound_share_one_label_and_the_worst_of_them_shows() {
        let vhost = |number: usize, link: Link| VhostSnapshot {
            vhost: format!("{number:03}").into(),
            link,
            in_flight: 0,
            stalled_lanes: 0,
            refused: None,
            trial: None,
            shared_channels: 0,
            confirmed: 0,
            nacked: 0,
            returned: 0,
            unroutable: 0,
            dead_lettered: 0,
            direct: 0,
            unreadable: 0,
            reconnects: 0,
        };
        let mut labelled = HashSet::new();
        let first: Vec<_> = (1..=VHOSTS_MAX).map(|number| vhost(number, Link::Connected)).collect();
        assert_eq!(by_label(&first, &mut labelled).len(), VHOSTS_MAX);
        let mut all = vec![vhost(0, Link::Connecting(None))];
        all.extend(first);
        all.push(vhost(999, Link::Connected));
        let shown = by_label(&all, &mut labelled);
        assert_eq!(shown.len(), VHOSTS_MAX + 1, "a name that comes first in the alphabet takes nobody's place");
        assert_eq!(shown[OTHER_VHOSTS], Shown { connected: false, blocked: false, stalled: false });
        assert!(shown["001"].connected);
    }
}
