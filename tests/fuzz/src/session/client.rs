//! A client that keeps to the protocol, sends ahead as far as it may, and fails when it is told what it must not be.

use crate::broker::{DECLARE, DELETE};
use crate::script::Script;
use crate::stream::{Stream, describe, trace};
use pure::amqp::frame::{self, Frame, kind};
use pure::amqp::method::{self, Close, Publish, Settle, id};
use pure::amqp::properties;
use pure::amqp::reply_code::ReplyCode;
use pure::amqp::table;
use pure::amqp::wire::{Reader, Write};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A transaction of a transactional channel. Each of its messages has its serial number in its routing key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    pub serial: usize,
    /// Whether its first message gave it a name; `None`: there is none.
    pub named: Option<bool>,
    pub halves: usize,
    natives: usize,
    /// What it says about other transactions.
    decisions: Vec<String>,
}

/// What the client waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Due {
    /// An answer that is always the same.
    Ok((u16, u16)),
    /// The select-ok of a barrier.
    Barrier(Transaction),
    CommitOk(Transaction),
    CloseOk,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    #[default]
    Plain,
    Tx,
    Confirm,
}

#[derive(Default)]
struct Channel {
    mode: Mode,
    /// RabbitMQ, or the proxy, has closed it.
    refused: bool,
    due: VecDeque<Due>,
    held: BTreeSet<u64>,
    settled: BTreeSet<u64>,
    /// Tag 0 was acknowledged in the open transaction.
    all_settled: bool,
    transaction: Transaction,
    /// Decisions of the store that no commit-ok has told yet.
    decided: usize,
    content: Option<Option<u64>>,
    /// An exchange that it has declared.
    exchange: Option<String>,
    last_tag: u64,
    /// What it has published in confirm mode and not heard of.
    unconfirmed: BTreeMap<u64, String>,
    /// Its half messages and decisions outside transactions, in order.
    special: Vec<String>,
}

#[derive(Default)]
pub struct Client {
    channels: BTreeMap<u16, Channel>,
    /// How often a channel was closed.
    closes: BTreeMap<u16, usize>,
    /// What it has sent.
    pub out: Vec<u8>,
    stream: Stream,
    serial: usize,
    /// Channels with an ack of tag 0 on its way. What it means depends on what RabbitMQ has delivered when it arrives.
    pub acks_all: BTreeSet<u16>,
    /// connection.close was sent or received.
    pub is_closing: bool,
    pub is_closed: bool,
    /// Messages and decisions that are through, by their routing key or name; and whether they were taken.
    pub through: BTreeMap<String, bool>,
    /// How many half messages of a transaction are durable.
    pub durable: BTreeMap<usize, usize>,
}

impl Client {
    /// Opens a channel, in a mode that the script picks.
    pub fn open(&mut self, script: &mut Script<'_>, number: u16) {
        self.channels.insert(number, Channel::default());
        self.ask(number, id::CHANNEL_OPEN);
        match script.below(4) {
            0 | 1 => self.select(number, Mode::Tx),
            2 => self.select(number, Mode::Confirm),
            _ => {}
        }
    }

