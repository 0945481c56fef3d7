//! The methods that this proxy takes part in, read in place (AMQP 0-9-1, section 1.4 to 1.8, and RabbitMQ's own:
//! confirm, basic.nack, connection.blocked, connection.update-secret). All others pass unread.

use super::frame;
use super::reply_code::ReplyCode;
use super::wire::{Malformed, Reader, Write};

/// Class and method ids.
pub mod id {
    macro_rules! ids {
        ($($name:ident = $class:literal, $method:literal;)*) => {
            $(#[doc = concat!("Class ", $class, ", method ", $method, ".")] pub const $name: (u16, u16) = ($class, $method);)*
        };
    }
    ids! {
        CONNECTION_START = 10, 10;
        CONNECTION_START_OK = 10, 11;
        CONNECTION_SECURE = 10, 20;
        CONNECTION_SECURE_OK = 10, 21;
        CONNECTION_TUNE = 10, 30;
        CONNECTION_TUNE_OK = 10, 31;
        CONNECTION_OPEN = 10, 40;
        CONNECTION_OPEN_OK = 10, 41;
        CONNECTION_CLOSE = 10, 50;
        CONNECTION_CLOSE_OK = 10, 51;
        CONNECTION_BLOCKED = 10, 60;
        CONNECTION_UNBLOCKED = 10, 61;
        CONNECTION_UPDATE_SECRET = 10, 70;
        CHANNEL_OPEN = 20, 10;
        CHANNEL_OPEN_OK = 20, 11;
        CHANNEL_FLOW = 20, 20;
        CHANNEL_FLOW_OK = 20, 21;
        CHANNEL_CLOSE = 20, 40;
        CHANNEL_CLOSE_OK = 20, 41;
        EXCHANGE_DELETE = 40, 20;
        EXCHANGE_DELETE_OK = 40, 21;
        EXCHANGE_UNBIND = 40, 40;
        EXCHANGE_UNBIND_OK = 40, 51;
        QUEUE_DELETE = 50, 40;
        QUEUE_DELETE_OK = 50, 41;
        QUEUE_UNBIND = 50, 50;
        QUEUE_UNBIND_OK = 50, 51;
        BASIC_CONSUME = 60, 20;
        BASIC_CONSUME_OK = 60, 21;
        BASIC_CANCEL = 60, 30;
        BASIC_CANCEL_OK = 60, 31;
        BASIC_PUBLISH = 60, 40;
        BASIC_RETURN = 60, 50;
        BASIC_DELIVER = 60, 60;
        BASIC_GET = 60, 70;
        BASIC_GET_OK = 60, 71;
        BASIC_GET_EMPTY = 60, 72;
        BASIC_ACK = 60, 80;
        BASIC_REJECT = 60, 90;
        BASIC_RECOVER_ASYNC = 60, 100;
        BASIC_RECOVER = 60, 110;
        BASIC_RECOVER_OK = 60, 111;
        BASIC_NACK = 60, 120;
        CONFIRM_SELECT = 85, 10;
        CONFIRM_SELECT_OK = 85, 11;
        TX_SELECT = 90, 10;
        TX_SELECT_OK = 90, 11;
        TX_COMMIT = 90, 20;
        TX_COMMIT_OK = 90, 21;
        TX_ROLLBACK = 90, 30;
        TX_ROLLBACK_OK = 90, 31;
    }
}

/// Whether a method takes something away on which RabbitMQ's judgement of a message may rest, or says that it is away.
pub fn takes_away(method: (u16, u16)) -> bool {
    matches!(
        method,
        id::EXCHANGE_DELETE
            | id::EXCHANGE_DELETE_OK
            | id::EXCHANGE_UNBIND
            | id::EXCHANGE_UNBIND_OK
            | id::QUEUE_DELETE
            | id::QUEUE_DELETE_OK
            | id::QUEUE_UNBIND
            | id::QUEUE_UNBIND_OK
    )
}

/// The class of basic.*, the only one with content.
pub const CLASS_BASIC: u16 = 60;

/// The arguments of basic.publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Exchange; `""` is the default exchange.
    pub exchange: &'a [u8],
    /// Routing key, any bytes.
    pub routing_key: &'a [u8],
    /// Bit 0 mandatory, bit 1 immediate.
    pub flags: u8,
}

impl<'a> Publish<'a> {
    /// The bit of [`Publish::flags`] that asks for basic.return where no queue is found.
    pub const MANDATORY: u8 = 1;

    /// Reads the arguments; trailing bytes are malformed, as for RabbitMQ (501).
    pub fn parse(arguments: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(arguments);
        reader.u16()?;
        let publish =
            Self { exchange: reader.short_string()?, routing_key: reader.short_string()?, flags: reader.u8()? };
        if reader.rest().is_empty() { Ok(publish) } else { Err(Malformed) }
    }

