//! Builds every part in order, and ends them in the opposite order.

use crate::admin::{Access, Admin, TokenError};
use crate::check_back::{self, CheckBack};
use crate::config::{Config, ProxyProtocol, StoreUrl, Unroutable, UpstreamTls};
use crate::health::{Component, Condition, Health};
use crate::metrics::Metrics;
use crate::relay::{self, Backoff, Credentials, Relay};
use crate::report;
use crate::session::Shared;
use crate::session::listener::Listener;
use crate::signals::Signals;
use crate::store::sqlite::{OpenError, SqliteSettings, SqliteStore};
use crate::store::{Outlet, StoreError};
use crate::tls::{ClientTls, ServerTls, TlsError};
use crate::upstream::Upstream;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// What the relay gets at least of the time to end, when running commits have used it up.
const RELAY_GRACE_MIN: Duration = Duration::from_secs(1);

/// What running checks get at most of the time to end: what they would have answered is asked again after the start.
const CHECKS_GRACE_MAX: Duration = Duration::from_secs(5);

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
    /// The store was opened and could not be read.
    #[error("cannot read the store: {0}")]
    Read(#[from] StoreError),
}

/// Runs the proxy until it is told to end, and returns when everything has ended.
/// # Errors
/// [`AppError`], when a part can't start; then nothing was started.
pub async fn run(config: Config) -> Result<(), AppError> {
    let mut signals = Signals::install().map_err(AppError::Signals)?;
    let health = Arc::new(Health::new());
    let metrics = Arc::new(Metrics::new());
    metrics.store_limit_bytes.set(config.store.max_size.try_into().unwrap_or(i64::MAX));
    let certificates = Certificates::load(&config)?;
    let upstream = Arc::new(upstream(&config, certificates.client.clone()));

    let access = Arc::new(Access::load(&config.admin)?);
    let admin = Admin::new(health.clone(), metrics.clone(), access.clone());
    let serving = match config.admin.address {
        None => None,
        Some(address) => {
            let listener = bind(address, "admin.address").await?;
            tracing::info!(%address, "admin port open");
            if access.is_open() {
                tracing::info!(
                    "/api needs no token on this machine: admin.open_on_loopback is true and admin.tokens empty"
                );
            }
            Some(tokio::spawn(admin.clone().serve(listener)))
        }
    };
    let amqp = bind(config.listen.address, "listen.address").await?;
    let amqps = match config.listen.tls_address {
        None => None,
        Some(address) => Some(bind(address, "listen.tls_address").await?),
    };

    let relay = Arc::new(Relay::new(relay_settings(&config), Arc::clone(&upstream)));
    let store = open_store(&config, relay.clone()).await?;
    relay.start(store.clone()).await?;
    health.set(Component::Store, Condition::Ready);
    admin.open(store.clone());
    let reporter = report::start(&health, &metrics, &store, &relay, &upstream, certificates.server.clone());

    let parts = check_back::Parts {
        store: store.clone(),
        upstream: Arc::clone(&upstream),
        credentials: credentials(&config),
        tls: certificates.checker.clone(),
        metrics: Arc::clone(&metrics),
    };
    let check_back = CheckBack::start(&config.checker, &parts);

    let shared = Shared::new(
        &config,
        store.clone(),
        Arc::clone(&upstream),
        Arc::clone(&metrics),
        health.clone(),
        signals.shutdown.clone(),
        Arc::new(check_back::rules(&config.checker)),
    );
    let listener = Listener::new(Arc::new(shared), config.listen.max_connections);
    tracing::info!(address = %config.listen.address, "AMQP port open");
    tokio::spawn(listener.clone().serve(amqp, None));
    if let (Some(amqps), Some(tls)) = (amqps, certificates.server.clone()) {
        tracing::info!(address = ?config.listen.tls_address, "AMQP port with TLS open");
        tokio::spawn(listener.clone().serve(amqps, Some(tls)));
    }
    health.set(Component::Listener, Condition::Ready);

    tokio::select! {
        () = signals.shutdown.requested() => {}
        () = reload(&mut signals.reload, &certificates, &access, &metrics) => {}
    }
    tracing::info!(sessions = listener.sessions(), "draining");
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
    if let Some(serving) = serving {
        serving.abort();
    }
    tracing::info!("ended");
    Ok(())
}

