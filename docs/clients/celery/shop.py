"""The tasks of a shop, and how they are sent. A worker runs them:

    export AMQP_URL=amqp://app:app@127.0.0.1:5673/%2F
    celery --app shop worker --queues invoices,parcels
"""

import os

from celery import Celery

address = os.environ.get("AMQP_URL", "amqp://app:app@127.0.0.1:5673/%2F")
app = Celery("shop", broker=address)
# A task counts as sent when it is confirmed: a half message, when it is durable.
app.conf.broker_transport_options = {"confirm_publish": True}
app.conf.task_routes = {"shop.invoice": "invoices", "shop.pack": "parcels"}
app.conf.task_ignore_result = True


@app.task
def invoice(order, amount):
    print(f"{order}: {amount}", flush=True)


@app.task
def pack(order, item):
    print(f"{order}: {item}", flush=True)
