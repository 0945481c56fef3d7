//! The payload of a content header frame: class, weight, body size, property flags, properties (AMQP 0-9-1, section
//! 4.2.6.1). Read in place, and edited by copying all bytes but the edited ones.

use super::table::{self, Entry};
use super::wire::{Malformed, Reader, Write};
use std::ops::Range;

const BODY_SIZE: Range<usize> = 4..12;
const FLAGS: Range<usize> = 12..14;
/// The flag of the headers table.
pub const HEADERS: u16 = 1 << 13;
/// The flag of the user's name, which stands behind the table.
pub const USER_ID: u16 = 1 << 4;

/// Headers that are asked for at each message: they are looked for once, however many others there are.
const SOUGHT: [&[u8]; 6] =
    [b"CC", b"BCC", b"x-recent-history-no-store", b"x-half-transaction", b"x-half-checker", b"x-half-check-after"];

/// The payload of a content header frame of class basic, with the places of what matters in it.
#[derive(Debug, Clone)]
pub struct Properties<'a> {
    payload: &'a [u8],
    flags: u16,
    /// Where the headers table stands, its length included; empty, at the place where it would stand, if there is none.
    headers: Range<usize>,
    /// The first entry of each of [`SOUGHT`].
    sought: [Option<&'a [u8]>; SOUGHT.len()],
    /// Delivery mode, 1 transient, 2 persistent.
    pub delivery_mode: Option<u8>,
    /// Where replies are wanted.
    pub reply_to: Option<&'a [u8]>,
    /// Milliseconds to live, in digits.
    pub expiration: Option<&'a [u8]>,
    /// The application's id of the message.
    pub message_id: Option<&'a [u8]>,
    /// The user that RabbitMQ checked.
    pub user_id: Option<&'a [u8]>,
}

/// A property that is not the headers table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Property<'a> {
    /// A short string, which need not be UTF-8.
    Text(&'a [u8]),
    /// A small number.
    Octet(u8),
    /// Seconds since 1970.
    Time(u64),
}

#[derive(Clone, Copy)]
enum Form {
    Text,
    Octet,
    Time,
    Table,
}

/// Every property of class basic: its bit in the flags, its name, its form; in the order in which they stand.
const NAMES: [(u16, &str, Form); 14] = [
    (15, "content_type", Form::Text),
    (14, "content_encoding", Form::Text),
    (13, "headers", Form::Table),
    (12, "delivery_mode", Form::Octet),
    (11, "priority", Form::Octet),
    (10, "correlation_id", Form::Text),
    (9, "reply_to", Form::Text),
    (8, "expiration", Form::Text),
    (7, "message_id", Form::Text),
    (6, "timestamp", Form::Time),
    (5, "type", Form::Text),
    (4, "user_id", Form::Text),
    (3, "app_id", Form::Text),
    (2, "cluster_id", Form::Text),
];

/// The body size that a content header declares, which is all that passing a content on needs.
pub fn body_size(payload: &[u8]) -> Result<u64, Malformed> {
    Reader::new(payload.get(BODY_SIZE).ok_or(Malformed)?).u64()
}

