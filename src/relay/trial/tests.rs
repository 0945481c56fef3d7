//! A trial before a RabbitMQ that is played.

use super::*;
use crate::amqp::frame::{self, Split, kind, split};
use crate::amqp::method::{Close, id};
use crate::amqp::properties::tests::empty;
use crate::amqp::wire::Write;
use crate::relay::connection::Lost;
use crate::relay::forward;
use crate::store::Strand;
use crate::tx::batch::{Batch, HalfMessage};
use crate::tx::id::{MessageId, TransactionId};
use uuid::Uuid;

/// What RabbitMQ does about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::relay) enum Says {
    Ack,
    Nack,
    CloseChannel,
    CloseConnection,
}

/// RabbitMQ's end of the connection.
pub(in crate::relay) struct Court {
    pub(in crate::relay) trial: Trial,
    out: Vec<u8>,
    /// How often it closed the channel or the connection.
    pub(in crate::relay) closes: u32,
}

impl Court {
    pub(in crate::relay) fn new() -> Self {
        let (mut trial, mut out) = (Trial::new(), Vec::new());
        trial.connected(&mut out);
        Self { trial, out, closes: 0 }
    }

    fn send(&mut self, now: Instant, write: impl FnOnce(&mut Vec<u8>)) {
        let mut frames = Vec::new();
        write(&mut frames);
        let Split::Frame(frame) = split(&frames, usize::MAX) else { panic!("a whole frame was written") };
        self.trial.handle_frame(frame, &mut self.out, now).unwrap();
    }

    /// Sends what comes next and answers it; says what RabbitMQ looked at.
    pub(in crate::relay) fn round(&mut self, now: Instant, answer: impl Fn(MessageId) -> Says) -> Vec<MessageId> {
        self.trial.fill(&mut self.out, 4096, now);
        let sent = std::mem::take(&mut self.out);
        let (mut rest, mut got) = (&sent[..], Vec::new());
        while let Split::Frame(frame) = split(rest, usize::MAX) {
            if frame.kind == kind::HEADER {
                got.push(forward::read_id(frame.payload).unwrap());
            }
            rest = &rest[frame.raw.len()..];
        }
        for (place, id) in got.clone().into_iter().enumerate() {
            let tag = self.trial.outgoing.tag_of(id).expect("it is in flight");
            match answer(id) {
                Says::CloseChannel => {
                    let close = Close { code: ReplyCode::NOT_FOUND, text: b"gone", method: id::BASIC_PUBLISH };
                    self.closes += 1;
                    self.send(now, |out| close.write(out, 1));
                    got.truncate(place + 1);
                    break;
                }
                Says::CloseConnection => {
                    self.closes += 1;
                    self.trial.closed(ReplyCode::INTERNAL_ERROR, "a crash");
                    self.out.clear();
                    self.trial.connected(&mut self.out);
                    got.truncate(place + 1);
                    break;
                }
                answer => self.send(now, |out| {
                    let method = if answer == Says::Ack { id::BASIC_ACK } else { id::BASIC_NACK };
                    frame::write_method(out, 1, method, |out| {
                        out.put_u64(tag);
                        out.put_u8(0);
                    });
                }),
            }
        }
        got
    }
}

fn message(number: i64) -> Message {
    let mut batch = Batch::default();
    batch.push(HalfMessage { publish: b"\0\0\0\x01q\0", header: &empty(4), body: b"body" });
    Message {
        sequence: Sequence(number),
        source: Source { lane: 0, strand: Strand(number as u32 % 10) },
        id: MessageId { transaction: TransactionId(Uuid::from_u128(number as u128)), index: 0 },
        bytes: batch.into_bytes().into(),
        possible_duplicate: false,
        nacks: 0,
        returned: None,
    }
}

fn number(id: MessageId) -> i64 {
    id.transaction.0.as_u128() as i64
}

