//! Who may use `/api`: bearers of a token, or, on a loopback port without tokens, whoever is on this machine.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;
use std::{fs, io};

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header, request::Parts, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ring::{hmac, rand::SystemRandom};

use super::sessions::{self, Caller, Pass, Sessions, Tag};
use super::throttle::{self, Throttle};
use super::{Admin, problem::Problem};
use crate::config::{self, AdminToken, Role};

/// Under this name decisions are kept that needed no token.
const LOCAL: &str = "local";

/// Why the tokens can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file is not there, or not ours to read.
    #[error("cannot read {} (named by `admin.tokens`): {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Nothing in it, or what no `Authorization` header can carry.
    #[error("{} (named by `admin.tokens`) {text}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with what it holds.
        text: &'static str,
    },
    /// The operating system gives no random bytes.
    #[error("the system gives no random bytes")]
    NoRandom,
}

/// The tokens in force. They are not kept, only tags of them, made with a key of this process.
pub(crate) struct Access {
    key: hmac::Key,
    open: AtomicBool,
    tokens: RwLock<Vec<Token>>,
    sessions: Sessions,
    throttle: Throttle,
}

/// Tokens that were read and are not in force yet.
pub(crate) struct FreshTokens {
    tokens: Vec<Token>,
    open: bool,
}

#[derive(Clone)]
struct Token {
    tag: Tag,
    name: Arc<str>,
    role: Role,
}

impl Token {
    fn caller(self, pass: Pass) -> Caller {
        Caller { name: self.name, role: self.role, pass }
    }
}

impl Access {
    /// Reads the tokens' files.
    /// # Errors
    /// [`TokenError`]: names the file.
    pub(crate) fn load(config: &config::Admin) -> Result<Self, TokenError> {
        // A tag can be compared without the care that the token would need, and says nothing about it.
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| TokenError::NoRandom)?;
        let tokens = RwLock::new(read(&key, &config.tokens)?);
        let (sessions, throttle) = (Sessions::default(), Throttle::default());
        Ok(Self { key, open: AtomicBool::new(config.is_open()), tokens, sessions, throttle })
    }

    /// Reads the files again, or others. What is in force stays so until [`Access::put_in_force`].
    /// # Errors
    /// As [`Access::load`].
    pub(crate) fn read(&self, config: &config::Admin) -> Result<FreshTokens, TokenError> {
        Ok(FreshTokens { tokens: read(&self.key, &config.tokens)?, open: config.is_open() })
    }

    /// From now on these tokens count, and no other.
    pub(crate) fn put_in_force(&self, fresh: FreshTokens) {
        // Closed first and opened last, so that no moment lets more callers in than before or after it.
        self.open.fetch_and(fresh.open, Ordering::SeqCst);
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = fresh.tokens;
        self.open.store(fresh.open, Ordering::SeqCst);
    }

    /// Whether `/api` answers without a token.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    fn admit(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Caller, Problem> {
        if self.is_open() {
            return admit_local(headers, peer);
        }
        if !headers.contains_key(header::AUTHORIZATION) {
            return sessions::cookies(headers).find_map(|secret| self.by_session(secret)).ok_or_else(unauthorized);
        }
        let token = bearer(headers).ok_or_else(unauthorized)?;
        let token = self.by_token(token, peer)?;
        let pass = Pass::Token(token.tag);
        Ok(token.caller(pass))
    }

    fn by_token(&self, token: &[u8], peer: IpAddr) -> Result<Token, Problem> {
        let tag = self.tag(token);
        match self.throttle.attempt(peer, Instant::now(), || self.token(&tag)) {
            Some(found) => found.ok_or_else(unauthorized),
            None => {
                let text = "too many wrong tokens came from this address: try again in a while";
                Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, text).retry_after(throttle::EVERY))
            }
        }
    }

    fn by_session(&self, secret: &str) -> Option<Caller> {
        let session = self.tag(secret.as_bytes());
        let token = self.sessions.token(&session, Instant::now())?;
        let Some(token) = self.token(&token) else {
            // Its token is gone since the files were read again.
            self.sessions.close(&session);
            return None;
        };
        Some(token.caller(Pass::Session(session)))
    }

    /// The token in force that has this tag.
    fn token(&self, tag: &Tag) -> Option<Token> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        // Tags can be compared as they are: how far two of them agree says nothing about a token.
        tokens.iter().find(|token| token.tag == *tag).cloned()
    }

    fn tag(&self, secret: &[u8]) -> Tag {
        tag_of(&self.key, secret)
    }

    /// Opens a session for who shows a token, and gives what its cookie has to hold.
    /// # Errors
    /// 401, or 429 after too many wrong ones.
    pub(super) fn log_in(&self, token: &str, peer: IpAddr) -> Result<(Caller, String), Problem> {
        let token = self.by_token(token.as_bytes(), peer)?;
        let no_random = || Problem::new(StatusCode::INTERNAL_SERVER_ERROR, TokenError::NoRandom.to_string());
        let secret = sessions::secret().ok_or_else(no_random)?;
        let session = self.tag(secret.as_bytes());
        self.sessions.open(session, token.tag, Instant::now());
        Ok((token.caller(Pass::Session(session)), secret))
    }

    /// Ends the session of a caller who came with one.
    pub(super) fn log_out(&self, caller: &Caller) {
        if let Pass::Session(session) = &caller.pass {
            self.sessions.close(session);
        }
    }

    /// Whether a caller who was let in a while ago would be let in again.
    pub(super) fn still_admits(&self, caller: &Caller) -> bool {
        match &caller.pass {
            Pass::Open => self.is_open(),
            Pass::Token(tag) => self.token(tag).is_some(),
            Pass::Session(session) => {
                self.sessions.token(session, Instant::now()).is_some_and(|token| self.token(&token).is_some())
            }
        }
    }
}

