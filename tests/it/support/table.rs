//! Field tables and content properties as raw bytes, written here on their own so that the proxy is not judged by its
//! own code.

use halfway::amqp::wire::Write;

/// A field table under construction: entries in the order and with the bytes that the test wants.
#[derive(Default, Clone)]
pub struct Table(pub Vec<u8>);

impl Table {
    /// No entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an entry with a value in wire format, behind its type tag.
    pub fn entry(mut self, key: impl AsRef<[u8]>, tag: u8, value: &[u8]) -> Self {
        self.0.put_short_string(key.as_ref());
        self.0.push(tag);
        self.0.extend_from_slice(value);
        self
    }

    /// Appends a long string.
    pub fn string(self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.entry(key, b'S', &long(value.as_ref()))
    }
}

/// A long string, or a table or an array from its entries.
pub fn long(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_long_string(value);
    out
}

/// A short string.
pub fn short(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_short_string(value);
    out
}

/// Cuts a table into its entries: key, and value with its type tag.
///
/// # Panics
/// If it is malformed.
pub fn entries(mut table: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    while let [key_len, rest @ ..] = table {
        let (key, rest) = rest.split_at(usize::from(*key_len));
        let (value, rest) = rest.split_at(value_len(rest));
        all.push((key.to_vec(), value.to_vec()));
        table = rest;
    }
    all
}

/// How many bytes the value at the front takes, its type tag included.
fn value_len(value: &[u8]) -> usize {
    1 + match value[0] {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'l' | b'L' | b'd' | b'T' => 8,
        b'S' | b'x' | b'F' | b'A' => 4 + u32::from_be_bytes(value[1..5].try_into().expect("four bytes")) as usize,
        other => panic!("unknown field type {:?}", char::from(other)),
    }
}

/// The bits of the content properties in their flag word (AMQP 0-9-1, section 4.2.6.1).
pub mod property {
    #![allow(missing_docs)]
    pub const CONTENT_TYPE: u16 = 15;
    pub const CONTENT_ENCODING: u16 = 14;
    pub const HEADERS: u16 = 13;
    pub const DELIVERY_MODE: u16 = 12;
    pub const PRIORITY: u16 = 11;
    pub const CORRELATION_ID: u16 = 10;
    pub const REPLY_TO: u16 = 9;
    pub const EXPIRATION: u16 = 8;
    pub const MESSAGE_ID: u16 = 7;
    pub const TIMESTAMP: u16 = 6;
    pub const TYPE: u16 = 5;
    pub const USER_ID: u16 = 4;
    pub const APP_ID: u16 = 3;
    pub const CLUSTER_ID: u16 = 2;
}

/// Content properties: which are set, and their bytes.
#[derive(Default, Clone, Debug, PartialEq, Eq)]
pub struct Properties(pub std::collections::BTreeMap<std::cmp::Reverse<u16>, Vec<u8>>);

impl Properties {
    /// None set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Delivery mode 2.
    pub fn persistent() -> Self {
        Self::new().with(property::DELIVERY_MODE, vec![2])
    }

    /// Sets one to the given bytes.
    pub fn with(mut self, bit: u16, value: Vec<u8>) -> Self {
        self.0.insert(std::cmp::Reverse(bit), value);
        self
    }

    /// Sets one that is a short string.
    pub fn text(self, bit: u16, value: &str) -> Self {
        self.with(bit, short(value.as_bytes()))
    }

    /// Sets the headers.
    pub fn headers(self, table: Table) -> Self {
        self.with(property::HEADERS, long(&table.0))
    }

    /// The bytes of one, if it is set.
    pub fn get(&self, bit: u16) -> Option<&[u8]> {
        self.0.get(&std::cmp::Reverse(bit)).map(Vec::as_slice)
    }

    /// The entries of the headers, in their order.
    pub fn header_entries(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.get(property::HEADERS).map(|raw| entries(&raw[4..])).unwrap_or_default()
    }

    /// The value of the header `key`, if it is a long string.
    pub fn header(&self, key: &str) -> Option<String> {
        let all = self.header_entries();
        let (_, value) = all.iter().find(|(name, _)| name == key.as_bytes())?;
        (value[0] == b'S').then(|| String::from_utf8_lossy(&value[5..]).into_owned())
    }

    /// The payload of the content header frame for a body of `body_size` bytes.
    pub fn encode(&self, body_size: u64) -> Vec<u8> {
        let mut out = vec![0, 60, 0, 0];
        out.put_u64(body_size);
        out.put_u16(self.0.keys().fold(0, |flags, bit| flags | 1 << bit.0));
        out.extend(self.0.values().flatten());
        out
    }

    /// Reads the payload of a content header frame: the body's size, and the properties.
    ///
    /// # Panics
    /// If it is malformed.
    pub fn decode(payload: &[u8]) -> (u64, Self) {
        let size = u64::from_be_bytes(payload[4..12].try_into().expect("eight bytes"));
        let flags = u16::from_be_bytes(payload[12..14].try_into().expect("two bytes"));
        let (mut rest, mut properties) = (&payload[14..], Self::new());
        for bit in (2..16).rev().filter(|bit| flags & 1 << bit != 0) {
            let len = match bit {
                property::HEADERS => 4 + u32::from_be_bytes(rest[..4].try_into().expect("four bytes")) as usize,
                property::DELIVERY_MODE | property::PRIORITY => 1,
                property::TIMESTAMP => 8,
                _ => 1 + usize::from(rest[0]),
            };
            let (value, behind) = rest.split_at(len);
            properties = properties.with(bit, value.to_vec());
            rest = behind;
        }
        assert!(rest.is_empty(), "bytes behind the properties: {rest:?}");
        (size, properties)
    }

    /// Without the header that the proxy adds, and without headers at all if nothing else was there: what a client
    /// gets from RabbitMQ directly and through the proxy is equal after this.
    pub fn without_half_id(mut self) -> Self {
        if self.get(property::HEADERS).is_some() {
            let mut kept = Table::new();
            for (key, value) in self.header_entries() {
                if key != b"x-half-id" && key != b"x-half-possible-duplicate" {
                    kept = kept.entry(&key, value[0], &value[1..]);
                }
            }
            self.0.remove(&std::cmp::Reverse(property::HEADERS));
            if !kept.0.is_empty() {
                self = self.headers(kept);
            }
        }
        self
    }
}
