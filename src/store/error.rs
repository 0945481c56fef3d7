//! Why a store can't be had, whichever kind it is.

use super::{postgres, sqlite};

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file.
    #[error(transparent)]
    Sqlite(#[from] sqlite::OpenError),
    /// A database.
    #[error(transparent)]
    Postgres(#[from] postgres::OpenError),
}

/// Why a command on a store failed.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// On a file.
    #[error(transparent)]
    Sqlite(#[from] sqlite::ToolError),
    /// On a database.
    #[error(transparent)]
    Postgres(#[from] postgres::OpenError),
    /// A database is backed up with its own tools.
    #[error("a store in PostgreSQL is backed up with PostgreSQL's own tools: pg_dump, or a base backup and its log")]
    OwnBackup,
}

impl ToolError {
    /// Whether there is no store yet, and a proxy that starts makes one.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Postgres(postgres::OpenError::Missing { .. }))
    }
}
