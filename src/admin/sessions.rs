//! Sessions of browsers: who showed a token once gets a cookie for it, which a page can't read and another site can't
//! send.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue, header};
use ring::rand::{SecureRandom, SystemRandom};

use crate::config::Role;
use crate::tx::decision::Actor;
use crate::values;

/// A session that was not used for so long is over.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(12 * 60 * 60);
/// Where a browser logs in and out, under `/api`.
pub(super) const PATH: &str = "/session";
/// Sessions of one token at a time; the one that was not used for longest makes room.
const SESSIONS_MAX: usize = 100;
pub(super) const COOKIE: &str = "halfway_session";
const SECRET_BYTES: usize = 32;

/// A keyed digest: of a token, or of what a cookie holds. It tells nothing about either.
pub(super) type Tag = [u8; 32];

/// The sessions that are open. They are forgotten with the process.
#[derive(Default)]
pub(super) struct Sessions {
    open: Mutex<HashMap<Tag, Session>>,
}

struct Session {
    /// The token that it was opened with.
    token: Tag,
    used: Instant,
}

impl Sessions {
    /// Opens a session for the bearer of a token.
    pub(super) fn open(&self, session: Tag, token: Tag, now: Instant) {
        let mut open = self.lock();
        open.retain(|_, session| now.saturating_duration_since(session.used) < IDLE_MAX);
        if open.values().filter(|session| session.token == token).count() >= SESSIONS_MAX {
            let own = open.iter().filter(|(_, session)| session.token == token);
            if let Some(oldest) = own.min_by_key(|(_, session)| session.used).map(|(tag, _)| *tag) {
                open.remove(&oldest);
            }
        }
        open.insert(session, Session { token, used: now });
    }

    /// The token of a session that is open, which from now on may be idle as long again.
    pub(super) fn token(&self, session: &Tag, now: Instant) -> Option<Tag> {
        let mut open = self.lock();
        let found = open.get_mut(session)?;
        if now.saturating_duration_since(found.used) >= IDLE_MAX {
            open.remove(session);
            return None;
        }
        found.used = now;
        Some(found.token)
    }

    pub(super) fn close(&self, session: &Tag) {
        self.lock().remove(session);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Tag, Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a cookie holds that nobody can guess.
pub(super) fn secret() -> Option<String> {
    let mut bytes = [0; SECRET_BYTES];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(values::hex(&bytes))
}

/// What cookies of our name hold. A port of the same host that is not ours may have set one beside it.
pub(super) fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let pairs = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let ours = pairs.flat_map(|pairs| pairs.split(';')).filter_map(|pair| pair.trim().strip_prefix(COOKIE));
    ours.filter_map(|rest| rest.strip_prefix('=')).filter(|secret| secret.len() == 2 * SECRET_BYTES).take(4)
}

/// The cookie that opens a session in a browser. `secure`: the browser came by https, and is to come by nothing else.
pub(super) fn set(secret: &str, secure: bool) -> HeaderValue {
    cookie(secret, IDLE_MAX, secure)
}

/// The cookie that ends it.
pub(super) fn unset() -> HeaderValue {
    cookie("", Duration::ZERO, false)
}

fn cookie(value: &str, age: Duration, secure: bool) -> HeaderValue {
    let secure = if secure { "; Secure" } else { "" };
    let text = format!("{COOKIE}={value}; HttpOnly; SameSite=Strict; Path=/; Max-Age={}{secure}", age.as_secs());
    text.try_into().expect("digits and visible ASCII")
}

/// What a browser that was let in shows of itself from then on.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Pass {
    /// It needs none: the port is open on its own machine.
    Open,
    /// The token itself, each time.
    Token(Tag),
    /// The cookie of a session.
    Session(Tag),
}

/// Who asks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Caller {
    /// For the history: the stem of the token's file, or `local`.
    pub(super) name: Arc<str>,
    /// What it may do.
    pub(super) role: Role,
    /// By what it was let in.
    pub(super) pass: Pass,
}

/// A caller as the history has it.
pub(super) fn actor(name: &Arc<str>) -> String {
    Actor::Operator(Arc::clone(name)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_when_it_is_idle_and_makes_room_for_its_own_kind_only() {
        let sessions = Sessions::default();
        let start = Instant::now();
        sessions.open([1; 32], [7; 32], start);
        let almost = start + IDLE_MAX - Duration::from_secs(1);
        assert_eq!(sessions.token(&[1; 32], almost), Some([7; 32]));
        assert_eq!(sessions.token(&[1; 32], almost + IDLE_MAX - Duration::from_secs(1)), Some([7; 32]), "it was used");
        assert_eq!(sessions.token(&[1; 32], almost + 3 * IDLE_MAX), None);
        assert_eq!(sessions.token(&[1; 32], almost), None, "and is gone");

        sessions.open([1; 32], [7; 32], start);
        let number = |number: usize| {
            let mut tag = [9; 32];
            tag[..8].copy_from_slice(&number.to_be_bytes());
            tag
        };
        for count in 0..=SESSIONS_MAX {
            sessions.open(number(count), [8; 32], start + Duration::from_secs(count as u64));
        }
        assert_eq!(sessions.token(&number(0), start), None, "the oldest of the same token made room");
        assert_eq!(sessions.token(&number(1), start), Some([8; 32]));
        assert_eq!(sessions.token(&[1; 32], start), Some([7; 32]));
    }

    #[test]
    fn cookies_are_found_among_others_and_have_one_form() {
        let secret = secret().expect("random bytes");
        let mut headers = HeaderMap::new();
        let value = format!("a=b; {COOKIE}={secret};{COOKIE}=short; {COOKIE}x={secret}");
        headers.append(header::COOKIE, value.try_into().expect("a header"));
        headers.append(header::COOKIE, format!("{COOKIE}={}", "0".repeat(64)).try_into().expect("a header"));
        assert_eq!(cookies(&headers).collect::<Vec<_>>(), [&*secret, &*"0".repeat(64)]);
        let text = set(&secret, true);
        let text = text.to_str().expect("ASCII");
        for part in [&*secret, "HttpOnly", "SameSite=Strict", "Path=/", "Secure", "Max-Age=43200"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!set(&secret, false).to_str().expect("ASCII").contains("Secure"));
    }
}
