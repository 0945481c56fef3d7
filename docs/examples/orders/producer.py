"""The order service without an endpoint: it writes one row more than the order, and Halfway looks at that row by itself.

    POST /orders      {"id": "4711", "item": "a book"}: places an order. The same id again is the same order.

It needs pika and psycopg:

    python producer.py --amqp amqp://app:app@127.0.0.1:5673 --database postgresql://shop@127.0.0.1/shop
"""

import argparse
import json
import logging
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pika

from orders import BODY_BYTES_MAX, parse_order, place
from outcome import Refused
from postgres import Postgres


def handler(amqp, database):
    """The HTTP side, for those who order. Halfway asks nothing here."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 30  # seconds without a byte

        def do_POST(self):
            size = self.headers.get("Content-Length", "")
            if self.path != "/orders" or not size.isdecimal() or int(size) > BODY_BYTES_MAX:
                return self.answer(400, {"error": "an order goes to /orders, with its Content-Length"})
            try:
                order = parse_order(self.rfile.read(int(size)))
                place(amqp, database, order)
                self.answer(201, order)
            except ValueError as error:
                self.answer(400, {"error": str(error)})
            except Refused as refused:
                self.answer(409, {"error": str(refused)})
            except Exception:
                # It may be placed or not: send it again.
                logging.exception("an order failed")
                self.answer(503, {"error": "try again"})

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


def main(arguments=None):
    parser = argparse.ArgumentParser(description="A small order service behind Halfway, without an endpoint.")
    parser.add_argument("--amqp", required=True, type=pika.URLParameters, help="Halfway: amqp://user:password@host:port")
    parser.add_argument("--database", required=True, help="postgresql://…")
    parser.add_argument("--listen", default="127.0.0.1:8080", help="address and port of its HTTP")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("pika").setLevel(logging.ERROR)
    # A proxy or a broker that takes nothing must not hold an order for ever.
    options.amqp.blocked_connection_timeout = 30
    host, port = options.listen.rsplit(":", 1)
    with ThreadingHTTPServer((host, int(port)), handler(options.amqp, Postgres(options.database))) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
