//! Transactions of one message that RabbitMQ is given before the store.

use super::super::lone::MOMENT;
use super::*;
use crate::store::{Commit, Committing, Origin, StoreError};
use crate::tx::id::Timestamp;

type Told = oneshot::Receiver<Result<Committing, StoreError>>;

impl Rabbit {
    fn opened(policy: Policy) -> Self {
        let mut rabbit = Self::new(policy);
        rabbit.open();
        rabbit
    }

    fn open(&mut self) {
        self.send(|out| frame::write_method(out, CHANNEL, id::CHANNEL_OPEN_OK, |out| out.put_u32(0))).unwrap();
    }

    /// Hands on a transaction of one message that nobody has; none: the store has to have it first.
    fn lone(&mut self, strand: u32, number: i64, mandatory: bool) -> Option<(Told, oneshot::Receiver<Forwarded>)> {
        let origin = Origin {
            id: transaction_id(number),
            user: "guest".into(),
            lane: LaneName::new("/".into(), LANE),
            strand: Strand(strand),
            created_at: Timestamp(0),
            named: None,
        };
        let mut batch = Batch::default();
        let messages = messages(1, mandatory);
        batch::iter(&messages).for_each(|message| batch.push(message.unwrap()));
        let (waiter, forwarded) = Waiter::pair(Wait::new(mandatory));
        let (answer, told) = oneshot::channel();
        let commit = Commit { origin, batch, parked: false, forwarded: Some(waiter) };
        let lone = Lone { commit, answer, since: self.now };
        self.lane.fill(&mut self.out, 1 << 20, FRAME_BYTES_MAX, self.now);
        self.lane.send_lone(lone, &mut self.out, FRAME_BYTES_MAX, self.now).is_ok().then_some((told, forwarded))
    }

    /// Of which the store is asked now.
    fn kept_next(&mut self) -> Vec<i64> {
        let now = self.now;
        let asked = std::iter::from_fn(|| self.lane.next_to_keep(now));
        asked.map(|commit| (commit.origin.id.0.as_u128() & 0xffff_ffff) as i64).collect()
    }

    /// The store has it, as the row of this number.
    fn row(&mut self, strand: u32, number: i64, sequence: i64) {
        self.store.insert(sequence, (strand, 1, false));
        self.lane.add_committed(Committed {
            sequence: Sequence(sequence),
            id: transaction_id(number),
            lane: LaneName::new("/".into(), LANE),
            strand: Strand(strand),
            decided: self.now,
            messages: Some(messages(1, false)),
            forwarded: None,
        });
    }
}

fn kept(sequence: i64) -> Result<Committing, StoreError> {
    Ok(Committing::Now(Sequence(sequence)))
}

#[test]
fn what_rabbitmq_takes_within_a_moment_is_never_kept() {
    let mut rabbit = Rabbit::opened(policy(100, false));
    let (mut told, mut forwarded) = rabbit.lone(7, 1, false).unwrap();
    assert_eq!(rabbit.got(), [(1, 0, false)]);
    rabbit.wait(MOMENT - Duration::from_millis(1));
    assert!(rabbit.kept_next().is_empty());
    assert!(told.try_recv().is_err());
    rabbit.ack(1);
    assert!(matches!(told.try_recv(), Ok(Ok(Committing::Forwarded { asked: false }))));
    assert_eq!(forwarded.try_recv(), Ok(Forwarded::default()));
    rabbit.wait(MOMENT);
    assert!(rabbit.kept_next().is_empty());
    assert_eq!((rabbit.delivered(), rabbit.lane.deadline()), (vec![], None));
    assert!(rabbit.lane.is_empty());
    assert_eq!(rabbit.count(|it| &it.direct), 1);
}

