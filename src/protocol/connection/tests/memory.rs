//! Memory that is short.

use super::half::channel_open;
use super::*;

/// With the front of a large body on channel 1, of a small one on channel 2, and nothing begun on channel 3.
fn half_sent() -> Script {
    let mut script = Script::transactional(settings());
    script.client(&[channel_open(2), bare(2, id::CONFIRM_SELECT), channel_open(3), bare(3, id::TX_SELECT)].concat());
    script.upstream(&[bare(2, id::CONFIRM_SELECT_OK), bare(3, id::TX_SELECT_OK)].concat());
    script.client(&publish(3, &[3; 9_000]));
    for (channel, size) in [(1, 9_000), (2, 5_000)] {
        let message = if channel == 1 { publish(1, &vec![7; size]) } else { half(2, "order-1", &vec![7; size]) };
        // All but the last frame.
        let (mut at, mut last) = (0, 0);
        while let Split::Frame(frame) = frame::split(&message[at..], 5_000) {
            (last, at) = (at, at + frame.raw.len());
        }
        script.client(&message[..last]);
    }
    script.sent();
    script
}

#[test]
fn the_largest_message_that_is_not_all_there_is_given_up() {
    let mut script = half_sent();
    let held = script.connection.held_bytes();
    for (channel, freed) in [(1, 8_000), (2, 4_000)] {
        let before = script.connection.held_bytes();
        assert!(script.connection.give_up_body());
        let (mut to_client, to_upstream) = script.sent();
        // Where RabbitMQ is within a content of channel 2 is not known before.
        script.upstream(&bare(channel, id::CHANNEL_CLOSE_OK));
        to_client.extend(script.sent().0);
        let (closed_channel, text) = closed(&to_client);
        assert_eq!(closed_channel, channel);
        assert!(text.starts_with("RESOURCE_ERROR - memory is short (memory.max)"), "{text}");
        assert_eq!(methods(&to_upstream), [(channel, id::CHANNEL_CLOSE)]);
        assert!(script.connection.held_bytes() + freed <= before);
    }
    assert!(!script.connection.give_up_body(), "what is whole is not given up");
    assert!(script.connection.held_bytes() < held && script.connection.held_bytes() > 9_000);
    // What still comes of them is nobody's.
    let mut rest = Vec::new();
    frame::write(&mut rest, kind::BODY, 1, |out| out.extend([7; 3_000]));
    script.client(&rest);
    script.client(&bare(3, id::TX_COMMIT));
    assert_eq!(methods(&script.sent().1), [(3, id::TX_ROLLBACK)]);
}
