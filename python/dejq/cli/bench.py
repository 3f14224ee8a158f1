"""``dejq bench``: measures a store."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import dejq
from dejq.cli.flags import JSON, Flag, verb, whole
from dejq.cli.talk import OK, progress, show, show_json

_BENCH_TYPE = "bench:noop"
_BENCH_BATCH = 1_000
_BENCH_CHAIN = 100
_BENCH_PINGS = 500
_BENCH_LOOK_SECONDS = 0.001
# About 120 bytes of JSON, as jobs of the field have.
_BENCH_BODY = {
    "user_id": 123_456,
    "email": "ada@example.org",
    "template": "welcome",
    "tags": ["a", "b"],
    "note": "x" * 24,
}


@verb(
    "dejq bench memory:// -n 50000",
    Flag(
        ("URL",),
        "the store; default memory://",
        in_environment=False,
        default="memory://",
        more={"nargs": "?"},
    ),
    Flag(("-n", "--jobs"), "jobs per line; default 50,000", whole, default=50_000, more={"metavar": "N"}),
    JSON,
)
def bench(given: argparse.Namespace) -> int:
    """Measures a store on this machine.

    Enqueue, drain, chain and idle latency. The jobs are of the type bench:noop and do nothing. DEJQ_URL does
    not count here, so that nobody measures a production store by accident.
    """
    figures: list[dict[str, Any]] = []
    for measure in (_measure_drain, _measure_async, _measure_chain, _measure_latency):
        progress(f"measuring {measure.__name__.removeprefix('_measure_')} …")
        for figure in measure(given.url, given.jobs):
            figures.append(figure)
            if not given.json:
                progress("")
                show(_figure_as_line(**figure))
    progress("")
    if given.json:
        store = dejq.connect(given.url).store
        show_json({"dejq": dejq.__version__, "store": store, "cpus": os.cpu_count(), "figures": figures})
    return OK


_Figures = Iterator[dict[str, Any]]


def _noop(job: dejq.Job) -> None:
    pass


async def _async_noop(job: dejq.Job) -> None:
    pass


def _measure_drain(url: str, jobs: int) -> _Figures:
    with _bench_client(url, _noop) as client:
        single = max(1, jobs // 10)
        began = time.perf_counter()
        for _ in range(single):
            client.enqueue(_bench_job())
        yield _rate("enqueue", "one in a call", single, began)
        yield from _fill(client, jobs - single)
        yield _drained("drain", "def handler", client, jobs)


def _measure_async(url: str, jobs: int) -> _Figures:
    with _bench_client(url, _async_noop) as client:
        list(_fill(client, jobs))
        yield _drained("drain async", "async def handler", client, jobs)


def _measure_chain(url: str, jobs: int) -> _Figures:
    length = min(jobs, _BENCH_CHAIN)
    with _bench_client(url, _noop) as client:
        client.enqueue(*(_bench_job() for _ in range(length)))
        yield _drained("chain", "each after the one before it", client, length)


def _measure_latency(url: str, jobs: int) -> _Figures:
    started: SimpleQueue[float] = SimpleQueue()

    def note(_: dejq.Job) -> None:
        started.put(time.perf_counter())

    took: list[float] = []
    with _bench_client(url, note) as client:
        client.dequeue_loop()
        for _ in range(min(jobs, _BENCH_PINGS)):
            began = time.perf_counter()
            client.enqueue(_bench_job())
            took.append((started.get() - began) * 1000)
            # So that the worker has nothing to do again.
            time.sleep(_BENCH_LOOK_SECONDS)
    took.sort()
    yield {
        "name": "idle latency", "what": "enqueue call to handler start", "jobs": len(took),
        "p50_ms": round(took[len(took) // 2], 3), "p99_ms": round(took[len(took) * 99 // 100], 3),
    }  # fmt: skip


def _bench_client(url: str, handler: dejq.Handler) -> dejq.Client:
    client = dejq.connect(url)
    client.register_handler(_BENCH_TYPE, handler)
    return client


def _bench_job() -> dejq.PendingJob[Any]:
    return dejq.PendingJob(_BENCH_TYPE, _BENCH_BODY)


def _fill(client: dejq.Client, jobs: int) -> _Figures:
    began = time.perf_counter()
    for first in range(0, jobs, _BENCH_BATCH):
        client.enqueue_many(_bench_job() for _ in range(min(_BENCH_BATCH, jobs - first)))
    if jobs:
        yield _rate("enqueue many", f"{_BENCH_BATCH:,} in a call", jobs, began)


def _drained(name: str, what: str, client: dejq.Client, jobs: int) -> dict[str, Any]:
    """Starts the worker; the time ends when the store has the end of every job."""
    began = time.perf_counter()
    client.dequeue_loop()
    while client._native.counted()["finished"] < jobs:
        time.sleep(_BENCH_LOOK_SECONDS)
    return _rate(name, what, jobs, began)


def _rate(name: str, what: str, jobs: int, began: float) -> dict[str, Any]:
    seconds = time.perf_counter() - began
    return {
        "name": name,
        "what": what,
        "jobs": jobs,
        "seconds": round(seconds, 4),
        "per_s": round(jobs / seconds),
    }


def _figure_as_line(name: str, what: str, jobs: int, **figures: float) -> str:
    if "per_s" in figures:
        value = f"{figures['per_s']:>9,} jobs/s"
    else:
        value = f"p50 {figures['p50_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms"
    return f"{name:<13} {value:<28} {jobs:>7,} jobs, {what}"
