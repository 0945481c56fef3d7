//! Dead letters that the store has not answered for. While they are many, or large, nothing more is sent: each message may
//! become another one.

use crate::store::DeadLetter;

pub(super) const LETTERS_MAX: usize = 1_000;
/// Past it too. A single one may be larger.
const BYTES_MAX: usize = 8 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    letters: usize,
    bytes: usize,
}

impl Waiting {
    /// The store was given one to keep.
    pub(super) fn add(&mut self, letter: &DeadLetter) {
        self.letters += 1;
        self.bytes += letter.message.bytes().len();
    }

    /// The store keeps it.
    pub(super) fn is_kept(&mut self, letter: &DeadLetter) {
        self.letters -= 1;
        self.bytes -= letter.message.bytes().len();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.letters == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.letters >= LETTERS_MAX || self.bytes >= BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Sequence, Stored};
    use crate::tx::id::Timestamp;

    #[test]
    fn many_are_too_many_and_so_are_a_few_large_ones() {
        for (bytes, max) in [(10, LETTERS_MAX), (1 << 20, 8), (100 << 20, 1)] {
            let message = Stored::Sound(vec![7; bytes].into());
            let (sequence, reply_text, since) = (Sequence(1), String::new(), Timestamp(0));
            let letter = DeadLetter { sequence, index: 0, message, reply_code: 404, reply_text, since };
            let mut waiting = Waiting::default();
            for number in 0..max {
                assert!(!waiting.is_full(), "{number} of {bytes} bytes");
                waiting.add(&letter);
            }
            assert!(waiting.is_full(), "{max} of {bytes} bytes");
            waiting.is_kept(&letter);
            assert!(!waiting.is_full());
            (1..max).for_each(|_| waiting.is_kept(&letter));
            assert!(waiting.is_empty());
        }
    }
}
