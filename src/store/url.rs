//! What can be done with a store, whichever kind it is. Nothing outside of [`super`] knows the kinds.

use super::sqlite::{self, SqliteSettings, SqliteStore};
use super::tools::{CheckReport, Checked, StoreStats};
use super::{Backend, Limits, OpenError, Outlet, ToolError};
use crate::config::{Kind, StoreUrl};
use std::path::Path;
use std::sync::Arc;

impl StoreUrl {
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
