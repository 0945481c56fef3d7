//! Messages that can't be sent, be read, or are not those that were kept.

use super::*;

#[test]
fn what_can_not_be_sent_or_read_is_kept() {
    let mut rabbit = Rabbit::new(policy(100, false));
    let mut large = empty(0);
    large[12..14].copy_from_slice(&(1u16 << 13).to_be_bytes());
    let mut headers = Vec::new();
    table::write_string(&mut headers, b"k", &[b'v'; FRAME_BYTES_MAX as usize]);
    large.put_u32(headers.len() as u32);
    copy_entries(&mut large, Some(&headers), |_| true);
    let mut batch = Batch::default();
    batch.push(HalfMessage { publish: b"\0\0\0\0\0", header: &large, body: b"" });
    let messages = Stored::Sound(batch.into_bytes().into());
    rabbit.lane.add_pack(LANE, Pack { messages, ..pack(1, 0, 1, true) }, false, rabbit.now);
    let messages = Stored::Sound(messages_cut_short());
    rabbit.lane.add_pack(LANE, Pack { messages, last: false, ..pack(2, 0, 1, true) }, false, rabbit.now);
    rabbit.lane.add_pack(LANE, Pack { first_index: 2, ..pack(2, 1, 1, true) }, false, rabbit.now);
    rabbit.lane.add_pack(LANE, pack(3, 0, 1, true), false, rabbit.now);
    assert_eq!(rabbit.got(), [(2, 0, false), (2, 2, false), (3, 0, false)]);
    rabbit.ack_all();
    let kept = rabbit.dead_letters();
    assert_eq!(kept, [(1, 0, 501), (2, 1, 541)]);
    kept.iter().for_each(|(sequence, ..)| rabbit.lane.dead_letter_kept(Sequence(*sequence), rabbit.now));
    assert_eq!((rabbit.delivered(), rabbit.count(|it| &it.unreadable)), (vec![3, 1, 2], 1));
    assert_eq!(rabbit.lane.unsent_bytes(), 0);
}

/// A bit that had flipped on the disk went out to the consumers.
#[test]
fn what_is_damaged_is_kept_and_never_sent() {
    let mut rabbit = Rabbit::new(policy(100, false));
    let damaged = |messages: Bytes| Stored::Damaged(messages);
    rabbit.lane.add_pack(LANE, Pack { last: false, ..pack(1, 0, 1, true) }, false, rabbit.now);
    rabbit.lane.add_pack(
        LANE,
        Pack { messages: damaged(messages(2, false)), ..pack(1, 1, 1, false) },
        false,
        rabbit.now,
    );
    rabbit.lane.add_pack(LANE, Pack { first_index: 3, ..pack(1, 2, 1, true) }, false, rabbit.now);
    rabbit.lane.add_pack(
        LANE,
        Pack { messages: damaged(messages_cut_short()), ..pack(2, 0, 2, true) },
        false,
        rabbit.now,
    );
    rabbit.lane.add_pack(LANE, pack(3, 0, 1, true), false, rabbit.now);
    assert_eq!(rabbit.got(), [(1, 0, false), (1, 3, false), (3, 0, false)]);
    let letters = rabbit.lane.take_dead_letters();
    assert!(letters.iter().all(|letter| matches!(letter.message, Stored::Damaged(_))), "{letters:?}");
    let bytes: usize = letters.iter().map(|letter| letter.message.bytes().len()).sum();
    assert_eq!(bytes, messages(2, false).len() + messages_cut_short().len(), "somebody may want to look");
    let places: Vec<_> = letters.iter().map(|letter| (letter.sequence.0, letter.index)).collect();
    assert_eq!(places, [(1, 1), (1, 2), (2, 0), (2, 1)]);
    letters.iter().for_each(|letter| rabbit.lane.dead_letter_kept(letter.sequence, rabbit.now));
    rabbit.ack_all();
    let mut delivered = rabbit.delivered();
    delivered.sort_unstable();
    assert_eq!((delivered, rabbit.count(|it| &it.unreadable)), (vec![1, 2, 3], 2));
    assert_eq!((rabbit.lane.unsent_bytes(), rabbit.lane.is_empty()), (0, true));
}

/// A message, and a part of another.
fn messages_cut_short() -> Bytes {
    let two = messages(2, false);
    two.slice(..two.len() - 1)
}
