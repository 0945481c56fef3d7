//! Frames out of a stream of bytes, cut anywhere.

use pure::amqp::frame::{self, Frame, Split};

/// The front of a frame whose rest has not come.
#[derive(Default)]
pub struct Stream(Vec<u8>);

impl Stream {
    /// Hands over each frame that is whole now.
    pub fn feed(&mut self, bytes: &[u8], mut take: impl FnMut(&Frame<'_>)) {
        self.0.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            match frame::split(&self.0[at..], 1 << 20) {
                Split::Frame(frame) => {
                    at += frame.raw.len();
                    take(&frame);
                }
                Split::NeedBytes(_) => break,
                Split::Malformed => panic!("not a frame: {:?}", &self.0[at..]),
            }
        }
        self.0.drain(..at);
    }
}
