//! The paths of the HTTP port.

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{from_extractor, from_fn_with_state, map_response, map_response_with_state},
    response::{IntoResponse, Response},
    routing::get,
};

use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Admin, access, body, bulk, checkers, connections, decisions, letters, login, messages, openapi, openapi::Refusals,
    overview, pages, problem::Problem, request::NoQuery, view,
};
use crate::metrics;

pub(super) fn router(admin: Admin) -> Router {
    let (api, mut document) = api().split_for_parts();
    let api = api
        .method_not_allowed_fallback(wrong_method)
        .fallback(no_such_path)
        .layer(DefaultBodyLimit::max(body::BODY_BYTES_MAX))
        // Who may not ask does not learn which paths there are.
        .layer(from_fn_with_state(admin.clone(), access::guard))
        .layer(map_response(not_stored));
    let (health, of_health) = health().split_for_parts();
    document = openapi::document().nest("/api", document);
    document.merge(of_health);
    let document = openapi::Text::of(&document);
    health
        .route("/openapi.json", get(async move || document.into_response()))
        .route("/", get(pages::show))
        .route("/assets/{*path}", get(pages::show))
        .method_not_allowed_fallback(wrong_method)
        .nest("/api", api)
        .fallback(no_such_path)
        .layer(map_response(pages::confine))
        .layer(map_response_with_state(admin.clone(), count))
        .with_state(admin)
}

/// What needs no token.
fn health() -> OpenApiRouter<Admin> {
    OpenApiRouter::new().routes(routes!(healthz)).routes(routes!(readyz)).routes(routes!(show_metrics))
}

/// Paths without `/api` before them. Each stands in the document by being here.
fn api() -> OpenApiRouter<Admin> {
    let lists = OpenApiRouter::new()
        .routes(routes!(connections::list))
        .routes(routes!(decisions::list))
        .routes(routes!(messages::list))
        .routes(routes!(letters::list));
    let rest = OpenApiRouter::new()
        .routes(routes!(login::log_in, login::show, login::log_out))
        .routes(routes!(overview::show))
        .routes(routes!(overview::watch))
        .routes(routes!(show_config))
        .routes(routes!(checkers::list))
        .routes(routes!(connections::close))
        .routes(routes!(bulk::transactions))
        .routes(routes!(decisions::show))
        .routes(routes!(decisions::commit))
        .routes(routes!(decisions::roll_back))
        .routes(routes!(decisions::check))
        .routes(routes!(decisions::commit_named))
        .routes(routes!(decisions::roll_back_named))
        .routes(routes!(bulk::dead_letters))
        .routes(routes!(letters::show))
        .routes(routes!(letters::retry))
        .routes(routes!(letters::discard));
    lists.merge(rest.layer(from_extractor::<NoQuery>()))
}

async fn no_such_path() -> Problem {
    Problem::no_such_path()
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
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "health",
    operation_id = "health",
    security(()),
    responses((status = 200, body = String, content_type = "text/plain")),
)]
async fn healthz() -> &'static str {
    "ok\n"
}

/// 200 when new clients should come here, else 503; the body tells why in both cases.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "health",
    operation_id = "readiness",
    security(()),
    responses(
        (status = 200, body = view::Readiness, description = "New clients may come."),
        (status = 503, body = view::Readiness, description = "They had better not."),
    ),
)]
async fn readyz(State(admin): State<Admin>) -> Response {
    let report = admin.health.report();
    let status = if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(view::Readiness::from(&report))).into_response()
}

#[utoipa::path(
    get,
    path = "/config",
    tag = "overview",
    operation_id = "showConfiguration",
    responses(
        (status = 200, body = view::Configuration, description = "Every key in force, secrets masked."),
        Refusals,
    ),
)]
async fn show_config(State(admin): State<Admin>) -> Json<view::Configuration> {
    Json(view::Configuration::from(&*admin.setup().entries))
}

/// In the format of OpenMetrics for those who ask for it by name, as Prometheus does; else in the one before.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "health",
    operation_id = "metrics",
    security(()),
    responses((
        status = 200,
        description = "In the format of Prometheus, or in OpenMetrics for those who ask for it.",
        content((String = "text/plain"), (String = "application/openmetrics-text")),
    )),
)]
async fn show_metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (kind, text) = match accepted.any(|value| value.contains("application/openmetrics-text")) {
        true => (metrics::CONTENT_TYPE, admin.numbers.registry.encode()),
        false => (metrics::TEXT_CONTENT_TYPE, admin.numbers.registry.encode_text()),
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn count(State(admin): State<Admin>, response: Response) -> Response {
    admin.numbers.own.answered(response.status().as_u16());
    response
}
