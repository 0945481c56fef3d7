//! The second part of the story: transactions with a name.

use super::{Relay, all, batch, bodies, lane, now, page_bodies, parked, plain, wait_for};
use halfway::store::{
    Bookmark, Check, Commit, Committing, DueNow, Event, Filter, NameFilter, Named, Origin, Store, StoreError, Strand,
    Summary,
};
use halfway::tx::batch::{Batch, HalfMessage};
use halfway::tx::checker::CheckPlan;
use halfway::tx::decision::{Actor, Decision, Fate, Owned, Target, Verdict};
use halfway::tx::id::{Timestamp, TransactionId};
use halfway::tx::name::TransactionName;
use halfway::tx::state::State;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use wildmatch::WildMatch;

/// Where the story is told.
#[derive(Clone, Copy)]
pub(crate) struct Stage<'a> {
    pub store: &'a dyn Store,
    pub relay: &'a Relay,
    /// What passes.
    pub now: &'static AtomicI64,
    /// What the wall clock is ahead of it.
    pub set: &'static AtomicI64,
}

/// How long after it came to be in doubt a transaction is asked about first.
const FIRST_AFTER: i64 = 6_000;

fn millis(millis: i64) -> Duration {
    Duration::from_millis(millis.unsigned_abs())
}

fn name(name: &str) -> TransactionName {
    TransactionName::new(name.as_bytes()).unwrap()
}

fn attempt_of(user: &str, vhost: &str, text: &str, checker: Option<&str>, transactional: bool) -> Origin {
    let plan = |checker: &str| CheckPlan { checker: checker.into(), first_after: millis(FIRST_AFTER) };
    let named = Named { name: name(text), check: checker.map(plan), transactional };
    let id = TransactionId(uuid::Uuid::now_v7());
    Origin {
        id,
        user: user.into(),
        lane: lane(vhost, 1),
        strand: Strand(0),
        created_at: Timestamp(1_000),
        named: Some(Arc::new(named)),
    }
}

/// A transactional channel's, asked about at "orders".
pub(super) fn attempt(text: &str) -> Origin {
    attempt_of("guest", "/", text, Some("orders"), true)
}

/// Another channel's.
fn half(text: &str) -> Origin {
    attempt_of("guest", "/", text, Some("orders"), false)
}

fn by_name(origin: &Origin) -> Target {
    let named = origin.named.as_ref().unwrap();
    let (vhost, user) = (origin.lane.vhost.clone(), origin.user.clone());
    Target::Name(Owned { vhost, user, name: named.name.clone() })
}

fn operator() -> Actor {
    Actor::Operator("eve".into())
}

/// One message, with a message-id.
fn message(message_id: &str, body: &str) -> Batch {
    let mut header = vec![0, 60, 0, 0];
    header.extend((body.len() as u64).to_be_bytes());
    header.extend((1u16 << 7).to_be_bytes());
    header.push(message_id.len() as u8);
    header.extend(message_id.as_bytes());
    let mut batch = Batch::default();
    batch.push(HalfMessage { publish: b"\0\0\x01x\x01k\0", header: &header, body: body.as_bytes() });
    batch
}

impl Stage<'_> {
    fn time(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::Relaxed) + self.set.load(Ordering::Relaxed))
    }

    fn set_clock(&self, by: i64) {
        self.set.fetch_add(by, Ordering::Relaxed);
    }

    fn wait(&self, milliseconds: i64) {
        self.now.fetch_add(milliseconds, Ordering::Relaxed);
    }

    async fn park(&self, origin: &Origin, texts: &[&str]) {
        self.store.park(origin.clone(), batch(texts)).await.unwrap();
    }

    /// Leaves an attempt in doubt.
    async fn doubt(&self, text: &str, texts: &[&str]) -> Origin {
        let origin = attempt(text);
        self.park(&origin, texts).await;
        self.store.abandon(origin.id).await.unwrap();
        origin
    }

    async fn decide(&self, target: Target, decision: Decision) -> Verdict {
        self.store.decide(target, decision, operator(), Some("because".into())).await.unwrap()
    }

    async fn show(&self, origin: &Origin) -> (Summary, Vec<Event>) {
        self.store.transaction(origin.id).await.unwrap().expect("it is there")
    }

    async fn state(&self, origin: &Origin) -> State {
        self.show(origin).await.0.state
    }

    /// Event, actor and reason of its history.
    async fn history(&self, origin: &Origin) -> Vec<(String, String, String)> {
        let (_, events) = self.show(origin).await;
        events.into_iter().map(|event| (event.event, event.actor, event.reason.unwrap_or_default())).collect()
    }

    /// The bodies that the relay was told of or may read, and ends them.
    async fn forwarded(&self, origin: &Origin) -> Vec<String> {
        let told = self.relay.told();
        let packs = all(self.store, &origin.lane).await;
        for tx in &told {
            if let Some(messages) = &tx.messages {
                let read: Vec<_> = packs.iter().filter(|pack| pack.id == tx.id).cloned().collect();
                assert_eq!(bodies(messages), page_bodies(&read), "what is handed on is what is kept");
            }
        }
        let mut told: Vec<_> = told.iter().map(|tx| tx.sequence).collect();
        self.store.delivered(told.clone());
        wait_for(self.store, &origin.lane, &[]).await;
        told.dedup();
        let mut read: Vec<_> = packs.iter().map(|pack| pack.sequence).collect();
        read.dedup();
        assert_eq!(told, read, "the relay is told of what it may read, once");
        page_bodies(&packs)
    }
}

