//! What the store is told and asked for the lanes of a virtual host, and what it answers.

use super::{PAGE_BYTES, Vhost};
use crate::relay::lane::Lone;
use crate::relay::message::Source;
use crate::store::{Commit, Committing, Cursor, DeadLetter, Pack, Sequence, Store, StoreError, system_clock};
use crate::tx::id::TransactionId;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Transactions that are reported to the store at once, and how long a few may wait for more.
const DELIVERED_MAX: usize = 512;
pub(super) const DELIVERED_WAIT: Duration = Duration::from_millis(10);
/// Before the store is asked again for what it could not do.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// What the store said.
pub(super) enum StoreAnswer {
    Page {
        lane: u16,
        packs: Result<Vec<Pack>, StoreError>,
    },
    AskForPageAgain {
        lane: u16,
    },
    Aside {
        source: Source,
        after: Option<Cursor>,
        packs: Result<Vec<Pack>, StoreError>,
    },
    AskForAsideAgain {
        source: Source,
        after: Option<Cursor>,
    },
    Marked {
        source: Source,
        transactions: Vec<Sequence>,
        marked: Result<(), StoreError>,
    },
    /// What it says of a transaction of one message that RabbitMQ has not answered for.
    Kept {
        lane: u16,
        id: TransactionId,
        kept: Result<Committing, StoreError>,
    },
    KeepAgain {
        lane: u16,
        id: TransactionId,
    },
    DeadLetter {
        letter: DeadLetter,
        kept: Result<(), StoreError>,
    },
}

impl Vhost {
    /// Where the store keeps what waits of this source.
    pub(super) fn aside(&self, source: Source) -> crate::store::Lane {
        crate::store::Lane { vhost: Arc::clone(&self.name), number: source.lane, aside: Some(source.strand) }
    }

    /// Has the store keep these beside their lane.
    pub(super) fn mark(&mut self, source: Source, transactions: Vec<Sequence>) {
        let marked = self.shared.store.step_aside(&self.aside(source), transactions.clone());
        self.questions
            .push(Box::pin(async move { StoreAnswer::Marked { source, transactions, marked: marked.await } }));
    }

    /// Has the store keep a transaction of one message that RabbitMQ was given.
    pub(super) fn keep_lone(&mut self, commit: Commit) {
        let (lane, id) = (commit.origin.lane.number, commit.origin.id);
        let kept = self.shared.store.commit(commit);
        self.questions.push(Box::pin(async move { StoreAnswer::Kept { lane, id, kept: kept.await } }));
    }

    /// A transaction of one message that can't be sent now goes the way of all others.
    pub(super) fn store_first(&self, lone: Lone) {
        let Lone { commit, answer, .. } = lone;
        let kept = self.shared.store.commit(commit);
        // Who no longer waits needs no answer.
        tokio::spawn(async move { drop(answer.send(kept.await)) });
    }

    pub(super) fn delivered_is_due(&self, now: Instant) -> bool {
        self.delivered.len() >= DELIVERED_MAX || self.delivered_since.is_some_and(|since| now >= since + DELIVERED_WAIT)
    }

    /// If we crash before this: the transactions are sent again, as possible duplicates.
    pub(super) fn report_delivered(&mut self) {
        self.delivered_since = None;
        if !self.delivered.is_empty() {
            self.shared.store.delivered(std::mem::take(&mut self.delivered));
        }
    }

