//! Half messages in the form in which they are gathered, stored and read back: one buffer, no copy in between.
//!
//! ```text
//! message = length of publish (u16), length of header (u32), length of body (u64), publish, header, body
//! ```
//!
//! *publish* is the arguments of basic.publish and *header* the payload of the content header frame, both as they came,
//! so that what leaves equals what arrived. Lengths are big endian. The same form is the store's: changing it needs a
//! migration.

use crate::amqp::wire::{Malformed, Reader, Write};

/// Bytes before the parts of a message.
const LENGTHS_BYTES: usize = 2 + 4 + 8;

/// One message as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HalfMessage<'a> {
    /// The arguments of basic.publish.
    pub publish: &'a [u8],
    /// The payload of the content header frame.
    pub header: &'a [u8],
    /// The content.
    pub body: &'a [u8],
}

/// Half messages of one transaction, in the order in which they were published.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Batch {
    bytes: Vec<u8>,
    messages: u32,
    /// Where the message that is still being received begins.
    tail: Option<usize>,
}

impl Batch {
    /// Adds a whole message.
    pub fn push(&mut self, message: HalfMessage<'_>) {
        self.begin(message.publish, message.header, message.body.len() as u64);
        self.extend_body(message.body);
        self.finish();
    }

    /// Begins a message whose body will follow. Memory is taken as the body comes, never as it is announced.
    ///
    /// # Panics
    /// If a message has begun and is neither finished nor dropped, or if `publish` is over 64 KiB (it holds two short
    /// strings).
    pub fn begin(&mut self, publish: &[u8], header: &[u8], body_bytes: u64) {
        assert!(self.tail.is_none(), "one message at a time");
        self.tail = Some(self.bytes.len());
        self.bytes.put_u16(publish.len().try_into().expect("basic.publish holds two short strings"));
        self.bytes.put_u32(header.len().try_into().expect("a frame is smaller than 4 GiB"));
        self.bytes.put_u64(body_bytes);
        self.bytes.extend_from_slice(publish);
        self.bytes.extend_from_slice(header);
    }

    /// Adds a piece of the body.
    pub fn extend_body(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
    }

    /// Counts the message that has begun as whole, and gives it back to look at.
    pub fn finish(&mut self) {
        self.tail = None;
        self.messages += 1;
    }

    /// Forgets the message that has begun, or does nothing.
    pub fn drop_unfinished(&mut self) {
        if let Some(start) = self.tail.take() {
            self.bytes.truncate(start);
        }
    }

    /// Whole messages.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// Bytes in memory, the unfinished message included.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no whole message.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// The messages as the store keeps them, and what has come of the one that has begun.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The whole messages as the store keeps them; read them again with [`iter`].
    ///
    /// # Panics
    /// If a message is unfinished.
    pub fn into_bytes(self) -> Vec<u8> {
        assert!(self.tail.is_none(), "a message is unfinished");
        self.bytes
    }
}

/// Reads what [`Batch::into_bytes`] gave. Ends after the first message that can't be read.
pub fn iter(bytes: &[u8]) -> impl Iterator<Item = Result<HalfMessage<'_>, Malformed>> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest.take().filter(|bytes| !bytes.is_empty())?;
        let mut reader = Reader::new(bytes);
        let message = read(&mut reader);
        if message.is_ok() {
            rest = Some(reader.rest());
        }
        Some(message)
    })
}

/// The arguments of basic.publish of the first message; `front` is at least the first [`FRONT_BYTES`] of a batch that has
/// so many.
pub fn first_publish(front: &[u8]) -> Result<&[u8], Malformed> {
    let mut reader = Reader::new(front);
    let (publish, _, _) = (reader.u16()?, reader.u32()?, reader.u64()?);
    reader.take(publish.into())
}

/// Bytes in which lengths and the arguments of basic.publish end: a number and two short strings, and a byte of bits.
pub const FRONT_BYTES: usize = LENGTHS_BYTES + 2 + 2 * (1 + 255) + 1;

fn read<'a>(reader: &mut Reader<'a>) -> Result<HalfMessage<'a>, Malformed> {
    let (publish, header, body) = (reader.u16()?, reader.u32()?, reader.u64()?);
    let body = usize::try_from(body).map_err(|_| Malformed)?;
    Ok(HalfMessage {
        publish: reader.take(publish.into())?,
        header: reader.take(header as usize)?,
        body: reader.take(body)?,
    })
}

impl HalfMessage<'_> {
    /// Bytes that this message takes in a batch.
    pub fn stored_bytes(&self) -> usize {
        LENGTHS_BYTES + self.publish.len() + self.header.len() + self.body.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: HalfMessage<'static> = HalfMessage { publish: b"publish", header: b"header", body: b"" };
    const SECOND: HalfMessage<'static> = HalfMessage { publish: b"p", header: b"h", body: b"body" };

    #[test]
    fn what_was_pushed_comes_out() {
        let mut batch = Batch::default();
        batch.push(FIRST);
        batch.begin(b"lost", b"lost", 100);
        batch.extend_body(b"half of it");
        batch.drop_unfinished();
        batch.push(SECOND);
        assert_eq!(batch.messages(), 2);
        let bytes = batch.into_bytes();
        assert_eq!(bytes.len(), FIRST.stored_bytes() + SECOND.stored_bytes());
        assert_eq!(iter(&bytes).collect::<Vec<_>>(), [Ok(FIRST), Ok(SECOND)]);
    }

    #[test]
    fn the_first_publish_is_read_from_the_front() {
        let publish = vec![b'x'; 2 + 2 * 256 + 1];
        let mut batch = Batch::default();
        batch.push(HalfMessage { publish: &publish, ..FIRST });
        batch.push(SECOND);
        let bytes = batch.into_bytes();
        assert_eq!(first_publish(&bytes[..FRONT_BYTES]), Ok(&publish[..]));
        assert_eq!(first_publish(&bytes[..FRONT_BYTES - 1]), Err(Malformed));
    }

    #[test]
    fn a_cut_batch_says_so() {
        let mut batch = Batch::default();
        batch.push(SECOND);
        let bytes = batch.into_bytes();
        for cut in 1..bytes.len() {
            assert_eq!(iter(&bytes[..cut]).collect::<Vec<_>>(), [Err(Malformed)]);
        }
    }
}
