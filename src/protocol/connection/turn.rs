//! How much of one side is handled before all others have their turn.

/// Frames that pass in one turn, at most.
const FRAMES_MAX: usize = 4_096;
/// So many frames pass while one is looked at.
const LOOK_COSTS: usize = 8;

/// What was handled so far.
#[derive(Debug, Default)]
pub(super) struct Turn(usize);

impl Turn {
    pub(super) fn passed(&mut self) {
        self.0 += 1;
    }

    pub(super) fn looked_at(&mut self) {
        self.0 += LOOK_COSTS;
    }

    pub(super) fn is_over(&self) -> bool {
        self.0 >= FRAMES_MAX
    }
}
