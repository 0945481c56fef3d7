//! The dashboard's files over HTTP, and what a browser may do with anything that comes from this port.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use super::dashboard::{self, File};
use super::problem::Problem;

/// Scripts, styles and requests of this port alone; no frame around it, no form that leads elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     form-action 'none'; frame-ancestors 'none'; base-uri 'none'";

const CONFINEMENT: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    // For browsers that don't know frame-ancestors.
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
];

/// A file of the dashboard; it is asked for again each time, and sent again when the binary is another one.
pub(super) async fn show(uri: Uri, headers: HeaderMap) -> Response {
    let Some(File { media_type, bytes, etag, .. }) = dashboard::file(uri.path()) else {
        return Problem::no_such_path().into_response();
    };
    let caching = [(header::ETAG, etag.as_str()), (header::CACHE_CONTROL, "no-cache")];
    if is_known(&headers, etag) {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    (caching, [(header::CONTENT_TYPE, *media_type)], *bytes).into_response()
}

/// Whether the browser has it already.
fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let given = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    given.flat_map(|value| value.split(',')).any(|tag| tag.trim().trim_start_matches("W/") == etag)
}

/// Adds to an answer what keeps a browser from doing anything else with it.
pub(super) async fn confine(mut response: Response) -> Response {
    for (name, value) in CONFINEMENT {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
