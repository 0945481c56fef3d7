//! A transaction as it is held.

use crate::amqp::properties::Properties;
use crate::store::clock::{Moment, Reading, Time};
use crate::store::{Event, Filter, Messages, Origin, Pack, Sequence, Stored, Summary};
use crate::tx::batch::{self, Batch};
use crate::tx::decision::{Actor, Fate, Owned};
use crate::tx::id::Timestamp;
use crate::tx::name::TransactionName;
use crate::tx::state::State;
use std::collections::HashSet;
use std::sync::Arc;

pub(super) struct Row {
    pub(super) origin: Origin,
    pub(super) state: State,
    pub(super) parked_at: Option<Timestamp>,
    pub(super) decided: Option<(Reading, String)>,
    pub(super) packs: Vec<Messages>,
    pub(super) messages: u32,
    pub(super) bytes: u64,
    pub(super) message_ids: HashSet<Vec<u8>>,
    pub(super) checker: Option<Arc<str>>,
    pub(super) next_check: Option<Moment>,
    pub(super) attempts: u32,
    pub(super) answered: u32,
    pub(super) history: Vec<Event>,
}

impl Row {
    pub(super) fn new(origin: Origin, state: State) -> Self {
        let checker =
            origin.named.as_ref().and_then(|named| named.check.as_ref()).map(|plan| Arc::clone(&plan.checker));
        Self {
            origin,
            state,
            parked_at: None,
            decided: None,
            packs: Vec::new(),
            messages: 0,
            bytes: 0,
            message_ids: HashSet::new(),
            checker,
            next_check: None,
            attempts: 0,
            answered: 0,
            history: Vec::new(),
        }
    }

    pub(super) fn name(&self) -> Option<&TransactionName> {
        self.origin.named.as_ref().map(|named| &named.name)
    }

    pub(super) fn belongs_to(&self, owned: &Owned) -> bool {
        self.name() == Some(&owned.name) && self.origin.user == owned.user && self.origin.lane.vhost == owned.vhost
    }

    pub(super) fn add(&mut self, messages: Messages) {
        let messages = if self.name().is_some() { self.without_duplicates(messages) } else { messages };
        if messages.count > 0 {
            self.messages += messages.count;
            self.bytes += messages.bytes.len() as u64;
            self.packs.push(messages);
        }
    }

    pub(super) fn without_duplicates(&mut self, messages: Messages) -> Messages {
        let mut kept = Batch::default();
        for message in batch::iter(&messages.bytes).map_while(Result::ok) {
            let properties = Properties::parse(message.header).ok();
            let message_id = properties.and_then(|properties| properties.message_id);
            if message_id.is_none_or(|message_id| self.message_ids.insert(message_id.to_vec())) {
                kept.push(message);
            }
        }
        kept.into()
    }

    pub(super) fn note(&mut self, at: Reading, event: &str, actor: &Actor, reason: Option<&str>) {
        let (event, actor, reason) = (event.into(), actor.to_string(), reason.map(Into::into));
        self.history.push(Event { at: at.wall, event, actor, reason });
    }

    pub(super) fn doubt(&mut self, now: Reading, reason: &str) {
        self.state = State::InDoubt;
        let plan = self.origin.named.as_ref().and_then(|named| named.check.as_ref());
        self.next_check = plan.map(|plan| now.count.after(plan.first_after));
        self.note(now, State::InDoubt.as_str(), &Actor::Channel, Some(reason));
    }

    pub(super) fn roll_back(&mut self, now: Reading, actor: &Actor, reason: Option<&str>) {
        self.decide(State::RolledBack, now, actor, reason);
        self.packs.clear();
    }

    pub(super) fn decide(&mut self, state: State, now: Reading, actor: &Actor, reason: Option<&str>) {
        self.state = state;
        self.decided = Some((now, actor.to_string()));
        self.next_check = None;
        self.attempts += actor.answers();
        self.answered += actor.answers();
        // A plain commit has no history.
        if self.parked_at.is_some() {
            self.note(now, state.as_str(), actor, reason);
        }
    }

    pub(super) fn fate(&self) -> Fate {
        let (decided_at, decided_by) = match &self.decided {
            Some((at, by)) => (at.wall, by.clone()),
            None => (Timestamp(0), Actor::Channel.to_string()),
        };
        Fate { id: self.origin.id, state: self.state, decided_at, decided_by }
    }

    pub(super) fn summary(&self, time: &Time) -> Summary {
        Summary {
            id: self.origin.id,
            name: self.name().cloned(),
            vhost: Arc::clone(&self.origin.lane.vhost),
            user: Arc::clone(&self.origin.user),
            state: self.state,
            created_at: self.origin.created_at,
            parked_at: self.parked_at,
            decided_at: self.decided.as_ref().map(|(at, _)| at.wall),
            decided_by: self.decided.as_ref().map(|(_, by)| by.clone()),
            messages: self.messages.into(),
            bytes: self.bytes,
            checker: self.checker.clone(),
            attempts: self.attempts,
            checks_answered: self.answered,
            next_check_at: self.next_check.map(|at| time.shown(at)),
            lane: self.origin.lane.number,
        }
    }

    pub(super) fn fits_front(&self, filter: &Filter) -> bool {
        filter.fits_front(self.packs.first().map_or(&[], |pack| &pack.bytes))
    }

    pub(super) fn packs(&self, sequence: Sequence) -> impl Iterator<Item = Pack> {
        let mut first_index = 0;
        (0..).zip(&self.packs).map(move |(number, Messages { bytes, count, .. })| {
            let last = number as usize + 1 == self.packs.len();
            let pack = Pack {
                sequence,
                id: self.origin.id,
                strand: self.origin.strand,
                number,
                first_index,
                last,
                decided_at: self.decided.as_ref().map(|(at, _)| at.wall),
                retried: false,
                messages: Stored::Sound(bytes.clone()),
            };
            first_index += count;
            pack
        })
    }
}