/// Tries messages with these numbers; the rulings, the rounds and the closes that it took.
fn try_all(count: i64, answer: impl Fn(i64) -> Says) -> (BTreeMap<i64, Ruling>, u32, u32) {
    let (mut court, now, mut rounds) = (Court::new(), Instant::now(), 0);
    court.trial.add((0..count).map(message).collect());
    while !court.trial.is_idle() {
        court.round(now, |id| answer(number(id)));
        rounds += 1;
    }
    let rulings = court.trial.rulings.drain(..);
    (rulings.map(|(message, ruling)| (message.sequence.0, ruling)).collect(), rounds, court.closes)
}

#[test]
fn the_guilty_one_among_a_thousand_is_found_soon_and_no_innocent_is_condemned() {
    for guilty in [0, 1, 499, 998, 999] {
        for (answer, code) in
            [(Says::CloseChannel, ReplyCode::NOT_FOUND), (Says::CloseConnection, ReplyCode::INTERNAL_ERROR)]
        {
            let (rulings, rounds, closes) = try_all(1000, |it| if it == guilty { answer } else { Says::Ack });
            assert!(rounds < 40 && closes < 15, "{rounds} rounds, {closes} closes");
            for (number, ruling) in rulings {
                match ruling {
                    Ruling::Guilty(found, _) => assert_eq!((number, found), (guilty, code)),
                    ruling => assert_eq!((ruling, number != guilty), (Ruling::Taken, true)),
                }
            }
        }
    }
}

#[test]
fn each_of_many_guilty_ones_costs_a_round() {
    let (rulings, rounds, _) = try_all(1000, |_| Says::CloseChannel);
    assert!(rulings.values().all(|ruling| matches!(ruling, Ruling::Guilty(..))));
    assert!(rounds <= 1010, "{rounds}");
}

#[test]
fn a_connection_that_others_end_says_nothing_of_a_message_and_once_is_not_enough() {
    let (mut court, now) = (Court::new(), Instant::now());
    court.trial.add(vec![message(1)]);
    for _ in 0..10 {
        court.trial.fill(&mut court.out, 4096, now);
        court.trial.disconnected();
        court.trial.connected(&mut court.out);
    }
    court.trial.fill(&mut court.out, 4096, now);
    court.trial.closed(ReplyCode::INTERNAL_ERROR, "not its fault");
    assert_eq!(court.trial.rulings.len(), 0);
    court.out.clear();
    court.trial.connected(&mut court.out);
    assert_eq!(court.round(now, |_| Says::Ack).len(), 1);
    assert!(matches!(court.trial.rulings[..], [(_, Ruling::Taken)]));
}

#[test]
fn an_operators_word_and_an_accounts_limit_accuse_nobody() {
    for (code, accuses) in [
        (ReplyCode::CONNECTION_FORCED, false),
        (ReplyCode::NOT_ALLOWED, false),
        (ReplyCode::INTERNAL_ERROR, true),
        (ReplyCode::FRAME_ERROR, true),
    ] {
        assert_eq!(Lost::Closed(code, String::new()).accuses(), accuses, "{code}");
    }
    assert!(!Lost::Silent.accuses());
}

#[test]
fn what_is_behind_a_nacked_one_of_its_channel_goes_back_untried() {
    let (mut court, now) = (Court::new(), Instant::now());
    court.trial.add((0..30).map(message).collect());
    while !court.trial.is_idle() {
        court.round(now, |id| if number(id) == 3 { Says::Nack } else { Says::Ack });
    }
    for (message, ruling) in court.trial.rulings.drain(..) {
        match message.sequence.0 {
            3 => assert_eq!(ruling, Ruling::Nacked),
            13 | 23 => assert_eq!(ruling, Ruling::Untried),
            _ => assert_eq!(ruling, Ruling::Taken),
        }
    }
}

#[test]
fn what_rabbitmq_says_nothing_to_is_acquitted() {
    let (mut court, now) = (Court::new(), Instant::now());
    court.trial.add(vec![message(1), message(2)]);
    court.trial.fill(&mut court.out, 4096, now);
    assert_eq!(court.trial.oldest_since(), Some(now));
    court.trial.acquit();
    assert!(matches!(court.trial.rulings[..], [(_, Ruling::Acquitted)]));
}
