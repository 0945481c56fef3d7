"""The tasks of a shop, and how they are sent. A worker runs them:

    AMQP_URL=amqp://app:app@127.0.0.1:5673/%2F celery --app shop worker --queues invoices,parcels
"""

import os

from celery import Celery

app = Celery("shop", broker=os.environ.get("AMQP_URL", "amqp://app:app@127.0.0.1:5673/%2F"))
# A task is sent when RabbitMQ has confirmed it; for a half message that is Halfway's word that it is durable.
app.conf.broker_transport_options = {"confirm_publish": True}
app.conf.task_routes = {"shop.invoice": "invoices", "shop.pack": "parcels"}
app.conf.task_ignore_result = True


@app.task
def invoice(order, amount):
    print(f"{order}: {amount}", flush=True)


@app.task
def pack(order, item):
    print(f"{order}: {item}", flush=True)