#[test]
fn what_it_does_not_answer_for_is_kept_and_is_a_row_like_any_other() {
    // The row comes, the store's word comes, RabbitMQ's comes: in each order.
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut rabbit = Rabbit::opened(policy(100, false));
        let (mut told, _forwarded) = rabbit.lone(7, 1, false).unwrap();
        assert_eq!(rabbit.got(), [(1, 0, false)]);
        assert!(rabbit.lane.deadline().is_some_and(|deadline| deadline <= rabbit.now + MOMENT));
        rabbit.wait(MOMENT);
        assert_eq!(rabbit.kept_next(), [1]);
        assert!(!rabbit.lane.is_settled());
        for step in order {
            match step {
                0 => rabbit.row(7, 1, 30),
                1 => assert!(!rabbit.lane.lone_kept(transaction_id(1), kept(30))),
                _ => rabbit.ack(1),
            }
            let asked = matches!(told.try_recv(), Ok(Ok(Committing::Forwarded { asked: true } | Committing::Now(_))));
            assert_eq!(asked, step == order[0], "{order:?}: the first of them is told, and no other");
        }
        assert_eq!(rabbit.got(), [], "{order:?}");
        assert_eq!((rabbit.delivered(), rabbit.lane.is_empty()), (vec![30], true), "{order:?}");
    }
}

#[test]
fn a_row_that_was_read_back_from_the_store_is_known_too() {
    let mut rabbit = Rabbit::opened(policy(100, false));
    let _told = rabbit.lone(0, 1, false).unwrap();
    rabbit.wait(MOMENT);
    assert_eq!((rabbit.got().len(), rabbit.kept_next()), (1, vec![1]));
    rabbit.lane.add_pack(LANE, Pack { sequence: Sequence(30), ..pack(1, 0, 1, true) }, false, rabbit.now);
    assert_eq!(rabbit.got(), []);
    rabbit.ack(1);
    assert_eq!(rabbit.delivered(), [30]);
}

#[test]
fn what_rabbitmq_refuses_before_it_is_kept_is_refused_as_rabbitmq_does() {
    let mut rabbit = Rabbit::opened(policy(100, false));
    let (mut told, _forwarded) = rabbit.lone(7, 1, false).unwrap();
    rabbit.read();
    rabbit.refuse();
    let Ok(Err(StoreError::Refused(code, text))) = told.try_recv() else { panic!("it is refused") };
    assert_eq!((code, text.as_str()), (ReplyCode::NOT_FOUND, "no exchange 'x' in vhost '/'"));
    rabbit.wait(MOMENT);
    assert_eq!((rabbit.kept_next(), rabbit.dead_letters(), rabbit.lane.is_empty()), (vec![], vec![], true));
}

#[test]
fn what_is_refused_while_the_store_is_asked_is_a_dead_letter_only_if_it_was_kept() {
    for is_kept in [true, false] {
        let mut rabbit = Rabbit::opened(policy(100, false));
        let (mut told, _forwarded) = rabbit.lone(7, 1, false).unwrap();
        rabbit.read();
        rabbit.wait(MOMENT);
        assert_eq!(rabbit.kept_next(), [1]);
        rabbit.refuse();
        assert!(told.try_recv().is_err(), "nobody knows yet");
        match is_kept {
            true => {
                assert!(!rabbit.lane.lone_kept(transaction_id(1), kept(30)));
                assert!(matches!(told.try_recv(), Ok(Ok(_))));
                rabbit.row(7, 1, 30);
                assert_eq!(rabbit.dead_letters(), [(30, 0, 404)]);
            }
            false => {
                assert!(!rabbit.lane.lone_kept(transaction_id(1), Err(StoreError::Full("test".into()))));
                assert!(matches!(told.try_recv(), Ok(Err(StoreError::Refused(ReplyCode::NOT_FOUND, _)))));
                assert!(rabbit.lane.is_empty());
            }
        }
    }
}

