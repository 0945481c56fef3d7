//! A half message as RabbitMQ gets it, and a message that RabbitMQ gave back as its publisher gets it. Pure.

use crate::amqp::frame;
use crate::amqp::method::{CLASS_BASIC, Publish, Return, id};
use crate::amqp::properties::{Properties, copy_entries};
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::table;
use crate::amqp::wire::{Malformed, Write};
use crate::store::ReturnedMessage;
use crate::tx::batch::HalfMessage;
use crate::tx::id::{MessageId, TransactionId};
use bytes::Bytes;
use uuid::Uuid;

/// The header that names a message: a long string, `<transaction>/<index>`, the same on every copy.
pub(super) const ID: &[u8] = b"x-half-id";
/// The header of a copy that may be the second: a boolean, true.
pub(super) const POSSIBLE_DUPLICATE: &[u8] = b"x-half-possible-duplicate";
/// Headers that speak to the proxy and end here; and ours, should the producer have copied them from a message that it
/// consumed: a second `x-half-id` would make duplicates hard to recognise.
const REMOVED: [&[u8]; 4] = [b"x-half-checker", b"x-half-check-after", ID, POSSIBLE_DUPLICATE];

/// What a content header of class basic begins with. RabbitMQ closes the connection over any other.
const CLASS_AND_WEIGHT: [u8; 4] = [0, CLASS_BASIC as u8, 0, 0];

/// Why a message can't be sent at all: RabbitMQ would close the whole connection, and all lanes would suffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unsendable {
    /// RabbitMQ can't read its properties.
    #[error("the message's properties, or where it goes, can't be read")]
    Malformed,
    /// Its content header does not fit in a frame, and headers are never split.
    #[error("the content header is larger than a frame may be")]
    HeaderTooLarge,
}

impl Unsendable {
    /// The code that RabbitMQ would close the connection with.
    pub(super) fn reply_code(self) -> ReplyCode {
        match self {
            Self::Malformed => ReplyCode::INTERNAL_ERROR,
            Self::HeaderTooLarge => ReplyCode::FRAME_ERROR,
        }
    }
}

