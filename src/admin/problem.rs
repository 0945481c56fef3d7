//! What went wrong, as RFC 9457 has it.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use crate::store::StoreError;

/// An answer that says why not.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Problem {
    status: StatusCode,
    members: Map<String, Value>,
    retry_after: Option<Duration>,
}

impl Problem {
    /// With a sentence for a person.
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        let mut members = Map::new();
        // The type says that the status tells everything a program needs.
        members.insert("type".into(), "about:blank".into());
        members.insert("title".into(), title.into());
        members.insert("status".into(), status.as_u16().into());
        members.insert("detail".into(), detail.into().into());
        Self { status, members, retry_after: None }
    }

    /// 404 for a path.
    pub(super) fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is nothing under this path")
    }

    /// 404 for a transaction.
    pub(super) fn no_such_transaction() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is no such transaction, or not any more")
    }

    /// 400, and the part of the request that is at fault.
    pub(super) fn field(field: impl Into<String>, text: impl std::fmt::Display) -> Self {
        let field = field.into();
        Self::new(StatusCode::BAD_REQUEST, format!("{field}: {text}")).with("field", field)
    }

    /// One more member.
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.into(), value.into());
        self
    }

    /// When it may go better.
    pub(super) fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// The sentence for a person.
    pub(super) fn detail(&self) -> &str {
        self.members.get("detail").and_then(Value::as_str).unwrap_or_default()
    }

    /// The status of the answer.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let status = match error {
            StoreError::Full(_) => StatusCode::INSUFFICIENT_STORAGE,
            StoreError::Io(_) | StoreError::Unknown(_) | StoreError::Fenced | StoreError::Closed => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            StoreError::Conflict(_) | StoreError::Locked(_) | StoreError::Refused(..) => StatusCode::CONFLICT,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(Value::Object(self.members))).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, wait.as_secs().into());
        }
        response
    }
}
