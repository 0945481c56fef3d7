//! A real PostgreSQL for the tests of stores: what `tests/it` has of it, and none of the rest.

// Neither of the tests uses all of it.
#![allow(dead_code, unreachable_pub)]

#[path = "../it/support/child.rs"]
mod child;
#[path = "../it/support/postgres.rs"]
mod postgres;
#[path = "../it/support/waits.rs"]
mod waits;

pub use postgres::Postgres;
pub use waits::{PATIENCE, deadline, free_port, wait_until};
