-- Version 3: dead letters are retried and discarded by hand.

-- Anew, because a letter's number must never name another one later, and because lists should not have to read through
-- the messages to what stands behind them.
CREATE TABLE letters_by_hand (
    letter        INTEGER PRIMARY KEY AUTOINCREMENT,
    sequence      INTEGER NOT NULL REFERENCES transactions,
    message_index INTEGER NOT NULL,
    reply_code    INTEGER NOT NULL,
    reply_text    TEXT    NOT NULL,
    since         INTEGER NOT NULL,         -- when it was found out first
    attempts      INTEGER NOT NULL DEFAULT 1,
    -- The row in `transactions` that brings it to RabbitMQ once more, with the letter's message as its only one; null:
    -- it waits for a person.
    retry         INTEGER,
    message       BLOB    NOT NULL,
    UNIQUE (sequence, message_index)
) STRICT;
INSERT INTO letters_by_hand (letter, sequence, message_index, reply_code, reply_text, since, attempts, message)
    SELECT letter, sequence, message_index, reply_code, reply_text, since, attempts, message FROM dead_letters;
DROP TABLE dead_letters;
ALTER TABLE letters_by_hand RENAME TO dead_letters;
CREATE UNIQUE INDEX retried ON dead_letters (retry) WHERE retry IS NOT NULL;

-- When the last dead letter went, which may be long after the decision: it is kept for its history from then on.
ALTER TABLE transactions ADD COLUMN settled_at INTEGER;
DROP INDEX finished;
CREATE INDEX finished ON transactions (coalesce(settled_at, decided_at)) WHERE state IN ('delivered', 'rolled_back');
-- Plain transactions that have dead letters, or had.
DROP INDEX dead;
CREATE INDEX dead ON transactions (id) WHERE parked_at IS NULL AND state IN ('dead_lettered', 'delivered');
