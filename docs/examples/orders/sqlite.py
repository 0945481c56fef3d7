"""Orders and the barrier in SQLite."""

import sqlite3
from contextlib import closing

from outcome import Refused

SCHEMA = """
CREATE TABLE IF NOT EXISTS half_barrier (
    vhost    TEXT NOT NULL,
    username TEXT NOT NULL,
    name     TEXT NOT NULL,
    decision TEXT NOT NULL CHECK (decision IN ('commit', 'rollback')),
    at       TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (vhost, username, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, item TEXT NOT NULL);
"""
INSERT = "INSERT INTO half_barrier (vhost, username, name, decision)"


class Sqlite:
    def __init__(self, path):
        self.path = path
        with closing(self.connect(5)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(SCHEMA)

    def connect(self, busy_seconds):
        """A connection that waits so long for another's write, and begins a transaction only where it is told to."""
        connection = sqlite3.connect(self.path, timeout=busy_seconds, isolation_level=None)
        # What was committed has to survive a power cut, for the message goes out after it.
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def place(self, owned, order):
        """Writes an order and that its message may go, in one local transaction. Raises `Refused` if it is too late."""
        with closing(self.connect(5)) as connection:  # closing without a commit rolls back
            # IMMEDIATE takes the write lock now: a transaction that begins by reading may fail where it first writes.
            connection.execute("BEGIN IMMEDIATE")
            barrier = INSERT + " VALUES (?, ?, ?, 'commit') ON CONFLICT DO NOTHING"
            if connection.execute(barrier, owned).rowcount == 0:
                if decision(connection, owned) == "rollback":
                    raise Refused(owned.name)
                return  # an earlier attempt got as far as the commit
            connection.execute("INSERT INTO orders (id, item) VALUES (?, ?)", [order["id"], order["item"]])
            connection.execute("COMMIT")

    def decide(self, owned):
        """What became of a transaction. If it did not commit, from now on it can't."""
        with closing(self.connect(1)) as connection:
            marker = INSERT + " VALUES (?, ?, ?, 'rollback') ON CONFLICT DO NOTHING"
            try:
                connection.execute(marker, owned)  # a transaction of its own
            except sqlite3.OperationalError as error:
                # The low byte is the code without its refinements. Somebody writes, perhaps this very transaction.
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                    return "ongoing"
                raise
            return decision(connection, owned)


def decision(connection, owned):
    row = "SELECT decision FROM half_barrier WHERE vhost = ? AND username = ? AND name = ?"
    return connection.execute(row, owned).fetchone()[0]