fn events(history: &[(String, String, String)]) -> Vec<&str> {
    history.iter().map(|(event, _, _)| event.as_str()).collect()
}

fn is_conflict<T>(answer: &Result<T, StoreError>, wanted: &str) -> bool {
    matches!(answer, Err(StoreError::Conflict(state)) if state == wanted)
}

fn is_locked<T>(answer: &Result<T, StoreError>, wanted: &str) -> bool {
    matches!(answer, Err(StoreError::Locked(name)) if name == wanted)
}

async fn what_its_channel_left_undecided_is_asked_about_until_somebody_decides(stage: Stage<'_>) {
    let Stage { store, .. } = stage;
    let due = |limit| store.due("orders", "", limit);
    assert_eq!(due(10).await.unwrap(), DueNow::default());
    let tx = attempt("order-1");
    stage.park(&tx, &["a", "b"]).await;
    let (summary, _) = stage.show(&tx).await;
    assert_eq!((summary.state, summary.parked_at, summary.next_check_at), (State::Open, Some(stage.time()), None));
    assert_eq!((summary.name, summary.messages), (Some(name("order-1")), 2));
    assert_eq!(due(10).await.unwrap(), DueNow::default(), "nobody is asked while the channel lives");

    stage.wait(100);
    store.abandon(tx.id).await.unwrap();
    store.abandon(tx.id).await.unwrap();
    let first = Timestamp(stage.time().0 + FIRST_AFTER);
    assert_eq!(stage.show(&tx).await.0.next_check_at, Some(first));
    assert_eq!(due(10).await.unwrap(), DueNow { due: vec![], next: Some(millis(FIRST_AFTER)) });
    stage.wait(FIRST_AFTER - 1);
    assert_eq!(due(10).await.unwrap().due, [], "never before its time");
    stage.wait(1);
    let found = due(10).await.unwrap();
    assert_eq!(found.due.iter().map(|due| due.id).collect::<Vec<_>>(), [tx.id]);
    assert_eq!(found.next, None);
    assert_eq!(store.due("others", "", 10).await.unwrap(), DueNow::default());

    let checked = |result: &str, counted, after: Option<i64>| {
        let (checker, answered) = ("orders".into(), counted || result == "ongoing");
        store
            .checked(tx.id, Check { checker, result: result.into(), answered, counted, again_after: after.map(millis) })
    };
    for (result, counted) in [
        ("refused", false),
        ("refused", false),
        ("unknown", true),
        ("unknown", true),
        ("ongoing", false),
        ("ongoing", false),
        ("refused", false),
        ("timeout", false),
        ("timeout", false),
    ] {
        assert!(checked(result, counted, Some(10)).await.unwrap());
    }
    let (summary, _) = stage.show(&tx).await;
    assert_eq!((summary.attempts, summary.checks_answered), (9, 2));
    let said: Vec<_> = stage.history(&tx).await.into_iter().filter(|(event, ..)| event == "check").collect();
    assert!(said.iter().all(|(_, actor, _)| actor == "checker orders"));
    let said: Vec<_> = said.iter().map(|(_, _, result)| result.as_str()).collect();
    assert_eq!(said, ["refused", "unknown", "unknown", "ongoing", "ongoing", "refused", "timeout"], "no news twice");
    stage.wait(10);
    let again = due(10).await.unwrap().due;
    assert_eq!(again.iter().map(|due| (due.attempts, due.answered)).collect::<Vec<_>>(), [(9, 2)]);

    assert!(checked("unknown", true, None).await.unwrap());
    assert_eq!(due(10).await.unwrap(), DueNow::default(), "it waits for a person");
    assert!(store.check_now(tx.id, None).await.unwrap());
    assert_eq!(due(10).await.unwrap().due[0].answered, 3, "its counts stay");
    assert!(store.check_now(tx.id, Some("others".into())).await.unwrap());
    assert_eq!(due(10).await.unwrap().due, []);
    assert_eq!(store.due("others", "", 10).await.unwrap().due.len(), 1);

    stage.wait(5);
    let checker = Actor::Checker("others".into());
    let verdict = store.decide(Target::Id(tx.id), Decision::Commit, checker, None).await.unwrap();
    let fate =
        Fate { id: tx.id, state: State::Committed, decided_at: stage.time(), decided_by: "checker others".into() };
    assert_eq!(verdict, Verdict::Decided(fate.clone()));
    stage.wait(5);
    assert_eq!(stage.decide(by_name(&tx), Decision::Commit).await, Verdict::Before(fate.clone()));
    assert_eq!(stage.decide(Target::Id(tx.id), Decision::RollBack).await, Verdict::Contradicted(fate));
    assert!(!checked("unknown", true, Some(0)).await.unwrap(), "it is not in doubt");
    assert!(!store.check_now(tx.id, None).await.unwrap());
    assert_eq!(store.due("others", "", 10).await.unwrap(), DueNow::default());
    assert_eq!(stage.forwarded(&tx).await, ["a", "b"]);
    let history = stage.history(&tx).await;
    assert_eq!(
        history[..2].iter().map(|it| (&*it.0, &*it.1)).collect::<Vec<_>>(),
        [("parked", "channel"), ("in_doubt", "channel")]
    );
    let end: Vec<_> = history[history.len() - 2..].iter().map(|it| (&*it.0, &*it.1)).collect();
    assert_eq!(end, [("committed", "checker others"), ("delivered", "relay")]);
    let (summary, _) = stage.show(&tx).await;
    assert_eq!((summary.state, summary.messages, summary.next_check_at), (State::Delivered, 2, None));
    assert_eq!(summary.decided_by.as_deref(), Some("checker others"));
    assert_eq!((summary.attempts, summary.checks_answered), (11, 4), "the one that decided is an answer too");
}

