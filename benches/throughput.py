"""End-to-end figures with real Python handlers: one line each, on one core by default.

    python benches/throughput.py [--url memory://] [--jobs 300000] [--all-cores] [--json FILE]

Each figure is the median of several runs in fresh processes. It prints and never judges: compare lines of one
run with each other, not with those of another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import dejq

BODY = {"n": 1_234_567, "s": "x" * 100}  # 123 bytes as JSON
RUNS = 5


def client(url: str, **options: int) -> dejq.Client:
    return dejq.connect(url, **options)


def drain(url: str, jobs: int, kind: str) -> float:
    """Jobs per second from the start of the worker to the last handler call, all enqueued before."""
    queue = client(url, workers=2)
    done, seen = threading.Event(), 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == jobs:
            done.set()

    def untouched(job: dejq.Job) -> None:
        count()

    def decoded(job: dejq.Job) -> None:
        job.body  # noqa: B018  (decoding is what is measured)
        count()

    async def looped(job: dejq.Job) -> None:
        count()

    handlers: dict[str, dejq.Handler] = {"untouched": untouched, "decoded": decoded, "async": looped}
    queue.register_handler("bench", handlers[kind])
    queue.enqueue_many([dejq.PendingJob("bench", BODY)] * jobs)
    start = time.perf_counter()
    queue.dequeue_loop()
    done.wait()
    rate = jobs / (time.perf_counter() - start)
    queue.stop()
    return rate


def chains(url: str, jobs: int) -> float:
    """Jobs per second of chains of 100."""
    queue = client(url, workers=2)
    done, seen = threading.Event(), 0
    total = jobs // 100 * 100

    def step(job: dejq.Job) -> None:
        nonlocal seen
        seen += 1
        if seen == total:
            done.set()

    queue.register_handler("bench", step)
    queue.enqueue_many([[dejq.PendingJob("bench", BODY)] * 100] * (jobs // 100))
    start = time.perf_counter()
    queue.dequeue_loop()
    done.wait()
    rate = total / (time.perf_counter() - start)
    queue.stop()
    return rate


def enqueue_one(url: str, jobs: int) -> float:
    queue, job = client(url), dejq.PendingJob("bench", BODY)
    start = time.perf_counter()
    for _ in range(jobs):
        queue.enqueue(job)
    return jobs / (time.perf_counter() - start)


def enqueue_many(url: str, jobs: int) -> float:
    """In calls of 1,000; the PendingJobs are made in the measured time."""
    queue = client(url)
    start = time.perf_counter()
    for _ in range(jobs // 1000):
        queue.enqueue_many([dejq.PendingJob("bench", BODY) for _ in range(1000)])
    return jobs // 1000 * 1000 / (time.perf_counter() - start)


def latency(url: str, share: float) -> float:
    """Milliseconds from an enqueue on an idle queue to the start of the handler, at this share of all."""
    queue = client(url, workers=2)
    started, at = threading.Event(), 0.0

    def handler(job: dejq.Job) -> None:
        nonlocal at
        at = time.perf_counter()
        started.set()

    queue.register_handler("bench", handler)
    queue.dequeue_loop()
    job, all_ms = dejq.PendingJob("bench", BODY), []
    for _ in range(1_000):
        time.sleep(0.002)
        started.clear()
        begin = time.perf_counter()
        queue.enqueue(job)
        started.wait()
        all_ms.append((at - begin) * 1e3)
    queue.stop()
    return sorted(all_ms)[int(len(all_ms) * share)]


def memory_per_job(url: str, jobs: int) -> float:
    """Bytes of this process per waiting job."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    queue, job = client(url), dejq.PendingJob("bench", BODY)
    before = resident()
    for _ in range(jobs // 1000):
        queue.enqueue_many([job] * 1000)
    return (resident() - before) / jobs


def import_time(url: str) -> float:
    """Milliseconds of `import dejq`, in a process of its own."""
    code = "import time; t = time.perf_counter(); import dejq; print((time.perf_counter() - t) * 1e3)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def scenarios(jobs: int) -> dict[str, tuple[str, Callable[[str], float]]]:
    return {
        "drain, def, body untouched": ("jobs/s", lambda url: drain(url, jobs, "untouched")),
        "drain, def, body decoded": ("jobs/s", lambda url: drain(url, jobs, "decoded")),
        "drain, async def": ("jobs/s", lambda url: drain(url, jobs, "async")),
        "drain, chains of 100": ("jobs/s", lambda url: chains(url, jobs)),
        "enqueue one by one": ("jobs/s", lambda url: enqueue_one(url, jobs)),
        "enqueue_many by 1,000": ("jobs/s", lambda url: enqueue_many(url, jobs)),
        "idle latency p50": ("ms", lambda url: latency(url, 0.50)),
        "idle latency p99": ("ms", lambda url: latency(url, 0.99)),
        "memory per waiting job": ("bytes", lambda url: memory_per_job(url, 1_000_000)),
        "import dejq": ("ms", import_time),
    }


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def machine() -> str:
    try:
        cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        cpu = None
    return f"{cpu[1] if cpu else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="memory://", help="the store to measure (default: memory://)")
    parser.add_argument("--jobs", type=int, default=300_000, help="jobs per run (default: 300,000)")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs per figure (default: {RUNS})")
    parser.add_argument("--all-cores", action="store_true", help="do not pin to one core")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a single run of a single figure, in this process
    given = parser.parse_args()
    if not given.all_cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    every = scenarios(given.jobs)
    if given.one:
        print(every[given.one][1](given.url))
        return

    where = f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}"
    print(f"dejq {dejq.__version__}, {given.url}, {'all cores' if given.all_cores else 'one core'}, {where}")
    figures = {}
    for name, (unit, _) in every.items():
        runs = []
        for _ in range(given.runs):
            # A fresh process each time: no run profits from what an earlier one left in caches and arenas.
            command = [sys.executable, __file__, "--url", given.url, "--jobs", str(given.jobs), "--one", name]
            command += ["--all-cores"] if given.all_cores else []
            runs.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        middle = statistics.median(runs)
        shown = [f"{value:,.0f}" if middle >= 100 else f"{value:.3f}" for value in (middle, min(runs), max(runs))]
        print(f"{name:28} {shown[0]:>12} {unit:7} ({shown[1]} to {shown[2]}, {given.runs} runs)", flush=True)
        figures[name] = {"unit": unit, "median": middle, "runs": runs}
    if given.json:
        about = {"commit": commit(), "machine": machine(), "where": where, "url": given.url}
        given.json.write_text(json.dumps({**about, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
