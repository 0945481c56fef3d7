//! Brings what the store and the relay count to the metrics, and how they are to the health report.

use crate::health::{Component, Condition, Health};
use crate::metrics::Metrics;
use crate::relay::{Link, Relay, RelayStatus, VhostSnapshot};
use crate::roster::{self, Roster, Standing};
use crate::store::sqlite::{SqliteStore, Stats};
use crate::store::{Store, system_clock};
use crate::tx::id::Timestamp;
use crate::tx::state::State;
use crate::upstream::Upstream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// How often. Scraping and probing are slower than that.
const EVERY: Duration = Duration::from_millis(250);
/// How often RabbitMQ is dialed while it can't be reached and nobody else tries.
const DIAL_EVERY: u32 = 4;

/// Starts to report, until the task is aborted.
pub fn start(
    health: &Arc<Health>,
    metrics: &Arc<Metrics>,
    store: &Arc<SqliteStore>,
    relay: &Relay,
    upstream: &Arc<Upstream>,
    roster: &Arc<Roster>,
) -> JoinHandle<()> {
    let roster = Arc::clone(roster);
    let (health, metrics, store) = (Arc::clone(health), Arc::clone(metrics), Arc::clone(store));
    let (status, upstream) = (relay.status(), Arc::clone(upstream));
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for tick in 0.. {
            ticks.tick().await;
            report_store(&health, &metrics, &store);
            let links = report_relay(&health, &metrics, &status);
            let oldest_doubt = Some(gauge(&store.stats().oldest_in_doubt)).filter(|since| *since > 0).map(Timestamp);
            roster.stand(Standing { oldest_doubt, links });
            if tick % DIAL_EVERY == 0 && !health.is_ready(Component::Upstream) {
                let condition = match upstream.connect(None).await {
                    Ok(_) => Condition::Ready,
                    Err(error) => Condition::NotReady(error.to_string()),
                };
                health.set(Component::Upstream, condition);
            }
        }
    })
}

fn report_store(health: &Health, metrics: &Metrics, store: &SqliteStore) {
    let stats: &Stats = store.stats();
    metrics.store_commits.inner().store(read(&stats.groups), Ordering::Relaxed);
    metrics.store_group_calls.inner().store(read(&stats.group_requests), Ordering::Relaxed);
    metrics.store_errors.inner().store(read(&stats.errors), Ordering::Relaxed);
    metrics.store_commit_seconds.inner().store((read(&stats.group_nanos) as f64 / 1e9).to_bits(), Ordering::Relaxed);
    metrics.store_used_bytes.set(gauge(&stats.used_bytes));
    metrics.backlog_transactions.set(gauge(&stats.backlog));
    metrics.dead_letters.set(gauge(&stats.dead_letters));
    for (state, count) in
        [(State::Open, &stats.open_named), (State::InDoubt, &stats.in_doubt), (State::Committed, &stats.backlog)]
    {
        metrics.in_store(state).set(gauge(count));
    }
    metrics.in_doubt_oldest_age_seconds.set(age_seconds(gauge(&stats.oldest_in_doubt), system_clock()));
    let condition = match (store.is_full(), read(&stats.dead_letters)) {
        _ if stats.failing.load(Ordering::Relaxed) => Condition::NotReady("it can't write; see the log".into()),
        (true, _) => Condition::Degraded("past store.max_size: publishers of transactions wait".into()),
        (false, 0) => Condition::Ready,
        (false, letters) => Condition::Degraded(format!("{letters} dead letters wait for a person")),
    };
    health.set(Component::Store, condition);
}

fn report_relay(health: &Health, metrics: &Metrics, status: &RelayStatus) -> Vec<roster::Link> {
    let vhosts = status.snapshot();
    let sum = |count: fn(&VhostSnapshot) -> u64| vhosts.iter().map(count).sum::<u64>();
    let counters = [
        (&metrics.messages_forwarded, sum(|vhost| vhost.confirmed)),
        (&metrics.messages_returned, sum(|vhost| vhost.returned)),
        (&metrics.unroutable_messages, sum(|vhost| vhost.unroutable)),
        (&metrics.relay_nacks, sum(|vhost| vhost.nacked)),
        (&metrics.relay_reconnects, sum(|vhost| vhost.reconnects)),
    ];
    for (counter, count) in counters {
        counter.inner().store(count, Ordering::Relaxed);
    }
    metrics.relay_in_flight.set(sum(|vhost| vhost.in_flight).try_into().unwrap_or(i64::MAX));
    let mut troubles = Vec::new();
    let mut links = Vec::new();
    for vhost in &vhosts {
        let state = metrics.relay_state(&vhost.vhost);
        state.connected.set(matches!(vhost.link, Link::Connected | Link::Blocked(_)).into());
        state.blocked.set(matches!(vhost.link, Link::Blocked(_)).into());
        state.stalled.set((vhost.stalled_lanes > 0).into());
        let reason = trouble(vhost);
        troubles.extend(reason.iter().map(|why| format!("virtual host {}: {}: {why}", vhost.vhost, vhost.state())));
        let (name, in_flight) = (Arc::clone(&vhost.vhost), vhost.in_flight);
        links.push(roster::Link { vhost: name, state: vhost.state(), reason, in_flight });
    }
    let condition = match troubles.is_empty() {
        true => Condition::Ready,
        // Clients are served all the same: what they commit is kept until RabbitMQ takes it.
        false => Condition::Degraded(troubles.join("; ")),
    };
    health.set(Component::Relay, condition);
    links
}

/// Why the relay's connection is not as it should be; none while it is first made.
fn trouble(vhost: &VhostSnapshot) -> Option<String> {
    match &vhost.link {
        Link::Connecting(why) => why.clone(),
        Link::Blocked(why) => Some(why.clone()),
        Link::Refused(code, text) => Some(format!("{code} {text}")),
        Link::Connected if vhost.stalled_lanes == 0 => None,
        Link::Connected => Some(format!("{} lanes wait for confirms that don't come", vhost.stalled_lanes)),
    }
}

/// From `since`, in milliseconds since 1970, until `now`. 0 means that there is nothing to be old, and a clock that was set
/// back makes nothing younger than new.
fn age_seconds(since: i64, now: Timestamp) -> i64 {
    if since == 0 { 0 } else { (now.0 - since).max(0) / 1000 }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn gauge(counter: &AtomicU64) -> i64 {
    read(counter).try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_whole_seconds_and_never_negative() {
        assert_eq!(age_seconds(0, Timestamp(5_000)), 0);
        assert_eq!(age_seconds(1_000, Timestamp(4_999)), 3);
        assert_eq!(age_seconds(9_000, Timestamp(5_000)), 0);
    }
}
