"""What the Redis store can do on this machine: server and one worker process on the same cores.

    python benches/redis_store.py                         everything, about ten minutes
    python benches/redis_store.py drain idle              some of it
    python benches/redis_store.py --json FILE …           keep the figures

Servers of its own are started by tests/servers.py; DEJQ_TEST_SERVERS chooses which (wheel: Valkey, system: Redis).
Beside each rate stands the ceiling of the same server in the same run: the least that a queue in Lua must do, from one
Python client with hiredis. It prints and never judges; the machine's noise is in every line, so believe the ratios.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

import dejq

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import servers
import store
from store import BODY, RUNS, Figures

JOB_BYTES = 120


class Bench(store.Bench):
    """One server."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        # FLUSHALL of millions of jobs takes its time.
        self.redis = redis.Redis.from_url(url, socket_timeout=None)

    def fresh(self) -> None:
        self.redis.flushall()

    def info(self, section: str) -> dict[str, Any]:
        found: dict[str, Any] = self.redis.info(section)
        return found

    @contextmanager
    def counted(self, jobs: int) -> Iterator[Figures]:
        """Commands that clients sent, commands with those inside scripts, and the server's CPU, per job."""

        def now() -> tuple[int, int, float]:
            cpu = self.info("cpu")
            sent = sum(
                entry["calls"]
                for name, entry in self.info("commandstats").items()
                if name.removeprefix("cmdstat_") in ("evalsha", "blpop", "script|load", "hsetnx", "info", "hget")
            )
            return sent, self.info("stats")["total_commands_processed"], cpu["used_cpu_user"] + cpu["used_cpu_sys"]

        figures: Figures = {}
        before = now()
        yield figures
        sent, processed, cpu = (after - first for after, first in zip(now(), before, strict=True))
        figures["calls per job"] = round(sent / jobs, 4)
        figures["commands per job, with those in scripts"] = round(processed / jobs, 3)
        figures["server CPU per job, µs"] = round(cpu / jobs * 1e6, 2)


# ---- ceiling -------------------------------------------------------------------------------------------------

CLAIM = """
local ids = redis.call('LPOP', KEYS[1], ARGV[1])
if not ids then return {} end
local bodies, leases = redis.call('HMGET', KEYS[2], unpack(ids)), {}
for j, id in ipairs(ids) do
  leases[2 * j - 1] = id
  leases[2 * j] = ARGV[2]
end
redis.call('HSET', KEYS[3], unpack(leases))
return { ids, bodies }
"""
DONE = """
redis.call('HDEL', KEYS[3], unpack(ARGV))
redis.call('HDEL', KEYS[2], unpack(ARGV))
return #ARGV
"""
KEYS = ("raw:line", "raw:job", "raw:lease")


def raw_drain(bench: Bench, batch: int, jobs: int, drained: int | None = None) -> float:
    """Claim and delete by hand, all jobs or so many of them: a list, a hash of bodies, a hash of leases."""
    bench.fresh()
    body = json.dumps(BODY)
    for first in range(0, jobs, 2000):
        ids = [f"{n:016d}" for n in range(first, first + 2000)]
        bench.redis.hset(KEYS[1], mapping=dict.fromkeys(ids, body))
        bench.redis.rpush(KEYS[0], *ids)
    claim, done = bench.redis.register_script(CLAIM), bench.redis.register_script(DONE)
    drained = drained or jobs
    start, left = time.perf_counter(), drained
    while left > 0:
        ids, _ = claim(keys=KEYS, args=[batch, "token"])
        left -= done(keys=KEYS, args=ids)
    return drained / (time.perf_counter() - start)


# ---- figures -------------------------------------------------------------------------------------------------


def drain(bench: Bench) -> None:
    jobs = 300_000
    rates, ceilings, costs = [], [], []
    for _ in range(RUNS):
        ceilings.append(max(raw_drain(bench, batch, jobs) for batch in (100, 500, 1000)))
        bench.fresh()
        with bench.counted(jobs) as cost:
            bench.fill(jobs)
            rates.append(bench.drain(jobs))
        costs.append(cost)
    rate, ceiling = statistics.median(rates), statistics.median(ceilings)
    bench.show("drain, jobs/s", rate, f"{rate / ceiling:.2f} of claim and delete by hand ({ceiling:,.0f})")
    for name, value in costs[-1].items():
        bench.show(name, value, "enqueue included")
    bench.fresh()
    bench.fill(jobs)
    bench.show("drain without the start of the process, jobs/s", bench.drain(jobs, after=20_000))


def everysec(bench: Bench) -> None:
    """The drain with an append-only file, synced every second."""
    jobs = 300_000
    with servers.redis(own=True, durable=True) as server:
        durable = Bench(server.url)
        rates = []
        for _ in range(RUNS):
            durable.fresh()
            durable.fill(jobs)
            rates.append(durable.drain(jobs))
        bench.show("drain with appendfsync everysec, jobs/s", statistics.median(rates))


