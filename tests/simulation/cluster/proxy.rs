//! One process: what it knows of itself and of the others, and what it has to send.

use super::database::{Call, Instance, LaneId, Said};
use super::{BEAT, DEAD, GAP, LEASE, Message, Rules};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Messages of a lane that RabbitMQ has not confirmed, at most.
const WINDOW: usize = 4;
/// How long to wait for the answer to a commit before it is asked for again.
const AGAIN: i64 = 1_200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Running,
    /// SIGSTOP, or its machine is. It knows nothing of it.
    Stopped {
        until: i64,
        since: i64,
        clock_stands: bool,
    },
    /// SIGKILL. Another one starts later.
    Killed {
        until: i64,
    },
}

/// A lane that it relays.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<(u64, bool)>,
    in_flight: VecDeque<u64>,
    /// What was in the store when it was adopted is known.
    is_read: bool,
    read_at: i64,
}

pub(super) struct Proxy {
    pub(super) instance: Instance,
    pub(super) state: State,
    pub(super) cut_off_until: i64,
    /// When it was last not well: stopped, killed or cut off.
    pub(super) troubled_at: i64,
    /// For how long its clock stood still.
    pub(super) stood_still: i64,
    pub(super) clock_stood_at: Option<i64>,
    /// By its own clock.
    pub(super) lease_until: i64,
    pub(super) connection: Option<u64>,
    /// The lease was looked at, and this is written next.
    pub(super) armed: Option<(Message, bool)>,
    next_beat: i64,
    /// When somebody's beat was seen to change last.
    seen: BTreeMap<Instance, (u64, i64)>,
    looked_at: Option<i64>,
    own: LaneId,
    lanes: BTreeMap<LaneId, Lane>,
    last_sequence: u64,
    /// Commits that wait for their group.
    queue: Vec<Message>,
    /// Groups without an answer, and when they were asked for: one, if the rules are kept.
    asked: Vec<(Vec<Message>, i64)>,
    to_claim: Vec<LaneId>,
    to_bury: Vec<(Instance, u64)>,
}

impl Proxy {
    pub(super) fn new(instance: Instance, own: LaneId, stood_still: i64, now: i64) -> Self {
        Self {
            instance,
            state: State::Running,
            cut_off_until: 0,
            troubled_at: now,
            stood_still,
            clock_stood_at: None,
            lease_until: 0,
            connection: None,
            armed: None,
            next_beat: 0,
            seen: BTreeMap::new(),
            looked_at: None,
            own,
            lanes: BTreeMap::from([(own, Lane { is_read: true, ..Lane::default() })]),
            last_sequence: 0,
            queue: Vec::new(),
            asked: Vec::new(),
            to_claim: Vec::new(),
            to_bury: Vec::new(),
        }
    }

    /// What its own clock shows.
    pub(super) fn clock(&self, now: i64) -> i64 {
        now - self.stood_still
    }

    /// A client commits.
    pub(super) fn commit(&mut self) {
        self.last_sequence += 1;
        self.queue.push((self.own, self.last_sequence));
    }

    /// What is to be asked now.
    pub(super) fn calls(&mut self, clock: i64, rules: &Rules) -> Vec<Call> {
        let mut calls = Vec::new();
        if clock >= self.next_beat {
            self.next_beat = clock + BEAT;
            calls.push(Call::Beat { sent_at: clock });
        }
        if !self.queue.is_empty() && (self.asked.is_empty() || !rules.groups_wait) {
            let group = std::mem::take(&mut self.queue);
            calls.push(Call::Insert(group.clone()));
            self.asked.push((group, clock));
        }
        for (group, asked_at) in self.asked.iter_mut().filter(|(_, asked_at)| clock - *asked_at > AGAIN) {
            // The same again: whichever comes first, the others change nothing.
            *asked_at = clock;
            calls.push(Call::Insert(group.clone()));
        }
        for (id, lane) in self.lanes.iter_mut().filter(|(_, lane)| !lane.is_read && lane.read_at <= clock) {
            lane.read_at = clock + AGAIN;
            calls.push(Call::Page(*id));
        }
        calls.extend(self.to_claim.drain(..).map(Call::Claim));
        calls.extend(self.to_bury.drain(..).map(|(dead, beat)| Call::Bury { dead, beat }));
        calls
    }

