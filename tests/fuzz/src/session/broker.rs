//! RabbitMQ as the session sees it: answers in order, a closed channel that ignores what comes, delivery tags inside a
//! transaction. It fails where the real one would close the connection or the channel for a mistake of its peer.

use pure::amqp::frame::{self, Frame, Split, kind};
use pure::amqp::method::{self, Close, Publish, Settle, id};
use pure::amqp::properties;
use pure::amqp::reply_code::ReplyCode;
use pure::amqp::wire::Write;
use std::collections::{BTreeSet, HashMap, VecDeque};

#[derive(Default, PartialEq)]
enum State {
    #[default]
    Closed,
    Open,
    /// channel.close was sent; close-ok is due.
    Closing,
}

#[derive(Default)]
struct Channel {
    state: State,
    tx: bool,
    last_tag: u64,
    unacked: BTreeSet<u64>,
    /// Acknowledged in the open transaction.
    settled: BTreeSet<u64>,
    /// What of a content is due: the header (`None`), or so many bytes of body.
    content: Option<Option<u64>>,
    published: usize,
    judged: usize,
}

struct Answer {
    channel: u16,
    bytes: Vec<u8>,
    /// How many publishes have been judged when this is read.
    judged: Option<usize>,
}

#[derive(Default)]
pub struct Broker {
    channels: HashMap<u16, Channel>,
    answers: VecDeque<Answer>,
    stream: Vec<u8>,
    /// connection.close has come: nothing else counts any more.
    is_closing: bool,
}

impl Broker {
    /// With these channels open.
    pub fn new(numbers: &[u16]) -> Self {
        let open = |number: &u16| (*number, Channel { state: State::Open, ..Channel::default() });
        Self { channels: numbers.iter().map(open).collect(), ..Self::default() }
    }

    /// Whether every publish on a channel has been judged, as far as the session can know.
    pub fn has_judged(&self, channel: u16) -> bool {
        self.channels.get(&channel).is_none_or(|channel| channel.judged == channel.published)
    }

    pub fn receive(&mut self, bytes: &[u8]) {
        self.stream.extend_from_slice(bytes);
        let stream = std::mem::take(&mut self.stream);
        let mut rest = &stream[..];
        loop {
            match frame::split(rest, 1 << 20) {
                Split::Frame(frame) => {
                    rest = &rest[frame.raw.len()..];
                    self.frame(&frame);
                }
                Split::NeedBytes(_) => break,
                Split::Malformed => panic!("not a frame: {rest:?}"),
            }
        }
        self.stream = rest.to_vec();
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        let number = frame.channel;
        if self.is_closing {
            return;
        }
        if number == 0 {
            if frame.method_id() == Some(id::CONNECTION_CLOSE) {
                self.is_closing = true;
                self.answer(0, id::CONNECTION_CLOSE_OK, None);
            }
            return;
        }
        let channel = self.channels.entry(number).or_default();
        let method = frame.method_id();
        match channel.state {
            State::Closed => {
                assert_eq!(method, Some(id::CHANNEL_OPEN), "504: channel {number} is closed");
                *channel = Channel { state: State::Open, ..Channel::default() };
                return self.answer(number, id::CHANNEL_OPEN_OK, None);
            }
            State::Closing => match method {
                Some(id::CHANNEL_OPEN) => panic!("504: second 'channel.open' seen on channel {number}"),
                Some(id::CHANNEL_CLOSE) => return self.answer(number, id::CHANNEL_CLOSE_OK, None),
                Some(id::CHANNEL_CLOSE_OK) => return channel.state = State::Closed,
                _ => return,
            },
            State::Open => {}
        }
        match (channel.content, frame.kind) {
            (None, kind::METHOD) => {}
            (Some(None), kind::HEADER) => {
                let size = properties::body_size(frame.payload).expect("a content header");
                channel.content = (size > 0).then_some(Some(size));
                return;
            }
            (Some(Some(due)), kind::BODY) => {
                let due = due.checked_sub(frame.payload.len() as u64).expect("505: the body is too long");
                channel.content = (due > 0).then_some(Some(due));
                return;
            }
            (content, kind) => panic!("505: a frame of type {kind} where {content:?} is due on channel {number}"),
        }
        match method.expect("a method") {
            id::BASIC_PUBLISH => {
                Publish::parse(frame.arguments()).expect("501: basic.publish");
                channel.content = Some(None);
                channel.published += 1;
            }
            id::TX_SELECT => {
                channel.tx = true;
                self.answer(number, id::TX_SELECT_OK, None);
            }
            id::TX_ROLLBACK => {
                channel.unacked.append(&mut channel.settled);
                let judged = Some(channel.published);
                self.answer(number, id::TX_ROLLBACK_OK, judged);
            }
            id::TX_COMMIT => {
                channel.settled.clear();
                let judged = Some(channel.published);
                self.answer(number, id::TX_COMMIT_OK, judged);
            }
            id::BASIC_ACK => channel.ack(number, Settle::parse(frame.arguments()).expect("501: basic.ack")),
            id::CHANNEL_CLOSE => {
                *channel = Channel::default();
                self.answer(number, id::CHANNEL_CLOSE_OK, None);
            }
            other => panic!("{other:?} on channel {number}"),
        }
    }

