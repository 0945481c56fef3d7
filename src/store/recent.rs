//! The messages of named transactions that were parked a moment ago, so that the relay need not read what is in memory.

use crate::tx::id::TransactionId;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Bytes kept, at most.
const BYTES_MAX: usize = 16 << 20;

/// First packs of undecided transactions. The oldest leave when there are too many: ids are ordered by time.
#[derive(Debug, Default)]
pub(super) struct Recent {
    packs: BTreeMap<TransactionId, Bytes>,
    bytes: usize,
}

impl Recent {
    pub(super) fn keep(&mut self, id: TransactionId, messages: Bytes) {
        self.take(id);
        self.bytes += messages.len();
        self.packs.insert(id, messages);
        while self.bytes > BYTES_MAX
            && let Some((_, oldest)) = self.packs.pop_first()
        {
            self.bytes -= oldest.len();
        }
    }

    pub(super) fn take(&mut self, id: TransactionId) -> Option<Bytes> {
        let messages = self.packs.remove(&id)?;
        self.bytes -= messages.len();
        Some(messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_leave_first() {
        let mut recent = Recent::default();
        let ids: Vec<_> = (1..=4).map(|n| TransactionId(uuid::Uuid::from_u128(n))).collect();
        for id in &ids {
            recent.keep(*id, vec![0; BYTES_MAX / 3].into());
        }
        assert_eq!(ids.iter().map(|id| recent.take(*id).is_some()).collect::<Vec<_>>(), [false, true, true, true]);
        assert_eq!((recent.bytes, recent.packs.len()), (0, 0));
        recent.keep(ids[0], vec![0; BYTES_MAX + 1].into());
        assert!(recent.take(ids[0]).is_none(), "too large for it");
    }
}
