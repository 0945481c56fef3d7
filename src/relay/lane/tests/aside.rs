//! What waits beside a lane, and what does not.

use super::*;

#[test]
fn beside_a_stuck_channel_all_others_go_on() {
    let mut rabbit = Rabbit::new(policy(4, false));
    rabbit.commit_from(7, 1, 1, false);
    rabbit.commit_from(8, 2, 1, false);
    assert_eq!(rabbit.got(), [(1, 0, false), (2, 0, false)]);
    rabbit.nack(1);
    rabbit.ack(2);
    for sequence in 3..100 {
        rabbit.commit_from(if sequence % 2 == 0 { 7 } else { 8 }, sequence, 1, false);
        let mine = (sequence % 2 == 1).then_some((sequence, 0, false));
        assert_eq!(rabbit.got(), mine.into_iter().collect::<Vec<_>>(), "{sequence}");
        rabbit.ack_all();
    }
    assert_eq!(rabbit.delivered().len(), 50);
    assert_eq!(rabbit.lane.unsent_bytes(), 0, "what waits is in the store");
    rabbit.wait(NACK_PAUSES[0]);
    assert_eq!(rabbit.got(), [(1, 0, true)]);
    rabbit.commit_from(7, 100, 1, false);
    assert_eq!(rabbit.got(), []);
    rabbit.ack_all();
    let mut sequences = Vec::new();
    while !rabbit.store.is_empty() {
        rabbit.delivered();
        sequences.extend(rabbit.got().into_iter().map(|(sequence, ..)| sequence));
        rabbit.ack_all();
    }
    assert_eq!(sequences, (4..=100).step_by(2).collect::<Vec<_>>());
    rabbit.delivered();
    assert!(rabbit.lane.is_empty(), "{:?}", rabbit.lane.aside);
    rabbit.commit_from(7, 101, 1, false);
    assert_eq!(rabbit.got(), [(101, 0, false)], "it flows again");
}

#[test]
fn what_was_committed_behind_a_nack_goes_one_by_one_until_many_were_taken() {
    let mut rabbit = Rabbit::new(policy(100, false));
    rabbit.commit_from(7, 1, 1, false);
    rabbit.read();
    rabbit.nack(1);
    for sequence in 2..3000 {
        rabbit.commit_from(7, sequence, 1, false);
    }
    let take = |rabbit: &mut Rabbit| {
        rabbit.wait(NACK_PAUSES[0]);
        rabbit.ask_store();
        let (first, got) = (rabbit.tag + 1, rabbit.got());
        (first, got.into_iter().map(|(sequence, ..)| sequence).collect::<Vec<_>>())
    };
    for sequence in 1..=600 {
        let (_, got) = take(&mut rabbit);
        assert_eq!(got, [sequence]);
        rabbit.ack_all();
    }
    // A second nack, and it is counted anew.
    let (tag, got) = take(&mut rabbit);
    assert_eq!(got, [601]);
    rabbit.nack(tag);
    let mut next = 601;
    while next < 3000 {
        let (_, got) = take(&mut rabbit);
        assert_eq!(got, (next..next + got.len() as i64).collect::<Vec<_>>());
        if next <= 1600 {
            assert_eq!(got.len(), 1, "{next}");
        } else if next + 100 < 3000 {
            assert!(got.len() > 1, "{next}");
        }
        next += got.len() as i64;
        rabbit.ack_all();
    }
}

#[test]
fn nobody_waits_for_what_is_stuck_but_to_hear_what_comes_back() {
    let mut rabbit = Rabbit::new(policy(3, false));
    rabbit.commit_from(7, 1, 1, false);
    rabbit.commit_from(8, 2, 1, true);
    rabbit.commit_from(7, 3, 1, false);
    rabbit.commit_from(7, 4, 1, true);
    rabbit.commit_from(9, 5, 1, false);
    rabbit.read();
    rabbit.nack(1);
    rabbit.nack(2);
    rabbit.commit_from(7, 6, 1, false);
    let mut waits = Vec::new();
    for (sequence, receiver) in &mut rabbit.receivers {
        if receiver.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
            waits.push(*sequence);
        }
    }
    assert_eq!(waits, [2, 4, 5]);
    // What was left to the store is told when it has gone from there.
    rabbit.ack(3);
    rabbit.wait(NACK_PAUSES[0]);
    for _ in 0..5 {
        rabbit.ask_store();
        rabbit.read();
        rabbit.ack_all();
    }
    assert_eq!(rabbit.receivers.get_mut(&4).unwrap().try_recv(), Ok(Forwarded::default()));
}

#[test]
fn what_an_earlier_process_left_beside_the_lane_goes_before_what_is_new() {
    let mut rabbit = Rabbit::new(policy(10, false));
    for sequence in [1, 2, 3] {
        rabbit.store.insert(sequence, (7, 1, true));
    }
    rabbit.lane.found_aside(source(7), rabbit.now);
    rabbit.commit_from(7, 4, 1, false);
    rabbit.commit_from(8, 5, 1, false);
    assert_eq!(rabbit.got(), [(5, 0, false)]);
    let mut sequences = Vec::new();
    while !rabbit.store.is_empty() {
        rabbit.ack_all();
        rabbit.delivered();
        sequences.extend(rabbit.got().into_iter().map(|(sequence, ..)| sequence));
    }
    assert_eq!(sequences, [1, 2, 3, 4]);
}

