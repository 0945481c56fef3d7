"""The client's side of the demonstration: an ordinary pika program that knows nothing of Halfway but its port.

usage: demo.py STEP PORT USER PASSWORD
"""

import sys
import time

import pika

QUEUE = "halfway-demo"
PLAIN = ["an ordinary message"]
COMMITTED = ["committed 1", "committed 2"]
ROLLED_BACK = ["rolled back"]
PARKED = ["parked 1", "parked 2", "parked 3"]


def say(text):
    print(f"   {text}", flush=True)


def connect(port, user, password):
    credentials = pika.PlainCredentials(user, password)
    return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port, credentials=credentials))


def publish(channel, bodies):
    persistent = pika.BasicProperties(delivery_mode=2)
    for body in bodies:
        channel.basic_publish("", QUEUE, body.encode(), persistent)


def first(connection):
    channel = connection.channel()
    channel.queue_delete(QUEUE)
    channel.queue_declare(QUEUE, durable=True)
    say(f"Declared the durable queue {QUEUE}.")
    publish(channel, PLAIN)
    say(f"Published outside of any transaction: {PLAIN}.")
    channel = connection.channel()
    channel.tx_select()
    publish(channel, COMMITTED)
    channel.tx_commit()
    say(f"Published in a transaction and committed: {COMMITTED}.")
    publish(channel, ROLLED_BACK)
    channel.tx_rollback()
    say(f"Published in a transaction and rolled back: {ROLLED_BACK}.")


def parked(connection):
    channel = connection.channel()
    before = channel.queue_declare(QUEUE, passive=True).method.message_count
    channel.tx_select()
    publish(channel, PARKED)
    begin = time.monotonic()
    channel.tx_commit()
    say(f"Committed {PARKED}; the commit succeeded after {time.monotonic() - begin:.2f} seconds.")
    after = channel.queue_declare(QUEUE, passive=True).method.message_count
    if after != before:
        raise SystemExit(f"the queue should still hold {before} messages, and holds {after}")
    say(f"The queue still holds only the {after} messages of before: the new ones are parked in Halfway's store.")


def arrive(connection):
    wanted = PLAIN + COMMITTED + PARKED
    channel = connection.channel()
    got = []
    # Every message has arrived when none came for two seconds; give up on missing ones after thirty.
    begin = last = time.monotonic()
    while time.monotonic() < (last + 2 if set(wanted) <= set(got) else begin + 30):
        method, properties, body = channel.basic_get(QUEUE, auto_ack=True)
        if method is None:
            time.sleep(0.05)
            continue
        last = time.monotonic()
        text = body.decode()
        half_id = (properties.headers or {}).get("x-half-id", "none, it was never parked")
        say(f"Received {text!r} (x-half-id: {half_id}).")
        if text not in got:  # after a crash a message can come twice, with the same x-half-id
            got.append(text)
    if got != wanted:
        raise SystemExit(f"expected {wanted}, received {got}")
    say("Every committed message has arrived, in order, and the rolled-back one never did.")
    channel.queue_delete(QUEUE)


if __name__ == "__main__":
    step, port, user, password = sys.argv[1:]
    with connect(int(port), user, password) as opened:
        {"first": first, "parked": parked, "arrive": arrive}[step](opened)
