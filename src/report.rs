//! Brings what the store and the relay count to the metrics, and how they are to the health report.

mod metrics;

pub(crate) use metrics::Metrics;

use crate::health::{Component, Condition, Health};
use crate::memory::Memory;
use crate::relay::{Link, RelayMetrics, RelayStatus, Stuck, VhostSnapshot};
use crate::roster::{self, Roster, Situation};
use crate::store::{Backend, Room, Stats, StoreMetrics, system_clock};
use crate::tls::ServerTls;
use crate::tx::id::Timestamp;
use crate::upstream::Upstream;
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
pub(crate) fn start(health: &Arc<Health>, mut metrics: Metrics, watched: Watched) -> JoinHandle<()> {
    let health = Arc::clone(health);
    let Watched { store, relay, upstream, certificate, memory, roster } = watched;
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for tick in 0.. {
            ticks.tick().await;
            report_store(&health, &metrics.store, &*store);
            metrics.memory.show(&memory);
            metrics.sessions.waiting.set(upstream.waiting().try_into().unwrap_or(i64::MAX));
            let oldest_open = roster.oldest_open().as_secs();
            metrics.sessions.oldest_open_age_seconds.set(oldest_open.try_into().unwrap_or(i64::MAX));
            let links = report_relay(&health, &mut metrics.relay, &relay);
            let oldest_doubt = Some(gauge(&store.stats().oldest_in_doubt)).filter(|since| *since > 0).map(Timestamp);
            roster.stand(Situation { oldest_doubt, links });
            metrics.process.ready.set(health.report().is_ready().into());
            if tick % SELDOM != 0 {
                continue;
            }
            if let Some(not_after) = certificate.as_ref().and_then(|tls| tls.not_after()) {
                metrics.process.certificate("listen.tls.certificate", not_after);
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

fn report_store(health: &Health, metrics: &StoreMetrics, store: &dyn Backend) {
    let (stats, room) = (store.stats(), *store.room().borrow());
    metrics.show(stats, room, system_clock());
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

fn report_relay(health: &Health, metrics: &mut RelayMetrics, status: &RelayStatus) -> Vec<roster::Link> {
    let vhosts = status.snapshot();
    metrics.show(status, &vhosts);
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
                let Stuck { messages, channels, nacks, exchange, routing_key } = refused;
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
}
