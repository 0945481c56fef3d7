//! What a tracer makes of what passes its store.

use super::*;
use crate::amqp::reply_code::ReplyCode;
use crate::metrics::Registry;
use crate::store::memory::MemoryStore;
use crate::store::{
    Commit, Committed, Committing, ForRelay, ForSessions, Lane, Named, Origin, Outlet, Outside, Reply, Shortcut,
    StoreError, Strand,
};
use crate::tx::batch::{Batch, HalfMessage};
use crate::tx::decision::{Actor, Decision, Target};
use crate::tx::id::Timestamp;
use crate::tx::name::TransactionName;
use uuid::Uuid;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

struct Nowhere;

impl Outlet for Nowhere {
    fn committed(&self, _: Vec<Committed>) {}
}

/// A store that is looked at, and the spans that come of it.
fn traced(sample: f64) -> (TracedStore, mpsc::Receiver<Span>, Registry) {
    let (sender, spans) = mpsc::channel(QUEUE_MAX);
    let mut registry = Registry::default();
    let metrics = SpanMetrics::new(&mut registry);
    let tracer = Arc::new(Tracer::new(sender, Arc::default(), sample, metrics));
    let outlet = TracedOutlet::new(Arc::new(Nowhere), Arc::clone(&tracer));
    (TracedStore::new(MemoryStore::new(Arc::new(outlet)), tracer), spans, registry)
}

fn origin(name: Option<&str>) -> Origin {
    let named = name.map(|name| {
        let name = TransactionName::new(name.as_bytes()).unwrap();
        Arc::new(Named { name, check: None, transactional: true })
    });
    let (id, lane) = (TransactionId(Uuid::now_v7()), Lane::new("/".into(), 0));
    Origin { id, user: "alice".into(), lane, strand: Strand(0), created_at: Timestamp(0), named }
}

/// A message to exchange `orders` with routing key `new`, with a `traceparent` if there is one.
fn batch(parent: Option<&str>) -> Batch {
    let mut headers = Vec::new();
    parent.iter().for_each(|parent| crate::amqp::table::write_string(&mut headers, b"traceparent", parent.as_bytes()));
    let length = u32::try_from(headers.len()).unwrap().to_be_bytes();
    let header = [&[0, 60, 0, 0][..], &4_u64.to_be_bytes(), &[0x20, 0], &length, &headers].concat();
    let mut batch = Batch::default();
    batch.push(HalfMessage { publish: b"\0\0\x06orders\x03new\0", header: &header, body: b"body" });
    batch
}

fn told(spans: &mut mpsc::Receiver<Span>) -> Vec<(TransactionId, String, usize)> {
    std::iter::from_fn(|| spans.try_recv().ok())
        .map(|span| (span.transaction, span.name(), span.links().len()))
        .collect()
}

#[tokio::test]
async fn a_plain_commit_is_staged_decided_and_forwarded() {
    let (store, mut spans, _) = traced(1.0);
    let plain = origin(None);
    let commit = Commit { origin: plain.clone(), batch: batch(Some(PARENT)), parked: false, forwarded: None };
    store.commit(commit).await.unwrap();
    let page = store.page(&plain.lane, None, 1000).await.unwrap();
    store.delivered(vec![page[0].sequence]);
    let expected = ["stage orders", "decide orders", "forward orders"].map(|name| (plain.id, name.to_owned(), 1));
    assert_eq!(told(&mut spans), expected);
}

/// A relay that answers so.
struct Answers(Result<Committing, StoreError>);

impl Shortcut for Answers {
    fn take(&self, _: Commit) -> Result<Reply<Committing>, Box<Commit>> {
        let (answer, reply) = Reply::pair();
        drop(answer.send(self.0.clone()));
        Ok(reply)
    }
}

