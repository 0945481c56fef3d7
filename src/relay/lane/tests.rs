//! A lane against a RabbitMQ that is played: frames in, frames out, and a clock that is set by hand.

mod aside;
mod damage;
mod lone;
mod refusals;
mod returns;

use super::*;
use crate::amqp::frame::{self, Split, kind, split};
use crate::amqp::method::{self, Close, Publish, Return, id};
use crate::amqp::properties::tests::empty;
use crate::amqp::properties::{Properties, body_size, copy_entries};
use crate::amqp::table;
use crate::amqp::wire::Write;
use crate::histogram::{Histogram, LATENCIES};
use crate::relay::forward;
use crate::relay::message::Source;
use crate::relay::status::Counters;
use crate::relay::trial::tests::{Court, Says};
use crate::store::{Committed, Cursor, Forwarded, Lane as LaneName, Pack, Strand, Wait};
use crate::tx::batch::{Batch, HalfMessage};
use crate::tx::id::TransactionId;
use bytes::Bytes;
use proptest::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::oneshot;
use uuid::Uuid;

const CHANNEL: u16 = 4;
const LANE: u16 = CHANNEL - 1;
const FRAME_BYTES_MAX: u32 = 4096;
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
const NACK_PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// A message that RabbitMQ got.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Got {
    id: MessageId,
    possible_duplicate: bool,
    header: Vec<u8>,
    routing_key: String,
}

/// RabbitMQ's end of the channel.
struct Rabbit {
    lane: Lane,
    now: Instant,
    out: Vec<u8>,
    status: Arc<VhostStatus>,
    /// The tag of the last message that was taken off `out` on this channel.
    tag: u64,
    receivers: BTreeMap<i64, oneshot::Receiver<Forwarded>>,
    /// What is committed: of which strand, how many messages, and whether it stepped aside.
    store: BTreeMap<i64, (u32, u32, bool)>,
}

fn source(strand: u32) -> Source {
    Source { lane: LANE, strand: Strand(strand) }
}

fn policy(window: usize, keep_unroutable: bool) -> Policy {
    Policy { window, nack_pauses: &NACK_PAUSES, confirm_timeout: CONFIRM_TIMEOUT, keep_unroutable }
}

fn transaction_id(sequence: i64) -> TransactionId {
    TransactionId(Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0000 + sequence as u128))
}

fn messages(count: u32, mandatory: bool) -> Bytes {
    messages_of(count, mandatory, b"body")
}

fn messages_of(count: u32, mandatory: bool, body: &[u8]) -> Bytes {
    let mut batch = Batch::default();
    for number in 0..count {
        let routing_key = format!("key-{number}");
        let mut publish = Vec::new();
        publish.put_u16(0);
        publish.put_short_string(b"");
        publish.put_short_string(routing_key.as_bytes());
        publish.put_u8(mandatory.into());
        batch.push(HalfMessage { publish: &publish, header: &empty(body.len() as u64), body });
    }
    batch.into_bytes().into()
}

fn pack(sequence: i64, number: u32, count: u32, last: bool) -> Pack {
    let messages = Stored::Sound(messages(count, false));
    let first_index = number * count;
    Pack {
        sequence: Sequence(sequence),
        id: transaction_id(sequence),
        strand: Strand(0),
        number,
        first_index,
        last,
        decided_at: None,
        retried: false,
        messages,
    }
}

impl Rabbit {
    fn new(policy: Policy) -> Self {
        let status = Arc::new(VhostStatus::new(Histogram::new(LATENCIES)));
        let mut rabbit = Self {
            lane: Lane::new(CHANNEL, policy, Arc::clone(&status)),
            now: Instant::now(),
            out: Vec::new(),
            status,
            tag: 0,
            receivers: BTreeMap::new(),
            store: BTreeMap::new(),
        };
        rabbit.connect();
        assert_eq!(rabbit.read().0, [id::CHANNEL_OPEN, id::CONFIRM_SELECT]);
        rabbit
    }

    fn connect(&mut self) {
        self.lane.connected(&mut self.out);
    }

    fn disconnect(&mut self) {
        self.lane.disconnected(false, self.now);
        self.out.clear();
        self.tag = 0;
    }

    fn commit(&mut self, sequence: i64, count: u32) {
        self.commit_with(sequence, count, false);
    }

    fn commit_with(&mut self, sequence: i64, count: u32, mandatory: bool) {
        self.commit_from(0, sequence, count, mandatory);
    }

