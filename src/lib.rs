//! Halfway stands between AMQP 0-9-1 clients and RabbitMQ: it lets ordinary traffic through untouched and makes
//! transactions durable, atomic and decidable from outside.
//!
//! The modules, in reading order; each knows only those above it:
//!
//! - [`amqp`]: bytes and AMQP rules, pure.
//! - [`tx`]: half messages, and the states of a transaction, pure.
//! - [`protocol`]: what one client connection says and is told, pure.
//! - `histogram`: durations counted in buckets.
//! - [`metrics`]: how what is counted is named and shown; each room counts for itself.
//! - [`config`]: what an operator can set, checked at the edge.
//! - [`telemetry`] and `signals`: logs, and what the operator says while the proxy runs.
//! - `service`: what the service manager is told.
//! - `health`: how every part is.
//! - `values`: AMQP's values as JSON.
//! - `roster`: what the parts that run tell of themselves, for people to look at.
//! - [`memory`]: one budget of bytes for all clients.
//! - `places`: where connections wait that nobody knows yet.
//! - `tls`: certificates and trust, on both sides.
//! - [`postgres`]: dialing PostgreSQL.
//! - [`store`]: what survives a crash.
//! - [`upstream`]: dialing RabbitMQ.
//! - `http`: asking HTTP servers.
//! - `trace`: spans for OpenTelemetry.
//! - [`relay`]: committed half messages to RabbitMQ.
//! - [`check_back`]: asks what became of transactions in doubt.
//! - [`session`]: one task for each client connection.
//! - `admin`: the HTTP port.
//! - `report`: brings together what the parts count.
//! - [`app`]: builds every part in order.
//! - [`doctor`]: looks at what the proxy needs.
//! - [`cli`]: the command line.

mod admin;
pub mod amqp;
pub mod app;
pub mod check_back;
pub mod cli;
pub mod config;
pub mod doctor;
mod health;
mod histogram;
mod http;
pub mod memory;
pub mod metrics;
mod places;
pub mod postgres;
pub mod protocol;
pub mod relay;
mod report;
mod roster;
mod service;
pub mod session;
mod signals;
pub mod store;
pub mod telemetry;
mod tls;
mod trace;
pub mod tx;
pub mod upstream;
mod values;
