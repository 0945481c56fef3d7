//! The URL of a database: `postgres://user@host,host2/name?sslmode=verify-full`.

use super::Secret;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;

/// Where a PostgreSQL database is, and as whom to go there.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct PostgresUrl {
    /// What every kind of database has.
    pub place: Place,
    /// `target_session_attrs`: which of the hosts will do.
    pub target: Target,
    /// `options`: settings of the session, as libpq knows them (`-c search_path=shop`).
    pub options: Option<String>,
    /// `application_name`, as it is shown in `pg_stat_activity`; none: `halfway`.
    pub application_name: Option<String>,
}

/// A database on one of several hosts, and an account there.
#[derive(Clone, PartialEq)]
pub struct Place {
    /// The account.
    pub user: String,
    /// Its password, from the URL or from a file beside it.
    pub password: Option<Secret>,
    /// The hosts, in the order in which they are tried; an IPv6 address stands without its brackets.
    pub hosts: Vec<(String, u16)>,
    /// The database.
    pub database: String,
    /// Whether there is TLS.
    pub ssl: SslMode,
    /// `sslrootcert`: the authorities that are trusted, in PEM; none: those of the system.
    pub ca: Option<PathBuf>,
    /// The URL as it was written, but for the password.
    written: String,
}

/// `sslmode`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS, with any certificate: who can get in between can read and change everything.
    Require,
    /// TLS, with a certificate of a trusted authority for this host.
    VerifyFull,
}

/// `target_session_attrs`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target {
    /// Any server.
    Any,
    /// One that is not a standby.
    Primary,
    /// One that is not a standby, and takes writes.
    ReadWrite,
}

impl TryFrom<String> for PostgresUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (mut target, mut options, mut application_name) = (Target::Primary, None, None);
        let place = Place::read(&text, &["postgres", "postgresql"], 5432, |key, value| {
            match key {
                "target_session_attrs" => {
                    target = match value.as_str() {
                        "any" => Target::Any,
                        "primary" => Target::Primary,
                        "read-write" => Target::ReadWrite,
                        _ => {
                            return Err(format!("`target_session_attrs` is any, primary or read-write, not `{value}`"));
                        }
                    }
                }
                "options" => options = Some(value),
                "application_name" => application_name = Some(value),
                _ => return Ok(false),
            }
            Ok(true)
        })
        .map_err(|error| match error {
            Wrong::Parameter(key) => format!(
                "has the unknown parameter `{key}`; there are sslmode, sslrootcert, target_session_attrs, options and \
                 application_name"
            ),
            Wrong::Text(text) => text,
        })?;
        Ok(PostgresUrl { place, target, options, application_name })
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place.written)
    }
}

impl From<PostgresUrl> for String {
    fn from(url: PostgresUrl) -> String {
        url.place.written
    }
}

/// What is wrong with a URL. It quotes nothing that may be a part of a password.
enum Wrong {
    /// A parameter that nobody knows.
    Parameter(String),
    /// Something else, in words.
    Text(String),
}

impl From<String> for Wrong {
    fn from(text: String) -> Self {
        Wrong::Text(text)
    }
}

impl From<&str> for Wrong {
    fn from(text: &str) -> Self {
        Wrong::Text(text.to_owned())
    }
}

