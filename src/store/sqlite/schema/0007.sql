-- Version 7: what is read back is compared with what was kept. CRC-32 of the messages beside it; null: an earlier version
-- wrote it.
ALTER TABLE transactions ADD COLUMN checksum INTEGER;   -- of `body`
ALTER TABLE packs ADD COLUMN checksum INTEGER;
ALTER TABLE dead_letters ADD COLUMN checksum INTEGER;   -- of `message`; another one's, if that came damaged
