//! Frames out of a stream of bytes, cut anywhere.

use pure::amqp::frame::{self, Frame, Split};
use std::sync::LazyLock;

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

/// Tells what happens, where somebody wants to read a finding as a story: `TRACE=1 target/.../session FILE`.
pub fn trace(tell: impl FnOnce() -> String) {
    static WANTED: LazyLock<bool> = LazyLock::new(|| std::env::var_os("TRACE").is_some());
    if *WANTED {
        eprintln!("{}", tell());
    }
}

/// A frame as one reads it: its channel and its method, or its kind.
pub fn describe(frame: &Frame<'_>) -> String {
    match frame.method_id() {
        Some((class, method)) => format!("{}: {class}.{method} {}", frame.channel, frame.arguments().escape_ascii()),
        None => format!("{}: kind {}, {} bytes", frame.channel, frame.kind, frame.payload.len()),
    }
}
