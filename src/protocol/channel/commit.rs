//! tx.commit, step by step.

use super::{Asker, Channel, leave, park, refuse_store, roll_back};
use crate::amqp::frame::Frame;
use crate::amqp::method::{self, id};
use crate::amqp::reply_code::ReplyCode;
use crate::protocol::command::{Command, Io, Next, Ticket};
use crate::protocol::half;
use crate::protocol::judge::Judgement;
use crate::protocol::probe;
use crate::protocol::transaction::{Transaction, write_return};
use crate::tx::decision::Verdict;
use crate::tx::id::TransactionId;
use crate::tx::name::TransactionName;
use crate::tx::outcome::{Forwarded, Outcome, StoreError, Wait};
use std::time::Instant;

/// Decisions about other transactions that the store is asked for at one time.
const DECISIONS_AT_ONCE: usize = 100;

/// A commit on its way.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) transaction: Transaction,
    pub(super) step: Step,
    /// When the client sent tx.commit.
    pub(super) since: Instant,
    pub(super) forwarded: Option<Forwarded>,
    /// With what the relay is waited for.
    wait: Option<Wait>,
    /// How many answers there were when it was last looked, and until when there may be further ones.
    answers: u32,
    until_at_last: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Fencing,
    Fenced,
    /// RabbitMQ is asked whether the client is who it says, to whom the decisions about other transactions belong.
    Confirming(Ticket),
    /// So many decisions about other transactions were asked for.
    DecidingOthers(usize),
    Deciding,
    Settling {
        /// RabbitMQ's commit-ok for acks and native messages is due.
        upstream: bool,
        /// The relay is waited for until then.
        relay_until: Option<Instant>,
    },
}

impl Commit {
    /// Bytes that it holds in memory, what comes back to the client included.
    pub(super) fn held_bytes(&self) -> usize {
        let returned = self.forwarded.iter().flat_map(|forwarded| &forwarded.returned);
        self.transaction.held_bytes() + returned.map(|returned| returned.body.len()).sum::<usize>()
    }
}

impl Channel {
    pub(super) fn begin_commit(&mut self, frame: &Frame<'_>, io: &mut Io) -> Next {
        self.ask_again(io);
        // RabbitMQ has to find them right before anything is decided.
        self.redo_acks(io);
        let transaction = self.take_transaction(io);
        self.leases.next_transaction(io);
        if transaction.has_no_message() {
            // Only acks, which are in RabbitMQ's own transaction already: this commit is its business.
            self.answers.push_back(Asker::Client);
            io.to_upstream.extend_from_slice(frame.raw);
            return Next::Nothing;
        }
        let is_judged = transaction.is_judged() && !self.asked;
        self.commit = Some(Commit {
            transaction,
            step: Step::Fencing,
            since: io.now,
            forwarded: None,
            wait: None,
            answers: 0,
            until_at_last: None,
        });
        io.committing += 1;
        if is_judged {
            return self.fenced(io);
        }
        self.asked = false;
        self.leases.fence();
        self.answers.push_back(Asker::Fence);
        method::write_bare(&mut io.to_upstream, self.number, id::TX_ROLLBACK);
        Next::Nothing
    }

    /// RabbitMQ has judged every probe and dropped them.
    pub(super) fn fenced(&mut self, io: &mut Io) -> Next {
        let Some(commit) = &mut self.commit else { return Next::Nothing };
        let transaction = &mut commit.transaction;
        if transaction.named.is_some() && !transaction.batch.is_empty() {
            let batch = std::mem::take(&mut transaction.batch);
            park(transaction, batch, self.number, &mut self.parks, io);
        }
        io.user_confirmed |= transaction.claimed;
        if !transaction.decisions.is_empty() && !io.user_confirmed {
            let (ticket, mut probe) = (io.next_ticket(), Vec::new());
            probe::write_claim_anywhere(&mut probe, self.number, io.user());
            commit.step = Step::Confirming(ticket);
            return Next::Ask(vec![(ticket, probe)]);
        }
        self.decide_others(io)
    }

    /// What RabbitMQ says of the client's name.
    pub(super) fn confirmed(&mut self, judgement: Judgement, io: &mut Io) -> Next {
        match judgement.confirms(io.user(), io.vhost()) {
            Ok(()) => {
                io.user_confirmed = true;
                self.decide_others(io)
            }
            Err(text) => Next::Refuse(ReplyCode::PRECONDITION_FAILED, text, id::TX_COMMIT),
        }
    }

