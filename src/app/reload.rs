//! SIGHUP: the whole configuration is read again. What can change while the proxy runs is put in force, what can't is
//! named; if anything is wrong, everything stays as it was.

use super::{Certificates, limits, relay_settings};
use crate::admin::{Access, Admin, TokenError};
use crate::check_back::{self, CheckBack, Parts};
use crate::config::{Change, Config, ConfigError, Effect, Loaded};
use crate::relay::Relay;
use crate::report::Metrics;
use crate::service;
use crate::session::{Shared, Terms};
use crate::store::Backend;
use crate::telemetry::Level;
use crate::tls::TlsError;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::block_in_place;

/// Reads the configuration from where it was read at the start.
pub type Load = Box<dyn Fn() -> Result<Loaded, ConfigError> + Send + Sync>;

/// What a reload changes, and the configuration in force.
pub(super) struct Reloader {
    pub(super) load: Load,
    pub(super) level: Level,
    pub(super) config: Config,
    pub(super) certificates: Certificates,
    pub(super) access: Arc<Access>,
    pub(super) admin: Admin,
    pub(super) relay: Arc<Relay>,
    pub(super) store: Arc<dyn Backend>,
    pub(super) sessions: Arc<Shared>,
    pub(super) check_back: CheckBack,
    pub(super) checkers_need: Parts,
    pub(super) metrics: Metrics,
}

/// Why everything stays as it was.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl Reloader {
    /// Reloads at each request. Never returns.
    pub(super) async fn serve(&mut self, requests: &mut mpsc::Receiver<()>) {
        while requests.recv().await.is_some() {
            service::reloading();
            // Files are read, and perhaps from a slow disk.
            let reloaded = block_in_place(|| self.reload());
            self.metrics.process.reloaded(reloaded.is_ok());
            match reloaded {
                Ok(()) => service::ready(),
                Err(error) => {
                    let reasons = error.to_string();
                    service::not_reloaded(&reasons);
                    for reason in reasons.lines() {
                        tracing::error!(reason, "the configuration was not reloaded; the old one stays in force");
                    }
                }
            }
        }
        std::future::pending().await
    }

    fn reload(&mut self) -> Result<(), ReloadError> {
        let mut loaded = (self.load)()?;
        let changes = self.config.changes(&loaded.config);
        let config = self.config.changed_to(loaded.config.clone());
        let certificates = Certificates::load(&config)?;
        self.certificates.check_fresh(&certificates)?;
        let tokens = self.access.read(&config.admin)?;
        // From here on nothing can fail.
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        changes.iter().for_each(tell);
        self.certificates.replace(certificates);
        self.access.put_in_force(tokens);
        loaded.config = config.clone();
        self.admin.configure(&loaded);
        self.put_in_force(config);
        let waiting = changes.iter().filter(|change| change.effect == Effect::Restart).count();
        tracing::info!(changes = changes.len(), waiting_for_restart = waiting, "configuration reloaded");
        Ok(())
    }

    fn put_in_force(&mut self, config: Config) {
        self.level.change(&config.log.level);
        self.metrics.store.limit(config.store.max_size);
        self.store.change_limits(limits(&config));
        let settings = relay_settings(&config);
        self.checkers_need.credentials = settings.credentials.clone();
        self.checkers_need.tls = self.certificates.checker.clone();
        self.relay.change_settings(settings);
        // The rules before the tasks: no session should name a checker any more that the sweep takes for gone.
        self.sessions.change_terms(Terms::new(&config, check_back::rules(&config.checker)));
        self.check_back.change(&config.checker, &self.checkers_need);
        self.config = config;
    }
}

fn tell(change: &Change) {
    let text = |value: &Option<serde_json::Value>| value.as_ref().map_or("nothing".into(), ToString::to_string);
    let Change { key, from, to, effect } = change;
    let (from, to) = (text(from), text(to));
    let counts = match effect {
        Effect::Restart => return tracing::warn!(%key, in_force = %from, configured = %to, "needs a restart"),
        Effect::AtOnce => "at once",
        Effect::NewConnections => "for new connections",
        Effect::NewTransactions => "for new transactions",
    };
    tracing::info!(%key, %from, %to, counts, "changed");
}
