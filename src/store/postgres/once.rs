//! A SQL transaction that takes effect once, however often it is sent because the answer was lost.

use super::book::Me;
use super::sql::{Failed, Sql};

/// Work that is to be done once.
pub(super) struct Once<T> {
    /// Under which the database remembers it.
    number: i64,
    /// What it came to when it was last sent to be committed: nobody knows yet whether it was.
    sent: Option<T>,
}

impl<T> Once<T> {
    /// Under a number that this process has for nothing else.
    pub(super) fn new(number: i64) -> Self {
        Self { number, sent: None }
    }

    /// Does `work` in one SQL transaction, unless that took effect before. `Ok` means that it is durable as far as the
    /// session's settings go. After [`Failed::Lost`] this is to be called again; after other failures nothing took effect.
    pub(super) fn attempt(
        &mut self,
        sql: &Sql,
        me: &Me,
        work: impl FnOnce() -> Result<T, Failed>,
    ) -> Result<T, Failed> {
        sql.transaction("BEGIN", || {
            if is_new(sql, me, self.number)? {
                // So the attempt before, if there was one, has come to nothing.
                self.sent = None;
                self.sent = Some(work()?);
            }
            Ok(())
        })?;
        self.sent.take().ok_or_else(|| Failed::Other("it was done before, and nobody knows what it came to".into()))
    }
}

/// Holds off whoever takes over until the SQL transaction has ended, and says whether the number is new. Waits for another
/// SQL transaction under it to end.
fn is_new(sql: &Sql, me: &Me, number: i64) -> Result<bool, Failed> {
    let mine = sql.one("SELECT 1 FROM instances WHERE id = $1 AND key = $2 FOR KEY SHARE", &[&me.id, &me.key])?;
    mine.ok_or(Failed::Fenced)?;
    let made = sql
        .execute("INSERT INTO groups (instance, number) VALUES ($1, $2) ON CONFLICT DO NOTHING", &[&me.id, &number])?;
    Ok(made > 0)
}
