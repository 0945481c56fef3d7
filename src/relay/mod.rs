//! Committed half messages, to RabbitMQ.

mod forward;
mod queue;
mod status;
