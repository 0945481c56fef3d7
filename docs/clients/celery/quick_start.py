"""Orders as tasks: ordinary, half, and in transactions.

usage: AMQP_URL=amqp://USER:PASSWORD@HOST:PORT/VHOST python quick_start.py
"""

import kombu

from shop import app, invoice, pack

# An ordinary task: it goes straight to RabbitMQ.
pack.delay("order 1", "a book")

# A named transaction, for a database and tasks: the tasks of one name are run together,
# or not at all.
half = {"x-half-transaction": "order-4"}
invoice.apply_async(("order 4", "90 EUR"), headers=half)
pack.apply_async(("order 4", "a table"), headers=half)
# The tasks are durable, and no worker sees them. Here the database commits. Should this
# program die now, Halfway asks its checker what became of order 4.
with app.producer_pool.acquire(block=True) as producer:
    producer.publish(b"", exchange="halfway", routing_key="commit", headers=half)

# A transaction without a name needs a connection without confirms.
with kombu.Connection(app.conf.broker_url) as connection:
    channel = connection.channel()
    channel.tx_select()
    producer = app.amqp.Producer(channel)
    invoice.apply_async(("order 2", "30 EUR"), producer=producer)
    pack.apply_async(("order 2", "a lamp"), producer=producer)
    channel.tx_commit()  # both are run

    invoice.apply_async(("order 3", "50 EUR"), producer=producer)
    pack.apply_async(("order 3", "a chair"), producer=producer)
    channel.tx_rollback()  # neither is