    /// Hears an answer. Gives back what clients are told to be committed.
    pub(super) fn hear(&mut self, said: Said, clock: i64, rules: &Rules) -> Vec<Message> {
        match said {
            Said::Beat { sent_at, living, own, free } => {
                let from = if rules.lease_counts_from_sending { sent_at } else { clock };
                self.lease_until = self.lease_until.max(from + LEASE);
                self.watch(living, clock, rules);
                self.lanes.retain(|lane, _| own.contains(lane));
                for lane in own {
                    self.lanes.entry(lane).or_default();
                }
                self.to_claim = free;
            }
            Said::Inserted(group) => {
                let Some(at) = self.asked.iter().position(|(asked, _)| *asked == group) else { return Vec::new() };
                self.asked.remove(at);
                let lane = self.lanes.entry(self.own).or_default();
                lane.waiting.extend(group.iter().map(|(_, sequence)| (*sequence, false)));
                return group;
            }
            Said::Page(lane, rows) => {
                if let Some(lane) = self.lanes.get_mut(&lane).filter(|lane| !lane.is_read) {
                    lane.is_read = true;
                    lane.waiting.extend(rows);
                }
            }
            Said::Fenced => {}
        }
        Vec::new()
    }

    /// Who of the others is dead by what was seen of its beat?
    fn watch(&mut self, living: Vec<(Instance, u64)>, clock: i64, rules: &Rules) {
        if rules.gaps_are_forgotten && self.looked_at.is_some_and(|at| clock - at > GAP) {
            self.seen.clear();
        }
        self.looked_at = Some(clock);
        let there: BTreeSet<_> = living.iter().map(|(id, _)| *id).collect();
        self.seen.retain(|id, _| there.contains(id));
        for (id, beat) in living.into_iter().filter(|(id, _)| *id != self.instance) {
            let (seen, since) = self.seen.entry(id).or_insert((beat, clock));
            if *seen != beat {
                (*seen, *since) = (beat, clock);
            } else if clock - *since >= DEAD {
                self.to_bury.push((id, beat));
            }
        }
    }

    /// A new connection to RabbitMQ: what was in flight on the old one is sent again.
    pub(super) fn connect(&mut self, number: u64) {
        self.connection = Some(number);
        // What was about to be written finds the old connection closed.
        if let Some(((lane, sequence), _)) = self.armed.take()
            && let Some(lane) = self.lanes.get_mut(&lane)
            && !lane.in_flight.contains(&sequence)
        {
            lane.in_flight.push_back(sequence);
        }
        for lane in self.lanes.values_mut() {
            while let Some(sequence) = lane.in_flight.pop_back() {
                lane.waiting.push_front((sequence, true));
            }
        }
    }

    /// Takes the next message of a lane, to write it.
    pub(super) fn arm(&mut self) {
        let next = self.lanes.iter_mut().find(|(_, lane)| lane.in_flight.len() < WINDOW && !lane.waiting.is_empty());
        if let Some((id, lane)) = next
            && let Some((sequence, flagged)) = lane.waiting.pop_front()
        {
            lane.in_flight.push_back(sequence);
            self.armed = Some(((*id, sequence), flagged));
        }
    }

    /// RabbitMQ has it.
    pub(super) fn confirmed(&mut self, message: Message) -> Option<Call> {
        let lane = self.lanes.get_mut(&message.0)?;
        lane.in_flight.retain(|sequence| *sequence != message.1);
        Some(Call::Delete(message))
    }
}