#[tokio::test]
async fn what_goes_past_the_store_is_decided_and_forwarded() {
    let refused = StoreError::Refused(ReplyCode::NOT_FOUND, "no exchange".into());
    let asked = |asked| Ok(Committing::Forwarded { asked });
    for (answer, expected) in [
        (asked(false), &["decide orders", "forward orders"][..]),
        // The store has told of it.
        (asked(true), &[]),
        (Err(refused), &["decide orders"]),
    ] {
        let (store, mut spans, _) = traced(1.0);
        let shortcut = TracedShortcut::new(Arc::new(Answers(answer)), Arc::clone(&store.tracer));
        let plain = origin(None);
        let commit = Commit { origin: plain.clone(), batch: batch(Some(PARENT)), parked: false, forwarded: None };
        let failed = shortcut.take(commit).unwrap().await.is_err();
        let told: Vec<_> = std::iter::from_fn(|| spans.try_recv().ok()).collect();
        assert_eq!(told.iter().map(Span::name).collect::<Vec<_>>(), expected);
        assert!(told.iter().all(|span| span.transaction == plain.id && span.error.is_some() == failed));
    }
}

#[tokio::test]
async fn what_is_decided_from_outside_has_the_links_of_what_was_parked() {
    let (store, mut spans, _) = traced(1.0);
    let named = origin(Some("order-1"));
    store.park(named.clone(), batch(Some(PARENT))).await.unwrap();
    store.park(named.clone(), batch(Some(&PARENT.replace("b7", "b8")))).await.unwrap();
    store.park(named.clone(), batch(None)).await.unwrap();
    store.abandon(named.id).await.unwrap();
    let actor = Actor::Operator("alice".into());
    store.decide(Target::Id(named.id), Decision::RollBack, actor, None).await.unwrap();
    let told: Vec<_> = told(&mut spans).into_iter().map(|(_, name, links)| (name, links)).collect();
    let expected = [("stage orders", 1), ("stage orders", 2), ("stage orders", 2), ("decide orders", 2)];
    assert_eq!(told, expected.map(|(name, links)| (name.to_owned(), links)));
}

#[tokio::test]
async fn what_an_earlier_process_parked_is_read_for_its_links() {
    let (store, mut spans, _) = traced(1.0);
    let named = origin(Some("order-1"));
    store.park(named.clone(), batch(Some(PARENT))).await.unwrap();
    store.abandon(named.id).await.unwrap();
    store.tracer.forget(named.id);
    told(&mut spans);
    store.decide(Target::Id(named.id), Decision::Commit, Actor::Control, None).await.unwrap();
    assert_eq!(told(&mut spans), [(named.id, "decide orders".to_owned(), 1)]);
}

#[tokio::test]
async fn a_sample_is_the_same_in_every_part_and_none_is_none() {
    let (store, mut spans, _) = traced(0.0);
    let plain = origin(None);
    let commit = Commit { origin: plain, batch: batch(Some(PARENT)), parked: false, forwarded: None };
    store.commit(commit).await.unwrap();
    assert!(told(&mut spans).is_empty());
    let (half, ..) = traced(0.5);
    // As sessions make them: random to the end.
    let mut ids = (0..1000).map(|_| TransactionId(Uuid::from_u128(fastrand::u128(..))));
    let sampled = ids.by_ref().filter(|id| half.tracer.samples(*id)).count();
    assert!((300..700).contains(&sampled), "{sampled}");
}

#[tokio::test]
async fn spans_that_nobody_takes_are_lost_and_counted() {
    let (store, spans, registry) = traced(1.0);
    let about = Arc::new(About::default());
    let now = SystemTime::now();
    for _ in 0..QUEUE_MAX + 3 {
        let (transaction, about) = (TransactionId(Uuid::now_v7()), Some(Arc::clone(&about)));
        let (operation, more) = (Operation::Stage, Vec::new());
        store.tracer.send(Span { transaction, operation, start: now, end: now, about, more, error: None });
    }
    assert!(registry.encode().contains("halfway_spans_total{result=\"dropped\"} 3\n"));
    drop(spans);
}

#[test]
fn what_is_remembered_is_bounded() {
    let (store, ..) = traced(1.0);
    let (first, vhost) = (TransactionId(Uuid::now_v7()), Arc::from("/"));
    store.tracer.remember(first, &vhost, None, &[]);
    for number in 0..KNOWN_MAX {
        let id = TransactionId(Uuid::now_v7());
        store.tracer.remember(id, &vhost, None, &[]);
        store.tracer.began_forwarding(Sequence(number as i64), id, None);
    }
    assert!(store.tracer.about(first).is_none());
    let known = store.tracer.known();
    assert_eq!((known.about.len(), known.order.len(), known.forwarding.len()), (KNOWN_MAX, KNOWN_MAX, KNOWN_MAX));
}
