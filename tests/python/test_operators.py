"""What operators do to jobs, in memory and in Redis: look, count, finish, requeue, cancel, delete, check."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

import dejq
from dejq import (
    Client,
    ConfigError,
    Finding,
    Job,
    JobInfo,
    MigrationReport,
    PendingJob,
    Stats,
    TypeStats,
    WrongState,
    testing,
)

if TYPE_CHECKING:
    from python.conftest import Ended, NewClient, Until
    from python.redis_store import RedisClient

pytest_plugins = ["python.redis_store"]

SECRET = "hunter2-5ecret"
# A lease lasts three beats, which is longer than a busy machine keeps a worker from beating.
HEARTBEAT = 0.3
STATES = ("blocked", "scheduled", "ready", "running", "finished", "failed", "cancelled")


def handler(job: Job) -> None:
    if job.body == "bad":
        raise ValueError("bad body")


@pytest.fixture(params=["memory", "redis"])
def new_client(request: pytest.FixtureRequest, new_client: NewClient) -> NewClient:
    if request.param == "memory":
        return new_client
    redis_client: RedisClient = request.getfixturevalue("redis_client")
    prefix: str = request.getfixturevalue("redis_queue")

    def make(*, name: str | None = None, **options: Any) -> Client:
        return redis_client(queue=f"{prefix}-{name or uuid4().hex}", **options)

    return make


@pytest.fixture
def queue(client: Client) -> Client:
    """A client with a handler for the type ``t``."""
    client.register_handler("t", handler)
    return client


@pytest.fixture
def full(queue: Client) -> dict[str, str]:
    """Ids of jobs of `queue`, one in each state but running."""
    finished, failed = queue.enqueue(PendingJob("t", "good"), PendingJob("t", "bad"))
    testing.drain(queue)
    (cancelled,) = queue.enqueue(PendingJob("t"))
    queue.cancel_job(cancelled)
    (scheduled,) = queue.enqueue(PendingJob("t", delay=3600))
    ready, blocked = queue.enqueue(PendingJob("u"), PendingJob("t"))
    return {
        "finished": finished,
        "failed": failed,
        "cancelled": cancelled,
        "scheduled": scheduled,
        "ready": ready,
        "blocked": blocked,
    }


# ---- looking ---------------------------------------------------------------------------------------------


def test_a_waiting_job_shows_what_is_known_of_it(client: Client) -> None:
    before = datetime.now(timezone.utc)
    job = PendingJob("t", {"a": [1]}, max_attempts=3, headers={"tenant": "x"}, delay=60)
    (id,) = client.enqueue(job)
    info = client.get_job(id)
    assert (info.id, info.type, info.state, info.attempt, info.max_attempts) == (id, "t", "scheduled", 0, 3)
    assert (info.rescues, info.chain_id, info.position, info.chain_length) == (0, id, 1, 1)
    assert (info.headers, info.raw_body, info.body) == ({"tenant": "x"}, b'{"a":[1]}', {"a": [1]})
    assert abs(info.enqueued_at - before) < timedelta(seconds=20)
    assert info.due_at is not None
    assert timedelta(seconds=59) < info.due_at - info.enqueued_at < timedelta(seconds=61)
    assert (info.started_at, info.last_beat_at, info.finished_at) == (None, None, None)
    assert (info.error, info.traceback) == (None, None)


def test_a_running_job_shows_its_start_and_its_last_beat(
    new_client: NewClient, until: Until, event: threading.Event
) -> None:
    client = new_client(workers=1, heartbeat=HEARTBEAT)
    client.register_handler("t", lambda job: event.wait(20))
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    until(lambda: client.get_job(id).state == "running")
    first = client.get_job(id)
    assert (first.attempt, first.due_at, first.finished_at) == (1, None, None)
    assert first.started_at is not None
    assert first.last_beat_at is not None
    started, beat = first.started_at, first.last_beat_at
    assert first.enqueued_at <= started <= beat
    until(lambda: (client.get_job(id).last_beat_at or beat) > beat)
    assert client.get_job(id).started_at == started
    event.set()


def test_a_final_job_shows_its_end_and_why(queue: Client, full: dict[str, str]) -> None:
    finished, failed = queue.get_job(full["finished"]), queue.get_job(full["failed"])
    for info in (finished, failed):
        assert info.finished_at is not None
        assert info.enqueued_at <= info.finished_at
        assert (info.attempt, info.due_at, info.last_beat_at) == (1, None, None)
    assert (finished.error, finished.traceback) == (None, None)
    assert failed.error == "ValueError: bad body"
    assert (failed.traceback or "").endswith("ValueError: bad body\n")


def test_all_times_are_aware_and_in_utc(queue: Client, full: dict[str, str]) -> None:
    for id in full.values():
        info = dataclasses.asdict(queue.get_job(id))
        times = [value for value in info.values() if isinstance(value, datetime)]
        assert times
        assert all(value.utcoffset() == timedelta(0) for value in times)


def test_a_job_with_the_longest_delay_can_be_looked_up_and_listed(client: Client) -> None:
    (id,) = client.enqueue(PendingJob("t", delay=timedelta(days=36_500)))
    due = client.get_job(id).due_at
    assert due is not None
    assert due.year > 2100
    assert len(client.list_jobs()) == 1


def test_the_longest_backoff_leaves_a_job_that_can_be_listed(client: Client) -> None:
    forever = dejq.Backoff(1e300, maximum=1e300, jitter=0)
    client.register_handler("t", lambda job: 1 // 0, max_attempts=2, backoff=forever)
    (id,) = client.enqueue(PendingJob("t"))
    testing.drain(client)
    (info,) = client.list_jobs()
    assert (info.id, info.state) == (id, "scheduled")
    assert info.due_at is not None


def test_the_repr_of_a_job_info_hides_bodies_and_errors(client: Client) -> None:
    def fails(job: Job) -> None:
        raise ValueError(job.body)

    client.register_handler("t", fails)
    (id,) = client.enqueue(PendingJob("t", SECRET))
    testing.drain(client)
    info = client.get_job(id)
    assert info.error == f"ValueError: {SECRET}"
    assert SECRET not in repr(info)
    assert SECRET not in repr([info])
    assert id in repr(info)


def test_job_infos_are_frozen_and_equal_by_value(client: Client) -> None:
    (id,) = client.enqueue(PendingJob("t", 1))
    info: Any = client.get_job(id)
    assert info == client.get_job(id)
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.state = "finished"


# ---- listing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in STATES if state != "running"])
def test_jobs_are_listed_by_state(state: Any, queue: Client, full: dict[str, str]) -> None:
    assert [job.id for job in queue.list_jobs(state=state)] == [full[state]]


def test_running_jobs_are_listed_by_state(client: Client) -> None:
    seen = []
    client.register_handler("t", lambda job: seen.append([info.id for info in client.list_jobs(state="running")]))
    ids = client.enqueue(PendingJob("t"), PendingJob("t"))
    testing.drain(client)
    assert seen == [[ids[0]], [ids[1]]]


def test_jobs_are_listed_by_type_and_all_conditions_together(queue: Client, full: dict[str, str]) -> None:
    assert [job.id for job in queue.list_jobs(type="u")] == [full["ready"]]
    assert queue.list_jobs(type="u", state="failed") == []
    assert queue.list_jobs(type="unknown") == []
    assert len(queue.list_jobs(type="t")) == 5


def test_jobs_are_listed_in_the_order_of_enqueueing_page_by_page(client: Client) -> None:
    ids = client.enqueue_many([PendingJob("t", number) for number in range(25)])
    assert [job.id for job in client.list_jobs()] == ids
    pages: list[list[str]] = []
    after = None
    while page := client.list_jobs(limit=10, after=after):
        pages.append([job.id for job in page])
        after = page[-1].id
    assert pages == [ids[:10], ids[10:20], ids[20:]]


def test_a_page_has_a_hundred_jobs_by_default(client: Client) -> None:
    client.enqueue_many([PendingJob("t") for _ in range(120)])
    assert len(client.list_jobs()) == 100
    assert len(client.list_jobs(limit=1000)) == 120


def test_jobs_are_listed_by_age(client: Client, until: Until) -> None:
    ids = client.enqueue_many([PendingJob("t"), PendingJob("t")])
    assert client.list_jobs(older_than=3600) == []
    assert client.list_jobs(older_than=timedelta(hours=1)) == []
    until(lambda: [job.id for job in client.list_jobs(older_than=0.005)] == ids)


BAD_LISTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "an unknown state": (
        {"state": "dead"},
        ConfigError,
        'there is no state "dead"; the states are blocked, scheduled, ready, running, finished, failed',
    ),
    "no results": ({"limit": 0}, ConfigError, "limit=0 must be a whole number from 1 to 4294967295"),
    "too many results": ({"limit": 2**70}, ConfigError, "must be a whole number from 1 to 4294967295"),
    "half a result": ({"limit": 1.5}, ConfigError, "limit=1.5 must be a whole number"),
    "a negative age": (
        {"older_than": -1},
        ConfigError,
        "older_than=-1 must be seconds (a number) or a timedelta",
    ),
    "an age of nan": ({"older_than": float("nan")}, ConfigError, "older_than=nan must be seconds"),
    "a page after no id": ({"after": "junk"}, dejq.UnknownJob, '"junk" is not a job id; ids are UUIDs'),
}


@pytest.mark.parametrize(("conditions", "error", "text"), BAD_LISTS.values(), ids=BAD_LISTS)
def test_a_bad_condition_is_refused(
    conditions: dict[str, Any], error: type[Exception], text: str, client: Client
) -> None:
    with pytest.raises(error) as caught:
        client.list_jobs(**conditions)
    assert text in str(caught.value)


# ---- counting --------------------------------------------------------------------------------------------


def test_stats_count_all_states_in_all_and_by_type(queue: Client, full: dict[str, str]) -> None:
    stats = queue.stats()
    assert isinstance(stats, Stats)
    assert stats.enqueued_jobs == 3
    assert [getattr(stats, state) for state in STATES] == [1, 1, 1, 0, 1, 1, 1]
    assert stats.by_type.keys() == {"t", "u"}
    of_t, of_u = stats.by_type["t"], stats.by_type["u"]
    assert isinstance(of_t, TypeStats)
    assert [getattr(of_t, state) for state in STATES] == [1, 1, 0, 0, 1, 1, 1]
    assert [getattr(of_u, state) for state in STATES] == [0, 0, 1, 0, 0, 0, 0]


def test_stats_of_an_empty_queue_are_zeros(client: Client) -> None:
    stats = client.stats()
    assert (stats.enqueued_jobs, stats.workers, stats.oldest_ready, stats.by_type) == (0, 0, None, {})
    assert [getattr(stats, state) for state in STATES] == [0] * 7


def test_stats_tell_how_long_the_oldest_job_has_waited(client: Client, until: Until) -> None:
    client.enqueue(PendingJob("scheduled", delay=60))
    assert client.stats().oldest_ready is None
    client.enqueue(PendingJob("t"))
    until(lambda: (client.stats().oldest_ready or timedelta(0)) >= timedelta(milliseconds=5))
    stats = client.stats()
    assert stats.by_type["scheduled"].oldest_ready is None
    assert stats.by_type["t"].oldest_ready is not None


def test_stats_count_the_workers_that_are_alive(new_client: NewClient, until: Until) -> None:
    one, other = new_client(name="workers"), new_client(name="workers")
    for client in (one, other):
        client.register_handler("t", handler)
    one.dequeue_loop()
    until(lambda: one.stats().workers == 1)
    other.dequeue_loop()
    until(lambda: one.stats().workers == 2)
    other.stop()
    until(lambda: one.stats().workers == 1)


def test_totals_of_finished_jobs_outlive_the_jobs(new_client: NewClient) -> None:
    client = new_client(keep_finished=10)
    client.register_handler("t", handler)
    client.enqueue_many([PendingJob("t") for _ in range(50)])
    testing.drain(client)
    assert client.stats().finished == 50
    assert len(client.list_jobs(state="finished")) == 10
    client.delete_finished(0)
    assert client.stats().finished == 50
    assert client.list_jobs() == []


# ---- finish, cancel, requeue by hand ---------------------------------------------------------------------


@pytest.mark.parametrize("state", ["ready", "scheduled", "blocked"])
def test_a_waiting_job_is_declared_finished(state: str, queue: Client, full: dict[str, str]) -> None:
    queue.finish_job(full[state])
    info = queue.get_job(full[state])
    assert (info.state, info.attempt) == ("finished", 0)


def test_when_a_job_is_declared_finished_the_next_of_its_chain_runs(queue: Client) -> None:
    first, second = queue.enqueue(PendingJob("nobody"), PendingJob("t"))
    queue.finish_job(first)
    assert queue.get_job(second).state == "ready"
    testing.drain(queue)
    assert queue.get_job(second).state == "finished"


@pytest.mark.parametrize("state", ["ready", "scheduled", "blocked"])
def test_a_waiting_job_is_cancelled(state: str, queue: Client, full: dict[str, str]) -> None:
    queue.cancel_job(full[state])
    info = queue.get_job(full[state])
    assert (info.state, info.error) == ("cancelled", "cancelled: cancelled by an operator")
    testing.drain(queue, scheduled=True)
    assert queue.get_job(full[state]).attempt == 0


@pytest.mark.parametrize(("on_failure", "state"), [("continue", "ready"), ("cancel", "cancelled")])
def test_when_a_job_is_cancelled_its_chain_goes_by_on_failure(on_failure: Any, state: str, queue: Client) -> None:
    first, second = queue.enqueue(PendingJob("t"), PendingJob("t"), on_failure=on_failure)
    queue.cancel_job(first)
    assert queue.get_job(second).state == state


@pytest.mark.parametrize("state", ["failed", "cancelled", "scheduled"])
def test_a_job_is_requeued_and_its_attempts_count_anew(state: str, queue: Client, full: dict[str, str]) -> None:
    queue.requeue_job(full[state])
    info = queue.get_job(full[state])
    assert (info.state, info.attempt) == ("ready", 0)
    testing.drain(queue)
    assert queue.get_job(full[state]).attempt == 1


def test_a_requeued_job_takes_the_cancelled_rest_of_its_chain_along(client: Client) -> None:
    is_repaired = False

    def flaky(job: Job) -> None:
        if not is_repaired:
            raise OSError

    client.register_handler("t", flaky)
    ids = client.enqueue(PendingJob("t"), PendingJob("t"), PendingJob("t"), on_failure="cancel")
    testing.drain(client)
    assert [client.get_job(id).state for id in ids] == ["failed", "cancelled", "cancelled"]
    is_repaired = True
    client.requeue_job(ids[0])
    assert [client.get_job(id).state for id in ids] == ["ready", "blocked", "blocked"]
    testing.drain(client)
    assert [client.get_job(id).state for id in ids] == ["finished"] * 3


FINAL = ("finished", "failed", "cancelled")


@pytest.mark.parametrize("state", FINAL)
@pytest.mark.parametrize("verb", ["finish", "cancel"])
def test_a_final_job_cannot_be_finished_or_cancelled(
    verb: str, state: str, queue: Client, full: dict[str, str]
) -> None:
    call = {"finish": queue.finish_job, "cancel": queue.cancel_job}[verb]
    with pytest.raises(WrongState) as caught:
        call(full[state])
    assert caught.value.code == "DEJQ-E121"
    assert f"cannot {verb} job {full[state]}, it is {state} already" in str(caught.value)
    assert queue.get_job(full[state]).state == state


@pytest.mark.parametrize(
    ("state", "fix"),
    [
        ("finished", "it is finished; enqueue a new job instead"),
        ("ready", "it is ready; it will run by itself"),
        ("blocked", "it is blocked; it will run by itself"),
    ],
)
def test_a_job_that_need_not_be_requeued_is_not(state: str, fix: str, queue: Client, full: dict[str, str]) -> None:
    with pytest.raises(WrongState) as caught:
        queue.requeue_job(full[state])
    assert f"job {full[state]} cannot be requeued, {fix}" in str(caught.value)


def test_a_chain_never_goes_back_behind_a_job_that_has_started(queue: Client) -> None:
    first, second = queue.enqueue(PendingJob("t", "bad"), PendingJob("t"))
    testing.drain(queue)
    with pytest.raises(WrongState) as caught:
        queue.requeue_job(first)
    assert f"job {second} after it in its chain has started, and a chain never goes back" in str(caught.value)


def test_a_job_whose_key_is_taken_cannot_be_requeued(queue: Client) -> None:
    (failed,) = queue.enqueue(PendingJob("t", "bad", unique="k"))
    testing.drain(queue)
    (holder,) = queue.enqueue(PendingJob("t", unique="k"))
    with pytest.raises(WrongState) as caught:
        queue.requeue_job(failed)
    assert f"job {holder} holds its unique key now; wait until that one is final" in str(caught.value)


# ---- running handlers ------------------------------------------------------------------------------------


@pytest.fixture
def beating(new_client: NewClient) -> Client:
    return new_client(workers=1, heartbeat=HEARTBEAT)


def test_a_plain_handler_sees_by_the_next_beat_that_its_job_is_cancelled(
    beating: Client, until: Until, ended: Ended
) -> None:
    def cancellable(job: Job) -> None:
        until(lambda: job.cancelled)
        raise RuntimeError("gives up")

    beating.register_handler("t", cancellable)
    first, second = beating.enqueue(PendingJob("t"), PendingJob("nobody"), on_failure="cancel")
    beating.dequeue_loop()
    until(lambda: beating.get_job(first).state == "running")
    beating.cancel_job(first)
    info = ended(beating, first)
    assert (info.state, info.error) == ("cancelled", "cancelled: cancelled by an operator")
    assert beating.get_job(second).state == "cancelled"


def test_a_coroutine_is_cancelled_by_the_next_beat(beating: Client, until: Until, ended: Ended) -> None:
    seen = []

    async def cancellable(job: Job) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(job.cancelled)

    beating.register_handler("t", cancellable)
    (id,) = beating.enqueue(PendingJob("t"))
    beating.dequeue_loop()
    until(lambda: beating.get_job(id).state == "running")
    beating.cancel_job(id)
    assert ended(beating, id).state == "cancelled"
    assert seen == [True]


def test_a_handler_that_returns_all_the_same_has_finished_its_job(beating: Client, until: Until, ended: Ended) -> None:
    beating.register_handler("t", lambda job: until(lambda: job.cancelled))
    (id,) = beating.enqueue(PendingJob("t"))
    beating.dequeue_loop()
    until(lambda: beating.get_job(id).state == "running")
    beating.cancel_job(id)
    assert ended(beating, id).state == "finished"


@pytest.mark.parametrize("verb", ["finish", "requeue"])
def test_a_handler_whose_job_is_taken_from_it_is_told_and_changes_nothing(
    verb: str, beating: Client, until: Until, event: threading.Event
) -> None:
    """A stale token is refused: promise P4."""
    told = threading.Event()

    def taken(job: Job) -> None:
        if told.is_set():
            return
        until(lambda: job.cancelled)
        told.set()
        event.wait(20)
        raise RuntimeError("too late")

    beating.register_handler("t", taken)
    (id,) = beating.enqueue(PendingJob("t"))
    beating.dequeue_loop()
    until(lambda: beating.get_job(id).state == "running")
    if verb == "finish":
        beating.finish_job(id)
    else:
        beating.requeue_job(id)
    assert told.wait(20)
    event.set()
    until(lambda: beating.get_job(id).state == "finished")
    assert beating.stats().failed == 0
    assert beating.get_job(id).error is None


def test_max_beats_cancels_a_job_that_does_not_end_and_stop_leaves_its_handler_behind(
    until: Until, ended: Ended, event: threading.Event
) -> None:
    client = dejq.memory(workers=1, heartbeat=0.02, max_beats=2)
    seen = []

    def stuck(job: Job) -> None:
        event.wait(20)
        seen.append(job.cancelled)

    client.register_handler("t", stuck)
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    info = ended(client, id)
    assert (info.state, info.error) == ("cancelled", "stuck: no end after 2 beats (max_beats)")
    assert client.stop(timeout=0).abandoned == 1
    event.set()
    until(lambda: seen == [True])
    until(lambda: not any(thread.is_alive() for thread in client._threads))


def test_jobs_without_a_beat_for_long_are_listed_as_unresponsive(
    new_client: NewClient, until: Until, event: threading.Event
) -> None:
    client = new_client(workers=1, heartbeat=60)
    client.register_handler("t", lambda job: event.wait(20))
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    until(lambda: client.get_job(id).state == "running")
    assert client.unresponsive_jobs(timedelta(hours=1)) == []
    until(lambda: client.unresponsive_jobs(timedelta(milliseconds=5)))
    (job,) = client.unresponsive_jobs(0)
    assert isinstance(job, JobInfo)
    assert (job.id, job.state) == (id, "running")
    event.set()
    until(lambda: client.unresponsive_jobs(0) == [])


# ---- cleaning up -----------------------------------------------------------------------------------------


def test_final_jobs_are_deleted_oldest_first_and_at_most_a_batch_at_a_time(queue: Client) -> None:
    queue.enqueue_many([PendingJob("t") for _ in range(5)])
    testing.drain(queue)
    (waiting,) = queue.enqueue(PendingJob("t"))
    assert queue.delete_finished(3600) == 0
    assert [queue.delete_finished(0, batch=2) for _ in range(4)] == [2, 2, 1, 0]
    assert [job.id for job in queue.list_jobs()] == [waiting]


def test_finished_failed_and_cancelled_jobs_are_deleted_and_others_are_not(queue: Client, full: dict[str, str]) -> None:
    assert queue.delete_finished(timedelta(0)) == 3
    assert {job.state for job in queue.list_jobs()} == {"ready", "scheduled", "blocked"}
    for state in FINAL:
        with pytest.raises(dejq.UnknownJob):
            queue.get_job(full[state])
    queue.vacuum()
    assert len(queue.list_jobs()) == 3


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda client: client.delete_finished(-1), "older_than=-1 must be seconds"),
        (lambda client: client.delete_finished("1"), "older_than='1' must be seconds"),
        (lambda client: client.delete_finished(0, batch=0), "batch=0 must be a whole number from 1 to"),
        (
            lambda client: client.unresponsive_jobs(timedelta(-1)),
            "older_than=datetime.timedelta(days=-1) must be",
        ),
    ],
    ids=["negative age", "age as a word", "empty batch", "negative silence"],
)
def test_a_bad_age_or_batch_is_refused(call: Callable[[Any], object], text: str, client: Client) -> None:
    with pytest.raises(ConfigError) as caught:
        call(client)
    assert text in str(caught.value)


# ---- check and migrate -----------------------------------------------------------------------------------


def test_check_tells_the_store_where_its_url_comes_from_and_the_handlers(queue: Client) -> None:
    queue.register_handler("u", handler)
    findings = {finding.name: finding for finding in queue.check()}
    assert findings["url"] == Finding(level="ok", name="url", text=f"{queue.store} (from the call)")
    assert findings["handlers"].text == "t, u"
    assert all(isinstance(finding, Finding) for finding in findings.values())


def test_check_warns_that_memory_is_lost_when_the_process_ends() -> None:
    (durability,) = [finding for finding in dejq.memory().check() if finding.name == "durability"]
    assert durability.level == "warn"
    assert "are lost when it ends" in durability.text
    assert durability.fix is not None


def test_check_shows_no_url() -> None:
    assert SECRET not in repr(dejq.connect(f"memory://{SECRET}").check())


def test_a_store_without_tables_needs_no_migration(client: Client) -> None:
    assert client.migrate() == MigrationReport(applied=())


def test_finishing_within_a_transaction_is_refused_without_one(client: Client) -> None:
    client.register_handler("t", lambda job: job.finish(connection=object()))
    (id,) = client.enqueue(PendingJob("t"))
    testing.drain(client)
    assert (client.get_job(id).error or "").startswith(
        "dejq.errors.NotSupported: DEJQ-E130 job.finish(connection=…) is not possible on"
    )
