"""Whose transaction it is, and what both databases say."""

from typing import NamedTuple


class Owned(NamedTuple):
    """A transaction's name, which is unique for its user in its virtual host: a stranger's order-1 is another one."""

    vhost: str
    user: str
    name: str


class Refused(Exception):
    """The checker was first: it has answered that this transaction is rolled back, so it must not commit."""

    def __init__(self, name):
        super().__init__(f"{name} was given up in the meantime; order anew, under another id")
