//! What the bodies of requests say, checked at the edge: each error names the field at fault.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value};
use tokio::time::timeout;

pub(super) use self::shapes::{LettersBulk, NothingBody, ReasonBody, TokenBody, TransactionsBulk};
use super::json::Unambiguous;
use super::problem::Problem;
use super::request::{Filtering, Position, cursor, one_of};
use crate::store::Bookmark;
use crate::tx::id::Timestamp;

/// Characters of a reason.
pub(super) const REASON_CHARS_MAX: usize = 1000;
/// How long a body may take to come.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a body.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024;

/// The body `{"reason": "..."}` of a decision.
pub(super) struct Reason(pub(super) Arc<str>);

impl<S: Send + Sync> FromRequest<S> for Reason {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        Self::of(only_text(request, state, "reason", REASON_MISSING).await?)
    }
}

const REASON_MISSING: &str = "is missing: the history keeps it";

impl Reason {
    fn of(reason: String) -> Result<Self, Problem> {
        check_reason(&reason).map_err(|text| Problem::field("reason", text))?;
        Ok(Self(reason.into()))
    }
}

/// The body `{"token": "..."}` of who logs in.
pub(super) struct Token(pub(super) String);

impl<S: Send + Sync> FromRequest<S> for Token {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        only_text(request, state, "token", "is missing").await.map(Self)
    }
}

/// The text in an object that has this field and no other.
async fn only_text<S>(request: Request, state: &S, name: &str, missing: &str) -> Result<String, Problem>
where
    S: Send + Sync,
{
    let Some(Value::Object(mut fields)) = json(request, state).await? else { return Err(no_object(name)) };
    if let Some(unknown) = fields.keys().find(|key| *key != name) {
        return Err(Problem::field(unknown, format_args!("unknown field; there is only {name}")));
    }
    text(&mut fields, name)?.ok_or_else(|| Problem::field(name, missing))
}

/// Takes a text out of an object; null is as good as nothing.
fn text(fields: &mut Map<String, Value>, name: &str) -> Result<Option<String>, Problem> {
    match fields.remove(name) {
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Null) | None => Ok(None),
        Some(_) => Err(Problem::field(name, "has to be a string")),
    }
}

/// The body of a request about all that fit a filter.
#[derive(Debug)]
pub(super) struct Bulk<F> {
    pub(super) action: String,
    pub(super) filter: F,
    /// What is to be written down; none: nothing is to be done, only counted.
    pub(super) reason: Option<Arc<str>>,
    /// Where the request before this one ended; none: this is the first.
    pub(super) cursor: Option<BulkCursor>,
}

/// What it may say.
pub(super) const BULK_FIELDS: [&str; 5] = ["action", "filter", "reason", "dry_run", "cursor"];

/// Where to go on, and when it began: what came later is not meant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct BulkCursor {
    pub(super) after: Bookmark,
    pub(super) until: Timestamp,
}

impl BulkCursor {
    fn parse(text: &str) -> Result<Self, Problem> {
        let (first, second) = text.split_at_checked(16).unwrap_or((text, ""));
        Ok(Self { after: cursor(first)?, until: Timestamp(cursor::<Position>(second)?.0) })
    }
}

impl std::fmt::Display for BulkCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.after, Position(self.until.0))
    }
}

impl<S: Send + Sync, F: Filtering> FromRequest<S> for Bulk<F> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let Some(Value::Object(mut fields)) = json(request, state).await? else { return Err(no_object("action")) };
        if let Some(unknown) = fields.keys().find(|key| !BULK_FIELDS.contains(&key.as_str())) {
            return Err(Problem::field(unknown, format_args!("unknown field; {}", one_of(&BULK_FIELDS))));
        }
        let dry_run = match fields.remove("dry_run") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(dry_run)) => dry_run,
            Some(_) => return Err(Problem::field("dry_run", "has to be true or false")),
        };
        let reason = match (text(&mut fields, "reason")?, dry_run) {
            (_, true) => None,
            (Some(reason), false) => Some(Reason::of(reason)?.0),
            (None, false) => return Err(Problem::field("reason", REASON_MISSING)),
        };
        let action = text(&mut fields, "action")?.ok_or_else(|| Problem::field("action", "is missing"))?;
        let cursor = text(&mut fields, "cursor")?.map(|text| BulkCursor::parse(&text)).transpose()?;
        Ok(Self { action, filter: filter(&mut fields)?, reason, cursor })
    }
}

/// The filter has to be there, if only as `{}`: nobody should decide about everything by leaving something out.
fn filter<F: Filtering>(fields: &mut Map<String, Value>) -> Result<F, Problem> {
    let wrong = || Problem::field("filter", format_args!("has to be an object; its fields {}", may_be::<F>()));
    let Some(Value::Object(given)) = fields.remove("filter") else { return Err(wrong()) };
    let mut filter = F::default();
    for (key, value) in given {
        match value {
            Value::String(text) => filter.set(&key, &text)?,
            // As if it were not there.
            Value::Null if F::KEYS.contains(&key.as_str()) => {}
            Value::Null => filter.set(&key, "")?,
            _ => return Err(Problem::field(key, "has to be a string")),
        }
    }
    Ok(filter)
}

