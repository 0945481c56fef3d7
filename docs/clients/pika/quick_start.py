"""Orders as messages: ordinary, in transactions, and half.

usage: quick_start.py [amqp://USER:PASSWORD@HOST:PORT/VHOST]
"""

import sys

import pika

address = sys.argv[1] if len(sys.argv) > 1 else "amqp://app:app@127.0.0.1:5673/%2F"
durable = pika.BasicProperties(delivery_mode=2)

with pika.BlockingConnection(pika.URLParameters(address)) as connection:
    ordinary = connection.channel()
    ordinary.queue_declare("invoices", durable=True)
    ordinary.queue_declare("parcels", durable=True)

    # An ordinary message: it goes straight to RabbitMQ.
    ordinary.basic_publish("", "parcels", b"order 1: a book", durable)

    # A transaction: both messages arrive, or neither does.
    channel = connection.channel()
    channel.tx_select()
    channel.basic_publish("", "invoices", b"order 2: 30 EUR", durable)
    channel.basic_publish("", "parcels", b"order 2: a lamp", durable)
    channel.tx_commit()

    # Rolled back: neither does.
    channel.basic_publish("", "invoices", b"order 3: 50 EUR", durable)
    channel.basic_publish("", "parcels", b"order 3: a chair", durable)
    channel.tx_rollback()

    # A named transaction, for a database and a queue.
    half = pika.BasicProperties(delivery_mode=2, headers={"x-half-transaction": "order-4"})
    channel.basic_publish("", "parcels", b"order 4: a table", half)
    channel.tx_select()  # the prepare barrier: the message is durable, and nobody sees it
    # Here the database commits. Should this program die now, Halfway asks its
    # checker what became of order 4.
    channel.tx_commit()

    for queue in ("invoices", "parcels"):
        print(queue, ordinary.queue_declare(queue, passive=True).method.message_count)
