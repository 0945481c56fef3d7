//! AMQP 0-9-1 as bytes and rules: frames, the methods this proxy takes part in, field tables, content properties.
//!
//! Pure: nothing here knows a socket, the clock, a task or the store. Everything that is forwarded stays the bytes
//! that came; what is read here is read in place and never encoded again, because decoding and encoding a field table
//! loses order, duplicate keys and type tags.

pub mod confirms;
pub mod frame;
pub mod method;
pub mod properties;
pub mod reply_code;
pub mod table;
pub mod tags;
pub mod wire;
