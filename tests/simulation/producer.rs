//! A producer: it prepares messages, commits its database, and decides; over sessions that may end at any byte.

use crate::broker::{Broker, News, Place};
use crate::login;
use crate::stream::Stream;
use pure::amqp::frame;
use pure::amqp::method::{self, Publish, Settle, id};
use pure::amqp::table;
use pure::amqp::wire::Write;
use pure::protocol::command::ConnectionSettings;
use pure::protocol::connection::Connection;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How a transaction is published and decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    /// Named, on a transactional channel, with the barrier.
    Named,
    /// Half messages on a confirm channel, decided by the control exchange.
    Half,
}

/// How far the producer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// Its messages are sent; it waits until they are durable.
    Preparing,
    /// Its database has decided, and it has said so.
    Deciding,
    /// It was told that the decision is durable.
    Told,
}

#[derive(Debug)]
pub(crate) struct Story {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) messages: usize,
    pub(crate) commits: bool,
    pub(crate) step: Step,
    /// Confirms to come.
    acks: usize,
}

impl Story {
    pub(crate) fn bodies(&self) -> impl Iterator<Item = String> {
        (0..self.messages).map(|index| format!("{}.{index}", self.name))
    }

    pub(crate) fn channel(&self) -> u16 {
        if self.kind == Kind::Half { 2 } else { 1 }
    }
}

/// What a frame told the producer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Everything that was published is durable.
    Prepared,
    /// The decision is.
    Decided,
    /// So many of the half messages are.
    Kept(usize),
    /// The channel or the connection is over.
    Ended,
}

pub(crate) struct Session {
    pub(crate) number: u64,
    pub(crate) connection: Connection,
    pub(crate) broker: Broker,
    pub(crate) judged: HashSet<Place>,
    pub(crate) story: Option<Story>,
    out: Vec<u8>,
    input: Vec<u8>,
    stream: Stream,
    is_ready: usize,
}

impl Session {
    pub(crate) fn open(number: u64, settings: ConnectionSettings, now: Instant) -> Self {
        let mut connection = Connection::new(settings, now, now + Duration::from_secs(10));
        login::log_in(&mut connection, "orders", "/", 2047);
        let mut out = Vec::new();
        for channel in [1, 2] {
            method::write_channel_open(&mut out, channel);
        }
        method::write_bare(&mut out, 1, id::TX_SELECT);
        method::write_bare(&mut out, 2, id::CONFIRM_SELECT);
        let (broker, judged, stream) = (Broker::new(2047), HashSet::new(), Stream::default());
        Self { number, connection, broker, judged, story: None, out, input: Vec::new(), stream, is_ready: 0 }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready == 4 && self.story.is_none()
    }

    fn publish(&mut self, channel: u16, exchange: &str, key: &str, name: Option<&str>, body: &str) {
        let (mut header, mut headers) = (vec![0, 60, 0, 0], Vec::new());
        header.put_u64(body.len() as u64);
        if let Some(name) = name {
            table::write_string(&mut headers, b"x-half-transaction", name.as_bytes());
        }
        header.put_u16(1 << 13);
        header.put_long_string(&headers);
        let publish = Publish { exchange: exchange.as_bytes(), routing_key: key.as_bytes(), flags: 0 };
        publish.write(&mut self.out, channel);
        frame::write_content(&mut self.out, channel, &header, body.as_bytes(), 4096);
    }

    /// Publishes; where it is to be asked whether all is durable, asks.
    pub(crate) fn begin(&mut self, name: String, kind: Kind, messages: usize, commits: bool) {
        let story = Story { name, kind, messages, commits, step: Step::Preparing, acks: messages };
        let named = (kind != Kind::Plain).then(|| story.name.clone());
        for body in story.bodies() {
            self.publish(story.channel(), "x", &body, named.as_deref(), &body);
        }
        self.story = Some(story);
        match kind {
            Kind::Plain => self.decide(commits),
            Kind::Named => method::write_bare(&mut self.out, 1, id::TX_SELECT),
            Kind::Half => {}
        }
    }

    /// The database has decided.
    pub(crate) fn decide(&mut self, commits: bool) {
        let Some(story) = &mut self.story else { return };
        (story.step, story.commits, story.acks) = (Step::Deciding, commits, 1);
        let name = story.name.clone();
        match story.kind {
            Kind::Half => self.publish(2, "halfway", if commits { "commit" } else { "rollback" }, Some(&name), ""),
            _ => method::write_bare(&mut self.out, 1, if commits { id::TX_COMMIT } else { id::TX_ROLLBACK }),
        }
    }

    /// Moves at most so many bytes of the producer, and so many answers of RabbitMQ.
    pub(crate) fn pump(&mut self, bytes: usize, answers: usize) {
        self.input.extend(self.out.drain(..bytes.min(self.out.len())));
        while !self.input.is_empty() && self.connection.wants_client() {
            let used = self.connection.handle_client(&self.input);
            self.input.drain(..used);
            if used == 0 {
                break;
            }
        }
        self.broker.receive(&std::mem::take(&mut self.connection.io.to_upstream));
        for _ in 0..answers {
            let Some((answer, News { judged, .. })) = self.broker.next_answer() else { break };
            self.judged.extend(judged);
            self.connection.handle_upstream(&answer);
        }
        self.broker.receive(&std::mem::take(&mut self.connection.io.to_upstream));
    }

    /// What the producer is told.
    pub(crate) fn listen(&mut self) -> Vec<Told> {
        let bytes = std::mem::take(&mut self.connection.io.to_client);
        let (mut told, story, is_ready) = (Vec::new(), &mut self.story, &mut self.is_ready);
        self.stream.feed(&bytes, |frame| match frame.method_id() {
            Some(id::CHANNEL_CLOSE | id::CONNECTION_CLOSE) => told.push(Told::Ended),
            _ if *is_ready < 4 => *is_ready += 1,
            Some(id::TX_SELECT_OK) => told.push(Told::Prepared),
            Some(id::TX_COMMIT_OK | id::TX_ROLLBACK_OK) => told.push(Told::Decided),
            Some(id::BASIC_ACK) => {
                let story = story.as_mut().expect("what is confirmed was published");
                assert!(Settle::parse(frame.arguments()).is_ok_and(|settle| !settle.multiple));
                story.acks -= 1;
                match (story.step, story.acks) {
                    (Step::Preparing, 0) => told.push(Told::Prepared),
                    (Step::Preparing, left) => told.push(Told::Kept(story.messages - left)),
                    _ => told.push(Told::Decided),
                }
            }
            other => panic!("{other:?}"),
        });
        told
    }
}
