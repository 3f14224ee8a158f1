"""A worker of an SQS queue that a test kills: it notes in a file what it starts and ends."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import dejq
from dejq import Job
from python.programs.scenario import main, say


def work(url: str, notes: str, workers: str) -> None:
    """Works jobs of the type ``job`` until SIGTERM."""
    client = dejq.connect(url, workers=int(workers))
    # A write to the end of a file comes before or after those of other processes, and survives SIGKILL.
    file = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    pause = threading.Event()

    def note(what: str, job: Job) -> None:
        os.write(file, f"{what} {job.chain_id} {job.position} {job.attempt} {os.getpid()}\n".encode())

    def handle(job: Job) -> None:
        note("start", job)
        pause.wait(job.body)
        note("lost" if job.cancelled else "end", job)

    client.register_handler("job", handle)
    say("ready")
    client.run()


def gone(url: str, notes: str, go: str) -> None:
    """Runs one job until the file ``go`` is there; says whether it was told that the lease is lost."""
    client = dejq.connect(url, workers=1)
    pause = threading.Event()

    def handle(job: Job) -> None:
        say(f"started {job.id}")
        while not Path(go).exists():
            pause.wait(0.002)
        until_told = 0
        while not job.cancelled and until_told < 5_000:
            pause.wait(0.002)
            until_told += 1
        say(f"{'cancelled' if job.cancelled else 'returned'} {job.id}")
        Path(notes).touch()

    client.register_handler("job", handle)
    client.run()


if __name__ == "__main__":
    main(globals())
