//! The pure modules of the proxy, taken as they stand: they need nothing else of it, so neither do the fuzz targets.

#[path = "../../../src/amqp/mod.rs"]
pub mod amqp;
#[path = "../../../src/protocol/mod.rs"]
pub mod protocol;
#[path = "../../../src/tx/mod.rs"]
pub mod tx;
