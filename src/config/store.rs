//! Which kind of store, and where it is. What can be done with it is in `store`.

use super::{PostgresUrl, Secret};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The kind of store and its place.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct StoreUrl(pub(crate) Kind);

/// Each kind, with its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// `sqlite:` + path of the file; a relative path starts at the working directory.
    Sqlite(PathBuf),
    /// A database, with the account there.
    Postgres(PostgresUrl),
}

impl Default for StoreUrl {
    fn default() -> Self {
        Self(Kind::Sqlite("halfway.db".into()))
    }
}

impl TryFrom<String> for StoreUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.strip_prefix("sqlite:") {
            Some("") => Err("`sqlite:` lacks the path of the file, as in sqlite:halfway.db".into()),
            Some(path) => Ok(Self(Kind::Sqlite(path.into()))),
            None if text.starts_with("postgres://") || text.starts_with("postgresql://") => {
                PostgresUrl::try_from(text).map(|url| Self(Kind::Postgres(url)))
            }
            // The text may hold a password, so the message leaves it out.
            None => {
                Err("a store is `sqlite:` + path, as in sqlite:halfway.db, or postgres://user@host/database".into())
            }
        }
    }
}

impl From<StoreUrl> for String {
    fn from(url: StoreUrl) -> String {
        url.to_string()
    }
}

impl std::fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Kind::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Kind::Postgres(url) => url.fmt(f),
        }
    }
}

impl StoreUrl {
    /// The store's file, if it is one on this machine.
    pub fn file(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Sqlite(path) => Some(path),
            Kind::Postgres(_) => None,
        }
    }

    /// Whether a password belongs to it, and whether it has one.
    pub(super) fn password(&mut self) -> Option<&mut Option<Secret>> {
        match &mut self.0 {
            Kind::Sqlite(_) => None,
            Kind::Postgres(url) => Some(&mut url.place.password),
        }
    }
}