    /// First what is decided about others, some at a time: if that can't be, nothing of this transaction is.
    fn decide_others(&mut self, io: &mut Io) -> Next {
        let Some(commit) = &mut self.commit else { return Next::Nothing };
        let asked = if let Step::DecidingOthers(asked) = commit.step { asked } else { 0 };
        let free = DECISIONS_AT_ONCE - self.deciding.len().min(DECISIONS_AT_ONCE);
        let next = commit.transaction.decisions.iter().skip(asked).take(free);
        commit.step = Step::DecidingOthers(asked + next.len());
        for (decision, name) in next {
            let ticket = io.next_ticket();
            self.deciding.insert(ticket);
            let (decision, name) = (*decision, name.clone());
            io.commands.push_back(Command::Decide { channel: self.number, ticket, decision, name });
        }
        if self.deciding.is_empty() {
            commit.step = Step::Fenced;
        }
        self.decide(io)
    }

    /// The store's answer to a decision about another transaction.
    pub fn handle_decided(
        &mut self,
        ticket: Ticket,
        name: &TransactionName,
        result: Result<Verdict, StoreError>,
        io: &mut Io,
    ) -> Next {
        let is_due = self.deciding.remove(&ticket);
        let Some(Commit { step: Step::DecidingOthers(_), .. }) = &self.commit else { return Next::Nothing };
        if !is_due {
            return Next::Nothing;
        }
        if let Err((code, text)) = half::check_verdict(name, result) {
            return Next::Refuse(code, text, id::TX_COMMIT);
        }
        self.decide_others(io)
    }

    /// Asks the store to decide, once RabbitMQ has judged and all that was parked before is known to be kept.
    pub(super) fn decide(&mut self, io: &mut Io) -> Next {
        let Some(commit) = self.commit.as_mut().filter(|commit| commit.step == Step::Fenced) else {
            return Next::Nothing;
        };
        if commit.transaction.messages == 0 {
            return self.settle(None, io);
        }
        if commit.transaction.id.is_some_and(|id| self.parks.contains(&id)) {
            return Next::Nothing;
        }
        commit.step = Step::Deciding;
        let transaction = &mut commit.transaction;
        let id = *transaction.id.get_or_insert_with(io.settings.new_id);
        let waits = transaction.mandatory || !transaction.settings(io).forward_wait.is_zero();
        // Who does not wait for RabbitMQ is answered sooner by the store.
        let alone = waits && transaction.is_alone();
        commit.wait = waits.then(|| Wait::new(transaction.mandatory));
        io.commands.push_back(Command::Commit {
            channel: self.number,
            transaction: id,
            named: transaction.named.clone(),
            batch: std::mem::take(&mut transaction.batch),
            parked: transaction.parked,
            alone,
            wait: commit.wait.clone(),
        });
        Next::Nothing
    }

    /// The store has decided, or could not; `true`: just now, so that the messages are on their way.
    pub fn handle_committed(&mut self, id: TransactionId, result: Result<bool, StoreError>, io: &mut Io) -> Next {
        let Some(commit) = self.commit.as_mut().filter(|commit| commit.transaction.id == Some(id)) else {
            return Next::Nothing;
        };
        let is_new = match result {
            Ok(is_new) => is_new,
            Err(StoreError::Refused(code, text)) => return self.refused_alone(code, text, io),
            Err(error) => return refuse_store(&error, id::TX_COMMIT),
        };
        let settings = commit.transaction.settings(io);
        let wait = match (commit.transaction.mandatory, io.hurried || !is_new) {
            (_, true) => None,
            (true, false) => Some(settings.mandatory_wait),
            (false, false) => Some(settings.forward_wait).filter(|wait| !wait.is_zero()),
        };
        let wait = wait.filter(|_| commit.forwarded.is_none() && commit.wait.is_some());
        commit.until_at_last = Some(io.now + settings.mandatory_wait);
        self.settle(wait.map(|wait| io.now + wait), io)
    }

    /// RabbitMQ has refused its only message, before it was kept anywhere: as if it had done so on this channel.
    fn refused_alone(&mut self, code: ReplyCode, text: String, io: &mut Io) -> Next {
        self.commit = None;
        io.committing -= 1;
        io.commands.push_back(Command::Ended(Outcome::Refused));
        io.commands.push_back(Command::EndLeases);
        Next::Refuse(code, text, id::BASIC_PUBLISH)
    }

    /// Lets acks and native messages take effect, and waits for the relay if there is something to wait for.
    fn settle(&mut self, relay_until: Option<Instant>, io: &mut Io) -> Next {
        let Some(commit) = &mut self.commit else { return Next::Nothing };
        let (settlements, native) = (commit.transaction.settlements(), &commit.transaction.native);
        let upstream = (!settlements.is_empty() || !native.is_empty()) && !io.upstream_lost;
        if upstream {
            io.to_upstream.extend_from_slice(settlements);
            io.to_upstream.extend_from_slice(native);
            method::write_bare(&mut io.to_upstream, self.number, id::TX_COMMIT);
            self.answers.push_back(Asker::Settle);
        }
        if let Some(until) = relay_until {
            io.timers.insert((until, self.number));
        }
        commit.step = Step::Settling { upstream, relay_until };
        self.finish_commit(io)
    }

