//! Half messages and decisions of one channel that wait for an answer, of RabbitMQ or of the store: in the order in which
//! they came, each at its stage.

use crate::protocol::command::{Command, Io, Ticket};
use crate::tx::batch::Batch;
use crate::tx::checker::Named;
use crate::tx::decision::Decision;
use crate::tx::id::TransactionId;
use crate::tx::name::TransactionName;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// One of them.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) ticket: Ticket,
    /// The client's delivery tag, on a confirm channel.
    pub(super) tag: Option<u64>,
    pub(super) bytes: usize,
    pub(super) stage: Stage,
}

#[derive(Debug)]
pub(super) enum Stage {
    Ordering {
        probe: Vec<u8>,
        half: Half,
    },
    /// Since then.
    Judging(Half, Instant),
    /// A decision: RabbitMQ is asked whether the client is who it says, to whom the transaction belongs.
    Confirming(Decision, TransactionName),
    /// RabbitMQ has nothing against it, and the store no room.
    HeldBack(Arc<Named>, Batch),
    Parking(TransactionId),
    Decision(Decision, TransactionName),
    Deciding(TransactionName),
}

#[derive(Debug)]
pub(super) struct Half {
    pub(super) named: Arc<Named>,
    pub(super) batch: Batch,
    /// See [`crate::protocol::probe::kind`].
    pub(super) kind: Option<Vec<u8>>,
}

impl Waiting {
    /// Has a half message judged, now that it is in order.
    pub(super) fn ask(&mut self, now: Instant) -> Option<(Ticket, Vec<u8>)> {
        let Stage::Ordering { probe, half } = &mut self.stage else { return None };
        let probe = std::mem::take(probe);
        let Half { named, batch, kind } = half;
        let half = Half { named: Arc::clone(named), batch: std::mem::take(batch), kind: kind.take() };
        self.stage = Stage::Judging(half, now);
        Some((self.ticket, probe))
    }

    /// Has a half message kept.
    pub(super) fn park(&mut self, channel: u16, named: Arc<Named>, batch: Batch, io: &mut Io) {
        let transaction = (io.settings.new_id)();
        self.stage = Stage::Parking(transaction);
        io.commands.push_back(Command::Park { channel, transaction, named: Some(named), batch });
    }

    fn is_held_back(&self) -> bool {
        matches!(self.stage, Stage::HeldBack(..))
    }
}

/// All of them. There may be thousands.
#[derive(Debug, Default)]
pub(super) struct Underway {
    /// In the order of their tickets.
    all: VecDeque<Waiting>,
    bytes: usize,
    /// How many of them wait for room in the store, and their bytes.
    held_back: (usize, usize),
    /// Whether this is among those whose answers the end of the connection waits for.
    counted: bool,
}

impl Underway {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether one waits for something else than room.
    pub(super) fn is_on_its_way(&self) -> bool {
        self.all.len() > self.held_back.0
    }

    /// Bytes of those that wait for something else than room.
    pub(super) fn bytes_on_their_way(&self) -> usize {
        self.bytes - self.held_back.1
    }

    /// Bytes of those that wait for room.
    pub(super) fn bytes_held_back(&self) -> usize {
        self.held_back.1
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, waiting: Waiting, io: &mut Io) {
        self.bytes += waiting.bytes;
        self.all.push_back(waiting);
        self.count(io);
    }

    pub(super) fn last(&mut self) -> Option<&mut Waiting> {
        self.all.back_mut()
    }

    pub(super) fn get(&mut self, ticket: Ticket) -> Option<&mut Waiting> {
        let place = self.all.binary_search_by_key(&ticket, |waiting| waiting.ticket).ok()?;
        self.all.get_mut(place)
    }

    /// The one that the store is asked to keep under this id.
    pub(super) fn parking(&self, id: TransactionId) -> Option<Ticket> {
        let is_it = |waiting: &&Waiting| matches!(waiting.stage, Stage::Parking(parking) if parking == id);
        self.all.iter().find(is_it).map(|waiting| waiting.ticket)
    }

    /// The first one that waits for something else than room.
    pub(super) fn first(&mut self) -> Option<&mut Waiting> {
        self.all.iter_mut().find(|waiting| !waiting.is_held_back())
    }

    /// Whether a message of this transaction waits for room in front of all that don't.
    pub(super) fn holds_back_first(&self, name: &TransactionName) -> bool {
        let held_back = self.all.iter().map_while(|waiting| match &waiting.stage {
            Stage::HeldBack(named, _) => Some(named),
            _ => None,
        });
        held_back.into_iter().any(|named| named.name == *name)
    }

    /// Whether all before the last one that came are being parked: what has one name goes to the store in order.
    pub(super) fn is_last_next_to_be_parked(&self) -> bool {
        let before = self.all.len().checked_sub(2).and_then(|place| self.all.get(place));
        before.is_none_or(|before| before.is_held_back() || matches!(before.stage, Stage::Parking(_)))
    }

    /// Has all that are in order now judged.
    pub(super) fn ask(&mut self, now: Instant) -> Vec<(Ticket, Vec<u8>)> {
        self.all.iter_mut().filter_map(|waiting| waiting.ask(now)).collect()
    }

    /// Has one wait for room.
    pub(super) fn hold_back(&mut self, ticket: Ticket, named: Arc<Named>, batch: Batch, io: &mut Io) {
        let Some(waiting) = self.get(ticket) else { return };
        waiting.stage = Stage::HeldBack(named, batch);
        let bytes = waiting.bytes;
        self.held_back = (self.held_back.0 + 1, self.held_back.1 + bytes);
        self.count(io);
    }

    /// Has those kept, in order, that wait for room.
    pub(super) fn park_held_back(&mut self, channel: u16, io: &mut Io) {
        self.held_back = (0, 0);
        for waiting in &mut self.all {
            if let Stage::HeldBack(named, batch) = &mut waiting.stage {
                let (named, batch) = (Arc::clone(named), std::mem::take(batch));
                waiting.park(channel, named, batch, io);
            }
        }
        self.count(io);
    }

    /// One has its answer, and waits no more. It was not held back.
    pub(super) fn take(&mut self, ticket: Ticket, io: &mut Io) -> Option<Waiting> {
        let place = self.all.binary_search_by_key(&ticket, |waiting| waiting.ticket).ok()?;
        let waiting = self.all.remove(place)?;
        self.bytes -= waiting.bytes;
        self.count(io);
        Some(waiting)
    }

    /// Keeps those only for which the store is asked already.
    pub(super) fn keep_asked(&mut self, io: &mut Io) {
        self.all.retain(|waiting| matches!(waiting.stage, Stage::Parking(_) | Stage::Deciding(_)));
        self.bytes = self.all.iter().map(|waiting| waiting.bytes).sum();
        self.held_back = (0, 0);
        self.count(io);
    }

    pub(super) fn clear(&mut self, io: &mut Io) {
        self.all.clear();
        (self.bytes, self.held_back) = (0, (0, 0));
        self.count(io);
    }

    /// Has the end of the connection wait for what is on its way, and for nothing else.
    fn count(&mut self, io: &mut Io) {
        match (self.counted, self.is_on_its_way()) {
            (false, true) => io.committing += 1,
            (true, false) => io.committing -= 1,
            _ => {}
        }
        self.counted = self.is_on_its_way();
    }
}
