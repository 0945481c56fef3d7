//! What the parts that run tell of themselves, for people to look at: written as they go, read by who asks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::protocol::command::Stage;
use crate::tx::check_back::Answer;
use crate::tx::id::Timestamp;

/// Every part's lines, shared by `Arc`.
#[derive(Debug, Default)]
pub struct Roster {
    standing: Mutex<Arc<Situation>>,
    /// As many as there are client connections, which have their own bound.
    seats: Mutex<BTreeMap<u64, Arc<Seat>>>,
    /// As many as the configurations of this process have had checkers.
    checks: Mutex<BTreeMap<Arc<str>, LastCheck>>,
    hurry: watch::Sender<()>,
}

/// The last question to a checker.
#[derive(Clone, Debug, PartialEq)]
pub struct LastCheck {
    /// When it ended.
    pub at: Timestamp,
    /// What it answered; none: it did not.
    pub answer: Option<Answer>,
    /// Why it did not answer.
    pub reason: Option<String>,
    /// From the question to the answer, or to where it was given up.
    pub took: Duration,
}

/// How store and relay stand, as of the last look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Situation {
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
    pub fn stand(&self, standing: Situation) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(standing);
    }

    /// Seats a client's connection until the seat is dropped. `number` is no other's.
    pub fn seat(self: &Arc<Self>, number: u64, peer: SocketAddr, tls: bool, now: Timestamp) -> Seated {
        let seat = Arc::new(Seat::new(number, peer, tls, now));
        self.seats().insert(number, Arc::clone(&seat));
        Seated { seat, roster: Arc::clone(self) }
    }

    /// Connections behind number `after`, `limit` at most, and whether there are more.
    pub fn connections(&self, after: u64, limit: usize) -> (Vec<Arc<Seat>>, bool) {
        let seats = self.seats();
        let mut behind = seats.range((Bound::Excluded(after), Bound::Unbounded)).map(|(_, seat)| Arc::clone(seat));
        (behind.by_ref().take(limit).collect(), behind.next().is_some())
    }

    /// The connection with this number.
    pub fn connection(&self, number: u64) -> Option<Arc<Seat>> {
        self.seats().get(&number).cloned()
    }

    /// How long the oldest transaction of all connections is open; zero: there is none.
    pub fn oldest_open(&self) -> Duration {
        let seats = self.seats();
        let oldest =
            seats.values().map(|seat| seat.oldest_open.load(Ordering::Relaxed)).filter(|since| *since > 0).min();
        oldest.map_or(Duration::ZERO, |since| BEGIN.elapsed().saturating_sub(Duration::from_millis(since - 1)))
    }

    /// Says what the last question to a checker came to.
    pub fn checked(&self, checker: &Arc<str>, last: LastCheck) {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(checker), last);
    }

    /// Has checkers that are left alone for a while tried at once: a person asked for it.
    pub fn hurry_checkers(&self) {
        self.hurry.send_replace(());
    }

    /// Changes whenever checkers are to be tried at once.
    pub fn hurried(&self) -> watch::Receiver<()> {
        self.hurry.subscribe()
    }

    /// The last question to this checker, if there was one.
    pub fn last_check(&self, checker: &str) -> Option<LastCheck> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).get(checker).cloned()
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How store and relay stand.
    pub fn standing(&self) -> Arc<Situation> {
        Arc::clone(&self.standing.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A client's connection, as its session tells of it.
#[derive(Debug)]
pub struct Seat {
    /// Its number in the log.
    pub number: u64,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Whether it came over TLS.
    pub tls: bool,
    /// Since when it is there.
    pub connected_at: Timestamp,
    guest: OnceLock<Guest>,
    stage: AtomicU8,
    channels: AtomicU32,
    transactional: AtomicU32,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// Since when its oldest transaction is open: milliseconds behind [`BEGIN`]; 0: there is none.
    oldest_open: AtomicU64,
    closing: OnceLock<String>,
    told: Notify,
}

/// Who logged in on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The login name; empty where the mechanism doesn't tell.
    pub user: Arc<str>,
    /// The virtual host.
    pub vhost: Arc<str>,
    /// The client's library; empty if it doesn't say.
    pub product: String,
    /// The version of it.
    pub version: Option<String>,
    /// The client's name for the connection.
    pub name: Option<String>,
}

/// A moment before the first transaction of this process.
static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

const STAGES: [Stage; 4] = [Stage::Opening, Stage::Open, Stage::Blocked, Stage::Closing];

impl Seat {
    fn new(number: u64, peer: SocketAddr, tls: bool, connected_at: Timestamp) -> Self {
        LazyLock::force(&BEGIN);
        Self {
            number,
            peer,
            tls,
            connected_at,
            guest: OnceLock::new(),
            stage: AtomicU8::new(Stage::Opening as u8),
            channels: AtomicU32::new(0),
            transactional: AtomicU32::new(0),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            oldest_open: AtomicU64::new(0),
            closing: OnceLock::new(),
            told: Notify::new(),
        }
    }

    /// Says who logged in; the first word counts.
    pub fn take(&self, guest: Guest) {
        let _ = self.guest.set(guest);
    }

    /// Says how far it is, and how many channels it has, transactional ones the second.
    pub fn note(&self, stage: Stage, channels: (usize, usize)) {
        self.stage.store(stage as u8, Ordering::Relaxed);
        // Channels have numbers of 16 bits.
        self.channels.store(channels.0 as u32, Ordering::Relaxed);
        self.transactional.store(channels.1 as u32, Ordering::Relaxed);
    }

    /// Says since when its oldest transaction is open that nobody has decided.
    pub fn note_oldest(&self, since: Option<Instant>) {
        let since = since.map_or(0, |since| since.saturating_duration_since(*BEGIN).as_millis() as u64 + 1);
        self.oldest_open.store(since, Ordering::Relaxed);
    }

    /// Counts bytes from the client.
    pub fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts bytes to the client.
    pub fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Who logged in, once that is known.
    pub fn guest(&self) -> Option<&Guest> {
        self.guest.get()
    }

    /// How far it is.
    pub fn stage(&self) -> Stage {
        let stage = self.stage.load(Ordering::Relaxed);
        STAGES.into_iter().find(|known| *known as u8 == stage).unwrap_or(Stage::Closing)
    }

    /// Channels that are open, and those of them that are transactional.
    pub fn channels(&self) -> (u32, u32) {
        (self.channels.load(Ordering::Relaxed), self.transactional.load(Ordering::Relaxed))
    }

    /// Bytes from the client, and to it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.received_bytes.load(Ordering::Relaxed), self.sent_bytes.load(Ordering::Relaxed))
    }

    /// Asks the session to end; the first reason counts.
    pub fn close(&self, reason: &str) {
        let _ = self.closing.set(reason.to_owned());
        self.told.notify_one();
    }

    /// Returns with the reason once somebody wants the session to end. Only the session waits here.
    pub async fn told_to_close(&self) -> &str {
        loop {
            if let Some(reason) = self.closing.get() {
                return reason;
            }
            self.told.notified().await;
        }
    }
}

