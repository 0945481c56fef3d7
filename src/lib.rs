//! Halfway stands between AMQP 0-9-1 clients and RabbitMQ: it lets ordinary traffic through untouched and makes
//! transactions durable, atomic and decidable from outside.
//!
//! The modules, in reading order; each knows only those above it:
//!
//! - [`amqp`]: bytes and AMQP rules, pure.
//! - [`tx`]: half messages, and the states of a transaction, pure.
//! - [`store`]: what survives a crash.
//! - [`upstream`]: dialing RabbitMQ.

pub mod amqp;
pub mod store;
pub mod tx;
pub mod upstream;