#[test]
fn among_others_the_refused_one_is_kept_and_looked_for_as_always() {
    let mut rabbit = Rabbit::opened(policy(100, false));
    let (mut told, _forwarded) = rabbit.lone(7, 1, false).unwrap();
    rabbit.commit_from(8, 20, 1, false);
    rabbit.read();
    rabbit.refuse();
    assert_eq!(rabbit.kept_next(), [1], "at once");
    assert!(told.try_recv().is_err());
    rabbit.row(7, 1, 30);
    assert!(told.try_recv().is_ok_and(|told| told.is_ok()));
    let poison = |id: MessageId| if sequence_of_id(id) == 1 { Says::CloseChannel } else { Says::Ack };
    assert_eq!(rabbit.try_suspects(poison), [(20, 0), (1, 0)]);
    assert_eq!(rabbit.dead_letters(), [(30, 0, 404)]);
}

#[test]
fn a_lost_connection_has_it_kept_and_sent_again_as_a_possible_duplicate() {
    let mut rabbit = Rabbit::opened(policy(100, false));
    let (mut told, _forwarded) = rabbit.lone(7, 1, false).unwrap();
    rabbit.read();
    rabbit.disconnect();
    assert_eq!(rabbit.kept_next(), [1], "at once");
    assert!(told.try_recv().is_err());
    assert!(rabbit.lane.lone_kept(transaction_id(1), Err(StoreError::Full("test".into()))), "it is asked again");
    assert!(told.try_recv().is_err(), "it is neither here nor there");
    rabbit.lane.keep_again(transaction_id(1));
    assert_eq!(rabbit.kept_next(), [1]);
    rabbit.row(7, 1, 30);
    assert!(matches!(told.try_recv(), Ok(Ok(Committing::Now(Sequence(30))))));
    rabbit.connect();
    let (_, got) = rabbit.read();
    assert_eq!(got.iter().map(|got| (sequence_of(got), got.possible_duplicate)).collect::<Vec<_>>(), [(1, true)]);
    rabbit.ack(1);
    assert_eq!(rabbit.delivered(), [30]);
}

#[test]
fn while_the_store_can_not_keep_it_rabbitmq_may_still_have_the_last_word() {
    let mut rabbit = Rabbit::opened(policy(100, false));
    let (mut told, _forwarded) = rabbit.lone(7, 1, false).unwrap();
    rabbit.read();
    rabbit.wait(MOMENT);
    assert_eq!(rabbit.kept_next(), [1]);
    assert!(rabbit.lane.lone_kept(transaction_id(1), Err(StoreError::Io("test".into()))));
    rabbit.ack(1);
    assert!(matches!(told.try_recv(), Ok(Ok(Committing::Forwarded { asked: false }))));
    rabbit.lane.keep_again(transaction_id(1));
    assert_eq!((rabbit.kept_next(), rabbit.lane.is_empty()), (vec![], true));
}

#[test]
fn a_row_that_comes_though_nobody_knew_whether_it_was_kept_is_no_second_copy() {
    let mut rabbit = Rabbit::opened(policy(100, false));
    let (mut told, _forwarded) = rabbit.lone(7, 1, false).unwrap();
    rabbit.read();
    rabbit.wait(MOMENT);
    assert_eq!(rabbit.kept_next(), [1]);
    assert!(!rabbit.lane.lone_kept(transaction_id(1), Err(StoreError::Unknown("test".into()))));
    assert!(matches!(told.try_recv(), Ok(Err(StoreError::Unknown(_)))));
    rabbit.ack(1);
    rabbit.row(7, 1, 30);
    assert_eq!(rabbit.got(), []);
    assert_eq!((rabbit.delivered(), rabbit.lane.is_empty()), (vec![30], true));
}

#[test]
fn what_is_nacked_is_kept_and_waits_beside_the_lane() {
    let mut rabbit = Rabbit::opened(policy(100, false));
    let (mut told, _forwarded) = rabbit.lone(7, 1, false).unwrap();
    rabbit.read();
    rabbit.nack(1);
    assert_eq!(rabbit.kept_next(), [1], "at once");
    assert!(!rabbit.lane.lone_kept(transaction_id(1), kept(30)));
    assert!(told.try_recv().is_ok_and(|told| told.is_ok()));
    rabbit.row(7, 1, 30);
    rabbit.ask_store();
    assert!(rabbit.lone(7, 2, false).is_none(), "it would overtake");
    assert!(rabbit.lone(8, 3, false).is_some());
    assert_eq!(rabbit.got(), [(3, 0, false)]);
    rabbit.ack(2);
    rabbit.wait(NACK_PAUSES[0]);
    assert_eq!(rabbit.got(), [(1, 0, true)]);
    rabbit.ack(3);
    assert_eq!(rabbit.delivered(), [30]);
}

