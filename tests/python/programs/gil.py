"""Handlers that keep the interpreter to themselves."""

from __future__ import annotations

import ctypes
import json
import threading
import time
from itertools import pairwise

import dejq
from dejq import Job, PendingJob
from python.programs.scenario import counted, ended, main, put, say, until

HEARTBEAT = 5 / 3
HELD_SECONDS = 15
# Calls C code without letting go of the interpreter.
libc = ctypes.PyDLL(None)


def hold_in_a_plain_handler() -> None:
    _hold(is_async=False)


def hold_in_a_coroutine() -> None:
    _hold(is_async=True)


def _hold(is_async: bool) -> None:
    """Prints what happened while nothing else in this process could run Python code."""
    clients = [dejq.memory("gil", workers=1, heartbeat=HEARTBEAT, max_rescues=0) for _ in range(2)]
    runs: list[int] = []
    during: list[dict[str, int]] = []

    def hold(job: Job) -> None:
        runs.append(job.attempt)
        during.append(counted(*clients))
        libc.sleep(HELD_SECONDS)
        during.append(counted(*clients))

    async def hold_in_loop(job: Job) -> None:
        hold(job)

    for client in clients:
        client.register_handler("hold", hold_in_loop if is_async else hold)
        client.dequeue_loop()
    # The control: a heartbeat as it would be in Python.
    over = threading.Event()
    beats = [time.monotonic()]

    def beat() -> None:
        while not over.wait(HEARTBEAT):
            beats.append(time.monotonic())

    control = threading.Thread(target=beat)
    control.start()
    began = time.monotonic()
    id = put(clients[0], "hold")
    job = ended(clients[0], id, 2 * HELD_SECONDS)
    held = time.monotonic() - began
    # A rescue that had been on its way would show by now.
    until(lambda: counted(*clients)["beats"] >= during[1]["beats"] + 2)
    over.set()
    control.join()
    beats.append(time.monotonic())
    for client in clients:
        client.stop()
    before, after = during
    say(
        json.dumps(
            {
                "held": held,
                "lease": 3 * HEARTBEAT,
                "python_gap": max(later - earlier for earlier, later in pairwise(beats)),
                "beats": after["beats"] - before["beats"],
                "extended": after["extended"] - before["extended"],
                "runs": runs,
                "state": job.state,
                "rescues": job.rescues,
                "counted": counted(*clients),
            }
        )
    )


def enqueue_in_a_crowd() -> None:
    """Enqueues, handlers and the stop make progress while other threads compute all the time."""
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(1_000))

    crowd = [threading.Thread(target=compute) for _ in range(4)]
    for thread in crowd:
        thread.start()
    client = dejq.memory(workers=2, heartbeat=0.2, keep_finished=100_000)
    seen: list[str] = []
    client.register_handler("job", lambda job: seen.append(job.id))
    client.dequeue_loop()
    producers_ids: list[list[str]] = [[] for _ in range(4)]

    def produce(ids: list[str]) -> None:
        for _ in range(50):
            ids += client.enqueue(PendingJob("job"))

    producers = [threading.Thread(target=produce, args=(ids,)) for ids in producers_ids]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    until(lambda: client.stats().finished == 200)
    counts = counted(client)
    client.stop()
    over.set()
    for thread in crowd:
        thread.join()
    assert sorted(seen) == sorted(id for ids in producers_ids for id in ids)
    assert counts["beats"] > 0
    assert counts["lost"] == counts["rescued"] == 0


def coroutines_next_to_a_held_interpreter() -> None:
    """The waker of the loop needs no interpreter: jobs come in while a plain handler holds it, and run afterwards."""
    client = dejq.memory(workers=1)
    ran: list[str] = []

    async def coroutine(job: Job) -> None:
        ran.append(job.id)

    client.register_handler("hold", lambda job: libc.usleep(300_000))
    client.register_handler("coroutine", coroutine)
    client.dequeue_loop()
    for _ in range(3):
        put(client, "hold")
        client.enqueue_many([PendingJob("coroutine") for _ in range(50)])
    until(lambda: client.stats().finished == 153)
    client.stop()
    assert len(ran) == 150


if __name__ == "__main__":
    main(globals())
