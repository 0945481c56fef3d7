"""A small order service: an order is in the database if and only if its message is in the queue.

    POST /orders      {"id": "4711", "item": "a book"}: places an order. The same id again is the same order.
    POST /half/check  Halfway asks what became of a transaction.

It needs pika, and psycopg for PostgreSQL:

    python orders.py --amqp amqp://app:app@127.0.0.1:5673 --database sqlite:orders.db
    python orders.py --amqp amqp://app:app@127.0.0.1:5673 --database postgresql://shop@127.0.0.1/shop
"""

import argparse
import hashlib
import hmac
import json
import logging
import re
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pika

from outcome import Owned, Refused

QUEUE = "orders"
BODY_BYTES_MAX = 1 << 20  # of a request; questions of Halfway stay well below


def place(amqp, database, order):
    """Places an order: the message first, then the database, then the decision."""
    name = f"order-{order['id']}"
    half = pika.BasicProperties(delivery_mode=2, message_id=name, headers={"x-half-transaction": name})
    body = json.dumps(order).encode()
    with channel_to(amqp) as channel:
        channel.queue_declare(QUEUE, durable=True)
        channel.tx_select()
        channel.basic_publish("", QUEUE, body, half)
        channel.tx_select()  # the prepare barrier: from here on the message can't be lost
        # Whatever is raised here, nothing is decided here: perhaps nobody knows whether the database has committed. The
        # connection ends, and the check-back finds out.
        database.place(Owned(amqp.virtual_host, amqp.credentials.username, name), order)
        try:
            channel.tx_commit()
        except pika.exceptions.AMQPError as error:
            # The order is placed, and nobody can undo that: the check-back will send its message.
            logging.warning("%s is placed, its message will follow: %r", name, error)


@contextmanager
def channel_to(amqp):
    """A channel on a connection of its own, which keeps this short: keep them, one for each thread, as you do those to
    the database."""
    connection = pika.BlockingConnection(amqp)
    try:
        yield connection.channel()
    finally:
        # What is lost already can't be closed. That must not hide what went wrong before.
        with suppress(pika.exceptions.AMQPError):
            connection.close()


def is_from_halfway(header, body, secret):
    """Whether a question is signed with the secret that Halfway has for this checker."""
    fields = dict(part.split("=", 1) for part in header.split(",") if "=" in part)
    t, v1 = fields.get("t", ""), fields.get("v1", "")
    if not t.isdecimal() or abs(time.time() - int(t)) > 300:
        return False
    expected = hmac.new(secret, t.encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), v1.encode())


def parse_order(text):
    """An order, or `ValueError`."""
    order = json.loads(text)
    if not isinstance(order, dict) or order.keys() != {"id", "item"}:
        raise ValueError('an order is {"id": …, "item": …}')
    if not all(isinstance(value, str) for value in order.values()):
        raise ValueError("id and item are texts")
    if not re.fullmatch("[A-Za-z0-9-]{1,64}", order["id"]):
        raise ValueError("an id has 1 to 64 letters, digits and hyphens")
    return order


def handler(amqp, database, secret):
    """The HTTP side."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 30  # seconds without a byte

        def do_POST(self):
            size = self.headers.get("Content-Length", "")
            if not size.isdecimal() or int(size) > BODY_BYTES_MAX:
                return self.answer(411, {"error": "a Content-Length up to 1 MiB is needed"})
            body = self.rfile.read(int(size))
            try:
                match self.path:
                    case "/orders":
                        self.answer(*self.order(body))
                    case "/half/check":
                        self.answer(*self.check(body))
                    case _:
                        self.answer(404, {"error": "there is nothing here"})
            except Exception:
                # For a question this is no answer; it comes again. An order may be placed or not: send it again.
                logging.exception("%s failed", self.path)
                self.answer(503, {"error": "try again"})

        def order(self, body):
            try:
                order = parse_order(body)
            except ValueError as error:
                return 400, {"error": str(error)}
            try:
                place(amqp, database, order)
            except Refused as refused:
                return 409, {"error": str(refused)}
            return 201, order

        def check(self, body):
            if secret and not is_from_halfway(self.headers.get("X-Half-Signature", ""), body, secret):
                return 403, {"error": "this is not signed by Halfway"}
            question = json.loads(body)
            owned = Owned(question["vhost"], question["user"], question["transaction"])
            return 200, {"decision": database.decide(owned)}

        def answer(self, status, value):
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format, *arguments):
            logging.info(format, *arguments)

    return Handler


def open_database(url):
    """The database behind sqlite:PATH or postgresql://…"""
    if url.startswith("sqlite:"):
        from sqlite import Sqlite

        return Sqlite(url.removeprefix("sqlite:"))
    from postgres import Postgres

    return Postgres(url)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="A small order service behind Halfway.")
    parser.add_argument("--amqp", required=True, type=pika.URLParameters, help="Halfway: amqp://user:password@host:port")
    parser.add_argument("--database", required=True, help="sqlite:PATH or postgresql://…")
    parser.add_argument("--listen", default="127.0.0.1:8080", help="address and port of its HTTP")
    parser.add_argument("--secret-file", help="the file that this checker's secret_file names, too")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("pika").setLevel(logging.ERROR)
    # A proxy or a broker that takes nothing must not hold an order for ever.
    options.amqp.blocked_connection_timeout = 30
    secret = None
    if options.secret_file:
        with open(options.secret_file, "rb") as file:
            secret = file.read().removesuffix(b"\n")
    host, port = options.listen.rsplit(":", 1)
    database = open_database(options.database)
    with ThreadingHTTPServer((host, int(port)), handler(options.amqp, database, secret)) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
