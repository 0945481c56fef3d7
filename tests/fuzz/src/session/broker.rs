//! RabbitMQ as the session sees it: channels that run side by side, each answering in order; a closed channel that
//! ignores what comes; delivery tags inside a transaction; confirms. It fails where the real one would close the
//! connection or the channel for a mistake of its peer.

use crate::stream::{Stream, describe, trace};
use pure::amqp::frame::{self, Frame, Split, kind};
use pure::amqp::method::{self, Close, Publish, Settle, id};
use pure::amqp::properties;
use pure::amqp::reply_code::ReplyCode;
use pure::amqp::wire::{Reader, Write};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// exchange.declare and exchange.delete, each answered by the next method of its class.
pub const DECLARE: (u16, u16) = (40, 10);
pub const DELETE: (u16, u16) = (40, 20);

/// Where a message was to go: the exchange and the routing key. Each producer's message has one of its own.
pub type Place = (Vec<u8>, Vec<u8>);

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
    /// Published in the open transaction.
    probed: Vec<Place>,
    /// In confirm mode, with so many messages published.
    confirms: Option<u64>,
    unconfirmed: BTreeMap<u64, Place>,
}

struct Answer {
    channel: u16,
    bytes: Vec<u8>,
    news: News,
}

/// What the session can know when it has read an answer.
#[derive(Default)]
pub struct News {
    /// Publishes that would have been taken.
    pub judged: Vec<Place>,
    /// Confirms, and whether they are acks.
    pub confirmed: Vec<(Place, bool)>,
}

#[derive(Default)]
pub struct Broker {
    channels: BTreeMap<u16, Channel>,
    /// How many may be open at once; 0 is no limit.
    channel_max: usize,
    /// What has arrived for each channel and was not looked at.
    arrived: BTreeMap<u16, VecDeque<Vec<u8>>>,
    exchanges: BTreeSet<Vec<u8>>,
    answers: VecDeque<Answer>,
    stream: Stream,
    /// Messages that were published to be delivered.
    pub taken: Vec<Place>,
    /// Channels on which it has taken an ack of all that was delivered.
    pub acked_all: Vec<u16>,
    /// connection.close has come: nothing else counts any more.
    is_closing: bool,
}

impl Broker {
    /// With room for so many channels.
    pub fn new(channel_max: u16) -> Self {
        Self { channel_max: channel_max.into(), ..Self::default() }
    }

    pub fn receive(&mut self, bytes: &[u8]) {
        let mut stream = std::mem::take(&mut self.stream);
        stream.feed(bytes, |frame| match frame.channel {
            _ if self.is_closing => {}
            0 if frame.method_id() == Some(id::CONNECTION_CLOSE) => {
                self.is_closing = true;
                self.answer(0, id::CONNECTION_CLOSE_OK);
            }
            0 => {}
            // The number of channels is looked at on arrival.
            channel => self.arrived.entry(channel).or_default().push_back(frame.raw.to_vec()),
        });
        self.stream = stream;
    }

    /// Lets one channel go on, or all of them; each takes what came for it in order.
    pub fn work(&mut self, choice: Option<usize>) {
        let busy: Vec<u16> = self.arrived.iter().filter(|(_, frames)| !frames.is_empty()).map(|(it, _)| *it).collect();
        match choice {
            Some(_) if busy.is_empty() => {}
            Some(choice) => self.work_on(busy[choice % busy.len()]),
            None => busy.into_iter().for_each(|channel| self.work_on(channel)),
        }
    }

