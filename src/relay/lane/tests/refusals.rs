//! Nacks, and messages that make RabbitMQ close.

use super::super::stuck::PROBATION;
use super::*;

#[test]
fn what_is_nacked_goes_again_alone_and_with_pauses_once_the_rest_is_answered() {
    let mut rabbit = Rabbit::new(policy(4, false));
    rabbit.commit(1, 6);
    assert_eq!(rabbit.got().len(), 4);
    rabbit.nack(1);
    rabbit.ack(2);
    rabbit.nack(3);
    assert_eq!(rabbit.got(), [], "the fourth has no answer yet");
    rabbit.ack(4);
    assert_eq!(rabbit.got(), [], "the pause is not over");
    rabbit.wait(NACK_PAUSES[0]);
    assert_eq!(rabbit.got(), [(1, 0, true)]);
    rabbit.nack(5);
    rabbit.wait(NACK_PAUSES[0]);
    assert_eq!(rabbit.got(), [], "the pause has grown");
    assert!(rabbit.lane.deadline().is_some_and(|deadline| deadline <= rabbit.now + NACK_PAUSES[1]));
    let refused = rabbit.lane.refused().unwrap();
    assert_eq!((refused.messages, refused.nacks, refused.routing_key.as_str()), (2, 2, "key-0"));
    rabbit.wait(NACK_PAUSES[1]);
    assert_eq!(rabbit.got(), [(1, 0, true)]);
    rabbit.ack(6);
    assert_eq!(rabbit.got(), [(1, 2, true)]);
    rabbit.ack(7);
    assert_eq!(rabbit.got(), [], "the rest is in the store");
    rabbit.ask_store();
    assert_eq!(rabbit.got(), [(1, 4, false)]);
    rabbit.ack_all();
    assert_eq!(rabbit.got(), [(1, 5, false)]);
    rabbit.ack_all();
    assert_eq!(rabbit.delivered(), [1]);
    assert_eq!(rabbit.count(|it| &it.nacked), 3);
    assert_eq!(rabbit.lane.refused(), None);
}

#[test]
fn what_is_nacked_too_often_becomes_a_dead_letter_and_the_rest_goes_on() {
    let mut rabbit = Rabbit::new(policy(100, false));
    rabbit.commit(1, 2);
    rabbit.read();
    rabbit.nack(1);
    rabbit.ack(2);
    assert_eq!(rabbit.got(), []);
    rabbit.wait(NACK_PAUSES[0]);
    assert_eq!(rabbit.got(), [(1, 0, true)]);
    rabbit.nack(3);
    // A lost connection takes no nack back.
    rabbit.disconnect();
    rabbit.connect();
    rabbit.wait(NACK_PAUSES[1]);
    rabbit.read();
    rabbit.nack(1);
    let letters = rabbit.lane.take_dead_letters();
    assert_eq!((letters.len(), letters[0].reply_code), (1, 406));
    assert!(letters[0].reply_text.starts_with("PRECONDITION_FAILED - RabbitMQ nacked it 3 times"), "{letters:?}");
    rabbit.lane.dead_letter_kept(Sequence(1), rabbit.now);
    assert_eq!(rabbit.delivered(), [1]);
    rabbit.commit(2, 3);
    assert_eq!(rabbit.got().len(), 3, "pipelined again");
}

#[test]
fn the_message_that_closes_the_channel_is_looked_for_elsewhere_and_the_rest_goes_on() {
    let mut rabbit = Rabbit::new(policy(100, false));
    rabbit.commit_from(7, 1, 2, false);
    rabbit.commit_from(8, 2, 2, false);
    rabbit.read();
    rabbit.ack(1);
    rabbit.refuse();
    assert_eq!(rabbit.read(), (vec![id::CHANNEL_CLOSE_OK, id::CHANNEL_OPEN, id::CONFIRM_SELECT], Vec::new()));
    // Others have nothing to do with it; those who had something in flight wait.
    rabbit.commit_from(9, 3, 1, false);
    rabbit.commit_from(8, 4, 1, false);
    assert_eq!(rabbit.got(), [(3, 0, false)]);
    rabbit.ack_all();
    assert_eq!(rabbit.delivered(), [3]);
    let poison = |id: MessageId| match (id.transaction == transaction_id(2), id.index) {
        (true, 0) => Says::CloseChannel,
        _ => Says::Ack,
    };
    // What the guilty channel has committed since is tried as well.
    assert_eq!(rabbit.try_suspects(poison), [(1, 1), (2, 0), (2, 0), (2, 1), (4, 0)]);
    assert_eq!(rabbit.delivered(), [1, 4]);
    assert_eq!(rabbit.dead_letters(), [(2, 0, 404)]);
    rabbit.lane.dead_letter_kept(Sequence(2), rabbit.now);
    assert_eq!(rabbit.delivered(), [2]);
    // The innocent goes with the others again, the guilty is tried for a while.
    rabbit.commit_from(7, 5, 1, false);
    assert_eq!(rabbit.got(), [(5, 0, false)]);
    rabbit.ack_all();
    rabbit.commit_from(8, 6, 1, false);
    rabbit.ask_store();
    assert_eq!(rabbit.got(), []);
    assert_eq!(rabbit.try_suspects(poison), [(6, 0)]);
    rabbit.wait(PROBATION);
    rabbit.commit_from(8, 7, 1, false);
    rabbit.ask_store();
    assert_eq!(rabbit.got(), [(7, 0, false)]);
    rabbit.ack_all();
    assert_eq!(rabbit.delivered(), [5, 6, 7]);
    assert!(rabbit.lane.is_empty());
}

#[test]
fn of_a_connection_that_rabbitmq_closes_all_that_was_in_flight_is_tried() {
    let mut rabbit = Rabbit::new(policy(100, false));
    rabbit.commit_from(7, 1, 1, false);
    rabbit.commit_from(8, 2, 1, false);
    rabbit.read();
    rabbit.lane.disconnected(true, rabbit.now);
    rabbit.out.clear();
    rabbit.tag = 0;
    rabbit.connect();
    rabbit.commit_from(9, 3, 1, false);
    let (_, got) = rabbit.read();
    assert_eq!(got.iter().map(sequence_of).collect::<Vec<_>>(), [3]);
    let poison = |id: MessageId| match id.transaction == transaction_id(1) {
        true => Says::CloseConnection,
        false => Says::Ack,
    };
    assert_eq!(rabbit.try_suspects(poison), [(1, 0), (1, 0), (2, 0)]);
    assert_eq!(rabbit.dead_letters(), [(1, 0, 541)]);
}

#[test]
fn a_lonely_message_that_closes_the_channel_needs_no_second_look() {
    let mut rabbit = Rabbit::new(policy(100, false));
    rabbit.commit(1, 1);
    rabbit.read();
    rabbit.refuse();
    assert_eq!(rabbit.dead_letters(), [(1, 0, 404)]);
}

#[test]
fn a_close_that_no_publish_caused_is_not_held_against_a_message() {
    let mut rabbit = Rabbit::new(policy(100, false));
    rabbit.commit(1, 1);
    rabbit.read();
    let close = Close { code: ReplyCode::PRECONDITION_FAILED, text: b"", method: (85, 10) };
    assert!(matches!(rabbit.send(|out| close.write(out, CHANNEL)), Err(Fault::Channel(..))));
    rabbit.disconnect();
    rabbit.connect();
    let (_, got) = rabbit.read();
    assert!(got.len() == 1 && got[0].possible_duplicate);
    assert_eq!(rabbit.dead_letters(), []);
}
