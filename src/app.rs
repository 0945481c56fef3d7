//! Builds every part in order, and ends them in the opposite order.

mod reload;

pub use reload::Load;

use crate::admin::{Access, Admin, Numbers, TokenError};
use crate::check_back::{self, CheckBack};
use crate::config::{Config, Loaded, PartSize, ProxyProtocol, Unroutable, UpstreamTls};
use crate::health::{Component, Condition, Health};
use crate::memory::{self, Memory};
use crate::relay::{self, Backoff, Credentials, Relay};
use crate::report::{self, Metrics};
use crate::roster::Roster;
use crate::service;
use crate::session::listener::Listener;
use crate::session::{self, Shared, Terms};
use crate::signals::Signals;
use crate::store::{Backend, Limits, OpenError, Outlet, Shortcut, Store, StoreError};
use crate::telemetry::Level;
use crate::tls::{ClientTls, ServerTls, TlsError};
use crate::trace::{self, TracedOutlet, TracedShortcut, TracedStore};
use crate::upstream::Upstream;
use reload::Reloader;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// What the relay gets at least of the time to end, when running commits have used it up.
const RELAY_GRACE_MIN: Duration = Duration::from_secs(1);

/// What running checks get at most of the time to end: what they would have answered is asked again after the start.
const CHECKS_GRACE_MAX: Duration = Duration::from_secs(5);

/// What the last spans get to reach their collector.
const SPANS_GRACE: Duration = Duration::from_secs(2);

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A port is taken, or not ours to take.
    #[error("cannot listen on {address} ({key}): {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The key that sets it.
        key: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The signal handlers can't be installed.
    #[error("cannot handle signals: {0}")]
    Signals(io::Error),
    /// Certificates, keys or authorities are missing or don't fit.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A token of the admin port is missing or can't be one.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// Another process has taken over the store: what is left of this one must not go on.
    #[error("another process has taken over the store")]
    Taken,
    /// The store was opened and could not be read.
    #[error("cannot read the store: {0}")]
    Read(#[from] StoreError),
}

