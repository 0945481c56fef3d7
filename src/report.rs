//! Brings what the store and the relay count to the metrics, and how they are to the health report.

use crate::health::{Component, Condition, Health};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::relay::{Link, Refused, RelayStatus, VhostSnapshot};
use crate::roster::{self, Roster, Standing};
use crate::store::{Backend, Room, Stats, system_clock};
use crate::tls::ServerTls;
use crate::tx::decision::Actor;
use crate::tx::id::Timestamp;
use crate::tx::state::State;
use crate::upstream::Upstream;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// How often. Scraping and probing are slower than that.
const EVERY: Duration = Duration::from_millis(250);
/// How often RabbitMQ is dialed while it can't be reached and nobody else tries, and certificates are looked at.
const SELDOM: u32 = 4;
/// How long a store that failed is looked at with suspicion.
const RECENTLY: Duration = Duration::from_secs(60);
/// Virtual hosts that have series of their own; those that are in use later share one, so that however many there are
/// Prometheus is not flooded.
const VHOSTS_MAX: usize = 100;
/// The label of the others.
const OTHER_VHOSTS: &str = "(others)";

/// What is looked at, and who is told beside health and metrics.
pub(crate) struct Watched {
    /// What it counts.
    pub store: Arc<dyn Backend>,
    /// How the relay is, in each virtual host.
    pub relay: Arc<RelayStatus>,
    /// Whether RabbitMQ can be reached.
    pub upstream: Arc<Upstream>,
    /// Until when the listener's certificate is valid.
    pub certificate: Option<Arc<ServerTls>>,
    /// What clients hold.
    pub memory: Arc<Memory>,
    /// For people to look at.
    pub roster: Arc<Roster>,
}

/// Starts to report, until the task is aborted.
pub(crate) fn start(health: &Arc<Health>, metrics: &Arc<Metrics>, watched: Watched) -> JoinHandle<()> {
    let (health, metrics) = (Arc::clone(health), Arc::clone(metrics));
    let Watched { store, relay, upstream, certificate, memory, roster } = watched;
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut labelled = HashSet::new();
        for tick in 0.. {
            ticks.tick().await;
            report_store(&health, &metrics, &*store);
            metrics.memory_used_bytes.set(memory.used().try_into().unwrap_or(i64::MAX));
            let links = report_relay(&health, &metrics, &relay, &mut labelled);
            let oldest_doubt = Some(gauge(&store.stats().oldest_in_doubt)).filter(|since| *since > 0).map(Timestamp);
            roster.stand(Standing { oldest_doubt, links });
            metrics.ready.set(health.report().is_ready().into());
            if tick % SELDOM != 0 {
                continue;
            }
            if let Some(not_after) = certificate.as_ref().and_then(|tls| tls.not_after()) {
                metrics.certificate("listen.tls.certificate", not_after);
            }
            if !health.is_ready(Component::Upstream) {
                let condition = match upstream.connect(None).await {
                    Ok(_) => Condition::Ready,
                    Err(error) => Condition::NotReady(error.to_string()),
                };
                health.set(Component::Upstream, condition);
            }
        }
    })
}

fn report_store(health: &Health, metrics: &Metrics, store: &dyn Backend) {
    let stats: &Stats = store.stats();
    metrics.store_commit_seconds.show(&stats.groups);
    metrics.in_doubt_seconds.show(&stats.doubts);
    for (source, count) in Actor::SOURCES.into_iter().zip(&stats.decisions) {
        metrics.decisions(source, read(count));
    }
    metrics.store_group_calls.inner().store(read(&stats.group_requests), Ordering::Relaxed);
    metrics.store_errors.inner().store(read(&stats.errors), Ordering::Relaxed);
    metrics.store_waiting_calls.set(gauge(&stats.queued));
    metrics.store_used_bytes.set(gauge(&stats.used_bytes));
    let room = *store.room().borrow();
    metrics.store_full.set((room == Room::Full).into());
    metrics.store_failing.set(stats.failing.load(Ordering::Relaxed).into());
    metrics.backlog_transactions.set(gauge(&stats.backlog));
    metrics.dead_letters.set(gauge(&stats.dead_letters));
    for (state, count) in
        [(State::Open, &stats.open_named), (State::InDoubt, &stats.in_doubt), (State::Committed, &stats.backlog)]
    {
        metrics.in_store(state).set(gauge(count));
    }
    let now = system_clock();
    metrics.in_doubt_oldest_age_seconds.set(age_seconds(gauge(&stats.oldest_in_doubt), now));
    let oldest_committed = if read(&stats.backlog) == 0 { 0 } else { gauge(&stats.oldest_committed) };
    metrics.backlog_oldest_age_seconds.set(age_seconds(oldest_committed, now));
    health.set(Component::Store, store_condition(stats, room, Instant::now()));
}

