//! A load generator on raw frames: what it costs itself must not hide what the proxy costs.

use halfway::amqp::frame::{self, Frame, Split};
use halfway::amqp::wire::Write;
use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Body of every message, in bytes.
pub const BODY_BYTES: usize = 1024;

const START: (u16, u16) = (10, 10);
const START_OK: (u16, u16) = (10, 11);
const TUNE: (u16, u16) = (10, 30);
const TUNE_OK: (u16, u16) = (10, 31);
const OPEN: (u16, u16) = (10, 40);
const OPEN_OK: (u16, u16) = (10, 41);
const CHANNEL_OPEN: (u16, u16) = (20, 10);
const CHANNEL_OPEN_OK: (u16, u16) = (20, 11);
const QUEUE_DECLARE: (u16, u16) = (50, 10);
const QUEUE_DECLARE_OK: (u16, u16) = (50, 11);
const QUEUE_DELETE: (u16, u16) = (50, 40);
const QUEUE_DELETE_OK: (u16, u16) = (50, 41);
const QOS: (u16, u16) = (60, 10);
const QOS_OK: (u16, u16) = (60, 11);
const CONSUME: (u16, u16) = (60, 20);
const CONSUME_OK: (u16, u16) = (60, 21);
const PUBLISH: (u16, u16) = (60, 40);
const DELIVER: (u16, u16) = (60, 60);
const ACK: (u16, u16) = (60, 80);
const CONFIRM_SELECT: (u16, u16) = (85, 10);
const CONFIRM_SELECT_OK: (u16, u16) = (85, 11);
const TX_SELECT: (u16, u16) = (90, 10);
const TX_SELECT_OK: (u16, u16) = (90, 11);
const TX_COMMIT: (u16, u16) = (90, 20);
const TX_COMMIT_OK: (u16, u16) = (90, 21);

/// A connection with channel 1 open.
pub struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    /// Where the unread part of `input` starts.
    at: usize,
}

