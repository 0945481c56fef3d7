//! Which kind of store, and where it is. What can be done with it is in `store`.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The kind of store and its place.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct StoreUrl(pub(crate) Kind);

/// Each kind, with its place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// `sqlite:` + path of the file; a relative path starts at the working directory.
    Sqlite(PathBuf),
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
            // The text may hold a password (postgres://user:password@…), so the message leaves it out.
            None => Err("the only kind of store is `sqlite:` + path, as in sqlite:halfway.db".into()),
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
        let Kind::Sqlite(path) = &self.0;
        write!(f, "sqlite:{}", path.display())
    }
}

impl StoreUrl {
    /// The store's file, if it is one on this machine.
    pub fn file(&self) -> Option<&Path> {
        let Kind::Sqlite(path) = &self.0;
        Some(path)
    }
}