impl From<Malformed> for Unsendable {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

/// Appends the frames that publish `message` on `channel`: always mandatory, so that we learn of messages that reach no
/// queue, and otherwise as it came.
///
/// # Errors
/// [`Unsendable`]; then nothing was appended.
pub(super) fn write(
    out: &mut Vec<u8>,
    channel: u16,
    message: HalfMessage<'_>,
    id: MessageId,
    possible_duplicate: bool,
    frame_bytes_max: u32,
) -> Result<(), Unsendable> {
    let start = out.len();
    let properties = Properties::parse(message.header)?;
    Publish::parse(message.publish)?;
    if !message.header.starts_with(&CLASS_AND_WEIGHT) {
        return Err(Unsendable::Malformed);
    }
    let (flags, names) = message.publish.split_last().ok_or(Malformed)?;
    frame::write_method(out, channel, id::BASIC_PUBLISH, |out| {
        out.extend_from_slice(names);
        out.put_u8(flags | Publish::MANDATORY);
    });
    let header_start = out.len();
    frame::write(out, frame::kind::HEADER, channel, |out| {
        properties.write_with_headers(out, message.body.len() as u64, |out| {
            copy_entries(out, properties.headers(), |name| !REMOVED.contains(&name));
            write_id(out, id);
            if possible_duplicate {
                table::write_bool(out, POSSIBLE_DUPLICATE, true);
            }
        });
    });
    if frame_bytes_max != 0 && out.len() - header_start > frame_bytes_max as usize {
        out.truncate(start);
        return Err(Unsendable::HeaderTooLarge);
    }
    frame::write_body(out, channel, message.body, frame_bytes_max);
    Ok(())
}

/// Appends the entry [`ID`] without a detour through a `String`: this runs for every message.
fn write_id(out: &mut Vec<u8>, id: MessageId) {
    use std::io::Write as _;
    out.put_short_string(ID);
    out.put_u8(b'S');
    let length_at = out.len();
    out.put_u32(0);
    let mut buffer = Uuid::encode_buffer();
    out.extend_from_slice(id.transaction.0.hyphenated().encode_lower(&mut buffer).as_bytes());
    write!(out, "/{}", id.index).expect("a Vec takes all that is written");
    let length = (out.len() - length_at - 4) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Reads [`ID`] in the header payload of a message that came back.
pub(super) fn read_id(header: &[u8]) -> Option<MessageId> {
    let properties = Properties::parse(header).ok()?;
    let entry = table::find(properties.headers()?, ID)?;
    let (transaction, index) = std::str::from_utf8(entry.value).ok()?.split_once('/')?;
    Some(MessageId { transaction: TransactionId(transaction.parse().ok()?), index: index.parse().ok()? })
}

/// Whether the producer itself wanted the message back.
pub(super) fn is_mandatory(message: HalfMessage<'_>) -> bool {
    message.publish.last().is_some_and(|flags| flags & Publish::MANDATORY != 0)
}

/// What RabbitMQ gave back (the arguments of basic.return and the header, from which it has taken BCC), without what
/// [`write`] added to it.
pub(super) fn for_publisher(returned: &Returned, original: HalfMessage<'_>, body: Bytes) -> ReturnedMessage {
    let mut header = Vec::with_capacity(returned.header.len());
    let had_headers = Properties::parse(original.header).is_ok_and(|original| original.headers().is_some());
    match Properties::parse(&returned.header) {
        Ok(properties) if had_headers => properties.write_with_headers(&mut header, body.len() as u64, |out| {
            copy_entries(out, properties.headers(), |name| name != ID && name != POSSIBLE_DUPLICATE);
        }),
        Ok(properties) => properties.write_without_headers(&mut header, body.len() as u64),
        // RabbitMQ wrote it, so this is not reached; the original header is the better answer than none.
        Err(Malformed) => header.extend_from_slice(original.header),
    }
    ReturnedMessage { arguments: returned.arguments.clone(), header: header.into(), body }
}

/// What basic.return brought, but for the body, which is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Returned {
    /// The arguments of basic.return.
    pub(super) arguments: Bytes,
    /// The payload of the content header frame.
    pub(super) header: Bytes,
}

impl Returned {
    /// Reply code and text.
    pub(super) fn reason(&self) -> (ReplyCode, String) {
        match Return::parse(&self.arguments) {
            Ok(reason) => (reason.code, String::from_utf8_lossy(reason.text).into_owned()),
            Err(Malformed) => (ReplyCode::NO_ROUTE, ReplyCode::NO_ROUTE.name().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::frame::{Split, kind, split};
    use crate::amqp::properties::tests::{empty, full};
    use proptest::prelude::*;

    const PUBLISH: &[u8] = b"\0\0\x01x\x02\xffk\0";

    fn message_id(index: u32) -> MessageId {
        MessageId { transaction: TransactionId(Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001)), index }
    }

    /// Publish arguments, header payload and body of the one message in `frames`.
    fn parts(frames: &[u8]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (mut publish, mut header, mut body) = (Vec::new(), Vec::new(), Vec::new());
        let mut rest = frames;
        while !rest.is_empty() {
            let Split::Frame(frame) = split(rest, usize::MAX) else { panic!("whole frames were written") };
            assert_eq!(frame.channel, 3);
            match frame.kind {
                kind::METHOD => publish = frame.arguments().to_vec(),
                kind::HEADER => header = frame.payload.to_vec(),
                _ => body.extend_from_slice(frame.payload),
            }
            rest = &rest[frame.raw.len()..];
        }
        (publish, header, body)
    }

    fn sent(header: &[u8], body: &[u8], possible_duplicate: bool) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let mut out = Vec::new();
        let message = HalfMessage { publish: PUBLISH, header, body };
        write(&mut out, 3, message, message_id(7), possible_duplicate, 4096).unwrap();
        parts(&out)
    }

    fn entries(header: &[u8]) -> Vec<(Vec<u8>, u8, Vec<u8>)> {
        let headers = Properties::parse(header).unwrap().headers().unwrap_or_default().to_vec();
        table::entries(&headers).map(|e| e.map(|e| (e.name.to_vec(), e.kind, e.value.to_vec())).unwrap()).collect()
    }

    #[test]
    fn only_the_headers_table_and_the_mandatory_bit_change() {
        let mut headers = Vec::new();
        table::write_string(&mut headers, b"k", b"1");
        table::write_string(&mut headers, b"x-half-checker", b"orders");
        table::write_string(&mut headers, b"x-half-transaction", b"order-1");
        table::write_bool(&mut headers, b"x-half-check-after", true);
        table::write_string(&mut headers, b"x-half-id", b"of another message");
        table::write_string(&mut headers, b"k", b"2");
        let (publish, header, body) = sent(&full(3, &headers), b"abc", true);

        assert_eq!(publish, [&PUBLISH[..PUBLISH.len() - 1], &[1]].concat());
        assert_eq!(body, b"abc");
        let mut expected = Vec::new();
        table::write_string(&mut expected, b"k", b"1");
        table::write_string(&mut expected, b"x-half-transaction", b"order-1");
        table::write_string(&mut expected, b"k", b"2");
        table::write_string(&mut expected, ID, message_id(7).to_string().as_bytes());
        table::write_bool(&mut expected, POSSIBLE_DUPLICATE, true);
        assert_eq!(header, full(3, &expected));
        assert_eq!(read_id(&header), Some(message_id(7)));
    }

    #[test]
    fn a_first_copy_is_no_possible_duplicate() {
        let (_, header, _) = sent(&empty(0), b"", false);
        assert_eq!(entries(&header), [(ID.to_vec(), b'S', message_id(7).to_string().into_bytes())]);
    }

    #[test]
    fn a_header_that_fits_no_frame_is_not_sent() {
        let mut headers = Vec::new();
        table::write_string(&mut headers, b"k", &[b'v'; 4000]);
        let (header, mut out) = (full(0, &headers), b"before".to_vec());
        let message = HalfMessage { publish: PUBLISH, header: &header, body: b"" };
        assert_eq!(write(&mut out, 3, message, message_id(0), false, 4096), Err(Unsendable::HeaderTooLarge));
        let message = HalfMessage { publish: PUBLISH, header: &header[..20], body: b"" };
        assert_eq!(write(&mut out, 3, message, message_id(0), false, 4096), Err(Unsendable::Malformed));
        assert_eq!(out, b"before");
    }

    #[test]
    fn the_publisher_gets_back_what_it_sent() {
        for had_headers in [true, false] {
            let header = if had_headers { full(3, b"") } else { empty(3) };
            let original = HalfMessage { publish: PUBLISH, header: &header, body: b"abc" };
            let (_, header, _) = sent(original.header, b"abc", true);
            let returned =
                Returned { arguments: Bytes::from_static(b"\x01\x38\x08NO_ROUTE\0\0"), header: header.into() };
            let message = for_publisher(&returned, original, Bytes::from_static(b"abc"));
            assert_eq!(message.header, original.header);
            assert_eq!(returned.reason(), (ReplyCode::NO_ROUTE, "NO_ROUTE".to_owned()));
        }
    }

    proptest! {
        #[test]
        fn every_body_arrives_whole_in_frames_that_fit(body in proptest::collection::vec(any::<u8>(), 0..20_000), frame_bytes_max in 200u32..5000) {
            let (header, mut out) = (empty(body.len() as u64), Vec::new());
            let message = HalfMessage { publish: PUBLISH, header: &header, body: &body };
            write(&mut out, 3, message, message_id(u32::MAX), true, frame_bytes_max).unwrap();
            let mut rest = &out[..];
            while let Split::Frame(frame) = split(rest, usize::MAX) {
                prop_assert!(frame.raw.len() <= frame_bytes_max as usize);
                rest = &rest[frame.raw.len()..];
            }
            prop_assert_eq!(parts(&out).2, body);
        }
    }
}