    fn answer(&mut self, channel: u16, id: (u16, u16), judged: Option<usize>) {
        let mut bytes = Vec::new();
        method::write_bare(&mut bytes, channel, id);
        self.answers.push_back(Answer { channel, bytes, judged });
    }

    /// Sends a message to the consumer on a channel, if it is open.
    pub fn deliver(&mut self, number: u16, body: &[u8]) {
        let Some(channel) = self.channels.get_mut(&number).filter(|channel| channel.state == State::Open) else {
            return;
        };
        channel.last_tag += 1;
        let tag = channel.last_tag;
        channel.unacked.insert(tag);
        let mut bytes = Vec::new();
        frame::write_method(&mut bytes, number, id::BASIC_DELIVER, |out| {
            out.put_short_string(b"c");
            out.put_u64(tag);
            out.extend_from_slice(&[0, 0, 1, b'k']);
        });
        let mut header = vec![0, 60, 0, 0];
        header.put_u64(body.len() as u64);
        header.put_u16(0);
        frame::write_content(&mut bytes, number, &header, body, 20);
        self.answers.push_back(Answer { channel: number, bytes, judged: None });
    }

    /// Whether a delivery on a channel has been sent and not read.
    pub fn is_sending(&self, channel: u16) -> bool {
        self.answers.iter().any(|answer| answer.channel == channel)
    }

    /// Closes a channel as if something on it had been refused.
    pub fn refuse(&mut self, number: u16) {
        let Some(channel) = self.channels.get_mut(&number).filter(|channel| channel.state == State::Open) else {
            return;
        };
        *channel = Channel { state: State::Closing, ..Channel::default() };
        self.answers.retain(|answer| answer.channel != number);
        let mut bytes = Vec::new();
        let text = b"NOT_FOUND - no exchange 'x' in vhost '/'";
        Close { code: ReplyCode::NOT_FOUND, text, method: id::BASIC_PUBLISH }.write(&mut bytes, number);
        self.answers.push_back(Answer { channel: number, bytes, judged: None });
    }

    /// The next answer, which the session now reads.
    pub fn next_answer(&mut self) -> Option<Vec<u8>> {
        let answer = self.answers.pop_front()?;
        if let (Some(judged), Some(channel)) = (answer.judged, self.channels.get_mut(&answer.channel)) {
            channel.judged = judged;
        }
        Some(answer.bytes)
    }
}

impl Channel {
    fn ack(&mut self, number: u16, settle: Settle) {
        let known = |tag: u64| assert!(self.unacked.contains(&tag), "406: unknown delivery tag {tag} on {number}");
        let rest = match settle {
            Settle { tag: 0, multiple: true } => BTreeSet::new(),
            Settle { tag, multiple: true } => {
                known(tag);
                self.unacked.split_off(&(tag + 1))
            }
            Settle { tag, multiple: false } => {
                known(tag);
                let mut rest = self.unacked.clone();
                rest.remove(&tag);
                self.unacked.retain(|held| *held == tag);
                rest
            }
        };
        let mut settled = std::mem::replace(&mut self.unacked, rest);
        if self.tx {
            self.settled.append(&mut settled);
        }
    }
}