    /// Whether the publisher wants the message back if no queue takes it.
    pub fn mandatory(&self) -> bool {
        self.flags & Self::MANDATORY != 0
    }

    /// Appends the method frame.
    pub fn write(&self, out: &mut Vec<u8>, channel: u16) {
        frame::write_method(out, channel, id::BASIC_PUBLISH, |out| {
            out.put_u16(0);
            out.put_short_string(self.exchange);
            out.put_short_string(self.routing_key);
            out.put_u8(self.flags);
        });
    }
}

/// basic.ack, basic.nack and basic.reject, in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settle {
    /// The delivery tag; 0 with `multiple` means all so far.
    pub tag: u64,
    /// All tags up to `tag`. basic.reject has no such bit.
    pub multiple: bool,
}

impl Settle {
    /// Reads the front of the arguments of basic.ack or basic.nack.
    pub fn parse(arguments: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(arguments);
        Ok(Self { tag: reader.u64()?, multiple: reader.u8()? & 1 != 0 })
    }

    /// Reads the front of the arguments of basic.reject, whose only bit is `requeue`.
    pub fn parse_reject(arguments: &[u8]) -> Result<Self, Malformed> {
        Ok(Self { tag: Reader::new(arguments).u64()?, multiple: false })
    }
}

/// What matters of basic.consume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consume<'a> {
    /// The client's consumer tag; empty lets the server choose one.
    pub consumer_tag: &'a [u8],
    /// Deliveries count as acknowledged when they are sent.
    pub no_ack: bool,
    /// No basic.consume-ok will come.
    pub no_wait: bool,
}

impl<'a> Consume<'a> {
    /// Reads the arguments up to the bits.
    pub fn parse(arguments: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(arguments);
        reader.u16()?;
        reader.short_string()?;
        let consumer_tag = reader.short_string()?;
        let bits = reader.u8()?;
        Ok(Self { consumer_tag, no_ack: bits & 2 != 0, no_wait: bits & 8 != 0 })
    }
}

/// Reads `no_ack` of basic.get.
pub fn get_no_ack(arguments: &[u8]) -> Result<bool, Malformed> {
    let mut reader = Reader::new(arguments);
    reader.u16()?;
    reader.short_string()?;
    Ok(reader.u8()? & 1 != 0)
}

/// Reads consumer tag and delivery tag of basic.deliver.
pub fn deliver_tags(arguments: &[u8]) -> Result<(&[u8], u64), Malformed> {
    let mut reader = Reader::new(arguments);
    Ok((reader.short_string()?, reader.u64()?))
}

/// The arguments of channel.close and connection.close.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close<'a> {
    /// Why.
    pub code: ReplyCode,
    /// Why, in words; RabbitMQ begins it with the code's name.
    pub text: &'a [u8],
    /// The method that failed, `(0, 0)` if none did.
    pub method: (u16, u16),
}

impl<'a> Close<'a> {
    /// Reads the arguments.
    pub fn parse(arguments: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(arguments);
        Ok(Self {
            code: ReplyCode(reader.u16()?),
            text: reader.short_string()?,
            method: (reader.u16()?, reader.u16()?),
        })
    }

    /// Appends connection.close (`channel` 0) or channel.close.
    pub fn write(&self, out: &mut Vec<u8>, channel: u16) {
        let id = if channel == 0 { id::CONNECTION_CLOSE } else { id::CHANNEL_CLOSE };
        frame::write_method(out, channel, id, |out| {
            out.put_u16(self.code.0);
            out.put_short_string(self.text);
            out.put_u16(self.method.0);
            out.put_u16(self.method.1);
        });
    }
}

/// The arguments of basic.return, which has a content behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Return<'a> {
    /// Why: 312 NO_ROUTE.
    pub code: ReplyCode,
    /// Why, in words: RabbitMQ writes the bare name.
    pub text: &'a [u8],
    /// The exchange it was published to.
    pub exchange: &'a [u8],
    /// The routing key it was published with.
    pub routing_key: &'a [u8],
}

impl<'a> Return<'a> {
    /// Reads the arguments.
    pub fn parse(arguments: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(arguments);
        Ok(Self {
            code: ReplyCode(reader.u16()?),
            text: reader.short_string()?,
            exchange: reader.short_string()?,
            routing_key: reader.short_string()?,
        })
    }

    /// Appends the method frame.
    pub fn write(&self, out: &mut Vec<u8>, channel: u16) {
        frame::write_method(out, channel, id::BASIC_RETURN, |out| {
            out.put_u16(self.code.0);
            out.put_short_string(self.text);
            out.put_short_string(self.exchange);
            out.put_short_string(self.routing_key);
        });
    }
}