    fn work_on(&mut self, channel: u16) {
        for raw in self.arrived.remove(&channel).unwrap_or_default() {
            let Split::Frame(frame) = frame::split(&raw, 1 << 20) else { panic!("it was a frame") };
            self.frame(&frame);
        }
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        let number = frame.channel;
        trace(|| format!("               broker works on {}", describe(frame)));
        let open = self.channels.values().filter(|channel| channel.state == State::Open).count();
        let channel = self.channels.entry(number).or_default();
        let method = frame.method_id();
        match channel.state {
            State::Closed => {
                assert_eq!(method, Some(id::CHANNEL_OPEN), "504: channel {number} is closed");
                assert!(self.channel_max == 0 || open < self.channel_max, "530: {open} channels are open already");
                *channel = Channel { state: State::Open, ..Channel::default() };
                return self.answer(number, id::CHANNEL_OPEN_OK);
            }
            State::Closing => match method {
                Some(id::CHANNEL_OPEN) => panic!("504: second 'channel.open' seen on channel {number}"),
                Some(id::CHANNEL_CLOSE) => return self.answer(number, id::CHANNEL_CLOSE_OK),
                Some(id::CHANNEL_CLOSE_OK) => return channel.state = State::Closed,
                _ => return,
            },
            State::Open => {}
        }
        match (channel.content, frame.kind) {
            (None, kind::METHOD) => self.method(number, method.expect("a method"), frame.arguments()),
            (Some(None), kind::HEADER) => {
                let size = properties::body_size(frame.payload).expect("a content header");
                channel.content = (size > 0).then_some(Some(size));
            }
            (Some(Some(due)), kind::BODY) => {
                let due = due.checked_sub(frame.payload.len() as u64).expect("505: the body is too long");
                channel.content = (due > 0).then_some(Some(due));
            }
            (content, kind) => panic!("505: a frame of type {kind} where {content:?} is due on channel {number}"),
        }
    }

    fn method(&mut self, number: u16, method: (u16, u16), arguments: &[u8]) {
        let channel = self.channels.entry(number).or_default();
        match method {
            id::BASIC_PUBLISH => {
                let publish = Publish::parse(arguments).expect("501: basic.publish");
                if publish.exchange.starts_with(b"e") && !self.exchanges.contains(publish.exchange) {
                    // The client keeps to the order; a question about an old message may come behind its deletion.
                    return self.refuse_for(number, publish.exchange);
                }
                let place = (publish.exchange.to_vec(), publish.routing_key.to_vec());
                channel.content = Some(None);
                if channel.tx {
                    return channel.probed.push(place);
                }
                if let Some(tag) = &mut channel.confirms {
                    *tag += 1;
                    channel.unconfirmed.insert(*tag, place.clone());
                }
                self.taken.push(place);
            }
            DECLARE | DELETE => {
                let exchange = Reader::new(&arguments[2..]).short_string().expect("501: exchange").to_vec();
                match method {
                    DECLARE => drop(self.exchanges.insert(exchange)),
                    _ => drop(self.exchanges.remove(&exchange)),
                }
                self.answer(number, (method.0, method.1 + 1));
            }
            id::TX_SELECT => {
                assert!(channel.confirms.is_none(), "406: cannot switch from confirm to tx mode");
                channel.tx = true;
                self.answer(number, id::TX_SELECT_OK);
            }
            id::CONFIRM_SELECT => {
                assert!(!channel.tx, "406: cannot switch from tx to confirm mode");
                channel.confirms.get_or_insert(0);
                self.answer(number, id::CONFIRM_SELECT_OK);
            }
            id::CHANNEL_FLOW => {
                assert_eq!(arguments, [1], "540: active=false");
                let mut bytes = Vec::new();
                frame::write_method(&mut bytes, number, id::CHANNEL_FLOW_OK, |out| out.put_u8(1));
                self.answers.push_back(Answer { channel: number, bytes, news: News::default() });
            }
            id::TX_ROLLBACK | id::TX_COMMIT => {
                match method {
                    id::TX_ROLLBACK => channel.unacked.append(&mut channel.settled),
                    _ => channel.settled.clear(),
                }
                let judged = std::mem::take(&mut channel.probed);
                if method == id::TX_COMMIT {
                    self.taken.extend_from_slice(&judged);
                }
                let mut bytes = Vec::new();
                method::write_bare(&mut bytes, number, (method.0, method.1 + 1));
                self.answers.push_back(Answer { channel: number, bytes, news: News { judged, confirmed: Vec::new() } });
            }
            id::BASIC_ACK => {
                let settle = Settle::parse(arguments).expect("501: basic.ack");
                channel.ack(number, settle);
                if settle.tag == 0 {
                    self.acked_all.push(number);
                }
            }
            id::CHANNEL_CLOSE => {
                *channel = Channel::default();
                self.answer(number, id::CHANNEL_CLOSE_OK);
            }
            other => panic!("{other:?} on channel {number}"),
        }
    }