fn may_be<F: Filtering>() -> String {
    format!("may be {}", F::KEYS.join(", "))
}

/// The shapes of bodies, for the document; what is read is read field by field, so that errors name them.
#[allow(dead_code, reason = "they are drawn, not made")]
mod shapes {
    use super::super::view::State;
    use serde::Deserialize;
    use utoipa::ToSchema;

    /// Why; the history keeps it.
    #[derive(Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    pub(in super::super) struct ReasonBody {
        /// Not only blanks.
        #[schema(min_length = 1, max_length = 1000, pattern = "\\S")]
        reason: String,
    }

    /// What opens a session.
    #[derive(Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    pub(in super::super) struct TokenBody {
        token: String,
    }

    /// Nothing is to be said.
    #[derive(Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    pub(in super::super) struct NothingBody {}

    /// All transactions that fit.
    #[derive(Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    pub(in super::super) struct TransactionsBulk {
        action: TransactionsAction,
        filter: TransactionFilter,
        /// Needed unless it is a dry run.
        #[schema(min_length = 1, max_length = 1000, pattern = "\\S")]
        reason: Option<String>,
        /// Count them only.
        dry_run: Option<bool>,
        /// The `next_cursor` of the batch before.
        #[schema(pattern = "^([0-7][0-9a-f]{15}){2}$")]
        cursor: Option<String>,
    }

    #[derive(Deserialize, ToSchema)]
    #[serde(rename_all = "lowercase")]
    pub(in super::super) enum TransactionsAction {
        Commit,
        Rollback,
        Check,
    }

    /// As the query of their list; `state` is `in_doubt` without it, and may be `open` for decisions.
    #[derive(Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    pub(in super::super) struct TransactionFilter {
        state: Option<State>,
        vhost: Option<String>,
        user: Option<String>,
        #[schema(min_length = 1, max_length = 255)]
        name: Option<String>,
        exchange: Option<String>,
        #[schema(pattern = "^(0|[0-9]{1,6}(s|m|h|d))$")]
        min_age: Option<String>,
    }

    /// All dead letters that fit.
    #[derive(Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    pub(in super::super) struct LettersBulk {
        action: LettersAction,
        filter: LetterFilter,
        /// Needed unless it is a dry run.
        #[schema(min_length = 1, max_length = 1000, pattern = "\\S")]
        reason: Option<String>,
        /// Count them only.
        dry_run: Option<bool>,
        /// The `next_cursor` of the batch before.
        #[schema(pattern = "^([0-7][0-9a-f]{15}){2}$")]
        cursor: Option<String>,
    }

    #[derive(Deserialize, ToSchema)]
    #[serde(rename_all = "lowercase")]
    pub(in super::super) enum LettersAction {
        Retry,
        Discard,
    }

    /// As the query of their list.
    #[derive(Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    pub(in super::super) struct LetterFilter {
        vhost: Option<String>,
        exchange: Option<String>,
    }
}

/// Whether the history may keep this as a reason.
/// # Errors
/// Why not, in a clause.
pub(crate) fn check_reason(reason: &str) -> Result<(), String> {
    match reason.chars().count() {
        _ if reason.trim().is_empty() => Err("is empty: the history keeps it".into()),
        0..=REASON_CHARS_MAX => Ok(()),
        count => Err(format!("has {count} characters, more than {REASON_CHARS_MAX}")),
    }
}

/// A request that has nothing to say beside its path: no body, or `{}`.
pub(super) struct Nothing;

impl<S: Send + Sync> FromRequest<S> for Nothing {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match json(request, state).await? {
            None => Ok(Self),
            Some(Value::Object(fields)) => match fields.keys().next() {
                None => Ok(Self),
                Some(unknown) => Err(Problem::field(unknown, "unknown field; there are none here")),
            },
            _ => Err(Problem::field("body", "has to be an object: {}")),
        }
    }
}

/// The body, if there is one.
async fn json<S: Send + Sync>(request: Request, state: &S) -> Result<Option<Value>, Problem> {
    // A form on a page elsewhere can send anything but this type, and so decides nothing.
    if !is_json(request.headers()) {
        let text = "Content-Type has to be application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text).with("field", "Content-Type"));
    }
    let Ok(body) = timeout(BODY_WITHIN, Bytes::from_request(request, state)).await else {
        let text = format!("the body did not come within {} seconds", BODY_WITHIN.as_secs());
        return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, text));
    };
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {BODY_BYTES_MAX} bytes"))
        }
        status => Problem::new(status, error.body_text()),
    })?;
    if body.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&body)
        .map(|Unambiguous(value)| Some(value))
        .map_err(|error| Problem::field("body", format_args!("is not JSON: {error}")))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

fn no_object(name: &str) -> Problem {
    Problem::field("body", format_args!("has to be an object such as {{\"{name}\": \"...\"}}"))
}
