//! What is wrong in a file, and bits that flip in it.

use super::*;

/// Lets a bit flip in the last message's last byte, as SQLite has no way to notice.
fn flip(folder: &Folder, table: &str, column: &str) {
    let sql = rusqlite::Connection::open(folder.db()).unwrap();
    let (row, mut bytes): (i64, Vec<u8>) = sql
        .query_row(&format!("SELECT rowid, {column} FROM {table} ORDER BY rowid DESC LIMIT 1"), [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    sql.execute(&format!("UPDATE {table} SET {column} = ?1 WHERE rowid = ?2"), rusqlite::params![bytes, row]).unwrap();
}

fn problem(folder: &Folder) -> String {
    let report = check(&folder.db()).unwrap();
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    report.problems[0].clone()
}

/// Which of the packs for the relay are damaged.
async fn damaged(store: &Arc<dyn Backend>) -> Vec<bool> {
    let packs = store.page(&lane(), None, usize::MAX).await.unwrap();
    packs.iter().map(|pack| matches!(pack.messages, Stored::Damaged(_))).collect()
}

/// A flipped bit went out to the consumers, and a check of the store found nothing.
#[tokio::test]
async fn a_bit_that_flips_in_a_message_is_noticed() {
    let folder = Folder::new();
    let store = open(&folder.db());
    store.commit(commit(&origin(), 100)).await.unwrap();
    store.commit(commit(&origin(), 100)).await.unwrap();
    assert_eq!(damaged(&store).await, [false, false]);
    flip(&folder, "transactions", "body");
    assert_eq!(damaged(&store).await, [false, true]);
    let found = problem(&folder);
    assert!(found.ends_with("has other bytes than were kept, from message 0 on"), "{found}");

    let folder = Folder::new();
    let store = open(&folder.db());
    let (tx, doubtful) = (named("order", None), named("doubtful", None));
    store.park(tx.clone(), batch(100)).await.unwrap();
    store.park(tx.clone(), batch(100)).await.unwrap();
    flip(&folder, "packs", "body");
    assert!(problem(&folder).ends_with("has other bytes than were kept, from message 1 on"));
    store.commit(Commit { batch: batch(100), ..parked(&tx) }).await.unwrap();
    assert_eq!(damaged(&store).await, [false, true, false]);
    store.park(doubtful.clone(), with_id(1)).await.unwrap();
    flip(&folder, "packs", "body");
    let seen = store.messages(doubtful.id, 0, usize::MAX).await.unwrap();
    assert!(matches!(seen[0].messages, Stored::Damaged(_)), "it can be looked at");
}

/// SQLite copies a value to write it, and to read it.
#[tokio::test]
async fn what_is_large_stands_in_rows_that_are_not_and_each_is_checked() {
    let made = async || {
        let folder = Folder::new();
        let store = open(&folder.db());
        let large = origin();
        store.park(large.clone(), batch(10)).await.unwrap();
        store.park(large.clone(), batch(9 << 20)).await.unwrap();
        store.commit(parked(&large)).await.unwrap();
        assert_eq!(damaged(&store).await, [false, false]);
        assert_sound(&folder.db());
        (folder, store)
    };
    let (folder, store) = made().await;
    let sql = rusqlite::Connection::open(folder.db()).unwrap();
    let largest =
        sql.query_row("SELECT count(*), max(length(body)) FROM packs", [], |row| Ok((row.get(0)?, row.get(1)?)));
    assert_eq!(largest.unwrap(), (4_i64, 4_i64 << 20));
    flip(&folder, "packs", "body");
    assert_eq!(damaged(&store).await, [false, true]);
    assert!(problem(&folder).ends_with("has other bytes than were kept, from message 1 on"));
    for (damage, problem) in [
        ("UPDATE packs SET body = zeroblob(length(body)) WHERE key & 1048575 = 2", "has other bytes than were kept"),
        ("DELETE FROM packs WHERE key & 1048575 = 2", "lacks its pack 2"),
        ("DELETE FROM packs WHERE key & 1048575 = 3", "lacks the end of its last pack"),
    ] {
        let (folder, _store) = made().await;
        rusqlite::Connection::open(folder.db()).unwrap().execute_batch(damage).unwrap();
        let problems = check(&folder.db()).unwrap().problems;
        assert!(problems.iter().any(|found| found.contains(problem)), "{damage}: {problems:?}");
    }
}

/// A damaged message stays one, whoever tries it again; and so does a letter that is damaged where it lies.
#[tokio::test]
async fn a_damaged_letter_never_goes_out() {
    for was_damaged in [true, false] {
        let folder = Folder::new();
        let store = open(&folder.db());
        let sequence = now(store.commit(commit(&origin(), 100)).await);
        let bytes = batch(100).into_bytes().into();
        let letter = DeadLetter {
            sequence,
            index: 0,
            message: if was_damaged { Stored::Damaged(bytes) } else { Stored::Sound(bytes) },
            reply_code: 541,
            reply_text: "INTERNAL_ERROR".into(),
            since: Timestamp(1),
        };
        store.dead_letter(letter.clone()).await.unwrap();
        store.delivered(vec![sequence]);
        eventually("it is a letter", || stats(&folder.db()).unwrap().committed == 0).await;
        if !was_damaged {
            assert_sound(&folder.db());
            flip(&folder, "dead_letters", "message");
        }
        assert_eq!(problem(&folder), "dead letter 1 is not what was kept");
        for _ in 0..2 {
            store.retry("1".parse().unwrap(), Actor::Control, "again".into()).await.unwrap().expect("it waits");
            assert_eq!(damaged(&store).await, [true]);
            let again = store.page(&lane(), None, usize::MAX).await.unwrap().remove(0);
            let letter = DeadLetter { sequence: again.sequence, message: again.messages, ..letter.clone() };
            store.dead_letter(letter).await.unwrap();
            assert_eq!(damaged(&store).await, [false; 0]);
        }
        store.discard("1".parse().unwrap(), Actor::Control, "lost".into()).await.unwrap().expect("it waits");
        assert_sound(&folder.db());
    }
}

#[tokio::test]
async fn a_check_finds_what_is_wrong() {
    for (damage, problem) in [
        ("UPDATE transactions SET body = substr(body, 2) WHERE packs = 0", "can't be read"),
        ("UPDATE transactions SET messages = 2 WHERE packs = 0", "should have 2 messages"),
        ("UPDATE transactions SET body = NULL WHERE packs = 0", "in no place, or in two"),
        ("DELETE FROM packs WHERE first_index = 0", "lacks its pack 0"),
        ("UPDATE packs SET first_index = 7 WHERE first_index = 1", "counts its message 1 as 7"),
        ("INSERT INTO packs (key, first_index, body) VALUES (1 << 50, 0, x'')", "1 packs belong to no transaction"),
        ("UPDATE store SET sequence_reserved = 1", "will be given out again"),
        ("UPDATE transactions SET decided_at = NULL WHERE packs = 0", "a decision and are undecided"),
        ("UPDATE transactions SET letters = 1 WHERE packs = 0", "miscount their dead letters"),
        ("PRAGMA foreign_keys = OFF; UPDATE transactions SET lane = 99", "refers to a row of lanes"),
        ("INSERT INTO message_ids VALUES (1 << 40, x'00')", "message-ids belong to no transaction"),
        ("UPDATE transactions SET next_check_at = 1 WHERE packs > 0", "to be checked that can't be"),
        (
            "UPDATE transactions SET state = 'in_doubt', decided_at = NULL WHERE packs > 0",
            "in doubt without a name or a time",
        ),
        (
            "UPDATE transactions SET state = 'open', decided_at = NULL, name = 'n'",
            "1 names have two open attempts, or two in doubt",
        ),
        (
            "INSERT INTO history VALUES (zeroblob(16), 1, 1, 'check', 'checker orders', 'unknown')",
            "1 entries of the history belong to no transaction",
        ),
    ] {
        let folder = Folder::new();
        let store = open(&folder.db());
        let large = origin();
        store.commit(commit(&origin(), 10)).await.unwrap();
        store.park(large.clone(), batch(10)).await.unwrap();
        store.commit(Commit { parked: true, ..commit(&large, 10) }).await.unwrap();
        store.close();
        assert_eq!(check(&folder.db()).unwrap().messages, 3);
        rusqlite::Connection::open(folder.db()).unwrap().execute_batch(damage).unwrap();
        let problems = check(&folder.db()).unwrap().problems;
        assert!(problems.iter().any(|found| found.contains(problem)), "{damage}: {problems:?}");
    }
}
