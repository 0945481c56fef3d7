//! How RabbitMQ is asked about a transaction's messages: when a probe goes out, when RabbitMQ may drop it, and what its word
//! lets happen.

use super::commit::Step;
use super::{Asker, Channel, park};
use crate::amqp::method::Publish;
use crate::amqp::properties::Properties;
use crate::amqp::wire::Malformed;
use crate::protocol::command::{Command, Io, Next, Ticket};
use crate::protocol::judge::Judgement;
use crate::protocol::leases::Standing;
use crate::protocol::probe;
use crate::tx::batch::Batch;
use crate::tx::id::TransactionId;

/// Probes that RabbitMQ may hold for one transaction. Each costs it 3 to 6 kB until the next rollback, and it is about to
/// bound the publishes of a transaction, by a number that can be set; a rollback costs it less than a probe.
pub(in crate::protocol) const PROBES_MAX: usize = 100;

impl Channel {
    /// Half messages of a named transaction are durable as they come, but none before RabbitMQ has judged it: what it
    /// would refuse must not be left for somebody to release. While it judges some, the next ones gather.
    pub(super) fn have_judged(&mut self, io: &mut Io) {
        let transaction = &mut self.transaction;
        if transaction.named.is_none()
            || transaction.awaits_judgement
            || transaction.batch.is_empty()
            || self.receiving.is_some()
        {
            return;
        }
        let batch = std::mem::take(&mut transaction.batch);
        if !std::mem::take(&mut transaction.unjudged) {
            return park(transaction, batch, self.number, &mut self.parks, io);
        }
        transaction.awaits_judgement = true;
        self.asked = false;
        let id = *transaction.id.get_or_insert_with(io.settings.new_id);
        self.fence(Asker::Judge(id, batch), io);
    }

    /// RabbitMQ has nothing against these.
    pub(super) fn park_judged(&mut self, id: TransactionId, batch: Batch, io: &mut Io) -> Next {
        let transaction = match &mut self.commit {
            Some(commit) if commit.transaction.id == Some(id) => &mut commit.transaction,
            _ if self.transaction.id == Some(id) => &mut self.transaction,
            // It was rolled back meanwhile.
            _ => return Next::Nothing,
        };
        transaction.awaits_judgement = false;
        io.user_confirmed |= transaction.claimed;
        park(transaction, batch, self.number, &mut self.parks, io);
        self.have_judged(io);
        Next::Nothing
    }

    /// Asks RabbitMQ about a message, unless its word about one of the same kind counts.
    pub(super) fn send_probe(&mut self, publish: &[u8], header: &[u8], io: &mut Io) -> Next {
        let Ok(publish) = Publish::parse(publish) else { return Next::Nothing };
        if self.transaction.named.is_some() && !io.user_confirmed && !self.transaction.claimed {
            let mut claim = Vec::new();
            probe::write_claim(&mut claim, self.number, &publish, io.user());
            self.transaction.claim(&claim, &mut io.to_upstream);
        }
        let properties = Properties::parse(header);
        let kind = properties.as_ref().ok().and_then(|properties| probe::kind(&publish, properties));
        let standing = kind.as_deref().map_or(Standing::Unknown, |kind| self.leases.look(kind, io));
        match (standing, &kind) {
            (Standing::Holds, _) => return Next::Nothing,
            (Standing::Renews, Some(kind)) => {
                let ticket = io.next_ticket();
                let probe = self.leases.renew(kind, ticket, io);
                return probe.map_or(Next::Nothing, |probe| Next::Renew(ticket, probe));
            }
            (Standing::Awaited, _) => {
                self.transaction.unjudged = true;
                return Next::Nothing;
            }
            (Standing::Refused(refused), _) => return refused.refuse(),
            (Standing::Unknown | Standing::Renews, _) => {}
        }
        let start = io.to_upstream.len();
        match properties {
            Ok(properties) => probe::write(&mut io.to_upstream, self.number, &publish, &properties),
            Err(Malformed) => probe::write_unreadable(&mut io.to_upstream, self.number, &publish, header),
        }
        if let Some(kind) = kind {
            self.leases.asked(kind, &io.to_upstream[start..], io);
        }
        self.transaction.unjudged = true;
        self.transaction.pending += 1;
        if self.transaction.pending >= PROBES_MAX {
            self.fence(Asker::Trim, io);
        }
        Next::Nothing
    }

    /// [`Transaction::fence`](crate::protocol::transaction::Transaction::fence), in a transaction that goes on.
    fn fence(&mut self, asker: Asker, io: &mut Io) {
        self.answers.push_back(asker);
        self.leases.fence();
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
        while self.leases.outdated(io) > 0 {
            self.fence(Asker::Trim, io);
            self.transaction.pending = self.leases.ask_again(PROBES_MAX, io);
            self.transaction.unjudged = true;
        }
    }

    /// What RabbitMQ says of a kind whose lease is to be renewed, or of the client's name.
    pub fn handle_judged(&mut self, ticket: Ticket, judgement: Judgement, io: &mut Io) -> Next {
        if self.commit.as_ref().is_some_and(|commit| commit.step == Step::Confirming(ticket)) {
            return self.confirmed(judgement, io);
        }
        if judgement != Judgement::Fine {
            io.commands.push_back(Command::EndLeases);
        }
        self.leases.renewed(ticket, judgement).map_or(Next::Nothing, Judgement::refuse)
    }
}
