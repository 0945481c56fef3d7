-- Version 2: transactions with a name outlive their channel, are in doubt, and are asked about.

ALTER TABLE transactions ADD COLUMN name TEXT;              -- null: it has none, and none of what follows
ALTER TABLE transactions ADD COLUMN checker TEXT;           -- who is asked; null: nobody
ALTER TABLE transactions ADD COLUMN first_after INTEGER;    -- milliseconds in doubt before the first question
ALTER TABLE transactions ADD COLUMN in_doubt_at INTEGER;    -- since when its channel is gone
ALTER TABLE transactions ADD COLUMN next_check_at INTEGER;  -- null: it waits for a person
ALTER TABLE transactions ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;         -- to ask, answered or not
ALTER TABLE transactions ADD COLUMN checks_answered INTEGER NOT NULL DEFAULT 0;  -- answers that counted

-- As in version 1, each is partial so that a plain commit stands in `committed` alone.
-- A name's owner is the user in the lane's virtual host. At most one of an owner's attempts under a name is open, one is
-- in doubt and one was committed, so these are few; those that were rolled back may be many, and stand apart.
CREATE INDEX named ON transactions (name, user) WHERE name IS NOT NULL AND state <> 'rolled_back';
CREATE INDEX named_rolled_back ON transactions (name, user) WHERE name IS NOT NULL AND state = 'rolled_back';
-- Each state in the order of sequences; the committed ones stand in `committed`.
CREATE INDEX others ON transactions (state) WHERE state <> 'committed';
-- What plain transactions with dead letters are found by; those that were parked stand in `parked`.
CREATE INDEX dead ON transactions (id) WHERE parked_at IS NULL AND state = 'dead_lettered';
-- In doubt: whose turn it is, who is asked, and since when.
CREATE INDEX due ON transactions (checker, next_check_at) WHERE state = 'in_doubt' AND next_check_at IS NOT NULL;
CREATE INDEX doubtful ON transactions (checker) WHERE state = 'in_doubt';
CREATE INDEX doubt_age ON transactions (in_doubt_at) WHERE state = 'in_doubt';
-- `others` does what it did, and does not lead over what is in doubt to what is open.
DROP INDEX undecided;

-- The message-ids in named transactions, to know a message that comes twice. They leave with the packs.
CREATE TABLE message_ids (
    number     INTEGER NOT NULL,
    message_id BLOB    NOT NULL,
    PRIMARY KEY (number, message_id)
) STRICT, WITHOUT ROWID;
