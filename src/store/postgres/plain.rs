//! Plain commits: one statement for all of a group.

use super::book::Me;
use super::sql::{Failed, Param, Sql, Words};
use crate::store::{Messages, Origin};
use crate::tx::id::Timestamp;
use bytes::Bytes;
use std::sync::Arc;
use uuid::Uuid;

/// Plain commits that are to be written by one statement: a column each.
pub(super) struct Plain {
    decided_at: Timestamp,
    sequences: Vec<i64>,
    ids: Vec<Uuid>,
    lanes: Vec<i64>,
    users: Vec<Arc<str>>,
    created_at: Vec<i64>,
    messages: Vec<i64>,
    bodies: Vec<Bytes>,
    strands: Vec<i64>,
    checksums: Vec<i64>,
}

impl Plain {
    pub(super) fn new(decided_at: Timestamp) -> Self {
        let (sequences, ids, lanes, users) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (created_at, messages, bodies) = (Vec::new(), Vec::new(), Vec::new());
        let (strands, checksums) = (Vec::new(), Vec::new());
        Self { decided_at, sequences, ids, lanes, users, created_at, messages, bodies, strands, checksums }
    }

    /// Writes the plain commits: one statement, which may be sent again if nobody knows what became of it. Then it waits for
    /// the first one to end, and finds its rows.
    pub(super) fn write(&self, sql: &Sql, me: &Me) -> Result<(), Failed> {
        if self.sequences.is_empty() {
            return Ok(());
        }
        let users: Vec<_> = self.users.iter().map(|user| Words(user)).collect();
        let bodies: Vec<_> = self.bodies.iter().map(|body| &body[..]).collect();
        let values: [Param<'_>; 12] = [
            &me.id,
            &me.key,
            &self.decided_at.0,
            &self.sequences,
            &self.ids,
            &self.lanes,
            &users,
            &self.created_at,
            &self.messages,
            &bodies,
            &self.strands,
            &self.checksums,
        ];
        let fenced = sql.number(
            "WITH fence AS (SELECT 1 FROM instances WHERE id = $1 AND key = $2 FOR KEY SHARE),
                 written AS (
                     INSERT INTO transactions (sequence, id, state, lane, \"user\", created_at, decided_at, messages, bytes,
                         body, strand, checksum)
                     SELECT p.sequence, p.id, 'committed', p.lane, p.\"user\", p.created_at, $3, p.messages,
                         octet_length(p.body), p.body, p.strand, p.checksum
                     FROM fence, unnest($4::bigint[], $5::uuid[], $6::bigint[], $7::text[], $8::bigint[], $9::bigint[],
                         $10::bytea[], $11::bigint[], $12::bigint[])
                         AS p (sequence, id, lane, \"user\", created_at, messages, body, strand, checksum)
                     ON CONFLICT (sequence) DO NOTHING)
             SELECT count(*) FROM fence",
            &values,
        )?;
        if fenced == 1 { Ok(()) } else { Err(Failed::Fenced) }
    }

    pub(super) fn add(&mut self, sequence: i64, lane: i64, origin: &Origin, messages: &Messages) {
        self.sequences.push(sequence);
        self.ids.push(origin.id.0);
        self.lanes.push(lane);
        self.users.push(Arc::clone(&origin.user));
        self.created_at.push(origin.created_at.0);
        self.messages.push(messages.count.into());
        self.bodies.push(messages.bytes.clone());
        self.strands.push(origin.strand.0.into());
        self.checksums.push(messages.checksum.into());
    }
}
