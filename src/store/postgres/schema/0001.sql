-- Version 1. Times are milliseconds since 1970-01-01 UTC. The same rows as a SQLite store's, with the same meaning.

-- Each start of a proxy has a row as long as it lives, and an id that is never given again. Whatever it writes, it writes with a
-- lock on its row; whoever takes over deletes the row, which waits for that lock. So nothing of it comes after.
CREATE TABLE instances (
    id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key  uuid   NOT NULL,           -- random: after a restore an id may be given twice, this is not
    host text   NOT NULL,
    beat bigint NOT NULL DEFAULT 0  -- goes up as long as it lives
) WITH (fillfactor = 50);

-- SQL transactions that are durable, as far as somebody may have to ask because the answer was lost.
CREATE TABLE groups (
    instance bigint NOT NULL,
    number   bigint NOT NULL,
    PRIMARY KEY (instance, number)
);

-- The roads to RabbitMQ; `aside` is the strand of what stepped aside of one, -1 the lane itself.
CREATE TABLE lanes (
    lane   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    vhost  text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    aside  bigint NOT NULL,
    UNIQUE (vhost, number, aside)
);

-- One row a transaction, in the order of commits. Sequences: id of the instance << 40 | a count. What refers to what is not
-- declared: to look at each insert would be paid by every commit; `halfway store check` looks.
CREATE TABLE transactions (
    sequence        bigint PRIMARY KEY,
    id              uuid   NOT NULL,
    state           text COLLATE "C" NOT NULL
        CHECK (state IN ('open', 'in_doubt', 'committed', 'delivered', 'rolled_back', 'dead_lettered')),
    lane            bigint NOT NULL,
    "user"          text COLLATE "C" NOT NULL,
    created_at      bigint NOT NULL,
    parked_at       bigint,                     -- null: its first write was its commit
    decided_at      bigint,
    decided_by      text,                       -- null in a plain commit: the channel that published
    settled_at      bigint,                     -- when RabbitMQ had all of it, or its last dead letter went
    finished        bigint,                     -- the same by the store's count of time, or when it was rolled back
    messages        bigint NOT NULL,
    bytes           bigint NOT NULL,            -- of the messages as they are kept
    letters         bigint NOT NULL DEFAULT 0,  -- its rows in dead_letters
    number          bigint,                     -- names its packs; null without
    packs           bigint NOT NULL DEFAULT 0,
    name            text COLLATE "C",           -- null: it has none, and none of what follows but `strand`
    checker         text COLLATE "C",           -- who is asked; null: nobody
    first_after     bigint,                     -- milliseconds in doubt before the first question
    in_doubt_at     bigint,                     -- since when its channel is gone
    next_check_at   bigint,                     -- by the store's count of time; null: it waits for a person
    attempts        bigint NOT NULL DEFAULT 0,  -- to ask, answered or not
    checks_answered bigint NOT NULL DEFAULT 0,  -- answers that counted
    strand          bigint NOT NULL,            -- the client channel, as far as order goes
    checksum        bigint,                     -- CRC-32 of `body`
    body            bytea                       -- its messages; null if they are in packs, or gone
);
-- What is compressed is read in order to be sent: not worth it. And a part of a value can be read by itself.
ALTER TABLE transactions ALTER body SET STORAGE EXTERNAL;
-- All partial, so that a plain commit stands in its key and in `committed` alone.
CREATE INDEX committed ON transactions (lane, sequence) WHERE state = 'committed';
CREATE INDEX others ON transactions (state, sequence) WHERE state <> 'committed';
CREATE UNIQUE INDEX parked ON transactions (id) WHERE parked_at IS NOT NULL;
CREATE INDEX dead ON transactions (id) WHERE parked_at IS NULL AND state IN ('dead_lettered', 'delivered');
CREATE INDEX named ON transactions (name, "user", sequence) WHERE name IS NOT NULL;
CREATE INDEX due ON transactions (checker, "user", next_check_at) WHERE state = 'in_doubt' AND next_check_at IS NOT NULL;
CREATE INDEX doubt_age ON transactions (in_doubt_at) WHERE state = 'in_doubt';
CREATE INDEX finished ON transactions (finished) WHERE state IN ('delivered', 'rolled_back');
-- Plain commits come and go; what is left of them should not pile up until a fifth of the table is dead.
ALTER TABLE transactions SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0);

-- Messages that came before their decision, as they came.
CREATE TABLE packs (
    number      bigint NOT NULL,
    place       bigint NOT NULL,
    first_index bigint NOT NULL,                -- the place in the transaction of the first message
    checksum    bigint NOT NULL,
    body        bytea  NOT NULL,
    PRIMARY KEY (number, place)
);
ALTER TABLE packs ALTER body SET STORAGE EXTERNAL;

-- The message-ids in named transactions, to know a message that comes twice. They leave with the packs.
CREATE TABLE message_ids (
    number     bigint NOT NULL,
    message_id bytea  NOT NULL,
    PRIMARY KEY (number, message_id)
);

-- Numbers whose packs nobody needs any more. They are deleted bit by bit.
CREATE TABLE garbage (number bigint PRIMARY KEY);

-- What happened to transactions beside what their rows tell.
CREATE TABLE history (
    transaction_id uuid   NOT NULL,
    entry          bigint NOT NULL,             -- rises; one of the store's sequences
    at             bigint NOT NULL,
    event          text   NOT NULL,
    actor          text   NOT NULL,
    reason         text,
    PRIMARY KEY (transaction_id, entry)
);

-- Committed messages that RabbitMQ can't take.
CREATE TABLE dead_letters (
    letter        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sequence      bigint NOT NULL,
    message_index bigint NOT NULL,
    reply_code    bigint NOT NULL,
    reply_text    text   NOT NULL,
    since         bigint NOT NULL,              -- when it was found out first
    attempts      bigint NOT NULL DEFAULT 1,
    -- The row in `transactions` that brings it to RabbitMQ once more, with the letter's message as its only one; null:
    -- it waits for a person.
    retry         bigint,
    checksum      bigint NOT NULL,
    message       bytea  NOT NULL,
    UNIQUE (sequence, message_index)
);
ALTER TABLE dead_letters ALTER message SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX retried ON dead_letters (retry) WHERE retry IS NOT NULL;
