//! What RabbitMQ does not take: it steps aside, with what comes behind it from the same client channel.

use super::Lane;
use crate::amqp::reply_code::ReplyCode;
use crate::relay::message::{Message, Source};
use crate::relay::status::Stuck;
use crate::store::Waiter;
use std::time::{Duration, Instant};

/// How long the messages of a client channel are tried first, from the last one on that was guilty.
pub(super) const PROBATION: Duration = Duration::from_secs(60);

impl Lane {
    /// A message of this source made RabbitMQ close its channel, or its connection: the next ones are tried first.
    pub(super) fn convict(&mut self, source: Source, now: Instant) {
        self.step_aside(source);
        self.aside.convict(source, now + PROBATION);
    }

    /// RabbitMQ did not take a message: it goes again, beside the lane; or it has gone too often.
    pub(super) fn nacked(&mut self, message: Message, now: Instant) {
        let message = Message { nacks: message.nacks + 1, possible_duplicate: true, returned: None, ..message };
        let (nacks, source) = (message.nacks, message.source);
        let Some(pause) = self.policy.nack_pause(nacks) else {
            let code = ReplyCode::PRECONDITION_FAILED;
            let text = format!("RabbitMQ nacked it {nacks} times: a queue that it goes to is full, or fails");
            return self.bury(message, code, code.text(&text));
        };
        if !self.aside.contains(source) || nacks > 1 {
            let (exchange, routing_key) = message.destination();
            tracing::warn!(message = %message.id, exchange, routing_key, nacks, ?pause, "RabbitMQ nacks a committed message; it is sent again, and its channel's messages wait");
        }
        self.step_aside(source);
        self.aside.put_back(message, Some(now + pause));
    }

    /// What was not sent of a source is left to the store, and what it has in flight is awaited.
    pub(super) fn step_aside(&mut self, source: Source) {
        if !self.aside.flows(source) {
            return;
        }
        let again: Vec<_> =
            self.again.iter().filter(|(_, message)| message.source == source).map(|(place, _)| *place).collect();
        let (mut held, mut unsent, mut waiters) = (Vec::new(), None, Vec::new());
        self.transactions.retain(|sequence, transaction| {
            if transaction.source != source {
                return true;
            }
            held.push(*sequence);
            if !transaction.cut {
                unsent.get_or_insert(*sequence);
                transaction.next_pack = 0;
            }
            // Nobody waits for what may take long.
            transaction.waiter = transaction.waiter.take().and_then(Waiter::if_mandatory);
            let begun = transaction.cut || transaction.cut_to > 0;
            if !begun {
                waiters.extend(transaction.waiter.take().map(|waiter| (*sequence, waiter)));
            }
            begun
        });
        self.unsent.retain(|stretch| stretch.source != source);
        self.unsent_bytes = self.unsent.iter().map(|stretch| stretch.messages.len()).sum();
        let in_flight = self.outgoing.iter().filter(|message| message.source == source).count();
        self.aside.step(source, in_flight, held, unsent);
        for message in again.iter().filter_map(|place| self.again.remove(place)) {
            self.aside.put_back(message, None);
        }
        for (sequence, waiter) in waiters {
            self.aside.wait(source, sequence, Some(waiter));
        }
    }

    /// Looks what a source waits for now. What memory has no room for is forgotten, but not while something is under way
    /// that would be counted to it when it is here again.
    pub(super) fn settle(&mut self, source: Source, now: Instant) {
        if !self.aside.contains(source) {
            return;
        }
        if self.aside.is_too_much(source) {
            let of_source = self.transactions.iter().filter(|(_, transaction)| transaction.source == source);
            let last = of_source.clone().next_back().map(|(sequence, _)| *sequence);
            if let Some(last) = last
                && of_source.clone().all(|(_, transaction)| transaction.burying == 0)
            {
                self.transactions.retain(|_, transaction| transaction.source != source);
                self.aside.forget(source, last);
            }
        }
        self.aside.settle(source, now);
    }

    /// What RabbitMQ nacked and has not taken since: how many messages, and the first.
    pub(in crate::relay) fn refused(&self) -> Option<Stuck> {
        self.aside.refused()
    }
}
