//! The document of the HTTP API, made of the handlers' own descriptions.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    self, ComponentsBuilder, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, ResponseBuilder,
};
use utoipa::{IntoResponses, ToSchema};

use super::sessions::COOKIE;
use super::view::VERSION;

/// Why a request was not done: RFC 9457. Some have more members.
#[derive(ToSchema)]
#[allow(dead_code, reason = "it is drawn, not made")]
struct Problem {
    /// `about:blank`: the status tells everything.
    #[schema(rename = "type", format = "uri-reference")]
    kind: String,
    title: String,
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// For a person.
    detail: String,
    /// The part of the request that is at fault.
    field: Option<String>,
}

type Responses = BTreeMap<String, RefOr<openapi::Response>>;

fn problems(statuses: &[(&str, &str)]) -> Responses {
    let response = |text: &str| {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        ResponseBuilder::new().description(text).content("application/problem+json", content).build().into()
    };
    statuses.iter().map(|(status, text)| ((*status).to_owned(), response(text))).collect()
}

/// What any request under `/api` may come to.
pub(super) struct Refusals;
/// Something is wrong with the request.
pub(super) struct Wrong;
/// There is nothing like that.
pub(super) struct Unknown;
/// It is in no state for that.
pub(super) struct Conflict;
/// It is not what the request expects.
pub(super) struct Changed;
/// Too many ask for the same.
pub(super) struct TooMany;

impl IntoResponses for Refusals {
    fn responses() -> Responses {
        problems(&[
            ("401", "No valid token."),
            (
                "403",
                "A viewer wants to decide, another site's page asked, or an open port was asked under a foreign name.",
            ),
            ("429", "Too many wrong tokens came from the same address."),
            (
                "default",
                "Another problem, such as a body that is too large or of another type, or a store that can't write.",
            ),
        ])
    }
}

impl IntoResponses for Wrong {
    fn responses() -> Responses {
        problems(&[("400", "A part of the request is wrong; `field` names it.")])
    }
}

impl IntoResponses for Unknown {
    fn responses() -> Responses {
        problems(&[("404", "There is no such thing, or not any more.")])
    }
}

impl IntoResponses for Conflict {
    fn responses() -> Responses {
        problems(&[("409", "It was decided otherwise before, or is in no state for that.")])
    }
}

impl IntoResponses for Changed {
    fn responses() -> Responses {
        problems(&[("412", "It is not in a version that `If-Match` names.")])
    }
}

impl IntoResponses for TooMany {
    fn responses() -> Responses {
        problems(&[("503", "Too many watch already.")])
    }
}

/// All but the paths.
pub(super) fn document() -> OpenApi {
    let info = InfoBuilder::new().title("Halfway").version(VERSION).description(Some(
        "The admin port of Halfway. Numbers of 64 bits are strings of digits (`format: uint64`). A list comes in pages: \
         ask again with `next_cursor` until it is null.",
    ));
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    let cookie = ApiKey::Cookie(ApiKeyValue::with_description(COOKIE, "Set by logging in; for browsers."));
    let components = ComponentsBuilder::new()
        .schema_from::<Problem>()
        .security_scheme("token", SecurityScheme::Http(bearer))
        .security_scheme("session", SecurityScheme::ApiKey(cookie));
    let needs = |name: &str| SecurityRequirement::new::<_, [String; 0], String>(name.to_owned(), []);
    let tags = ["overview", "transactions", "dead letters", "connections", "checkers", "session", "health"];
    OpenApiBuilder::new()
        .info(info.build())
        .components(Some(components.build()))
        .security(Some([needs("token"), needs("session")]))
        .tags(Some(tags.map(|name| TagBuilder::new().name(name).build())))
        .build()
}

/// The document as it is sent.
#[derive(Clone)]
pub(super) struct Text(Arc<str>);

impl Text {
    pub(super) fn of(document: &OpenApi) -> Self {
        Self(document.to_json().expect("texts and numbers become JSON").into())
    }
}

impl IntoResponse for Text {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache")], self.0.to_string())
            .into_response()
    }
}
