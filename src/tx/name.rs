//! The name that a producer gives a transaction.

use std::sync::Arc;

/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// The value of `x-half-transaction`: 1 to 255 bytes of UTF-8. Unique for a user in a virtual host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionName(Arc<str>);

/// Why some bytes are no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Nothing.
    #[error("is empty")]
    Empty,
    /// Over [`NAME_BYTES_MAX`].
    #[error("has {0} bytes, more than {NAME_BYTES_MAX}")]
    TooLong(usize),
    /// It could not be shown, searched for, or written in a URL.
    #[error("is not UTF-8")]
    NotUtf8,
}

impl TransactionName {
    /// Checks a name at the edge.
    ///
    /// # Errors
    /// [`BadName`].
    pub fn new(bytes: &[u8]) -> Result<Self, BadName> {
        match bytes.len() {
            0 => Err(BadName::Empty),
            1..=NAME_BYTES_MAX => {
                std::str::from_utf8(bytes).map(|name| Self(name.into())).map_err(|_| BadName::NotUtf8)
            }
            len => Err(BadName::TooLong(len)),
        }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for TransactionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_1_to_255_bytes_of_utf8() {
        assert_eq!(TransactionName::new(b""), Err(BadName::Empty));
        assert_eq!(TransactionName::new(&[b'n'; 255]).unwrap().as_str().len(), 255);
        assert_eq!(TransactionName::new(&[b'n'; 256]), Err(BadName::TooLong(256)));
        assert_eq!(TransactionName::new(b"\xff"), Err(BadName::NotUtf8));
        assert_eq!(TransactionName::new("Bestellung-ü".as_bytes()).unwrap().to_string(), "Bestellung-ü");
    }
}
