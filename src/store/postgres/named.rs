//! What only transactions with a name do: share one fate under it, be in doubt, be asked about, be decided by others. The
//! rules are those of `sqlite/named.rs`.

use super::row::{ROW_COLUMNS, Row, id};
use super::rows::{Rows, conflict};
use super::sql::{Failed, Sql, Words, words, words_if_any};
use crate::amqp::properties::Properties;
use crate::store::request::Outcome;
use crate::store::{COMMITTED_BEFORE, Check, Messages, Named, Origin, StoreError};
use crate::tx::batch;
use crate::tx::decision::{Actor, Decision, Fate, Owned, Target, Verdict};
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::state::State;
use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

/// Rolled back attempts that are looked at for the one that was rolled back last. They are read from the youngest, and
/// seldom is one rolled back so long after so many younger ones.
const ROLLED_BACK_ATTEMPTS: i64 = 64;

/// The attempts under one name that are not rolled back.
#[derive(Debug, Default)]
struct Namesakes {
    /// The one that was asked for, in any state.
    own: Option<Row>,
    open: Option<Row>,
    in_doubt: Option<Row>,
    /// Committed, wherever its messages are by now.
    committed: Option<Row>,
}

impl Rows<'_> {
    pub(super) fn park_named(
        &mut self,
        origin: &Origin,
        named: &Named,
        messages: &Messages,
    ) -> Result<Outcome, Failed> {
        let own = named.transactional.then_some(origin.id);
        let same = self.namesakes(&origin.lane.vhost, &origin.user, named.name.as_str(), own)?;
        match (&same.own, &same.in_doubt) {
            // More for what somebody else has decided meanwhile would be lost, whatever was decided.
            (Some(own), _) if own.state != State::Open => Ok(Outcome::Refused(conflict(own.state))),
            _ if same.committed.is_some() => Ok(Outcome::Done),
            (Some(own), _) => self.park_more(own, messages),
            _ if same.open.is_some() => Ok(Outcome::Refused(StoreError::Locked(named.name.as_str().into()))),
            (None, Some(in_doubt)) if !named.transactional => self.park_more(in_doubt, messages),
            _ if named.transactional => self.park_first(origin, State::Open, messages),
            _ => {
                let outcome = self.park_first(origin, State::InDoubt, messages)?;
                if matches!(outcome, Outcome::Parked(..)) {
                    let reason = "its channel decides nothing";
                    self.note(origin.id, State::InDoubt.as_str(), &Actor::Channel, Some(reason))?;
                }
                Ok(outcome)
            }
        }
    }

    pub(super) fn commit_named(
        &mut self,
        origin: &Origin,
        named: &Named,
        messages: &Messages,
        parked: bool,
    ) -> Result<Outcome, Failed> {
        let same = self.namesakes(&origin.lane.vhost, &origin.user, named.name.as_str(), Some(origin.id))?;
        if let Some(before) = &same.committed {
            if let Some(own) = same.own.as_ref().filter(|own| own.state.may_become(State::RolledBack)) {
                self.roll_back_row(own, &Actor::Attempt(before.id), Some(COMMITTED_BEFORE))?;
            }
            return Ok(Outcome::CommittedBefore);
        }
        let outcome = match &same.own {
            Some(own) => self.commit_own(own, messages)?,
            None => match self.find(origin.id)? {
                Some(own) => Outcome::Refused(conflict(own.state)),
                None if parked => Outcome::NotThere,
                None => return self.commit_whole(origin, messages, same),
            },
        };
        if let (Outcome::Committed(_), Some(earlier)) = (&outcome, &same.in_doubt) {
            self.replace(earlier, origin.id)?;
        }
        Ok(outcome)
    }

    /// Commits a named transaction no message of which was parked before.
    fn commit_whole(&mut self, origin: &Origin, messages: &Messages, same: Namesakes) -> Result<Outcome, Failed> {
        if let Some(open) = same.open {
            return Ok(Outcome::Refused(StoreError::Locked(open.name.unwrap_or_default())));
        }
        if let Some(earlier) = &same.in_doubt {
            self.replace(earlier, origin.id)?;
        }
        self.park_first(origin, State::Open, messages)?;
        let own = self.find(origin.id)?.expect("it was made just now");
        Ok(Outcome::Committed(self.commit_row(&own, &Messages::default(), &Actor::Channel, None)?))
    }

    /// Its channel ended undecided, as `actor` found.
    pub(super) fn abandon(&mut self, id: TransactionId, actor: &Actor, reason: &str) -> Result<(), Failed> {
        let Some(row) = self.find(id)?.filter(|row| row.state == State::Open) else { return Ok(()) };
        let Some(name) = &row.name else { return Ok(()) };
        let same = self.namesakes(&row.lane.vhost, &row.user, name, Some(id))?;
        if let Some(before) = &same.committed {
            return self.roll_back_row(&row, &Actor::Attempt(before.id), Some(COMMITTED_BEFORE));
        }
        if let Some(earlier) = &same.in_doubt {
            if earlier.messages > row.messages {
                return self.replace(&row, earlier.id);
            }
            self.replace(earlier, id)?;
        }
        self.sql.execute(
            "UPDATE transactions SET state = 'in_doubt', in_doubt_at = $2, next_check_at = $3 + first_after
             WHERE sequence = $1 AND state = 'open'",
            &[&row.sequence, &self.now.0, &self.moment.0],
        )?;
        self.tally.moved(Some(row.state), State::InDoubt);
        self.note(id, State::InDoubt.as_str(), actor, Some(reason))
    }

    /// Ends what an earlier process left open: its channels ended with it. Says how many were rolled back, and how many
    /// are in doubt now. What was in doubt is not looked at, so that a million of them does not hold up the start.
    pub(super) fn after_restart(&mut self) -> Result<(usize, usize), Failed> {
        const REASON: &str = "the proxy ended before its channel decided";
        let ids = |query| -> Result<Vec<TransactionId>, Failed> {
            self.sql.query(query, &[])?.iter().map(|row| id(row, 0)).collect()
        };
        let unnamed =
            ids("SELECT id FROM transactions WHERE state <> 'committed' AND state = 'open' AND name IS NULL")?;
        // Few, and each has to be compared with its namesakes.
        let contested = ids(
            "SELECT t.id FROM transactions AS t WHERE t.state <> 'committed' AND t.state = 'open' AND t.name IS NOT NULL
                 AND EXISTS (SELECT 1 FROM transactions AS other
                     WHERE other.name IS NOT NULL AND other.state <> 'rolled_back' AND other.name = t.name
                         AND other.\"user\" = t.\"user\" AND other.sequence <> t.sequence)",
        )?;
        for id in &unnamed {
            if let Some(row) = self.find(*id)? {
                self.roll_back_row(&row, &Actor::Restart, Some(REASON))?;
            }
        }
        for id in &contested {
            self.abandon(*id, &Actor::Restart, REASON)?;
        }
        let (entry, restart) = (self.me.sequence(), Actor::Restart.to_string());
        self.sql.execute(
            "INSERT INTO history (transaction_id, entry, at, event, actor, reason)
             SELECT id, $1, $2, 'in_doubt', $3, $4 FROM transactions WHERE state <> 'committed' AND state = 'open'",
            &[&entry, &self.now.0, &restart, &REASON],
        )?;
        let rest = self.sql.execute(
            "UPDATE transactions SET state = 'in_doubt', in_doubt_at = $1, next_check_at = $2 + first_after
             WHERE state <> 'committed' AND state = 'open'",
            &[&self.now.0, &self.moment.0],
        )?;
        Ok((unnamed.len(), contested.len() + rest as usize))
    }

    /// Decides from outside the channel that published.
    pub(super) fn decide(
        &mut self,
        target: &Target,
        decision: Decision,
        actor: &Actor,
        reason: Option<&str>,
        broken: impl FnOnce(TransactionId) -> Option<StoreError>,
    ) -> Result<Outcome, Failed> {
        let found = match target {
            Target::Id(id) => match self.find(*id)? {
                Some(row) => Some(row),
                None => self.find_dead(*id)?,
            },
            Target::Name(owned) => self.under_name(owned)?,
        };
        let Some(row) = found else { return Ok(Outcome::Verdict(Verdict::Unknown, None)) };
        if !row.state.may_become(decision.state()) {
            let is_same = decision.is_of(row.state);
            let fate = fate(row);
            let verdict = if is_same { Verdict::Before(fate) } else { Verdict::Contradicted(fate) };
            return Ok(Outcome::Verdict(verdict, None));
        }
        let fate = Fate { id: row.id, state: decision.state(), decided_at: self.now, decided_by: actor.to_string() };
        if decision == Decision::RollBack {
            self.roll_back_row(&row, actor, reason)?;
            return Ok(Outcome::Verdict(Verdict::Decided(fate), None));
        }
        // Half of a transaction is not to be had, whoever asks for it.
        if let Some(error) = broken(row.id) {
            return Ok(Outcome::Refused(error));
        }
        let Some(name) = &row.name else {
            let only = "open and has no name: only its channel can commit it";
            return Ok(Outcome::Refused(StoreError::Conflict(only.into())));
        };
        let same = self.namesakes(&row.lane.vhost, &row.user, name, Some(row.id))?;
        if let Some(before) = same.committed {
            self.roll_back_row(&row, &Actor::Attempt(before.id), Some(COMMITTED_BEFORE))?;
            return Ok(Outcome::Verdict(Verdict::Before(self::fate(before)), None));
        }
        let released = self.commit_row(&row, &Messages::default(), actor, reason)?;
        if let Some(earlier) = &same.in_doubt {
            self.replace(earlier, row.id)?;
        }
        Ok(Outcome::Verdict(Verdict::Decided(fate), Some(released)))
    }

    /// Writes down a check that decided nothing.
    pub(super) fn checked(&mut self, id: TransactionId, check: &Check) -> Result<bool, Failed> {
        let again = check.again_after.map(|pause| self.moment.after(pause).0);
        let changed = self.sql.execute(
            "UPDATE transactions SET attempts = attempts + 1, checks_answered = checks_answered + $2, next_check_at = $3
             WHERE parked_at IS NOT NULL AND id = $1 AND state = 'in_doubt'",
            &[&id.0, &i64::from(check.counted), &again],
        )?;
        if changed == 0 {
            return Ok(false);
        }
        let actor = Actor::Checker(Arc::clone(&check.checker));
        // A checker that is down for a day would fill the history with what is known.
        if check.answered || !self.was_said_last(id, &actor, &check.result)? {
            self.note(id, "check", &actor, Some(&check.result))?;
        }
        Ok(true)
    }

    fn was_said_last(&self, id: TransactionId, actor: &Actor, result: &str) -> Result<bool, Failed> {
        let last = self.sql.one(
            "SELECT actor, reason FROM history
             WHERE transaction_id = $1 AND event = 'check' ORDER BY entry DESC LIMIT 1",
            &[&id.0],
        )?;
        let Some(last) = last else { return Ok(false) };
        Ok(words(&last, 0)? == actor.to_string() && words_if_any(&last, 1)?.as_deref() == Some(result))
    }

    /// Lets the next check of a transaction in doubt be due.
    pub(super) fn check_now(&mut self, id: TransactionId, checker: Option<&str>) -> Result<bool, Failed> {
        let changed = self.sql.execute(
            "UPDATE transactions SET checker = coalesce($1, checker), next_check_at = $2
             WHERE parked_at IS NOT NULL AND id = $3 AND state = 'in_doubt' AND coalesce($1, checker) IS NOT NULL",
            &[&checker.map(Words), &self.moment.0, &id.0],
        )?;
        Ok(changed > 0)
    }

    /// Since when the oldest is in doubt.
    pub(super) fn oldest_doubt(sql: &Sql) -> Result<Option<Timestamp>, Failed> {
        let oldest = sql.one("SELECT min(in_doubt_at) FROM transactions WHERE state = 'in_doubt'", &[])?;
        Ok(oldest.map(|row| row.try_get::<_, Option<i64>>(0)).transpose()?.flatten().map(Timestamp))
    }

    /// A name has one fate, and it is another attempt's.
    fn replace(&mut self, row: &Row, by: TransactionId) -> Result<(), Failed> {
        self.roll_back_row(row, &Actor::Attempt(by), Some(&format!("replaced by attempt {by}")))
    }

    fn namesakes(&self, vhost: &str, user: &str, name: &str, own: Option<TransactionId>) -> Result<Namesakes, Failed> {
        static NAMESAKES: LazyLock<String> = LazyLock::new(|| {
            format!(
                "SELECT {ROW_COLUMNS} FROM transactions AS t JOIN lanes AS l USING (lane)
                 WHERE t.name IS NOT NULL AND t.state <> 'rolled_back' AND t.name = $1 AND t.\"user\" = $2 AND l.vhost = $3"
            )
        });
        let mut same = Namesakes::default();
        for row in self.sql.query(&NAMESAKES, &[&Words(name), &Words(user), &Words(vhost)])? {
            let row = Row::read(&row)?;
            let place = match row.state {
                _ if own == Some(row.id) => &mut same.own,
                State::Open => &mut same.open,
                State::InDoubt => &mut same.in_doubt,
                State::Committed | State::Delivered | State::DeadLettered => &mut same.committed,
                State::RolledBack => continue,
            };
            *place = Some(row);
        }
        Ok(same)
    }

    /// The one that a decision under a name is about.
    fn under_name(&self, owned: &Owned) -> Result<Option<Row>, Failed> {
        static ROLLED_BACK: LazyLock<String> = LazyLock::new(|| {
            format!(
                "SELECT {ROW_COLUMNS} FROM transactions AS t JOIN lanes AS l USING (lane)
                 WHERE t.name IS NOT NULL AND t.state = 'rolled_back' AND t.name = $1 AND t.\"user\" = $2 AND l.vhost = $3
                 ORDER BY t.sequence DESC LIMIT $4"
            )
        });
        let (name, user, vhost) = (owned.name.as_str(), &*owned.user, &*owned.vhost);
        let same = self.namesakes(vhost, user, name, None)?;
        // What is open has a channel that decides it; who decides by name from outside means what has none.
        if let Some(row) = same.in_doubt.or(same.open).or(same.committed) {
            return Ok(Some(row));
        }
        let rolled_back =
            self.sql.query(&ROLLED_BACK, &[&Words(name), &Words(user), &Words(vhost), &ROLLED_BACK_ATTEMPTS])?;
        let rolled_back = rolled_back.iter().map(Row::read).collect::<Result<Vec<_>, Failed>>()?;
        Ok(rolled_back.into_iter().rev().max_by_key(|row| row.finished))
    }

    /// A plain transaction with dead letters, or one that had some.
    fn find_dead(&self, id: TransactionId) -> Result<Option<Row>, Failed> {
        static DEAD: LazyLock<String> = LazyLock::new(|| {
            format!(
                "SELECT {ROW_COLUMNS} FROM transactions AS t JOIN lanes AS l USING (lane)
                 WHERE t.parked_at IS NULL AND t.state IN ('dead_lettered', 'delivered') AND t.id = $1"
            )
        });
        self.sql.one(&DEAD, &[&id.0])?.map(|row| Row::read(&row)).transpose()
    }

    /// The messages whose message-id no other of the transaction has, of these or of those under its number.
    pub(super) fn without_duplicates(&self, number: i64, messages: &Messages) -> Result<Messages, Failed> {
        let parts = batch::iter(&messages.bytes).map_while(Result::ok);
        let named = parts.filter_map(|message| message_id(message.header)).collect::<Vec<_>>();
        if named.is_empty() {
            return Ok(messages.clone());
        }
        let new = self.sql.query(
            "INSERT INTO message_ids (number, message_id) SELECT $1, unnest($2::bytea[]) ON CONFLICT DO NOTHING
             RETURNING message_id",
            &[&number, &named],
        )?;
        let mut new = new.iter().map(|row| row.try_get(0)).collect::<Result<HashSet<&[u8]>, _>>()?;
        let mut kept = Vec::new();
        let mut count = 0;
        let (mut end, mut copied) = (0, 0);
        for message in batch::iter(&messages.bytes).map_while(Result::ok) {
            let start = end;
            end += message.stored_bytes();
            // The first of them is the one that is kept.
            if message_id(message.header).is_none_or(|id| new.remove(id)) {
                count += 1;
            } else {
                kept.extend_from_slice(&messages.bytes[copied..start]);
                copied = end;
            }
        }
        if count == messages.count {
            return Ok(messages.clone());
        }
        kept.extend_from_slice(&messages.bytes[copied..]);
        Ok(Messages::new(kept.into(), count))
    }
}

fn message_id(header: &[u8]) -> Option<&[u8]> {
    Properties::parse(header).ok().and_then(|properties| properties.message_id)
}

fn fate(row: Row) -> Fate {
    Fate {
        id: row.id,
        state: row.state,
        decided_at: Timestamp(row.decided_at.unwrap_or_default()),
        decided_by: row.decided_by.unwrap_or_else(|| Actor::Channel.to_string()),
    }
}