impl Client {
    /// Logs in as guest and opens channel 1.
    pub async fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.set_nodelay(true)?;
        let mut client = Self { stream, input: Vec::with_capacity(1 << 16), at: 0 };
        client.stream.write_all(&frame::PROTOCOL_HEADER).await?;
        client.skip_to(START).await?;
        client
            .call(0, START_OK, TUNE, |out| {
                out.put_long_string(&[]);
                out.put_short_string(b"PLAIN");
                out.put_long_string(b"\0guest\0guest");
                out.put_short_string(b"en_US");
            })
            .await?;
        let mut out = Vec::new();
        frame::write_method(&mut out, 0, TUNE_OK, |out| {
            out.put_u16(2047);
            out.put_u32(131_072);
            out.put_u16(0);
        });
        client.stream.write_all(&out).await?;
        client
            .call(0, OPEN, OPEN_OK, |out| {
                out.put_short_string(b"/");
                out.put_short_string(b"");
                out.put_u8(0);
            })
            .await?;
        client.call(1, CHANNEL_OPEN, CHANNEL_OPEN_OK, |out| out.put_short_string(b"")).await?;
        Ok(client)
    }

    /// Reads what the socket has, behind what is unread.
    async fn fill(&mut self) -> io::Result<()> {
        self.input.drain(..self.at);
        self.at = 0;
        if self.stream.read_buf(&mut self.input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// The next frame that is in the buffer already.
    fn buffered(&mut self) -> Option<Frame<'_>> {
        match frame::split(&self.input[self.at..], usize::MAX >> 1) {
            Split::Frame(frame) => {
                self.at += frame.raw.len();
                Some(frame)
            }
            Split::NeedBytes(_) => None,
            Split::Malformed => panic!("the server sends no frames"),
        }
    }

    /// Reads on to the method `id`; returns its arguments.
    async fn skip_to(&mut self, id: (u16, u16)) -> io::Result<Vec<u8>> {
        loop {
            while let Some(frame) = self.buffered() {
                match frame.method_id() {
                    Some(found) if found == id => return Ok(frame.arguments().to_vec()),
                    Some((10, 50) | (20, 40)) => {
                        return Err(io::Error::other(String::from_utf8_lossy(frame.payload).into_owned()));
                    }
                    _ => {}
                }
            }
            self.fill().await?;
        }
    }

    async fn call(
        &mut self,
        channel: u16,
        id: (u16, u16),
        answer: (u16, u16),
        arguments: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        frame::write_method(&mut out, channel, id, arguments);
        self.stream.write_all(&out).await?;
        self.skip_to(answer).await
    }

    /// Declares a durable queue of a type; how many messages are ready in it.
    pub async fn declare(&mut self, queue: &str, kind: QueueType) -> io::Result<u64> {
        let mut arguments = Vec::new();
        arguments.put_short_string(b"x-queue-type");
        arguments.put_u8(b'S');
        arguments.put_long_string(kind.name().as_bytes());
        let answer = self.call(1, QUEUE_DECLARE, QUEUE_DECLARE_OK, |out| {
            out.put_u16(0);
            out.put_short_string(queue.as_bytes());
            out.put_u8(0b00010);
            out.put_long_string(&arguments);
        });
        let answer = answer.await?;
        let count = answer[answer.len() - 8..].first_chunk().expect("four bytes of message count");
        Ok(u32::from_be_bytes(*count).into())
    }

    /// Waits until `count` messages are ready in the queue.
    pub async fn wait_for_count(&mut self, queue: &str, kind: QueueType, count: u64) -> io::Result<()> {
        let limit = Instant::now() + Duration::from_secs(120);
        loop {
            let ready = self.declare(queue, kind).await?;
            if ready >= count {
                return Ok(());
            }
            if Instant::now() > limit {
                return Err(io::Error::other(format!("only {ready} of {count} messages came to {queue}")));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Deletes a queue.
    pub async fn delete(&mut self, queue: &str) -> io::Result<()> {
        self.call(1, QUEUE_DELETE, QUEUE_DELETE_OK, |out| {
            out.put_u16(0);
            out.put_short_string(queue.as_bytes());
            out.put_u8(0);
        })
        .await?;
        Ok(())
    }

    /// Commits transactions of `messages` messages until `end`; how long each commit took, publishes included.
    pub async fn commit_until(&mut self, queue: &str, messages: usize, end: Instant) -> io::Result<Vec<Duration>> {
        self.call(1, TX_SELECT, TX_SELECT_OK, |_| {}).await?;
        let mut transaction = publish(queue).repeat(messages);
        frame::write_method(&mut transaction, 1, TX_COMMIT, |_| {});
        let mut times = Vec::new();
        while Instant::now() < end {
            let begin = Instant::now();
            self.stream.write_all(&transaction).await?;
            self.skip_to(TX_COMMIT_OK).await?;
            times.push(begin.elapsed());
        }
        Ok(times)
    }

    /// Commits named transactions of one message each, behind a prepare barrier, until `end`; how long each took, publish
    /// and barrier included. `client` is different for each client.
    pub async fn commit_named_until(&mut self, queue: &str, client: usize, end: Instant) -> io::Result<Vec<Duration>> {
        self.call(1, TX_SELECT, TX_SELECT_OK, |_| {}).await?;
        let mut times = Vec::new();
        while Instant::now() < end {
            let begin = Instant::now();
            let mut prepare = publish_named(queue, &format!("bench-{client}-{}", times.len()));
            frame::write_method(&mut prepare, 1, TX_SELECT, |_| {});
            self.stream.write_all(&prepare).await?;
            self.skip_to(TX_SELECT_OK).await?;
            self.call(1, TX_COMMIT, TX_COMMIT_OK, |_| {}).await?;
            times.push(begin.elapsed());
        }
        Ok(times)
    }

    /// Publishes with confirms, at most `window` of them outstanding, until `end` or `limit` messages; how many were
    /// confirmed.
    pub async fn confirm_until(&mut self, queue: &str, window: u64, end: Instant, limit: u64) -> io::Result<u64> {
        self.call(1, CONFIRM_SELECT, CONFIRM_SELECT_OK, |out| out.put_u8(0)).await?;
        let message = publish(queue);
        // Whether each message behind the first `confirmed` is confirmed: acks can come out of order.
        let (mut confirmed, mut behind) = (0_u64, VecDeque::new());
        loop {
            let sent = confirmed + behind.len() as u64;
            let room = if Instant::now() < end { (window - behind.len() as u64).min(limit - sent) } else { 0 };
            if room > 0 {
                self.stream.write_all(&message.repeat(room as usize)).await?;
                behind.extend(std::iter::repeat_n(false, room as usize));
            } else if behind.is_empty() {
                return Ok(sent);
            }
            self.fill().await?;
            while let Some(frame) = self.buffered() {
                if frame.method_id() != Some(ACK) {
                    return Err(io::Error::other(format!("no ack: {:?}", frame.method_id())));
                }
                let (tag, multiple) = frame.arguments().split_first_chunk().expect("a delivery tag");
                let at = u64::from_be_bytes(*tag).saturating_sub(confirmed + 1) as usize;
                let from = if multiple[0] & 1 == 1 { 0 } else { at };
                behind.iter_mut().take(at + 1).skip(from).for_each(|done| *done = true);
                while behind.front() == Some(&true) {
                    behind.pop_front();
                    confirmed += 1;
                }
            }
        }
    }

    /// Consumes `count` messages with a prefetch of 1000, and acknowledges every hundredth for all before it.
    pub async fn consume(&mut self, queue: &str, count: u64) -> io::Result<()> {
        self.call(1, QOS, QOS_OK, |out| {
            out.put_u32(0);
            out.put_u16(1000);
            out.put_u8(0);
        })
        .await?;
        self.call(1, CONSUME, CONSUME_OK, |out| {
            out.put_u16(0);
            out.put_short_string(queue.as_bytes());
            out.put_short_string(b"bench");
            out.put_u8(0);
            out.put_long_string(&[]);
        })
        .await?;
        let (mut seen, mut acked) = (0, 0);
        loop {
            while let Some(frame) = self.buffered() {
                seen += u64::from(frame.method_id() == Some(DELIVER));
            }
            if seen - acked >= 100 || seen >= count {
                acked = seen;
                let mut out = Vec::new();
                frame::write_method(&mut out, 1, ACK, |out| {
                    out.put_u64(seen);
                    out.put_u8(1);
                });
                self.stream.write_all(&out).await?;
            }
            if seen >= count {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    /// Round trips of `basic.qos`, one after the other.
    pub async fn round_trips(&mut self, count: usize) -> io::Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let begin = Instant::now();
            self.call(1, QOS, QOS_OK, |out| {
                out.put_u32(0);
                out.put_u16(100);
                out.put_u8(0);
            })
            .await?;
            times.push(begin.elapsed());
        }
        Ok(times)
    }
}

/// The two types of durable queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueType {
    /// One node, an index and a message store.
    Classic,
    /// A replicated log.
    Quorum,
}

impl QueueType {
    /// The value of `x-queue-type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Quorum => "quorum",
        }
    }
}

/// The bytes of one persistent publish to `queue` on channel 1.
fn publish(queue: &str) -> Vec<u8> {
    publish_with(queue, &[])
}

/// The same in a transaction with a name.
fn publish_named(queue: &str, name: &str) -> Vec<u8> {
    let mut headers = Vec::new();
    headers.put_short_string(b"x-half-transaction");
    headers.put_u8(b'S');
    headers.put_long_string(name.as_bytes());
    publish_with(queue, &headers)
}

fn publish_with(queue: &str, headers: &[u8]) -> Vec<u8> {
    let mut header = vec![0, 60, 0, 0];
    header.put_u64(BODY_BYTES as u64);
    if headers.is_empty() {
        header.put_u16(1 << 12);
    } else {
        header.put_u16(1 << 13 | 1 << 12);
        header.put_long_string(headers);
    }
    header.put_u8(2);
    let mut out = Vec::new();
    frame::write_method(&mut out, 1, PUBLISH, |out| {
        out.put_u16(0);
        out.put_short_string(b"");
        out.put_short_string(queue.as_bytes());
        out.put_u8(0);
    });
    frame::write_content(&mut out, 1, &header, &[b'x'; BODY_BYTES], 131_072);
    out
}
