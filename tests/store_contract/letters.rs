//! The third part of the story: dead letters that a person decides about.

use super::named::Stage;
use super::{Relay, all, batch, commit, lane, letter, origin, page_bodies, parked, plain, wait_for};
use halfway::store::sqlite::{SqliteSettings, SqliteStore, check, stats};
use halfway::store::{
    Bookmark, Clock, DeadLetter, Filter, Letter, LetterFilter, LetterId, Origin, Sequence, Store, StoreError, Stored,
    Summary,
};
use halfway::tx::decision::{Actor, Decision, Target, Verdict};
use halfway::tx::id::Timestamp;
use halfway::tx::state::State;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

fn eve() -> Actor {
    Actor::Operator("eve".into())
}

/// Commits three messages of which RabbitMQ takes the first only. The letters of the others.
async fn with_two_letters(store: &dyn Store, relay: &Relay, vhost: &str, was_parked: bool) -> (Origin, [LetterId; 2]) {
    let tx = origin(lane(vhost, 4));
    if was_parked {
        store.park(tx.clone(), batch(&["a"])).await.unwrap();
    }
    let sequence = match was_parked {
        true => commit(store, parked(&tx, &["dead", "dead"])).await,
        false => commit(store, plain(&tx, &["a", "dead", "dead"])).await,
    };
    for index in [1, 2] {
        store.dead_letter(letter(sequence, index)).await.unwrap();
    }
    let letters = of(store, vhost).await;
    let [first, second] = &letters[..] else { panic!("{letters:?}") };
    // Others of its messages may be on their way, and would be sent again after a crash.
    for early in [store.retry(first.id, eve(), "r".into()), store.discard(first.id, eve(), "r".into())] {
        let early = early.await;
        assert!(matches!(&early, Err(StoreError::Conflict(why)) if why.contains("on their way")), "{early:?}");
    }
    store.delivered(vec![sequence]);
    wait_for(store, &tx.lane, &[]).await;
    relay.told();
    (tx, [first.id, second.id])
}

async fn of(store: &dyn Store, vhost: &str) -> Vec<Letter> {
    let filter = LetterFilter { vhost: Some(vhost.into()), ..LetterFilter::default() };
    store.dead_letters(filter, Bookmark::START, 1000).await.unwrap().items
}

async fn ids(store: &dyn Store, vhost: &str) -> Vec<LetterId> {
    of(store, vhost).await.into_iter().map(|letter| letter.id).collect()
}

async fn look(store: &dyn Store, tx: &Origin) -> (Summary, Vec<(String, String, String)>) {
    let (summary, events) = store.transaction(tx.id).await.unwrap().expect("it is kept for its history");
    let events = events.into_iter().map(|event| (event.event, event.actor, event.reason.unwrap_or_default()));
    (summary, events.collect())
}

