//! Nobody has the processor for long: what a client sends is handled bit by bit, and in a time that grows as it does.

use super::*;
use crate::tx::decision::{Fate, Verdict};
use crate::tx::id::Timestamp;
use crate::tx::state::State;

/// Gives all of it, turn by turn; how many there were.
fn turns(mut bytes: &[u8], mut handle: impl FnMut(&[u8]) -> usize) -> usize {
    let mut turns = 0;
    while !bytes.is_empty() {
        let used = handle(bytes);
        assert!(used > 0, "it goes on");
        bytes = &bytes[used..];
        turns += 1;
    }
    turns
}

#[test]
fn a_flood_of_either_side_is_handled_in_turns_and_nothing_of_it_is_lost() {
    let passing = ack(3, 7, false).repeat(20_000);
    let mut script = Script::open(settings());
    assert_eq!(turns(&passing, |bytes| script.connection.handle_client(bytes)), 5);
    assert!(script.sent().1 == passing);
    assert_eq!(turns(&passing, |bytes| script.connection.handle_upstream(bytes)), 5);
    assert!(script.sent().0 == passing);
    let heartbeats = frame::HEARTBEAT.repeat(20_000);
    assert!(turns(&heartbeats, |bytes| script.connection.handle_client(bytes)) > 20, "these are looked at");
}

// 300,000 decisions took 49.5 seconds: each answer was looked for among all that were due.
#[test]
fn decisions_about_others_are_made_some_at_a_time() {
    const COUNT: usize = 20_000;
    let mut script = Script::transactional(limited(|limits| limits.messages_max = COUNT as u64));
    let decisions: Vec<u8> = (0..COUNT).flat_map(|number| control(1, b"commit", &number.to_string(), b"")).collect();
    turns(&decisions, |bytes| script.connection.handle_client(bytes));
    script.client(&bare(1, id::TX_COMMIT));
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (id, at) = (TransactionId(Uuid::nil()), Timestamp(0));
    let fate = Fate { id, state: State::Committed, decided_at: at, decided_by: "x".into() };
    let mut decided = 0;
    while !script.commands.is_empty() {
        assert!(script.commands.len() <= 100, "{}", script.commands.len());
        // The last answer comes first.
        let Some(Command::Decide { ticket, name, .. }) = script.commands.pop() else { panic!("a decision") };
        script.connection.handle_decided(1, ticket, &name, Ok(Verdict::Decided(fate.clone())));
        script.collect();
        decided += 1;
    }
    assert_eq!(decided, COUNT);
    assert_eq!(methods(&script.sent().0), [(1, id::TX_COMMIT_OK)]);
}

#[test]
fn decisions_count_against_the_limit_of_messages() {
    let mut script = Script::transactional(limited(|limits| limits.messages_max = 2));
    script.client(&control(1, b"commit", "one", b"").repeat(2));
    assert_eq!(script.sent().0, b"");
    script.client(&control(1, b"commit", "one", b""));
    let text = "PRECONDITION_FAILED - transaction of more than 2 decisions (transaction.max_messages)";
    assert_eq!(closed(&script.sent().0), (1, text.into()));
}

#[test]
fn commits_that_wait_behind_one_another_are_made_one_by_one_and_in_order() {
    const COUNT: usize = 3_000;
    let mut script = Script::transactional(settings());
    let one = |number: usize| [publish(1, number.to_string().as_bytes()), bare(1, id::TX_COMMIT)].concat();
    let pipelined: Vec<u8> = (0..COUNT).flat_map(one).collect();
    turns(&pipelined, |bytes| script.connection.handle_client(bytes));
    for number in 0..COUNT {
        script.upstream(&bare(1, id::TX_ROLLBACK_OK));
        let (id, messages, _) = script.decide();
        let bodies: Vec<_> = batch::iter(&messages).map(|message| message.unwrap().body.to_vec()).collect();
        assert_eq!(bodies, [number.to_string().as_bytes()]);
        script.committed(id);
        script.forwarded(id, Vec::new());
    }
    assert_eq!(methods(&script.sent().0), vec![(1, id::TX_COMMIT_OK); COUNT]);
}

// Three connections that sent headers of 43,000 entries made a neighbour's slowest commits take half a second.
#[test]
fn frames_that_take_long_to_read_are_handled_a_few_at_a_time() {
    const COUNT: usize = 100;
    let mut headers = Vec::new();
    // The shortest entries that there are: without a name, and without a value.
    (0..1_900).for_each(|_| headers.extend_from_slice(b"\0V"));
    let mut script = Script::transactional(limited(|limits| limits.memory_bytes_max = 1 << 20));
    let messages = message(1, b"k", 0, &full(0, &headers), b"").repeat(COUNT);
    let few = turns(&messages, |bytes| {
        script.connection.begin_turn();
        let used = script.connection.handle_client(bytes);
        assert!(script.connection.had_its_turn() || used == bytes.len(), "the session is told to let others go first");
        used
    });
    assert!(few >= 5, "{few} turns");
}

#[test]
fn what_waited_behind_a_commit_is_a_turn_of_its_own() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"body"), bare(1, id::TX_COMMIT)].concat());
    turns(&ack(1, 7, false).repeat(1_000), |bytes| script.connection.handle_client(bytes));
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (id, ..) = script.decide();
    script.committed(id);
    script.connection.begin_turn();
    script.forwarded(id, Vec::new());
    assert!(script.connection.had_its_turn());
}
