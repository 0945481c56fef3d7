-- Version 8: the users of a checker take turns, each with what is longest overdue.
DROP INDEX due;
CREATE INDEX due ON transactions (checker, user, next_check_at) WHERE state = 'in_doubt' AND next_check_at IS NOT NULL;
