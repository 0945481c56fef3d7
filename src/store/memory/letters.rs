//! Dead letters in memory.

use super::held::{Held, not_there};
use crate::store::clock::Reading;
use crate::store::letter::{STILL_FORWARDED, about};
use crate::store::{
    Bookmark, Committed, DeadLetter, Envelope, Lane, Letter, LetterFilter, LetterId, LetterMessage, Listing, Origin,
    Pack, Sequence, StoreError,
};
use crate::tx::decision::Actor;
use crate::tx::id::TransactionId;
use crate::tx::state::State;
use std::time::Instant;

/// A dead letter that is kept.
pub(super) struct Kept {
    pub(super) id: LetterId,
    pub(super) letter: DeadLetter,
    pub(super) attempts: u32,
    /// Under which sequence it is on its way once more; none: it waits for a person.
    retry: Option<i64>,
}

impl Held {
    pub(super) fn dead_letter(&mut self, letter: DeadLetter, now: Reading) -> Result<(), StoreError> {
        self.check_disk()?;
        let reason = about(letter.index, &format!("{} {}", letter.reply_code, letter.reply_text));
        let is_same = |kept: &&mut Kept| {
            kept.retry == Some(letter.sequence.0)
                || (kept.letter.sequence, kept.letter.index) == (letter.sequence, letter.index)
        };
        if let Some(kept) = self.letters.iter_mut().find(is_same) {
            kept.attempts += 1;
            (kept.letter.reply_code, kept.letter.reply_text) = (letter.reply_code, letter.reply_text);
            let place = kept.letter.sequence.0;
            if kept.retry.take().is_some() {
                self.row(place).note(now, "dead_letter", &Actor::Relay, Some(&reason));
            }
            return Ok(());
        }
        let committed = self.rows.get_mut(&letter.sequence.0).filter(|row| row.state == State::Committed);
        let row = committed.ok_or_else(not_there)?;
        row.note(now, "dead_letter", &Actor::Relay, Some(&reason));
        self.last_letter += 1;
        self.letters.push(Kept { id: LetterId(self.last_letter), letter, attempts: 1, retry: None });
        Ok(())
    }

    pub(super) fn is_dead(&self, sequence: Sequence) -> bool {
        self.letters.iter().any(|kept| kept.letter.sequence == sequence)
    }

    /// Where a letter stands that waits for a person and can be decided about.
    fn waiting(&self, letter: LetterId) -> Result<Option<usize>, StoreError> {
        self.check_disk()?;
        let found = self.letters.iter().position(|kept| kept.id == letter && kept.retry.is_none());
        let is_ready = |place: usize| self.rows[&self.letters[place].letter.sequence.0].state == State::DeadLettered;
        match found {
            Some(place) if !is_ready(place) => Err(StoreError::Conflict(STILL_FORWARDED.into())),
            found => Ok(found),
        }
    }

    pub(super) fn retry(
        &mut self,
        letter: LetterId,
        now: Reading,
        actor: &Actor,
        reason: &str,
    ) -> Result<Option<Committed>, StoreError> {
        let Some(place) = self.waiting(letter)? else { return Ok(None) };
        self.last_sequence += 1;
        let sequence = self.last_sequence;
        let kept = &mut self.letters[place];
        kept.retry = Some(sequence);
        let (of, index) = (kept.letter.sequence.0, kept.letter.index);
        let row = self.row(of);
        row.note(now, "retry", actor, Some(&about(index, reason)));
        let Origin { id, strand, ref lane, .. } = row.origin;
        Ok(Some(Committed {
            sequence: Sequence(sequence),
            id,
            lane: lane.clone(),
            strand,
            decided: Instant::now(),
            messages: None,
            forwarded: None,
        }))
    }

    pub(super) fn discard(
        &mut self,
        letter: LetterId,
        now: Reading,
        actor: &Actor,
        reason: &str,
    ) -> Result<Option<TransactionId>, StoreError> {
        let Some(place) = self.waiting(letter)? else { return Ok(None) };
        let DeadLetter { sequence, index, .. } = self.letters[place].letter;
        self.row(sequence.0).note(now, "discard", actor, Some(&about(index, reason)));
        self.letter_gone(place, now, actor);
        Ok(Some(self.rows[&sequence.0].origin.id))
    }

    /// RabbitMQ has the message of the letter that is on its way under this sequence.
    pub(super) fn retry_delivered(&mut self, sequence: Sequence, now: Reading) {
        let Some(place) = self.letters.iter().position(|kept| kept.retry == Some(sequence.0)) else { return };
        let DeadLetter { sequence, index, .. } = self.letters[place].letter;
        let reason = about(index, "RabbitMQ has it");
        self.row(sequence.0).note(now, "redelivered", &Actor::Relay, Some(&reason));
        self.letter_gone(place, now, &Actor::Relay);
    }

    fn letter_gone(&mut self, place: usize, now: Reading, actor: &Actor) {
        let sequence = self.letters.remove(place).letter.sequence;
        if !self.is_dead(sequence) {
            let row = self.row(sequence.0);
            row.state = State::Delivered;
            row.note(now, State::Delivered.as_str(), actor, Some("no dead letter is left"));
        }
    }

    /// The letters that are on their way once more, as the relay reads them, and their lanes.
    pub(super) fn retries(&self) -> impl Iterator<Item = (Lane, Pack)> {
        self.letters.iter().filter_map(|kept| {
            let origin = &self.rows[&kept.letter.sequence.0].origin;
            let pack = Pack {
                sequence: Sequence(kept.retry?),
                id: origin.id,
                strand: origin.strand,
                number: 0,
                first_index: kept.letter.index,
                last: true,
                decided_at: None,
                retried: true,
                messages: kept.letter.message.clone(),
            };
            Some((self.way(&origin.lane, origin.strand, pack.sequence), pack))
        })
    }

    pub(super) fn list_letters(&self, filter: &LetterFilter, after: Bookmark, limit: usize) -> Listing<Letter> {
        let waiting = self.letters.iter().filter(|kept| kept.retry.is_none() && kept.id.0 > after.0);
        let fitting = waiting.map(|kept| self.seen(kept)).filter(|letter| filter.fits(letter));
        let items: Vec<_> = fitting.take(limit.max(1)).collect();
        let next = items.last().filter(|_| items.len() >= limit.max(1)).map(|letter| Bookmark(letter.id.0));
        Listing { items, next }
    }

    pub(super) fn letter(&self, letter: LetterId) -> Option<Letter> {
        self.waits(letter).map(|kept| self.seen(kept))
    }

    pub(super) fn letter_message(&self, letter: LetterId) -> Option<LetterMessage> {
        let DeadLetter { index, message, .. } = self.waits(letter)?.letter.clone();
        Some(LetterMessage { index, message: message.bytes().clone() })
    }

    fn waits(&self, letter: LetterId) -> Option<&Kept> {
        self.letters.iter().find(|kept| kept.id == letter && kept.retry.is_none())
    }

    fn seen(&self, kept: &Kept) -> Letter {
        let origin = &self.rows[&kept.letter.sequence.0].origin;
        Letter {
            id: kept.id,
            transaction: origin.id,
            vhost: origin.lane.vhost.clone(),
            envelope: Envelope::of(kept.letter.message.bytes()),
            reply_code: kept.letter.reply_code,
            reply_text: kept.letter.reply_text.clone(),
            since: kept.letter.since,
            attempts: kept.attempts,
        }
    }
}