def pings(bench: Bench) -> float:
    """What a call of redis-py takes at least: the way to the server and back."""
    start = time.perf_counter()
    for _ in range(10_000):
        bench.redis.ping()
    return 10_000 / (time.perf_counter() - start)


def enqueue(bench: Bench) -> None:
    bench.show("PING of redis-py, calls/s", store.median(lambda: pings(bench)))
    bench.show("enqueue_many, jobs/s", store.median(lambda: store.bulk(bench, 300_000)))
    bench.fresh()
    bench.show("1 thread, single enqueues/s", store.median(lambda: store.threads(bench, 1, 10_000)))
    bench.fresh()
    bench.show("64 threads, single enqueues/s", store.median(lambda: store.threads(bench, 64, 2_000)))
    bench.fresh()
    bench.show("64 asyncio tasks, single enqueues/s", store.median(lambda: store.tasks(bench, 64, 2_000)))


def idle(bench: Bench) -> None:
    """What a worker costs that has nothing to do."""
    bench.fresh()
    client = bench.client()
    client.register_handler("bench0", lambda job: None)
    client.dequeue_loop()
    time.sleep(3)
    used = time.process_time()
    with bench.counted(30) as cost:
        time.sleep(30)
    bench.show("idle worker, calls/s", cost["calls per job"])
    bench.show("idle worker, server CPU µs/s", cost["server CPU per job, µs"])
    bench.show("idle worker, CPU %", round((time.process_time() - used) / 30 * 100, 2))
    client.stop()


def memory(bench: Bench) -> None:
    """Bytes that the server needs for a waiting job whose type and body have 120 bytes."""
    jobs = 1_000_000
    bench.fresh()
    kind = dejq.PendingJob("bench0", "x" * (JOB_BYTES - len("bench0") - 2))
    client = bench.client()
    client.enqueue(dejq.PendingJob("other"))
    before = bench.info("memory")["used_memory"]
    for _ in range(0, jobs, 50_000):
        client.enqueue_many([kind] * 50_000)
    bench.show("bytes per waiting job of 120", round((bench.info("memory")["used_memory"] - before) / jobs, 1))


def beats(bench: Bench) -> None:
    """One beat of a worker that holds 10,000 jobs, as the server sees it."""
    bench.fresh()
    bench.fill(10_000)
    release = threading.Event()

    async def hold(job: dejq.Job) -> None:
        while not release.is_set():
            await asyncio.sleep(0.1)

    client = bench.client(async_workers=10_000, heartbeat=1)
    client.register_handler("bench0", hold)
    client.dequeue_loop()
    while (client.stats().running or 0) < 10_000:
        time.sleep(0.1)
    bench.redis.config_resetstat()
    bench.redis.config_set("slowlog-log-slower-than", 0)
    bench.redis.slowlog_reset()
    time.sleep(5)
    longest = max((entry["duration"] for entry in bench.redis.slowlog_get(1000)), default=0)
    bench.show("a beat for 10,000 running jobs, ms", round(longest / 1000, 1), "the longest call while they run")
    release.set()
    client.stop()


def audit(bench: Bench) -> None:
    """An audit of waiting jobs, and the longest time for which the server did nothing else."""
    jobs = 1_000_000
    bench.fresh()
    bench.fill(jobs)
    client = bench.client()
    client.check()
    bench.redis.config_set("slowlog-log-slower-than", 1000)
    bench.redis.slowlog_reset()
    start = time.perf_counter()
    (finding,) = client.audit()
    bench.show("audit, jobs/s", jobs / (time.perf_counter() - start), finding.text)
    longest = max((entry["duration"] for entry in bench.redis.slowlog_get(10_000)), default=0)
    bench.show("audit, ms of the longest call", round(longest / 1000, 1))


def backlog(bench: Bench) -> None:
    """So many jobs make Redis itself slower, by hand as well: it still moves its hash of jobs into a larger table."""
    jobs, drained = 10_000_000, 1_000_000
    store.backlog(bench, jobs, drained)
    small = statistics.median(raw_drain(bench, 1000, 300_000) for _ in range(RUNS))
    rate = raw_drain(bench, 1000, jobs, drained)
    bench.show("the same by hand, jobs/s", rate, f"{rate / small:.2f} of the rate at 300,000 ({small:,.0f})")


FIGURES: dict[str, Callable[[Bench], None]] = {
    "drain": drain,
    "everysec": everysec,
    "enqueue": enqueue,
    "latency": store.latency,
    "idle": idle,
    "memory": memory,
    "types": store.types,
    "beats": beats,
    "audit": audit,
    "backlog": backlog,
}


if __name__ == "__main__":
    store.main(__doc__, FIGURES, servers.redis(own=True), lambda server: Bench(server.url))
