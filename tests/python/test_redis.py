"""What the Redis store has for its users: totals, what is kept, names and texts, order, processes."""

from __future__ import annotations

import asyncio
import json
import os
import string
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import redis

import dejq
from dejq import Client, Job, PendingJob, testing
from dejq.cli import main
from python.conftest import SECONDS
from python.programs.harness import Program, passes

if TYPE_CHECKING:
    from python.conftest import Ended, RunAll, Until
    from python.redis_store import RedisClient

pytest_plugins = ["python.redis_store"]

STATES = ("ready", "scheduled", "blocked", "running", "finished", "failed", "cancelled")
# What a queue keeps in any case; a hint for those who wait may be left as well.
LASTING = {"awake", "count", "meta", "place", "total"}
MILLISECOND = timedelta(milliseconds=1)


class Runs:
    """Handlers that note what they run, and by whom."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.by: dict[str, str] = {}

    def of(self, client: Client, *types: str, name: str = "", **options: Any) -> Client:
        def handler(job: Job) -> None:
            self.by[job.id] = name
            self.bodies.append(job.body)

        for type in types:
            client.register_handler(type, handler, **options)
        return client


@pytest.fixture
def runs() -> Runs:
    return Runs()


def address(url: str, queue: str, **options: object) -> str:
    chosen = {"queue": queue, **options}
    return f"{url}{'&' if '?' in url else '?'}{'&'.join(f'{name}={value}' for name, value in chosen.items())}"


def keys_of(server: redis.Redis, queue: str) -> set[str]:
    """Without what all of them begin with."""
    return {key.decode().partition("}:")[2] for key in server.scan_iter(match=f"dejq:{{{queue}}}:*")}


def hash_of(server: redis.Redis, queue: str, name: str) -> dict[str, int]:
    found: dict[bytes, bytes] = server.hgetall(f"dejq:{{{queue}}}:{name}")  # type: ignore[assignment]  # its stubs say that it may be awaited
    return {field.decode(): int(value) for field, value in found.items()}


def is_there(client: Client, id: str) -> bool:
    try:
        return bool(client.get_job(id))
    except dejq.UnknownJob:
        return False


def fail(job: Job) -> None:
    raise ValueError("each time")


# ---- totals ------------------------------------------------------------------------------------------------


def test_totals_of_a_queue_without_a_job_are_zeros(redis_client: RedisClient) -> None:
    totals = redis_client().stats().totals
    assert totals == dejq.Totals(
        jobs=0, chains=0, attempts=0, failures=0, retries=0, rescues=0, duration=timedelta(0),
        mean=None, p50=None, p95=None, p99=None,
    )  # fmt: skip


def test_totals_are_the_sums_of_what_happened(
    redis_url: str, redis_queue: str, redis_client: RedisClient, until: Until, tmp_path: Path
) -> None:
    client = redis_client(heartbeat=0.5, workers=4, backoff=dejq.Backoff(0.01))
    history: list[str] = []

    def work(job: Job) -> None:
        history.append(f"{job.type} begins")
        if job.type == "bad" or (job.body == "flaky" and job.attempt < 3):
            history.append(f"{job.type} fails")
            raise ValueError("as it should")
        if job.type == "polite" and job.attempt == 1:
            history.append("polite fails")
            raise dejq.Retry(after=0.01)

    for type in ("good", "bad", "polite", "deadly"):
        client.register_handler(type, work)
    chains: list[list[PendingJob[Any]]] = [
        [PendingJob("good")] * 3,
        [PendingJob("good"), PendingJob("bad"), PendingJob("good")],
        [PendingJob("good", "flaky", max_attempts=3), PendingJob("polite", max_attempts=2)],
        [PendingJob("good", delay=0.01)],
        [PendingJob("good", unique="one")],
        *([PendingJob("good", number)] for number in range(250)),
    ]
    # A worker that is lost with its job.
    (lost,) = client.enqueue(PendingJob("deadly"))
    with Program(
        "pg_worker", "work", address(redis_url, redis_queue, heartbeat=0.5), str(tmp_path), "deadly"
    ) as worker:
        worker.process.wait()
    for chain in chains:
        client.enqueue(*chain)
    client.enqueue(PendingJob("good", unique="one"))  # stores nothing
    rest = client.enqueue(PendingJob("bad"), PendingJob("good"), PendingJob("good"), on_failure="cancel")
    waiting = client.enqueue_many([PendingJob("unserved") for _ in range(300)])
    client.cancel_job(waiting[0])
    client.finish_job(waiting[1])
    client.dequeue_loop()
    until(lambda: client.stats().enqueued_jobs == 298 and client.stats().running == 0)
    assert client.get_job(lost).rescues == 1
    assert [client.get_job(id).state for id in rest] == ["failed", "cancelled", "cancelled"]

    stats = client.stats()
    totals = stats.totals
    assert totals is not None
    begun = sum(entry.endswith("begins") for entry in history)
    failed = sum(entry.endswith("fails") for entry in history)
    assert (totals.attempts, totals.failures) == (begun, failed)
    assert (begun, failed) == (3 + 3 + 3 + 2 + 1 + 1 + 250 + 1 + 1, 1 + 2 + 1 + 1)
    assert (totals.retries, totals.rescues) == (3, 1)
    assert totals.jobs == sum(map(len, chains)) + 1 + len(rest) + len(waiting)
    assert totals.chains == len(chains) + 1 + 1 + len(waiting)
    # What there is now is what came.
    assert sum(getattr(stats, state) for state in STATES) == totals.jobs


def test_durations_go_from_claim_to_end_and_quantiles_lie_between_their_powers_of_two(
    redis_client: RedisClient, redis_server: redis.Redis, redis_queue: str, until: Until
) -> None:
    client = redis_client(workers=1)
    client.register_handler("short", lambda job: None)
    client.register_handler("long", lambda job: time.sleep(0.05))
    began = time.monotonic()
    client.enqueue_many([PendingJob("long") for _ in range(4)])
    assert testing.drain(client) == 4
    took = timedelta(seconds=time.monotonic() - began)
    totals = client.stats().totals
    assert totals is not None
    assert totals.mean
    assert totals.p50
    assert totals.p95
    assert totals.p99
    # A duration of 50 ms counts as one from 32.8 to 65.5 ms.
    assert 32 * MILLISECOND <= totals.p50 <= totals.p95 <= totals.p99 <= 2 * took
    assert 200 * MILLISECOND <= totals.duration <= 4 * took
    assert abs(totals.mean - totals.duration / 4) <= MILLISECOND

    client.enqueue_many([PendingJob("short") for _ in range(100)])
    assert testing.drain(client) == 100
    sums = hash_of(redis_server, redis_queue, "total")
    assert sum(value for name, value in sums.items() if name.startswith("took ")) == sums["attempts"] == 104
    assert sums["duration"] >= totals.duration / timedelta(microseconds=1)


@pytest.fixture
def given_back(redis_url: str, redis_queue: str) -> list[str]:
    """Ids of jobs of the type ``t`` with bodies from 0 on, which had begun when their worker stopped."""
    begun = threading.Semaphore(0)

    async def endless(job: Job) -> None:
        begun.release()
        await asyncio.Event().wait()

    client = dejq.redis(redis_url, queue=redis_queue, async_workers=3)
    client.register_handler("t", endless)
    ids = client.enqueue_many([PendingJob("t", number) for number in range(3)])
    client.dequeue_loop()
    assert all(begun.acquire(timeout=SECONDS) for _ in ids)
    assert client.stop(timeout=0).given_back == 3
    return ids


def test_what_was_given_back_is_no_attempt(redis_client: RedisClient, given_back: list[str]) -> None:
    client = redis_client()
    totals = client.stats().totals
    assert totals is not None
    assert (totals.attempts, totals.failures, totals.retries, totals.rescues) == (0, 0, 0, 0)
    assert [client.get_job(id).state for id in given_back] == ["ready"] * 3


# ---- counting ----------------------------------------------------------------------------------------------


def test_stats_count_by_type_and_tell_what_has_waited_longest(redis_client: RedisClient, until: Until) -> None:
    client = redis_client()
    client.register_handler("bad", fail)
    client.register_handler("good", lambda job: None)
    client.enqueue(PendingJob("good"), PendingJob("bad"), PendingJob("good"), on_failure="cancel")
    testing.drain(client)
    client.enqueue(PendingJob("other"), PendingJob("good"))
    client.enqueue(PendingJob("good", delay=3600))
    until(lambda: (client.stats().by_type["other"].oldest_ready or timedelta(0)) > 5 * MILLISECOND)
    client.enqueue(PendingJob("late"))
    stats = client.stats()
    found = {name: [getattr(of_type, state) for state in STATES] for name, of_type in stats.by_type.items()}
    assert found == {
        "good": [0, 1, 1, 0, 1, 0, 1],
        "bad": [0, 0, 0, 0, 0, 1, 0],
        "other": [1, 0, 0, 0, 0, 0, 0],
        "late": [1, 0, 0, 0, 0, 0, 0],
    }
    oldest, late = stats.by_type["other"].oldest_ready, stats.by_type["late"].oldest_ready
    assert oldest is not None
    assert late is not None
    assert stats.oldest_ready == oldest > late >= timedelta(0)
    assert stats.by_type["good"].oldest_ready is None


def test_the_oldest_job_is_found_behind_those_that_were_cancelled_or_came_back(redis_client: RedisClient) -> None:
    client = redis_client()
    ids = client.enqueue_many([PendingJob("t", number) for number in range(4)])
    for id in ids[:2]:
        client.cancel_job(id)
    age = client.stats().oldest_ready
    (first, second) = client.list_jobs(state="ready")
    assert age is not None
    client.requeue_job(ids[0])  # at the end of the line
    after = client.stats().oldest_ready
    assert after is not None
    assert after >= age
    runs: list[int] = []
    client.register_handler("t", lambda job: runs.append(job.body))
    assert testing.drain(client) == 3
    assert runs == [first.body, second.body, 0]
    assert client.stats().oldest_ready is None


@pytest.mark.parametrize("looks_first", [False, True], ids=["claimed", "counted"])
def test_a_job_behind_thousands_that_were_cancelled_is_found(
    redis_client: RedisClient, redis_server: redis.Redis, runs: Runs, looks_first: bool
) -> None:
    client = runs.of(redis_client(keep_failed=10), "t")
    ids = client.enqueue_many([PendingJob("t", number) for number in range(11_000)])
    for id in ids[:-1]:
        client.cancel_job(id)
    if looks_first:
        redis_server.config_resetstat()
        assert client.stats().oldest_ready is not None
        # No call drops more than 10,000 tickets: the server does nothing else meanwhile.
        assert redis_server.info("commandstats")["cmdstat_evalsha"]["calls"] == 2
    assert testing.drain(client) == 1
    assert runs.bodies == [10_999]


# ---- what is kept --------------------------------------------------------------------------------------------


def test_finished_jobs_leave_nothing_behind_when_none_are_kept(
    redis_client: RedisClient, redis_server: redis.Redis, redis_queue: str, run_all: RunAll
) -> None:
    client = redis_client(keep_finished=0, backoff=dejq.Backoff(0.01))
    client.register_handler("t", lambda job: 1 // (job.attempt - 1), max_attempts=2)
    client.register_handler("plain", lambda job: None)
    client.enqueue(PendingJob("t"), PendingJob("plain"), PendingJob("t"))
    client.enqueue(PendingJob("t", unique="k"))
    client.enqueue(PendingJob("plain", headers={"a": "b"}, delay=0.01))
    client.enqueue_many([PendingJob("plain") for _ in range(300)])
    ids = client.enqueue(PendingJob("plain"))
    run_all(client)
    assert client.stats().finished == 306
    assert client.list_jobs() == []
    assert not is_there(client, ids[0])
    client.stop()
    assert {key for key in keys_of(redis_server, redis_queue) if not key.startswith("wake:")} == LASTING


def test_the_newest_finished_jobs_are_kept_in_the_order_of_their_ends(
    redis_client: RedisClient, run_all: RunAll
) -> None:
    client = redis_client(keep_finished=5, workers=1)
    client.register_handler("t", lambda job: None)
    ids = client.enqueue_many([PendingJob("t") for _ in range(20)])
    chain = client.enqueue(*[PendingJob("t")] * 3)
    run_all(client)
    assert [job.id for job in client.list_jobs(state="finished")] == [*ids[-2:], *chain]
    assert client.stats().finished == 23


def test_the_newest_failed_and_cancelled_jobs_are_kept(
    redis_client: RedisClient, redis_server: redis.Redis, redis_queue: str, run_all: RunAll
) -> None:
    client = redis_client(keep_failed=3, keep_finished=0, workers=1)
    client.register_handler("t", fail)
    ids = client.enqueue_many([PendingJob("t") for _ in range(8)])
    run_all(client)
    (cancelled,) = client.enqueue(PendingJob("unserved"))
    client.cancel_job(cancelled)
    assert [job.id for job in client.list_jobs()] == [*ids[-2:], cancelled]
    assert client.get_job(ids[-1]).error == "ValueError: each time"
    assert (client.stats().failed, client.stats().cancelled) == (8, 1)
    assert {len(redis_server.hgetall(f"dejq:{{{redis_queue}}}:{key}")) for key in ("job", "state", "failure")} == {3}


def test_a_finished_job_that_is_kept_does_not_hold_its_key(redis_client: RedisClient) -> None:
    client = redis_client()
    client.register_handler("t", lambda job: None)
    (first,) = client.enqueue(PendingJob("t", unique="k"))
    testing.drain(client)
    (second,) = client.enqueue(PendingJob("t", unique="k"))
    assert second != first
    assert is_there(client, first)


def test_delete_finished_leaves_nothing_of_what_it_deletes(
    redis_client: RedisClient, redis_server: redis.Redis, redis_queue: str
) -> None:
    client = redis_client()
    client.register_handler("t", lambda job: None)
    client.register_handler("bad", fail)
    client.enqueue(PendingJob("t"), PendingJob("bad"), PendingJob("t"), on_failure="cancel")
    client.enqueue(PendingJob("bad", unique="k"))
    client.enqueue_many([PendingJob("t") for _ in range(10)])
    testing.drain(client)
    (waits,) = client.enqueue(PendingJob("t"))
    assert client.delete_finished(3600) == 0
    deleted = [client.delete_finished(0, batch=6) for _ in range(4)]
    assert deleted == [6, 6, 2, 0]
    assert [job.id for job in client.list_jobs()] == [waits]
    testing.drain(client)
    assert client.delete_finished(0) == 1
    assert {key for key in keys_of(redis_server, redis_queue) if not key.startswith("wake:")} == LASTING
    assert (client.stats().finished, client.stats().failed, client.stats().cancelled) == (12, 2, 1)


# ---- bodies and headers --------------------------------------------------------------------------------------


def test_a_body_of_ten_megabytes_fits_when_the_limit_is_raised(redis_client: RedisClient) -> None:
    text = "ż" * 5_000_000
    with pytest.raises(dejq.BodyTooLarge) as refused:
        redis_client().enqueue(PendingJob("t", text))
    assert refused.value.limit == 2**20
    client, bodies = redis_client(max_body=20_000_000), list[Any]()
    client.register_handler("t", lambda job: bodies.append(job.body))
    client.enqueue(PendingJob("t", text), PendingJob("t", "small"))
    (id,) = client.enqueue(PendingJob("t", text, unique="large"))
    testing.drain(client)
    assert bodies == [text, "small", text]
    assert client.get_job(id).body == text


@pytest.mark.parametrize("limit", [0, 2**29, -1, "much"])
def test_a_limit_that_redis_cannot_keep_is_refused(redis_url: str, limit: object) -> None:
    with pytest.raises(dejq.ConfigError, match="a number of bytes from 1 to 536805376"):
        dejq.redis(redis_url, max_body=limit)


# Things that stand between the parts of a job as it is kept, and what JSON, Lua and Redis read otherwise.
ODD_TEXTS = [
    "\x00",
    "a\x00b",
    "\n",
    "a\nb\r\n",
    "{}",
    '{"unique": "x", "headers": {}}',
    " -cu c=00:1:2x d=1 m=1 {",
    "\\",
    '"',
    "%d %s %%",
    "*3\r\n$3\r\nSET\r\n",
    "żółć",
    "😀",
    "\u2028\ufeff\x7f",
    " ",
    "x" * 200,
]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=ascii)
def test_a_text_comes_back_as_it_went_in(text: str, redis_client: RedisClient, run_all: RunAll) -> None:
    """As body, header and unique key, of jobs that fail and run again too."""
    client, got = redis_client(workers=1, backoff=dejq.Backoff(0.01)), list[tuple[Any, dict[str, str]]]()

    def note(job: Job) -> None:
        if job.attempt < 2:
            raise ValueError(text)
        got.append((job.body, dict(job.headers)))

    client.register_handler("t", note, max_attempts=2)
    headers = {"k": text, f"k{text}": "v"}
    job = PendingJob("t", text, headers=headers)
    (unique,) = client.enqueue(PendingJob("t", text, headers=headers, unique=text))
    assert client.enqueue(PendingJob("t", unique=text)) == [unique]
    chain = client.enqueue(job, job)
    (delayed,) = client.enqueue(PendingJob("t", text, headers=headers, delay=0.01))
    many = client.enqueue_many([job] * 200)
    run_all(client)
    assert got == [(text, headers)] * (4 + len(many))
    for id in (unique, *chain, delayed, many[-1]):
        info = client.get_job(id)
        assert (info.state, info.body, info.headers, info.attempt) == ("finished", text, headers, 2)
    assert client.enqueue(PendingJob("t", unique=text)) != [unique]


def test_the_failure_of_a_job_is_kept_as_it_was(redis_client: RedisClient) -> None:
    client = redis_client()

    def raises(job: Job) -> None:
        raise ValueError(job.body)

    client.register_handler("t", raises)
    ids = [client.enqueue(PendingJob("t", text))[0] for text in ODD_TEXTS]
    testing.drain(client)
    for id, text in zip(ids, ODD_TEXTS, strict=True):
        assert f"ValueError: {text}" in (client.get_job(id).traceback or ""), ascii(text)


def test_unique_keys_that_look_alike_are_different_ones(redis_client: RedisClient) -> None:
    client = redis_client()
    keys = ["a", "a ", " a", "a\n", "a\x00", "a\x00b", "A", "ä", "a\u0308", "t a", "1", "01", "k" * 256]
    ids = {key: client.enqueue(PendingJob("t", unique=key))[0] for key in keys}
    # Of another type they are others, too; "t" and " a" together are "t" and "a".
    others = {key: client.enqueue(PendingJob("t2", unique=key))[0] for key in keys}
    assert len({*ids.values(), *others.values()}) == 2 * len(keys)
    for key in keys:
        assert client.enqueue(PendingJob("t", unique=key)) == [ids[key]]
    both = client.enqueue_many([PendingJob("t", unique="new"), PendingJob("t", unique="new"), PendingJob("t")])
    assert both[0] == both[1] != both[2]
    client.cancel_job(ids["a"])
    (again,) = client.enqueue(PendingJob("t", unique="a"))
    assert again != ids["a"]
    with pytest.raises(dejq.WrongState, match="holds its unique key now"):
        client.requeue_job(ids["a"])


# ---- types and queues ------------------------------------------------------------------------------------------

# All characters that a type may have; and what stands in keys and records.
TYPES = [
    f"{string.ascii_letters}{string.digits}_.:/-",
    "x" * 128,
    "-",
    "-c",
    "-cu",
    "0",
    "1:2",
    "ready",
    "fresh:t",
    ":",
    "..",
    "a/b",
    "worker",
]


def test_types_may_have_all_their_characters_and_do_not_mix(redis_client: RedisClient, run_all: RunAll) -> None:
    client, ran = redis_client(workers=1, backoff=dejq.Backoff(0.01)), defaultdict[str, list[str]](list)

    def note(job: Job) -> None:
        if job.body == "again" and job.attempt == 1:
            raise ValueError
        ran[job.type].append(job.body)

    for type in TYPES:
        client.register_handler(type, note, max_attempts=2)
    for type in TYPES:
        client.enqueue(PendingJob(type, "plain"))
        client.enqueue(PendingJob(type, "again"), PendingJob(type, "next"))
        client.enqueue(PendingJob(type, "unique", unique=type, headers={type: type}))
        client.enqueue(PendingJob(type, "delayed", delay=0.01))
        (cancelled,) = client.enqueue(PendingJob(type, "requeued"))
        client.cancel_job(cancelled)
        client.requeue_job(cancelled)
    client.enqueue_many([PendingJob(type, "one of many") for type in TYPES * 20])
    run_all(client)
    assert {type: sorted(bodies) for type, bodies in ran.items()} == {
        type: sorted(["plain", "again", "next", "unique", "delayed", "requeued", *["one of many"] * 20])
        for type in TYPES
    }
    assert client.stats().by_type.keys() == set(TYPES)
    for type in TYPES:
        assert client.stats().by_type[type].finished == 26
        assert len(client.list_jobs(type=type)) == 26


@pytest.mark.parametrize("type", ["żółć", "a b", "a\n", "a\x00", "a{b}", "", "x" * 129], ids=ascii)
def test_a_type_with_other_characters_is_refused(redis_client: RedisClient, type: str) -> None:
    client = redis_client()
    with pytest.raises(dejq.ConfigError, match=r"A-Z a-z 0-9 _ \. : / -"):
        client.enqueue(PendingJob("t"), PendingJob(type))
    with pytest.raises(dejq.ConfigError, match=r"A-Z a-z 0-9 _ \. : / -"):
        client.register_handler(type, lambda job: None)
    assert client.stats().by_type == {}


@pytest.mark.parametrize(
    "queue", ["", "a b", "a{b", "a}b", "a*", "a?", "[ab]", "ż", "a\n", "a\x00", "x" * 101], ids=ascii
)
def test_a_name_that_no_queue_can_have_is_refused(redis_url: str, queue: str) -> None:
    with pytest.raises(dejq.ConfigError, match=r"is no name for a queue.*use 1 to 100 of A-Z a-z 0-9 _ \. : / -"):
        dejq.redis(redis_url, queue=queue)


def test_queues_of_one_database_do_not_see_each_other(redis_client: RedisClient, redis_queue: str, runs: Runs) -> None:
    names = [redis_queue, f"{redis_queue}:job", f"{redis_queue}/B_c.d-e", redis_queue.upper()]
    clients = [redis_client(queue=name) for name in names]
    for name, client in zip(names, clients, strict=True):
        (id,) = client.enqueue(PendingJob("t", name, unique="k"))
        assert client.enqueue(PendingJob("t", unique="k")) == [id]
        client.enqueue(PendingJob("other", name), PendingJob("other", name))
    for place, client in enumerate(clients):
        assert client.stats().enqueued_jobs == 3
        (job,) = client.list_jobs(type="t")
        assert job.body == names[place]
        other = clients[place - 1]
        for call in (other.get_job, other.cancel_job, other.finish_job, other.requeue_job):
            with pytest.raises(dejq.UnknownJob):
                call(job.id)
        runs.of(client, "t")
        assert testing.drain(client) == 1
    assert runs.bodies == names


def test_a_queue_is_dejq_unless_it_is_named(redis_url: str) -> None:
    assert dejq.redis(redis_url).store == "redis"
    with redis.Redis.from_url(urlsplit(redis_url)._replace(path="/1").geturl()) as server:
        assert keys_of(server, "dejq") == set()
        with dejq.redis(redis_url, db=1) as client:
            (id,) = client.enqueue(PendingJob("t"))
        assert keys_of(server, "dejq") >= {"job", "fresh:t"}
        with dejq.connect(redis_url, db=1) as client:
            assert client.get_job(id).state == "ready"
        server.delete(*server.scan_iter(match="dejq:{dejq}:*"))


# ---- order -----------------------------------------------------------------------------------------------------


def test_the_oldest_job_comes_first_whatever_its_type(redis_client: RedisClient, runs: Runs, run_all: RunAll) -> None:
    client, types = runs.of(redis_client(workers=1), "a", "b", "c"), "abcbaccab"
    bodies = list(range(len(types)))
    for number in bodies:
        client.enqueue(PendingJob(types[number], number))
    many = list(range(100, 500))
    client.enqueue_many([PendingJob(types[number % len(types)], number) for number in many])
    run_all(client)
    assert runs.bodies == [*bodies, *many]


def test_a_retry_goes_to_the_end_of_the_line(redis_client: RedisClient, run_all: RunAll) -> None:
    client, ran = redis_client(workers=1), list[tuple[int, int]]()

    def note(job: Job) -> None:
        ran.append((job.body, job.attempt))
        if job.body == 0 and job.attempt < 3:
            raise dejq.Retry(after=0)

    client.register_handler("t", note)
    client.enqueue_many([PendingJob("t", number) for number in range(3)])
    run_all(client)
    assert ran == [(0, 1), (1, 1), (2, 1), (0, 2), (0, 3)]


def test_what_is_given_back_takes_its_old_place(
    redis_client: RedisClient, given_back: list[str], runs: Runs, run_all: RunAll
) -> None:
    client = runs.of(redis_client(workers=1), "t", "u")
    client.enqueue(PendingJob("u", 3))
    client.enqueue(PendingJob("t", 4))
    run_all(client)
    assert runs.bodies == list(range(5))
    assert [client.get_job(id).attempt for id in given_back] == [1] * 3


def test_a_worker_for_a_thousand_types_gets_each_in_its_order(redis_client: RedisClient, until: Until) -> None:
    client, ran = redis_client(workers=1), defaultdict[str, list[int]](list)
    types = [f"type:{number}" for number in range(1000)]
    for type in types:
        client.register_handler(type, lambda job: ran[job.type].append(job.body))
    client.enqueue_many([PendingJob(type, number) for number in range(4) for type in types])
    assert len(client.stats().by_type) == 1000
    client.dequeue_loop()
    until(lambda: client.stats().finished == 4000)
    client.enqueue(PendingJob(types[-1], 4))
    until(lambda: client.stats().finished == 4001)
    assert ran == {type: [0, 1, 2, 3] for type in types[:-1]} | {types[-1]: [0, 1, 2, 3, 4]}


def test_a_delayed_job_runs_after_its_time_and_may_be_promoted(
    redis_client: RedisClient, runs: Runs, ended: Ended
) -> None:
    client = runs.of(redis_client(workers=1), "t")
    soon, later = client.enqueue_many([PendingJob("t", "soon", delay=0.2), PendingJob("t", "later", delay=3600)])
    chain = client.enqueue(PendingJob("t", "first"), PendingJob("t", "second", delay=0.2), PendingJob("t", "third"))
    assert client.get_job(chain[1]).state == "blocked"
    client.dequeue_loop()
    info = ended(client, soon)
    assert info.started_at is not None
    assert info.started_at >= info.enqueued_at + timedelta(seconds=0.2)
    before, second = client.get_job(chain[0]), ended(client, chain[1])
    assert second.started_at is not None
    assert before.finished_at is not None
    assert second.started_at >= before.finished_at + timedelta(seconds=0.2)
    ended(client, chain[2])
    client.stop()
    waiting = runs.of(redis_client(), "t")
    assert waiting.get_job(later).state == "scheduled"
    assert testing.drain(waiting) == 0
    assert testing.drain(waiting, scheduled=True) == 1
    assert runs.bodies[-1] == "later"


# ---- chains ----------------------------------------------------------------------------------------------------


def test_a_chain_moves_between_workers_that_handle_different_types(
    redis_client: RedisClient, runs: Runs, until: Until
) -> None:
    one = runs.of(redis_client(workers=2), "a", name="one")
    other = runs.of(redis_client(workers=2), "b", name="other")
    types = "abbabaab"
    chains = [one.enqueue(*(PendingJob(type, (n, place)) for place, type in enumerate(types))) for n in range(5)]
    one.dequeue_loop()
    other.dequeue_loop()
    until(lambda: one.stats().finished == 5 * len(types))
    for chain in chains:
        assert [runs.by[id] for id in chain] == [{"a": "one", "b": "other"}[type] for type in types]
    for n in range(5):
        assert [place for number, place in runs.bodies if number == n] == list(range(len(types)))


def test_a_chain_stays_with_its_worker_when_this_one_handles_all_of_it(
    redis_client: RedisClient, runs: Runs, until: Until
) -> None:
    clients = [runs.of(redis_client(workers=2), "a", "b", name=name) for name in ("one", "other")]
    for client in clients:
        client.dequeue_loop()
    chains = [clients[0].enqueue(*(PendingJob("ab"[place % 2]) for place in range(10))) for _ in range(20)]
    until(lambda: clients[0].stats().finished == 200)
    assert [len({runs.by[id] for id in chain}) for chain in chains] == [1] * 20


# ---- coroutines ------------------------------------------------------------------------------------------------


def test_a_thousand_coroutines_enqueue_at_once_and_none_of_them_takes_a_thread(redis_client: RedisClient) -> None:
    client = redis_client()

    async def enqueue() -> list[list[str]]:
        client.stats()  # starts what runs in any case
        threads = threading.active_count()
        ids = await asyncio.gather(*(client.aenqueue(PendingJob("t", n), PendingJob("t", n)) for n in range(1000)))
        assert threading.active_count() == threads
        return ids

    ids = asyncio.run(enqueue())
    assert client.stats().enqueued_jobs == 2000
    assert len({id for chain in ids for id in chain}) == 2000
    for n in (0, 500, 999):
        assert [client.get_job(id).body for id in ids[n]] == [n, n]


def test_event_loops_of_several_threads_get_their_own_answers(redis_client: RedisClient) -> None:
    client, found = redis_client(), list[tuple[Any, Any]]()

    async def enqueue(thread: int) -> None:
        for number in range(20):
            (id,) = await client.aenqueue(PendingJob("t", [thread, number]))
            found.append(([thread, number], client.get_job(id).body))

    threads = [threading.Thread(target=lambda n=n: asyncio.run(enqueue(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(sent == kept for sent, kept in found)


def test_a_coroutine_that_is_cancelled_takes_no_other_along(redis_client: RedisClient) -> None:
    client = redis_client()

    async def enqueue() -> None:
        impatient, patient = (asyncio.create_task(client.aenqueue(PendingJob("t"))) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        assert client.get_job((await patient)[0]).state == "ready"

    asyncio.run(enqueue())


def test_a_coroutine_gets_the_errors_that_a_thread_gets(redis_client: RedisClient) -> None:
    async def refused(client: Client, body: object) -> dejq.DejqError:
        with pytest.raises(dejq.DejqError) as error:
            await client.aenqueue(PendingJob("t", body))
        return error.value

    assert isinstance(asyncio.run(refused(redis_client(), float("nan"))), dejq.BodyError)
    assert isinstance(asyncio.run(refused(redis_client(), "x" * 2**20)), dejq.BodyTooLarge)
    nowhere = dejq.redis("redis://127.0.0.1:1")
    assert isinstance(asyncio.run(refused(nowhere, 1)), dejq.BackendUnavailable)


def test_coroutines_are_handlers_and_a_loop_works_with_the_client(redis_client: RedisClient) -> None:
    ran = list[int]()

    async def work() -> None:
        done, loop = asyncio.Event(), asyncio.get_running_loop()
        async with redis_client(async_workers=100) as client:

            @client.handler("t")
            async def note(body: int) -> None:
                await asyncio.sleep(0)
                ran.append(body)
                if len(ran) == 300:
                    loop.call_soon_threadsafe(done.set)

            client.dequeue_loop()
            await asyncio.gather(*(client.aenqueue(note.job(number)) for number in range(300)))
            await asyncio.wait_for(done.wait(), SECONDS)
            report = await client.astop()
            assert (await client.astats()).running == report.abandoned == 0

    asyncio.run(work())
    assert sorted(ran) == list(range(300))


# ---- processes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["before_first_use", "with_a_running_worker", "under_load"])
def test_a_forked_child_makes_its_own_client_and_its_parent_does_not_notice(
    redis_url: str, redis_queue: str, redis_client: RedisClient, scenario: str
) -> None:
    redis_client()  # whose queue is gone after the test
    passes("redis_forks", scenario, address(redis_url, redis_queue))


def test_several_processes_enqueue_and_work_one_queue(
    redis_url: str, redis_queue: str, redis_client: RedisClient, runs: Runs, until: Until, tmp_path: Path
) -> None:
    client = runs.of(redis_client(), "note")
    note = [{"type": "note", "body": number, "delay": number % 3 * 0.01} for number in range(300)]
    with ExitStack() as stack:
        for _ in range(2):
            url = address(redis_url, redis_queue)
            program = stack.enter_context(Program("pg_worker", "work", url, str(tmp_path), "relay"))
            program.line()  # it has come so far
        client.dequeue_loop()
        for body in note:  # one by one, so that both workers get some
            client.enqueue(PendingJob("relay", body))
        until(lambda: client.stats().finished == 600)
        until(lambda: client.stats().workers == 3)
    assert sorted(runs.bodies) == list(range(300))
    totals = client.stats().totals
    assert totals is not None
    assert (totals.jobs, totals.attempts, totals.rescues) == (600, 600, 0)


# ---- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def queue_url(redis_url: str, redis_queue: str, redis_client: RedisClient) -> str:
    """Of the queue that `redis_client` makes clients of."""
    client = redis_client()
    client.register_handler("good", lambda job: None)
    client.register_handler("bad", fail)
    client.enqueue(PendingJob("good"), PendingJob("bad"), PendingJob("good"), PendingJob("unserved"))
    testing.drain(client)
    return address(redis_url, redis_queue)


def said(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(args) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def test_stats_have_the_totals_in_json(queue_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "stats", "--json", "--url", queue_url))
    assert (found["ready"], found["finished"], found["failed"], found["workers"]) == (1, 2, 1, 0)
    assert found["by_type"]["unserved"]["oldest_ready_s"] == found["oldest_ready_s"] > 0
    totals = found["totals"]
    lengths = [totals.pop(f"{name}_s") for name in ("mean", "p50", "p95", "p99", "duration")]
    assert totals == {"jobs": 4, "chains": 1, "attempts": 3, "failures": 1, "retries": 0, "rescues": 0}
    assert all(isinstance(length, float) and 0 < length < 30 for length in lengths)
    assert lengths[1:4] == sorted(lengths[1:4])


def test_stats_have_the_totals_below_the_table(queue_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "stats", "--url", queue_url).splitlines()
    assert lines[-3] == "3 types · 0 workers · 1 waiting to run"
    assert lines[-2] == "jobs 4 · chains 1 · attempts 3 · failures 1 · retries 0 · rescues 0"
    words = [part.split() for part in lines[-1].split(" · ")]
    assert [word[0] for word in words] == ["duration", "mean", "p50", "p95", "p99"]
    assert all(float(number) >= 0 for _, number, _ in words)


def test_stats_of_an_empty_queue_have_dashes_for_what_there_is_not(
    redis_url: str, redis_queue: str, redis_client: RedisClient, capsys: pytest.CaptureFixture[str]
) -> None:
    redis_client()
    url = address(redis_url, redis_queue)
    assert said(capsys, "stats", "--url", url).splitlines()[-1] == "duration 0.00 ms · mean – · p50 – · p95 – · p99 –"
    totals = json.loads(said(capsys, "stats", "--json", "--url", url))["totals"]
    assert (totals["jobs"], totals["duration_s"], totals["mean_s"], totals["p99_s"]) == (0, 0.0, None, None)


def test_a_store_without_totals_says_null(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(said(capsys, "stats", "--json", "--url", "memory://"))["totals"] is None


def test_doctor_finds_the_store_and_where_its_url_comes_from(
    queue_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("DEJQ_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DEJQ_URL", queue_url)
    found = {finding["name"]: finding for finding in json.loads(said(capsys, "doctor", "--json"))}
    assert (found["url"]["level"], found["url"]["text"]) == ("ok", "redis (from DEJQ_URL)")
    assert [name for name, finding in found.items() if finding["level"] == "error"] == []


@pytest.mark.parametrize("verb", ["stats", "doctor"])
def test_a_server_that_is_not_there_is_code_3(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--url", "redis://me:secret@127.0.0.1:1"]) == 3
    printed = "".join(capsys.readouterr())
    assert "127.0.0.1:1" in printed
    assert "secret" not in printed


def test_a_job_is_enqueued_and_nothing_is_to_be_migrated(
    queue_url: str, redis_client: RedisClient, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = said(capsys, "enqueue", "unserved", '{"a": 1}', "--then", "t", "--url", queue_url).split()
    assert redis_client().get_job(first).body == {"a": 1}
    assert redis_client().get_job(second).state == "blocked"
    assert main(["migrate", "--url", queue_url]) == 0
    assert capsys.readouterr().err == "nothing to do: redis is up to date\n"


def test_bench_measures_the_queue_of_a_url(
    redis_url: str, redis_queue: str, redis_client: RedisClient, capsys: pytest.CaptureFixture[str]
) -> None:
    client = redis_client()
    found = json.loads(said(capsys, "bench", address(redis_url, redis_queue), "-n", "50", "--json"))
    assert found["store"] == "redis"
    assert {figure["name"] for figure in found["figures"]} == {
        "enqueue", "enqueue many", "drain", "drain async", "chain", "idle latency",
    }  # fmt: skip
    assert client.stats().finished == 50 + 50 + 50 + 50
