"""Orders and the barrier in SQLite."""

import sqlite3
from contextlib import closing

from outcome import Refused

SCHEMA = """
CREATE TABLE IF NOT EXISTS half_barrier (
    name     TEXT PRIMARY KEY,
    decision TEXT NOT NULL CHECK (decision IN ('commit', 'rollback')),
    at       TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, item TEXT NOT NULL);
"""


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

    def place(self, name, order):
        """Writes an order and that its message may go, in one local transaction. Raises `Refused` if it is too late."""
        with closing(self.connect(5)) as connection:  # closing without a commit rolls back
            # IMMEDIATE takes the write lock now: a transaction that begins by reading may fail where it first writes.
            connection.execute("BEGIN IMMEDIATE")
            barrier = "INSERT INTO half_barrier (name, decision) VALUES (?, 'commit') ON CONFLICT DO NOTHING"
            if connection.execute(barrier, [name]).rowcount == 0:
                if decision(connection, name) == "rollback":
                    raise Refused(name)
                return  # an earlier attempt got as far as the commit
            connection.execute("INSERT INTO orders (id, item) VALUES (?, ?)", [order["id"], order["item"]])
            connection.execute("COMMIT")

    def decide(self, name):
        """What became of a transaction. If it did not commit, from now on it can't."""
        with closing(self.connect(1)) as connection:
            marker = "INSERT INTO half_barrier (name, decision) VALUES (?, 'rollback') ON CONFLICT DO NOTHING"
            try:
                connection.execute(marker, [name])  # a transaction of its own
            except sqlite3.OperationalError as error:
                # The low byte is the code without its refinements. Somebody writes, perhaps this very transaction.
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                    return "ongoing"
                raise
            return decision(connection, name)


def decision(connection, name):
    return connection.execute("SELECT decision FROM half_barrier WHERE name = ?", [name]).fetchone()[0]
