//! The database: what it holds now, and what of that a failover leaves. Each call is one SQL transaction.

use super::Message;
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};

/// The id of a process, as long as it lives: never given twice, if the rules are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Instance(pub(super) u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LaneId(pub(super) u64);

/// What a proxy asks.
#[derive(Clone)]
pub(super) enum Call {
    /// I live. The time is the asker's, and comes back.
    Beat { sent_at: i64 },
    /// Commits a group.
    Insert(Vec<Message>),
    /// RabbitMQ has it. Nobody waits for that, and a failover may forget it.
    Delete(Message),
    /// This one's beat stood still at this.
    Bury { dead: Instance, beat: u64 },
    /// Makes a lane that has no owner the asker's own.
    Claim(LaneId),
    /// What is in a lane.
    Page(LaneId),
}

/// What it answers.
#[derive(Clone)]
pub(super) enum Said {
    Beat {
        sent_at: i64,
        living: Vec<(Instance, u64)>,
        own: Vec<LaneId>,
        free: Vec<LaneId>,
    },
    /// It is durable.
    Inserted(Vec<Message>),
    /// Rows, each with whether it may have been sent before.
    Page(LaneId, Vec<(u64, bool)>),
    /// The asker is dead.
    Fenced,
}

#[derive(Default, Clone)]
struct Tables {
    /// Alive, and the beat.
    instances: BTreeMap<Instance, (bool, u64)>,
    /// The owner, and up to where it may have been sent.
    lanes: BTreeMap<LaneId, (Option<Instance>, u64)>,
    outgoing: BTreeSet<Message>,
}

type Asker = (usize, Instance);

#[derive(Default)]
pub(super) struct Database {
    now: Tables,
    synced: Tables,
    /// Answers that wait for a sync.
    unsynced: Vec<(Asker, Said)>,
    said: Vec<(Asker, Said)>,
    /// Ids come from a sequence, which no failover sets back.
    last_id: u64,
    down_until: i64,
    /// What was durable at some time.
    committed: BTreeSet<Message>,
    pub(super) failovers: usize,
}

impl Database {
    /// A process starts: it gets an id, or takes the one that it had, and a lane of its own. Durable at once.
    pub(super) fn register(&mut self, again: Option<Instance>) -> (Instance, LaneId) {
        self.last_id += 1;
        let instance = again.unwrap_or(Instance(self.last_id));
        let lane = LaneId(self.last_id);
        self.now.instances.entry(instance).or_insert((true, 0)).0 = true;
        self.now.lanes.insert(lane, (Some(instance), 0));
        self.sync();
        (instance, lane)
    }

    pub(super) fn is_up(&self, now: i64) -> bool {
        self.down_until <= now
    }

    /// The standby takes over, and has what was synced.
    pub(super) fn fail_over(&mut self, down_until: i64) {
        self.failovers += 1;
        self.down_until = down_until;
        self.now = self.synced.clone();
        self.unsynced.clear();
    }

    pub(super) fn is_buried(&self, instance: Instance) -> bool {
        self.now.instances.get(&instance).is_some_and(|(alive, _)| !alive)
    }

    pub(super) fn beat_of(&self, instance: Instance) -> Option<u64> {
        self.now.instances.get(&instance).filter(|(alive, _)| *alive).map(|(_, beat)| *beat)
    }

    /// Durable at once. Says whether it was alive.
    pub(super) fn bury(&mut self, dead: Instance, flags: bool) -> bool {
        let Some((alive, _)) = self.now.instances.get_mut(&dead).filter(|(alive, _)| *alive) else { return false };
        *alive = false;
        for (lane, (owner, sent_to)) in &mut self.now.lanes {
            if *owner == Some(dead) {
                *owner = None;
                if flags {
                    let last = self.now.outgoing.range((*lane, 0)..(LaneId(lane.0 + 1), 0)).next_back();
                    *sent_to = last.map_or(*sent_to, |(_, sequence)| *sequence);
                }
            }
        }
        self.sync();
        true
    }

    pub(super) fn call(&mut self, from: Asker, call: Call, fenced: bool) -> Result<(), String> {
        let me = from.1;
        let is_dead = self.is_buried(me);
        match call {
            Call::Beat { .. } if is_dead => self.said.push((from, Said::Fenced)),
            Call::Beat { sent_at } => {
                // Not waited for: a failover may set beats back.
                if let Some((_, beat)) = self.now.instances.get_mut(&me) {
                    *beat += 1;
                }
                let living =
                    self.now.instances.iter().filter(|(_, (alive, _))| *alive).map(|(id, (_, beat))| (*id, *beat));
                let lanes = |wanted: Option<Instance>| {
                    let of = self.now.lanes.iter().filter(move |(_, (owner, _))| *owner == wanted);
                    of.map(|(lane, _)| *lane).collect::<Vec<_>>()
                };
                let (living, own, free) = (living.collect(), lanes(Some(me)), lanes(None));
                self.said.push((from, Said::Beat { sent_at, living, own, free }));
            }
            Call::Insert(_) if is_dead && fenced => self.said.push((from, Said::Fenced)),
            Call::Insert(group) => {
                for message in &group {
                    let owner = self.now.lanes.get(&message.0).and_then(|(owner, _)| *owner);
                    if owner != Some(me) {
                        return Err(format!("{me:?} commits in {:?}, and is not its owner", message.0));
                    }
                    self.now.outgoing.insert(*message);
                }
                self.unsynced.push((from, Said::Inserted(group)));
            }
            Call::Delete(message) => {
                if self.now.lanes.get(&message.0).is_some_and(|(owner, _)| *owner == Some(me)) {
                    self.now.outgoing.remove(&message);
                }
            }
            Call::Claim(lane) => {
                if let Some((owner @ None, _)) = self.now.lanes.get_mut(&lane).filter(|_| !is_dead || !fenced) {
                    *owner = Some(me);
                    self.sync();
                }
            }
            Call::Page(lane) => {
                let Some((owner, sent_to)) = self.now.lanes.get(&lane) else { return Ok(()) };
                if *owner == Some(me) {
                    let rows = self.now.outgoing.range((lane, 0)..(LaneId(lane.0 + 1), 0));
                    let rows = rows.map(|(_, sequence)| (*sequence, sequence <= sent_to)).collect();
                    self.said.push((from, Said::Page(lane, rows)));
                }
            }
            Call::Bury { .. } => unreachable!("the world buries"),
        }
        Ok(())
    }

    fn sync(&mut self) {
        self.synced = self.now.clone();
        self.committed.extend(self.now.outgoing.iter().copied());
        self.said.append(&mut self.unsynced);
    }

    pub(super) fn sync_sometimes(&mut self, rng: &mut Rng, is_rough: bool) {
        if !is_rough || rng.u32(..3) == 0 {
            self.sync();
        }
    }

    pub(super) fn take_said(&mut self) -> Vec<(Asker, Said)> {
        std::mem::take(&mut self.said)
    }

    pub(super) fn was_durable(&self, message: Message) -> bool {
        self.committed.contains(&message)
    }
}