#[test]
fn what_memory_has_no_room_for_is_read_again_and_its_nacks_are_remembered() {
    let mut rabbit = Rabbit::new(policy(1000, false));
    let mut sequence = 0;
    for strand in 1..=30 {
        for _ in 0..1000 {
            sequence += 1;
            rabbit.commit_from(strand, sequence, 1, false);
        }
        let first = rabbit.tag + 1;
        assert_eq!(rabbit.got().len(), 1000, "{strand}");
        rabbit.ask_store();
        for tag in first..first + 1000 {
            rabbit.nack(tag);
        }
    }
    rabbit.ask_store();
    assert!(rabbit.lane.transactions.len() < 17_000, "{} are in memory", rabbit.lane.transactions.len());
    let (mut tries, mut dead) = (BTreeMap::<i64, u32>::new(), 0);
    while !rabbit.store.is_empty() {
        rabbit.wait(NACK_PAUSES[1]);
        rabbit.ask_store();
        let first = rabbit.tag + 1;
        for (tag, (sequence, _, duplicate)) in (first..).zip(rabbit.got()) {
            assert!(duplicate);
            *tries.entry(sequence).or_insert(1) += 1;
            rabbit.nack(tag);
        }
        for (sequence, ..) in rabbit.dead_letters() {
            dead += 1;
            rabbit.lane.dead_letter_kept(Sequence(sequence), rabbit.now);
        }
        rabbit.delivered();
    }
    assert_eq!((dead, tries.len()), (30_000, 30_000));
    assert!(tries.values().all(|tries| *tries <= 3), "{:?}", tries.values().max());
    rabbit.ask_store();
    assert!(rabbit.lane.is_empty());
}

proptest! {
    /// Of each client channel nothing is sent while something before it was nacked and is not answered for; those without a
    /// nack wait for nobody; and each message is delivered, or a dead letter after so many tries.
    #[test]
    fn order_binds_the_messages_of_a_client_channel_and_no_others(
        steps in proptest::collection::vec((0u8..10, 0u32..4, 1u32..4), 1..150),
        full in 0u32..3,
    ) {
        let mut rabbit = Rabbit::new(policy(1000, false));
        let (mut sequence, mut delivered) = (0, Vec::new());
        let mut in_flight: BTreeMap<u64, (u32, (i64, u32))> = BTreeMap::new();
        let mut nacked: BTreeMap<(i64, u32), u32> = BTreeMap::new();
        let settle = [(7u8, 0u32, 1u32), (8, 0, 1), (9, 0, 1)].repeat(300);
        for (turn, (step, strand, count)) in steps.into_iter().map(|it| (true, it)).chain(settle.into_iter().map(|it| (false, it))) {
            match step {
                0..=3 => {
                    sequence += 1;
                    rabbit.commit_from(strand, sequence, count, false);
                }
                4 if turn => {
                    rabbit.disconnect();
                    in_flight.clear();
                    rabbit.connect();
                }
                // The queue of those below `full` is full as long as there are steps.
                5..=7 => for (tag, (strand, place)) in std::mem::take(&mut in_flight) {
                    if strand < full && turn {
                        *nacked.entry(place).or_default() += 1;
                        rabbit.nack(tag);
                    } else {
                        nacked.remove(&place);
                        rabbit.ack(tag);
                    }
                },
                8 => rabbit.ask_store(),
                _ => rabbit.wait(NACK_PAUSES[1]),
            }
            for (sequence, index, _) in rabbit.dead_letters() {
                prop_assert_eq!(nacked.remove(&(sequence, index)), Some(3));
                rabbit.lane.dead_letter_kept(Sequence(sequence), rabbit.now);
            }
            let strands: BTreeMap<i64, u32> = rabbit.store.iter().map(|(sequence, row)| (*sequence, row.0)).collect();
            let first = rabbit.tag + 1;
            let (_, got) = rabbit.read();
            for (tag, got) in (first..).zip(got) {
                let place = (sequence_of(&got), got.id.index);
                let strand = strands[&place.0];
                let owed = nacked.keys().find(|it| strands[&it.0] == strand && **it < place);
                prop_assert_eq!(owed, None, "{:?} went before it", place);
                in_flight.insert(tag, (strand, place));
            }
            if full == 0 {
                prop_assert_eq!(rabbit.lane.unsent_bytes(), 0);
            }
            delivered.extend(rabbit.delivered());
        }
        delivered.sort_unstable();
        prop_assert_eq!(delivered, (1..=sequence).collect::<Vec<_>>());
        prop_assert!(rabbit.lane.is_empty());
    }
}
