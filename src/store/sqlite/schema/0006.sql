-- Version 6: order binds the messages of one client channel and no others, so what waits for one that RabbitMQ does not
-- take steps aside, with those behind it from the same channel.

-- The client channel, as far as order goes; 0: an earlier version wrote it, and it has its order with all such of its lane.
ALTER TABLE transactions ADD COLUMN strand INTEGER NOT NULL DEFAULT 0;

-- What stepped aside stands in a lane beside its own, so that neither is read to find the other.
CREATE TABLE lanes_and_asides (
    lane   INTEGER PRIMARY KEY,
    vhost  TEXT    NOT NULL,
    number INTEGER NOT NULL,
    aside  INTEGER NOT NULL,                -- the strand of what stepped aside; -1: it is the lane itself
    UNIQUE (vhost, number, aside)
) STRICT;
INSERT INTO lanes_and_asides (lane, vhost, number, aside) SELECT lane, vhost, number, -1 FROM lanes;
DROP TABLE lanes;
ALTER TABLE lanes_and_asides RENAME TO lanes;