impl Place {
    /// Reads a URL. `more` is given the parameters that only this kind of database has; it says whether it knows one.
    fn read(
        text: &str,
        schemes: &[&str],
        port: u16,
        mut more: impl FnMut(&str, String) -> Result<bool, String>,
    ) -> Result<Self, Wrong> {
        let form = format!("{}://user@host/database", schemes[0]);
        let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("does not begin with {}://", schemes[0]))?;
        if !schemes.contains(&scheme) {
            return Err(format!("does not begin with {}://", schemes[0]).into());
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (account, hosts) =
            authority.rsplit_once('@').ok_or_else(|| format!("names no user; it is written {form}"))?;
        let (user, password) = match account.split_once(':') {
            Some((user, password)) => (user, Some(decode(password).ok_or(BAD_PERCENT)?)),
            None => (account, None),
        };
        let user = decode(user).ok_or(BAD_PERCENT)?;
        if user.is_empty() {
            return Err(format!("names no user; it is written {form}").into());
        }
        if path.contains('#') {
            return Err("has a fragment; a `#` in a password is written %23".into());
        }
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let database = decode(path.strip_prefix('/').unwrap_or(path)).ok_or(BAD_PERCENT)?;
        if database.is_empty() || database.contains('/') {
            return Err(format!("names no database; it is written {form}").into());
        }
        let (mut ssl, mut ca) = (SslMode::VerifyFull, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value).ok_or(BAD_PERCENT)?;
            match key {
                "sslmode" => {
                    ssl = match value.as_str() {
                        "disable" => SslMode::Disable,
                        "require" => SslMode::Require,
                        "verify-full" => SslMode::VerifyFull,
                        _ => return Err(format!("`sslmode` is disable, require or verify-full, not `{value}`").into()),
                    }
                }
                "sslrootcert" => ca = Some(PathBuf::from(value)),
                "password" => {
                    return Err("has the password among its parameters; it belongs into a file of its own".into());
                }
                _ => {
                    if !more(key, value)? {
                        return Err(Wrong::Parameter(key.to_owned()));
                    }
                }
            }
        }
        if ca.is_some() && ssl != SslMode::VerifyFull {
            return Err("has `sslrootcert`, which does nothing without sslmode=verify-full".into());
        }
        let written = match account.split_once(':') {
            Some((user, _)) => format!("{scheme}://{user}:<redacted>@{}", &rest[account.len() + 1..]),
            None => text.to_owned(),
        };
        let hosts = hosts.split(',').map(|host| read_host(host, port)).collect::<Result<_, String>>()?;
        Ok(Place { user, password: password.map(Secret::new), hosts, database, ssl, ca, written })
    }

    /// The URL without its parameters, for people to look at.
    pub fn address(&self) -> &str {
        self.written.split('?').next().unwrap_or_default()
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

fn read_host(text: &str, port: u16) -> Result<(String, u16), String> {
    let (host, after) = match text.strip_prefix('[') {
        Some(v6) => {
            let (host, after) = v6.split_once(']').ok_or("has an IPv6 address that lacks the closing `]`")?;
            host.parse::<Ipv6Addr>().map_err(|_| "has brackets around what is not an IPv6 address")?;
            (host, after)
        }
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    if host.is_empty() {
        return Err("has no host".into());
    }
    // A password that is not encoded may end up here, so it is not shown.
    let wrong = || "has no port (1 to 65535) where one is expected; an IPv6 address stands in brackets".to_owned();
    let port = match after.strip_prefix(':') {
        None if after.is_empty() => port,
        None => return Err(wrong()),
        Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?,
    };
    Ok((host.to_owned(), port))
}

/// What stands behind `%41` and its like; none if there are no two digits, or what comes out is no text.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        bytes.push(u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

const BAD_PERCENT: &str = "has a `%` without two hexadecimal digits; a `%` itself is written %25";

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<PostgresUrl, String> {
        PostgresUrl::try_from(text.to_owned())
    }

    #[test]
    fn it_says_where_to_go_and_as_whom() {
        let plain = url("postgres://halfway@db/shop").expect("a URL");
        assert_eq!(plain.place.hosts, [("db".to_owned(), 5432)]);
        assert_eq!((plain.place.user.as_str(), plain.place.database.as_str()), ("halfway", "shop"));
        assert_eq!((plain.place.ssl, plain.target), (SslMode::VerifyFull, Target::Primary));
        assert_eq!(plain.to_string(), "postgres://halfway@db/shop");

        let full =
            url("postgresql://h%40lf:p%2Fw:x@one:5433,[::1],two/sh%6fp?sslmode=verify-full&sslrootcert=/etc/ca.pem\
             &target_session_attrs=read-write&options=-c%20search_path%3Dshop&application_name=a")
            .expect("a URL");
        let Place { user, password, hosts, database, ssl, ca, .. } = &full.place;
        assert_eq!((user.as_str(), database.as_str(), *ssl), ("h@lf", "shop", SslMode::VerifyFull));
        assert_eq!(password.as_ref().map(Secret::expose), Some("p/w:x"));
        let expected = [("one", 5433), ("::1", 5432), ("two", 5432)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!(hosts[..], expected);
        assert_eq!(ca.as_deref(), Some("/etc/ca.pem".as_ref()));
        assert_eq!((full.target, full.options.as_deref()), (Target::ReadWrite, Some("-c search_path=shop")));
        assert_eq!(full.place.address(), "postgresql://h%40lf:<redacted>@one:5433,[::1],two/sh%6fp");
    }

    #[test]
    fn what_is_wrong_is_named_and_no_password_is_shown() {
        for (text, reason) in [
            ("halfway@db/shop", "does not begin with postgres://"),
            ("mysql://u:secret@db/shop", "does not begin with postgres://"),
            ("postgres://db/shop", "names no user"),
            ("postgres://:secret@db/shop", "names no user"),
            ("postgres://u:sec/ret@db/shop", "names no user"),
            ("postgres://u:sec?ret@db/shop", "names no user"),
            ("postgres://u:sec%ret@db/shop", "has a `%` without"),
            ("postgres://u:secret@db", "names no database"),
            ("postgres://u:secret@db/a/b", "names no database"),
            ("postgres://u:secret@/shop", "has no host"),
            ("postgres://u:secret@db:/shop", "has no port"),
            ("postgres://u:secret@db:0/shop", "has no port"),
            ("postgres://u@x:secret@::1/shop", "has no host"),
            ("postgres://u:x@db:secret/shop", "has no port"),
            ("postgres://u:secret@[::1/shop", "has an IPv6 address that lacks"),
            ("postgres://u:secret@[db]/shop", "has brackets around"),
            ("postgres://u:secret@db/shop#x", "has a fragment"),
            (
                "postgres://u:secret@db/shop?sslmode=prefer",
                "`sslmode` is disable, require or verify-full, not `prefer`",
            ),
            ("postgres://u@db/shop?sslmode=require&sslrootcert=ca", "has `sslrootcert`, which does nothing"),
            ("postgres://u@db/shop?password=secret", "has the password among its parameters"),
            ("postgres://u@db/shop?target_session_attrs=standby", "`target_session_attrs` is any, primary"),
            ("postgres://u@db/shop?ssl=on", "has the unknown parameter `ssl`; there are sslmode"),
        ] {
            let error = url(text).expect_err(text);
            assert!(error.starts_with(reason), "{text}: {error}");
            assert!(!error.contains("sec"), "{error}");
        }
        let shown = format!("{:?}", url("postgres://u:secret@db/shop").expect("a URL"));
        assert!(!shown.contains("secret"), "{shown}");
        let json = serde_json::to_string(&url("postgres://u:secret@db/shop?sslmode=disable").expect("a URL"));
        assert_eq!(json.expect("a text"), r#""postgres://u:<redacted>@db/shop?sslmode=disable""#);
    }
}