    pub(super) fn hear(&mut self, answer: StoreAnswer) {
        match answer {
            StoreAnswer::Page { lane, packs: Ok(packs) } => {
                if let Some(queue) = self.inbox.queues().get_mut(&lane) {
                    queue.page(&packs, PAGE_BYTES);
                }
                let channel = self.channels.of(lane);
                for (pack, possible_duplicate, decided) in self.dated(packs) {
                    self.lane(channel).add_pack(lane, pack, possible_duplicate, decided);
                }
            }
            StoreAnswer::Aside { source, after, packs: Ok(packs) } => {
                let channel = self.channels.of(source.lane);
                if self.lane(channel).page(source, after, Some(&packs), Instant::now()) {
                    for (pack, possible_duplicate, decided) in self.dated(packs) {
                        self.lane(channel).add_aside(source, pack, possible_duplicate, decided);
                    }
                }
            }
            StoreAnswer::Aside { source, after, packs: Err(error) } => {
                tracing::error!(vhost = %self.name, lane = source.lane, %error, "the store gives no page; it is asked again");
                self.questions.push(Box::pin(async move {
                    sleep(STORE_PAUSE).await;
                    StoreAnswer::AskForAsideAgain { source, after }
                }));
            }
            StoreAnswer::AskForAsideAgain { source, after } => {
                let channel = self.channels.of(source.lane);
                self.lane(channel).page(source, after, None, Instant::now());
            }
            StoreAnswer::Marked {
                source,
                transactions,
                marked: Err(error @ (StoreError::Full(_) | StoreError::Io(_) | StoreError::Unknown(_))),
            } => {
                tracing::error!(vhost = %self.name, %error, "the store does not keep what waits beside its lane; it is asked again");
                let (store, aside) = (Arc::clone(&self.shared.store), self.aside(source));
                self.questions.push(Box::pin(async move {
                    sleep(STORE_PAUSE).await;
                    let marked = store.step_aside(&aside, transactions.clone()).await;
                    StoreAnswer::Marked { source, transactions, marked }
                }));
            }
            StoreAnswer::Marked { marked: Err(StoreError::Fenced | StoreError::Closed), .. } => {}
            StoreAnswer::Marked { source, .. } => {
                let channel = self.channels.of(source.lane);
                self.lane(channel).marked(source, Instant::now());
            }
            StoreAnswer::Page { lane, packs: Err(error) } => {
                tracing::error!(vhost = %self.name, lane, %error, "the store gives no page; it is asked again");
                self.questions.push(Box::pin(async move {
                    sleep(STORE_PAUSE).await;
                    StoreAnswer::AskForPageAgain { lane }
                }));
            }
            StoreAnswer::AskForPageAgain { lane } => {
                if let Some(queue) = self.inbox.queues().get_mut(&lane) {
                    queue.page_failed();
                }
            }
            StoreAnswer::Kept { lane, id, kept } => {
                let error = kept.as_ref().err().map(ToString::to_string);
                let channel = self.channels.of(lane);
                if self.lane(channel).lone_kept(id, kept)
                    && let Some(error) = error
                {
                    tracing::error!(vhost = %self.name, transaction = %id, error, "the store does not keep what RabbitMQ has not answered for; it is asked again");
                    self.questions.push(Box::pin(async move {
                        sleep(STORE_PAUSE).await;
                        StoreAnswer::KeepAgain { lane, id }
                    }));
                }
            }
            StoreAnswer::KeepAgain { lane, id } => {
                let channel = self.channels.of(lane);
                self.lane(channel).keep_again(id);
            }
            StoreAnswer::DeadLetter {
                letter,
                kept: Err(error @ (StoreError::Full(_) | StoreError::Io(_) | StoreError::Unknown(_))),
            } => {
                tracing::error!(vhost = %self.name, %error, "the store does not keep a dead letter; it is asked again");
                let store = Arc::clone(&self.shared.store);
                self.questions.push(Box::pin(async move {
                    sleep(STORE_PAUSE).await;
                    keep(store, letter).await
                }));
            }
            // A store that is closed has the message as undelivered still, and so has who took it over; one that does not know
            // it can't be helped.
            StoreAnswer::DeadLetter { kept: Err(StoreError::Fenced | StoreError::Closed), .. } => {}
            StoreAnswer::DeadLetter { letter, kept } => {
                self.letters.is_kept(&letter);
                if let Err(error) = kept {
                    tracing::error!(vhost = %self.name, %error, "the store does not know the transaction of a dead letter");
                }
                if let Some(lane) = self.lanes.values_mut().find(|lane| lane.holds(letter.sequence)) {
                    lane.dead_letter_kept(letter.sequence, Instant::now());
                }
            }
        }
    }

    /// Packs, whether an earlier process may have sent them, and when they were decided.
    pub(super) fn dated(&self, packs: Vec<Pack>) -> impl Iterator<Item = (Pack, bool, Instant)> + use<> {
        let first_own = Sequence(self.shared.first_own.load(Ordering::Relaxed));
        let (now, clock) = (Instant::now(), system_clock());
        packs.into_iter().map(move |pack| {
            let possible_duplicate = pack.sequence < first_own;
            let age = pack.decided_at.map_or(0, |at| clock.0.saturating_sub(at.0).max(0)).unsigned_abs();
            let decided = now.checked_sub(Duration::from_millis(age)).unwrap_or(now);
            (pack, possible_duplicate, decided)
        })
    }
}

/// Asks the store to keep a dead letter.
pub(super) async fn keep(store: Arc<dyn Store>, letter: DeadLetter) -> StoreAnswer {
    let kept = store.dead_letter(letter.clone()).await;
    StoreAnswer::DeadLetter { letter, kept }
}
