//! A client that keeps to the protocol, sends ahead as far as it may, and fails when it is told what it must not be.

use crate::script::Script;
use pure::amqp::frame::{self, Frame, Split, kind};
use pure::amqp::method::{self, Close, Publish, id};
use pure::amqp::properties;
use pure::amqp::reply_code::ReplyCode;
use pure::amqp::table;
use pure::amqp::wire::{Reader, Write};
use std::collections::{BTreeSet, HashMap, VecDeque};

/// What the client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    OpenOk,
    SelectOk,
    RollbackOk,
    /// Of so many half messages.
    CommitOk(usize),
    CloseOk,
}

#[derive(Default)]
struct Channel {
    tx: bool,
    /// RabbitMQ, or the proxy, has closed it.
    refused: bool,
    due: VecDeque<Due>,
    held: BTreeSet<u64>,
    settled: BTreeSet<u64>,
    /// Tag 0 was acknowledged in the open transaction.
    all_settled: bool,
    /// Half messages of the open transaction.
    halves: usize,
    natives: usize,
    /// Decisions of the store that no commit-ok has told yet.
    decided: usize,
    content: Option<Option<u64>>,
}

#[derive(Default)]
pub struct Client {
    channels: HashMap<u16, Channel>,
    /// How often a channel was closed.
    closes: HashMap<u16, usize>,
    /// What it has sent.
    pub out: Vec<u8>,
    stream: Vec<u8>,
    /// An ack of tag 0 is on its way. What it means depends on what has been delivered when it arrives.
    pub acks_all: bool,
    /// connection.close was sent or received.
    pub is_closing: bool,
    pub is_closed: bool,
}

impl Client {
    /// With these channels open.
    pub fn new(numbers: &[u16]) -> Self {
        Self { channels: numbers.iter().map(|number| (*number, Channel::default())).collect(), ..Self::default() }
    }

    /// Does one thing that it may do on a channel.
    pub fn act(&mut self, script: &mut Script<'_>, number: u16, may_ack_all: bool) {
        let Some(channel) = self.channels.get_mut(&number).filter(|_| !self.is_closing) else { return };
        if channel.due.contains(&Due::CloseOk) {
            return;
        }
        if channel.refused {
            *channel = Channel { tx: true, due: VecDeque::from([Due::OpenOk, Due::SelectOk]), ..Channel::default() };
            for id in [id::CHANNEL_CLOSE_OK, id::CHANNEL_OPEN, id::TX_SELECT] {
                method::write_bare(&mut self.out, number, id);
            }
            return;
        }
        let choice = script.below(12);
        match choice {
            0 if !channel.tx => self.ask(number, id::TX_SELECT, Due::SelectOk),
            1 | 2 if channel.tx => {
                let halves = std::mem::take(&mut channel.halves);
                channel.natives = 0;
                channel.settled.clear();
                channel.all_settled = false;
                self.ask(number, id::TX_COMMIT, Due::CommitOk(halves));
            }
            3 if channel.tx => {
                (channel.halves, channel.natives, channel.all_settled) = (0, 0, false);
                channel.held.append(&mut channel.settled);
                self.ask(number, id::TX_ROLLBACK, Due::RollbackOk);
            }
            4 | 5 => self.ack(script, number, may_ack_all),
            6 if script.below(4) == 0 => self.ask(number, id::CHANNEL_CLOSE, Due::CloseOk),
            7 if script.below(8) == 0 => {
                Close { code: ReplyCode::SUCCESS, text: b"bye", method: (0, 0) }.write(&mut self.out, 0);
                self.is_closing = true;
            }
            _ => self.publish(script, number),
        }
    }

    fn ask(&mut self, number: u16, id: (u16, u16), due: Due) {
        self.channels.entry(number).or_default().due.push_back(due);
        method::write_bare(&mut self.out, number, id);
        if id == id::TX_SELECT {
            self.channels.entry(number).or_default().tx = true;
        }
    }

    fn ack(&mut self, script: &mut Script<'_>, number: u16, may_ack_all: bool) {
        let Some(channel) = self.channels.get_mut(&number).filter(|channel| !channel.all_settled) else { return };
        let all = may_ack_all && channel.tx && channel.due.is_empty() && script.below(4) == 0;
        let (tag, multiple) = match channel.held.len() {
            _ if all && (channel.halves > 0 || channel.natives > 0) => (0, true),
            0 => return,
            held => (*channel.held.iter().nth(script.below(held)).expect("it is held"), script.flag()),
        };
        let mut settled: BTreeSet<u64> = match (tag, multiple) {
            (0, _) => std::mem::take(&mut channel.held),
            (tag, true) => channel.held.iter().copied().filter(|held| *held <= tag).collect(),
            (tag, false) => BTreeSet::from([tag]),
        };
        channel.held.retain(|held| !settled.contains(held));
        channel.all_settled = tag == 0;
        self.acks_all |= tag == 0;
        if channel.tx {
            channel.settled.append(&mut settled);
        }
        frame::write_method(&mut self.out, number, id::BASIC_ACK, |out| {
            out.put_u64(tag);
            out.put_u8(multiple.into());
        });
    }