    /// Does one thing that it may do on a channel.
    pub fn act(&mut self, script: &mut Script<'_>, number: u16, may_ack_all: bool) {
        if self.is_closing {
            return;
        }
        let Some(channel) = self.channels.get_mut(&number) else { return self.open(script, number) };
        if channel.due.contains(&Due::CloseOk) {
            return;
        }
        if channel.refused {
            method::write_bare(&mut self.out, number, id::CHANNEL_CLOSE_OK);
            return self.open(script, number);
        }
        match (script.below(14), channel.mode) {
            (0, Mode::Plain) => self.select(number, if script.flag() { Mode::Tx } else { Mode::Confirm }),
            (0 | 8, Mode::Tx) => {
                channel.due.push_back(Due::Barrier(channel.transaction.clone()));
                method::write_bare(&mut self.out, number, id::TX_SELECT);
            }
            (1 | 2, Mode::Tx) => {
                let transaction = std::mem::take(&mut channel.transaction);
                channel.settled.clear();
                channel.all_settled = false;
                channel.due.push_back(Due::CommitOk(transaction));
                method::write_bare(&mut self.out, number, id::TX_COMMIT);
            }
            (3, Mode::Tx) => {
                (channel.transaction, channel.all_settled) = (Transaction::default(), false);
                channel.held.append(&mut channel.settled);
                self.ask(number, id::TX_ROLLBACK);
            }
            (4 | 5, _) => self.ack(script, number, may_ack_all),
            (6, _) if script.below(4) == 0 => {
                channel.due.push_back(Due::CloseOk);
                method::write_bare(&mut self.out, number, id::CHANNEL_CLOSE);
            }
            (7, _) if script.below(8) == 0 => {
                Close { code: ReplyCode::SUCCESS, text: b"bye", method: (0, 0) }.write(&mut self.out, 0);
                self.is_closing = true;
            }
            (9, _) => self.ask(number, id::CHANNEL_FLOW),
            (10, _) => self.declare_or_delete(number),
            (11, _) => self.decide(script, number),
            _ => self.publish(script, number),
        }
    }

    fn ask(&mut self, number: u16, id: (u16, u16)) {
        self.channels.entry(number).or_default().due.push_back(Due::Ok((id.0, id.1 + 1)));
        match id {
            id::CHANNEL_OPEN => method::write_channel_open(&mut self.out, number),
            id::CHANNEL_FLOW => method::write_flow(&mut self.out, number),
            _ => method::write_bare(&mut self.out, number, id),
        }
    }

    fn select(&mut self, number: u16, mode: Mode) {
        self.ask(number, if mode == Mode::Tx { id::TX_SELECT } else { id::CONFIRM_SELECT });
        self.channels.entry(number).or_default().mode = mode;
    }

    /// What is published to an exchange is judged behind its declaration and before its deletion.
    fn declare_or_delete(&mut self, number: u16) {
        let channel = self.channels.entry(number).or_default();
        let (method, exchange) = match channel.exchange.take() {
            Some(exchange) => (DELETE, exchange),
            None => {
                self.serial += 1;
                (DECLARE, channel.exchange.insert(format!("e{}", self.serial)).clone())
            }
        };
        channel.due.push_back(Due::Ok((method.0, method.1 + 1)));
        frame::write_method(&mut self.out, number, method, |out| {
            out.put_u16(0);
            out.put_short_string(exchange.as_bytes());
            out.put_u8(0);
        });
    }

