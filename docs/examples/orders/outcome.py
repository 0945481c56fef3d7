"""What both databases say."""


class Refused(Exception):
    """The checker was first: it has answered that this transaction is rolled back, so it must not commit."""

    def __init__(self, name):
        super().__init__(f"{name} was given up in the meantime; order anew, under another id")