    fn commit_from(&mut self, strand: u32, sequence: i64, count: u32, mandatory: bool) {
        self.store.insert(sequence, (strand, count, false));
        let (sender, receiver) = Waiter::pair(Wait::new(mandatory));
        self.receivers.insert(sequence, receiver);
        self.lane.add_committed(Committed {
            sequence: Sequence(sequence),
            id: transaction_id(sequence),
            lane: LaneName::new("/".into(), LANE),
            strand: Strand(strand),
            decided: self.now,
            messages: Some(messages(count, mandatory)),
            forwarded: Some(sender),
        });
    }

    /// The store does what the lane wants of it; its pages hold two transactions.
    fn ask_store(&mut self) {
        while let Some((source, transactions)) = self.lane.next_marks() {
            for sequence in transactions {
                let row = self.store.get_mut(&sequence.0).expect("it is not delivered");
                assert_eq!(row.0, source.strand.0);
                row.2 = true;
            }
            self.lane.marked(source, self.now);
        }
        while let Some((source, after)) = self.lane.next_page() {
            let is_wanted = |(sequence, row): &(&i64, &(u32, u32, bool))| {
                let cursor = Cursor { sequence: Sequence(**sequence), pack: 0 };
                row.0 == source.strand.0 && row.2 && after.is_none_or(|after| cursor > after)
            };
            let from = after.map_or(0, |after| after.sequence.0);
            let found = self.store.range(from..).filter(is_wanted).take(2);
            let packs: Vec<_> = found
                .map(|(sequence, (strand, count, _))| Pack {
                    strand: Strand(*strand),
                    ..pack(*sequence, 0, *count, true)
                })
                .collect();
            if self.lane.page(source, after, Some(&packs), self.now) {
                for pack in packs {
                    self.lane.add_aside(source, pack, false, self.now);
                }
            }
        }
    }

    /// Has tried what is under suspicion; what RabbitMQ got.
    fn try_suspects(&mut self, answer: impl Fn(MessageId) -> Says) -> Vec<(i64, u32)> {
        let (mut court, mut got) = (Court::new(), Vec::new());
        loop {
            self.ask_store();
            self.lane.fill(&mut self.out, 1 << 20, FRAME_BYTES_MAX, self.now);
            court.trial.add(self.lane.take_suspects());
            if court.trial.is_idle() {
                return got;
            }
            got.extend(court.round(self.now, &answer).into_iter().map(|id| (sequence_of_id(id), id.index)));
            for (message, ruling) in std::mem::take(&mut court.trial.rulings) {
                self.lane.tried(message, ruling, self.now);
            }
        }
    }

    /// The methods and messages that the lane has written, and may write now.
    fn read(&mut self) -> (Vec<(u16, u16)>, Vec<Got>) {
        self.lane.fill(&mut self.out, 1 << 20, FRAME_BYTES_MAX, self.now);
        let (mut methods, mut got, mut routing_key) = (Vec::new(), Vec::new(), String::new());
        let mut rest = &self.out[..];
        while let Split::Frame(frame) = split(rest, usize::MAX) {
            assert_eq!(frame.channel, CHANNEL);
            if let Some(id::BASIC_PUBLISH) = frame.method_id() {
                let publish = Publish::parse(frame.arguments()).unwrap();
                assert!(publish.mandatory());
                routing_key = String::from_utf8(publish.routing_key.to_vec()).unwrap();
            } else if let Some(id) = frame.method_id() {
                methods.push(id);
            } else if frame.kind == kind::HEADER {
                let headers = Properties::parse(frame.payload).unwrap().headers().unwrap();
                got.push(Got {
                    id: forward::read_id(frame.payload).unwrap(),
                    possible_duplicate: table::find(headers, forward::POSSIBLE_DUPLICATE).is_some(),
                    header: frame.payload.to_vec(),
                    routing_key: routing_key.clone(),
                });
            }
            rest = &rest[frame.raw.len()..];
        }
        assert!(rest.is_empty());
        self.out.clear();
        self.tag += got.len() as u64;
        (methods, got)
    }

    /// Transaction, index and flag of the messages that came.
    fn got(&mut self) -> Vec<(i64, u32, bool)> {
        let (methods, got) = self.read();
        assert_eq!(methods, []);
        got.iter().map(|got| (sequence_of(got), got.id.index, got.possible_duplicate)).collect()
    }

    fn send(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), Fault> {
        let mut frames = Vec::new();
        write(&mut frames);
        let mut rest = &frames[..];
        while let Split::Frame(frame) = split(rest, usize::MAX) {
            self.lane.handle_frame(frame, &mut self.out, self.now)?;
            rest = &rest[frame.raw.len()..];
        }
        Ok(())
    }

