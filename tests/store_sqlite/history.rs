//! What is written of a transaction's history, and what is told of it.

use super::*;
use halfway::store::Event;

/// Entries are most of what a named transaction costs, so nothing is written that its row tells.
#[tokio::test]
async fn the_usual_way_of_a_transaction_is_told_by_its_row() {
    static NOW: AtomicI64 = AtomicI64::new(1_000);
    let folder = Folder::new();
    let settings = SqliteSettings { clock: clock!(NOW), ..SqliteSettings::new(folder.db()) };
    let store = SqliteStore::open(settings, Arc::new(Silent)).unwrap();
    let (usual, whole, checked) = (named("usual", None), named("whole", None), named("checked", Some(6)));
    let told = async |tx: &Origin| store.transaction(tx.id).await.unwrap().expect("it is there").1;
    let event = |at, event: &str, actor: &str, reason: Option<&str>| Event {
        at: Timestamp(at),
        event: event.into(),
        actor: actor.into(),
        reason: reason.map(Into::into),
    };
    let sql = rusqlite::Connection::open(folder.db()).unwrap();
    let entries = || sql.query_row("SELECT count(*) FROM history", [], |row| row.get::<_, i64>(0)).unwrap();

    store.park(usual.clone(), batch(1)).await.unwrap();
    assert_eq!(told(&usual).await, [event(1_000, "parked", "channel", None)]);
    NOW.store(2_000, Ordering::Relaxed);
    let sequences = vec![now(store.commit(parked(&usual)).await), now(store.commit(commit(&whole, 1)).await)];
    let committed = event(2_000, "committed", "channel", None);
    assert_eq!(told(&usual).await, [event(1_000, "parked", "channel", None), committed.clone()]);
    NOW.store(3_000, Ordering::Relaxed);
    store.delivered(sequences);
    eventually("they are delivered", || {
        sql.query_row("SELECT count(*) FROM transactions WHERE state = 'delivered'", [], |row| row.get::<_, i64>(0))
            == Ok(2)
    })
    .await;
    let delivered = event(3_000, "delivered", "relay", None);
    assert_eq!(told(&usual).await, [event(1_000, "parked", "channel", None), committed.clone(), delivered.clone()]);
    assert_eq!(told(&whole).await, [event(2_000, "parked", "channel", None), committed, delivered]);
    assert_eq!(entries(), 0);

    // All in one millisecond: what is written stands in its place among what is not.
    store.park(checked.clone(), batch(1)).await.unwrap();
    store.abandon(checked.id).await.unwrap();
    let who = Actor::Checker("orders".into());
    store.decide(Target::Id(checked.id), Decision::Commit, who, Some("it knows".into())).await.unwrap();
    let events: Vec<_> = told(&checked).await.into_iter().map(|event| (event.event, event.actor)).collect();
    let expected = [("parked", "channel"), ("in_doubt", "channel"), ("committed", "checker orders")]
        .map(|(event, actor)| (event.into(), actor.into()));
    assert_eq!(events, expected);
    assert_eq!(entries(), 2);
    // What an earlier version wrote of the usual way counts, and is not told twice.
    for (entry, what) in [(-3, "parked"), (-2, "committed"), (-1, "delivered")] {
        let values = rusqlite::params![usual.id.0.into_bytes(), entry, what];
        sql.execute("INSERT INTO history VALUES (?1, ?2, 7, ?3, 'channel', 'of old')", values).unwrap();
    }
    let of_old = ["parked", "committed", "delivered"].map(|what| event(7, what, "channel", Some("of old")));
    assert_eq!(told(&usual).await, of_old);
}
