//! The paths of the HTTP port.

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{Admin, view};
use crate::metrics;

pub(super) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .with_state(admin)
}

/// The process lives and its runtime takes turns. It asks nothing else: who restarts the process because RabbitMQ is
/// down helps nobody.
async fn healthz() -> &'static str {
    "ok\n"
}

/// 200 when new clients should come here, else 503; the body tells why in both cases.
async fn readyz(State(admin): State<Admin>) -> Response {
    let report = admin.health.report();
    let status = if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(view::Readiness::from(&report))).into_response()
}

async fn show_metrics(State(admin): State<Admin>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], admin.metrics.encode()).into_response()
}
