"""A main program that works a stream of jobs until a signal comes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path

import dejq
from dejq import ClientStopped, Job, PendingJob, testing
from python.programs.scenario import say, until


def main(folder: str) -> None:
    """Appends ids to files: ``stored`` when enqueued, ``ran`` when run. The last line says what is left."""
    stored = os.open(Path(folder) / "stored", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    ran = os.open(Path(folder) / "ran", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    client = dejq.memory(workers=2)

    @client.handler("plain")
    def plain(job: Job) -> None:
        os.write(ran, f"{job.id}\n".encode())

    @client.handler("coroutine")
    async def coroutine(job: Job) -> None:
        await asyncio.sleep(0.002)
        os.write(ran, f"{job.id}\n".encode())

    def produce() -> None:
        try:
            while True:
                ids = client.enqueue(*[PendingJob(type) for type in ("plain", "plain", "coroutine", "plain")])
                os.write(stored, "".join(f"{id}\n" for id in ids).encode())
                if client.stats().enqueued_jobs > 200:
                    pause.wait(0.002)
        except ClientStopped:
            pass

    pause = threading.Event()
    client.enqueue(PendingJob("plain", delay=3600))
    producer = threading.Thread(target=produce)
    threading.Thread(target=say_when_running, args=(client,)).start()
    producer.start()
    client.run()
    producer.join()
    stats = client.stats()
    left = [job.id for job in testing.enqueued(client)]
    say(json.dumps({"left": left, "running": stats.running, "failed": stats.failed, "finished": stats.finished}))


def say_when_running(client: dejq.Client) -> None:
    until(lambda: client.stats().finished)
    say("running")


if __name__ == "__main__":
    main(sys.argv[1])