impl<'a> Properties<'a> {
    /// Reads the payload of a content header frame. Bits 0 and 1 of the flags are passed over, as RabbitMQ does; bytes
    /// behind the last property, and a headers table that its parser refuses (see [`table::check`]), are malformed: RabbitMQ
    /// answers 541. So whoever has this knows that RabbitMQ reads it too.
    pub fn parse(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload.get(FLAGS.start..).ok_or(Malformed)?);
        let flags = reader.u16()?;
        let has = |bit: u16| flags & (1 << bit) != 0;
        let text = |bit: u16, reader: &mut Reader<'a>| has(bit).then(|| reader.short_string()).transpose();
        text(15, &mut reader)?;
        text(14, &mut reader)?;
        let headers_start = payload.len() - reader.rest().len();
        if has(13) {
            reader.long_string()?;
        }
        let headers = headers_start..payload.len() - reader.rest().len();
        let table = payload.get(headers.start + 4..headers.end).unwrap_or_default();
        let mut sought = [None; SOUGHT.len()];
        table::check_each(table, |name, raw| {
            if let Some(at) = SOUGHT.iter().position(|known| *known == name) {
                sought[at].get_or_insert(raw);
            }
        })?;
        let delivery_mode = has(12).then(|| reader.u8()).transpose()?;
        has(11).then(|| reader.u8()).transpose()?;
        text(10, &mut reader)?;
        let reply_to = text(9, &mut reader)?;
        let expiration = text(8, &mut reader)?;
        let message_id = text(7, &mut reader)?;
        has(6).then(|| reader.u64()).transpose()?;
        text(5, &mut reader)?;
        let user_id = text(4, &mut reader)?;
        text(3, &mut reader)?;
        text(2, &mut reader)?;
        if !reader.rest().is_empty() {
            return Err(Malformed);
        }
        Ok(Self { payload, flags, headers, sought, delivery_mode, reply_to, expiration, message_id, user_id })
    }

    /// Every property but the headers table, with the name that the specification gives it.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, Property<'a>)> {
        let payload = self.payload;
        // [`Properties::parse`] has read all of them before.
        let mut reader = Reader::new(payload.get(FLAGS.end..).unwrap_or_default());
        let flags = self.flags;
        NAMES
            .into_iter()
            .filter(move |(bit, ..)| flags & (1 << bit) != 0)
            .map_while(move |(bit, name, form)| {
                let property = match form {
                    Form::Text => reader.short_string().map(Property::Text),
                    Form::Octet => reader.u8().map(Property::Octet),
                    Form::Time => reader.u64().map(Property::Time),
                    Form::Table => reader.long_string().map(Property::Text),
                };
                Some((bit, name, property.ok()?))
            })
            .filter(|(bit, ..)| 1 << bit != HEADERS)
            .map(|(_, name, property)| (name, property))
    }

    /// The entries of the headers table, if there is one.
    pub fn headers(&self) -> Option<&'a [u8]> {
        (self.flags & HEADERS != 0).then(|| &self.payload[self.headers.start + 4..self.headers.end])
    }

    /// The first header called `name`.
    pub fn find(&self, name: &[u8]) -> Option<Entry<'a>> {
        match SOUGHT.iter().position(|known| *known == name) {
            Some(at) => table::entries(self.sought[at]?).next()?.ok(),
            None => table::find(self.headers()?, name),
        }
    }

    /// Appends this payload with another body size and another headers table: `write` gets the buffer behind the
    /// table's length and writes the entries. Everything else is copied as it came.
    pub fn write_with_headers(&self, out: &mut Vec<u8>, body_size: u64, write: impl FnOnce(&mut Vec<u8>)) {
        self.write_front(out, body_size, self.flags | HEADERS);
        let size_at = out.len();
        out.put_u32(0);
        write(out);
        let size = u32::try_from(out.len() - size_at - 4).expect("a frame is smaller than 4 GiB");
        out[size_at..size_at + 4].copy_from_slice(&size.to_be_bytes());
        out.extend_from_slice(&self.payload[self.headers.end..]);
    }

    /// Appends this payload without its headers table.
    pub fn write_without_headers(&self, out: &mut Vec<u8>, body_size: u64) {
        self.write_front(out, body_size, self.flags & !HEADERS);
        out.extend_from_slice(&self.payload[self.headers.end..]);
    }

    fn write_front(&self, out: &mut Vec<u8>, body_size: u64, flags: u16) {
        out.extend_from_slice(&self.payload[..BODY_SIZE.start]);
        out.put_u64(body_size);
        out.put_u16(flags);
        out.extend_from_slice(&self.payload[FLAGS.end..self.headers.start]);
    }
}

