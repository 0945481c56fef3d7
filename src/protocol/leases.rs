//! What RabbitMQ has said about kinds of messages on a channel, and how long its word counts.
//!
//! RabbitMQ keeps its own yes to a permission in the channel's process for as long as the channel stays busy. Here a yes
//! counts for `transaction.judgement` since the question, then the next message asks anew. While messages go on coming they
//! are not held up for that: a kind whose lease is half over is asked about once more on the side, and not on its own
//! channel, whose process would say yes from memory.

use super::command::{Io, Ticket};
use super::judge::Judgement;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Kinds that are remembered. Messages of others are probed each, and not again at the decision.
const KINDS_MAX: usize = 1_000;
/// Kinds that are remembered from one transaction to the next.
const KINDS_KEPT_MAX: usize = 32;

/// What is known about a message that has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// RabbitMQ has said yes to its kind, and that counts.
    Holds,
    /// So it does, but not for much longer.
    Renews,
    /// RabbitMQ has been asked, and has not answered.
    Awaited,
    /// RabbitMQ is to be asked.
    Unknown,
    /// RabbitMQ has said no meanwhile.
    Refused(Judgement),
}

#[derive(Debug)]
struct Kind {
    /// The probe, in frames, to ask once more.
    probe: Vec<u8>,
    /// When it was sent last on the channel.
    asked: Instant,
    /// How many fences were sent before.
    fences: u64,
    /// When the question was sent to which RabbitMQ has said yes elsewhere, or before that.
    confirmed: Option<Instant>,
    /// What [`Leases::generation`] and [`Io::routing`] were then.
    generation: u64,
    routing: u64,
    /// The transaction that has such a message.
    used: u64,
    /// The client itself took something away on the channel since, for what comes behind: that must not be the answer for
    /// what came before.
    is_final: bool,
    renewal: Option<(Ticket, Instant)>,
    refused: Option<Judgement>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Leases {
    kinds: BTreeMap<Vec<u8>, Kind>,
    /// Fences sent on the channel, behind each of which RabbitMQ has judged all before it.
    fences: u64,
    /// Those of them that are answered.
    answered: u64,
    /// Rises with each method on the channel that could change what RabbitMQ says.
    generation: u64,
    /// The transaction that is open.
    transaction: u64,
}

impl Standing {
    /// Whether RabbitMQ's word counts.
    pub fn holds(&self) -> bool {
        matches!(self, Self::Holds | Self::Renews)
    }
}

impl Kind {
    /// When the youngest question was sent to which RabbitMQ has said yes.
    fn word(&self, answered: u64) -> Option<Instant> {
        let own = Some(self.asked).filter(|_| self.fences < answered);
        own.max(self.confirmed)
    }

    fn is_outdated(&self, io: &Io) -> bool {
        let asked = self.confirmed.map_or(self.asked, |confirmed| confirmed.max(self.asked));
        !self.is_final && (self.routing != io.routing || age(asked, io) >= io.judgement_holds())
    }
}

fn age(at: Instant, io: &Io) -> Duration {
    io.now.saturating_duration_since(at)
}

impl Leases {
    /// A message of this kind belongs to the open transaction: what is known about it?
    pub fn look(&mut self, kind: &[u8], io: &Io) -> Standing {
        let Some(kind) = self.kinds.get_mut(kind) else { return Standing::Unknown };
        if kind.generation != self.generation {
            return Standing::Unknown;
        }
        if let Some(refused) = kind.refused.take() {
            return Standing::Refused(refused);
        }
        if kind.routing != io.routing {
            return Standing::Unknown;
        }
        let holds = io.judgement_holds();
        let word = kind.word(self.answered).map(|at| age(at, io));
        let standing = match word {
            Some(age) if age < holds / 2 || kind.renewal.is_some() && age < holds => Standing::Holds,
            Some(age) if age < holds => Standing::Renews,
            _ if kind.fences >= self.answered && age(kind.asked, io) < holds => Standing::Awaited,
            _ => return Standing::Unknown,
        };
        kind.used = self.transaction;
        standing
    }

    /// RabbitMQ was asked on the channel about a message of the open transaction.
    pub fn asked(&mut self, kind: Vec<u8>, probe: &[u8], io: &Io) {
        let (generation, routing, answered) = (self.generation, io.routing, self.answered);
        let still_counts = |kind: &&Kind| kind.generation == generation && kind.routing == routing;
        let confirmed = self.kinds.get(&kind).filter(still_counts).and_then(|known| known.word(answered));
        self.insert(kind, probe, confirmed, io);
    }

