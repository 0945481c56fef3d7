-- Version 5: what is waited for stands in the store's own count of time, which the wall clock can't shift: `next_check_at`,
-- `finished`, and nothing else. The count begins as the wall clock's, so earlier values fit.

-- The count, and what the wall clock showed then; null: nobody has counted yet.
ALTER TABLE store ADD COLUMN count INTEGER;
ALTER TABLE store ADD COLUMN wall INTEGER;

-- When it was finished, by the count; null: not yet, or an earlier version finished it.
ALTER TABLE transactions ADD COLUMN finished INTEGER;
DROP INDEX finished;
CREATE INDEX finished ON transactions (coalesce(finished, settled_at, decided_at))
    WHERE state IN ('delivered', 'rolled_back');
