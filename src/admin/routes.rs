//! The paths of the HTTP port.

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{from_fn_with_state, map_response, map_response_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};

use super::{
    Admin, access, body, bulk, checkers, connections, decisions, letters, login, messages, overview, pages,
    problem::Problem, view,
};
use crate::metrics;

pub(super) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .route("/", get(pages::show))
        .route("/assets/{*path}", get(pages::show))
        .method_not_allowed_fallback(wrong_method)
        .nest("/api", api(&admin))
        .fallback(no_such_path)
        .layer(map_response(pages::confine))
        .layer(map_response_with_state(admin.clone(), count))
        .with_state(admin)
}

fn api(admin: &Admin) -> Router<Admin> {
    const NAMED: &str = "/vhosts/{vhost}/users/{user}/transactions/{name}";
    Router::new()
        .route(login::PATH, get(login::show).post(login::log_in).delete(login::log_out))
        .route("/config", get(show_config))
        .route("/checkers", get(checkers::list))
        .route("/connections", get(connections::list))
        .route("/connections/{id}", delete(connections::close))
        .route("/overview", get(overview::show))
        .route("/events", get(overview::watch))
        .route("/transactions", get(decisions::list))
        .route("/transactions/bulk", post(bulk::transactions))
        .route("/transactions/{id}", get(decisions::show))
        .route("/transactions/{id}/messages", get(messages::list))
        .route("/transactions/{id}/commit", post(decisions::commit))
        .route("/transactions/{id}/rollback", post(decisions::roll_back))
        .route("/transactions/{id}/check", post(decisions::check))
        .route(&format!("{NAMED}/commit"), post(decisions::commit_named))
        .route(&format!("{NAMED}/rollback"), post(decisions::roll_back_named))
        .route("/dead-letters", get(letters::list))
        .route("/dead-letters/bulk", post(bulk::dead_letters))
        .route("/dead-letters/{id}", get(letters::show))
        .route("/dead-letters/{id}/retry", post(letters::retry))
        .route("/dead-letters/{id}/discard", post(letters::discard))
        .method_not_allowed_fallback(wrong_method)
        .fallback(no_such_path)
        .layer(DefaultBodyLimit::max(body::BODY_BYTES_MAX))
        // Who may not ask does not learn which paths there are.
        .layer(from_fn_with_state(admin.clone(), access::guard))
        .layer(map_response(not_stored))
}

pub(super) async fn no_such_path() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is nothing under this path")
}

async fn wrong_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not know this method; see Allow")
}

async fn not_stored(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
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

async fn show_config(State(admin): State<Admin>) -> Json<view::Configuration> {
    Json(view::Configuration::from(&*admin.setup().entries))
}

/// In the format of OpenMetrics for those who ask for it by name, as Prometheus does; else in the one before.
async fn show_metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (kind, text) = match accepted.any(|value| value.contains("application/openmetrics-text")) {
        true => (metrics::CONTENT_TYPE, admin.metrics.encode()),
        false => (metrics::TEXT_CONTENT_TYPE, admin.metrics.encode_text()),
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn count(State(admin): State<Admin>, response: Response) -> Response {
    admin.metrics.admin_request(response.status().as_u16());
    response
}
