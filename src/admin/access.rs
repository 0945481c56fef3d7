//! Who may use `/api`: bearers of a token, or, on a loopback port without tokens, whoever is on this machine.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::{fs, io};

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::{HeaderMap, StatusCode, header, request::Parts, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ring::{hmac, rand::SystemRandom};

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
pub struct Access {
    key: hmac::Key,
    open: AtomicBool,
    tokens: RwLock<Vec<Token>>,
}

/// Tokens that were read and are not in force yet.
pub struct FreshTokens {
    tokens: Vec<Token>,
    open: bool,
}

struct Token {
    tag: hmac::Tag,
    caller: Caller,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Caller {
    /// For the history: the stem of the token's file, or `local`.
    pub(super) name: Arc<str>,
    /// What it may do.
    pub(super) role: Role,
}

impl Access {
    /// Reads the tokens' files.
    /// # Errors
    /// [`TokenError`]: names the file.
    pub fn load(config: &config::Admin) -> Result<Self, TokenError> {
        // A tag can be compared without the care that the token would need, and says nothing about it.
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| TokenError::NoRandom)?;
        let tokens = RwLock::new(read(&key, &config.tokens)?);
        Ok(Self { key, open: AtomicBool::new(config.is_open()), tokens })
    }

    /// Reads the files again, or others. What is in force stays so until [`Access::put_in_force`].
    /// # Errors
    /// As [`Access::load`].
    pub fn read(&self, config: &config::Admin) -> Result<FreshTokens, TokenError> {
        Ok(FreshTokens { tokens: read(&self.key, &config.tokens)?, open: config.is_open() })
    }

    /// From now on these tokens count, and no other.
    pub fn put_in_force(&self, fresh: FreshTokens) {
        // Closed first and opened last, so that no moment lets more callers in than before or after it.
        self.open.fetch_and(fresh.open, Ordering::SeqCst);
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = fresh.tokens;
        self.open.store(fresh.open, Ordering::SeqCst);
    }

    /// Whether `/api` answers without a token.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    fn admit(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Caller, Problem> {
        if !self.is_open() {
            return bearer(headers).and_then(|token| self.caller(token)).ok_or_else(unauthorized);
        }
        if !peer.to_canonical().is_loopback() {
            return Err(Problem::new(StatusCode::FORBIDDEN, "this port answers on the machine itself only"));
        }
        // A page in a browser on this machine may have a name of its own resolved to this address. Its requests carry
        // that name.
        if !host(headers).is_some_and(|host| is_local(&host)) {
            let text = "the Host header has to be localhost or a loopback address where no token is needed";
            return Err(Problem::new(StatusCode::FORBIDDEN, text));
        }
        Ok(Caller { name: LOCAL.into(), role: Role::Operator })
    }

    fn caller(&self, token: &[u8]) -> Option<Caller> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        // `verify` takes the same time for every wrong token, and tags tell nothing about which one is nearly right.
        tokens
            .iter()
            .find(|known| hmac::verify(&self.key, token, known.tag.as_ref()).is_ok())
            .map(|known| known.caller.clone())
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("open", &self.open).finish_non_exhaustive()
    }
}

fn read(key: &hmac::Key, files: &[AdminToken]) -> Result<Vec<Token>, TokenError> {
    let mut tokens: Vec<Token> = Vec::new();
    for AdminToken { token_file, role } in files {
        let unusable = |text| TokenError::Unusable { path: token_file.clone(), text };
        let token = read_token(token_file)?;
        let caller = Caller { name: name_of(token_file), role: *role };
        if tokens.iter().any(|other| other.caller.name == caller.name) {
            return Err(unusable("has the same name as another token's file: the history could not tell them apart"));
        }
        if tokens.iter().any(|other| hmac::verify(key, token.as_bytes(), other.tag.as_ref()).is_ok()) {
            return Err(unusable("holds the same token as another file"));
        }
        tokens.push(Token { tag: hmac::sign(key, token.as_bytes()), caller });
    }
    Ok(tokens)
}

/// Reads a token, without the newline at the end of its file.
/// # Errors
/// [`TokenError`], also if no header could carry what the file holds.
pub fn read_token(path: &Path) -> Result<String, TokenError> {
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

/// Lets a request through with its [`Caller`], or answers it.
pub(super) async fn guard(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    match admin.access.admit(request.headers(), peer.ip()) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => {
            tracing::warn!(%peer, method = %request.method(), status = problem.status().as_u16(), "refused at the admin port");
            problem.into_response()
        }
    }
}

/// A caller who may decide.
pub(super) struct Operator(pub(super) Arc<str>);

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match parts.extensions.get::<Caller>() {
            Some(Caller { name, role: Role::Operator }) => Ok(Self(Arc::clone(name))),
            Some(_) => {
                Err(Problem::new(StatusCode::FORBIDDEN, "this token may look and not decide: its role is viewer"))
            }
            None => Err(unauthorized()),
        }
    }
}