#[test]
fn nothing_is_sent_before_its_turn_or_where_nothing_can_be_sent() {
    let mut rabbit = Rabbit::new(policy(2, false));
    assert!(rabbit.lone(7, 1, false).is_none(), "RabbitMQ has not opened the channel");
    rabbit.open();
    rabbit.lane.set_blocked(true, rabbit.now);
    assert!(rabbit.lone(7, 1, false).is_none(), "RabbitMQ takes nothing");
    rabbit.lane.set_blocked(false, rabbit.now);
    rabbit.commit_from(8, 20, 3, false);
    assert!(rabbit.lone(7, 1, false).is_none(), "the window is full, and something waits");
    assert_eq!(rabbit.got().len(), 2);
    rabbit.ack_all();
    assert!(rabbit.lone(7, 1, false).is_some());
    rabbit.disconnect();
    assert!(rabbit.lone(9, 2, false).is_none(), "there is no connection");
    rabbit.connect();
    rabbit.open();
    rabbit.lane.set_stalled(true);
    assert!(rabbit.lone(9, 2, false).is_none(), "RabbitMQ confirms nothing");
}

#[test]
fn one_that_comes_back_goes_to_who_waits_and_else_is_kept_if_that_is_wanted() {
    for (mandatory, keep) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut rabbit = Rabbit::opened(policy(100, keep));
        let (mut told, mut forwarded) = rabbit.lone(7, 1, mandatory).unwrap();
        let (_, got) = rabbit.read();
        rabbit.give_back(&got[0]);
        rabbit.ack(1);
        if keep && !mandatory {
            assert_eq!((rabbit.kept_next(), told.try_recv().is_err()), (vec![1], true));
            rabbit.row(7, 1, 30);
            assert_eq!(rabbit.dead_letters(), [(30, 0, 312)]);
            continue;
        }
        assert!(told.try_recv().is_ok_and(|told| told.is_ok()));
        assert_eq!(forwarded.try_recv().unwrap().returned.len(), usize::from(mandatory));
        assert_eq!((rabbit.kept_next(), rabbit.lane.is_empty()), (vec![], true));
        let counts = (rabbit.count(|it| &it.returned), rabbit.count(|it| &it.unroutable));
        assert_eq!(counts, if mandatory { (1, 0) } else { (0, 1) });
    }
}

/// What a client channel has committed and not heard of: only then may it commit more.
struct Waits {
    told: Told,
    number: i64,
}