    fn insert(&mut self, kind: Vec<u8>, probe: &[u8], confirmed: Option<Instant>, io: &Io) {
        if self.kinds.len() >= KINDS_MAX && !self.kinds.contains_key(&kind) {
            return;
        }
        let known = Kind {
            probe: probe.to_vec(),
            asked: io.now,
            fences: self.fences,
            confirmed,
            generation: self.generation,
            routing: io.routing,
            used: self.transaction,
            is_final: false,
            renewal: None,
            refused: None,
        };
        self.kinds.insert(kind, known);
    }

    /// RabbitMQ has said yes, elsewhere than on the channel, to a question that was sent then.
    pub fn confirmed(&mut self, kind: Vec<u8>, asked: Instant, io: &Io) {
        if io.settings.judgement.is_zero() {
            return;
        }
        if self.kinds.len() >= KINDS_KEPT_MAX {
            self.kinds.clear();
        }
        self.insert(kind, &[], Some(asked), io);
    }

    /// The question with which the lease of this kind is to be renewed.
    pub fn renew(&mut self, kind: &[u8], ticket: Ticket, io: &Io) -> Option<Vec<u8>> {
        let kind = self.kinds.get_mut(kind)?;
        kind.renewal = Some((ticket, io.now));
        Some(kind.probe.clone())
    }

    /// The answer. Gives back RabbitMQ's no if the open transaction has such a message.
    pub fn renewed(&mut self, ticket: Ticket, judgement: Judgement) -> Option<Judgement> {
        let is_it = |kind: &&mut Kind| kind.renewal.is_some_and(|(asked, _)| asked == ticket);
        let kind = self.kinds.values_mut().find(is_it)?;
        let (_, asked) = kind.renewal.take()?;
        match judgement {
            Judgement::Fine => kind.confirmed = kind.confirmed.max(Some(asked)),
            // Asked on another channel, perhaps behind what the client took away on this one.
            Judgement::Refused { .. } if kind.is_final => {}
            refused if kind.used == self.transaction => return Some(refused),
            refused => kind.refused = Some(refused),
        }
        None
    }

    /// Whether RabbitMQ has said yes to something before what it says now.
    pub fn has_words(&self) -> bool {
        self.kinds.values().any(|kind| kind.confirmed.is_some())
    }

    /// How many kinds of the open transaction were judged too long ago for a decision, or before RabbitMQ's exchanges and
    /// queues became others.
    pub fn outdated(&self, io: &Io) -> usize {
        self.kinds.values().filter(|kind| kind.used == self.transaction && kind.is_outdated(io)).count()
    }

    /// Asks RabbitMQ again about some of those; gives back about how many.
    pub fn ask_again(&mut self, max: usize, io: &mut Io) -> usize {
        let mut asked = 0;
        for kind in self.kinds.values_mut() {
            if asked < max && kind.used == self.transaction && kind.is_outdated(io) {
                kind.confirmed = kind.word(self.answered).filter(|_| kind.routing == io.routing);
                (kind.asked, kind.fences, kind.routing) = (io.now, self.fences, io.routing);
                io.to_upstream.extend_from_slice(&kind.probe);
                asked += 1;
            }
        }
        asked
    }

    /// A fence goes out on the channel.
    pub fn fence(&mut self) {
        self.fences += 1;
    }

    /// RabbitMQ has answered one.
    pub fn fenced(&mut self) {
        self.answered += 1;
    }

    /// A method that may change what RabbitMQ says (a declare, a bind) goes out on the channel. What came before it was
    /// judged without.
    pub fn forget(&mut self) {
        self.generation += 1;
    }

    /// Such a method takes something away.
    pub fn take_away(&mut self) {
        self.forget();
        self.kinds.values_mut().for_each(|kind| kind.is_final = true);
    }

    /// The transaction is decided, or about to be, and another begins.
    pub fn next_transaction(&mut self, io: &Io) {
        self.transaction += 1;
        if io.settings.judgement.is_zero() || self.kinds.len() > KINDS_KEPT_MAX {
            self.kinds.clear();
        }
    }
}

#[cfg(test)]
mod tests;
