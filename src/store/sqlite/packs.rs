//! Packs of messages, read a bounded number of bytes at a time: for the relay, and for people.

use super::letters;
use super::row::{goes_on, pack_keys};
use super::rows::lane_number;
use crate::store::stored::is_sound;
use crate::store::{Cursor, Lane, Pack, Sequence, Stored, Strand};
use crate::tx::id::{Timestamp, TransactionId};
use bytes::Bytes;
use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};
use uuid::Uuid;

/// What is committed for a lane, behind `after`, until it adds up to `bytes_max`.
pub(super) fn page(
    sql: &Connection,
    lane: &Lane,
    after: Option<Cursor>,
    bytes_max: usize,
) -> rusqlite::Result<Vec<Pack>> {
    // Several statements, one state of the file.
    let sql = Transaction::new_unchecked(sql, TransactionBehavior::Deferred)?;
    let Some(lane) = lane_number(&sql, lane)? else {
        return Ok(Vec::new());
    };
    let from = after.map_or(0, |cursor| cursor.sequence.0);
    let mut statement = sql.prepare_cached(
        "SELECT sequence, id, number, packs, body, decided_at, strand, checksum FROM transactions INDEXED BY committed
         WHERE state = 'committed' AND lane = ?1 AND sequence >= ?2 ORDER BY sequence",
    )?;
    let mut rows = statement.query([lane, from])?;
    let mut page = Page { packs: Vec::new(), bytes: 0, bytes_max };
    while let Some(row) = rows.next()? {
        let sequence = Sequence(row.get(0)?);
        let id = TransactionId(Uuid::from_bytes(row.get(1)?));
        let decided_at = row.get::<_, Option<i64>>(5)?.map(Timestamp);
        let transaction = Of { sequence, id, strand: Strand(row.get(6)?), decided_at };
        let read = after.filter(|cursor| cursor.sequence == sequence).map(|cursor| cursor.pack);
        let has_room = match row.get::<_, Option<i64>>(2)? {
            Some(number) => page.add_packs(&sql, transaction, number, row.get(3)?, read)?,
            None if read.is_some() => true,
            None => page.add(transaction.whole(stored(row, 4, 7)?)),
        };
        if !has_room {
            break;
        }
    }
    Ok(page.packs)
}

/// The packs of one transaction from pack number `from` on, until they add up to `bytes_max`.
pub(super) fn of(
    sql: &Connection,
    transaction: Of,
    number: i64,
    packs: u32,
    from: u32,
    bytes_max: usize,
) -> rusqlite::Result<Vec<Pack>> {
    let mut page = Page { packs: Vec::new(), bytes: 0, bytes_max };
    page.add_packs(sql, transaction, number, packs, from.checked_sub(1))?;
    Ok(page.packs)
}

/// The messages in one column, and their checksum in another.
pub(super) fn stored(row: &Row<'_>, messages: usize, checksum: usize) -> rusqlite::Result<Stored> {
    let bytes = Bytes::copy_from_slice(row.get_ref(messages)?.as_blob()?);
    Ok(Stored::verified(bytes, row.get(checksum)?))
}

/// A pack that is read piece by piece, so that SQLite has none of it whole.
#[derive(Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    is_damaged: bool,
}

impl Pieces {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn add(&mut self, piece: &[u8], checksum: Option<u32>) {
        self.is_damaged |= !is_sound(piece, checksum);
        self.bytes.extend_from_slice(piece);
    }

    /// With the last one.
    pub(super) fn end(mut self, piece: &[u8], checksum: Option<u32>) -> Stored {
        self.add(piece, checksum);
        let bytes = Bytes::from(self.bytes);
        if self.is_damaged { Stored::Damaged(bytes) } else { Stored::Sound(bytes) }
    }
}

/// Whose packs are read.
#[derive(Clone, Copy)]
pub(super) struct Of {
    pub(super) sequence: Sequence,
    pub(super) id: TransactionId,
    pub(super) strand: Strand,
    pub(super) decided_at: Option<Timestamp>,
}

impl Of {
    /// All of its messages, which stand in its row.
    pub(super) fn whole(self, messages: Stored) -> Pack {
        let Of { sequence, id, strand, decided_at } = self;
        Pack { sequence, id, strand, number: 0, first_index: 0, last: true, decided_at, retried: false, messages }
    }
}

struct Page {
    packs: Vec<Pack>,
    bytes: usize,
    bytes_max: usize,
}

impl Page {
    /// Says whether there is room for more.
    fn add(&mut self, pack: Pack) -> bool {
        self.bytes += pack.messages.bytes().len();
        self.packs.push(pack);
        self.bytes < self.bytes_max
    }

    fn add_packs(
        &mut self,
        sql: &Connection,
        transaction: Of,
        number: i64,
        packs: u32,
        read: Option<u32>,
    ) -> rusqlite::Result<bool> {
        let Of { sequence, id, strand, decided_at } = transaction;
        let (first, last) = pack_keys(number).into_inner();
        let retried = letters::is_retry(sql, sequence)?;
        let from = read.map_or(0, |pack| i64::from(pack) + 1);
        let mut statement = sql.prepare_cached(
            "SELECT key, first_index, body, checksum FROM packs WHERE key BETWEEN ?1 AND ?2 ORDER BY key",
        )?;
        let mut rows = statement.query(params![first + from, last])?;
        let mut pieces = Pieces::default();
        while let Some(row) = rows.next()? {
            let place = (row.get::<_, i64>(0)? - first) as u32;
            let mark = row.get(1)?;
            if goes_on(mark) {
                pieces.add(row.get_ref(2)?.as_blob()?, row.get(3)?);
                continue;
            }
            let pack = Pack {
                sequence,
                id,
                strand,
                number: place,
                first_index: row.get(1)?,
                // Under the number of its last piece.
                last: place + 1 == packs,
                decided_at,
                retried,
                messages: match pieces.is_empty() {
                    true => stored(row, 2, 3)?,
                    false => std::mem::take(&mut pieces).end(row.get_ref(2)?.as_blob()?, row.get(3)?),
                },
            };
            if !self.add(pack) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