/// Runs the proxy until it is told to end, and returns when everything has ended. At SIGHUP it is configured anew by
/// `load`, and logs by `level`.
/// # Errors
/// [`AppError`], when a part can't start; then nothing was started.
pub async fn run(loaded: Loaded, load: Load, level: Level) -> Result<(), AppError> {
    let config = &loaded.config;
    let mut signals = Signals::install().map_err(AppError::Signals)?;
    service::start_signs_of_life();
    let health = Arc::new(Health::new());
    let (metrics, registry) = Metrics::new();
    let roster = Arc::new(Roster::default());
    metrics.store.limit(config.store.max_size);
    let memory = Memory::new(match config.memory.max {
        PartSize::Bytes(bytes) => bytes,
        PartSize::Auto => memory::by_default(),
    });
    let certificates = Certificates::load(config)?;
    let upstream = Arc::new(upstream(config, certificates.client.clone()));

    let access = Arc::new(Access::load(&config.admin)?);
    let numbers = Numbers { registry, own: metrics.admin.clone(), instruments: metrics.instruments() };
    let admin = Admin::new(health.clone(), numbers, access.clone(), roster.clone());
    admin.configure(&loaded);
    let serving = match config.admin.address.as_slice() {
        [] => None,
        addresses => {
            let listeners = bind(addresses, "admin.address").await?;
            for address in addresses {
                tracing::info!(%address, "admin port open");
            }
            if access.is_open() {
                tracing::info!(
                    "/api needs no token on this machine: admin.open_on_loopback is true and admin.tokens empty"
                );
            }
            Some(tokio::spawn(admin.clone().serve(listeners)))
        }
    };
    let amqp = bind(&config.listen.address, "listen.address").await?;
    let amqps = bind(&config.listen.tls_address, "listen.tls_address").await?;

    let relay = Arc::new(Relay::new(relay_settings(config), Arc::clone(&upstream)));
    let (tracer, exporter) = trace::start(&config.telemetry, &metrics.spans)?.unzip();
    let outlet: Arc<dyn Outlet> = match &tracer {
        None => relay.clone(),
        Some(tracer) => Arc::new(TracedOutlet::new(relay.clone(), Arc::clone(tracer))),
    };
    let shortcut: Arc<dyn Shortcut> = match &tracer {
        None => relay.clone(),
        Some(tracer) => Arc::new(TracedShortcut::new(relay.clone(), Arc::clone(tracer))),
    };
    let store = open_store(config, outlet).await?;
    // What the parts ask the store, with spans or without.
    let calls: Arc<dyn Store> = match &tracer {
        None => store.clone(),
        Some(tracer) => Arc::new(TracedStore::new(store.clone(), Arc::clone(tracer))),
    };
    relay.start(calls.clone()).await?;
    health.set(Component::Store, Condition::Ready);
    admin.open(calls.clone());
    let watched = report::Watched {
        store: store.clone(),
        relay: relay.status(),
        upstream: Arc::clone(&upstream),
        certificate: certificates.server.clone(),
        memory: Arc::clone(&memory),
        roster: Arc::clone(&roster),
    };
    let reporter = report::start(&health, metrics.clone(), watched);

    let parts = check_back::Parts {
        store: calls.clone(),
        upstream: Arc::clone(&upstream),
        credentials: credentials(config),
        tls: certificates.checker.clone(),
        metrics: metrics.checks.clone(),
        roster: Arc::clone(&roster),
        tracer,
    };
    let check_back = CheckBack::start(&config.checker, &parts);

    let sessions = Arc::new(Shared::new(
        Terms::new(config, check_back::rules(&config.checker)),
        session::Parts {
            store: calls,
            shortcut,
            upstream: Arc::clone(&upstream),
            metrics: Arc::new(metrics.sessions.clone()),
            health: health.clone(),
            shutdown: signals.shutdown.clone(),
            roster,
            memory,
        },
    ));
    let listener = Listener::new(Arc::clone(&sessions));
    for (port, address) in amqp.into_iter().zip(&config.listen.address) {
        tracing::info!(%address, "AMQP port open");
        tokio::spawn(listener.clone().serve(port, None));
    }
    for (port, address) in amqps.into_iter().zip(&config.listen.tls_address) {
        tracing::info!(%address, "AMQP port with TLS open");
        tokio::spawn(listener.clone().serve(port, certificates.server.clone()));
    }
    health.set(Component::Listener, Condition::Ready);
    service::ready();

    let mut reloader = Reloader {
        load,
        level,
        config: loaded.config,
        certificates,
        access,
        admin,
        relay: Arc::clone(&relay),
        store: Arc::clone(&store),
        sessions,
        check_back,
        checkers_need: parts,
        metrics,
    };
    tokio::select! {
        () = signals.shutdown.requested() => {}
        () = reloader.serve(&mut signals.reload) => {}
        // No drain: whatever is in memory is the other's by now.
        () = taken(store.taken()) => return Err(AppError::Taken),
    }
    let Reloader { config, check_back, .. } = reloader;
    tracing::info!(sessions = listener.sessions(), "draining");
    service::stopping(listener.sessions(), config.shutdown.grace);
    health.drain();
    let deadline = Instant::now() + config.shutdown.grace;
    let check_back = tokio::spawn(check_back.drain(config.shutdown.grace.min(CHECKS_GRACE_MAX)));
    if timeout_at(deadline, listener.ended()).await.is_err() {
        tracing::warn!(sessions = listener.sessions(), "shutdown.grace is over; the remaining sessions are cut off");
    }
    relay.drain(deadline.saturating_duration_since(Instant::now()).max(RELAY_GRACE_MIN)).await;
    reporter.abort();
    if let Err(error) = check_back.await {
        tracing::error!(%error, "the check-back did not end in good order");
    }
    blocking(move || store.close()).await;
    if let Some(exporter) = exporter {
        exporter.finish(SPANS_GRACE).await;
    }
    if let Some(serving) = serving {
        serving.abort();
    }
    tracing::info!("ended");
    Ok(())
}

