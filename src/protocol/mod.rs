//! What one client connection says and is told: sans-io. Bytes and events go in by `handle_*`, bytes and commands come
//! out; there is no socket, no task and no store here, and the clock is given as an argument. So all of it can be
//! tested, fuzzed and simulated by itself.

pub mod behind;
pub mod channel;
pub mod command;
pub mod connection;
pub mod deliveries;
pub mod half;
pub mod handshake;
pub mod judge;
pub mod leases;
mod line;
pub mod numbering;
pub mod ordinary;
pub mod probe;
pub mod transaction;
