"""What the benches of the stores share: jobs to fill a store with, a worker process that drains it, a table of figures.

A bench of a store says how that is emptied, which figures it has, and what its ceilings are; see postgres.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import dejq

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import servers

BODY = {"n": 1_234_567, "s": "x" * 96}  # 119 bytes as JSON
JOB = dejq.PendingJob("bench0", BODY)
RUNS = 3
PINGS = 500
Figures = dict[str, Any]
B = TypeVar("B", bound="Bench")


class Bench:
    """A store, emptied between measurements."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.figures: Figures = {}

    def client(self, **options: Any) -> dejq.Client:
        return dejq.connect(self.url, workers=1, **options)

    def fresh(self) -> None:
        """Empties the store."""
        raise NotImplementedError

    def filled(self) -> None:
        """Puts the store in order after many jobs came in."""

    def fill(self, jobs: int, types: int = 1) -> None:
        client = self.client()
        kinds = [dejq.PendingJob(f"bench{n}", BODY) for n in range(types)]
        for first in range(0, jobs, 50_000):
            client.enqueue_many([kinds[n % types] for n in range(first, min(first + 50_000, jobs))])
        self.filled()

    def drain(self, jobs: int, types: int = 1, after: int = 0) -> float:
        """Jobs per second of a worker process, from the end of so many (0: its start) to the last confirmed end."""
        program = [sys.executable, __file__, self.url, str(jobs), str(types), str(after)]
        return float(subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout)

    def show(self, name: str, value: float | str, note: str = "") -> None:
        self.figures[name] = value
        shown = f"{value:>12,.0f}" if isinstance(value, float) and value >= 100 else f"{value!s:>12}"
        print(f"{name:<52} {shown}  {note}", flush=True)


def work(url: str, jobs: int, types: int, after: int) -> None:
    """The worker process: drains, prints its rate."""
    client = dejq.connect(url, workers=1)
    for n in range(types):
        client.register_handler(f"bench{n}", lambda job: None)
    start, first, finished = time.perf_counter(), 0, 0
    client.dequeue_loop()
    while finished < jobs:
        time.sleep(0.001)
        finished = client._native.counted()["finished"]
        if first == 0 and after and finished >= after:
            start, first = time.perf_counter(), finished
    print((jobs - first) / (time.perf_counter() - start))
    client.stop()


def median(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(RUNS))


# ---- figures that every store has ----------------------------------------------------------------------------


def bulk(bench: Bench, jobs: int) -> float:
    """Jobs per second of one `enqueue_many`."""
    bench.fresh()
    client, pending = bench.client(), [JOB] * jobs
    start = time.perf_counter()
    client.enqueue_many(pending)
    return jobs / (time.perf_counter() - start)


def threads(bench: Bench, threads: int, each: int) -> float:
    """Jobs per second that so many threads enqueue one by one."""
    client = bench.client()
    client.enqueue(JOB)

    def run() -> None:
        for _ in range(each):
            client.enqueue(JOB)

    enqueuers = [threading.Thread(target=run) for _ in range(threads)]
    start = time.perf_counter()
    for enqueuer in enqueuers:
        enqueuer.start()
    for enqueuer in enqueuers:
        enqueuer.join()
    return threads * each / (time.perf_counter() - start)


def tasks(bench: Bench, tasks: int, each: int) -> float:
    """Jobs per second that so many asyncio tasks enqueue one by one."""

    async def run(client: dejq.Client) -> None:
        for _ in range(each):
            await client.aenqueue(JOB)

    async def run_all() -> float:
        client = bench.client()
        await client.aenqueue(JOB)
        start = time.perf_counter()
        await asyncio.gather(*(run(client) for _ in range(tasks)))
        return tasks * each / (time.perf_counter() - start)

    return asyncio.run(run_all())


def latency(bench: Bench) -> None:
    """From the call of enqueue to the start of the handler, worker idle: in one process, and from another client."""
    for name, apart in (("same client", False), ("another client", True)):
        bench.fresh()
        client = bench.client()
        times = _pings(client, bench.client() if apart else client)
        client.stop()
        bench.show(f"idle latency, {name}, p50 ms", round(times[PINGS // 2], 3))
        bench.show(f"idle latency, {name}, p99 ms", round(times[PINGS * 99 // 100], 3))


def _pings(client: dejq.Client, producer: dejq.Client) -> list[float]:
    started, at = threading.Event(), 0.0

    @client.handler("bench0")
    def handle(job: dejq.Job) -> None:
        nonlocal at
        at = time.perf_counter()
        started.set()

    client.dequeue_loop()
    time.sleep(1.5)
    times = []
    for _ in range(PINGS):
        started.clear()
        start = time.perf_counter()
        producer.enqueue(JOB)
        started.wait()
        times.append((at - start) * 1000)
        time.sleep(0.01)
    return sorted(times)


def types(bench: Bench) -> None:
    """1,000 types and a worker for all of them, beside one type."""
    jobs = 200_000
    one, thousand = [], []
    for _ in range(RUNS):
        bench.fresh()
        bench.fill(jobs)
        one.append(bench.drain(jobs))
        bench.fresh()
        bench.fill(jobs, types=1000)
        thousand.append(bench.drain(jobs, types=1000))
    rate, base = statistics.median(thousand), statistics.median(one)
    bench.show("1,000 types, jobs/s", rate, f"{rate / base:.2f} of one type ({base:,.0f})")


def backlog(bench: Bench, jobs: int, drained: int) -> None:
    """The rate at a backlog of so many, beside that at ten thousand; both without the start of the process."""
    bench.fresh()

    def few() -> float:
        bench.fill(10_000)
        return bench.drain(10_000, after=2_000)

    small = statistics.median(few() for _ in range(7))
    bench.fresh()
    bench.fill(jobs)
    rate = bench.drain(drained, after=2_000)
    bench.show(f"backlog of {jobs:,}, jobs/s", rate, f"{rate / small:.2f} of the rate at 10,000 ({small:,.0f})")
    bench.fresh()


# ---- the program ---------------------------------------------------------------------------------------------


def main(
    doc: str | None,
    figures: Mapping[str, Callable[[B], None]],
    start: AbstractContextManager[servers.Server],
    bench_of: Callable[[servers.Server], B],
) -> None:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", choices=[*figures, []], help="default: all")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    with start as server:
        bench = bench_of(server)
        print(f"{server.version}, {os.cpu_count()} cores, {platform.processor() or platform.machine()}")
        for name in arguments.figures or figures:
            figures[name](bench)
    if arguments.json:
        about = {
            "server": server.version,
            "cores": os.cpu_count(),
            "machine": platform.platform(),
            "python": platform.python_version(),
        }
        arguments.json.write_text(json.dumps({"about": about, "figures": bench.figures}, indent=2) + "\n")


if __name__ == "__main__":
    work(sys.argv[1], *map(int, sys.argv[2:]))