    fn publish(&mut self, script: &mut Script<'_>, number: u16) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let form = script.below(6);
        let (exchange, routing_key): (&[u8], Vec<u8>) = match form {
            0 => (b"", b"amq.rabbitmq.reply-to.g1".to_vec()),
            1 => (b"", vec![b'q'; script.below(4)]),
            _ => (b"x", script.bytes(2).to_vec()),
        };
        match form {
            _ if !channel.tx => {}
            0 => channel.natives += 1,
            _ => channel.halves += 1,
        }
        let size = [0, 1, 30, 300, 3_000, 9_000][script.below(6)];
        let mut header = vec![0, 60, 0, 0];
        header.put_u64(size as u64);
        match script.below(2) {
            0 => {
                let mut headers = Vec::new();
                table::write_string(&mut headers, b"k", script.bytes(3));
                header.put_u16(1 << 13);
                header.put_long_string(&headers);
            }
            _ => header.put_u16(0),
        }
        Publish { exchange, routing_key: &routing_key, flags: script.byte() & 1 }.write(&mut self.out, number);
        frame::write_content(&mut self.out, number, &header, &vec![b'b'; size], 4096);
    }

    /// How often a channel was closed: a channel that is opened again is another one.
    pub fn closes(&self, number: u16) -> usize {
        self.closes.get(&number).copied().unwrap_or_default()
    }

    /// The store has decided a transaction of a channel that had been closed so often.
    pub fn decided(&mut self, number: u16, closes: usize) {
        if closes == self.closes(number) {
            self.channels.entry(number).or_default().decided += 1;
        }
    }

    /// How many half messages the commit has that runs on a channel now: the first that the store has not decided.
    pub fn committing(&self, number: u16) -> Option<usize> {
        let channel = self.channels.get(&number)?;
        let mut halves = channel.due.iter().filter_map(|due| match due {
            Due::CommitOk(halves) if *halves > 0 => Some(*halves),
            _ => None,
        });
        halves.nth(channel.decided)
    }

    /// Whether it waits for anything that nobody but the proxy and RabbitMQ can give it.
    pub fn waits(&self) -> Option<String> {
        let due = |(number, channel): (&u16, &Channel)| {
            (!channel.refused && !channel.due.is_empty()).then(|| format!("{:?} on channel {number}", channel.due))
        };
        self.channels.iter().find_map(due).filter(|_| !self.is_closing)
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
        if number == 0 {
            match frame.method_id() {
                Some(id::CONNECTION_CLOSE) => {
                    method::write_bare(&mut self.out, 0, id::CONNECTION_CLOSE_OK);
                    (self.is_closing, self.is_closed) = (true, true);
                }
                Some(id::CONNECTION_CLOSE_OK) => self.is_closed = true,
                _ => {}
            }
            return;
        }
        let channel = self.channels.get_mut(&number).expect("a channel that was opened");
        assert!(!channel.refused, "{:?} on channel {number}, which is closed", frame.method_id());
        match (channel.content, frame.kind) {
            (None, kind::METHOD) => {}
            (Some(None), kind::HEADER) => {
                let size = properties::body_size(frame.payload).expect("a content header");
                return channel.content = (size > 0).then_some(Some(size));
            }
            (Some(Some(due)), kind::BODY) => {
                let due = due.checked_sub(frame.payload.len() as u64).expect("no more than announced");
                return channel.content = (due > 0).then_some(Some(due));
            }
            (content, kind) => panic!("a frame of type {kind} where {content:?} is due on channel {number}"),
        }
        if let Some(id::CHANNEL_CLOSE | id::CHANNEL_CLOSE_OK) = frame.method_id() {
            *self.closes.entry(number).or_default() += 1;
        }
        match frame.method_id().expect("a method") {
            id::BASIC_DELIVER => {
                let (_, tag) = method::deliver_tags(frame.arguments()).expect("basic.deliver");
                assert!(Reader::new(frame.arguments()).short_string().is_ok_and(|consumer| consumer == b"c"));
                channel.held.insert(tag);
                channel.content = Some(None);
            }
            id::BASIC_RETURN => channel.content = Some(None),
            id::CHANNEL_CLOSE if channel.due.contains(&Due::CloseOk) => {
                // Both sides close; each answers the other.
                *channel = Channel { due: VecDeque::from([Due::CloseOk]), ..Channel::default() };
                method::write_bare(&mut self.out, number, id::CHANNEL_CLOSE_OK);
            }
            id::CHANNEL_CLOSE => *channel = Channel { refused: true, ..Channel::default() },
            id::CHANNEL_CLOSE_OK => {
                *channel = Channel { due: VecDeque::from([Due::OpenOk]), ..Channel::default() };
                method::write_bare(&mut self.out, number, id::CHANNEL_OPEN);
            }
            method => {
                let due = channel.due.pop_front();
                match (method, due) {
                    (id::CHANNEL_OPEN_OK, Some(Due::OpenOk))
                    | (id::TX_SELECT_OK, Some(Due::SelectOk))
                    | (id::TX_ROLLBACK_OK, Some(Due::RollbackOk))
                    | (id::TX_COMMIT_OK, Some(Due::CommitOk(0))) => {}
                    (id::TX_COMMIT_OK, Some(Due::CommitOk(_))) => {
                        assert!(channel.decided > 0, "commit-ok on channel {number} before the store has decided");
                        channel.decided -= 1;
                    }
                    (method, due) => panic!("{method:?} on channel {number}, where {due:?} is due"),
                }
            }
        }
    }
}
