//! The numbers of the client's channels that RabbitMQ has not given back.

use std::collections::BTreeMap;

/// Who has said channel.close and has no answer yet. Both may have, at the same time; then each answers the other.
#[derive(Debug, Default, Clone, Copy)]
struct Closes {
    by_client: bool,
    by_upstream: bool,
}

/// Each number with a channel that is open, or about to be closed, at RabbitMQ: until all that was asked is answered.
#[derive(Debug, Default)]
pub(in super::super) struct Numbers(BTreeMap<u16, Closes>);

impl Numbers {
    /// How many channels RabbitMQ counts, but for the judge's.
    pub(in super::super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(in super::super) fn contains(&self, number: u16) -> bool {
        self.0.contains_key(&number)
    }

    /// The client says channel.open. Whatever was there before: this is another channel.
    pub(super) fn opened(&mut self, number: u16) {
        self.0.insert(number, Closes::default());
    }

    /// channel.close of the client goes to RabbitMQ.
    pub(super) fn client_closes(&mut self, number: u16) {
        if let Some(closes) = self.0.get_mut(&number) {
            closes.by_client = true;
        }
    }

    /// channel.close of RabbitMQ goes to the client.
    pub(super) fn upstream_closes(&mut self, number: u16) {
        if let Some(closes) = self.0.get_mut(&number) {
            closes.by_upstream = true;
        }
    }

    /// The client has answered RabbitMQ's channel.close.
    pub(super) fn client_answers(&mut self, number: u16) {
        if let Some(closes) = self.0.get_mut(&number).filter(|closes| closes.by_upstream) {
            closes.by_upstream = false;
            if !closes.by_client {
                self.0.remove(&number);
            }
        }
    }

    /// RabbitMQ has answered the client's channel.close.
    pub(super) fn upstream_answers(&mut self, number: u16) {
        if let Some(closes) = self.0.get_mut(&number) {
            closes.by_client = false;
            if !closes.by_upstream {
                self.0.remove(&number);
            }
        }
    }

    /// The proxy had closed the channel, and both sides have answered.
    pub(super) fn given_back(&mut self, number: u16) {
        self.0.remove(&number);
    }

    /// Whether RabbitMQ has closed it and the client not answered: RabbitMQ ignores what comes on it.
    pub(super) fn is_closed_upstream(&self, number: u16) -> bool {
        self.0.get(&number).is_some_and(|closes| closes.by_upstream)
    }
}
