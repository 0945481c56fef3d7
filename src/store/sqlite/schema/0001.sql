-- Version 1. Times are milliseconds since 1970-01-01 UTC.

-- One row: what belongs to the whole file.
CREATE TABLE store (
    one               INTEGER PRIMARY KEY CHECK (one = 1),
    -- Sequences below this may have been used. Taken in blocks, so that a sequence is never used twice although
    -- delivered rows leave, and although few commits write here.
    sequence_reserved INTEGER NOT NULL
) STRICT;
INSERT INTO store VALUES (1, 1);

-- The roads to RabbitMQ, so that a transaction's row names its road in a byte or two.
CREATE TABLE lanes (
    lane   INTEGER PRIMARY KEY,
    vhost  TEXT    NOT NULL,
    number INTEGER NOT NULL,
    UNIQUE (vhost, number)
) STRICT;

-- One row a transaction. The key is the order of commits, so committing appends, and a lane is read in key order.
-- A plain commit is one insert here and nowhere else, with its messages in `body`: that is the fastest shape there is.
CREATE TABLE transactions (
    sequence   INTEGER PRIMARY KEY,
    id         BLOB    NOT NULL CHECK (length(id) = 16),
    state      TEXT    NOT NULL
        CHECK (state IN ('open', 'in_doubt', 'committed', 'delivered', 'rolled_back', 'dead_lettered')),
    lane       INTEGER NOT NULL REFERENCES lanes,
    user       TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    parked_at  INTEGER,                     -- null: its first write was its commit
    decided_at INTEGER,
    decided_by TEXT,                        -- null in a plain commit: the channel that published
    messages   INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,            -- of the messages as they are kept
    letters    INTEGER NOT NULL DEFAULT 0,  -- its rows in dead_letters
    number     INTEGER,                     -- names its packs; null without
    packs      INTEGER NOT NULL DEFAULT 0,
    body       BLOB                         -- its messages; null if they are in packs, or gone
) STRICT;

-- All of these are partial, so that a row stands only in those that concern it, and none costs a plain commit anything
-- but `committed`. An index entry ends with the row's key: `committed` is a lane's transactions in the order of commits.
CREATE INDEX committed ON transactions (lane) WHERE state = 'committed';
CREATE UNIQUE INDEX parked ON transactions (id) WHERE parked_at IS NOT NULL;
CREATE INDEX undecided ON transactions (parked_at) WHERE state IN ('open', 'in_doubt');
CREATE INDEX finished ON transactions (decided_at) WHERE state IN ('delivered', 'rolled_back');

-- Messages that came before their decision, as they came. key = number of the transaction << 20 | place, so that it
-- needs no second index, and packs stay where they are when the decision gives the transaction a new sequence.
CREATE TABLE packs (
    key         INTEGER PRIMARY KEY,
    first_index INTEGER NOT NULL,           -- the place in the transaction of the first message
    body        BLOB    NOT NULL
) STRICT;

-- Numbers whose packs nobody needs any more. They are deleted bit by bit, because a large transaction would hold up
-- everybody's commits.
CREATE TABLE garbage (
    number INTEGER PRIMARY KEY
) STRICT;

-- What happened to transactions that were parked, dead-lettered or refused. A plain commit has no rows here: its
-- creation, decision and who made it stand in its own columns, and it leaves when it is delivered.
CREATE TABLE history (
    entry       INTEGER PRIMARY KEY,
    transaction_id BLOB NOT NULL,
    at          INTEGER NOT NULL,
    event       TEXT    NOT NULL,
    actor       TEXT    NOT NULL,
    reason      TEXT
) STRICT;
CREATE INDEX history_of ON history (transaction_id);

-- Committed messages that RabbitMQ can't take.
CREATE TABLE dead_letters (
    letter        INTEGER PRIMARY KEY,
    sequence      INTEGER NOT NULL REFERENCES transactions,
    message_index INTEGER NOT NULL,
    message       BLOB    NOT NULL,
    reply_code    INTEGER NOT NULL,
    reply_text    TEXT    NOT NULL,
    since         INTEGER NOT NULL,
    attempts      INTEGER NOT NULL DEFAULT 1,
    UNIQUE (sequence, message_index)
) STRICT;
