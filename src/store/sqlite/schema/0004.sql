-- Version 4: a transaction's history lies together, and costs one insert an entry instead of two.

CREATE TABLE history_by_transaction (
    transaction_id BLOB    NOT NULL,
    entry          INTEGER NOT NULL,        -- rises; one of the store's sequences
    at             INTEGER NOT NULL,
    event          TEXT    NOT NULL,
    actor          TEXT    NOT NULL,
    reason         TEXT,
    PRIMARY KEY (transaction_id, entry)
) STRICT, WITHOUT ROWID;
-- Entries had numbers of their own. Below zero they stay in order, before all that come.
INSERT INTO history_by_transaction (transaction_id, entry, at, event, actor, reason)
    SELECT transaction_id, entry - (SELECT max(entry) FROM history) - 1, at, event, actor, reason FROM history;
DROP TABLE history;
ALTER TABLE history_by_transaction RENAME TO history;