/// Copies the entries of `headers` whose name `keep` wants, in their order. `headers` come from [`Properties::parse`],
/// which has seen to it that all can be told apart.
pub fn copy_entries(out: &mut Vec<u8>, headers: Option<&[u8]>, keep: impl Fn(&[u8]) -> bool) {
    for entry in table::entries(headers.unwrap_or_default()).map_while(Result::ok) {
        if keep(entry.name) {
            out.extend_from_slice(entry.raw);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A header payload with every property set.
    pub(crate) fn full(body_size: u64, headers: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u16(60);
        out.put_u16(0);
        out.put_u64(body_size);
        out.put_u16(0xfffc);
        out.put_short_string(b"text/plain");
        out.put_short_string(b"gzip");
        out.put_long_string(headers);
        out.put_u8(2);
        out.put_u8(9);
        out.put_short_string(b"corr");
        out.put_short_string(b"reply");
        out.put_short_string(b"1000");
        out.put_short_string(b"id-1");
        out.put_u64(77);
        out.put_short_string(b"type");
        out.put_short_string(b"guest");
        out.put_short_string(b"app");
        out.put_short_string(b"cluster");
        out
    }

    /// A header payload without a property.
    pub(crate) fn empty(body_size: u64) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u16(60);
        out.put_u16(0);
        out.put_u64(body_size);
        out.put_u16(0);
        out
    }

    #[test]
    fn every_property_is_found() {
        let mut headers = Vec::new();
        table::write_string(&mut headers, b"k", b"v");
        let payload = full(5, &headers);
        let properties = Properties::parse(&payload).unwrap();
        assert_eq!(body_size(&payload), Ok(5));
        assert_eq!(properties.headers(), Some(&headers[..]));
        assert_eq!(properties.delivery_mode, Some(2));
        assert_eq!(properties.reply_to, Some(&b"reply"[..]));
        assert_eq!(properties.expiration, Some(&b"1000"[..]));
        assert_eq!(properties.message_id, Some(&b"id-1"[..]));
        assert_eq!(properties.user_id, Some(&b"guest"[..]));
        let each: Vec<_> = properties.each().collect();
        assert_eq!(each.len(), 13);
        assert_eq!(each[0], ("content_type", Property::Text(b"text/plain")));
        assert_eq!(each[3], ("priority", Property::Octet(9)));
        assert_eq!(each[8], ("timestamp", Property::Time(77)));
        assert_eq!(each[12], ("cluster_id", Property::Text(b"cluster")));
        assert_eq!(Properties::parse(&empty(5)).unwrap().each().count(), 0);
        for cut in 0..payload.len() {
            assert!(Properties::parse(&payload[..cut]).is_err());
        }
        assert!(Properties::parse(&full(5, b"\x01k?")).is_err());
        assert!(Properties::parse(&[&payload[..], b"x"].concat()).is_err());
    }

    #[test]
    fn a_header_is_found_like_in_its_table() {
        let mut headers = Vec::new();
        for name in [b"k", &b"CC"[..], b"x-half-transaction", b"CC"] {
            let value = headers.len().to_string();
            table::write_string(&mut headers, name, value.as_bytes());
        }
        // Not of the table itself.
        headers.put_short_string(b"nested");
        headers.put_u8(b'F');
        let mut inner = Vec::new();
        table::write_string(&mut inner, b"BCC", b"inner");
        headers.put_long_string(&inner);
        let payload = full(5, &headers);
        let properties = Properties::parse(&payload).unwrap();
        for name in SOUGHT.into_iter().chain([&b"k"[..], b"none"]) {
            assert_eq!(properties.find(name), table::find(&headers, name), "{name:?}");
        }
        assert_eq!(Properties::parse(&empty(5)).unwrap().find(b"CC"), None);
    }

    #[test]
    fn a_headers_table_is_added_edited_and_taken_away_and_nothing_else_changes() {
        let mut headers = Vec::new();
        table::write_string(&mut headers, b"k", b"v");
        for payload in [full(5, &headers), full(5, b"")] {
            let properties = Properties::parse(&payload).unwrap();
            let mut same = Vec::new();
            properties.write_with_headers(&mut same, 5, |out| copy_entries(out, properties.headers(), |_| true));
            assert_eq!(same, payload);
        }
        let payload = empty(5);
        let mut added = Vec::new();
        Properties::parse(&payload).unwrap().write_with_headers(&mut added, 0, |out| {
            table::write_bool(out, b"b", true);
        });
        let edited = Properties::parse(&added).unwrap();
        assert_eq!(table::find(edited.headers().unwrap(), b"b").unwrap().value, [1]);
        assert_eq!(body_size(&added), Ok(0));
        let mut removed = Vec::new();
        edited.write_without_headers(&mut removed, 5);
        assert_eq!(removed, payload);
    }
}
