//! The HTTP port: `/healthz` says that the process lives, `/readyz` how each part is, `/metrics` what was counted; under
//! `/api` transactions and dead letters are looked at and decided; `/` is the dashboard, a page that does so.

mod access;
mod audit;
mod body;
mod bulk;
mod checkers;
mod connections;
mod dashboard;
mod decisions;
mod json;
mod letters;
mod login;
mod messages;
mod metrics;
mod openapi;
mod overview;
mod pages;
mod problem;
mod request;
mod routes;
mod sampler;
mod serve;
mod sessions;
mod throttle;
mod view;

use std::convert::Infallible;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use axum::http::StatusCode;
use tokio::net::TcpListener;

use self::problem::Problem;
use self::sampler::Sampler;
use crate::config::{Checker, Entry, Loaded};
use crate::store::system_clock;
use crate::tx::id::Timestamp;
use crate::{health::Health, metrics::Registry, roster::Roster, store::ForAdmin};

pub(crate) use access::{Access, TokenError, read_token};
pub(crate) use body::check_reason;
pub(crate) use metrics::{AdminMetrics, Instruments};
pub(crate) use request::LIMIT_MAX;

/// What the HTTP port shows, and to whom. Clones are the same port.
#[derive(Clone)]
pub(crate) struct Admin {
    health: Arc<Health>,
    numbers: Arc<Numbers>,
    access: Arc<Access>,
    roster: Arc<Roster>,
    started_at: Timestamp,
    sampler: Arc<Sampler>,
    setup: Arc<RwLock<Arc<Setup>>>,
    /// Empty until the store is open: the port answers for the health of a proxy that still starts.
    store: Arc<OnceLock<Arc<dyn ForAdmin>>>,
}

/// What is counted, here and elsewhere.
pub(crate) struct Numbers {
    /// For `/metrics`.
    pub(crate) registry: Registry,
    /// Of the port itself.
    pub(crate) own: AdminMetrics,
    /// Of the other parts.
    pub(crate) instruments: Instruments,
}

/// What it needs of the configuration.
#[derive(Debug, Default)]
struct Setup {
    show_bodies: bool,
    store_bytes_max: u64,
    entries: Vec<Entry>,
    checkers: Vec<Checker>,
}

/// What is said of a decision that panicked.
const DECISION_FAILED: &str = "the decision failed; see the log";

/// Runs in a task of its own: a caller who hangs up takes nothing back, so what is begun is done and logged.
/// # Errors
/// Those of `work`; 500 with `failed`, if it panics.
async fn apart<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
    failed: &'static str,
) -> Result<T, Problem> {
    tokio::spawn(work).await.map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, failed))?
}

impl Admin {
    /// A port that answers for health and metrics, and with 503 for what needs the store.
    pub(crate) fn new(health: Arc<Health>, numbers: Numbers, access: Arc<Access>, roster: Arc<Roster>) -> Self {
        let (numbers, started_at, sampler) = (Arc::new(numbers), system_clock(), Arc::default());
        Self { health, numbers, access, roster, started_at, sampler, setup: Arc::default(), store: Arc::default() }
    }

    /// From now on this is the configuration, to be shown and to be followed.
    pub(crate) fn configure(&self, loaded: &Loaded) {
        let config = &loaded.config;
        let setup = Setup {
            show_bodies: config.admin.show_bodies,
            store_bytes_max: config.store.max_size,
            entries: loaded.entries(),
            checkers: config.checker.clone(),
        };
        self.set_up(setup);
    }

    fn set_up(&self, setup: Setup) {
        *self.setup.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(setup);
    }

    fn setup(&self) -> Arc<Setup> {
        Arc::clone(&self.setup.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens what needs the store. The first one stays.
    pub(crate) fn open(&self, store: Arc<dyn ForAdmin>) {
        self.store.get_or_init(|| store);
    }

    /// Serves until the future is dropped: a drain ends with it, so that it can be watched to its end.
    pub(crate) async fn serve(self, listeners: Vec<TcpListener>) -> Infallible {
        let sampling = sampler::run(self.clone());
        let own = self.numbers.own.clone();
        tokio::select! {
            never = serve::run(listeners, routes::router(self), own) => never,
            never = sampling => never,
        }
    }
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("access", &self.access).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
