//! Half messages and the transactions that they share a fate in. Pure: no task, no socket, no clock, no SQL.

pub mod batch;
pub mod check_back;
pub mod checker;
pub mod decision;
pub mod id;
pub mod limits;
pub mod name;
pub mod outcome;
pub mod state;