/// Where no token is needed, it is for whoever is on this machine.
fn admit_local(headers: &HeaderMap, peer: IpAddr) -> Result<Caller, Problem> {
    if !peer.to_canonical().is_loopback() {
        return Err(Problem::new(StatusCode::FORBIDDEN, "this port answers on the machine itself only"));
    }
    // A page in a browser on this machine may have a name of its own resolved to this address. Its requests carry
    // that name.
    if !host(headers).is_some_and(|host| is_local(&host)) {
        let text = "the Host header has to be localhost or a loopback address where no token is needed";
        return Err(Problem::new(StatusCode::FORBIDDEN, text));
    }
    // The peer is a reverse proxy on this machine, and whom it speaks for is somebody else.
    if let Some(name) = FORWARDED.into_iter().find(|name| headers.contains_key(*name)) {
        let text = format!("a request that was forwarded, as {name} says, needs a token, and this port has none");
        return Err(Problem::new(StatusCode::FORBIDDEN, text));
    }
    Ok(Caller { name: LOCAL.into(), role: Role::Operator, pass: Pass::Open })
}

/// Headers by which reverse proxies say that they speak for others.
const FORWARDED: [&str; 8] = [
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-real-ip",
];

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("open", &self.open).finish_non_exhaustive()
    }
}

fn tag_of(key: &hmac::Key, secret: &[u8]) -> Tag {
    hmac::sign(key, secret).as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

fn read(key: &hmac::Key, files: &[AdminToken]) -> Result<Vec<Token>, TokenError> {
    let mut tokens: Vec<Token> = Vec::new();
    for AdminToken { token_file, role } in files {
        let unusable = |text| TokenError::Unusable { path: token_file.clone(), text };
        let token = read_token(token_file)?;
        let name = name_of(token_file);
        if tokens.iter().any(|other| other.name == name) {
            return Err(unusable("has the same name as another token's file: the history could not tell them apart"));
        }
        let tag = tag_of(key, token.as_bytes());
        if tokens.iter().any(|other| other.tag == tag) {
            return Err(unusable("holds the same token as another file"));
        }
        tokens.push(Token { tag, name, role: *role });
    }
    Ok(tokens)
}

/// Reads a token, without the newline at the end of its file.
/// # Errors
/// [`TokenError`], also if no header could carry what the file holds.
pub(crate) fn read_token(path: &Path) -> Result<String, TokenError> {
    let unusable = |text| TokenError::Unusable { path: path.to_owned(), text };
    let text = fs::read_to_string(path).map_err(|source| TokenError::Unreadable { path: path.to_owned(), source })?;
    let token = text.trim_end_matches(['\n', '\r']);
    match token.bytes().all(|byte| byte.is_ascii_graphic()) {
        _ if token.is_empty() => Err(unusable("is empty")),
        true => Ok(token.to_owned()),
        false => Err(unusable("holds something else than one line of visible ASCII without blanks")),
    }
}

fn name_of(path: &Path) -> Arc<str> {
    path.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default().into()
}

/// The token of the only `Authorization` header.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = only(headers, header::AUTHORIZATION)?;
    let (scheme, token) = value.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| token.trim_ascii()).filter(|token| !token.is_empty())
}

const SCHEME: &[u8] = b"Bearer ";

fn host(headers: &HeaderMap) -> Option<String> {
    let authority = Authority::try_from(only(headers, header::HOST)?).ok()?;
    // What stands before an @ is no part of the host, and has no place in this header.
    (!authority.as_str().contains('@')).then(|| authority.host().to_owned())
}

fn is_local(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The bytes of a header that stands there once.
fn only(headers: &HeaderMap, name: header::HeaderName) -> Option<&[u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes())
}

/// The same for no token, a wrong one, and a port that has none.
fn unauthorized() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "a valid token is needed: Authorization: Bearer ...")
}

/// Whether a browser sent this for a page of ours, or no browser sent it at all. Browsers say so themselves, in
/// `Sec-Fetch-Site` where they trust the way here, else in `Origin`.
fn is_same_site(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => ["same-origin", "none"].contains(&site),
        (None, None) => true,
        (None, Some(origin)) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            authority.zip(text("host")).is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
        }
    }
}

/// Lets a request through with its [`Caller`], or answers it. Who logs in has no pass yet.
pub(super) async fn guard(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let (method, headers) = (request.method(), request.headers());
    let logs_in = method == Method::POST && request.uri().path() == sessions::PATH;
    let admitted = if !method.is_safe() && !is_same_site(headers) {
        Err(Problem::new(StatusCode::FORBIDDEN, "another site's page sent this; it decides nothing here"))
    } else if logs_in && !admin.access.is_open() {
        Ok(None)
    } else {
        admin.access.admit(headers, peer.ip()).map(Some)
    };
    match admitted {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
        Err(problem) => {
            tracing::warn!(%peer, %method, status = problem.status().as_u16(), "refused at the admin port");
            problem.into_response()
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(unauthorized)
    }
}

/// A caller who may decide.
pub(super) struct Operator(pub(super) Arc<str>);

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Caller::from_request_parts(parts, state).await? {
            Caller { name, role: Role::Operator, .. } => Ok(Self(name)),
            _ => Err(Problem::new(StatusCode::FORBIDDEN, "this token may look and not decide: its role is viewer")),
        }
    }
}
