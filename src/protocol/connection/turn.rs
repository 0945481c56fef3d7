//! How much of one side is handled before all others have their turn.

use crate::amqp::frame::{Frame, kind};

/// What one turn may cost, in frames that pass.
const COST_MAX: usize = 4_096;
/// So many frames pass while one is looked at.
const LOOK_COSTS: usize = 8;
/// A frame costs another one's time for each so many bytes that are only copied,
const COPIED_BYTES: usize = 512;
/// and for each so many that are read: a table may have an entry in every two of them, and is walked three times.
const READ_BYTES: usize = 16;

/// What was handled so far.
#[derive(Debug, Default)]
pub(super) struct Turn(usize);

impl Turn {
    pub(super) fn passed(&mut self) {
        self.0 += 1;
    }

    pub(super) fn looked_at(&mut self, frame: &Frame<'_>) {
        let unit = if frame.kind == kind::BODY { COPIED_BYTES } else { READ_BYTES };
        self.0 += LOOK_COSTS + frame.payload.len() / unit;
    }

    pub(super) fn is_over(&self) -> bool {
        self.0 >= COST_MAX
    }
}
