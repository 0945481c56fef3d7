//! The HTTP port: `/healthz` says that the process lives, `/readyz` how each part is, `/metrics` what was counted; under
//! `/api` transactions and dead letters are looked at and decided.

mod access;
mod decisions;
mod letters;
mod problem;
mod request;
mod routes;
mod view;

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::{io, sync::Arc};

use tokio::net::TcpListener;

use crate::{health::Health, metrics::Metrics, store::Store};

pub use access::{Access, FreshTokens, TokenError, read_token};
pub use request::{LIMIT_MAX, check_reason};

/// What the HTTP port shows, and to whom. Clones are the same port.
#[derive(Clone)]
pub struct Admin {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    access: Arc<Access>,
    /// Empty until the store is open: the port answers for the health of a proxy that still starts.
    store: Arc<OnceLock<Arc<dyn Store>>>,
}

impl Admin {
    /// A port that answers for health and metrics, and with 503 for what needs the store.
    pub fn new(health: Arc<Health>, metrics: Arc<Metrics>, access: Arc<Access>) -> Self {
        Self { health, metrics, access, store: Arc::default() }
    }

    /// Opens what needs the store. The first one stays.
    pub fn open(&self, store: Arc<dyn Store>) {
        self.store.get_or_init(|| store);
    }

    /// Serves until the future is dropped: a drain ends with it, so that it can be watched to its end.
    /// # Errors
    /// When the listener fails for good.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        let service = routes::router(self).into_make_service_with_connect_info::<SocketAddr>();
        axum::serve(listener, service).await
    }
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("access", &self.access).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
