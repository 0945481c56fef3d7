"""The worker of docs/examples/pipeline, until its work comes to the n-th line since it was started: then it is killed.

usage: pipeline_until.py N ARGUMENT...
       pipeline_until.py lines ARGUMENT...

`lines` lets it go on, and prints each line that it comes to.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs/examples/pipeline"))
sys.dont_write_bytecode = True

import worker  # noqa: E402 the path comes first


def main():
    last = None if sys.argv[1] == "lines" else int(sys.argv[1])
    count = 0

    def on_line(frame, event, _):
        nonlocal count
        if event == "line":
            count += 1
            if last is None:
                print("line", frame.f_lineno, flush=True)
            elif count == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    sys.settrace(lambda frame, *_: on_line if frame.f_code is worker.work.__code__ else None)
    worker.main(sys.argv[2:])


main()
