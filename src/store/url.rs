//! Which kind of store, and where it is. Nothing outside of [`super`] knows the kinds.

use super::sqlite::{self, SqliteSettings, SqliteStore};
use super::tools::{CheckReport, Checked, StoreStats};
use super::{Backend, Limits, OpenError, Outlet, ToolError};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The kind of store and its place.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct StoreUrl(Kind);

#[derive(Clone, Debug, Eq, PartialEq)]
enum Kind {
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

    /// Opens the store, makes it if there is none, and ends what an earlier process left open. Blocks until done.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&self, limits: Limits, outlet: Arc<dyn Outlet>) -> Result<Arc<dyn Backend>, OpenError> {
        let Kind::Sqlite(path) = &self.0;
        let Limits { max_size, max_size_per_user, retention } = limits;
        let settings = SqliteSettings {
            max_size: Some(max_size),
            max_size_per_user: Some(max_size_per_user),
            retention,
            ..SqliteSettings::new(path)
        };
        SqliteStore::open(settings, outlet)
    }

    /// Counts what is in the store, whether or not a proxy has it.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub fn stats(&self) -> Result<StoreStats, ToolError> {
        let Kind::Sqlite(path) = &self.0;
        sqlite::stats(path)
    }

    /// Looks whether all that is in the store is right, and says in `checked` how far it is.
    ///
    /// # Errors
    /// See [`ToolError`]. What is wrong in a store that can be read is told by the report.
    pub fn check(&self, checked: &Checked) -> Result<CheckReport, ToolError> {
        let Kind::Sqlite(path) = &self.0;
        sqlite::check_telling(path, checked)
    }

    /// Copies the store as it is at one moment to a new file.
    ///
    /// # Errors
    /// The target is there already, or something could not be read or written; then there is no target.
    pub fn back_up(&self, target: &Path) -> Result<(), ToolError> {
        let Kind::Sqlite(path) = &self.0;
        sqlite::backup(path, target)
    }

    /// How many bytes of a backup are written, for somebody who looks on.
    pub fn backed_up(&self, target: &Path) -> u64 {
        let Kind::Sqlite(_) = &self.0;
        sqlite::written(target)
    }
}