    /// The relay has an answer of RabbitMQ for every message.
    pub fn handle_forwarded(&mut self, id: TransactionId, forwarded: Forwarded, io: &mut Io) -> Next {
        match &mut self.commit {
            Some(commit) if commit.transaction.id == Some(id) => {
                commit.forwarded = Some(forwarded);
                self.stop_waiting(io)
            }
            _ => {
                if self.late.remove(&id) {
                    self.say_returns(&forwarded, io);
                }
                Next::Nothing
            }
        }
    }

    /// Nobody will say what became of it.
    pub fn handle_unforwarded(&mut self, id: TransactionId, io: &mut Io) -> Next {
        match &mut self.commit {
            Some(commit) if commit.transaction.id == Some(id) => {
                commit.wait = None;
                self.stop_waiting(io)
            }
            _ => {
                self.late.remove(&id);
                Next::Nothing
            }
        }
    }

    /// The relay has taken its time. As long as RabbitMQ goes on to answer for messages it gets more.
    pub fn wait_is_over(&mut self, io: &mut Io) -> Next {
        if let Some(Commit { transaction, wait: Some(wait), answers, until_at_last: Some(until_at_last), step, .. }) =
            &mut self.commit
            && let Step::Settling { relay_until: Some(until), .. } = step
            && let seen = std::mem::replace(answers, wait.answers())
            && seen < *answers
        {
            let more = (io.now + transaction.settings(io).forward_wait).min(*until_at_last);
            if more > io.now {
                *until = more;
                io.timers.insert((more, self.number));
                return Next::Nothing;
            }
        }
        self.stop_waiting(io)
    }

    /// Waits for the relay no longer, if it does: the time is up, the answer is there, or the session ends.
    pub fn stop_waiting(&mut self, io: &mut Io) -> Next {
        if let Some(Commit { step: Step::Settling { relay_until, .. }, .. }) = &mut self.commit {
            if let Some(until) = relay_until.take() {
                io.timers.remove(&(until, self.number));
            }
            return self.finish_commit(io);
        }
        Next::Nothing
    }

    /// Answers the client if nothing more is waited for.
    fn finish_commit(&mut self, io: &mut Io) -> Next {
        let done = |commit: &mut Commit| commit.step == Step::Settling { upstream: false, relay_until: None };
        let Some(commit) = self.commit.take_if(done) else { return Next::Nothing };
        io.commands.push_back(Command::CommitTook(io.now - commit.since));
        io.commands.push_back(Command::Ended(Outcome::Committed));
        match (commit.forwarded, commit.transaction.id) {
            (Some(forwarded), _) => self.say_returns(&forwarded, io),
            (None, Some(id)) if commit.transaction.mandatory => drop(self.late.insert(id)),
            _ => {}
        }
        let mut answer = Vec::new();
        method::write_bare(&mut answer, self.number, id::TX_COMMIT_OK);
        self.line.say(&answer, io);
        io.committing -= 1;
        Next::Release
    }

    pub(super) fn say_returns(&mut self, forwarded: &Forwarded, io: &mut Io) {
        let mut out = Vec::new();
        for returned in &forwarded.returned {
            let (arguments, header) = (&returned.arguments, &returned.header);
            write_return(&mut out, self.number, arguments, header, &returned.body, io.frame_max);
        }
        self.line.say(&out, io);
    }

    pub(super) fn settled(&mut self, io: &mut Io) -> Next {
        if let Some(Commit { step: Step::Settling { upstream, .. }, .. }) = &mut self.commit {
            *upstream = false;
        }
        self.finish_commit(io)
    }

    pub(super) fn leave_commit(&mut self, outcome: Option<Outcome>, reason: Option<String>, io: &mut Io) {
        let Some(commit) = self.commit.take() else { return };
        io.committing -= 1;
        match (commit.step, outcome) {
            // A message of it was refused, or could not be kept: it is incomplete, and nobody may release the rest.
            (Step::Fencing | Step::Confirming(_) | Step::Fenced | Step::DecidingOthers(_), Some(outcome))
                if reason.is_some() =>
            {
                roll_back(&commit.transaction, self.number, outcome, reason, io);
            }
            (Step::Fencing | Step::Confirming(_) | Step::Fenced | Step::DecidingOthers(_), _)
            | (Step::Deciding, Some(Outcome::Failed)) => {
                leave(&commit.transaction, self.number, outcome.unwrap_or(Outcome::RolledBack), io);
            }
            (Step::Deciding | Step::Settling { .. }, _) => {
                if let Step::Settling { relay_until: Some(until), .. } = commit.step {
                    io.timers.remove(&(until, self.number));
                }
                io.commands.push_back(Command::CommitTook(io.now - commit.since));
                io.commands.push_back(Command::Ended(Outcome::Committed));
            }
        }
    }
}
