//! How RabbitMQ is asked about a transaction's messages: when a probe goes out, when RabbitMQ may drop it, and what its word
//! lets happen.

use super::{Asker, Channel, park};
use crate::amqp::method::Publish;
use crate::amqp::properties::Properties;
use crate::amqp::wire::Malformed;
use crate::protocol::command::{Io, Next};
use crate::protocol::probe;
use crate::tx::batch::Batch;
use crate::tx::id::TransactionId;

/// Probes that RabbitMQ may hold for one transaction. Each costs it 3 to 6 kB until the next rollback, and it is about to
/// bound the publishes of a transaction, by a number that can be set; a rollback costs it less than a probe.
pub(in crate::protocol) const PROBES_MAX: usize = 100;

impl Channel {
    /// Half messages of a named transaction are durable as they come, but none before RabbitMQ has judged it: what it
    /// would refuse must not be left for somebody to release. While it judges some, the next ones gather.
    pub(super) fn judge(&mut self, io: &mut Io) {
        let transaction = &mut self.transaction;
        if transaction.named.is_none()
            || transaction.judging
            || transaction.batch.is_empty()
            || self.receiving.is_some()
        {
            return;
        }
        let batch = std::mem::take(&mut transaction.batch);
        if std::mem::take(&mut transaction.probes) == 0 {
            return park(transaction, batch, self.number, &mut self.parks, io);
        }
        transaction.judging = true;
        self.asked = false;
        let id = *transaction.id.get_or_insert_with(io.settings.new_id);
        self.fence(Asker::Judge(id, batch), io);
    }

    /// RabbitMQ has nothing against these.
    pub(super) fn judged(&mut self, id: TransactionId, batch: Batch, io: &mut Io) -> Next {
        let transaction = match &mut self.commit {
            Some(commit) if commit.transaction.id == Some(id) => &mut commit.transaction,
            _ if self.transaction.id == Some(id) => &mut self.transaction,
            // It was rolled back meanwhile.
            _ => return Next::Nothing,
        };
        transaction.judging = false;
        io.user_confirmed |= transaction.claimed;
        park(transaction, batch, self.number, &mut self.parks, io);
        self.judge(io);
        Next::Nothing
    }

    pub(super) fn send_probe(&mut self, publish: &[u8], header: &[u8], io: &mut Io) {
        let Ok(publish) = Publish::parse(publish) else { return };
        if self.transaction.named.is_some() && !io.user_confirmed && !self.transaction.claimed {
            let mut claim = Vec::new();
            probe::write_claim(&mut claim, self.number, &publish, io.user());
            self.transaction.claim(&claim, &mut io.to_upstream);
        }
        match Properties::parse(header) {
            Ok(properties) => {
                let key = probe::key(&publish, &properties);
                let write = |out: &mut Vec<u8>| probe::write(out, self.number, &publish, &properties);
                self.transaction.ask(key, io.now, &mut io.to_upstream, write);
            }
            Err(Malformed) => {
                let write = |out: &mut Vec<u8>| probe::write_unreadable(out, self.number, &publish, header);
                self.transaction.ask(None, io.now, &mut io.to_upstream, write);
            }
        }
        if self.transaction.pending >= PROBES_MAX {
            self.fence(Asker::Trim, io);
        }
    }

    /// [`Transaction::fence`](crate::protocol::transaction::Transaction::fence), in a transaction that goes on.
    fn fence(&mut self, asker: Asker, io: &mut Io) {
        self.answers.push_back(asker);
        self.transaction.fence(self.number, &mut io.to_upstream);
    }

    /// Sends acks again that a fence has undone, now that something depends on them. Not at each fence: of a client with
    /// many acks and many messages, each would be sent again for each. Those since the fence are undone first, for
    /// RabbitMQ takes none twice.
    pub(super) fn redo_acks(&mut self, io: &mut Io) {
        if self.transaction.is_undone() {
            self.fence(Asker::Trim, io);
            self.transaction.redo(&mut io.to_upstream);
        }
    }

    /// What RabbitMQ said long ago counts no more when the transaction is decided: the user may have lost the permission
    /// since, and RabbitMQ's own channel would have noticed.
    pub(super) fn ask_again(&mut self, io: &mut Io) {
        while self.transaction.outdated(io.now) > 0 {
            self.fence(Asker::Trim, io);
            self.transaction.ask_again(io.now, PROBES_MAX, &mut io.to_upstream);
        }
    }
}
