"""The customer, and the reader of the queue, in the second act of the demonstration.

usage: shop.py order PORT ID
       shop.py orders DATABASE
       shop.py arrive DATABASE PORT USER PASSWORD
"""

import http.client
import json
import sqlite3
import sys
import time
from contextlib import closing

from demo import connect, say

QUEUE = "orders"


def order(port, order_id):
    body = json.dumps({"id": order_id, "item": "a book"})
    customer = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
    try:
        customer.request("POST", "/orders", body)
        answer = customer.getresponse().status
    except (http.client.HTTPException, ConnectionError):
        say(f"A customer ordered {body} and got no answer: the service is dead.")
        return
    raise SystemExit(f"the service should have died, and answered {answer}")


def in_database(path):
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM orders ORDER BY id")]


def orders(path):
    say(f"Orders in the database: {in_database(path)}.")


def arrive(path, port, user, password):
    wanted, got = in_database(path), []
    with connect(int(port), user, password) as connection:
        channel = connection.channel()
        # Wait long for what has to come, and two seconds for what must not.
        begin = last = time.monotonic()
        while time.monotonic() < (last + 2 if set(wanted) <= set(got) else begin + 30):
            method, properties, body = channel.basic_get(QUEUE, auto_ack=True)
            if method is None:
                time.sleep(0.05)
                continue
            last = time.monotonic()
            say(f"Received {body.decode()} of transaction {properties.headers['x-half-transaction']}.")
            got.append(json.loads(body)["id"])
        channel.queue_delete(QUEUE)
    if got != wanted:
        raise SystemExit(f"the database has {wanted}, the queue had {got}")
    say(f"Orders in the database: {wanted}; in the queue: {got}. They agree.")


if __name__ == "__main__":
    {"order": order, "orders": orders, "arrive": arrive}[sys.argv[1]](*sys.argv[2:])
