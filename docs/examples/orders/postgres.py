"""Orders and the barrier in PostgreSQL."""

import psycopg

from outcome import Refused

SCHEMA = """
CREATE TABLE IF NOT EXISTS half_barrier (
    vhost    text NOT NULL,
    username text NOT NULL,
    name     text NOT NULL,
    decision text NOT NULL CHECK (decision IN ('commit', 'rollback')),
    at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (vhost, username, name)
);
CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY, item text NOT NULL);
"""
INSERT = "INSERT INTO half_barrier (vhost, username, name, decision)"


class Postgres:
    def __init__(self, url):
        self.url = url
        with self.connect() as connection:
            # Two instances that start at once must not both create the tables.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('half_barrier'))")
            connection.execute(SCHEMA)

    def connect(self, autocommit=False):
        return psycopg.connect(self.url, autocommit=autocommit, connect_timeout=5)

    def place(self, owned, order):
        """Writes an order and that its message may go, in one local transaction. Raises `Refused` if it is too late."""
        with self.connect() as connection:  # an exception rolls back
            # A transaction whose service hangs must not keep the checker waiting for ever.
            connection.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'")
            barrier = INSERT + " VALUES (%s, %s, %s, 'commit') ON CONFLICT DO NOTHING"
            if connection.execute(barrier, owned).rowcount == 0:
                if decision(connection, owned) == "rollback":
                    raise Refused(owned.name)
                return  # an earlier attempt got as far as the commit
            connection.execute("INSERT INTO orders (id, item) VALUES (%s, %s)", [order["id"], order["item"]])
            connection.commit()

    def decide(self, owned):
        """What became of a transaction. If it did not commit, from now on it can't."""
        with self.connect(autocommit=True) as connection:  # each statement is a transaction, and sees what is there now
            connection.execute("SET lock_timeout = '1s'")
            marker = INSERT + " VALUES (%s, %s, %s, 'rollback') ON CONFLICT DO NOTHING"
            try:
                connection.execute(marker, owned)
            except psycopg.errors.LockNotAvailable:
                return "ongoing"  # the local transaction has written its row and has not ended
            return decision(connection, owned)


def decision(connection, owned):
    row = "SELECT decision FROM half_barrier WHERE vhost = %s AND username = %s AND name = %s"
    return connection.execute(row, owned).fetchone()[0]
