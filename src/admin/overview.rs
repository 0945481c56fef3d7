//! The whole at one look, once or every second.

use std::convert::Infallible;

use axum::Json;
use axum::extract::State as FromState;
use axum::http::{HeaderName, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use utoipa::ToSchema;

use super::Admin;
use super::openapi::{Refusals, TooMany};
use super::problem::Problem;
use super::sampler;
use super::sessions::Caller;
use super::view::{self, Count};
use crate::roster;
use crate::store::system_clock;
use crate::tx::outcome::Outcome;

/// The whole at one look.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Overview {
    at: String,
    version: &'static str,
    started_at: String,
    draining: bool,
    transactions: Transactions,
    in_doubt_oldest_since: Option<String>,
    dead_letters: Count,
    store: Store,
    components: Vec<Component>,
    relay: Vec<Link>,
    /// Checkers with an open breaker.
    silent_checkers: Vec<SilentChecker>,
    connections: Count,
    rates: Rates,
    commit_seconds: Quantiles,
    sample: Option<Sample>,
}

/// Unfinished transactions in the store.
#[derive(Debug, Serialize, ToSchema)]
struct Transactions {
    open: Count,
    in_doubt: Count,
    committed: Count,
}

#[derive(Debug, Serialize, ToSchema)]
struct Store {
    used_bytes: Count,
    max_bytes: Count,
    blocked: bool,
}

/// A part, as `/readyz` has it.
#[derive(Debug, Serialize, ToSchema)]
struct Component {
    name: &'static str,
    #[serde(flatten)]
    condition: view::Component,
}

/// The relay's connection of a virtual host.
#[derive(Debug, Serialize, ToSchema)]
struct Link {
    vhost: String,
    state: &'static str,
    reason: Option<String>,
    in_flight: Count,
}

impl From<&roster::Link> for Link {
    fn from(link: &roster::Link) -> Self {
        let roster::Link { vhost, state, reason, in_flight } = link;
        Self { vhost: vhost.to_string(), state, reason: reason.clone(), in_flight: Count(*in_flight) }
    }
}

/// A checker that is left alone for a while, because it does not answer.
#[derive(Debug, Serialize, ToSchema)]
struct SilentChecker {
    name: String,
    /// Why its last check had no answer.
    reason: Option<String>,
}

impl SilentChecker {
    fn of(name: &str, admin: &Admin) -> Option<Self> {
        let is_silent = admin.numbers.instruments.checks.checker(name).circuit_open.get() > 0;
        let reason = || admin.roster.last_check(name).and_then(|last| last.reason);
        is_silent.then(|| Self { name: name.to_owned(), reason: reason() })
    }
}

/// Per second, over the last second.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Rates {
    committed: f64,
    rolled_back: f64,
    forwarded: f64,
    received_bytes: f64,
    sent_bytes: f64,
}

/// In seconds, of the last second's commits; null without commits.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Quantiles {
    p50: Option<f64>,
    p99: Option<f64>,
}

/// One second.
#[derive(Debug, Serialize, ToSchema)]
struct Sample {
    at: String,
    outcomes: Outcomes,
    commit_p50: Option<f64>,
    commit_p99: Option<f64>,
    backlog: Count,
    in_doubt: Count,
}

/// Transactions that ended so, per second.
#[derive(Debug, Serialize, ToSchema)]
struct Outcomes {
    committed: f64,
    rolled_back: f64,
    refused: f64,
    failed: f64,
    in_doubt: f64,
}

/// The seconds before.
#[derive(Debug, Serialize, ToSchema)]
struct History {
    samples: Vec<Sample>,
}

impl From<sampler::Sample> for Sample {
    fn from(sample: sampler::Sample) -> Self {
        let of = |outcome| rate(&sample, outcome);
        Self {
            at: view::time(sample.at),
            outcomes: Outcomes {
                committed: of(Outcome::Committed),
                rolled_back: of(Outcome::RolledBack),
                refused: of(Outcome::Refused),
                failed: of(Outcome::Failed),
                in_doubt: of(Outcome::InDoubt),
            },
            commit_p50: sample.commit_p50,
            commit_p99: sample.commit_p99,
            backlog: Count(sample.backlog),
            in_doubt: Count(sample.in_doubt),
        }
    }
}

