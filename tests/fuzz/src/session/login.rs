//! A client and a RabbitMQ that keep to the handshake, each with its steps.

use pure::amqp::frame::{self, PROTOCOL_HEADER};
use pure::amqp::method::{self, Start, StartOk, id};
use pure::amqp::wire::Write;
use pure::protocol::connection::Connection;

/// RabbitMQ's connection.start.
pub fn start(out: &mut Vec<u8>) {
    Start { version: (0, 9), server_properties: b"", mechanisms: b"PLAIN AMQPLAIN", locales: b"en_US" }.write(out);
}

/// A client's connection.start-ok.
pub fn start_ok(out: &mut Vec<u8>, user: &str) {
    let response = format!("\0{user}\0secret");
    let response = response.as_bytes();
    StartOk { client_properties: b"", mechanism: b"PLAIN", response, locale: b"en_US" }.write(out);
}

/// connection.tune, or the answer to it.
pub fn tune(out: &mut Vec<u8>, id: (u16, u16), channel_max: u16) {
    frame::write_method(out, 0, id, |out| {
        out.put_u16(channel_max);
        out.put_u32(4096);
        out.put_u16(60);
    });
}

/// All of it, up to an open connection about which nothing is left to say.
pub fn log_in(connection: &mut Connection, user: &str, vhost: &str, channel_max: u16) {
    let said = |say: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        say(&mut out);
        out
    };
    connection.handle_client(&PROTOCOL_HEADER);
    connection.handle_upstream_connected();
    connection.handle_upstream(&said(&start));
    connection.handle_client(&said(&|out| start_ok(out, user)));
    connection.handle_upstream(&said(&|out| tune(out, id::CONNECTION_TUNE, channel_max)));
    connection.handle_client(&said(&|out| tune(out, id::CONNECTION_TUNE_OK, channel_max)));
    connection.handle_client(&said(&|out| method::write_open(out, vhost.as_bytes())));
    connection.handle_upstream(&said(&|out| method::write_bare(out, 0, id::CONNECTION_OPEN_OK)));
    assert!(connection.is_open(), "RabbitMQ has let it in");
    connection.io.to_client.clear();
    connection.io.to_upstream.clear();
}