async fn the_longest_overdue_are_asked_about_first(stage: Stage<'_>) {
    let mut ids = Vec::new();
    for text in ["late-1", "late-2", "late-3"] {
        ids.push(stage.doubt(text, &["x"]).await.id);
        stage.wait(10);
    }
    stage.wait(FIRST_AFTER - 20);
    let found = |limit| async move {
        let found = stage.store.due("orders", "", limit).await.unwrap();
        (found.due.iter().map(|due| due.id).collect::<Vec<_>>(), found.next)
    };
    assert_eq!(found(10).await, (ids[..2].to_vec(), Some(millis(10))));
    assert_eq!(found(1).await, (ids[..1].to_vec(), Some(Duration::ZERO)), "there is more behind, and it is due");
    for id in ids {
        stage.decide(Target::Id(id), Decision::RollBack).await;
    }
}

/// One user's thousands kept everybody else's waiting at the same checker.
async fn users_take_turns(stage: Stage<'_>) {
    let mut ids = std::collections::HashMap::new();
    for (user, count) in [("b", 4), ("c", 1), ("a", 2), ("late", 1)] {
        for number in 1..=count {
            if user == "late" {
                stage.wait(10);
            }
            let tx = attempt_of(user, "/", &format!("turn-{number}"), Some("turns"), false);
            stage.park(&tx, &["x"]).await;
            ids.insert(tx.id, format!("{user}{number}"));
            stage.wait(1);
        }
    }
    // Another checker's users are not among them.
    let elsewhere = attempt_of("bb", "/", "turn-1", Some("others"), false);
    stage.park(&elsewhere, &["x"]).await;
    stage.wait(FIRST_AFTER - 2);
    let due = async |after: &str, limit| {
        let found = stage.store.due("turns", after, limit).await.unwrap();
        assert!(found.due.iter().all(|due| ids[&due.id].starts_with(&*due.user)));
        (found.due.iter().map(|due| ids[&due.id].as_str()).collect::<Vec<_>>().join(" "), found.next)
    };
    let (soon, now) = (Some(millis(1)), Some(Duration::ZERO));
    assert_eq!(due("", 100).await, ("a1 b1 c1 a2 b2 b3 b4".into(), soon));
    assert_eq!(due("a", 100).await, ("b1 c1 a1 b2 a2 b3 b4".into(), soon));
    assert_eq!(due("bb", 4).await, ("c1 a1 b1 a2".into(), now));
    assert_eq!(due("zz", 2).await, ("a1 b1".into(), now));
    assert_eq!(due("b", 1).await, ("c1".into(), now));
    assert_eq!(due("c", 7).await, ("a1 b1 c1 a2 b2 b3 b4".into(), soon));
    stage.wait(1);
    assert_eq!(due("c", 100).await, ("late1 a1 b1 c1 a2 b2 b3 b4".into(), None));
    for id in ids.keys().chain([&elsewhere.id]) {
        stage.decide(Target::Id(*id), Decision::RollBack).await;
    }
}