/// A connection's place on the roster, which it leaves when this is dropped.
#[derive(Debug)]
pub struct Seated {
    seat: Arc<Seat>,
    roster: Arc<Roster>,
}

impl Seated {
    /// The seat.
    pub fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.roster.seats().remove(&self.seat.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> SocketAddr {
        "192.0.2.1:5".parse().expect("an address")
    }

    #[test]
    fn a_connection_is_on_the_roster_as_long_as_it_lasts() {
        let roster = Arc::new(Roster::default());
        let seats: Vec<_> = (1..=5).map(|number| roster.seat(number, peer(), false, Timestamp(0))).collect();
        let numbers = |after, limit| {
            let (found, more) = roster.connections(after, limit);
            (found.iter().map(|seat| seat.number).collect::<Vec<_>>(), more)
        };
        assert_eq!(numbers(0, 3), (vec![1, 2, 3], true));
        assert_eq!(numbers(3, 3), (vec![4, 5], false));
        assert_eq!(numbers(3, 2), (vec![4, 5], false));
        drop(seats);
        assert_eq!(numbers(0, 3), (vec![], false));
        assert!(roster.connection(1).is_none());
    }

    #[test]
    fn the_oldest_transaction_of_all_is_seen() {
        let roster = Arc::new(Roster::default());
        let seats: Vec<_> = (1..=3).map(|number| roster.seat(number, peer(), false, Timestamp(0))).collect();
        assert_eq!(roster.oldest_open(), Duration::ZERO);
        let now = Instant::now();
        seats[0].seat().note_oldest(Some(now + Duration::from_secs(60)));
        seats[1].seat().note_oldest(Some(now));
        std::thread::sleep(Duration::from_millis(20));
        assert!(roster.oldest_open() >= Duration::from_millis(19), "{:?}", roster.oldest_open());
        seats[1].seat().note_oldest(None);
        assert_eq!(roster.oldest_open(), Duration::ZERO);
    }

    #[tokio::test]
    async fn what_a_session_tells_is_seen_and_what_it_is_told_arrives() {
        let roster = Arc::new(Roster::default());
        let seated = roster.seat(1, peer(), true, Timestamp(7));
        let seen = roster.connection(1).expect("it is there");
        assert_eq!((seen.stage(), seen.guest()), (Stage::Opening, None));
        for stage in STAGES {
            seated.seat().note(stage, (3, 1));
            assert_eq!((seen.stage(), seen.channels()), (stage, (3, 1)));
        }
        seated.seat().received(10);
        seated.seat().sent(20);
        seated.seat().sent(1);
        assert_eq!(seen.bytes(), (10, 21));
        seen.close("first");
        seen.close("second");
        assert_eq!(seated.seat().told_to_close().await, "first");
        assert_eq!(seated.seat().told_to_close().await, "first");
    }
}
