"""Consume, process, produce: each input gives one output, whatever dies in between.

    python worker.py --amqp amqp://app:app@127.0.0.1:5673 --from raw --to labelled

It needs pika. Run as many of them as you like.
"""

import argparse
import logging
import time
from contextlib import suppress

import pika

PAUSE = 0.2  # seconds, after a connection that was lost or refused


def process(body):
    """The work. It may run twice for one input: what it does beside its result must bear that."""
    return b"labelled " + body


def work(channel, target, method, properties, body):
    """One input: its output and its acknowledgement are one transaction."""
    identity = (properties.headers or {}).get("x-half-id") or properties.message_id
    if identity:
        # The same input again is the same transaction: it takes the place of one in doubt, and is absorbed by one that
        # was committed.
        name = f"{target}:{identity}"
        half = pika.BasicProperties(delivery_mode=2, message_id=name, headers={"x-half-transaction": name})
        channel.basic_publish("", target, process(body), half)
        channel.basic_ack(method.delivery_tag)
    else:
        # Nobody could tell it from another one. Give the queue a dead-letter exchange.
        channel.basic_reject(method.delivery_tag, requeue=False)
    channel.tx_commit()


def run(amqp, source, target):
    """Works until somebody ends it."""
    while True:
        connection = None
        try:
            connection = pika.BlockingConnection(amqp)
            channel = connection.channel()
            for queue in source, target:
                channel.queue_declare(queue, durable=True)
            channel.basic_qos(prefetch_count=10)
            channel.tx_select()
            for method, properties, body in channel.consume(source):
                work(channel, target, method, properties, body)
        except pika.exceptions.AMQPError as error:
            # Nothing is decided by this: what was not acknowledged comes again, here or at another worker. A name that is
            # open on a connection that has just died is refused for a moment.
            logging.warning("again, because of %r", error)
            with suppress(Exception):
                connection.close()
            time.sleep(PAUSE)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Each input gives one output.")
    parser.add_argument("--amqp", required=True, type=pika.URLParameters, help="Halfway: amqp://user:password@host:port")
    parser.add_argument("--from", dest="source", required=True, help="the queue of inputs")
    parser.add_argument("--to", dest="target", required=True, help="the queue of outputs")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    options.amqp.blocked_connection_timeout = 30
    run(options.amqp, options.source, options.target)


if __name__ == "__main__":
    main()
