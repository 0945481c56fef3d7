//! One socket of a session, and what came from it and is not handled yet.

use super::buffers::{self, READ_BYTES};
use super::heartbeat::{Due, Heartbeat};
use crate::amqp::frame::{self, Split};
use crate::upstream::Stream;
use bytes::{BufMut, BytesMut};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWrite};

/// What one read takes at most from a client that has not logged in.
const LOGIN_READ_BYTES: usize = 1 << 10;

/// The client's side, or RabbitMQ's.
pub(super) struct Side {
    stream: Stream,
    pub(super) input: BytesMut,
    pub(super) heartbeat: Option<Heartbeat>,
    /// Nothing more comes from it, or it takes nothing more.
    pub(super) gone: bool,
}

impl Side {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, input: BytesMut::new(), heartbeat: None, gone: false }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.heard(now);
        }
    }

    pub(super) fn spoken(&mut self, now: Instant) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.spoken(now);
        }
    }

    pub(super) fn due(&self, now: Instant) -> Due {
        self.heartbeat.as_ref().map_or(Due::Nothing, |heartbeat| heartbeat.due(now))
    }

    /// Reads what there is, behind the front of a frame that may be in `input` already, which grows to `bytes_max`.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, bytes_max: Option<usize>) -> Poll<io::Result<usize>> {
        if let Some(max) = bytes_max {
            // Whoever has not logged in gets memory of its own, as much as it sends: a shared buffer would be held by a
            // single byte.
            let room = max.saturating_sub(self.input.len()).min(LOGIN_READ_BYTES);
            self.input.reserve(room);
            let read = pin!(self.stream.read_buf(&mut (&mut self.input).limit(room))).poll(cx);
            if read.is_pending() && self.input.is_empty() {
                self.input = BytesMut::new();
            }
            return read;
        }
        let missing = match frame::split(&self.input, usize::MAX - frame::OVERHEAD_BYTES) {
            Split::NeedBytes(total) => total.saturating_sub(self.input.len()),
            Split::Frame(_) | Split::Malformed => 0,
        };
        // Memory is taken for what comes, not for what a frame header announces.
        let room = missing.clamp(READ_BYTES, READ_BYTES.max(self.input.len()));
        buffers::lend_input(&mut self.input, room);
        let read = pin!(self.stream.read_buf(&mut self.input)).poll(cx);
        if read.is_pending() {
            buffers::reclaim_input(&mut self.input);
        }
        read
    }

    /// Writes as much of `output` as the socket takes, and takes it out of `output`.
    pub(super) fn poll_write_all(&mut self, cx: &mut Context<'_>, output: &mut Vec<u8>, now: Instant) -> bool {
        let mut written = 0;
        while written < output.len() && !self.gone {
            match Pin::new(&mut self.stream).poll_write(cx, &output[written..]) {
                Poll::Pending => break,
                Poll::Ready(Ok(bytes @ 1..)) => written += bytes,
                // The reading side learns of the end by itself; until then there is nobody to write to.
                Poll::Ready(Ok(0) | Err(_)) => written = output.len(),
            }
        }
        if self.gone {
            written = output.len();
        }
        if written == 0 {
            return false;
        }
        output.drain(..written);
        self.spoken(now);
        // TLS keeps what it encrypted until it is flushed; for TCP this is nothing.
        if matches!(self.stream, Stream::Tls(_)) {
            let _ = Pin::new(&mut self.stream).poll_flush(cx);
        }
        true
    }
}