proptest! {
    /// Channels that commit one message or several, lost connections, a slow disk that fails: whoever is told that it is
    /// committed finds it in RabbitMQ or in the store; all arrives, in order, and only marked copies twice.
    #[test]
    fn nobody_is_told_of_what_is_neither_here_nor_there(
        steps in proptest::collection::vec((0u8..10, 0u32..3, 0u32..4), 1..150),
    ) {
        let mut rabbit = Rabbit::opened(policy(5, false));
        let (mut number, mut sequence) = (0, 100_000);
        // In RabbitMQ, in the order in which it came; and what it has confirmed.
        let mut taken: Vec<((i64, u32), bool)> = Vec::new();
        let mut confirmed: Vec<i64> = Vec::new();
        let mut unconfirmed: Vec<i64> = Vec::new();
        let mut asked: VecDeque<i64> = VecDeque::new();
        let mut rows: BTreeMap<i64, i64> = BTreeMap::new();
        let mut delivered = Vec::new();
        let mut waiting: BTreeMap<u32, Waits> = BTreeMap::new();
        let mut strands: BTreeMap<u32, Vec<(i64, u32)>> = BTreeMap::new();
        let mut strand_of: BTreeMap<i64, u32> = BTreeMap::new();
        let end = [(5u8, 0u32, 3u32), (6, 0, 0), (9, 0, 0)].repeat(100);
        for (step, strand, count) in steps.into_iter().chain(end) {
            match step {
                0..=2 if !waiting.contains_key(&strand) => {
                    number += 1;
                    strand_of.insert(number, strand);
                    let place = strands.entry(strand).or_default();
                    match if step < 2 { rabbit.lone(strand, number, false) } else { None } {
                        Some((told, _)) => {
                            place.push((number, 0));
                            waiting.insert(strand, Waits { told, number });
                        }
                        None => {
                            place.extend((0..count).map(|index| (number, index)));
                            sequence += 1;
                            rows.insert(sequence, number);
                            let waits = rabbit.now;
                            rabbit.store.insert(sequence, (strand, count, false));
                            rabbit.lane.add_committed(Committed {
                                sequence: Sequence(sequence),
                                id: transaction_id(number),
                                lane: LaneName::new("/".into(), LANE),
                                strand: Strand(strand),
                                decided: waits,
                                messages: Some(messages(count, false)),
                                forwarded: None,
                            });
                        }
                    }
                }
                3 => {
                    rabbit.disconnect();
                    unconfirmed.clear();
                    rabbit.connect();
                    rabbit.open();
                }
                4 => rabbit.wait(MOMENT),
                // RabbitMQ confirms some.
                5 => {
                    let count = (count as usize + 1).min(unconfirmed.len());
                    if count > 0 {
                        let first = rabbit.tag - unconfirmed.len() as u64 + 1;
                        confirmed.extend(unconfirmed.drain(..count));
                        rabbit.settle(id::BASIC_ACK, first + count as u64 - 1, true);
                    }
                }
                // The store keeps one, or fails.
                6 | 7 => if let Some(number) = asked.pop_front() {
                    let id = transaction_id(number);
                    if step == 7 {
                        if rabbit.lane.lone_kept(id, Err(StoreError::Io("test".into()))) {
                            rabbit.lane.keep_again(id);
                        }
                    } else {
                        sequence += 1;
                        rows.insert(sequence, number);
                        let strand = strand_of[&number];
                        if count % 2 == 0 {
                            rabbit.row(strand, number, sequence);
                            prop_assert!(!rabbit.lane.lone_kept(id, kept(sequence)));
                        } else {
                            prop_assert!(!rabbit.lane.lone_kept(id, kept(sequence)));
                            rabbit.row(strand, number, sequence);
                        }
                    }
                },
                _ => {}
            }
            let (_, got) = rabbit.read();
            for got in got {
                taken.push(((sequence_of(&got), got.id.index), got.possible_duplicate));
                unconfirmed.push(sequence_of(&got));
            }
            asked.extend(rabbit.kept_next());
            delivered.extend(rabbit.delivered());
            let mut heard = Vec::new();
            for (strand, waits) in &mut waiting {
                if let Ok(told) = waits.told.try_recv() {
                    prop_assert!(told.is_ok());
                    let is_there = confirmed.contains(&waits.number) || rows.values().any(|row| *row == waits.number);
                    prop_assert!(is_there, "{} is neither here nor there", waits.number);
                    heard.push(*strand);
                }
            }
            heard.iter().for_each(|strand| drop(waiting.remove(strand)));
        }
        prop_assert!(waiting.is_empty() && rabbit.lane.is_empty());
        delivered.sort_unstable();
        prop_assert_eq!(delivered, rows.keys().copied().collect::<Vec<_>>());
        let mut seen: Vec<(i64, u32)> = Vec::new();
        for (key, possible_duplicate) in taken {
            if seen.contains(&key) {
                prop_assert!(possible_duplicate, "{key:?} came twice, unmarked");
            } else {
                seen.push(key);
            }
        }
        for (strand, committed) in strands {
            let came: Vec<_> = seen.iter().filter(|(number, _)| strand_of[number] == strand).copied().collect();
            prop_assert_eq!(came, committed);
        }
    }
}
