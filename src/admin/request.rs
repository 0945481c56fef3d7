//! What the lines and heads of requests ask for, checked at the edge: each error names the field at fault.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Path, RawQuery};
use axum::http::{header, request::Parts};
use utoipa::IntoParams;
use uuid::Uuid;
use wildmatch::WildMatch;

pub(super) use self::shapes::{MessagePageQuery, NamedPath, PageQuery};

use super::problem::Problem;
use crate::store::{Bookmark, Filter, LetterFilter, LetterId, NameFilter, system_clock};
use crate::tx::decision::Owned;
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::name::TransactionName;
use crate::tx::state::State;

/// Transactions, or dead letters, in one page.
pub(crate) const LIMIT_MAX: usize = 1000;
const LIMIT_DEFAULT: usize = 100;
/// What transactions are filtered by.
pub(super) const FILTER_KEYS: [&str; 6] = ["state", "vhost", "user", "name", "exchange", "min_age"];
/// What dead letters are filtered by.
pub(super) const LETTER_FILTER_KEYS: [&str; 2] = ["vhost", "exchange"];
/// Beside them.
const PAGE_KEYS: [&str; 2] = ["limit", "cursor"];
/// Messages in one page.
const MESSAGES_MAX: usize = 100;
const MESSAGES_DEFAULT: usize = 20;

/// What a list is filtered by.
pub(super) trait Filtering: Default {
    /// The keys.
    const KEYS: &'static [&'static str];
    /// How the list tells where to go on.
    type Cursor: FromStr;
    /// Before its first.
    const START: Self::Cursor;

    /// Takes the value of one of [`Filtering::KEYS`].
    fn set(&mut self, key: &str, value: &str) -> Result<(), Problem>;
}

impl Filtering for Filter {
    const KEYS: &'static [&'static str] = &FILTER_KEYS;
    type Cursor = Bookmark;
    const START: Bookmark = Bookmark::START;

    fn set(&mut self, key: &str, value: &str) -> Result<(), Problem> {
        match key {
            "state" => self.state = Some(state(value)?),
            "vhost" => self.vhost = Some(value.to_owned()),
            "user" => self.user = Some(value.to_owned()),
            "name" => self.name = Some(pattern(value)?),
            "exchange" => self.exchange = Some(value.to_owned()),
            "min_age" => self.created_before = Some(before(value)?),
            _ => return Err(unknown_key(key, Self::KEYS)),
        }
        Ok(())
    }
}

impl Filtering for LetterFilter {
    const KEYS: &'static [&'static str] = &LETTER_FILTER_KEYS;
    type Cursor = Bookmark;
    const START: Bookmark = Bookmark::START;

    fn set(&mut self, key: &str, value: &str) -> Result<(), Problem> {
        match key {
            "vhost" => self.vhost = Some(value.to_owned()),
            "exchange" => self.exchange = Some(value.to_owned()),
            _ => return Err(unknown_key(key, Self::KEYS)),
        }
        Ok(())
    }
}

/// A page of a list.
#[derive(Debug, PartialEq)]
pub(super) struct Page<F: Filtering> {
    pub(super) filter: F,
    pub(super) after: F::Cursor,
    pub(super) limit: usize,
}