    fn settle(&mut self, method: (u16, u16), tag: u64, multiple: bool) {
        self.send(|out| {
            frame::write_method(out, CHANNEL, method, |out| {
                out.put_u64(tag);
                out.put_u8(multiple.into());
            });
        })
        .unwrap();
    }

    fn ack(&mut self, tag: u64) {
        self.settle(id::BASIC_ACK, tag, false);
    }

    fn ack_all(&mut self) {
        self.settle(id::BASIC_ACK, self.tag, true);
    }

    fn nack(&mut self, tag: u64) {
        self.settle(id::BASIC_NACK, tag, false);
    }

    /// Refuses a publish: the channel is closed, and what comes on it is ignored until it is open again.
    fn refuse(&mut self) {
        self.lane.fill(&mut self.out, 1 << 20, FRAME_BYTES_MAX, self.now);
        let text = b"NOT_FOUND - no exchange 'x' in vhost '/'";
        let close = Close { code: ReplyCode::NOT_FOUND, text, method: id::BASIC_PUBLISH };
        self.out.clear();
        self.send(|out| close.write(out, CHANNEL)).unwrap();
        self.tag = 0;
    }

    fn give_back(&mut self, got: &Got) {
        self.send(|out| {
            let (exchange, routing_key) = (&b""[..], got.routing_key.as_bytes());
            Return { code: ReplyCode::NO_ROUTE, text: b"NO_ROUTE", exchange, routing_key }.write(out, CHANNEL);
            let body = vec![b'x'; body_size(&got.header).unwrap() as usize];
            frame::write_content(out, CHANNEL, &got.header, &body, FRAME_BYTES_MAX);
        })
        .unwrap();
    }

    fn delivered(&mut self) -> Vec<i64> {
        self.ask_store();
        let delivered: Vec<_> = std::mem::take(&mut self.lane.delivered).into_iter().map(|it| it.0).collect();
        for sequence in &delivered {
            self.store.remove(sequence);
        }
        delivered
    }

    fn dead_letters(&mut self) -> Vec<(i64, u32, u16)> {
        let letters = self.lane.take_dead_letters();
        letters.iter().map(|letter| (letter.sequence.0, letter.index, letter.reply_code)).collect()
    }

    fn is_stalled(&self) -> bool {
        self.count(|it| &it.stalled_lanes) == 1
    }

    fn count(&self, counter: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        counter(&self.status.counters).load(Ordering::Relaxed)
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.lane.handle_timeout(&mut self.out, self.now).unwrap();
    }
}

fn sequence_of(got: &Got) -> i64 {
    sequence_of_id(got.id)
}

fn sequence_of_id(id: MessageId) -> i64 {
    (id.transaction.0.as_u128() & 0xffff_ffff) as i64
}

#[test]
fn messages_leave_pipelined_in_order_up_to_the_window() {
    let mut rabbit = Rabbit::new(policy(3, false));
    rabbit.commit(1, 2);
    rabbit.commit(2, 2);
    assert_eq!(rabbit.got(), [(1, 0, false), (1, 1, false), (2, 0, false)]);
    assert_eq!(rabbit.got(), []);
    rabbit.ack(1);
    assert_eq!(rabbit.got(), [(2, 1, false)]);
    assert!(rabbit.delivered().is_empty());
    rabbit.ack_all();
    assert_eq!(rabbit.delivered(), [1, 2]);
    assert_eq!(rabbit.receivers.get_mut(&2).unwrap().try_recv(), Ok(Forwarded::default()));
    assert!(rabbit.lane.is_settled() && rabbit.lane.transactions.is_empty());
    assert_eq!((rabbit.lane.unsent_bytes(), rabbit.lane.outgoing.bytes()), (0, 0));
}

#[test]
fn a_transaction_that_is_confirmed_early_does_not_wait_for_the_one_before() {
    let mut rabbit = Rabbit::new(policy(100, false));
    rabbit.commit(1, 1);
    rabbit.commit(2, 1);
    rabbit.read();
    rabbit.ack(2);
    assert_eq!(rabbit.delivered(), [2]);
    assert!(rabbit.receivers.get_mut(&1).unwrap().try_recv().is_err());
}