/// The arguments of connection.start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start<'a> {
    /// Major and minor protocol version: 0 and 9.
    pub version: (u8, u8),
    /// The entries of the server-properties table.
    pub server_properties: &'a [u8],
    /// SASL mechanisms, separated by spaces.
    pub mechanisms: &'a [u8],
    /// Locales, separated by spaces.
    pub locales: &'a [u8],
}

impl<'a> Start<'a> {
    /// Reads the arguments.
    pub fn parse(arguments: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(arguments);
        Ok(Self {
            version: (reader.u8()?, reader.u8()?),
            server_properties: reader.long_string()?,
            mechanisms: reader.long_string()?,
            locales: reader.long_string()?,
        })
    }

    /// Appends the method frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        frame::write_method(out, 0, id::CONNECTION_START, |out| {
            out.put_u8(self.version.0);
            out.put_u8(self.version.1);
            out.put_long_string(self.server_properties);
            out.put_long_string(self.mechanisms);
            out.put_long_string(self.locales);
        });
    }
}

/// The arguments of connection.start-ok.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartOk<'a> {
    /// The entries of the client-properties table.
    pub client_properties: &'a [u8],
    /// The SASL mechanism that the client chose.
    pub mechanism: &'a [u8],
    /// The SASL response: for PLAIN, NUL user NUL password. A secret.
    pub response: &'a [u8],
    /// The locale.
    pub locale: &'a [u8],
}

impl<'a> StartOk<'a> {
    /// Reads the arguments.
    pub fn parse(arguments: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(arguments);
        Ok(Self {
            client_properties: reader.long_string()?,
            mechanism: reader.short_string()?,
            response: reader.long_string()?,
            locale: reader.short_string()?,
        })
    }

    /// Appends the method frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        frame::write_method(out, 0, id::CONNECTION_START_OK, |out| {
            out.put_long_string(self.client_properties);
            out.put_short_string(self.mechanism);
            out.put_long_string(self.response);
            out.put_short_string(self.locale);
        });
    }
}

/// The arguments of connection.tune and connection.tune-ok.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tune {
    /// Channels that may be open at once; 0 is no limit.
    pub channel_max: u16,
    /// Bytes of a frame, header and end octet included; 0 is no limit.
    pub frame_max: u32,
    /// Seconds; 0 is none.
    pub heartbeat: u16,
}

impl Tune {
    /// Reads the arguments.
    pub fn parse(arguments: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(arguments);
        Ok(Self { channel_max: reader.u16()?, frame_max: reader.u32()?, heartbeat: reader.u16()? })
    }

    /// Appends connection.tune-ok.
    pub fn write_ok(&self, out: &mut Vec<u8>) {
        frame::write_method(out, 0, id::CONNECTION_TUNE_OK, |out| {
            out.put_u16(self.channel_max);
            out.put_u32(self.frame_max);
            out.put_u16(self.heartbeat);
        });
    }
}

/// Reads the virtual host of connection.open.
pub fn open_vhost(arguments: &[u8]) -> Result<&[u8], Malformed> {
    Reader::new(arguments).short_string()
}

/// Appends connection.open for `vhost`.
pub fn write_open(out: &mut Vec<u8>, vhost: &[u8]) {
    frame::write_method(out, 0, id::CONNECTION_OPEN, |out| {
        out.put_short_string(vhost);
        out.put_short_string(b"");
        out.put_u8(0);
    });
}

/// Appends connection.blocked with its reason.
pub fn write_blocked(out: &mut Vec<u8>, reason: &[u8]) {
    frame::write_method(out, 0, id::CONNECTION_BLOCKED, |out| out.put_short_string(reason));
}

/// Appends a method without arguments: tx.*, the -ok methods, connection.unblocked.
pub fn write_bare(out: &mut Vec<u8>, channel: u16, id: (u16, u16)) {
    frame::write_method(out, channel, id, |_| {});
}

/// Appends channel.open.
pub fn write_channel_open(out: &mut Vec<u8>, channel: u16) {
    frame::write_method(out, channel, id::CHANNEL_OPEN, |out| out.put_short_string(b""));
}

/// Appends channel.flow(active), which RabbitMQ answers and which changes nothing.
pub fn write_flow(out: &mut Vec<u8>, channel: u16) {
    frame::write_method(out, channel, id::CHANNEL_FLOW, |out| out.put_u8(1));
}

/// Appends basic.ack or basic.nack.
pub fn write_settle(out: &mut Vec<u8>, channel: u16, id: (u16, u16), settle: Settle) {
    frame::write_method(out, channel, id, |out| {
        out.put_u64(settle.tag);
        out.put_u8(settle.multiple.into());
    });
}