impl<F: Filtering> Page<F> {
    fn parse(query: &str) -> Result<Self, Problem> {
        let mut page = Self { filter: F::default(), after: F::START, limit: LIMIT_DEFAULT };
        for (key, value) in once_each(query)? {
            match &*key {
                "limit" => page.limit = limit(&value, LIMIT_MAX)?,
                "cursor" => page.after = cursor(&value)?,
                key if F::KEYS.contains(&key) => page.filter.set(key, &value)?,
                key => return Err(unknown_key(key, &[F::KEYS, &PAGE_KEYS].concat())),
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

impl<S: Send + Sync, F: Filtering> FromRequestParts<S> for Page<F> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        Self::parse(&query(parts, state).await)
    }
}

async fn query<S: Send + Sync>(parts: &mut Parts, state: &S) -> String {
    let Ok(RawQuery(query)) = RawQuery::from_request_parts(parts, state).await;
    query.unwrap_or_default()
}

/// What filters nothing.
#[derive(Debug, Default)]
pub(super) struct Everything;

impl Filtering for Everything {
    const KEYS: &'static [&'static str] = &[];
    type Cursor = Position;
    const START: Position = Position(0);

    fn set(&mut self, key: &str, _: &str) -> Result<(), Problem> {
        Err(unknown_key(key, Self::KEYS))
    }
}

/// A page of a transaction's messages.
#[derive(Debug)]
pub(super) struct MessagePage {
    /// The pack to begin with.
    pub(super) pack: u32,
    /// How many of its messages to pass over.
    pub(super) skip: u32,
    pub(super) limit: usize,
}

impl<S: Send + Sync> FromRequestParts<S> for MessagePage {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let mut page = Self { pack: 0, skip: 0, limit: MESSAGES_DEFAULT };
        for (key, value) in once_each(&query(parts, state).await)? {
            match &*key {
                "limit" => page.limit = limit(&value, MESSAGES_MAX)?,
                "cursor" => {
                    let place = cursor::<Position>(&value)?.0;
                    (page.pack, page.skip) = ((place >> 32) as u32, place as u32);
                }
                key => return Err(unknown_key(key, &PAGE_KEYS)),
            }
        }
        Ok(page)
    }
}

/// Where in a transaction's messages to go on.
pub(super) fn message_cursor(pack: u32, skip: u32) -> String {
    Position(i64::from(pack) << 32 | i64::from(skip)).to_string()
}

/// A path that takes no query.
pub(super) struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match once_each(&query(parts, state).await)?.first() {
            None => Ok(Self),
            Some((key, _)) => Err(Problem::field(&**key, "unknown key; there are none here")),
        }
    }
}

/// The versions of which one has to be the transaction's; none: any will do.
#[derive(IntoParams)]
#[into_params(names("If-Match"), parameter_in = Header)]
pub(super) struct IfMatch(
    /// Versions, each in quotes: it has to be in one of them.
    #[param(value_type = Option<String>)]
    Option<Vec<String>>,
);

impl IfMatch {
    /// Whether the one that there is will do.
    pub(super) fn fits(&self, version: &str) -> bool {
        self.0.as_ref().is_none_or(|tags| tags.iter().any(|tag| tag == "*" || tag.trim_matches('"') == version))
    }

    /// Whether it was asked for.
    pub(super) fn is_given(&self) -> bool {
        self.0.is_some()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut tags = Vec::new();
        for value in parts.headers.get_all(header::IF_MATCH) {
            let text = value.to_str().map_err(|_| Problem::field("If-Match", "is no list of entity tags"))?;
            // A weak one never matches here: RFC 9110, section 13.1.1.
            tags.extend(text.split(',').map(|tag| tag.trim().to_owned()).filter(|tag| !tag.starts_with("W/")));
        }
        Ok(Self(parts.headers.contains_key(header::IF_MATCH).then_some(tags)))
    }
}

/// A dead letter's number in the path.
#[derive(IntoParams)]
#[into_params(names("id"), parameter_in = Path)]
pub(super) struct Letter(
    /// The dead letter's number.
    #[param(value_type = String, pattern = "^[1-9][0-9]{0,18}$")]
    pub(super) LetterId,
);

impl<S: Send + Sync> FromRequestParts<S> for Letter {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let no_number = || Problem::field("id", "has to be a dead letter's number, such as 17");
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| no_number())?;
        text.parse().map(Self).map_err(|_| no_number())
    }
}

/// A connection's number in the path.
#[derive(IntoParams)]
#[into_params(names("id"), parameter_in = Path)]
pub(super) struct ConnectionNumber(
    /// The connection's number.
    #[param(value_type = String, pattern = "^[1-9][0-9]{0,18}$")]
    pub(super) u64,
);

