"""What a Python service does with RabbitMQ, printed as lines that must be the same directly and through the proxy.

usage: pika_program.py PORT
"""

import sys
import time

import pika

port = int(sys.argv[1])
parameters = pika.ConnectionParameters("127.0.0.1", port, heartbeat=2, client_properties={"connection_name": "pika"})


def say(*words):
    print(*words, flush=True)


def without_half_id(headers):
    return {key: value for key, value in (headers or {}).items() if not key.startswith("x-half-")}


connection = pika.BlockingConnection(parameters)
say("connected", connection.is_open, connection.basic_nack_supported, connection.publisher_confirms_supported)

# Publisher confirms, mandatory returns, nacks.
channel = connection.channel()
queue = channel.queue_declare("pika-queue", durable=True).method.queue
channel.queue_purge(queue)
channel.exchange_declare("pika-topic", "topic", durable=True)
channel.queue_bind(queue, "pika-topic", "orders.#")
channel.confirm_delivery()
properties = pika.BasicProperties(
    content_type="text/plain",
    content_encoding="utf-8",
    headers={"text": "ä", "number": 7, "list": [1, "two", None], "table": {"deep": True}},
    delivery_mode=2,
    priority=3,
    correlation_id="correlation",
    reply_to="somebody",
    expiration="60000",
    message_id="message",
    timestamp=1700000000,
    type="kind",
    app_id="pika",
)
channel.basic_publish("pika-topic", "orders.new", b"confirmed", properties, mandatory=True)
try:
    channel.basic_publish("", "pika-nowhere", b"returned", mandatory=True)
except pika.exceptions.UnroutableError as error:
    say("returned", error.messages[0].method.reply_text, error.messages[0].body)
method, got, body = channel.basic_get(queue)
say("got", method.routing_key, method.redelivered, body, got)
channel.basic_nack(method.delivery_tag, requeue=True)
method, got, body = channel.basic_get(queue)
say("again", method.redelivered, body)
channel.basic_ack(method.delivery_tag)

# A consumer, with prefetch.
for number in range(20):
    channel.basic_publish("", queue, str(number).encode())
channel.basic_qos(prefetch_count=5)
seen = []
for method, got, body in channel.consume(queue, inactivity_timeout=10):
    if method is None:
        break
    seen.append(int(body))
    channel.basic_ack(method.delivery_tag)
    if len(seen) == 20:
        break
say("consumed", seen, channel.cancel())

# Large bodies.
large = bytes(range(256)) * 20000
channel.basic_publish("", queue, large)
say("large", channel.basic_get(queue, auto_ack=True)[2] == large)
channel.basic_publish("", queue, b"")
say("empty", channel.basic_get(queue, auto_ack=True)[2])

# Errors.
try:
    channel.queue_declare("pika-missing", passive=True)
except pika.exceptions.ChannelClosedByBroker as error:
    say("closed", error.reply_code, error.reply_text)

# Transactions.
channel = connection.channel()
reader = connection.channel()
channel.tx_select()
channel.basic_publish("", queue, b"committed", properties)
say("before the commit", reader.basic_get(queue)[0])
channel.tx_commit()
method, got, body = reader.basic_get(queue, auto_ack=True)
got.headers = without_half_id(got.headers)
say("after the commit", body, got)
channel.basic_publish("", queue, b"rolled back")
channel.tx_rollback()
channel.basic_publish("pika-topic", "orders.tx", b"second")
channel.tx_commit()
say("after the rollback", reader.basic_get(queue, auto_ack=True)[2], reader.basic_get(queue)[0])
returned = []
channel.add_on_return_callback(lambda *message: returned.append((message[1].reply_code, message[3])))
channel.basic_publish("", "pika-nowhere", b"unroutable", mandatory=True)
channel.tx_commit()
connection.process_data_events(time_limit=0.2)
say("returned", returned)
try:
    channel.basic_publish("pika-no-exchange", "key", b"refused")
    channel.tx_commit()
except pika.exceptions.ChannelClosedByBroker as error:
    say("refused", error.reply_code, error.reply_text)

# Idle over several heartbeats.
connection.sleep(5)
say("alive", connection.is_open)

# Exclusive, server-named; secrets; the end.
channel = connection.channel()
name = channel.queue_declare("", exclusive=True).method.queue
say("exclusive", name.startswith("amq.gen-"))
connection.update_secret("guest", "a test")
channel.queue_delete(queue)
channel.exchange_delete("pika-topic")
connection.close()
try:
    pika.BlockingConnection(
        pika.ConnectionParameters("127.0.0.1", port, credentials=pika.PlainCredentials("guest", "wrong"))
    )
except pika.exceptions.ProbableAuthenticationError as error:
    say("refused", error)
try:
    pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port, virtual_host="nowhere"))
except pika.exceptions.ProbableAccessDeniedError as error:
    say("refused", error)