    fn answer(&mut self, channel: u16, id: (u16, u16)) {
        let mut bytes = Vec::new();
        method::write_bare(&mut bytes, channel, id);
        self.answers.push_back(Answer { channel, bytes, news: News::default() });
    }

    fn open_channel(&mut self, number: u16) -> Option<&mut Channel> {
        self.channels.get_mut(&number).filter(|channel| channel.state == State::Open)
    }

    /// Sends a message to the consumer on a channel, if it is open.
    pub fn deliver(&mut self, number: u16, body: &[u8]) {
        let Some(channel) = self.open_channel(number) else { return };
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
        self.answers.push_back(Answer { channel: number, bytes, news: News::default() });
    }

    /// Confirms some of what was published on a channel: the one at this place, or all up to it; or refuses to.
    pub fn confirm(&mut self, number: u16, place: usize, multiple: bool, ack: bool) {
        let Some(channel) = self.open_channel(number).filter(|channel| !channel.unconfirmed.is_empty()) else { return };
        let place = place % channel.unconfirmed.len();
        let tag = *channel.unconfirmed.keys().nth(place).expect("below its length");
        let rest = match multiple {
            true => channel.unconfirmed.split_off(&(tag + 1)),
            false => channel.unconfirmed.clone().into_iter().filter(|(other, _)| *other != tag).collect(),
        };
        channel.unconfirmed.retain(|other, _| multiple || *other == tag);
        let settled = std::mem::replace(&mut channel.unconfirmed, rest);
        let (mut bytes, method) = (Vec::new(), if ack { id::BASIC_ACK } else { id::BASIC_NACK });
        method::write_settle(&mut bytes, number, method, Settle { tag, multiple });
        let confirmed = settled.into_values().map(|place| (place, ack)).collect();
        self.answers.push_back(Answer { channel: number, bytes, news: News { judged: Vec::new(), confirmed } });
    }

    /// Confirms everything.
    pub fn confirm_all(&mut self) {
        for (number, count) in
            self.channels.iter().map(|(it, channel)| (*it, channel.unconfirmed.len())).collect::<Vec<_>>()
        {
            self.confirm(number, count.saturating_sub(1), true, true);
        }
    }

    /// Whether a delivery on a channel has been sent and not read.
    pub fn is_sending(&self, channel: u16) -> bool {
        self.answers.iter().any(|answer| answer.channel == channel)
    }

    /// The channels that are open, those of the session's own among them.
    pub fn open_channels(&self) -> impl Iterator<Item = u16> {
        self.channels.iter().filter(|(_, channel)| channel.state == State::Open).map(|(number, _)| *number)
    }

    /// Closes a channel as if something on it had been refused.
    pub fn refuse(&mut self, number: u16) {
        self.refuse_for(number, b"x");
    }

    fn refuse_for(&mut self, number: u16, exchange: &[u8]) {
        let Some(channel) = self.open_channel(number) else { return };
        *channel = Channel { state: State::Closing, ..Channel::default() };
        self.answers.retain(|answer| answer.channel != number);
        let mut bytes = Vec::new();
        let text = format!("NOT_FOUND - no exchange '{}' in vhost '/'", exchange.escape_ascii());
        let close = Close { code: ReplyCode::NOT_FOUND, text: text.as_bytes(), method: id::BASIC_PUBLISH };
        close.write(&mut bytes, number);
        self.answers.push_back(Answer { channel: number, bytes, news: News::default() });
    }

    /// The next answer, which the session now reads.
    pub fn next_answer(&mut self) -> Option<(Vec<u8>, News)> {
        self.answers.pop_front().map(|answer| (answer.bytes, answer.news))
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
