//! What the parts that run tell of themselves, for people to look at: written as they go, read by who asks.

use std::sync::{Arc, Mutex, PoisonError};

use crate::tx::id::Timestamp;

/// Every part's lines, shared by `Arc`.
#[derive(Debug, Default)]
pub struct Roster {
    standing: Mutex<Arc<Standing>>,
}

/// How store and relay stand, as of the last look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// Since when the oldest transaction in doubt is so.
    pub oldest_doubt: Option<Timestamp>,
    /// The relay's connections, by virtual host.
    pub links: Vec<Link>,
}

/// The relay's connection of one virtual host.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// The virtual host.
    pub vhost: Arc<str>,
    /// `connecting`, `refused`, `blocked`, `stalled` or `connected`.
    pub state: &'static str,
    /// Why it is not simply connected.
    pub reason: Option<String>,
    /// Messages published and not answered.
    pub in_flight: u64,
}

impl Roster {
    /// Says how store and relay stand now.
    pub fn stand(&self, standing: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(standing);
    }

    /// How store and relay stand.
    pub fn standing(&self) -> Arc<Standing> {
        Arc::clone(&self.standing.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
