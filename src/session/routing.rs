//! Word from session to session that exchanges and queues of a virtual host are no more what they were.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A number for each virtual host that has a client; another one with each change.
#[derive(Debug, Default)]
pub(super) struct Routing(Mutex<HashMap<Arc<str>, Weak<AtomicU64>>>);

impl Routing {
    /// The number of this virtual host, which all its sessions share.
    pub(super) fn of(&self, vhost: &Arc<str>) -> Version {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(version) = all.get(vhost).and_then(Weak::upgrade) {
            return Version(version);
        }
        all.retain(|_, version| version.strong_count() > 0);
        let version = Arc::default();
        all.insert(Arc::clone(vhost), Arc::downgrade(&version));
        Version(version)
    }
}

/// See [`Routing::of`]. One that is nobody's else before the client has logged in.
#[derive(Debug, Default)]
pub(super) struct Version(Arc<AtomicU64>);

impl Version {
    /// The number now.
    pub(super) fn number(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Something was taken away.
    pub(super) fn change(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_one_virtual_host_share_a_number_and_no_others_do() {
        let (routing, shop, other): (_, Arc<str>, Arc<str>) = (Routing::default(), "shop".into(), "other".into());
        let (one, two, three) = (routing.of(&shop), routing.of(&shop), routing.of(&other));
        one.change();
        assert_eq!((one.number(), two.number(), three.number()), (1, 1, 0));
        drop((one, two));
        drop(routing.of(&"third".into()));
        assert_eq!(routing.0.lock().unwrap().len(), 2, "nobody is left in one of them");
    }
}
