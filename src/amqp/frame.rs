//! Cutting a byte stream into frames, and writing frames (AMQP 0-9-1, section 2.3.5 and 4.2.3).

use super::wire::Write;

/// Type, channel and size of the payload before it.
pub const HEADER_BYTES: usize = 7;
/// What a frame adds to its payload: the header and the end octet.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + 1;
/// The last octet of every frame.
pub const END: u8 = 0xce;
/// A heartbeat, whole: the same bytes always.
pub const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, END];
/// The greeting of an AMQP 0-9-1 client.
pub const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";

/// The type octet of a frame. Others exist only as errors, which RabbitMQ answers with 501.
pub mod kind {
    /// A method.
    pub const METHOD: u8 = 1;
    /// A content header.
    pub const HEADER: u8 = 2;
    /// A piece of a content body.
    pub const BODY: u8 = 3;
    /// A heartbeat.
    pub const HEARTBEAT: u8 = 8;
}

/// One frame, borrowed from the buffer that it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The type octet, as sent: see [`kind`].
    pub kind: u8,
    /// Channel number; 0 is the connection itself.
    pub channel: u16,
    /// What stands between the frame header and the end octet.
    pub payload: &'a [u8],
    /// The frame as it came, header and end octet included.
    pub raw: &'a [u8],
}

impl Frame<'_> {
    /// Class and method id, if this is a method frame that is long enough to have them.
    pub fn method_id(&self) -> Option<(u16, u16)> {
        match self.payload {
            [c1, c0, m1, m0, ..] if self.kind == kind::METHOD => {
                Some((u16::from_be_bytes([*c1, *c0]), u16::from_be_bytes([*m1, *m0])))
            }
            _ => None,
        }
    }

    /// The arguments of a method frame: its payload without the class and method ids.
    pub fn arguments(&self) -> &[u8] {
        self.payload.get(4..).unwrap_or_default()
    }
}

/// What stands at the front of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split<'a> {
    /// A whole frame; the next one starts behind `frame.raw`.
    Frame(Frame<'a>),
    /// Not yet a whole frame: the buffer must hold this many bytes before another look helps.
    NeedBytes(usize),
    /// A payload larger than allowed, or a wrong end octet: nothing behind this can be read as frames.
    Malformed,
}

/// Looks at the front of `input`. `payload_bytes_max` bounds the payload of a frame.
pub fn split(input: &[u8], payload_bytes_max: usize) -> Split<'_> {
    let Some(&[kind, c1, c0, s3, s2, s1, s0]) = input.first_chunk::<HEADER_BYTES>() else {
        return Split::NeedBytes(HEADER_BYTES);
    };
    let size = u32::from_be_bytes([s3, s2, s1, s0]) as usize;
    if size > payload_bytes_max {
        return Split::Malformed;
    }
    let total = size + OVERHEAD_BYTES;
    let Some(raw) = input.get(..total) else {
        return Split::NeedBytes(total);
    };
    if raw[total - 1] != END {
        return Split::Malformed;
    }
    let payload = &raw[HEADER_BYTES..total - 1];
    Split::Frame(Frame { kind, channel: u16::from_be_bytes([c1, c0]), payload, raw })
}

/// Appends a frame whose payload is written by `payload`.
pub fn write(out: &mut Vec<u8>, kind: u8, channel: u16, payload: impl FnOnce(&mut Vec<u8>)) {
    out.put_u8(kind);
    out.put_u16(channel);
    let size_at = out.len();
    out.put_u32(0);
    payload(out);
    let size = u32::try_from(out.len() - size_at - 4).expect("a frame is smaller than 4 GiB");
    out[size_at..size_at + 4].copy_from_slice(&size.to_be_bytes());
    out.put_u8(END);
}

/// Appends a frame as it came, but on another channel.
pub fn write_on(out: &mut Vec<u8>, channel: u16, frame: &Frame<'_>) {
    let start = out.len();
    out.extend_from_slice(frame.raw);
    out[start + 1..start + 3].copy_from_slice(&channel.to_be_bytes());
}

/// Appends a method frame: class and method id, then the arguments that `arguments` writes.
pub fn write_method(out: &mut Vec<u8>, channel: u16, id: (u16, u16), arguments: impl FnOnce(&mut Vec<u8>)) {
    write(out, kind::METHOD, channel, |out| {
        out.put_u16(id.0);
        out.put_u16(id.1);
        arguments(out);
    });
}

/// Appends a whole content: the header frame with `header` as its payload, then `body` (see [`write_body`]).
///
/// RabbitMQ never splits a header, so neither does this.
pub fn write_content(out: &mut Vec<u8>, channel: u16, header: &[u8], body: &[u8], frame_bytes_max: u32) {
    write(out, kind::HEADER, channel, |out| out.extend_from_slice(header));
    write_body(out, channel, body, frame_bytes_max);
}

/// Appends `body` in frames of at most `frame_bytes_max` (the negotiated frame_max, which counts the frame's own eight
/// bytes; 0 is no limit). An empty body has no frame.
pub fn write_body(out: &mut Vec<u8>, channel: u16, body: &[u8], frame_bytes_max: u32) {
    let piece = match frame_bytes_max as usize {
        0 => usize::MAX,
        max => max.saturating_sub(OVERHEAD_BYTES).max(1),
    };
    for piece in body.chunks(piece) {
        write(out, kind::BODY, channel, |out| out.extend_from_slice(piece));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn asks_for_the_bytes_that_are_missing() {
        assert_eq!(split(&HEARTBEAT[..3], 100), Split::NeedBytes(7));
        assert_eq!(split(&HEARTBEAT[..7], 100), Split::NeedBytes(8));
        let Split::Frame(frame) = split(&HEARTBEAT, 100) else { panic!("a heartbeat is a frame") };
        assert_eq!((frame.kind, frame.channel, frame.payload), (kind::HEARTBEAT, 0, &[][..]));
    }

    #[test]
    fn refuses_a_large_payload_before_it_came_and_a_wrong_end() {
        assert_eq!(split(&[3, 0, 1, 0, 0, 0, 101], 100), Split::Malformed);
        assert_eq!(split(&[8, 0, 0, 0, 0, 0, 0, 0], 100), Split::Malformed);
    }

    #[test]
    fn a_body_is_cut_at_the_frame_limit() {
        let mut out = Vec::new();
        write_content(&mut out, 1, b"header", &[7; 25], 18);
        let mut sizes = Vec::new();
        let mut rest = &out[..];
        while let Split::Frame(frame) = split(rest, 1000) {
            sizes.push((frame.kind, frame.payload.len()));
            rest = &rest[frame.raw.len()..];
        }
        assert_eq!(sizes, [(kind::HEADER, 6), (kind::BODY, 10), (kind::BODY, 10), (kind::BODY, 5)]);
        assert!(rest.is_empty());
    }

    proptest! {
        #[test]
        fn what_is_written_is_split_again(kind in any::<u8>(), channel in any::<u16>(), payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut out = Vec::new();
            write(&mut out, kind, channel, |out| out.extend_from_slice(&payload));
            prop_assert_eq!(split(&out, 300), Split::Frame(Frame { kind, channel, payload: &payload, raw: &out }));
            for cut in 0..out.len() {
                let Split::NeedBytes(need) = split(&out[..cut], 300) else { panic!("a part is not a frame") };
                prop_assert!(need > cut && need <= out.len());
            }
        }
    }
}
