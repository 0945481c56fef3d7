//! Logging in and out with a browser: a token is shown once, and a cookie stands for it from then on.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::audit::{Action, Line};
use super::body::{self, Nothing, Token};
use super::openapi::{Refusals, Wrong};
use super::problem::Problem;
use super::sessions::{self, Caller};
use super::{Admin, view};

/// Opens a session. Where no token is needed, there is none to open.
#[utoipa::path(
    post,
    path = "/session",
    tag = "session",
    operation_id = "logIn",
    security(()),
    request_body = body::TokenBody,
    responses(
        (status = 200, body = view::Session, description = "Who that is; a cookie opens the session."),
        Wrong,
        Refusals,
    ),
)]
pub(super) async fn log_in(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    caller: Option<axum::Extension<Caller>>,
    Token(token): Token,
) -> Result<Response, Problem> {
    if let Some(axum::Extension(caller)) = caller {
        return Ok(Json(view::Session::new(&caller, &admin)).into_response());
    }
    match admin.access.log_in(&token, peer.ip()) {
        Ok((caller, secret)) => {
            Line::new(Action::LogIn, &sessions::actor(&caller.name)).from(peer).write("done");
            let secure = headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"));
            let cookie = [(header::SET_COOKIE, sessions::set(&secret, secure))];
            Ok((cookie, Json(view::Session::new(&caller, &admin))).into_response())
        }
        Err(problem) => {
            Line::new(Action::LogIn, "").from(peer).write(&format!("refused: {}", problem.status().as_u16()));
            Err(problem)
        }
    }
}

/// Who asks, and what that one may do.
#[utoipa::path(
    get,
    path = "/session",
    tag = "session",
    operation_id = "showSession",
    responses(
        (status = 200, body = view::Session, description = "Who asks."),
        Refusals,
    ),
)]
pub(super) async fn show(State(admin): State<Admin>, caller: Caller) -> Json<view::Session> {
    Json(view::Session::new(&caller, &admin))
}

/// Ends the session, wherever its cookie may be.
#[utoipa::path(
    delete,
    path = "/session",
    tag = "session",
    operation_id = "logOut",
    request_body = body::NothingBody,
    responses(
        (status = 204, description = "It is over."),
        Wrong,
        Refusals,
    ),
)]
pub(super) async fn log_out(State(admin): State<Admin>, caller: Caller, Nothing: Nothing) -> Response {
    admin.access.log_out(&caller);
    Line::new(Action::LogOut, &sessions::actor(&caller.name)).write("done");
    (StatusCode::NO_CONTENT, [(header::SET_COOKIE, sessions::unset())]).into_response()
}