#[test]
fn a_transaction_in_packs_is_delivered_with_its_last() {
    let mut rabbit = Rabbit::new(policy(100, false));
    rabbit.lane.add_pack(LANE, pack(1, 0, 2, false), true, rabbit.now);
    assert_eq!(rabbit.got(), [(1, 0, true), (1, 1, true)]);
    rabbit.ack_all();
    assert!(rabbit.delivered().is_empty());
    rabbit.lane.add_pack(LANE, pack(1, 1, 2, true), true, rabbit.now);
    let (sender, mut receiver) = Waiter::pair(Wait::default());
    rabbit.lane.attach(Sequence(1), source(0), sender);
    assert_eq!(rabbit.got(), [(1, 2, true), (1, 3, true)]);
    rabbit.ack_all();
    assert_eq!(rabbit.delivered(), [1]);
    assert_eq!(receiver.try_recv(), Ok(Forwarded::default()));
}

#[test]
fn how_long_forwarding_takes_is_counted_from_the_decision_to_the_last_answer() {
    let mut rabbit = Rabbit::new(policy(100, false));
    rabbit.commit(1, 2);
    rabbit.read();
    rabbit.ack(1);
    assert_eq!(rabbit.status.forwarded.snapshot().count(), 0);
    rabbit.wait(Duration::from_millis(700));
    rabbit.ack(2);
    let decided = rabbit.now.checked_sub(Duration::from_secs(4)).unwrap();
    rabbit.lane.add_pack(LANE, pack(2, 0, 1, true), false, decided);
    rabbit.read();
    rabbit.ack(3);
    let counted = rabbit.status.forwarded.snapshot().buckets.into_iter().filter(|(_, count)| *count > 0);
    assert_eq!(counted.collect::<Vec<_>>(), [(1.0, 1), (5.0, 1)]);
}

#[test]
fn after_a_lost_connection_what_is_unconfirmed_goes_first_and_marked() {
    let mut rabbit = Rabbit::new(policy(3, false));
    rabbit.commit(1, 5);
    rabbit.read();
    rabbit.ack(2);
    rabbit.disconnect();
    assert_eq!(rabbit.got(), []);
    rabbit.commit(2, 1);
    rabbit.connect();
    let (_, got) = rabbit.read();
    let got: Vec<_> = got.iter().map(|got| (sequence_of(got), got.id.index, got.possible_duplicate)).collect();
    assert_eq!(got, [(1, 0, true), (1, 2, true), (1, 3, false)]);
    rabbit.ack_all();
    assert_eq!(rabbit.got(), [(1, 4, false), (2, 0, false)]);
}

#[test]
fn a_confirm_that_does_not_come_starts_the_channel_anew_ever_more_patiently() {
    let mut rabbit = Rabbit::new(policy(3, false));
    rabbit.commit(1, 1);
    rabbit.read();
    let mut patience = CONFIRM_TIMEOUT;
    for _ in 0..8 {
        rabbit.wait(patience - Duration::from_millis(1));
        assert_eq!(rabbit.got(), []);
        rabbit.wait(Duration::from_millis(1));
        assert!(rabbit.is_stalled());
        assert_eq!(rabbit.read().0, [id::CHANNEL_CLOSE]);
        rabbit.send(|out| method::write_bare(out, CHANNEL, id::CHANNEL_CLOSE_OK)).unwrap();
        rabbit.tag = 0;
        let (methods, got) = rabbit.read();
        assert_eq!(methods, [id::CHANNEL_OPEN, id::CONFIRM_SELECT]);
        assert!(got.len() == 1 && got[0].possible_duplicate);
        patience = (patience * 2).min(CONFIRM_TIMEOUT_MAX);
    }
    rabbit.ack(1);
    assert!(!rabbit.is_stalled());
    assert_eq!(rabbit.delivered(), [1]);
    assert_eq!(rabbit.lane.confirm_timeout, CONFIRM_TIMEOUT);
}

#[test]
fn one_message_without_a_confirm_is_noticed_among_many_with_one() {
    let mut rabbit = Rabbit::new(policy(1000, false));
    rabbit.commit(1, 100);
    rabbit.read();
    for tag in 2..=31 {
        rabbit.ack(tag);
        rabbit.wait(Duration::from_secs(1));
    }
    assert!(rabbit.is_stalled());
}

