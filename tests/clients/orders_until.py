"""The order service of docs/examples/orders, until its first order comes to a certain line: then a signal hits it.

usage: orders_until.py PROGRAM SIGNAL FILE:LINE#TIME ARGUMENT...
       orders_until.py PROGRAM list ARGUMENT...

`PROGRAM` is orders, or producer, which has no endpoint.
`SIGNAL` is KILL or STOP, and strikes before the line runs for the given time: 1 for the first; the head of a `with` runs
once more at its end. `list` lets the order through, and prints each line that it comes to in this form, and its text.
"""

import importlib
import linecache
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

ORDERS = Path(__file__).resolve().parents[2] / "docs/examples/orders"
sys.path.insert(0, str(ORDERS))
sys.dont_write_bytecode = True

import orders  # noqa: E402 the path comes first


def in_place(frame):
    """Whether a frame is part of an order's flow: `place` in orders.py, or called by it."""
    while frame and frame.f_code is not orders.place.__code__:
        frame = frame.f_back
    return frame is not None


def trace(at_line):
    """Has `at_line` called with each line of the example that an order comes to, before it runs."""
    times = Counter()

    def on_line(frame, event, _):
        if event == "line":
            path, number = frame.f_code.co_filename, frame.f_lineno
            place = f"{Path(path).name}:{number}"
            times[place] += 1
            at_line(f"{place}#{times[place]}", linecache.getline(path, number).strip())
        return on_line

    def on_call(frame, *_):
        if Path(frame.f_code.co_filename).parent == ORDERS and in_place(frame):
            return on_line
        return None

    # For the threads to come: each request has one.
    threading.settrace(on_call)


def main():
    program = importlib.import_module(sys.argv[1])
    if sys.argv[2] == "list":
        trace(lambda line, text: print("line", line, text, flush=True))
        return program.main(sys.argv[3:])
    number, wanted = signal.Signals["SIG" + sys.argv[2]], sys.argv[3]

    def strike(line, _):
        if line == wanted:
            # At this thread: one that is sent to the process strikes any, and this one might go on for some lines.
            signal.pthread_kill(threading.get_ident(), number)

    trace(strike)
    return program.main(sys.argv[4:])


if __name__ == "__main__":
    main()
