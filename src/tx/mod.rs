//! Half messages and the transactions that they share a fate in. Pure: no task, no socket, no clock, no SQL.

pub mod batch;
pub mod id;
pub mod outcome;
pub mod state;
