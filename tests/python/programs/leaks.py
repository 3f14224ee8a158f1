"""Clients that come and go."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import psutil

import dejq
from dejq import Client, Job, PendingJob
from python.programs.scenario import ended, main, put, say, until

CYCLES = 500
SETTLED = 100
# What 400 further cycles may add. One thread's stack, or one client in each cycle, would be far more.
MOST_BYTES = 3 * 1024 * 1024


def cycles_of_plain_handlers() -> None:
    _cycles(is_async=False)


def cycles_of_coroutines() -> None:
    _cycles(is_async=True)


def _cycles(is_async: bool) -> None:
    process = psutil.Process()
    samples = []
    for cycle in range(1, CYCLES + 1):
        _cycle(is_async)
        if cycle in (SETTLED, CYCLES):
            gc.collect()
            samples.append(
                {
                    "threads": process.num_threads(),
                    "descriptors": process.num_fds(),
                    "bytes": process.memory_info().rss,
                    "objects": len(gc.get_objects()),
                }
            )
    settled, last = samples
    say(f"{settled} {last}")
    assert last["threads"] <= settled["threads"]
    assert last["descriptors"] <= settled["descriptors"]
    assert last["objects"] <= settled["objects"] + 100
    assert last["bytes"] <= settled["bytes"] + MOST_BYTES, last["bytes"] - settled["bytes"]


def _cycle(is_async: bool) -> None:
    """One client with all that it may leave behind: its handlers refer to it, and its queue has a name."""
    client = dejq.memory("cycle", workers=2)
    ballast = bytearray(50_000)

    def plain(job: Job) -> None:
        assert client.store
        assert ballast

    async def coroutine(job: Job) -> None:
        assert client.store
        assert ballast
        await asyncio.sleep(0)

    def fail(job: Job) -> None:
        raise ValueError(client.store)

    client.register_handler("job", coroutine if is_async else plain)
    client.register_handler("fail", fail)
    client.dequeue_loop()
    client.enqueue_many([PendingJob("job"), PendingJob("fail")])
    until(lambda: not (client.stats().enqueued_jobs or client.stats().running))
    client.stop()


def clients_go_away() -> None:
    """One that was never started, or was stopped, goes when nobody refers to it, whatever its handlers refer to."""

    def make(handlers: bool, start: bool) -> weakref.ref[Client]:
        client = dejq.memory(workers=1)

        def handler(job: Job) -> None:
            assert client

        async def coroutine(job: Job) -> None:
            assert client

        if handlers:
            client.register_handler("job", handler)
            client.register_handler("coroutine", coroutine)
        put(client)
        if start:
            client.dequeue_loop()
            until(lambda: client.stats().finished)
            client.stop()
        return weakref.ref(client)

    for handlers, start in ((False, False), (True, False), (True, True)):
        gone = make(handlers, start)
        gc.collect()
        assert gone() is None, (handlers, start)


def a_running_client_stays() -> None:
    """A worker that nobody has stopped goes on when nobody refers to its client: its jobs would be lost otherwise."""
    entered, leave = threading.Event(), threading.Event()

    def make() -> weakref.ref[Client]:
        client = dejq.memory("stays", workers=1)

        def handler(job: Job) -> None:
            entered.set()
            leave.wait()

        client.register_handler("job", handler)
        client.dequeue_loop()
        return weakref.ref(client)

    client = make()
    gc.collect()
    id = put(dejq.memory("stays"))
    assert entered.wait(10)
    gc.collect()
    leave.set()
    assert ended(dejq.memory("stays"), id).state == "finished"
    still = client()
    assert still is not None
    still.stop()
    del still
    gc.collect()
    assert client() is None


def jobs_go_away() -> None:
    """What a handler keeps of a job, or an exception of it, does not keep the client or the store."""
    kept: list[Any] = []

    def make() -> weakref.ref[Client]:
        client = dejq.memory(workers=1)
        client.register_handler("job", kept.append)
        client.dequeue_loop()
        put(client, body={"a": 1})
        until(lambda: client.stats().finished)
        client.stop()
        return weakref.ref(client)

    gone = make()
    gc.collect()
    assert gone() is None
    job = kept[0]
    assert (job.body, job.attempt, job.cancelled) == ({"a": 1}, 1, False)


if __name__ == "__main__":
    main(globals())