/// With the clock set back an hour, a check that was due in seconds was asked an hour later.
async fn a_clock_that_is_set_shifts_no_check(stage: Stage<'_>) {
    let Stage { store, .. } = stage;
    let due = async |checker| store.due(checker, "", 9).await.unwrap().due.iter().map(|due| due.id).collect::<Vec<_>>();
    for set in [-3_600_000, 48 * 3_600_000, -47 * 3_600_000] {
        let tx = stage.doubt(&format!("set-{set}"), &["x"]).await;
        let half = half(&format!("half-{set}"));
        stage.park(&half, &["x"]).await;
        stage.set_clock(set);
        assert_eq!(stage.show(&tx).await.0.next_check_at, Some(Timestamp(stage.time().0 + FIRST_AFTER)));
        stage.wait(FIRST_AFTER - 1);
        assert_eq!(due("orders").await, []);
        stage.wait(1);
        assert_eq!(due("orders").await, [tx.id, half.id]);

        let check = Check {
            checker: "orders".into(),
            result: "ongoing".into(),
            answered: true,
            counted: false,
            again_after: Some(Duration::from_micros(1_500)),
        };
        assert!(store.checked(tx.id, check).await.unwrap());
        assert!(store.check_now(half.id, Some("others".into())).await.unwrap());
        stage.set_clock(-set);
        assert_eq!(due("others").await, [half.id]);
        stage.wait(1);
        assert_eq!(due("orders").await, [], "two milliseconds, or it would come before its time");
        stage.wait(1);
        assert_eq!(due("orders").await, [tx.id]);
        for id in [tx.id, half.id] {
            stage.decide(Target::Id(id), Decision::RollBack).await;
        }
        // The last decision is the last that was made, not that with the latest time.
        let again = stage.doubt(&format!("set-{set}"), &["x"]).await;
        stage.set_clock(set);
        stage.decide(Target::Id(again.id), Decision::RollBack).await;
        let last = stage.decide(by_name(&tx), Decision::RollBack).await;
        assert!(matches!(&last, Verdict::Before(fate) if fate.id == again.id), "{last:?}");
        stage.set_clock(-set);
    }
}

async fn a_later_attempt_that_commits_replaces_the_one_in_doubt(stage: Stage<'_>) {
    let earlier = stage.doubt("again", &["old"]).await;
    let later = attempt("again");
    stage.park(&later, &["new"]).await;
    assert_eq!(stage.state(&earlier).await, State::InDoubt, "not before it commits");
    now(stage.store.commit(parked(&later, &["newer"])).await);
    assert_eq!(stage.forwarded(&later).await, ["new", "newer"]);
    let last = stage.history(&earlier).await.pop().unwrap();
    assert_eq!(last.0, "rolled_back");
    assert_eq!(last.1, format!("attempt {}", later.id));
    assert_eq!(last.2, format!("replaced by attempt {}", later.id));
    let contrary = stage.decide(Target::Id(earlier.id), Decision::Commit).await;
    assert!(matches!(contrary, Verdict::Contradicted(fate) if fate.id == earlier.id));
    assert!(
        matches!(stage.decide(by_name(&later), Decision::Commit).await, Verdict::Before(fate) if fate.id == later.id)
    );
}

async fn a_committed_name_absorbs_what_comes_under_it(stage: Stage<'_>) {
    let Stage { store, .. } = stage;
    let first = attempt("once");
    stage.park(&first, &["sent"]).await;
    now(store.commit(parked(&first, &[])).await);
    assert_eq!(store.commit(parked(&first, &[])).await.unwrap(), Committing::Before);
    assert!(is_conflict(&store.park(first.clone(), batch(&["late"])).await, "committed"));
    for round in ["committed", "delivered"] {
        let again = attempt("once");
        stage.park(&again, &["sent twice"]).await;
        assert_eq!(store.commit(parked(&again, &["and more"])).await.unwrap(), Committing::Before, "{round}");
        assert_eq!(store.commit(plain(&attempt("once"), &["at once"])).await.unwrap(), Committing::Before);
        store.abandon(again.id).await.unwrap();
        assert_eq!(store.transaction(again.id).await.unwrap(), None, "nothing of it is kept");
        stage.park(&half("once"), &["sent by another channel"]).await;
        let expected: &[&str] = if round == "committed" { &["sent"] } else { &[] };
        assert_eq!(stage.forwarded(&first).await, expected);
    }
    // Names of others never meet.
    for (user, vhost) in [("other", "/"), ("guest", "elsewhere")] {
        let theirs = attempt_of(user, vhost, "once", None, true);
        assert_eq!(stage.decide(by_name(&theirs), Decision::Commit).await, Verdict::Unknown);
        stage.park(&theirs, &["theirs"]).await;
        now(store.commit(parked(&theirs, &[])).await);
        assert_eq!(stage.forwarded(&theirs).await, ["theirs"]);
    }
}