fn store_condition(stats: &Stats, room: Room, now: Instant) -> Condition {
    let failed = stats.failed();
    let why = || failed.as_ref().map(|(_, why)| why.as_str()).unwrap_or_default();
    // A disk that is full by a hair takes a write now and then, so that it is not well as soon as it took one.
    let failed_recently = failed.as_ref().is_some_and(|(at, _)| now.saturating_duration_since(*at) < RECENTLY);
    match read(&stats.dead_letters) {
        _ if stats.failing.load(Ordering::Relaxed) => Condition::NotReady(format!("it can't write: {}", why())),
        _ if failed_recently => Condition::Degraded(format!("it could not write less than a minute ago: {}", why())),
        _ if room == Room::Full => Condition::Degraded("past store.max_size: publishers of transactions wait".into()),
        _ if room == Room::Away => Condition::Degraded("it can't be reached: publishers of transactions wait".into()),
        0 => Condition::Ready,
        letters => Condition::Degraded(format!("dead letters that wait for a person: {letters}")),
    }
}

fn report_relay(
    health: &Health,
    metrics: &Metrics,
    status: &RelayStatus,
    labelled: &mut HashSet<Arc<str>>,
) -> Vec<roster::Link> {
    let vhosts = status.snapshot();
    let sum = |count: fn(&VhostSnapshot) -> u64| vhosts.iter().map(count).sum::<u64>();
    let counters = [
        (&metrics.messages_forwarded, sum(|vhost| vhost.confirmed)),
        (&metrics.messages_returned, sum(|vhost| vhost.returned)),
        (&metrics.unroutable_messages, sum(|vhost| vhost.unroutable)),
        (&metrics.relay_nacks, sum(|vhost| vhost.nacked)),
        (&metrics.relay_reconnects, sum(|vhost| vhost.reconnects)),
        (&metrics.relay_unreadable, sum(|vhost| vhost.unreadable)),
        (&metrics.dead_lettered_messages, sum(|vhost| vhost.dead_lettered)),
    ];
    for (counter, count) in counters {
        counter.inner().store(count, Ordering::Relaxed);
    }
    metrics.relay_in_flight.set(sum(|vhost| vhost.in_flight).try_into().unwrap_or(i64::MAX));
    metrics.forward_seconds.show(status.forwarded());
    for (label, shown) in by_label(&vhosts, labelled) {
        let state = metrics.relay_state(label);
        state.connected.set(shown.connected.into());
        state.blocked.set(shown.blocked.into());
        state.stalled.set(shown.stalled.into());
    }
    let mut troubles = Vec::new();
    let mut links = Vec::new();
    for vhost in &vhosts {
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
        Link::Idle => None,
        Link::Blocked(why) => Some(why.clone()),
        Link::Refused(code, text) => Some(format!("{code} {text}")),
        Link::Connected => {
            let (stalled, channels) = (vhost.stalled_lanes, vhost.shared_channels);
            let stalled = (stalled > 0).then(|| format!("lanes that wait for confirms that don't come: {stalled}"));
            let channels =
                (channels > 0).then(|| format!("lanes share channels, because RabbitMQ allows only {channels}"));
            let refused = vhost.refused.as_ref().map(|refused| {
                let Refused { messages, channels, nacks, exchange, routing_key } = refused;
                format!(
                    "client channels that wait, because RabbitMQ nacks messages of theirs: {channels}, messages: {messages}; \
                     one for exchange '{exchange}' with routing key '{routing_key}' was nacked {nacks} times"
                )
            });
            let trial = vhost.trial.as_ref().map(|why| {
                format!("messages that have to be tried on a connection of their own, and there is none: {why}")
            });
            let troubles: Vec<_> = [refused, trial, stalled, channels].into_iter().flatten().collect();
            (!troubles.is_empty()).then(|| troubles.join(", and "))
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

    #[test]
    fn the_store_says_what_is_wrong_with_it() {
        let (stats, now) = (Stats::default(), Instant::now());
        assert_eq!(store_condition(&stats, Room::Free, now), Condition::Ready);
        stats.dead_letters.store(1, Ordering::Relaxed);
        let letters = Condition::Degraded("dead letters that wait for a person: 1".into());
        assert_eq!(store_condition(&stats, Room::Free, now), letters);
        stats.fails("database or disk is full");
        let now = Instant::now();
        let failing = Condition::NotReady("it can't write: database or disk is full".into());
        assert_eq!(store_condition(&stats, Room::Full, now), failing, "it is the worst of all");
        assert_eq!(store_condition(&stats, Room::Full, now + RECENTLY), failing, "however long it hangs");
        // What is full by a hair writes and fails in turns.
        stats.failing.store(false, Ordering::Relaxed);
        let shaky = "it could not write less than a minute ago: database or disk is full";
        assert_eq!(store_condition(&stats, Room::Full, now), Condition::Degraded(shaky.into()));
        let later = now + RECENTLY;
        assert_eq!(store_condition(&stats, Room::Free, later), letters);
        assert!(
            matches!(store_condition(&stats, Room::Full, later), Condition::Degraded(why) if why.contains("max_size"))
        );
    }

    #[test]
    fn ages_are_whole_seconds_and_never_negative() {
        assert_eq!(age_seconds(0, Timestamp(5_000)), 0);
        assert_eq!(age_seconds(1_000, Timestamp(4_999)), 3);
        assert_eq!(age_seconds(9_000, Timestamp(5_000)), 0);
    }
}
