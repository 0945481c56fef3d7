//! The HTTP port: `/healthz` says that the process lives, `/readyz` how each part is, `/metrics` what was counted.

mod routes;
mod view;

use std::{io, sync::Arc};

use tokio::net::TcpListener;

use crate::{health::Health, metrics::Metrics};

/// What the HTTP port shows.
#[derive(Clone, Debug)]
pub struct Admin {
    /// For `/readyz`.
    pub health: Arc<Health>,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
}

impl Admin {
    /// Serves until the future is dropped: a drain ends with it, so that it can be watched to its end.
    /// # Errors
    /// When the listener fails for good.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        axum::serve(listener, routes::router(self)).await
    }
}

#[cfg(test)]
mod tests;
