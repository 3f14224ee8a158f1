"""Workers of a PostgreSQL queue that a test kills, stops or lets hold the interpreter."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import threading
import time
from pathlib import Path

import dejq
from dejq import Job, PendingJob
from python.programs.scenario import main, say

# Calls C code without letting go of the interpreter.
libc = ctypes.PyDLL(None)
# For waits that go on under libfaketime, on which time.sleep fails.
pause = threading.Event()


def work(url: str, folder: str, *types: str) -> None:
    """Works jobs of these types until SIGTERM; then says what it counted."""
    client = dejq.connect(url, workers=1)
    handlers = {
        "held": lambda job: held(job, Path(folder) / job.id),
        "deadly": deadly,
        "gil": gil,
        "relay": lambda job: relay(client, job),
    }
    for type in types:
        client.register_handler(type, handlers[type])
    say(f"clock {time.time()}")
    client.run()
    say(json.dumps(client._native.counted()))


def held(job: Job, leave: Path) -> None:
    """Runs until the file is there."""
    say(f"started {job.id}")
    while not leave.exists():
        pause.wait(0.002)
    say(f"{'cancelled' if job.cancelled else 'returned'} {job.id}")


def deadly(job: Job) -> None:
    """Ends its worker."""
    say(f"started {job.id}")
    os.kill(os.getpid(), signal.SIGKILL)


def gil(job: Job) -> None:
    """Lets no other thread run Python code for as many seconds as the body says."""
    say(f"started {job.id}")
    libc.sleep(job.body)
    say(f"{'cancelled' if job.cancelled else 'returned'} {job.id}")


def relay(client: dejq.Client, job: Job) -> None:
    """Enqueues the job that the body describes."""
    body = job.body
    client.enqueue(PendingJob(body["type"], body["body"], delay=body["delay"]))


if __name__ == "__main__":
    main(globals())
