//! The bytes of a connection: what came and was not looked at, what is to be written and is not yet.

use super::login::Connection;
use crate::amqp::frame::{self, Frame, Split};
use crate::amqp::wire::Malformed;
use crate::upstream::Stream;
use bytes::{Buf, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWrite, ReadHalf, WriteHalf};

/// Bytes of frames that are gathered for one write; the last message may go over it.
pub(super) const WRITE_BYTES: usize = 64 << 10;
/// Bytes that one read may bring.
const READ_BYTES: usize = 64 << 10;
/// A buffer that a large message has blown up is given back.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// See the module.
pub(super) struct Wire {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pub(super) frame_bytes_max: u32,
    pub(super) heartbeat: Duration,
}

/// The half that reads.
pub(super) struct Reader {
    half: ReadHalf<Stream>,
    input: BytesMut,
    payload_bytes_max: usize,
    pub(super) last_read: Instant,
}

/// The half that writes.
pub(super) struct Writer {
    half: WriteHalf<Stream>,
    /// Frames to be written; empty when all are, and flushed.
    pub(super) out: Vec<u8>,
    /// How much of `out` is written.
    written: usize,
    pub(super) last_write: Instant,
}

impl Wire {
    pub(super) fn new(connection: Connection) -> Self {
        let (payload_bytes_max, now) = (connection.payload_bytes_max(), Instant::now());
        let Connection { stream, input, frame_bytes_max, heartbeat, .. } = connection;
        let (reader, writer) = tokio::io::split(stream);
        let reader = Reader { half: reader, input, payload_bytes_max, last_read: now };
        let writer = Writer { half: writer, out: Vec::with_capacity(2 * WRITE_BYTES), written: 0, last_write: now };
        Self { reader, writer, frame_bytes_max, heartbeat }
    }
}

impl Reader {
    /// Waits for bytes. May be dropped at any moment and called again.
    pub(super) async fn read(&mut self) -> io::Result<()> {
        self.input.reserve(READ_BYTES);
        if self.half.read_buf(&mut self.input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.last_read = Instant::now();
        Ok(())
    }

    /// Hands over the whole frames that have come.
    pub(super) fn frames<E: From<Malformed>>(
        &mut self,
        mut handle: impl FnMut(Frame<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut consumed = 0;
        loop {
            match frame::split(&self.input[consumed..], self.payload_bytes_max) {
                Split::Frame(frame) => {
                    consumed += frame.raw.len();
                    handle(frame)?;
                }
                Split::NeedBytes(_) => break,
                Split::Malformed => return Err(Malformed.into()),
            }
        }
        self.input.advance(consumed);
        Ok(())
    }
}

impl Writer {
    /// Writes and flushes all of `out`. May be dropped at any moment and called again.
    pub(super) async fn write(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_write(cx)).await?;
        self.last_write = Instant::now();
        self.written = 0;
        self.out.clear();
        self.out.shrink_to(BUFFER_BYTES_KEPT);
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.out.len() {
            match ready!(Pin::new(&mut self.half).poll_write(cx, &self.out[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        Pin::new(&mut self.half).poll_flush(cx)
    }
}
