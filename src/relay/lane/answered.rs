//! A message that RabbitMQ has answered for: it is there, came back, or becomes a dead letter.

use super::Lane;
use crate::amqp::reply_code::ReplyCode;
use crate::relay::forward;
use crate::relay::message::{Message, Transaction};
use crate::relay::status::add;
use crate::store::{DeadLetter, Forwarded, Sequence, Stored, Waiter};
use crate::tx::id::{Timestamp, TransactionId};
use std::time::{Instant, SystemTime};

/// Transactions of which nobody has heard whose returned messages are kept for a moment.
pub(super) const UNHEARD_MAX: usize = 16;
/// Bytes of bodies past which only those of the youngest are.
pub(super) const UNHEARD_BYTES_MAX: usize = 1 << 20;

impl Lane {
    /// RabbitMQ has confirmed a message; perhaps it gave it back before.
    pub(super) fn answered(&mut self, mut message: Message, now: Instant) {
        if let Some(returned) = message.returned.take() {
            let half = message.parse();
            let mandatory = forward::is_mandatory(half);
            let transaction = self.transactions.get_mut(&message.sequence);
            let heard = transaction.as_ref().is_some_and(|it| it.waiter.as_ref().is_some_and(|it| !it.is_closed()));
            if mandatory && let Some(transaction) = transaction {
                let body = message.bytes.slice(message.bytes.len() - half.body.len()..);
                let back = forward::for_publisher(&returned, half, body);
                transaction.returned.push((message.id.index, back));
                add(&self.status.counters.returned, 1);
            } else {
                add(&self.status.counters.unroutable, 1);
            }
            // Where nobody hears that it came back, it is kept like any other that reaches no queue.
            if self.policy.keep_unroutable && !(mandatory && heard) {
                let (code, text) = returned.reason();
                return self.bury(message, code, text);
            }
        }
        self.message_done(message.sequence, now);
    }

    pub(super) fn message_done(&mut self, sequence: Sequence, now: Instant) {
        if let Some(transaction) = self.transactions.get_mut(&sequence) {
            transaction.unanswered -= 1;
            transaction.waiter.as_ref().map(Waiter::answered);
            self.finish_if_done(sequence, now);
        }
    }

    pub(super) fn finish_if_done(&mut self, sequence: Sequence, now: Instant) {
        let done = |transaction: &Transaction| transaction.cut && transaction.unanswered == 0;
        if self.transactions.get(&sequence).is_some_and(done)
            && let Some(mut transaction) = self.transactions.remove(&sequence)
        {
            self.delivered.push(sequence);
            self.status.forwarded.observe(now.saturating_duration_since(transaction.decided));
            transaction.returned.sort_unstable_by_key(|(index, _)| *index);
            let returned: Vec<_> = transaction.returned.into_iter().map(|(_, message)| message).collect();
            if let Some(waiter) = transaction.waiter {
                waiter.tell(Forwarded { returned });
            } else if !returned.is_empty() {
                self.unheard.push_front((sequence, returned));
                let mut bytes = 0;
                let fit = self.unheard.iter().take(UNHEARD_MAX).take_while(|(_, returned)| {
                    bytes += returned.iter().map(|message| message.body.len()).sum::<usize>();
                    bytes <= UNHEARD_BYTES_MAX
                });
                let fit = fit.count();
                self.unheard.truncate(fit.max(1));
            }
        }
    }

    /// Makes a message that RabbitMQ can't take a dead letter.
    pub(super) fn bury(&mut self, message: Message, code: ReplyCode, reply_text: String) {
        tracing::warn!(message = %message.id, code = code.0, reason = %reply_text, "RabbitMQ can't take a committed message; it becomes a dead letter");
        self.keep_letter(message.sequence, message.id.index, Stored::Sound(message.bytes), code, reply_text);
    }

    pub(super) fn tell_of_damage(&self, transaction: TransactionId) {
        tracing::error!(%transaction, "the store gave other bytes than it was given; they become dead letters");
        add(&self.status.counters.unreadable, 1);
    }

    pub(super) fn keep_letter(
        &mut self,
        sequence: Sequence,
        index: u32,
        message: Stored,
        code: ReplyCode,
        reply_text: String,
    ) {
        add(&self.status.counters.dead_lettered, 1);
        if let Some(transaction) = self.transactions.get_mut(&sequence) {
            transaction.burying += 1;
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.dead_letters.push(DeadLetter {
            sequence,
            index,
            message,
            reply_code: code.0,
            reply_text,
            since: Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)),
        });
    }

    /// The caller has given these to the store.
    pub(in crate::relay) fn take_dead_letters(&mut self) -> Vec<DeadLetter> {
        std::mem::take(&mut self.dead_letters)
    }

    /// The store keeps a dead letter of this transaction.
    pub(in crate::relay) fn dead_letter_kept(&mut self, sequence: Sequence, now: Instant) {
        let Some(transaction) = self.transactions.get_mut(&sequence) else { return };
        transaction.burying -= 1;
        let source = transaction.source;
        self.message_done(sequence, now);
        self.settle(source, now);
    }
}