async fn one_attempt_at_a_time_is_open(stage: Stage<'_>) {
    let Stage { store, .. } = stage;
    let (first, second, third) = (attempt("busy"), attempt("busy"), attempt("busy"));
    stage.park(&first, &["1"]).await;
    assert!(is_locked(&store.park(second.clone(), batch(&["2"])).await, "busy"));
    assert!(is_locked(&store.park(half("busy"), batch(&["2"])).await, "busy"));
    assert!(is_locked(&store.commit(plain(&attempt("busy"), &["2"])).await, "busy"));
    stage.park(&attempt_of("other", "/", "busy", None, true), &["theirs"]).await;
    store.rollback(first.id, Some("404 NOT_FOUND".into())).await.unwrap();
    assert_eq!(stage.history(&first).await.pop().unwrap().2, "404 NOT_FOUND");
    // A part of it is lost: it can't be committed although the name is free now.
    assert!(is_locked(&store.park(second.clone(), batch(&["3"])).await, "busy"));
    assert!(is_locked(&store.commit(parked(&second, &[])).await, "busy"));
    store.rollback(second.id, None).await.unwrap();

    stage.park(&third, &["3"]).await;
    now(store.commit(parked(&third, &[])).await);
    assert_eq!(stage.forwarded(&third).await, ["3"], "a name that was rolled back is free");
}

async fn a_message_id_comes_once(stage: Stage<'_>) {
    let Stage { store, .. } = stage;
    let tx = attempt("dedup");
    let mut twice = message("1", "a");
    for (message_id, body) in [("2", "b"), ("1", "a again"), ("3", "c"), ("2", "b again")] {
        let bytes = message(message_id, body).into_bytes();
        let message = halfway::tx::batch::iter(&bytes).next().unwrap().unwrap();
        twice.push(message);
    }
    store.park(tx.clone(), twice).await.unwrap();
    store.park(tx.clone(), message("3", "c again")).await.unwrap();
    stage.park(&tx, &["no id", "no id"]).await;
    assert_eq!(stage.show(&tx).await.0.messages, 5);
    let packs = store.messages(tx.id, 0, usize::MAX).await.unwrap();
    assert_eq!(page_bodies(&packs), ["a", "b", "c", "no id", "no id"]);
    assert_eq!(packs.iter().map(|pack| (pack.first_index, pack.last)).collect::<Vec<_>>(), [(0, false), (3, true)]);
    assert_eq!(store.messages(tx.id, 0, 1).await.unwrap().len(), 1);

    let other = attempt("dedup-2");
    store.park(other.clone(), message("1", "of another transaction")).await.unwrap();
    let last = Commit { batch: message("2", "b again"), ..parked(&tx, &[]) };
    now(store.commit(last).await);
    now(store.commit(Commit { batch: message("2", "new"), ..parked(&other, &[]) }).await);
    let whole = Commit { batch: message("1", "whole"), ..plain(&attempt("dedup-3"), &[]) };
    now(store.commit(whole).await);
    let expected = ["a", "b", "c", "no id", "no id", "of another transaction", "new", "whole"];
    assert_eq!(stage.forwarded(&tx).await, expected);
}

async fn half_messages_of_other_channels_gather_in_doubt(stage: Stage<'_>) {
    let Stage { store, .. } = stage;
    let (first, second) = (half("gathered"), half("gathered"));
    stage.park(&first, &["1"]).await;
    let first_check = stage.time().0 + FIRST_AFTER;
    stage.wait(50);
    stage.park(&second, &["2"]).await;
    let (summary, history) = stage.show(&first).await;
    assert_eq!((summary.state, summary.messages), (State::InDoubt, 2));
    assert_eq!(summary.next_check_at, Some(Timestamp(first_check)), "from the first park");
    assert_eq!(history.iter().map(|event| &*event.event).collect::<Vec<_>>(), ["parked", "in_doubt"]);
    assert_eq!(store.transaction(second.id).await.unwrap(), None, "it joined");
    store.abandon(first.id).await.unwrap();
    assert_eq!(stage.show(&first).await.1.len(), 2);

    let committed = stage.decide(by_name(&second), Decision::Commit).await;
    assert!(matches!(committed, Verdict::Decided(fate) if fate.id == first.id && fate.decided_by == "operator eve"));
    assert_eq!(stage.history(&first).await.pop().unwrap().2, "because");
    stage.park(&half("gathered"), &["3"]).await;
    assert_eq!(stage.forwarded(&first).await, ["1", "2"]);

    // What a transactional channel left in doubt is joined as well.
    let left = stage.doubt("left", &["1"]).await;
    stage.park(&half("left"), &["2"]).await;
    stage.decide(Target::Id(left.id), Decision::Commit).await;
    assert_eq!(stage.forwarded(&left).await, ["1", "2"]);
}

