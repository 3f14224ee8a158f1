"""What the SQS store can do on this machine: emulator and one worker process on the same cores.

    python benches/sqs.py                         everything, about five minutes, on ministack
    python benches/sqs.py --elasticmq             the same on ElasticMQ, which needs Java and Maven
    python benches/sqs.py drain calls             some of it
    python benches/sqs.py --json FILE …           keep the figures

Beside each rate stands what a bare client gets from the same emulator in the same run: it sends, receives and deletes
by ten, on as many connections, and nothing else. An emulator is far slower than AWS, so rates say little and ratios
something.
Calls are counted by a proxy in between, which is slow: rates are measured without it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import dejq

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import servers
import sqs_api
import sqs_faults
import store
from store import BODY, JOB, RUNS

JOBS = 6_000
# Polls and senders of the bare client, and pollers of dejq.
CONNECTIONS = 2
BATCH = 10
IDLE_SECONDS = 30


class Bench(store.Bench):
    """One emulator, and a queue in it that changes with each measurement."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.place = url
        self.sqs = sqs_api.Sqs(url)
        self.fresh()

    def fresh(self) -> None:
        self.queue = f"bench-{uuid4().hex}.fifo"
        self.url = servers.queue_url(self.place, self.queue) + f"&pollers={CONNECTIONS}"
        self.client().migrate()

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Calls by action, of clients that are made within."""
        url, calls = self.url, Counter[str]()
        with sqs_faults.proxy(self.place) as proxy:
            self.url = servers.queue_url(self.place, self.queue, by=proxy.endpoint) + f"&pollers={CONNECTIONS}"
            yield calls
            calls.update(proxy.calls)
        self.url = url

    def worker(self, jobs: int, after: int) -> tuple[float, float]:
        """Of a worker process: jobs per second, and microseconds of CPU per job; both from the end of so many on."""
        program = [sys.executable, __file__, "--worker", self.url, str(jobs), str(after)]
        rate, cpu = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        return float(rate), float(cpu)


def work(url: str, jobs: int, after: int) -> None:
    """The worker process: drains, prints its rate and its CPU."""
    client = dejq.connect(url, workers=4)
    client.register_handler("bench0", lambda job: None)
    start, cpu, first, finished = time.perf_counter(), time.process_time(), 0, 0
    client.dequeue_loop()
    while finished < jobs:
        time.sleep(0.005)
        finished = client._native.counted()["finished"]
        if first == 0 and after and finished >= after:
            start, cpu, first = time.perf_counter(), time.process_time(), finished
    done = jobs - first
    print(done / (time.perf_counter() - start), (time.process_time() - cpu) / done * 1e6)
    client.stop()


# ---- the bare client -----------------------------------------------------------------------------------------


def together(work: Callable[[sqs_api.Sqs], None], bench: Bench) -> float:
    """Seconds that it takes on all connections."""
    connections = [sqs_api.Sqs(bench.place) for _ in range(CONNECTIONS)]
    threads = [threading.Thread(target=work, args=(each,)) for each in connections]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def bare(bench: Bench, jobs: int, chain: int) -> tuple[float, float]:
    """Messages per second that it sends, and that it receives and deletes; so many of each group."""
    bench.fresh()
    queue, text = bench.sqs.url(bench.queue), json.dumps(BODY)
    left, lock, deleted = list(range(0, jobs, BATCH)), threading.Lock(), 0

    def send(sqs: sqs_api.Sqs) -> None:
        while True:
            with lock:
                if not left:
                    return
                first = left.pop()
            sqs.send(
                queue,
                [
                    sqs_api.entry(
                        str(number),
                        group=f"g{number // chain}",
                        body=text,
                        attributes={"job_type": "bench0", "job_id": str(number), "in_group": str(chain)},
                    )
                    for number in range(first, first + BATCH)
                ],
            )

    def drain(sqs: sqs_api.Sqs) -> None:
        nonlocal deleted
        while deleted < jobs:
            if found := sqs.receive(queue, BATCH, wait=1):
                sqs.delete(queue, found)
                with lock:
                    deleted += len(found)

    return jobs / together(send, bench), jobs / together(drain, bench)


# ---- figures -------------------------------------------------------------------------------------------------


def drain(bench: Bench) -> None:
    """Enqueue and drain, beside the bare client; single jobs, then chains of ten."""
    for chain in (1, 10):
        name = "single jobs" if chain == 1 else f"chains of {chain}"
        sends, drains, cpus, bare_sends, bare_drains = [], [], [], [], []
        for _ in range(RUNS):
            sent, drained = bare(bench, JOBS, chain)
            bare_sends.append(sent)
            bare_drains.append(drained)
            bench.fresh()
            client = bench.client()
            start = time.perf_counter()
            client.enqueue_many([JOB] * JOBS if chain == 1 else [[JOB] * chain] * (JOBS // chain))
            sends.append(JOBS / (time.perf_counter() - start))
            rate, cpu = bench.worker(JOBS, JOBS // 10)
            drains.append(rate)
            cpus.append(cpu)
        send, rate = statistics.median(sends), statistics.median(drains)
        bare_send, bare_rate = statistics.median(bare_sends), statistics.median(bare_drains)
        bench.show(
            f"enqueue_many, {name}, jobs/s", send, f"{send / bare_send:.2f} of the bare client ({bare_send:,.0f})"
        )
        bench.show(f"drain, {name}, jobs/s", rate, f"{rate / bare_rate:.2f} of the bare client ({bare_rate:,.0f})")
        whole, bare_whole = 1 / (1 / send + 1 / rate), 1 / (1 / bare_send + 1 / bare_rate)
        bench.show(f"both, {name}, jobs/s", whole, f"{whole / bare_whole:.2f} of the bare client ({bare_whole:,.0f})")
        bench.show(f"worker CPU per job, {name}, µs", round(statistics.median(cpus), 1))


def calls(bench: Bench) -> None:
    """Calls per job at saturation, enqueue included: the bill."""
    for chain in (1, 10):
        bench.fresh()
        with bench.counted() as count:
            client = bench.client()
            client.enqueue_many([JOB] * 2_000 if chain == 1 else [[JOB] * chain] * (2_000 // chain))
            bench.worker(2_000, 0)
        name = "single jobs" if chain == 1 else f"chains of {chain}"
        note = ", ".join(f"{action} {number}" for action, number in count.most_common())
        bench.show(f"calls per job, {name}", round(count.total() / 2_000, 3), note)


def idle(bench: Bench) -> None:
    """What a worker costs that has nothing to do."""
    bench.fresh()
    with bench.counted() as count:
        client = bench.client()
        client.register_handler("bench0", lambda job: None)
        client.dequeue_loop()
        time.sleep(2)
        used = time.process_time()
        time.sleep(IDLE_SECONDS)
        used = time.process_time() - used
        client.stop()
    polls = count["ReceiveMessage"]
    bench.show(f"idle for {IDLE_SECONDS} s, long polls", polls, f"{CONNECTIONS} pollers")
    others = {action: number for action, number in count.items() if action != "ReceiveMessage"}
    bench.show("idle, other calls, start included", sum(others.values()), str(others))
    # The proxy counts calls in this process, too.
    bench.show("idle, CPU %, proxy included", round(used / IDLE_SECONDS * 100, 2))


def singles(bench: Bench) -> None:
    """Single enqueues: each returns when SQS has confirmed it."""
    bench.fresh()
    bench.show("1 thread, single enqueues/s", store.median(lambda: store.threads(bench, 1, 200)))
    bench.fresh()
    bench.show("64 threads, single enqueues/s", store.median(lambda: store.threads(bench, 64, 30)))
    bench.fresh()
    bench.show("64 asyncio tasks, single enqueues/s", store.median(lambda: store.tasks(bench, 64, 30)))


FIGURES: dict[str, Callable[[Bench], None]] = {
    "drain": drain,
    "calls": calls,
    "singles": singles,
    "latency": store.latency,
    "idle": idle,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        is_elasticmq = "--elasticmq" in sys.argv
        if is_elasticmq:
            sys.argv.remove("--elasticmq")
        os.environ.update(servers.EMULATOR_CREDENTIALS)
        start = servers.elasticmq(own=True) if is_elasticmq else servers.sqs(own=True)
        store.main(__doc__, FIGURES, start, lambda server: Bench(server.url))
