"""The same paths as pytest-benchmark cases, to compare one change with another: `make bench`.

python -m pytest benches --benchmark-only --benchmark-save=before
python -m pytest benches --benchmark-only --benchmark-compare
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import dejq
from dejq import testing

BODY = {"n": 1_234_567, "s": "x" * 100}


@pytest.fixture
def client() -> Iterator[dejq.Client]:
    with dejq.memory(workers=1) as queue:
        yield queue


def test_make_a_pending_job(benchmark: BenchmarkFixture) -> None:
    benchmark(dejq.PendingJob, "bench", BODY)


def test_enqueue_one(benchmark: BenchmarkFixture, client: dejq.Client) -> None:
    benchmark(client.enqueue, dejq.PendingJob("bench", BODY))


def test_enqueue_a_chain_of_ten(benchmark: BenchmarkFixture, client: dejq.Client) -> None:
    benchmark(client.enqueue, *[dejq.PendingJob("bench", BODY)] * 10)


def test_enqueue_many_by_a_thousand(benchmark: BenchmarkFixture, client: dejq.Client) -> None:
    benchmark(client.enqueue_many, [dejq.PendingJob("bench", BODY)] * 1000)


def test_call_a_handler_inline(benchmark: BenchmarkFixture, client: dejq.Client) -> None:
    client.register_handler("bench", lambda job: None)
    job = dejq.PendingJob("bench", BODY)

    def one() -> None:
        client.enqueue(job)
        testing.drain(client)

    benchmark(one)


@pytest.mark.parametrize("kind", ["untouched", "decoded", "async"])
def test_a_thousand_jobs_through_the_worker(benchmark: BenchmarkFixture, client: dejq.Client, kind: str) -> None:
    done, seen = threading.Event(), 0

    def untouched(job: dejq.Job) -> None:
        nonlocal seen
        seen += 1
        if seen == 1000:
            done.set()

    def decoded(job: dejq.Job) -> None:
        job.body  # noqa: B018  (decoding is what is measured)
        untouched(job)

    async def looped(job: dejq.Job) -> None:
        untouched(job)

    handlers: dict[str, dejq.Handler] = {"untouched": untouched, "decoded": decoded, "async": looped}
    client.register_handler("bench", handlers[kind])
    client.dequeue_loop()
    jobs = [dejq.PendingJob("bench", BODY)] * 1000

    def thousand() -> None:
        nonlocal seen
        seen = 0
        done.clear()
        client.enqueue_many(jobs)
        done.wait()

    benchmark(thousand)