async fn what_was_decided_from_outside_is_not_decided_again(stage: Stage<'_>) {
    let Stage { store, .. } = stage;
    let (committed, more, dropped) = (attempt("out-1"), attempt("out-2"), attempt("out-3"));
    for tx in [&committed, &more, &dropped] {
        stage.park(tx, &["x"]).await;
    }
    for (tx, decision) in [(&committed, Decision::Commit), (&more, Decision::Commit), (&dropped, Decision::RollBack)] {
        assert!(matches!(stage.decide(by_name(tx), decision).await, Verdict::Decided(_)));
        store.abandon(tx.id).await.unwrap();
        assert_eq!(stage.state(tx).await, decision.state());
    }
    assert_eq!(store.commit(parked(&committed, &[])).await.unwrap(), Committing::Before);
    assert!(is_conflict(&store.park(more.clone(), batch(&["lost"])).await, "committed"));
    assert!(is_conflict(&store.commit(parked(&more, &[])).await, "committed"), "a part of it is not on its way");
    assert!(is_conflict(&store.rollback(more.id, None).await, "committed"));
    assert!(is_conflict(&store.commit(parked(&dropped, &[])).await, "rolled_back"));
    assert!(is_conflict(&store.park(dropped.clone(), batch(&["y"])).await, "rolled_back"));
    store.rollback(dropped.id, None).await.unwrap();
    assert_eq!(stage.forwarded(&committed).await, ["x", "x"]);
    assert!(matches!(stage.decide(by_name(&dropped), Decision::RollBack).await, Verdict::Before(_)));
    assert!(matches!(stage.decide(by_name(&dropped), Decision::Commit).await, Verdict::Contradicted(_)));

    // The one in doubt is committed while a later attempt is open: a name has one fate.
    let earlier = stage.doubt("out-4", &["earlier"]).await;
    let later = attempt("out-4");
    stage.park(&later, &["later"]).await;
    let meant = stage.decide(by_name(&later), Decision::Commit).await;
    assert!(matches!(meant, Verdict::Decided(fate) if fate.id == earlier.id), "what is open has a channel");
    assert_eq!(store.commit(parked(&later, &[])).await.unwrap(), Committing::Before);
    let last = stage.history(&later).await.pop().unwrap();
    assert_eq!((last.0.as_str(), last.1), ("rolled_back", format!("attempt {}", earlier.id)));
    for (text, by_channel) in [("out-5", true), ("out-6", false)] {
        let (earlier, later) = (stage.doubt(text, &["earlier"]).await, attempt(text));
        stage.park(&later, &["later"]).await;
        stage.decide(Target::Id(earlier.id), Decision::Commit).await;
        if by_channel {
            store.abandon(later.id).await.unwrap();
        } else {
            let verdict = stage.decide(Target::Id(later.id), Decision::Commit).await;
            assert!(matches!(verdict, Verdict::Before(fate) if fate.id == earlier.id));
        }
        assert_eq!(stage.state(&later).await, State::RolledBack);
    }
    // The later one is committed from outside: the earlier one goes.
    let (earlier_too, later) = (stage.doubt("out-7", &["never"]).await, attempt("out-7"));
    stage.park(&later, &["later"]).await;
    stage.decide(Target::Id(later.id), Decision::Commit).await;
    assert_eq!(stage.state(&earlier_too).await, State::RolledBack);
    assert_eq!(stage.forwarded(&earlier).await, ["earlier", "earlier", "earlier", "later"]);
}

