//! What can be done with a store, whichever kind it is. Nothing outside of [`super`] knows the kinds.

use super::postgres::{self, PostgresSettings, PostgresStore};
use super::sqlite::{self, SqliteSettings, SqliteStore};
use super::tools::{CheckReport, Checked, StoreStats, Weakness};
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
        let Limits { max_size, max_size_per_user, retention } = limits;
        let (max_size, max_size_per_user) = (Some(max_size), Some(max_size_per_user));
        match &self.0 {
            Kind::Sqlite(path) => {
                let new = SqliteSettings::new(path);
                Ok(SqliteStore::open(SqliteSettings { max_size, max_size_per_user, retention, ..new }, outlet)?)
            }
            Kind::Postgres(url) => {
                let new = PostgresSettings::new(url.clone());
                Ok(PostgresStore::open(PostgresSettings { max_size, max_size_per_user, retention, ..new }, outlet)?)
            }
        }
    }

    /// Counts what is in the store, whether or not a proxy has it.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub fn stats(&self) -> Result<StoreStats, ToolError> {
        match &self.0 {
            Kind::Sqlite(path) => Ok(sqlite::stats(path)?),
            Kind::Postgres(url) => Ok(postgres::stats(url)?),
        }
    }

    /// Looks whether all that is in the store is right, and says in `checked` how far it is.
    ///
    /// # Errors
    /// See [`ToolError`]. What is wrong in a store that can be read is told by the report.
    pub fn check(&self, checked: &Checked) -> Result<CheckReport, ToolError> {
        match &self.0 {
            Kind::Sqlite(path) => Ok(sqlite::check_telling(path, checked)?),
            Kind::Postgres(url) => Ok(postgres::check(url, checked)?),
        }
    }

    /// What of the store's place makes a promise weaker than it sounds, as far as the store itself can tell.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub fn weaknesses(&self) -> Result<Vec<Weakness>, ToolError> {
        match &self.0 {
            Kind::Sqlite(_) => Ok(Vec::new()),
            Kind::Postgres(url) => Ok(postgres::weaknesses(url)?),
        }
    }

    /// Copies the store as it is at one moment to a new file.
    ///
    /// # Errors
    /// The target is there already, or something could not be read or written; then there is no target. Or the store is none
    /// that is copied so.
    pub fn back_up(&self, target: &Path) -> Result<(), ToolError> {
        match &self.0 {
            Kind::Sqlite(path) => Ok(sqlite::backup(path, target)?),
            Kind::Postgres(_) => Err(ToolError::OwnBackup),
        }
    }

    /// How many bytes of a backup are written, for somebody who looks on.
    pub fn backed_up(&self, target: &Path) -> u64 {
        match &self.0 {
            Kind::Sqlite(_) => sqlite::written(target),
            Kind::Postgres(_) => 0,
        }
    }
}