/// Waits until a transaction is in this state: what is delivered is written a little later.
async fn wait_for_state(store: &dyn Store, tx: &Origin, state: State) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while look(store, tx).await.0.state != state {
        assert!(Instant::now() < deadline, "{:?} instead of {state}", look(store, tx).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn refused(sequence: Sequence, index: u32) -> DeadLetter {
    DeadLetter { reply_code: 312, reply_text: "NO_ROUTE".into(), since: Timestamp(9_000), ..letter(sequence, index) }
}

async fn letters_are_listed_and_found(Stage { store, relay, .. }: Stage<'_>) {
    let (tx, [first, second]) = with_two_letters(store, relay, "listed", false).await;
    let found = store.dead_letter_by_id(first).await.unwrap().expect("it was listed");
    assert_eq!((found.id, found.transaction, &*found.vhost), (first, tx.id, "listed"));
    assert_eq!((found.envelope.exchange.as_str(), found.envelope.routing_key.as_str()), ("x", "k"));
    assert_eq!((found.reply_code, found.since, found.attempts), (404, Timestamp(2_000), 1));
    assert!(found.reply_text.starts_with("NOT_FOUND"), "{found:?}");
    assert_eq!(of(store, "listed").await[0], found);
    let kept = store.dead_letter_message(first).await.unwrap().expect("it was listed");
    assert_eq!((kept.index, &kept.message), (1, letter(Sequence(1), 1).message.bytes()));
    assert_eq!(store.dead_letter_message("9223372036854775807".parse().unwrap()).await.unwrap(), None);

    let by = |vhost: Option<&str>, exchange: Option<&str>| LetterFilter {
        vhost: vhost.map(Into::into),
        exchange: exchange.map(Into::into),
        since_before: None,
    };
    let exchange = store.dead_letters(by(Some("listed"), Some("x")), Bookmark::START, 10).await.unwrap();
    assert_eq!(exchange.items.len(), 2);
    for none in [by(Some("listed"), Some("y")), by(Some("nowhere"), None)] {
        assert_eq!(store.dead_letters(none, Bookmark::START, 10).await.unwrap().items, []);
    }
    for (before, expected) in [(found.since, 0), (Timestamp(found.since.0 + 1), 2)] {
        let filter = LetterFilter { since_before: Some(before), ..by(Some("listed"), None) };
        assert_eq!(store.dead_letters(filter, Bookmark::START, 10).await.unwrap().items.len(), expected);
    }
    let page = store.dead_letters(by(Some("listed"), None), Bookmark::START, 1).await.unwrap();
    assert_eq!(page.items.iter().map(|letter| letter.id).collect::<Vec<_>>(), [first]);
    let page = store.dead_letters(by(Some("listed"), None), page.next.expect("there are more"), 1).await.unwrap();
    assert_eq!(page.items.iter().map(|letter| letter.id).collect::<Vec<_>>(), [second]);
    assert_eq!(store.dead_letter_by_id("9223372036854775807".parse().unwrap()).await.unwrap(), None);
    for letter in [first, second] {
        assert_eq!(store.discard(letter, eve(), "tidy".into()).await.unwrap(), Some(tx.id));
    }
}

async fn a_letter_is_tried_again_as_itself_until_rabbitmq_has_it(stage: Stage<'_>, was_parked: bool) {
    let Stage { store, relay, .. } = stage;
    let vhost = if was_parked { "retried-parked" } else { "retried-plain" };
    let (tx, [first, second]) = with_two_letters(store, relay, vhost, was_parked).await;
    let before = commit(store, plain(&origin(tx.lane.clone()), &["before"])).await;
    relay.told();

    assert_eq!(store.retry(second, eve(), "the exchange is back".into()).await.unwrap(), Some(tx.id));
    let told = relay.told();
    let [told] = &told[..] else { panic!("{told:?}") };
    assert_eq!((told.id, &told.lane, &told.messages), (tx.id, &tx.lane, &None));
    assert!(told.sequence > before, "behind what was committed before it");
    let packs = all(store, &tx.lane).await;
    assert_eq!(page_bodies(&packs), ["before", "dead"]);
    let again = &packs[1];
    assert_eq!((again.sequence, again.id, again.first_index, again.last), (told.sequence, tx.id, 2, true));
    assert_eq!((packs[0].retried, again.retried), (false, true), "it may be there already");
    store.delivered(vec![before]);
    wait_for(store, &tx.lane, &["dead"]).await;
    assert_eq!(store.lanes().await.unwrap(), std::slice::from_ref(&tx.lane));

    // On its way it is nobody else's, and no transaction of its own.
    assert_eq!(ids(store, vhost).await, [first]);
    assert_eq!(store.dead_letter_by_id(second).await.unwrap(), None);
    assert_eq!(store.dead_letter_message(second).await.unwrap(), None);
    assert_eq!(store.retry(second, eve(), "r".into()).await.unwrap(), None);
    assert_eq!(store.discard(second, eve(), "r".into()).await.unwrap(), None);
    let filter = Filter { vhost: Some(vhost.into()), ..Filter::default() };
    for state in [None, Some(State::Committed), Some(State::DeadLettered)] {
        let found = store.transactions(Filter { state, ..filter.clone() }, Bookmark::START, 10).await.unwrap().items;
        let expected = if state == Some(State::Committed) { 0 } else { 1 };
        assert_eq!(found.iter().filter(|found| found.id == tx.id).count(), expected, "{state:?}");
    }

    // Refused once more: the same letter.
    store.dead_letter(refused(told.sequence, 2)).await.unwrap();
    store.delivered(vec![told.sequence]);
    wait_for(store, &tx.lane, &[]).await;
    assert_eq!(ids(store, vhost).await, [first, second]);
    let found = store.dead_letter_by_id(second).await.unwrap().expect("it waits again");
    assert_eq!((found.attempts, found.since, found.reply_code), (2, Timestamp(2_000), 312));
    assert_eq!(look(store, &tx).await.0.state, State::DeadLettered);

    // Then taken; the transaction still waits for its other letter.
    store.retry(second, eve(), "once more".into()).await.unwrap();
    let sequence = relay.told()[0].sequence;
    store.delivered(vec![sequence]);
    wait_for(store, &tx.lane, &[]).await;
    assert_eq!(ids(store, vhost).await, [first]);
    assert_eq!(look(store, &tx).await.0.state, State::DeadLettered);

    store.retry(first, eve(), "and this".into()).await.unwrap();
    store.delivered(vec![relay.told()[0].sequence]);
    wait_for_state(store, &tx, State::Delivered).await;
    assert_eq!((of(store, vhost).await, all(store, &tx.lane).await), (vec![], vec![]));
    assert_eq!(store.lanes().await.unwrap(), []);
    let (_, history) = look(store, &tx).await;
    let history: Vec<_> = history.iter().map(|(event, actor, why)| (&event[..], &actor[..], &why[..])).collect();
    let tail = [
        ("dead_lettered", "relay", ""),
        ("retry", "operator eve", "message 2: the exchange is back"),
        ("dead_letter", "relay", "message 2: 312 NO_ROUTE"),
        ("retry", "operator eve", "message 2: once more"),
        ("redelivered", "relay", "message 2: RabbitMQ has it"),
        ("retry", "operator eve", "message 1: and this"),
        ("redelivered", "relay", "message 1: RabbitMQ has it"),
        ("delivered", "relay", "no dead letter is left"),
    ];
    assert_eq!(history[history.len() - tail.len()..], tail);
    let verdict = store.decide(Target::Id(tx.id), Decision::RollBack, eve(), None).await.unwrap();
    assert!(matches!(verdict, Verdict::Contradicted(_)), "{verdict:?}");
}

async fn a_discarded_letter_is_gone_for_good(Stage { store, relay, .. }: Stage<'_>) {
    let (tx, [first, second]) = with_two_letters(store, relay, "discarded", false).await;
    assert_eq!(store.discard(first, eve(), "a test".into()).await.unwrap(), Some(tx.id));
    assert_eq!(ids(store, "discarded").await, [second]);
    assert_eq!(look(store, &tx).await.0.state, State::DeadLettered);
    assert_eq!(store.discard(second, eve(), "another".into()).await.unwrap(), Some(tx.id));
    for letter in [first, second] {
        assert_eq!(store.discard(letter, eve(), "late".into()).await.unwrap(), None);
        assert_eq!(store.retry(letter, eve(), "late".into()).await.unwrap(), None);
    }
    assert_eq!((of(store, "discarded").await, all(store, &tx.lane).await), (vec![], vec![]));
    assert_eq!(relay.told().len(), 0, "nothing is published");
    let (summary, history) = look(store, &tx).await;
    assert_eq!(summary.state, State::Delivered);
    let by_eve: Vec<_> = history.iter().filter(|(_, actor, _)| actor == "operator eve").collect();
    let [one, other, end] = by_eve[..] else { panic!("{history:?}") };
    assert_eq!((one.0.as_str(), one.2.as_str()), ("discard", "message 1: a test"));
    assert_eq!((other.0.as_str(), other.2.as_str()), ("discard", "message 2: another"));
    assert_eq!(end.0, "delivered");

    // A number never means another letter.
    let (_, [third, fourth]) = with_two_letters(store, relay, "discarded", false).await;
    assert!(third > second && fourth > third);
    for letter in [third, fourth] {
        store.discard(letter, eve(), "tidy".into()).await.unwrap().expect("it is there");
    }
}

/// All chapters, one after the other, on one store.
async fn what_came_damaged_stays_so(stage: Stage<'_>) {
    let Stage { store, relay, .. } = stage;
    let tx = origin(lane("damaged", 0));
    let sequence = commit(store, plain(&tx, &["a"])).await;
    let bytes = letter(sequence, 0).message.bytes().clone();
    store.dead_letter(DeadLetter { message: Stored::Damaged(bytes.clone()), ..letter(sequence, 0) }).await.unwrap();
    store.delivered(vec![sequence]);
    wait_for(store, &tx.lane, &[]).await;
    let id = ids(store, "damaged").await[0];
    assert_eq!(store.dead_letter_message(id).await.unwrap().expect("it waits").message, bytes, "for people");
    store.retry(id, eve(), "try".into()).await.unwrap().expect("it waits");
    let again = all(store, &tx.lane).await.remove(0);
    assert_eq!(again.messages, Stored::Damaged(bytes), "but not for the relay");
    store.dead_letter(DeadLetter { message: again.messages, ..letter(again.sequence, 0) }).await.unwrap();
    assert_eq!(store.discard(id, eve(), "lost".into()).await.unwrap(), Some(tx.id));
    relay.told();
}

pub(crate) async fn story(stage: Stage<'_>) {
    letters_are_listed_and_found(stage).await;
    a_letter_is_tried_again_as_itself_until_rabbitmq_has_it(stage, false).await;
    a_letter_is_tried_again_as_itself_until_rabbitmq_has_it(stage, true).await;
    a_discarded_letter_is_gone_for_good(stage).await;
    what_came_damaged_stays_so(stage).await;
}

#[tokio::test]
async fn a_retry_outlives_the_process_and_the_history_its_retention() {
    const RETENTION: i64 = 60_000;
    static NOW: AtomicI64 = AtomicI64::new(1_000_000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("halfway.db");
    let relay = Arc::new(Relay::default());
    let open = || {
        let (wall, passed) = (|| Timestamp(NOW.load(Ordering::Relaxed)), || NOW.load(Ordering::Relaxed));
        let retention = Duration::from_millis(RETENTION.unsigned_abs());
        SqliteStore::open(
            SqliteSettings { clock: Clock { wall, passed }, retention, ..SqliteSettings::new(&path) },
            relay.clone(),
        )
        .unwrap()
    };
    let sound = || assert_eq!(check(&path).unwrap().problems, Vec::<String>::new());
    let store = open();
    let (tx, [first, second]) = with_two_letters(&*store, &relay, "/", false).await;
    // Long after its decision.
    NOW.fetch_add(10 * RETENTION, Ordering::Relaxed);
    store.retry(second, eve(), "r".into()).await.unwrap();
    assert_eq!(store.stats().dead_letters.load(Ordering::Relaxed), 1);
    assert_eq!(store.stats().backlog.load(Ordering::Relaxed), 1);
    assert_eq!(store.stats().commits.load(Ordering::Relaxed), 1, "a retry is no commit");
    sound();
    store.close();

    let store = open();
    sound();
    assert_eq!(stats(&path).unwrap().dead_letters, 1);
    assert_eq!(store.stats().dead_letters.load(Ordering::Relaxed), 1);
    assert_eq!(store.stats().backlog.load(Ordering::Relaxed), 1);
    let packs = all(&*store, &tx.lane).await;
    assert_eq!(packs.iter().map(|pack| (pack.first_index, pack.retried)).collect::<Vec<_>>(), [(2, true)]);
    store.dead_letter(refused(packs[0].sequence, 2)).await.unwrap();
    assert_eq!(store.stats().dead_letters.load(Ordering::Relaxed), 2);
    assert_eq!(store.stats().backlog.load(Ordering::Relaxed), 0);
    store.close();

    let store = open();
    sound();
    assert_eq!(all(&*store, &tx.lane).await, [], "it is not sent again by itself");
    let older = origin(tx.lane.clone());
    store.park(older.clone(), batch(&["x"])).await.unwrap();
    store.rollback(older.id, None).await.unwrap();
    NOW.fetch_add(RETENTION / 2, Ordering::Relaxed);
    store.retry(second, eve(), "r".into()).await.unwrap();
    store.discard(first, eve(), "r".into()).await.unwrap();
    store.delivered(vec![relay.told().last().expect("it was handed on").sequence]);
    wait_for_state(&*store, &tx, State::Delivered).await;
    sound();
    store.close();

    // A start purges first of all. The history stays from the end on, not from the decision.
    for (purged, kept) in [(&older, Some(&tx)), (&tx, None)] {
        NOW.fetch_add(RETENTION / 2 + 1, Ordering::Relaxed);
        let store = open();
        let deadline = Instant::now() + Duration::from_secs(10);
        while store.transaction(purged.id).await.unwrap().is_some() {
            assert!(Instant::now() < deadline, "it is never purged");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if let Some(kept) = kept {
            assert_eq!(look(&*store, kept).await.0.state, State::Delivered);
        }
        sound();
        store.close();
    }
}
