//! Builds every part in order, and ends them in the opposite order.

use std::{io, net::SocketAddr, sync::Arc};

use thiserror::Error;
use tokio::net::TcpListener;

use crate::{admin::Admin, config::Config, health::Health, metrics::Metrics, signals::Signals};

/// Why the proxy could not start.
#[derive(Debug, Error)]
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
}

/// Runs the proxy until it is told to end, and returns when everything has ended.
/// # Errors
/// [`AppError`], when a part can't start; then nothing was started.
pub async fn run(config: Config) -> Result<(), AppError> {
    let mut signals = Signals::install().map_err(AppError::Signals)?;
    let health = Arc::new(Health::new());
    let metrics = Arc::new(Metrics::new());

    let admin = match config.admin.address {
        None => None,
        Some(address) => {
            let listener = TcpListener::bind(address).await.map_err(|source| AppError::Listen {
                address,
                key: "admin.address",
                source,
            })?;
            tracing::info!(%address, "admin port open");
            let admin = Admin { health: health.clone(), metrics: metrics.clone() };
            Some(tokio::spawn(admin.serve(listener)))
        }
    };

    signals.shutdown.requested().await;
    tracing::info!("draining");
    health.drain();
    if let Some(admin) = admin {
        admin.abort();
    }
    Ok(())
}
