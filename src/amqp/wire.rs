//! Reading and writing of the elementary AMQP types: octet, short, long, long-long, short string, long string.

/// The bytes ended before the value did, or a value was not what the specification allows there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed AMQP data")]
pub struct Malformed;

/// Reads elementary values from the front of a slice, in network byte order (AMQP 0-9-1, section 4.2.5).
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Malformed)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*head)
    }

    /// An octet, also used for up to eight bits packed together.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    /// A short.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// A long.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// A long-long.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// A short string: one octet of length, then that many bytes. RabbitMQ does not ask for UTF-8, so bytes they stay.
    pub fn short_string(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u8()?;
        self.take(len.into())
    }

    /// A long string or a field table: four octets of length, then that many bytes.
    pub fn long_string(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u32()?;
        self.take(len as usize)
    }
}

/// Appends elementary values to a buffer.
pub trait Write {
    /// Appends an octet.
    fn put_u8(&mut self, value: u8);
    /// Appends a short.
    fn put_u16(&mut self, value: u16);
    /// Appends a long.
    fn put_u32(&mut self, value: u32);
    /// Appends a long-long.
    fn put_u64(&mut self, value: u64);
    /// Appends a short string; what is over 255 bytes is cut off, as RabbitMQ does with its reply texts.
    fn put_short_string(&mut self, value: &[u8]);
    /// Appends a long string, or the entries of a field table.
    ///
    /// # Panics
    /// If `value` is 4 GiB or more: no frame can carry that, so no caller has it.
    fn put_long_string(&mut self, value: &[u8]);
}

impl Write for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }

    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_short_string(&mut self, value: &[u8]) {
        let value = &value[..value.len().min(255)];
        self.push(value.len() as u8);
        self.extend_from_slice(value);
    }

    fn put_long_string(&mut self, value: &[u8]) {
        self.put_u32(u32::try_from(value.len()).expect("a frame is smaller than 4 GiB"));
        self.extend_from_slice(value);
    }
}
