//! Buffers that sessions share, a few for each worker thread, so that a silent connection holds none.

use bytes::BytesMut;
use std::cell::RefCell;

/// What one read takes at most, unless a larger frame is on its way.
pub(super) const READ_BYTES: usize = 64 << 10;
/// A buffer that grew beyond this is given back to the system.
const KEEP_BYTES_MAX: usize = 512 << 10;
/// Buffers of each kind that a thread keeps.
const KEEP_MAX: usize = 8;

thread_local! {
    static INPUTS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static OUTPUTS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Makes sure that `buffer` has room for a read of `bytes`.
pub(super) fn lend_input(buffer: &mut BytesMut, bytes: usize) {
    if buffer.capacity() == 0 {
        *buffer = INPUTS.with_borrow_mut(Vec::pop).unwrap_or_default();
    }
    buffer.reserve(bytes);
}

/// Takes the buffer back if nothing is in it.
pub(super) fn reclaim_input(buffer: &mut BytesMut) {
    if buffer.is_empty() && buffer.capacity() > 0 {
        let mut buffer = std::mem::take(buffer);
        buffer.clear();
        INPUTS.with_borrow_mut(|kept| {
            if kept.len() < KEEP_MAX && buffer.capacity() <= KEEP_BYTES_MAX {
                kept.push(buffer);
            }
        });
    }
}

/// Gives `buffer` memory to write to, if it has none.
pub(super) fn lend_output(buffer: &mut Vec<u8>) {
    if buffer.capacity() == 0 {
        *buffer = OUTPUTS.with_borrow_mut(Vec::pop).unwrap_or_default();
    }
}

/// Takes the buffer back if nothing is in it.
pub(super) fn reclaim_output(buffer: &mut Vec<u8>) {
    if buffer.is_empty() && buffer.capacity() > 0 {
        let buffer = std::mem::take(buffer);
        OUTPUTS.with_borrow_mut(|kept| {
            if kept.len() < KEEP_MAX && buffer.capacity() <= KEEP_BYTES_MAX {
                kept.push(buffer);
            }
        });
    }
}
