//! Messages that reach no queue.

use super::super::answered::{UNHEARD_BYTES_MAX, UNHEARD_MAX};
use super::*;

#[test]
fn mandatory_messages_go_back_to_who_waits_in_publish_order() {
    let mut rabbit = Rabbit::new(policy(100, true));
    rabbit.commit_with(1, 3, true);
    let (_, got) = rabbit.read();
    rabbit.give_back(&got[0]);
    rabbit.give_back(&got[2]);
    rabbit.ack(3);
    rabbit.settle(id::BASIC_ACK, 2, true);
    let forwarded = rabbit.receivers.get_mut(&1).unwrap().try_recv().unwrap();
    let keys: Vec<_> = forwarded.returned.iter().map(|message| Return::parse(&message.arguments).unwrap()).collect();
    assert_eq!(keys.iter().map(|it| it.routing_key).collect::<Vec<_>>(), [b"key-0", b"key-2"]);
    assert_eq!((&forwarded.returned[0].header[..], &forwarded.returned[0].body[..]), (&empty(4)[..], &b"body"[..]));
    assert_eq!(rabbit.dead_letters(), []);
    assert_eq!((rabbit.count(|it| &it.returned), rabbit.count(|it| &it.unroutable)), (2, 0));
}

#[test]
fn what_came_back_before_the_commit_was_heard_of_is_told_then() {
    let mut rabbit = Rabbit::new(policy(100, false));
    let count = UNHEARD_MAX as i64 + 1;
    for sequence in 1..=count {
        let messages = Stored::Sound(messages(1, true));
        rabbit.lane.add_pack(LANE, Pack { messages, ..pack(sequence, 0, 1, true) }, true, rabbit.now);
    }
    let (_, got) = rabbit.read();
    got.iter().for_each(|message| rabbit.give_back(message));
    rabbit.ack_all();
    let returned = |rabbit: &mut Rabbit, sequence| {
        let (sender, mut receiver) = Waiter::pair(Wait::new(true));
        rabbit.lane.attach(Sequence(sequence), source(0), sender);
        receiver.try_recv().unwrap().returned.len()
    };
    assert_eq!([count, count, 2, 1].map(|sequence| returned(&mut rabbit, sequence)), [1, 0, 1, 0]);
}

#[test]
fn large_messages_that_came_back_before_the_commit_was_heard_of_are_not_kept_for_many() {
    let mut rabbit = Rabbit::new(policy(100, false));
    for sequence in 1..=4 {
        let messages = Stored::Sound(messages_of(1, true, &vec![7; UNHEARD_BYTES_MAX / 2]));
        rabbit.lane.add_pack(LANE, Pack { messages, ..pack(sequence, 0, 1, true) }, true, rabbit.now);
        let (_, got) = rabbit.read();
        got.iter().for_each(|message| rabbit.give_back(message));
        rabbit.ack_all();
    }
    let kept: Vec<_> = rabbit.lane.unheard.iter().map(|(sequence, _)| sequence.0).collect();
    assert_eq!(kept, [4, 3]);
}

#[test]
fn a_message_that_reaches_no_queue_is_dropped_or_kept() {
    for keep in [false, true] {
        let mut rabbit = Rabbit::new(policy(100, keep));
        rabbit.commit(1, 2);
        let (_, got) = rabbit.read();
        rabbit.give_back(&got[1]);
        rabbit.ack_all();
        assert_eq!(rabbit.count(|it| &it.unroutable), 1);
        if keep {
            assert!(rabbit.delivered().is_empty());
            assert_eq!(rabbit.dead_letters(), [(1, 1, 312)]);
            rabbit.lane.dead_letter_kept(Sequence(1), rabbit.now);
        }
        assert_eq!(rabbit.delivered(), [1]);
        assert_eq!(rabbit.receivers.get_mut(&1).unwrap().try_recv(), Ok(Forwarded::default()));
    }
}

#[test]
fn a_mandatory_message_whose_publisher_is_gone_is_kept_too() {
    let mut rabbit = Rabbit::new(policy(100, true));
    rabbit.commit_with(1, 1, true);
    rabbit.receivers.clear();
    let (_, got) = rabbit.read();
    rabbit.give_back(&got[0]);
    rabbit.ack_all();
    assert_eq!(rabbit.dead_letters(), [(1, 0, 312)]);
}
