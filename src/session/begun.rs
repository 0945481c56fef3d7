//! What a session has begun and not ended. When the session is gone it ends here, if a fault of ours took the session
//! away before it could do so itself: nobody else would before the next start, and a name would stay taken.

use super::SessionMetrics;
use crate::store::{ForSessions, Named};
use crate::tx::id::TransactionId;
use std::collections::HashMap;
use std::sync::Arc;

pub(super) struct Begun {
    connection: u64,
    store: Arc<dyn ForSessions>,
    metrics: Arc<SessionMetrics>,
    /// Transactions that are in the store and that only this session decides, and whether they have a name.
    parked: HashMap<TransactionId, bool>,
    /// Transactions that count as open.
    open: i64,
}

impl Begun {
    pub(super) fn new(connection: u64, store: Arc<dyn ForSessions>, metrics: Arc<SessionMetrics>) -> Self {
        Self { connection, store, metrics, parked: HashMap::new(), open: 0 }
    }

    /// The store was given messages of it. What is not transactional waits for others to decide.
    pub(super) fn parked(&mut self, transaction: TransactionId, named: Option<&Named>) {
        if named.is_none_or(|named| named.transactional) {
            self.parked.insert(transaction, named.is_some());
        }
    }

    /// The store was told what becomes of it.
    pub(super) fn settled(&mut self, transaction: TransactionId) {
        self.parked.remove(&transaction);
    }

    /// One more, or one fewer, is open.
    pub(super) fn count(&mut self, by: i64) {
        self.open += by;
        self.metrics.open.inc_by(by);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(connection = self.connection, "a session broke off; its transactions end with it");
        }
        for (transaction, is_named) in self.parked.drain() {
            // Nobody is left to hear the answer; the store tries again by itself.
            drop(match is_named {
                true => self.store.abandon(transaction),
                false => self.store.rollback(transaction, Some("its session broke off".into())),
            });
        }
        self.metrics.open.dec_by(self.open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;
    use crate::store::memory::MemoryStore;
    use crate::store::{Committed, Lane, Origin, Outlet, Strand};
    use crate::tx::batch::{Batch, HalfMessage};
    use crate::tx::id::Timestamp;
    use crate::tx::name::TransactionName;
    use crate::tx::state::State;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use uuid::Uuid;

    struct Nowhere;

    impl Outlet for Nowhere {
        fn committed(&self, _: Vec<Committed>) {}
    }

    fn origin(number: u128, transactional: Option<bool>) -> Origin {
        let name = TransactionName::new(format!("order-{number}").as_bytes()).expect("a name");
        let named = transactional.map(|transactional| Arc::new(Named { name, check: None, transactional }));
        let (id, lane) = (TransactionId(Uuid::from_u128(number)), Lane { vhost: "/".into(), number: 0, aside: None });
        Origin { id, user: "guest".into(), lane, strand: Strand(0), created_at: Timestamp(0), named }
    }

    /// A name stayed taken until the next start, and was counted as open for ever.
    #[test]
    fn what_a_session_leaves_ends_though_it_panics() {
        let (store, metrics) =
            (MemoryStore::new(Arc::new(Nowhere)), Arc::new(SessionMetrics::new(&mut Registry::default())));
        let [named, plain, half, settled] = [(1, Some(true)), (2, None), (3, Some(false)), (4, Some(true))]
            .map(|(number, transactional)| origin(number, transactional));
        let broken = catch_unwind(AssertUnwindSafe(|| {
            let mut begun = Begun::new(7, store.clone(), Arc::clone(&metrics));
            for origin in [&named, &plain, &half, &settled] {
                let mut batch = Batch::default();
                batch.push(HalfMessage { publish: b"publish", header: b"header", body: b"" });
                drop(store.park(origin.clone(), batch));
                begun.parked(origin.id, origin.named.as_deref());
                begun.count(1);
            }
            begun.settled(settled.id);
            begun.count(-1);
            panic!("a fault of the test's own");
        }));
        assert!(broken.is_err());
        let states = [&named, &plain, &half, &settled].map(|origin| store.state(origin.id));
        let expected = [State::InDoubt, State::RolledBack, State::InDoubt, State::Open];
        assert_eq!(states, expected.map(Some));
        assert_eq!(metrics.open.get(), 0);
    }
}
