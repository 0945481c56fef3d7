//! What passes as it is.

use super::*;
use proptest::prelude::*;

#[test]
fn rubbish_is_greeted_as_by_rabbitmq() {
    let mut script = Script::new(settings());
    script.connection.handle_client(b"GET / HTTP/1.1\r\n");
    script.collect();
    assert_eq!(script.sent().0, PROTOCOL_HEADER);
    assert!(matches!(script.command(), Command::Close));
}

#[test]
fn ordinary_frames_pass_as_they_are() {
    let mut script = Script::open(settings());
    let frames =
        [publish(3, b"body"), ack(3, 0, true), bare(3, id::CONFIRM_SELECT), vec![9, 0, 3, 0, 0, 0, 0, 0xce]].concat();
    script.client(&frames);
    script.client(&frame::HEARTBEAT);
    assert_eq!(script.sent(), (Vec::new(), frames.clone()));
    script.upstream(&[&frames[..], &frame::HEARTBEAT].concat());
    assert_eq!(script.sent(), (frames, Vec::new()));
}

#[test]
fn channels_are_counted_as_they_come_and_go() {
    let mut script = Script::open(settings());
    let seen = |script: &Script| (script.connection.stage(), script.connection.channels());
    assert_eq!(seen(&script), (Stage::Open, (0, 0)));
    for channel in 1..=3 {
        script.client(&bare(channel, id::CHANNEL_OPEN));
    }
    for channel in 1..=2 {
        script.client(&bare(channel, id::TX_SELECT));
        script.upstream(&bare(channel, id::TX_SELECT_OK));
    }
    assert_eq!(seen(&script), (Stage::Open, (3, 2)));
    // RabbitMQ closes one, the client another.
    script.upstream(&close(1, 404, "NOT_FOUND"));
    script.client(&bare(1, id::CHANNEL_CLOSE_OK));
    assert_eq!(seen(&script), (Stage::Open, (2, 1)));
    script.client(&close(2, 200, "bye"));
    script.upstream(&bare(2, id::CHANNEL_CLOSE_OK));
    assert_eq!(seen(&script), (Stage::Open, (1, 0)));
    script.connection.handle_room(Some(FULL));
    script.client(&bare(3, id::TX_SELECT));
    script.upstream(&bare(3, id::TX_SELECT_OK));
    script.connection.handle_client_lost();
    assert_eq!(seen(&script), (Stage::Closing, (1, 0)));
}

#[test]
fn a_broken_frame_is_rabbitmqs_to_answer() {
    let cases: [Vec<u8>; 4] = [
        vec![1, 0, 1, 0, 0, 0, 4, 0, 90, 0, 20, 0],
        [&publish(1, b"body")[..30], &bare(1, id::TX_COMMIT)[..]].concat(),
        {
            let mut frames = Vec::new();
            frame::write(&mut frames, kind::BODY, 1, |out| out.extend(b"stray"));
            frames
        },
        {
            let mut frames = message(1, b"k", 0, &empty(2), b"four");
            frames.extend(bare(1, id::TX_COMMIT));
            frames
        },
    ];
    for (number, frames) in cases.iter().enumerate() {
        let mut script = Script::transactional(settings());
        script.connection.handle_client(frames);
        script.collect();
        assert_eq!(script.sent().1, *frames, "case {number}: RabbitMQ is shown what came");
        assert!(script.commands.is_empty(), "case {number}");
        let answer = close(0, 501, "FRAME_ERROR");
        script.upstream(&answer);
        assert_eq!(script.sent().0, answer, "case {number}");
    }
}

proptest! {
    /// However the network cuts the bytes, both sides get the same.
    #[test]
    fn cuts_make_no_difference(cuts in proptest::collection::vec(0usize..600, 0..20), rubbish in any::<[u8; 16]>()) {
        let frames = [
            publish(3, b"ordinary"), bare(1, id::TX_SELECT), publish(1, b"first"), ack(1, 5, true),
            publish(1, &[1; 90]), bare(1, id::TX_COMMIT), publish(1, b"behind"), rubbish.to_vec(),
        ].concat();
        let mut whole = Script::open(settings());
        let used = whole.connection.handle_client(&frames);
        let mut cut = Script::open(settings());
        let (mut at, mut end) = (0, 0);
        for step in cuts.into_iter().chain([frames.len()]) {
            end = (end + step).min(frames.len());
            at += cut.connection.handle_client(&frames[at..end]);
        }
        prop_assert_eq!(used, at);
        prop_assert_eq!(whole.sent(), cut.sent());
    }
}