#[test]
fn while_rabbitmq_is_blocked_no_confirm_is_owed() {
    let mut rabbit = Rabbit::new(policy(100, false));
    rabbit.commit(1, 1);
    rabbit.read();
    rabbit.lane.set_blocked(true, rabbit.now);
    rabbit.commit(2, 1);
    rabbit.wait(CONFIRM_TIMEOUT * 3);
    assert_eq!(rabbit.got(), []);
    rabbit.lane.set_blocked(false, rabbit.now);
    assert_eq!(rabbit.got(), [(2, 0, false)]);
    rabbit.wait(CONFIRM_TIMEOUT - Duration::from_millis(1));
    assert!(!rabbit.is_stalled());
    rabbit.wait(Duration::from_millis(1));
    assert!(rabbit.is_stalled());
    rabbit.commit(3, 1);
    for sequence in 1..=3 {
        let told = rabbit.receivers.get_mut(&sequence).unwrap().try_recv();
        assert_eq!(told, Err(oneshot::error::TryRecvError::Closed), "nobody waits for a lane that is stalled");
    }
    rabbit.now += CLOSE_TIMEOUT;
    assert!(matches!(rabbit.lane.handle_timeout(&mut rabbit.out, rabbit.now), Err(Fault::NoCloseOk)));
}

proptest! {
    /// Whatever goes wrong: everything arrives, in order by first arrival, and only marked copies arrive twice. What is
    /// nacked may be overtaken by what was in flight with it, so there are no nacks here.
    #[test]
    fn all_arrive_in_order_whatever_goes_wrong(
        steps in proptest::collection::vec((0u8..10, 1u64..20), 1..150),
        poison in proptest::collection::btree_set((1i64..12, 0u32..4), 0..4),
    ) {
        let mut rabbit = Rabbit::new(policy(5, false));
        let (mut taken, mut unconfirmed, mut sequence) = (Vec::new(), Vec::new(), 0);
        let (mut committed, mut delivered, mut dead) = (Vec::new(), Vec::new(), Vec::new());
        let settle = std::iter::repeat_n((9u8, 20u64), 400);
        for (step, number) in steps.into_iter().chain(settle) {
            match step {
                0 | 1 => {
                    sequence += 1;
                    let count = number as u32 % 4;
                    rabbit.commit(sequence, count);
                    committed.extend((0..count).map(|index| (sequence, index)));
                }
                2 => {
                    rabbit.disconnect();
                    unconfirmed.clear();
                    rabbit.connect();
                }
                3 => rabbit.wait(CONFIRM_TIMEOUT),
                _ => {}
            }
            let (methods, got) = rabbit.read();
            let mut refused = false;
            for method in methods {
                match method {
                    id::CHANNEL_CLOSE => {
                        rabbit.send(|out| method::write_bare(out, CHANNEL, id::CHANNEL_CLOSE_OK)).unwrap();
                        unconfirmed.clear();
                        rabbit.tag = 0;
                    }
                    id::CHANNEL_OPEN => unconfirmed.clear(),
                    _ => {}
                }
            }
            for got in got {
                let place = (sequence_of(&got), got.id.index);
                if poison.contains(&place) {
                    refused = true;
                    break;
                }
                taken.push((place, got.possible_duplicate));
                unconfirmed.push(got);
            }
            if refused {
                rabbit.refuse();
                unconfirmed.clear();
            } else if step >= 4 && !unconfirmed.is_empty() {
                let last = rabbit.tag;
                let first = last - unconfirmed.len() as u64 + 1;
                rabbit.settle(id::BASIC_ACK, (first + number - 1).min(last), true);
                unconfirmed.drain(..(number as usize).min(unconfirmed.len()));
            }
            let tried = rabbit.try_suspects(|id| match poison.contains(&(sequence_of_id(id), id.index)) {
                    true => Says::CloseChannel,
                    false => Says::Ack,
                });
            taken.extend(tried.into_iter().filter(|place| !poison.contains(place)).map(|place| (place, true)));
            for (sequence, index, _) in rabbit.dead_letters() {
                dead.push((sequence, index));
                rabbit.lane.dead_letter_kept(Sequence(sequence), rabbit.now);
            }
            delivered.extend(rabbit.delivered());
        }
        delivered.sort_unstable();
        prop_assert_eq!(delivered, (1..=sequence).collect::<Vec<_>>());
        let mut seen: Vec<(i64, u32)> = Vec::new();
        for (key, possible_duplicate) in taken {
            if seen.contains(&key) {
                prop_assert!(possible_duplicate, "{key:?} came twice, unmarked");
            } else {
                seen.push(key);
            }
        }
        let (poisoned, fine): (Vec<_>, Vec<_>) = committed.into_iter().partition(|key| poison.contains(key));
        prop_assert_eq!(seen, fine);
        prop_assert_eq!(dead, poisoned);
    }
}