async fn of_two_attempts_in_doubt_the_larger_stays(stage: Stage<'_>) {
    for (text, first, second, second_stays) in [("fuller", 2, 1, false), ("fuller-2", 1, 2, true), ("tie", 1, 1, true)]
    {
        let bodies = ["x"; 2];
        let earlier = stage.doubt(text, &bodies[..first]).await;
        let later = stage.doubt(text, &bodies[..second]).await;
        let (stays, goes) = if second_stays { (&later, &earlier) } else { (&earlier, &later) };
        assert_eq!(stage.state(stays).await, State::InDoubt, "{text}");
        let last = stage.history(goes).await.pop().unwrap();
        assert_eq!((last.0.as_str(), last.1), ("rolled_back", format!("attempt {}", stays.id)));
        assert!(matches!(stage.decide(by_name(stays), Decision::RollBack).await, Verdict::Decided(_)));
    }
}

async fn only_its_channel_commits_what_has_no_name(stage: Stage<'_>) {
    let unknown = Target::Id(TransactionId(uuid::Uuid::now_v7()));
    assert_eq!(stage.decide(unknown, Decision::Commit).await, Verdict::Unknown);
    let tx = super::origin(lane("/", 1));
    stage.park(&tx, &["x"]).await;
    let refused = stage.store.decide(Target::Id(tx.id), Decision::Commit, operator(), None).await;
    assert!(matches!(refused, Err(StoreError::Conflict(why)) if why.contains("no name")));
    stage.store.abandon(tx.id).await.unwrap();
    assert_eq!(stage.state(&tx).await, State::Open);
    assert!(matches!(stage.decide(Target::Id(tx.id), Decision::RollBack).await, Verdict::Decided(_)));
    assert_eq!(events(&stage.history(&tx).await), ["parked", "rolled_back"]);
}

async fn what_nobody_would_ask_about_is_found(stage: Stage<'_>) {
    let mut ids = Vec::new();
    for (text, checker) in [("u-1", None), ("u-2", Some("gone")), ("u-3", Some("orders")), ("u-4", None)] {
        let tx = attempt_of("guest", "/", text, checker, true);
        stage.park(&tx, &["x"]).await;
        stage.store.abandon(tx.id).await.unwrap();
        ids.push(tx.id);
    }
    let unasked = |after| stage.store.unasked(vec!["orders".into(), "others".into()], after, 2);
    let first = unasked(Bookmark::START).await.unwrap();
    assert_eq!(first.items.iter().map(|tx| tx.id).collect::<Vec<_>>(), ids[..2]);
    let second = unasked(first.next.unwrap()).await.unwrap();
    assert_eq!(second.items.iter().map(|tx| tx.id).collect::<Vec<_>>(), ids[3..]);
    assert_eq!(second.next, None);
    assert!(!stage.store.check_now(ids[0], None).await.unwrap(), "nobody to ask");
    assert!(stage.store.check_now(ids[0], Some("orders".into())).await.unwrap());
    assert!(stage.store.due("orders", "", 9).await.unwrap().due.iter().any(|due| due.id == ids[0]));
    for id in ids {
        stage.decide(Target::Id(id), Decision::RollBack).await;
    }
}

