//! Messages as they are kept and read back, and whether they are the same.

use crate::tx::batch::Batch;
use bytes::Bytes;

/// Messages that were read back: see [`crate::tx::batch::iter`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// What was kept.
    Sound(Bytes),
    /// Something else. It is for people to look at, and must never reach RabbitMQ.
    Damaged(Bytes),
}

impl Stored {
    /// `bytes`, as good as `checksum` says. Without one an earlier version kept them.
    pub(super) fn verified(bytes: Bytes, checksum: Option<u32>) -> Self {
        if is_sound(&bytes, checksum) { Self::Sound(bytes) } else { Self::Damaged(bytes) }
    }

    /// What was read, whatever it is.
    pub fn bytes(&self) -> &Bytes {
        let (Self::Sound(bytes) | Self::Damaged(bytes)) = self;
        bytes
    }

    /// What to keep beside the bytes, so that they are read back as what they are.
    pub(super) fn checksum(&self) -> u32 {
        match self {
            Self::Sound(bytes) => crc32fast::hash(bytes),
            Self::Damaged(bytes) => !crc32fast::hash(bytes),
        }
    }
}

/// Whether these are the bytes that were kept.
pub(super) fn is_sound(bytes: &[u8], checksum: Option<u32>) -> bool {
    checksum.is_none_or(|kept| kept == crc32fast::hash(bytes))
}

/// A batch that is whole, in the form in which a store keeps it and the relay takes it.
#[derive(Debug, Clone)]
pub(super) struct Messages {
    pub(super) bytes: Bytes,
    pub(super) count: u32,
    /// Made where the batch comes from, because the writer has one thread.
    pub(super) checksum: u32,
}

impl Messages {
    pub(super) fn new(bytes: Bytes, count: u32) -> Self {
        Self { checksum: crc32fast::hash(&bytes), bytes, count }
    }
}

impl Default for Messages {
    fn default() -> Self {
        Self::new(Bytes::new(), 0)
    }
}

impl From<Batch> for Messages {
    fn from(batch: Batch) -> Self {
        let count = batch.messages();
        Self::new(batch.into_bytes().into(), count)
    }
}
