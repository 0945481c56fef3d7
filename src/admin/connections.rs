//! Client connections over HTTP: looked at, and closed.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::access::Operator;
use super::audit::{Action, Line};
use super::body::{self, Reason};
use super::openapi::{Refusals, Unknown, Wrong};
use super::problem::Problem;
use super::request::{ConnectionNumber, Everything, Page, PageQuery, Position};
use super::view::{self, Count};
use super::{Admin, sessions};
use crate::protocol::command::Stage;
use crate::roster::Seat;

/// A page of client connections.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Connections {
    items: Vec<Connection>,
    next_cursor: Option<String>,
}

/// A client's connection.
#[derive(Debug, Serialize, ToSchema)]
struct Connection {
    id: String,
    peer: String,
    tls: bool,
    /// Null until it has logged in, as all that it tells then.
    user: Option<String>,
    vhost: Option<String>,
    product: Option<String>,
    version: Option<String>,
    /// The client's own name for it.
    name: Option<String>,
    channels: u32,
    transactional_channels: u32,
    state: &'static str,
    connected_at: String,
    received_bytes: Count,
    sent_bytes: Count,
}

impl From<&Seat> for Connection {
    fn from(seat: &Seat) -> Self {
        let (channels, transactional_channels) = seat.channels();
        let (received, sent) = seat.bytes();
        let guest = seat.guest();
        Self {
            id: seat.number.to_string(),
            peer: seat.peer.to_string(),
            tls: seat.tls,
            user: guest.map(|guest| guest.user.to_string()),
            vhost: guest.map(|guest| guest.vhost.to_string()),
            product: guest.map(|guest| guest.product.clone()),
            version: guest.and_then(|guest| guest.version.clone()),
            name: guest.and_then(|guest| guest.name.clone()),
            channels,
            transactional_channels,
            state: match seat.stage() {
                Stage::Opening => "opening",
                Stage::Open => "open",
                Stage::Blocked => "blocked",
                Stage::Closing => "closing",
            },
            connected_at: view::time(seat.connected_at),
            received_bytes: Count(received),
            sent_bytes: Count(sent),
        }
    }
}

#[utoipa::path(
    get,
    path = "/connections",
    tag = "connections",
    operation_id = "listConnections",
    params(PageQuery),
    responses(
        (status = 200, body = Connections, description = "A page, the oldest first."),
        Wrong,
        Refusals,
    ),
)]
pub(super) async fn list(State(admin): State<Admin>, page: Page<Everything>) -> Json<Connections> {
    let (seats, more) = admin.roster.connections(page.after.0.unsigned_abs(), page.limit);
    let last = seats.last().filter(|_| more).map(|seat| Position(seat.number.cast_signed()).to_string());
    Json(Connections { items: seats.iter().map(|seat| Connection::from(&**seat)).collect(), next_cursor: last })
}

/// Has the session end: running commits finish, then the client is told to go, and why.
#[utoipa::path(
    delete,
    path = "/connections/{id}",
    tag = "connections",
    operation_id = "closeConnection",
    params(ConnectionNumber),
    request_body = body::ReasonBody,
    responses(
        (status = 204, description = "It is told to end."),
        Wrong,
        Unknown,
        Refusals,
    ),
)]
pub(super) async fn close(
    State(admin): State<Admin>,
    who: Operator,
    ConnectionNumber(number): ConnectionNumber,
    Reason(reason): Reason,
) -> Result<StatusCode, Problem> {
    let actor = sessions::actor(&who.0);
    let line = Line::new(Action::Close, &actor).connection(number).because(&reason);
    let Some(seat) = admin.roster.connection(number) else {
        line.write("refused: unknown");
        return Err(Problem::new(StatusCode::NOT_FOUND, "there is no such connection, or not any more"));
    };
    seat.close(&reason);
    line.write("done");
    Ok(StatusCode::NO_CONTENT)
}