fn rate(sample: &sampler::Sample, outcome: Outcome) -> f64 {
    let place = Outcome::ALL.iter().position(|known| *known == outcome);
    place.map_or(0.0, |place| sample.outcomes[place])
}

impl Overview {
    fn of(admin: &Admin) -> Self {
        let (counted, setup) = (&admin.numbers.instruments, admin.setup());
        let (report, standing, sample) = (admin.health.report(), admin.roster.standing(), admin.sampler.last());
        let components = view::components(&report);
        let rates = sample.as_ref().map(|sample| Rates {
            committed: rate(sample, Outcome::Committed),
            rolled_back: rate(sample, Outcome::RolledBack),
            forwarded: sample.forwarded,
            received_bytes: sample.received_bytes,
            sent_bytes: sample.sent_bytes,
        });
        let quantiles = sample.as_ref().map(|sample| Quantiles { p50: sample.commit_p50, p99: sample.commit_p99 });
        Self {
            at: view::time(system_clock()),
            version: view::VERSION,
            started_at: view::time(admin.started_at),
            draining: report.draining,
            transactions: Transactions {
                open: Count::gauge(counted.unfinished.open.get()),
                in_doubt: Count::gauge(counted.unfinished.in_doubt.get()),
                committed: Count::gauge(counted.unfinished.committed.get()),
            },
            in_doubt_oldest_since: standing.oldest_doubt.map(view::time),
            dead_letters: Count::gauge(counted.dead_letters.get()),
            store: Store {
                used_bytes: Count::gauge(counted.store_used_bytes.get()),
                max_bytes: Count(setup.store_bytes_max),
                blocked: admin.store.get().is_some_and(|store| !store.room().borrow().is_free()),
            },
            components: components.map(|(name, condition)| Component { name, condition }).collect(),
            relay: standing.links.iter().map(Link::from).collect(),
            silent_checkers: setup.checkers.iter().filter_map(|it| SilentChecker::of(&it.name, admin)).collect(),
            connections: Count::gauge(counted.connections.get()),
            rates: rates.unwrap_or_default(),
            commit_seconds: quantiles.unwrap_or_default(),
            sample: sample.map(Sample::from),
        }
    }
}

#[utoipa::path(
    get,
    path = "/overview",
    tag = "overview",
    operation_id = "showOverview",
    responses(
        (status = 200, body = Overview, description = "The whole at one look."),
        Refusals,
    ),
)]
pub(super) async fn show(FromState(admin): FromState<Admin>) -> Json<Overview> {
    Json(Overview::of(&admin))
}

/// Somebody who watches, as long as the connection lasts.
struct Watcher {
    admin: Admin,
    caller: Caller,
    ticks: watch::Receiver<()>,
    _permit: OwnedSemaphorePermit,
    /// Whether it has the history.
    greeted: bool,
}

/// The history, then an overview every second, until the caller may look no more.
#[utoipa::path(
    get,
    path = "/events",
    tag = "overview",
    operation_id = "watch",
    responses(
        (status = 200, body = String, content_type = "text/event-stream", description = "An event `history` (see History), then every second an event `overview` (see Overview)."),
        TooMany,
        Refusals,
    ),
)]
pub(super) async fn watch(FromState(admin): FromState<Admin>, caller: Caller) -> Result<Response, Problem> {
    let Some((ticks, permit)) = admin.sampler.watch() else {
        let text = "too many watch already: close other dashboards, or ask for /api/overview now and then";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(sampler::EVERY));
    };
    let watcher = Watcher { admin, caller, ticks, _permit: permit, greeted: false };
    let events = stream::unfold(watcher, async |mut watcher| Some((watcher.next().await?, watcher)));
    // Proxies in front would otherwise collect events before they pass them on.
    Ok(([(HeaderName::from_static("x-accel-buffering"), "no")], Sse::new(events)).into_response())
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<Event, Infallible>> {
        if !std::mem::replace(&mut self.greeted, true) {
            let samples = self.admin.sampler.history().into_iter().map(Sample::from).collect();
            return Some(Ok(event("history", &History { samples })));
        }
        self.ticks.changed().await.ok()?;
        // A token may be gone since.
        self.admin.access.still_admits(&self.caller).then(|| Ok(event("overview", &Overview::of(&self.admin))))
    }
}

fn event(name: &str, data: &impl Serialize) -> Event {
    Event::default().event(name).data(serde_json::to_string(data).expect("texts and numbers become JSON"))
}
