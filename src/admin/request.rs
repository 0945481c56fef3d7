//! What requests ask for, checked at the edge: each error names the field at fault.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, RawQuery, Request};
use axum::http::{HeaderMap, StatusCode, header, request::Parts};
use serde_json::Value;
use uuid::Uuid;

use super::problem::Problem;
use crate::store::{Filter, LetterFilter, LetterId, NameFilter};
use crate::tx::decision::Owned;
use crate::tx::id::TransactionId;
use crate::tx::name::TransactionName;
use crate::tx::state::State;

/// Transactions, or dead letters, in one page.
pub const LIMIT_MAX: usize = 1000;
/// Characters of a reason.
pub(super) const REASON_CHARS_MAX: usize = 1000;
/// Bytes of a body.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024;
const LIMITS: RangeInclusive<usize> = 1..=LIMIT_MAX;
const LIMIT_DEFAULT: usize = 100;
const QUERY_KEYS: [&str; 6] = ["state", "vhost", "user", "name", "limit", "cursor"];
const LETTER_KEYS: [&str; 4] = ["vhost", "exchange", "limit", "cursor"];

/// A page of transactions.
#[derive(Debug, PartialEq)]
pub(super) struct Page {
    pub(super) filter: Filter,
    pub(super) after: i64,
    pub(super) limit: usize,
}

impl Page {
    fn parse(query: &str) -> Result<Self, Problem> {
        let mut page = Self { filter: Filter::default(), after: 0, limit: LIMIT_DEFAULT };
        for (key, value) in once_each(query)? {
            match &*key {
                "state" => page.filter.state = Some(state(&value)?),
                "vhost" => page.filter.vhost = Some(value.into_owned()),
                "user" => page.filter.user = Some(value.into_owned()),
                "name" => page.filter.name = Some(NameFilter::Whole(name("name", &value)?.to_string())),
                "limit" => page.limit = limit(&value)?,
                "cursor" => page.after = after(&value)?,
                _ => return Err(unknown_key(&key, &QUERY_KEYS)),
            }
        }
        Ok(page)
    }
}

/// A key of a query and its value.
type Pair<'a> = (Cow<'a, str>, Cow<'a, str>);

fn once_each(query: &str) -> Result<Vec<Pair<'_>>, Problem> {
    let mut pairs: Vec<Pair<'_>> = Vec::new();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        if pairs.iter().any(|(other, _)| *other == key) {
            return Err(Problem::field(key, "is there twice"));
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

fn unknown_key(key: &str, known: &[&str]) -> Problem {
    Problem::field(key, format_args!("unknown key; {}", one_of(known)))
}

impl<S: Send + Sync> FromRequestParts<S> for Page {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Ok(RawQuery(query)) = RawQuery::from_request_parts(parts, state).await;
        Self::parse(query.as_deref().unwrap_or_default())
    }
}

/// A page of dead letters.
#[derive(Debug, PartialEq)]
pub(super) struct LetterPage {
    pub(super) filter: LetterFilter,
    pub(super) after: i64,
    pub(super) limit: usize,
}

impl LetterPage {
    fn parse(query: &str) -> Result<Self, Problem> {
        let mut page = Self { filter: LetterFilter::default(), after: 0, limit: LIMIT_DEFAULT };
        for (key, value) in once_each(query)? {
            match &*key {
                "vhost" => page.filter.vhost = Some(value.into_owned()),
                "exchange" => page.filter.exchange = Some(value.into_owned()),
                "limit" => page.limit = limit(&value)?,
                "cursor" => page.after = after(&value)?,
                _ => return Err(unknown_key(&key, &LETTER_KEYS)),
            }
        }
        Ok(page)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for LetterPage {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Ok(RawQuery(query)) = RawQuery::from_request_parts(parts, state).await;
        Self::parse(query.as_deref().unwrap_or_default())
    }
}

/// A dead letter's number in the path.
pub(super) struct Letter(pub(super) LetterId);

impl<S: Send + Sync> FromRequestParts<S> for Letter {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let no_number = || Problem::field("id", "has to be a dead letter's number, such as 17");
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| no_number())?;
        // Other spellings (+17, 017) would give one letter several paths.
        let id = text.parse::<i64>().ok().filter(|id| *id > 0 && id.to_string() == text);
        id.map(|id| Self(LetterId(id))).ok_or_else(no_number)
    }
}