/// TLS wherever it is spoken.
struct Certificates {
    server: Option<Arc<ServerTls>>,
    client: Option<Arc<ClientTls>>,
    /// Trust in HTTP checkers.
    checker: Option<Arc<ClientTls>>,
}

impl Certificates {
    fn load(config: &Config) -> Result<Self, TlsError> {
        let server = config.listen.tls().map(|tls| ServerTls::load(&tls)).transpose()?.map(Arc::new);
        let needs_client = config.upstream.urls.iter().any(|url| url.tls);
        let client = needs_client.then(|| ClientTls::load(&config.upstream.tls)).transpose()?.map(Arc::new);
        let needs_checker = config.checker.iter().any(|checker| checker.url.as_ref().is_some_and(|url| url.tls));
        let system = UpstreamTls { ca: None };
        let checker = needs_checker.then(|| ClientTls::load(&system)).transpose()?.map(Arc::new);
        Ok(Self { server, client, checker })
    }

    /// Whether clients would take the server's fresh certificate. One that is as old as that in force is not looked at:
    /// when it expires, other changes can still be made.
    fn check_fresh(&self, fresh: &Self) -> Result<(), TlsError> {
        match (&self.server, &fresh.server) {
            (Some(current), Some(fresh)) if current.is_valid_like(fresh) => Ok(()),
            (_, Some(fresh)) => fresh.check_time(SystemTime::now()),
            (_, None) => Ok(()),
        }
    }

    /// What is in use is replaced where it is; what was of no use before begins to be.
    fn replace(&mut self, fresh: Self) {
        if let (Some(server), Some(fresh)) = (&self.server, fresh.server) {
            server.replace(&fresh);
        }
        if let (Some(client), Some(fresh)) = (&self.client, fresh.client) {
            client.replace(&fresh);
        }
        match (&self.checker, fresh.checker) {
            (Some(checker), Some(fresh)) => checker.replace(&fresh),
            (None, fresh) => self.checker = fresh,
            (Some(_), None) => {}
        }
    }
}

fn upstream(config: &Config, tls: Option<Arc<ClientTls>>) -> Upstream {
    let proxy_protocol = config.upstream.proxy_protocol == ProxyProtocol::V2;
    Upstream::new(config.upstream.urls.clone(), tls, proxy_protocol, config.upstream.connect_timeout)
}

fn relay_settings(config: &Config) -> relay::RelaySettings {
    relay::RelaySettings {
        credentials: credentials(config),
        window: config.relay.window as usize,
        retry: Backoff { initial: config.relay.retry.initial, max: config.relay.retry.max },
        nack_pauses: &relay::NACK_PAUSES,
        idle_after: relay::IDLE_AFTER,
        confirm_timeout: config.relay.confirm_timeout,
        keep_unroutable: config.transaction.unroutable == Unroutable::DeadLetter,
    }
}

/// The proxy's own account at RabbitMQ.
fn credentials(config: &Config) -> Credentials {
    Credentials { username: config.relay.username.clone(), password: config.relay.password.expose().to_owned() }
}

fn limits(config: &Config) -> Limits {
    let (store, retention) = (&config.store, config.transaction.retention);
    Limits { max_size: store.max_size, max_size_per_user: store.user_bytes_max(), retention }
}

async fn open_store(config: &Config, outlet: Arc<dyn Outlet>) -> Result<Arc<dyn Backend>, OpenError> {
    let (url, limits) = (config.store.url.clone(), limits(config));
    tracing::info!(%url, "opening the store");
    blocking(move || url.open(limits, outlet)).await
}

/// Waits until another process has taken over the store.
async fn taken(mut taken: watch::Receiver<bool>) {
    if taken.wait_for(|taken| *taken).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn bind(addresses: &[SocketAddr], key: &'static str) -> Result<Vec<TcpListener>, AppError> {
    let mut listeners = Vec::new();
    for &address in addresses {
        listeners.push(TcpListener::bind(address).await.map_err(|source| AppError::Listen { address, key, source })?);
    }
    Ok(listeners)
}

/// Runs what blocks where it blocks nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("a panic in there is a panic here")
}
