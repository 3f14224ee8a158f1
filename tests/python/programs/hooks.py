"""Forks in a process where another library has hooks of its own before each fork."""

from __future__ import annotations

import os
import threading
import time

# Hooks before a fork run latest first, so this one would run between one of dejq's and the fork.
os.register_at_fork(before=lambda: time.sleep(0.01))

import dejq  # noqa: E402  (after the hook, which is the point)
from python.programs.forks import in_child, ready  # noqa: E402  (they import dejq)
from python.programs.scenario import main, put, works  # noqa: E402  (as above)


def slow_hook() -> None:
    """While it sleeps, other threads run and write to the log."""
    dejq.set_verbosity(1)
    client = ready()
    over = threading.Event()

    def produce() -> None:
        while not over.is_set():
            put(client)

    producer = threading.Thread(target=produce)
    producer.start()
    for _ in range(10):
        in_child(lambda: works(dejq.memory()))
    over.set()
    producer.join()


if __name__ == "__main__":
    main(globals())