/// What to ask for to get what stands behind `next`.
pub(super) fn cursor(next: i64) -> String {
    format!("{next:016x}")
}

fn after(cursor: &str) -> Result<i64, Problem> {
    let digits = cursor.len() == 16 && cursor.bytes().all(|byte| byte.is_ascii_hexdigit());
    let after = i64::from_str_radix(cursor, 16).ok().filter(|_| digits);
    after.ok_or_else(|| Problem::field("cursor", "is none that was given out as next_cursor"))
}

fn limit(text: &str) -> Result<usize, Problem> {
    let limit = text.parse().ok().filter(|limit| LIMITS.contains(limit));
    limit.ok_or_else(|| Problem::field("limit", format_args!("has to be a whole number from 1 to {LIMIT_MAX}")))
}

fn state(word: &str) -> Result<State, Problem> {
    let state = State::ALL.into_iter().find(|state| state.as_str() == word);
    state.ok_or_else(|| Problem::field("state", one_of(&State::ALL.map(State::as_str))))
}

fn name(field: &str, text: &str) -> Result<TransactionName, Problem> {
    TransactionName::new(text.as_bytes()).map_err(|error| Problem::field(field, error))
}

fn one_of(words: &[&str]) -> String {
    format!("has to be one of {}", words.join(", "))
}

/// A transaction's id in the path.
pub(super) struct Id(pub(super) TransactionId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let not_an_id = || Problem::field("id", "has to be a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057");
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| not_an_id())?;
        // Other spellings of a UUID (braces, no hyphens) would give one transaction several paths.
        let hyphenated = text.len() == 36;
        let id = Uuid::try_parse(&text).ok().filter(|_| hyphenated).ok_or_else(not_an_id)?;
        Ok(Self(TransactionId(id)))
    }
}

/// A transaction's name in the path, with those to whom it belongs.
pub(super) struct Named(pub(super) Owned);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let segments = Path::<(String, String, String)>::from_request_parts(parts, state).await;
        let Path((vhost, user, text)) = segments.map_err(|error| Problem::field("path", error.body_text()))?;
        Ok(Self(Owned { vhost: vhost.into(), user: user.into(), name: name("name", &text)? }))
    }
}

/// The body `{"reason": "..."}` of a decision.
pub(super) struct Reason(pub(super) Arc<str>);

impl<S: Send + Sync> FromRequest<S> for Reason {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let reason = only_text(request, state, "reason", "is missing: the history keeps it").await?;
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
    let Value::Object(mut fields) = json(request, state).await? else { return Err(no_object(name)) };
    if let Some(unknown) = fields.keys().find(|key| *key != name) {
        return Err(Problem::field(unknown, format_args!("unknown field; there is only {name}")));
    }
    match fields.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(Problem::field(name, "has to be a string")),
        None => Err(Problem::field(name, missing)),
    }
}

/// Whether the history may keep this as a reason.
/// # Errors
/// Why not, in a clause.
pub fn check_reason(reason: &str) -> Result<(), String> {
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
            Value::Null => Ok(Self),
            Value::Object(fields) => match fields.keys().next() {
                None => Ok(Self),
                Some(unknown) => Err(Problem::field(unknown, "unknown field; there are none here")),
            },
            _ => Err(Problem::field("body", "has to be an object: {}")),
        }
    }
}

/// The body; null if there is none.
async fn json<S: Send + Sync>(request: Request, state: &S) -> Result<Value, Problem> {
    // A form on a page elsewhere can send anything but this type, and so decides nothing.
    if !is_json(request.headers()) {
        let text = "Content-Type has to be application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text).with("field", "Content-Type"));
    }
    let body = Bytes::from_request(request, state).await.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {BODY_BYTES_MAX} bytes"))
        }
        status => Problem::new(status, error.body_text()),
    })?;
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&body).map_err(|error| Problem::field("body", format_args!("is not JSON: {error}")))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

fn no_object(name: &str) -> Problem {
    Problem::field("body", format_args!("has to be an object such as {{\"{name}\": \"...\"}}"))
}
