//! What users have in the file: counted as it comes and goes, it is what a count of the rows finds.

use super::*;
use crate::store::sqlite::shares::Counted;
use std::collections::HashMap;

/// What each user has, by a count of all that is in the file.
fn counted_anew(sql: &Connection) -> HashMap<Arc<str>, u64> {
    let mut shares = Shares::new(None, watch::Sender::default(), Arc::default());
    let mut counted = Counted::from(i64::MAX);
    while !counted.is_whole() {
        count_on(&mut shares, sql, &mut counted).unwrap();
    }
    shares.users().clone()
}

fn of(user: &str, origin: Origin) -> Origin {
    Origin { user: user.into(), ..origin }
}

impl Bench {
    fn assert_counted(&self, after: &str) {
        assert_eq!(*self.writer.shares.users(), counted_anew(&self.writer.sql), "{after}");
    }

    fn deliver(&mut self, sequences: &[Sequence]) {
        self.writer.delivered.extend(sequences.iter().map(|sequence| sequence.0));
        self.writer.attempt(&[], true).unwrap();
    }
}

/// Whatever happens to a transaction. `later` is done once a restart was in between, if there was one.
fn lives(bench: &mut Bench, restart: impl Fn(&mut Bench)) {
    let (small, large) = (10, 100_000);
    let plain = ["a", "b"].map(|user| of(user, origin(0)));
    let (mut requests, answers): (Vec<_>, Vec<_>) = plain.iter().map(|origin| commit(origin, small, false)).unzip();
    let [replaced, replacing, rolled_back, in_doubt, joined] =
        ["name", "name", "other", "doubt", "join"].map(|name| of("a", named(name, name != "join")));
    requests.extend([&replaced, &rolled_back, &in_doubt].map(|origin| park(origin, large).0));
    requests.extend([park(&joined, small).0, park(&of("a", named("join", false)), small).0, abandon(&replaced).0]);
    bench.write(requests);
    bench.assert_counted("what comes");
    let plain: Vec<_> = answers.into_iter().map(|answered| place(answer(answered))).collect();
    restart(bench);
    let (committed, answered) = commit(&replacing, small, false);
    bench.write([committed]);
    bench.assert_counted("one takes the place of another");
    let replacing = place(answer(answered));
    bench.write([decide(&rolled_back, Decision::RollBack).0, decide(&in_doubt, Decision::Commit).0]);
    bench.assert_counted("what is decided");
    bench.deliver(&plain);
    bench.assert_counted("what is plain and delivered");
    bench.deliver(&[replacing]);
    bench.assert_counted("what had a name and is delivered");
    let left = bench.writer.shares.users().clone();
    assert!(left["a"] > 100_000 && !left.contains_key("b"), "{left:?}");
}

#[test]
fn what_users_have_is_counted_as_it_comes_and_goes() {
    lives(&mut Bench::new(), |_| {});
}

#[test]
fn what_an_earlier_process_left_is_counted_whenever_it_comes_to_that() {
    // At once; and behind all that happens to it meanwhile.
    for at_once in [true, false] {
        let mut bench = Bench::new();
        let begin = |bench: &mut Bench| {
            bench.writer.shares = Shares::new(None, watch::Sender::default(), Arc::default());
            bench.writer.book.counted = Counted::from(bench.writer.book.next_sequence);
            if at_once {
                bench.writer.count_shares();
            }
        };
        if at_once {
            lives(&mut bench, begin);
        } else {
            let old = of("a", named("old", true));
            let rolled_back = of("b", named("gone", true));
            bench.write([park(&old, 1_000).0, park(&rolled_back, 1_000).0]);
            begin(&mut bench);
            bench.write([commit(&old, 50, true).0, rollback(&rolled_back).0, commit(&of("b", origin(0)), 7, false).0]);
            bench.writer.count_shares();
            bench.assert_counted("what was decided before it was counted");
        }
        assert_eq!(bench.writer.count_at, None);
    }
}

#[test]
fn what_is_not_durable_is_not_counted() {
    let mut bench = Bench::new();
    bench.write([park(&origin(0), 1_000).0]);
    let other = bench.lock_out();
    bench.write([park(&origin(0), 1_000).0, commit(&origin(0), 1_000, false).0]);
    drop(other);
    bench.assert_counted("two that failed");
}

#[test]
fn a_dead_letter_that_is_tried_again_counts_for_nobody() {
    let mut bench = Bench::new();
    let (committed, answered) = commit(&origin(0), 1_000, false);
    bench.write([committed]);
    let sequence = place(answer(answered));
    let dead = DeadLetter {
        sequence,
        index: 0,
        message: crate::store::Stored::Sound(messages(1_000).bytes),
        reply_code: 406,
        reply_text: String::new(),
        since: Timestamp(0),
    };
    bench.write([Request::DeadLetter { letter: dead, answer: oneshot::channel().0 }]);
    bench.assert_counted("a dead letter");
    bench.deliver(&[sequence]);
    bench.assert_counted("one whose transaction is through");
    let (letter, actor, reason) = (LetterId(1), Actor::Control, String::new());
    bench.write([Request::Retry { letter, actor, reason, answer: oneshot::channel().0 }]);
    assert_eq!(bench.told().len(), 2);
    bench.assert_counted("one on its way");
    let next = Sequence(bench.writer.book.next_sequence - 1);
    bench.deliver(&[next]);
    bench.assert_counted("one that arrived");
    assert!(bench.writer.shares.users().is_empty());
}
