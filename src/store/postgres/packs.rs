//! Packs of messages, read a bounded number of bytes at a time: for the relay, and for people.

use super::row::id;
use super::rows::lane_number;
use super::sql::{Failed, Sql, number};
use crate::store::{Cursor, Lane, Pack, Sequence, Stored, Strand};
use crate::tx::id::{Timestamp, TransactionId};
use bytes::Bytes;
use std::collections::HashMap;
use tokio_postgres::Row;

/// Transactions of a lane that are looked at before their messages are read.
const ROWS_AT_ONCE: i64 = 1_000;

/// What is committed for a lane, behind `after`, until it adds up to `bytes_max`. The caller sees to it that all of it is one
/// state of the database.
pub(super) fn page(sql: &Sql, lane: &Lane, after: Option<Cursor>, bytes_max: usize) -> Result<Vec<Pack>, Failed> {
    let Some(lane) = lane_number(sql, lane)? else {
        return Ok(Vec::new());
    };
    let mut page = Page { packs: Vec::new(), bytes: 0, bytes_max };
    let mut from = after.map_or(0, |cursor| cursor.sequence.0);
    loop {
        let rows = sql.query(
            "SELECT t.sequence, t.id, t.strand, t.decided_at, t.number, t.packs, t.bytes,
                 EXISTS (SELECT 1 FROM dead_letters AS d WHERE d.retry = t.sequence)
             FROM transactions AS t WHERE t.state = 'committed' AND t.lane = $1 AND t.sequence >= $2
             ORDER BY t.sequence LIMIT $3",
            &[&lane, &from, &ROWS_AT_ONCE],
        )?;
        // Their messages are read together, behind the last of them.
        let mut whole = Vec::new();
        let mut has_room = true;
        for row in &rows {
            let of = Of::read(row)?;
            from = of.sequence.0 + 1;
            let read = after.filter(|cursor| cursor.sequence == of.sequence).map(|cursor| cursor.pack);
            has_room = match row.try_get::<_, Option<i64>>(4)? {
                Some(key) => page.add_packs(sql, of, key, number(row, 5)?, read)?,
                None if read.is_some() => true,
                None => {
                    whole.push(of.sequence.0);
                    page.add(of.whole(Stored::Sound(Bytes::new())), number(row, 6)?)
                }
            };
            if !has_room {
                break;
            }
        }
        page.fill(sql, &whole)?;
        if !has_room || (rows.len() as i64) < ROWS_AT_ONCE {
            return Ok(page.packs);
        }
    }
}

/// The packs of one transaction from pack number `from` on, until they add up to `bytes_max`.
pub(super) fn of(sql: &Sql, of: TransactionId, place: i64, from: u32, bytes_max: usize) -> Result<Vec<Pack>, Failed> {
    let row = sql.one(
        "SELECT t.sequence, t.id, t.strand, t.decided_at, t.number, t.packs, t.bytes,
             EXISTS (SELECT 1 FROM dead_letters AS d WHERE d.retry = t.sequence)
         FROM transactions AS t WHERE t.sequence = $1 AND t.id = $2 AND t.state IN ('open', 'in_doubt', 'committed')",
        &[&place, &of.0],
    )?;
    let Some(row) = row else { return Ok(Vec::new()) };
    let mut page = Page { packs: Vec::new(), bytes: 0, bytes_max };
    let of = Of::read(&row)?;
    match row.try_get::<_, Option<i64>>(4)? {
        Some(key) => drop(page.add_packs(sql, of, key, number(&row, 5)?, from.checked_sub(1))?),
        None if from > 0 => {}
        None => {
            page.add(of.whole(Stored::Sound(Bytes::new())), number(&row, 6)?);
            page.fill(sql, &[of.sequence.0])?;
        }
    }
    Ok(page.packs)
}

/// The messages in one column, and their checksum in another.
fn stored(row: &Row, messages: usize, checksum: usize) -> Result<Stored, Failed> {
    let checksum = row.try_get::<_, Option<i64>>(checksum)?.map(|checksum| checksum as u32);
    Ok(Stored::verified(Bytes::copy_from_slice(row.try_get(messages)?), checksum))
}

/// Whose packs are read.
#[derive(Clone, Copy)]
struct Of {
    sequence: Sequence,
    id: TransactionId,
    strand: Strand,
    decided_at: Option<Timestamp>,
    retried: bool,
}

impl Of {
    fn read(row: &Row) -> Result<Self, Failed> {
        Ok(Self {
            sequence: Sequence(row.try_get(0)?),
            id: id(row, 1)?,
            strand: Strand(number(row, 2)?),
            decided_at: row.try_get::<_, Option<i64>>(3)?.map(Timestamp),
            retried: row.try_get(7)?,
        })
    }

    /// All of its messages, which stand in its row.
    fn whole(self, messages: Stored) -> Pack {
        let Of { sequence, id, strand, decided_at, retried } = self;
        Pack { sequence, id, strand, number: 0, first_index: 0, last: true, decided_at, retried, messages }
    }
}

struct Page {
    packs: Vec<Pack>,
    bytes: usize,
    bytes_max: usize,
}

impl Page {
    /// Says whether there is room for more.
    fn add(&mut self, pack: Pack, bytes: usize) -> bool {
        self.bytes += bytes;
        self.packs.push(pack);
        self.bytes < self.bytes_max
    }

    fn add_packs(&mut self, sql: &Sql, of: Of, key: i64, packs: u32, read: Option<u32>) -> Result<bool, Failed> {
        let mut from = read.map_or(0, |pack| i64::from(pack) + 1);
        loop {
            // As many as add up to what there is room for, and one at least.
            let room = self.bytes_max.saturating_sub(self.bytes).min(i64::MAX as usize) as i64;
            let rows = sql.query(
                "SELECT place, first_index, body, checksum FROM packs JOIN (
                     SELECT place, sum(octet_length(body)) OVER (ORDER BY place) - octet_length(body) AS before
                     FROM packs WHERE number = $1 AND place BETWEEN $2 AND $2 + 63) AS sized USING (place)
                 WHERE number = $1 AND (before < $3 OR place = $2) ORDER BY place",
                &[&key, &from, &room],
            )?;
            if rows.is_empty() {
                return Ok(true);
            }
            for row in &rows {
                let place: u32 = number(row, 0)?;
                from = i64::from(place) + 1;
                let messages = stored(row, 2, 3)?;
                let bytes = messages.bytes().len();
                let (first_index, last) = (number(row, 1)?, place + 1 == packs);
                if !self.add(Pack { number: place, first_index, last, ..of.whole(messages) }, bytes) {
                    return Ok(false);
                }
            }
        }
    }

    /// Reads the messages of those that were added without.
    fn fill(&mut self, sql: &Sql, whole: &[i64]) -> Result<(), Failed> {
        if whole.is_empty() {
            return Ok(());
        }
        let rows =
            sql.query("SELECT sequence, body, checksum FROM transactions WHERE sequence = ANY($1)", &[&whole])?;
        let mut bodies = HashMap::new();
        for row in &rows {
            bodies.insert(row.try_get::<_, i64>(0)?, stored(row, 1, 2)?);
        }
        for pack in &mut self.packs {
            if let Some(messages) = bodies.remove(&pack.sequence.0) {
                pack.messages = messages;
            }
        }
        Ok(())
    }
}