    fn ack(&mut self, script: &mut Script<'_>, number: u16, may_ack_all: bool) {
        let Some(channel) = self.channels.get_mut(&number).filter(|channel| !channel.all_settled) else { return };
        let tx = channel.mode == Mode::Tx;
        let all = may_ack_all && tx && channel.due.is_empty() && script.below(4) == 0;
        let (tag, multiple) = match channel.held.len() {
            _ if all && (channel.transaction.halves > 0 || channel.transaction.natives > 0) => (0, true),
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
        if tag == 0 {
            self.acks_all.insert(number);
        }
        if tx {
            channel.settled.append(&mut settled);
        }
        method::write_settle(&mut self.out, number, id::BASIC_ACK, Settle { tag, multiple });
    }

    /// Publishes a message: what it is stands in its routing key, and in its header.
    fn publish(&mut self, script: &mut Script<'_>, number: u16) {
        self.serial += 1;
        let serial = self.serial;
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let (form, says_name) = (script.below(6), script.flag());
        let exchange = channel.exchange.clone().filter(|_| form > 2).unwrap_or_else(|| "x".into());
        let native = || ("".into(), "amq.rabbitmq.reply-to.g1".into(), None);
        let (exchange, routing_key, name): (String, String, Option<String>) = match (channel.mode, form) {
            (Mode::Tx, 0) if channel.transaction.named != Some(true) || !says_name => {
                channel.transaction.natives += 1;
                native()
            }
            (Mode::Tx, _) => {
                let transaction = &mut channel.transaction;
                if transaction.halves == 0 {
                    (transaction.serial, transaction.named) = (serial, Some(says_name));
                }
                transaction.halves += 1;
                let serial = transaction.serial;
                let named = transaction.named == Some(true) && (transaction.halves == 1 || says_name);
                (exchange, format!("t{serial}.{}", script.below(3)), named.then(|| format!("n{serial}")))
            }
            (Mode::Plain | Mode::Confirm, _) if says_name => {
                (exchange, format!("h{serial}"), Some(format!("n{serial}")))
            }
            (Mode::Plain, 0) => native(),
            (Mode::Plain | Mode::Confirm, _) => (exchange, format!("p{serial}"), None),
        };
        let size = [0, 1, 30, 300, 3_000, 9_000][script.below(6)];
        // Now and then a name that can't be one.
        let name = name.map(|name| if script.below(32) == 31 { String::new() } else { name });
        self.send(number, (&exchange, &routing_key), name.as_deref(), size, script.byte() & 1);
        self.count(number, routing_key, name.is_some());
    }

    /// Decides a transaction that somebody else has prepared.
    fn decide(&mut self, script: &mut Script<'_>, number: u16) {
        self.serial += 1;
        let name = format!("d{}", self.serial);
        let routing_key = if script.flag() { "commit" } else { "rollback" };
        self.send(number, ("halfway", routing_key), Some(&name), 0, 0);
        let channel = self.channels.entry(number).or_default();
        match channel.mode {
            Mode::Tx => channel.transaction.decisions.push(name),
            Mode::Plain | Mode::Confirm => self.count(number, name, true),
        }
    }

    fn count(&mut self, number: u16, what: String, special: bool) {
        let channel = self.channels.entry(number).or_default();
        if channel.mode == Mode::Confirm {
            channel.last_tag += 1;
            channel.unconfirmed.insert(channel.last_tag, what.clone());
        }
        if special && channel.mode != Mode::Tx {
            channel.special.push(what);
        }
    }

    fn send(&mut self, number: u16, (exchange, routing_key): (&str, &str), name: Option<&str>, size: usize, flags: u8) {
        let (mut header, mut headers) = (vec![0, 60, 0, 0], Vec::new());
        header.put_u64(size as u64);
        if let Some(name) = name {
            table::write_string(&mut headers, b"x-half-transaction", name.as_bytes());
        }
        header.put_u16(1 << 13);
        header.put_long_string(&headers);
        let publish = Publish { exchange: exchange.as_bytes(), routing_key: routing_key.as_bytes(), flags };
        publish.write(&mut self.out, number);
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

    /// The transaction whose commit runs on a channel now: the first that the store has not decided.
    pub fn committing(&self, number: u16) -> Option<&Transaction> {
        let committing = self.channels.get(&number)?.due.iter().filter_map(|due| match due {
            Due::CommitOk(transaction) if transaction.halves > 0 => Some(transaction),
            _ => None,
        });
        committing.skip(self.channels[&number].decided).next()
    }

    /// What it said about other transactions in one of its own.
    pub fn are_through(&self, transaction: &Transaction) -> bool {
        transaction.decisions.iter().all(|name| self.through.get(name) == Some(&true))
    }

    /// Whether every half message and decision that came before this one on its channel is through.
    pub fn is_next(&self, number: u16, name: &str) -> bool {
        let Some(channel) = self.channels.get(&number).filter(|channel| channel.mode != Mode::Tx) else { return true };
        let mut before = channel.special.iter().take_while(|other| *other != name);
        before.all(|other| self.through.contains_key(other))
    }

    /// Whether it waits for anything that nobody but the proxy and RabbitMQ can give it.
    pub fn waits(&self) -> Option<String> {
        let due = |(number, channel): (&u16, &Channel)| {
            let waits = !channel.refused && !(channel.due.is_empty() && channel.unconfirmed.is_empty());
            waits.then(|| format!("{:?} and {:?} on channel {number}", channel.due, channel.unconfirmed))
        };
        self.channels.iter().find_map(due).filter(|_| !self.is_closing)
    }

    /// A decision outside of transactions that it waits for.
    pub fn decides(&self) -> Option<&String> {
        let open = self.channels.values().filter(|channel| !channel.refused && !self.is_closing);
        open.flat_map(|channel| channel.unconfirmed.values()).find(|what| what.starts_with('d'))
    }

    pub fn receive(&mut self, bytes: &[u8]) {
        let mut stream = std::mem::take(&mut self.stream);
        stream.feed(bytes, |frame| self.frame(frame));
        self.stream = stream;
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        let number = frame.channel;
        trace(|| format!("client <- {}", describe(frame)));
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
        if self.is_closing {
            // As it has to, once it has said connection.close.
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
        if frame.method_id() == Some(id::CHANNEL_CLOSE) {
            let close = Close::parse(frame.arguments()).expect("channel.close");
            let text = String::from_utf8_lossy(close.text);
            assert!(!text.contains("no exchange 'e"), "it published to an exchange that was there: {text}");
        }
        if let Some(id::CHANNEL_CLOSE | id::CHANNEL_CLOSE_OK) = frame.method_id() {
            *self.closes.entry(number).or_default() += 1;
            self.acks_all.remove(&number);
        }
        match frame.method_id().expect("a method") {
            id::BASIC_DELIVER => {
                let (_, tag) = method::deliver_tags(frame.arguments()).expect("basic.deliver");
                assert!(Reader::new(frame.arguments()).short_string().is_ok_and(|consumer| consumer == b"c"));
                channel.held.insert(tag);
                channel.content = Some(None);
            }
            method @ (id::BASIC_ACK | id::BASIC_NACK) => {
                let settle = Settle::parse(frame.arguments()).expect("a settlement");
                channel.confirmed(settle, method == id::BASIC_ACK, &self.through);
            }
            id::BASIC_RETURN => channel.content = Some(None),
            id::CHANNEL_CLOSE if channel.due.contains(&Due::CloseOk) => {
                // Both sides close; each answers the other.
                *channel = Channel { due: VecDeque::from([Due::CloseOk]), ..Channel::default() };
                method::write_bare(&mut self.out, number, id::CHANNEL_CLOSE_OK);
            }
            id::CHANNEL_CLOSE => *channel = Channel { refused: true, ..Channel::default() },
            id::CHANNEL_CLOSE_OK => drop(self.channels.remove(&number)),
            method => match channel.due.pop_front() {
                Some(Due::Ok(due)) if due == method => {}
                Some(Due::Barrier(transaction)) if method == id::TX_SELECT_OK => {
                    let durable = self.durable.get(&transaction.serial).copied().unwrap_or_default();
                    // The answer may wait for the end of a content, while what came behind it is kept.
                    let prepared = transaction.named != Some(true) || durable >= transaction.halves;
                    assert!(prepared, "the barrier is passed with {durable} of {transaction:?} durable");
                }
                Some(Due::CommitOk(transaction)) if method == id::TX_COMMIT_OK => {
                    if transaction.halves > 0 {
                        assert!(channel.decided > 0, "commit-ok on channel {number} before the store has decided");
                        channel.decided -= 1;
                    }
                    assert!(self.are_through(&transaction), "commit-ok before what it says of others is durable");
                }
                due => panic!("{method:?} on channel {number}, where {due:?} is due"),
            },
        }
    }
}

impl Channel {
    /// A confirm: each tag has one, after what it confirms.
    fn confirmed(&mut self, Settle { tag, multiple }: Settle, ack: bool, through: &BTreeMap<String, bool>) {
        let rest = match multiple {
            true => self.unconfirmed.split_off(&(tag + 1)),
            false => {
                let what = self.unconfirmed.remove(&tag).unwrap_or_else(|| panic!("{tag} is settled twice"));
                std::mem::replace(&mut self.unconfirmed, BTreeMap::from([(tag, what)]))
            }
        };
        for (tag, what) in std::mem::replace(&mut self.unconfirmed, rest) {
            assert_eq!(through.get(&what), Some(&ack), "{what} is settled with tag {tag}");
        }
    }
}