impl<S: Send + Sync> FromRequestParts<S> for ConnectionNumber {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let no_number = || Problem::field("id", "has to be a connection's number, such as 17");
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| no_number())?;
        text.parse::<u64>().ok().filter(|id| id.to_string() == text).map(Self).ok_or_else(no_number)
    }
}

/// A place in a list that is the port's own, not the store's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Position(pub(super) i64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let place = i64::from_str_radix(text, 16).ok().map(Self);
        place.filter(|place| place.to_string() == text).ok_or(())
    }
}

/// Where to go on, as it was given out.
pub(super) fn cursor<C: FromStr>(text: &str) -> Result<C, Problem> {
    text.parse().map_err(|_| Problem::field("cursor", "is none that was given out as next_cursor"))
}

fn limit(text: &str, max: usize) -> Result<usize, Problem> {
    let limit = text.parse().ok().filter(|limit| (1..=max).contains(limit));
    limit.ok_or_else(|| Problem::field("limit", format_args!("has to be a whole number from 1 to {max}")))
}

/// A name, or a pattern of names.
fn pattern(text: &str) -> Result<NameFilter, Problem> {
    let whole = name("name", text)?.to_string();
    Ok(if text.contains(['*', '?']) { NameFilter::Pattern(WildMatch::new(text)) } else { NameFilter::Whole(whole) })
}

/// So long ago.
fn before(age: &str) -> Result<Timestamp, Problem> {
    let age = humantime::parse_duration(age)
        .map_err(|error| Problem::field("min_age", format_args!("has to be a duration such as 30s: {error}")))?;
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    // What came just then is as old as that.
    Ok(just_after(Timestamp(system_clock().0.saturating_sub(age))))
}

fn state(word: &str) -> Result<State, Problem> {
    let state = State::ALL.into_iter().find(|state| state.as_str() == word);
    state.ok_or_else(|| Problem::field("state", one_of(&State::ALL.map(State::as_str))))
}

fn name(field: &str, text: &str) -> Result<TransactionName, Problem> {
    TransactionName::new(text.as_bytes()).map_err(|error| Problem::field(field, error))
}

pub(super) fn one_of(words: &[&str]) -> String {
    format!("has to be one of {}", words.join(", "))
}

/// A transaction's id in the path.
#[derive(IntoParams)]
#[into_params(names("id"), parameter_in = Path)]
pub(super) struct Id(
    /// The transaction's id.
    #[param(value_type = String, format = "uuid")]
    pub(super) TransactionId,
);

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

/// The shapes of queries and paths, for the document; what is read is read key by key, so that errors name them.
#[allow(dead_code, reason = "they are drawn, not made")]
mod shapes {
    use utoipa::IntoParams;

    #[derive(IntoParams)]
    #[into_params(parameter_in = Query)]
    pub(in super::super) struct PageQuery {
        /// Items in a page; 100 without it.
        #[param(minimum = 1, maximum = 1000)]
        limit: Option<u16>,
        /// The `next_cursor` of the page before.
        #[param(pattern = "^[0-7][0-9a-f]{15}$")]
        cursor: Option<String>,
    }

    #[derive(IntoParams)]
    #[into_params(parameter_in = Query)]
    pub(in super::super) struct MessagePageQuery {
        /// Messages in a page; 20 without it.
        #[param(minimum = 1, maximum = 100)]
        limit: Option<u16>,
        /// The `next_cursor` of the page before.
        #[param(pattern = "^[0-7][0-9a-f]{15}$")]
        cursor: Option<String>,
    }

    #[derive(IntoParams)]
    #[into_params(parameter_in = Path)]
    pub(in super::super) struct NamedPath {
        /// The virtual host; the default one is `%2F`.
        vhost: String,
        /// The user who published.
        user: String,
        /// The transaction's name.
        #[param(min_length = 1, max_length = 255)]
        name: String,
    }
}

/// The moment behind this one.
pub(super) fn just_after(at: Timestamp) -> Timestamp {
    Timestamp(at.0.saturating_add(1))
}