async fn lists_go_on_where_they_ended(stage: Stage<'_>) {
    let Stage { store, .. } = stage;
    let tx = |text: &str| attempt_of("lister", "lists", text, None, true);
    let (open, doubtful, dropped, sent) = (tx("l-open"), tx("l-doubt"), tx("l-dropped"), tx("l-sent"));
    for tx in [&open, &doubtful, &dropped, &sent] {
        stage.park(tx, &["x"]).await;
    }
    store.abandon(doubtful.id).await.unwrap();
    store.rollback(dropped.id, None).await.unwrap();
    // An id tells when it was made; the store's clock is not the world's here.
    let made = stage.time().0.unsigned_abs();
    let made = uuid::Timestamp::from_unix(uuid::NoContext, made / 1000, (made % 1000) as u32 * 1_000_000);
    let id = TransactionId(uuid::Uuid::new_v7(made));
    let plain_one = Origin { id, user: "lister".into(), ..super::origin(lane("lists", 2)) };
    let plain_sequence = now(store.commit(plain(&plain_one, &["plain"])).await);
    let sequence = now(store.commit(parked(&sent, &[])).await);

    let everything = Filter { vhost: Some("lists".into()), ..Filter::default() };
    let ids = |filter: Filter, limit| async move {
        let (mut ids, mut after) = (Vec::new(), Some(Bookmark::START));
        while let Some(from) = after {
            let listing = store.transactions(filter.clone(), from, limit).await.unwrap();
            assert!(listing.items.len() <= limit);
            ids.extend(listing.items.iter().map(|tx| tx.id));
            after = listing.next;
        }
        ids
    };
    let in_order = [open.id, doubtful.id, dropped.id, plain_one.id, sent.id];
    for limit in [1, 2, 3, 100] {
        assert_eq!(ids(everything.clone(), limit).await, in_order, "pages of {limit}");
        for (state, expected) in [
            (State::Open, &in_order[..1]),
            (State::InDoubt, &in_order[1..2]),
            (State::RolledBack, &in_order[2..3]),
            (State::Committed, &in_order[3..]),
            (State::DeadLettered, &[]),
        ] {
            assert_eq!(ids(Filter { state: Some(state), ..everything.clone() }, limit).await, expected, "{state}");
        }
    }
    for text in ["l-open", "l-dropped"] {
        let filter = Filter { name: Some(NameFilter::Whole(text.into())), ..Filter::default() };
        assert_eq!(ids(filter.clone(), 10).await.len(), 1);
        assert_eq!(ids(Filter { user: Some("else".into()), ..filter }, 10).await, []);
    }
    for (pattern, expected) in
        [("l-d*", &in_order[1..3]), ("l-????", &in_order[..1]), ("*", &in_order[..3]), ("L-*", &[]), ("l-", &[])]
    {
        let name = Some(NameFilter::Pattern(WildMatch::new(pattern)));
        let found: Vec<_> = ids(Filter { name, ..everything.clone() }, 1).await;
        let named = found.into_iter().filter(|id| *id != sent.id).collect::<Vec<_>>();
        assert_eq!(named, expected, "{pattern}");
    }
    let exchange = |exchange: &str| Filter { exchange: Some(exchange.into()), ..everything.clone() };
    let with_messages = [open.id, doubtful.id, plain_one.id, sent.id];
    assert_eq!(ids(exchange("x"), 2).await, with_messages, "what was rolled back has none any more");
    assert_eq!(ids(Filter { state: Some(State::Committed), ..exchange("x") }, 10).await, in_order[3..]);
    assert_eq!(ids(exchange(""), 10).await, []);
    let at = |by: i64| Some(Timestamp(open.created_at.0 + by));
    assert_eq!(ids(Filter { created_before: at(0), ..everything.clone() }, 10).await, []);
    assert_eq!(ids(Filter { created_before: at(1), ..everything.clone() }, 10).await, in_order);
    let parked_before = |by: i64| Filter { parked_before: Some(Timestamp(stage.time().0 + by)), ..everything.clone() };
    assert_eq!(ids(parked_before(0), 10).await, []);
    assert_eq!(ids(parked_before(1), 10).await, [open.id, doubtful.id, dropped.id, sent.id], "plain ones never were");
    let (summary, history) = store.transaction(plain_one.id).await.unwrap().expect("plain ones are found as well");
    assert_eq!((summary.decided_by.as_deref(), summary.parked_at, history), (Some("channel"), None, vec![]));
    assert_eq!(page_bodies(&store.messages(plain_one.id, 0, 0).await.unwrap()), ["plain"]);

    store.dead_letter(super::letter(plain_sequence, 0)).await.unwrap();
    store.delivered(vec![plain_sequence, sequence]);
    wait_for(store, &plain_one.lane, &[]).await;
    wait_for(store, &sent.lane, &[]).await;
    assert_eq!(ids(Filter { state: Some(State::DeadLettered), ..everything.clone() }, 1).await, [plain_one.id]);
    assert_eq!(events(&stage.history(&plain_one).await), ["dead_letter", "dead_lettered"]);
    assert!(matches!(stage.decide(Target::Id(plain_one.id), Decision::RollBack).await, Verdict::Contradicted(_)));
    assert_eq!(ids(Filter { state: Some(State::Delivered), ..everything }, 1).await, [sent.id]);
    for gone in [&plain_one, &sent, &dropped] {
        assert_eq!(store.messages(gone.id, 0, usize::MAX).await.unwrap(), []);
    }
    stage.relay.told();
}

/// All chapters, one after the other, on one store.
pub(crate) async fn story(stage: Stage<'_>) {
    what_its_channel_left_undecided_is_asked_about_until_somebody_decides(stage).await;
    the_longest_overdue_are_asked_about_first(stage).await;
    users_take_turns(stage).await;
    a_clock_that_is_set_shifts_no_check(stage).await;
    a_later_attempt_that_commits_replaces_the_one_in_doubt(stage).await;
    a_committed_name_absorbs_what_comes_under_it(stage).await;
    one_attempt_at_a_time_is_open(stage).await;
    a_message_id_comes_once(stage).await;
    half_messages_of_other_channels_gather_in_doubt(stage).await;
    what_was_decided_from_outside_is_not_decided_again(stage).await;
    of_two_attempts_in_doubt_the_larger_stays(stage).await;
    only_its_channel_commits_what_has_no_name(stage).await;
    what_nobody_would_ask_about_is_found(stage).await;
    lists_go_on_where_they_ended(stage).await;
}