/// What SIGHUP reads again.
struct Certificates {
    server: Option<Arc<ServerTls>>,
    client: Option<Arc<ClientTls>>,
    /// Trust in HTTP checkers.
    checker: Option<Arc<ClientTls>>,
}

impl Certificates {
    fn load(config: &Config) -> Result<Self, TlsError> {
        let server = config.listen.tls().map(ServerTls::load).transpose()?.map(Arc::new);
        let needs_client = config.upstream.urls.iter().any(|url| url.tls);
        let client = needs_client.then(|| ClientTls::load(config.upstream.tls.clone())).transpose()?.map(Arc::new);
        let needs_checker = config.checker.iter().any(|checker| checker.url.as_ref().is_some_and(|url| url.tls));
        let system = UpstreamTls { ca: None };
        let checker = needs_checker.then(|| ClientTls::load(system)).transpose()?.map(Arc::new);
        Ok(Self { server, client, checker })
    }

    fn reload(&self) -> Result<(), TlsError> {
        self.server.as_ref().map_or(Ok(()), |server| server.reload())?;
        self.client.as_ref().map_or(Ok(()), |client| client.reload())?;
        self.checker.as_ref().map_or(Ok(()), |checker| checker.reload())
    }
}

/// Reads certificates and tokens again at each SIGHUP. Never returns.
async fn reload(requests: &mut mpsc::Receiver<()>, certificates: &Certificates, access: &Access, metrics: &Metrics) {
    while requests.recv().await.is_some() {
        let (certificates, tokens) = (certificates.reload(), access.reload());
        metrics.reloaded(certificates.is_ok() && tokens.is_ok());
        match certificates {
            Ok(()) => tracing::info!("certificates read again"),
            Err(error) => tracing::error!(%error, "certificates not read again; the old ones stay in force"),
        }
        match tokens {
            Ok(()) => tracing::info!("tokens read again"),
            Err(error) => tracing::error!(%error, "tokens not read again; the old ones stay in force"),
        }
    }
    std::future::pending().await
}

fn upstream(config: &Config, tls: Option<Arc<ClientTls>>) -> Upstream {
    let proxy_protocol = config.upstream.proxy_protocol == ProxyProtocol::V2;
    Upstream::new(config.upstream.urls.clone(), tls, proxy_protocol, config.upstream.connect_timeout)
}

fn relay_settings(config: &Config) -> relay::Settings {
    relay::Settings {
        credentials: credentials(config),
        window: config.relay.window as usize,
        retry: Backoff { initial: config.relay.retry.initial, max: config.relay.retry.max },
        confirm_timeout: config.relay.confirm_timeout,
        keep_unroutable: config.transaction.unroutable == Unroutable::DeadLetter,
    }
}

/// The proxy's own account at RabbitMQ.
fn credentials(config: &Config) -> Credentials {
    Credentials { username: config.relay.username.clone(), password: config.relay.password.expose().to_owned() }
}

async fn open_store(config: &Config, outlet: Arc<dyn Outlet>) -> Result<Arc<SqliteStore>, OpenError> {
    let StoreUrl::Sqlite(path) = &config.store.url;
    let settings = SqliteSettings {
        max_size: Some(config.store.max_size),
        retention: config.transaction.retention,
        ..SqliteSettings::new(path)
    };
    tracing::info!(path = %path.display(), "opening the store");
    blocking(move || SqliteStore::open(settings, outlet)).await
}

async fn bind(address: SocketAddr, key: &'static str) -> Result<TcpListener, AppError> {
    TcpListener::bind(address).await.map_err(|source| AppError::Listen { address, key, source })
}

/// Runs what blocks where it blocks nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("a panic in there is a panic here")
}
