"""What happens to jobs in PostgreSQL when answers are lost, connections break, servers and workers die."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

import debian
import dejq
import fault_proxy
import servers
from dejq import (
    BackendUnavailable,
    Client,
    ConfigError,
    Job,
    OutcomeUnknown,
    PendingJob,
    SchemaMissing,
    SchemaOutdated,
)
from fault_proxy import POSTGRES_IDLE, Proxy
from python.conftest import SECONDS, Ended, Log, Until
from python.programs.harness import Program
from python.programs.pg_session import Session

# A lease lasts three beats. The calm one outlasts everything that a busy machine does to a restart.
HEARTBEAT = 0.5
CALM_HEARTBEAT = 3.0
# The end of the data of a COPY; only the answer to it says that the rows are stored.
COPY_DONE = b"c\0\0\0\x04S\0\0\0\x04"


@dataclass
class Queue:
    """A schema of its own in a database, and the clients of it, which are stopped after the test."""

    url: str
    through_proxy: str
    schema: str
    clients: list[Client] = field(default_factory=list[Client])

    def client(self, url: str | None = None, **options: Any) -> Client:
        chosen = {"schema": self.schema, "heartbeat": HEARTBEAT, "workers": 2, **options}
        self.clients.append(dejq.connect(url or self.url, **chosen))
        return self.clients[-1]

    def address(self, **options: Any) -> str:
        """For a worker in a process of its own."""
        chosen = {"schema": self.schema, "heartbeat": HEARTBEAT, **options}
        return f"{self.url}?{'&'.join(f'{key}={value}' for key, value in chosen.items())}"

    def sql(self, text: str) -> str:
        """A statement about this schema."""
        return text.replace("dejq.", f"{self.schema}.")

    def rows(self, text: str) -> list[tuple[str | None, ...]]:
        with Session(self.url) as session:
            return session.rows(self.sql(text))

    def value(self, text: str) -> str | None:
        with Session(self.url) as session:
            return session.value(self.sql(text))

    def states(self) -> dict[str, str]:
        """All jobs, waiting and final; a job that is there twice is an error."""
        rows = self.rows("SELECT id, state FROM dejq.jobs")
        states = {str(id): str(state) for id, state in rows}
        assert len(states) == len(rows)
        return states

    def stop(self) -> None:
        for client in self.clients:
            report = client.stop(timeout=SECONDS)
            assert not report.abandoned
            assert not report.forced


class Runs:
    """Handlers that note the ids that they run, and one that is held until it is let go."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.held: list[str] = []
        self.cancelled: list[str] = []
        self.leave = threading.Event()
        self.heeds = True  # do held handlers return when they are told to?

    def of(self, client: Client, *types: str, **options: Any) -> Client:
        """Starts a worker of these types; those that are called held wait for `leave`."""
        for type in types:
            client.register_handler(type, self.hold if type == "held" else self.note, **options)
        client.dequeue_loop()
        return client

    def note(self, job: Job) -> None:
        self.ids.append(job.id)

    def hold(self, job: Job) -> None:
        self.held.append(job.id)
        while not self.leave.wait(0.002):
            if job.cancelled and job.id not in self.cancelled:
                self.cancelled.append(job.id)
            if job.cancelled and self.heeds:
                break
        self.ids.append(job.id)

    @property
    def twice(self) -> list[str]:
        """What ran more than once."""
        return [id for id, times in Counter(self.ids).items() if times > 1]


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Server]:
    # The role that is called stranger has a password and needs it.
    with servers.postgres(own=True, hba=[f"host all stranger {servers.HOST}/32 scram-sha-256"]) as server:
        yield server


@contextmanager
def proxy_to(url: str) -> Iterator[Proxy]:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    with fault_proxy.proxy(parts.hostname, parts.port) as proxy:
        yield proxy


@contextmanager
def new_queue(url: str, proxy: Proxy) -> Iterator[Queue]:
    queue = Queue(url, proxy.in_front_of(url), f"q{next(_numbers)}")
    queue.client().migrate()
    yield queue
    queue.stop()


_numbers = itertools.count(1)


@pytest.fixture
def proxy(server: servers.Server) -> Iterator[Proxy]:
    with proxy_to(server.url) as proxy:
        yield proxy


@pytest.fixture
def queue(server: servers.Server, proxy: Proxy) -> Iterator[Queue]:
    with new_queue(server.url, proxy) as queue:
        yield queue


@pytest.fixture
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.leave.set()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


class Executes:
    """Does a request execute a statement with this text, sent whole or prepared before? One for each proxy."""

    def __init__(self, text: bytes, armed: bool = True) -> None:
        self.armed = armed
        self._parse = re.compile(rb"P.{4}(s?\d*)\0[^\0]*" + re.escape(text), re.DOTALL)
        self._names: set[bytes] = set()

    def __call__(self, sent: bytes) -> bool:
        self._names |= {match[1] for match in self._parse.finditer(sent)}
        bound = (match[1] for match in re.finditer(rb"B.{4}\0(s?\d*)\0", sent, re.DOTALL))
        return self.armed and any(name in self._names for name in bound)


def jobs(count: int, type: str = "job") -> list[PendingJob[Any]]:
    return [PendingJob(type, number) for number in range(count)]


def counted(client: Client) -> dict[str, int]:
    return client._native.counted()


# --- an answer is lost


def enqueue_one(client: Client) -> list[str]:
    return client.enqueue(PendingJob("job"))


def enqueue_chain(client: Client) -> list[str]:
    return client.enqueue(*jobs(3))


def enqueue_unique(client: Client) -> list[str]:
    return client.enqueue(PendingJob("job", unique="one"))


def enqueue_by_copy(client: Client) -> list[str]:
    return client.enqueue_many(jobs(500))


@pytest.mark.parametrize(
    ("enqueue", "asked"),
    [
        (enqueue_one, Executes(b"INSERT INTO")),
        (enqueue_chain, Executes(b"INSERT INTO")),
        (enqueue_unique, Executes(b"enqueue_jobs(")),
        (enqueue_by_copy, COPY_DONE),
    ],
    ids=["one", "chain", "unique", "copy"],
)
def test_an_enqueue_whose_answer_is_lost_is_stored_once_and_returns(
    queue: Queue, proxy: Proxy, enqueue: Callable[[Client], list[str]], asked: bytes | Executes
) -> None:
    client = queue.client(queue.through_proxy)
    lost = proxy.drop_replies_of(asked, POSTGRES_IDLE)
    ids = enqueue(client)
    assert lost.is_set()
    assert sorted(queue.states()) == sorted(ids)


def test_enqueues_that_shared_a_statement_whose_answer_is_lost_are_stored_once_each(
    queue: Queue, proxy: Proxy, pool: ThreadPoolExecutor, until: Until
) -> None:
    client = queue.client(queue.through_proxy)
    inserts = Executes(b"INSERT INTO", armed=False)
    lost = proxy.drop_replies_of(inserts, POSTGRES_IDLE)
    enqueue_one(client)
    with Session(queue.url) as other:
        # While the first one waits for the lock, the rest comes together.
        other.rows(queue.sql("BEGIN; LOCK TABLE dejq.job IN SHARE MODE"))
        first = pool.submit(enqueue_one, client)
        until(lambda: queue.value("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1")
        rest = [pool.submit(enqueue_chain, client) for _ in range(4)]
        inserts.armed = True
        other.rows("COMMIT")
        ids = first.result() + [id for each in rest for id in each.result()]
    assert lost.is_set()
    assert len(set(ids)) == 13
    assert set(ids) <= queue.states().keys()
    assert len(queue.states()) == 14


def test_an_enqueue_whose_outcome_stays_unknown_says_so_with_ids_that_are_all_stored_or_none(
    queue: Queue, server: servers.Server, proxy: Proxy, pool: ThreadPoolExecutor
) -> None:
    def enqueue(client: Client) -> list[str]:
        with pytest.raises(OutcomeUnknown, match="look for the ids") as caught:
            enqueue_chain(client)
        return list(caught.value.ids)

    with proxy_to(server.url) as before:
        stored, sent = queue.client(queue.through_proxy), queue.client(before.in_front_of(server.url))
        inserts = Executes(b"INSERT INTO", armed=False)
        lost = proxy.drop_replies_of(inserts, POSTGRES_IDLE)
        for client in (stored, sent):
            enqueue_one(client)
        # One is stored and only its answer lost, the other never gets through.
        inserts.armed = True
        proxy.refuse(True)
        before.refuse(True)
        before.black_hole(True)
        unknown = [pool.submit(enqueue, stored), pool.submit(enqueue, sent)]
        before_it_is_cut = threading.Event()
        before_it_is_cut.wait(0.2)
        before.cut()
        before.black_hole(False)
        in_store, nowhere = (future.result() for future in unknown)
        assert lost.is_set()
        proxy.refuse(False)
        before.refuse(False)
        states = queue.states()
        assert len(in_store) == len(nowhere) == 3
        assert set(in_store) <= states.keys()
        assert not set(nowhere) & states.keys()
        # Who looks and enqueues again has each job once, and the clients are as good as new.
        assert len(enqueue_chain(stored)) == len(enqueue_chain(sent)) == 3
        assert len(queue.states()) == 2 + 3 + 6


def test_jobs_of_a_claim_whose_answer_is_lost_come_back_and_run_once(
    queue: Queue, proxy: Proxy, runs: Runs, until: Until, ended: Ended
) -> None:
    client = queue.client()
    ids = client.enqueue_many(jobs(20))
    lost = proxy.drop_replies_of(Executes(b".claim("), POSTGRES_IDLE)
    worker = runs.of(queue.client(queue.through_proxy), "job")
    infos = [ended(client, id) for id in ids]
    assert lost.is_set()
    assert sorted(runs.ids) == sorted(ids)
    assert {(info.state, info.attempt, info.rescues) for info in infos} == {("finished", 1, 0)}
    until(lambda: counted(worker)["finished"] == 20)
    assert counted(worker)["lost"] == counted(worker)["rescued"] == 0


@pytest.mark.parametrize("keep_finished", [True, False], ids=["kept", "not_kept"])
def test_a_finish_whose_answer_is_lost_counts_once_and_the_chain_goes_on(
    queue: Queue, proxy: Proxy, runs: Runs, until: Until, log: Log, keep_finished: bool
) -> None:
    worker = runs.of(queue.client(queue.through_proxy, keep_finished=keep_finished), "job")
    lost = proxy.drop_replies_of(Executes(b".settle("), POSTGRES_IDLE)
    ids = queue.client().enqueue(*jobs(3))
    until(lambda: counted(worker)["finished"] + counted(worker)["lost"] == 3)
    assert lost.is_set()
    assert runs.ids == ids
    assert counted(worker)["lost"] == counted(worker)["rescued"] == 0
    assert "another worker" not in log.text
    stats = queue.client().stats()
    assert (stats.finished, stats.enqueued_jobs, stats.running) == (3, 0, 0)


def test_a_retry_whose_answer_is_lost_counts_once_and_is_not_called_lost(
    queue: Queue, proxy: Proxy, until: Until, ended: Ended, log: Log
) -> None:
    worker = queue.client(queue.through_proxy)
    attempts: list[int] = []

    @worker.handler("job", max_attempts=2, backoff=dejq.Backoff(initial=0.01))
    def fail_once(job: Job) -> None:
        attempts.append(job.attempt)
        if job.attempt == 1:
            raise ValueError("the first attempt")

    lost = proxy.drop_replies_of(Executes(b".put_back("), POSTGRES_IDLE)
    worker.dequeue_loop()
    (id,) = enqueue_one(worker)
    assert ended(worker, id).state == "finished"
    until(lambda: counted(worker)["finished"] == 1)
    assert lost.is_set()
    assert attempts == [1, 2]
    assert counted(worker)["lost"] == 0
    assert counted(worker)["retried"] == 1
    assert "another worker" not in log.text


# --- the server goes and comes back


class Enqueuer:
    """Enqueues chains on a thread until it is stopped, as a program that repeats what it was told has failed."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.confirmed: list[str] = []
        self.unknown: list[str] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self.over.wait(0.005):
            try:
                self.confirmed += self.client.enqueue(*jobs(2))
            except OutcomeUnknown as error:
                self.unknown += error.ids
            except BackendUnavailable:
                pass

    def __enter__(self) -> Enqueuer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


@pytest.mark.parametrize("how", ["fast", "crash"])
def test_a_restart_of_the_server_loses_nothing_and_runs_nothing_twice(
    queue: Queue, server: servers.Server, runs: Runs, until: Until, how: str
) -> None:
    worker = queue.client(heartbeat=CALM_HEARTBEAT)
    worker.register_handler("held", runs.hold)
    runs.of(worker, "job")
    (held,) = worker.enqueue(PendingJob("held"))
    with Enqueuer(queue.client()) as enqueuer:

        def goes_on() -> None:
            seen = len(enqueuer.confirmed)
            until(lambda: len(enqueuer.confirmed) > seen + 20)

        for _ in range(2):
            goes_on()
            if how == "crash":
                server.kill()
            server.restart()
        goes_on()
    runs.leave.set()
    until(lambda: {held, *enqueuer.confirmed} <= set(runs.ids))
    until(lambda: set(queue.states().values()) == {"finished"})
    assert runs.ids.count(held) == 1
    assert not runs.cancelled
    assert not runs.twice
    assert set(runs.ids) - {held, *enqueuer.confirmed} <= set(enqueuer.unknown)
    until(lambda: counted(worker)["finished"] == len(runs.ids))
    assert counted(worker)["lost"] == counted(worker)["rescued"] == 0


def test_after_an_outage_longer_than_a_lease_workers_let_each_other_beat_before_they_rescue(
    queue: Queue, server: servers.Server, proxy: Proxy, runs: Runs, until: Until, ended: Ended
) -> None:
    runs.heeds = False
    holder = runs.of(queue.client(queue.through_proxy), "held")
    (id,) = holder.enqueue(PendingJob("held"))
    until(lambda: runs.held == [id])
    others = [runs.of(queue.client(), "held") for _ in range(4)]
    until(lambda: all(counted(other)["beats"] for other in others))
    proxy.refuse(True)
    server.kill()
    until(lambda: runs.cancelled)
    server.restart()
    # All were silent for as long; the one whose job it is comes back a little later than the others.
    before = [counted(other)["beats"] for other in others]
    until(lambda: all(counted(other)["beats"] > beats for other, beats in zip(others, before, strict=True)))
    proxy.refuse(False)
    beats = counted(holder)["beats"]
    until(lambda: counted(holder)["beats"] > beats + 2)
    runs.leave.set()
    assert ended(others[0], id).state == "finished"
    assert ended(others[0], id).rescues == 0
    assert runs.ids == [id]


def test_connections_that_are_terminated_one_by_one_are_opened_again(
    queue: Queue, runs: Runs, until: Until, ended: Ended
) -> None:
    name = f"worker-{queue.schema}"
    mine = f"FROM pg_stat_activity WHERE application_name = '{name}'"
    worker = runs.of(queue.client(application_name=name), "job")
    other = queue.client()

    def listens() -> bool:
        is_there = queue.value(f"SELECT count(*) {mine} AND query LIKE 'LISTEN%'") == "1"
        return is_there and not any(finding.name == "notifications" for finding in worker.check())

    (id,) = enqueue_one(worker)
    ended(other, id)
    until(listens)
    until(lambda: counted(worker)["beats"])
    ended_before = 1
    queries = {str(query).split("(")[0] for (query,) in queue.rows(f"SELECT query {mine}")}
    assert len(queries) == int(queue.value(f"SELECT count(*) {mine}") or 0) >= 5
    for pid in [str(pid) for (pid,) in queue.rows(f"SELECT pid {mine} ORDER BY query LIKE 'LISTEN%'")]:
        assert queue.value(f"SELECT pg_terminate_backend({pid})") == "t"
        ids = [*other.enqueue(*jobs(2)), *worker.enqueue(*jobs(2))]
        assert [ended(other, id).state for id in ids] == ["finished"] * 4
        ended_before += 4
        until(listens)
        assert not queue.rows(f"SELECT pid {mine} AND pid = {pid}")
    beats = counted(worker)["beats"]
    until(lambda: counted(worker)["beats"] > beats)
    until(lambda: counted(worker)["finished"] == ended_before)
    assert not runs.twice
    assert counted(worker)["lost"] == 0


def test_a_failover_to_a_standby_loses_nothing_that_was_replicated(runs: Runs, until: Until) -> None:
    with (
        servers.postgres(own=True) as primary,
        servers.standby(primary) as standby,
        proxy_to(primary.url) as proxy,
        new_queue(primary.url, proxy) as queue,
    ):
        hosts = ",".join(urlsplit(each.url).netloc.rpartition("@")[2] for each in (primary, standby))
        both = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
        worker = queue.client(both, workers=1, heartbeat=CALM_HEARTBEAT)
        worker.register_handler("held", runs.hold)
        runs.of(worker, "job")
        (held,) = worker.enqueue(PendingJob("held"))
        until(lambda: runs.held == [held])
        waiting = worker.enqueue_many([*jobs(10), jobs(3)])
        written = queue.value("SELECT pg_current_wal_lsn()")
        with Session(standby.url) as session:
            until(lambda: session.value(f"SELECT pg_last_wal_replay_lsn() >= '{written}'") == "t")
        with Enqueuer(queue.client(both)) as enqueuer:
            primary.kill()
            standby.promote()
            old = len(enqueuer.confirmed)
            until(lambda: len(enqueuer.confirmed) > old + 20)
        runs.leave.set()
        until(lambda: {held, *waiting} <= set(runs.ids))
        queue.url = standby.url
        until(lambda: set(queue.states().values()) == {"finished"})
        assert not runs.twice
        assert set(enqueuer.confirmed[old + 2 :]) <= set(runs.ids)
        assert counted(worker)["lost"] == 0


# --- workers die


def beyond_its_lease(id: str) -> str:
    """Has the job run for longer than it could without a beat?"""
    return (
        "SELECT clock_timestamp() - j.started_at > 2 * w.lease"
        f" FROM dejq.job j JOIN dejq.worker w ON w.id = j.worker_id WHERE j.id = '{id}'"
    )


@contextmanager
def worker_process(queue: Queue, folder: Path, *types: str, **options: Any) -> Iterator[Program]:
    with Program("pg_worker", "work", queue.address(**options), str(folder), *types) as program:
        assert program.line().startswith("clock ")
        yield program


def test_the_job_of_a_killed_worker_runs_elsewhere_and_its_chain_goes_on(
    queue: Queue, tmp_path: Path, runs: Runs, ended: Ended
) -> None:
    client = queue.client()
    with worker_process(queue, tmp_path, "held") as program:
        ids = client.enqueue(PendingJob("held"), PendingJob("job"), PendingJob("held"))
        assert program.line() == f"started {ids[0]}"
        program.signal(signal.SIGKILL)
        assert program.wait().code == -signal.SIGKILL
    runs.leave.set()
    runs.of(queue.client(), "held", "job")
    infos = [ended(client, id) for id in ids]
    assert runs.ids == ids
    assert [(info.state, info.attempt, info.rescues) for info in infos] == [
        ("finished", 1, 1),
        ("finished", 1, 0),
        ("finished", 1, 0),
    ]


def test_a_worker_that_was_stopped_for_longer_than_a_lease_is_refused_when_it_goes_on(
    queue: Queue, tmp_path: Path, runs: Runs, ended: Ended
) -> None:
    client = queue.client()
    with worker_process(queue, tmp_path, "held") as program:
        ids = client.enqueue(PendingJob("held"), PendingJob("job"))
        assert program.line() == f"started {ids[0]}"
        program.signal(signal.SIGSTOP)
        runs.leave.set()
        other = runs.of(queue.client(), "held", "job")
        assert [ended(client, id).state for id in ids] == ["finished", "finished"]
        before = client.get_job(ids[0])
        other.stop()
        (tmp_path / ids[0]).touch()
        program.signal(signal.SIGCONT)
        assert program.line().endswith(ids[0])
        # It is a worker again like any other.
        (last,) = client.enqueue(PendingJob("held"))
        assert program.line() == f"started {last}"
        (tmp_path / last).touch()
        assert program.line() == f"returned {last}"
        ended(client, last)
        program.signal(signal.SIGTERM)
        counts = json.loads(program.line())
        assert program.line() == "passed"
        program.wait().passed()
    assert (counts["finished"], counts["lost"]) == (1, 1)
    assert client.get_job(ids[0]) == before
    assert runs.ids == ids
    assert client.stats().finished == 3


def test_sigterm_lets_the_running_job_finish_and_gives_the_rest_back(
    queue: Queue, tmp_path: Path, runs: Runs, until: Until, ended: Ended
) -> None:
    client = queue.client()
    with worker_process(queue, tmp_path, "held") as program:
        first, second = (client.enqueue(PendingJob("held"))[0] for _ in range(2))
        assert program.line() == f"started {first}"
        program.signal(signal.SIGTERM)
        runs.leave.set()
        runs.of(queue.client(), "held")
        assert ended(client, second).rescues == 0
        # Far beyond its lease: a worker that stops still beats.
        until(lambda: queue.value(beyond_its_lease(first)) == "t")
        (tmp_path / first).touch()
        assert program.line() == f"returned {first}"
        counts = json.loads(program.line())
        program.wait().passed()
    info = client.get_job(first)
    assert (info.state, info.attempt, info.rescues) == ("finished", 1, 0)
    assert (counts["finished"], counts["lost"]) == (1, 0)
    assert runs.ids == [second]


def test_a_job_that_kills_its_worker_four_times_fails_as_worker_lost_and_its_chain_goes_on(
    queue: Queue, tmp_path: Path, runs: Runs, ended: Ended
) -> None:
    programs = [Program("pg_worker", "work", queue.address(heartbeat=0.2), str(tmp_path), "deadly") for _ in range(5)]
    try:
        rescuer = runs.of(queue.client(heartbeat=0.2), "job")
        for program in programs:
            assert program.line().startswith("clock ")
        ids = rescuer.enqueue(PendingJob("deadly"), PendingJob("job"))
        assert ended(rescuer, ids[1]).state == "finished"
        info = rescuer.get_job(ids[0])
        assert (info.state, info.rescues) == ("failed", 3)
        assert info.error
        assert "worker lost" in info.error
        assert sum(program.process.poll() == -signal.SIGKILL for program in programs) == 4
    finally:
        for program in programs:
            program.__exit__(None, None, None)


# --- what waits must not hold up what could go on


def test_a_rescue_that_meets_a_locked_job_keeps_no_beat_waiting(
    queue: Queue, tmp_path: Path, runs: Runs, until: Until, ended: Ended
) -> None:
    client = queue.client()
    with worker_process(queue, tmp_path, "held") as program:
        (lost,) = client.enqueue(PendingJob("held"))
        assert program.line() == f"started {lost}"
        worker = runs.of(queue.client(), "held")
        (mine,) = client.enqueue(PendingJob("held"))
        until(lambda: runs.held == [mine])
        with Session(queue.url) as somebody:
            somebody.rows(queue.sql(f"BEGIN; SELECT FROM dejq.job WHERE id = '{lost}' FOR UPDATE"))
            program.signal(signal.SIGKILL)
            # By then somebody has tried.
            overdue = "SELECT count(*) FROM dejq.worker WHERE last_beat + 2 * lease < clock_timestamp()"
            until(lambda: queue.value(overdue) != "0")
            beats = counted(worker)["beats"]
            until(lambda: counted(worker)["beats"] > beats + 4 or runs.cancelled)
            assert not runs.cancelled
            somebody.rows("ROLLBACK")
    runs.leave.set()
    assert [ended(client, id).state for id in (lost, mine)] == ["finished", "finished"]
    assert client.get_job(lost).rescues == 1
    assert client.get_job(mine).rescues == 0
    assert not runs.twice
    assert counted(worker)["lost"] == 0


def test_jobs_that_never_arrived_and_are_locked_keep_no_beat_waiting(
    queue: Queue, proxy: Proxy, runs: Runs, until: Until, ended: Ended
) -> None:
    client = queue.client()
    claims = Executes(b".claim(", armed=False)
    proxy.drop_replies_of(claims, POSTGRES_IDLE)
    worker = runs.of(queue.client(queue.through_proxy), "held", "job")
    (mine,) = client.enqueue(PendingJob("held"))
    until(lambda: runs.held == [mine])
    claims.armed = True
    with Session(queue.url) as somebody:
        # The first claim that loses its answer may be one that found nothing.
        def is_lost() -> bool:
            lost = proxy.drop_replies_of(claims, POSTGRES_IDLE)
            enqueue_one(client)
            until(lost.is_set)
            taken = "SELECT id FROM dejq.job WHERE type = 'job' AND token IS NOT NULL FOR UPDATE"
            locked[:] = [str(id) for (id,) in somebody.rows(queue.sql(f"BEGIN; {taken}"))]
            if set(locked) - set(runs.ids):
                return True
            somebody.rows("ROLLBACK")
            return False

        locked: list[str] = []
        until(is_lost)
        beats = counted(worker)["beats"]
        until(lambda: counted(worker)["beats"] > beats + 4 or runs.cancelled)
        assert not runs.cancelled
        somebody.rows("ROLLBACK")
    assert [ended(client, id).state for id in locked] == ["finished"] * len(locked)
    runs.leave.set()
    assert ended(client, mine).state == "finished"
    assert not runs.twice


def test_an_enqueue_that_waits_for_somebodys_transaction_keeps_no_other_waiting(
    queue: Queue, until: Until, pool: ThreadPoolExecutor
) -> None:
    client = queue.client()
    client.stats()
    with Session(queue.url) as somebody:
        holder = somebody.rows(queue.sql("BEGIN; SELECT dejq.enqueue('job', \"unique\" => 'key')"))[0][0]
        waits = pool.submit(client.enqueue, PendingJob("job", unique="key"))
        until(lambda: queue.value("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1")
        free = pool.submit(client.enqueue, PendingJob("job"))
        try:
            assert len(free.result(timeout=5)) == 1
            assert not waits.done()
        finally:
            somebody.rows("COMMIT")
    assert waits.result() == [holder]


# --- nothing comes through, and nobody says so


def test_a_worker_in_a_black_hole_loses_its_job_to_another_and_is_told(
    queue: Queue, proxy: Proxy, until: Until, ended: Ended
) -> None:
    client = queue.client()
    first, second = Runs(), Runs()
    worker = first.of(queue.client(queue.through_proxy), "held", "job")
    (id,) = client.enqueue(PendingJob("held"))
    until(lambda: first.held == [id])
    proxy.black_hole(True)
    second.leave.set()
    other = second.of(queue.client(), "held")
    info = ended(client, id)
    assert (info.state, info.attempt, info.rescues) == ("finished", 1, 1)
    assert second.ids == [id]
    until(lambda: first.cancelled == [id])
    other.stop()
    proxy.black_hole(False)
    until(lambda: counted(worker)["lost"] == 1)
    assert client.get_job(id) == info
    # It goes on as if nothing had been.
    first.leave.set()
    ids = client.enqueue(PendingJob("held"), PendingJob("job"))
    assert [ended(client, id).rescues for id in ids] == [0, 0]
    assert first.ids == [id, *ids]


def test_a_claim_whose_answer_comes_after_its_lease_starts_nothing(
    queue: Queue, proxy: Proxy, until: Until, ended: Ended
) -> None:
    client = queue.client()
    first, second = Runs(), Runs()
    (id,) = client.enqueue(PendingJob("job"))
    with Session(queue.url) as somebody:
        somebody.rows(queue.sql("BEGIN; LOCK TABLE dejq.job"))
        worker = first.of(queue.client(queue.through_proxy), "job", "held")
        claims = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%.claim(%'"
        until(lambda: queue.value(claims) == "1")
        proxy.black_hole(True)
        somebody.rows("COMMIT")
    until(lambda: client.get_job(id).state == "running")
    second.of(queue.client(), "job")
    assert ended(client, id).rescues == 1
    proxy.black_hole(False)
    first.leave.set()
    (last,) = client.enqueue(PendingJob("held"))
    assert ended(client, last).state == "finished"
    assert second.ids == [id]
    assert first.ids == [last]
    assert counted(worker)["started"] == 1


def test_a_job_of_a_chain_that_is_handed_on_after_its_lease_is_not_started(
    queue: Queue, proxy: Proxy, until: Until, ended: Ended
) -> None:
    client = queue.client()
    first, second = Runs(), Runs()
    worker = first.of(queue.client(queue.through_proxy), "held", "job", "last")
    ids = client.enqueue(PendingJob("held"), PendingJob("job"))
    until(lambda: first.held == [ids[0]])
    with Session(queue.url) as somebody:
        somebody.rows(queue.sql("BEGIN; LOCK TABLE dejq.job"))
        first.leave.set()
        settles = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%.settle(%'"
        until(lambda: queue.value(settles) == "1")
        proxy.black_hole(True)
        somebody.rows("COMMIT")
    until(lambda: client.get_job(ids[1]).state == "running")
    second.of(queue.client(), "job")
    assert ended(client, ids[1]).rescues == 1
    proxy.black_hole(False)
    (last,) = client.enqueue(PendingJob("last"))
    assert ended(client, last).state == "finished"
    assert second.ids == [ids[1]]
    assert first.ids == [ids[0], last]
    assert counted(worker)["started"] == 2


def test_an_enqueue_into_a_black_hole_ends_when_its_patience_does(
    queue: Queue, proxy: Proxy, pool: ThreadPoolExecutor
) -> None:
    client = queue.client(queue.through_proxy)
    enqueue_one(client)
    proxy.black_hole(True)
    try:
        with pytest.raises(OutcomeUnknown) as caught:
            pool.submit(enqueue_one, client).result(timeout=12)
        assert len(caught.value.ids) == 1
    finally:
        proxy.black_hole(False)


# --- the server does not do what it is asked


def with_options(url: str, **settings: str) -> str:
    """The URL for sessions with these settings of the server's."""
    return f"{url}?options={quote(' '.join(f'-c {name}={value}' for name, value in settings.items()))}"


def test_a_server_that_only_reads_is_named_as_such(
    server: servers.Server, queue: Queue, pool: ThreadPoolExecutor, runs: Runs, until: Until, log: Log
) -> None:
    def refused(client: Client) -> str:
        with pytest.raises(BackendUnavailable) as caught:
            enqueue_one(client)
        return str(caught.value)

    with servers.standby(server) as standby:
        only_reads = queue.client(with_options(queue.url, default_transaction_read_only="on"))
        follower = queue.client(standby.url)
        picky = queue.client(f"{standby.url}?target_session_attrs=read-write")
        told = [pool.submit(refused, client) for client in (only_reads, follower, picky)]
        runs.of(queue.client(standby.url), "job")
        until(lambda: "claiming jobs failed" in log.text)
        assert "the server only reads" in log.text
        for text in (told[0].result(), told[1].result()):
            assert "enqueueing failed: the server only reads" in text
            assert "name all hosts in the URL and add target_session_attrs=read-write" in text
        assert "does not allow writes" in told[2].result()
        assert "wait for the failover to end, name all servers" in told[2].result()
        # What does not write works.
        assert follower.stats().enqueued_jobs == 0
        queue.clients[-1].stop()
    assert not queue.states()


@dataclass
class Disk:
    """Room for the database of a queue that can be used up: a small file system, or else what says that it is full."""

    url: str
    folder: Path | None

    def fill(self, queue: Queue) -> None:
        if not self.folder:
            queue.rows(queue.sql(_FULL))
            return
        with (self.folder / "ballast").open("wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC

    def free(self, queue: Queue) -> None:
        if self.folder:
            (self.folder / "ballast").unlink()
        else:
            queue.rows(queue.sql("DROP FUNCTION dejq.full CASCADE"))


_FULL = """
    CREATE FUNCTION dejq.full() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE 'could not extend file "base/5/16384": No space left on device' USING ERRCODE = 'disk_full';
    END $$;
    CREATE TRIGGER full_job BEFORE INSERT ON dejq.job EXECUTE FUNCTION dejq.full();
    CREATE TRIGGER full_done BEFORE INSERT ON dejq.done EXECUTE FUNCTION dejq.full();
"""


@pytest.fixture
def disk(server: servers.Server) -> Iterator[Disk]:
    """Only root may make a file system; the server itself cannot tell anybody else's from a full one."""
    assert server.folder
    folder = server.folder / "small"
    folder.mkdir()
    # Only the size differs from that of any other disk; a database of nothing takes 8 MB.
    mount = ("mount", "-t", "tmpfs", "-o", "size=24m,mode=777", "tmpfs", str(folder))
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield Disk(server.url, None)
        return
    try:
        (folder / "space").mkdir()
        shutil.chown(folder / "space", server.folder.stat().st_uid, server.folder.stat().st_gid)
        with Session(server.url) as session:
            session.rows(f"CREATE TABLESPACE small LOCATION '{folder / 'space'}'")
            session.rows("CREATE DATABASE small TABLESPACE small")
            yield Disk(urlsplit(server.url)._replace(path="/small").geturl(), folder)
            session.rows("DROP DATABASE small WITH (FORCE)")
            session.rows("DROP TABLESPACE small")
    finally:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)


def test_a_full_disk_refuses_jobs_clearly_and_loses_no_end_of_one(
    disk: Disk, proxy: Proxy, runs: Runs, until: Until
) -> None:
    # Of what cannot be compressed, so that it needs room.
    large = [PendingJob("large", os.urandom(200_000).hex()) for _ in range(10)]
    with new_queue(disk.url, proxy) as queue, Session(disk.url) as session:
        states = queue.sql("SELECT id, state FROM dejq.jobs")
        session.rows(states)
        worker, client = queue.client(heartbeat=CALM_HEARTBEAT), queue.client()
        worker.register_handler("held", runs.hold)
        runs.of(worker, "large", "job")
        (id,) = client.enqueue(PendingJob("held"))
        until(lambda: runs.held == [id])
        disk.fill(queue)
        errors = counted(worker)["store_errors"]
        runs.leave.set()
        with pytest.raises(BackendUnavailable, match="enqueueing failed: the server has no room left"):
            client.enqueue(*large)
        until(lambda: counted(worker)["store_errors"] > errors)
        assert session.rows(states) == [(id, "running")]
        disk.free(queue)
        ids = client.enqueue_many([*large, *jobs(10)])
        until(lambda: counted(worker)["finished"] == 21)
        assert sorted(runs.ids) == sorted([id, *ids])
        assert set(queue.states().values()) == {"finished"}
        assert counted(worker)["lost"] == counted(worker)["rescued"] == 0


@pytest.fixture
def database(server: servers.Server, queue: Queue) -> Iterator[str]:
    """The URL of a database of its own, for settings of its own."""
    with Session(server.url) as session:
        session.rows(f"CREATE DATABASE {queue.schema}")
        yield urlsplit(server.url)._replace(path=f"/{queue.schema}").geturl()
        session.rows(f"DROP DATABASE {queue.schema} WITH (FORCE)")


def test_what_a_lock_timeout_ends_is_repeated(
    database: str, proxy: Proxy, runs: Runs, until: Until, pool: ThreadPoolExecutor
) -> None:
    with Session(database) as session:
        session.rows(f"ALTER DATABASE {session.value('SELECT current_database()')} SET lock_timeout = '20ms'")
    with new_queue(database, proxy) as queue:
        worker = queue.client(heartbeat=CALM_HEARTBEAT)
        worker.register_handler("held", runs.hold)
        runs.of(worker, "job")
        (held,) = worker.enqueue(PendingJob("held"))
        until(lambda: runs.held == [held])
        with Session(database) as somebody:
            somebody.rows(queue.sql("BEGIN; LOCK TABLE dejq.job"))
            errors = counted(worker)["store_errors"]
            runs.leave.set()
            enqueued = pool.submit(enqueue_chain, queue.client())
            until(lambda: counted(worker)["store_errors"] > errors + 3)
            somebody.rows("COMMIT")
        ids = [held, *enqueued.result()]
        until(lambda: counted(worker)["finished"] == 4)
        assert runs.ids == ids
        assert set(queue.states().values()) == {"finished"}
        assert counted(worker)["lost"] == counted(worker)["rescued"] == 0


def test_an_end_that_was_the_victim_of_a_deadlock_is_stored_again(queue: Queue, runs: Runs, until: Until) -> None:
    # Who waits first looks first, and is the victim.
    worker = queue.client(with_options(queue.url, deadlock_timeout="1s"), heartbeat=CALM_HEARTBEAT)
    worker.register_handler("held", runs.hold)
    runs.of(worker, "job")
    ids = worker.enqueue(PendingJob("held"), PendingJob("job"))
    until(lambda: runs.held == ids[:1])
    lock = "SELECT FROM dejq.job WHERE id = '{}' FOR UPDATE"
    with Session(queue.url) as somebody:
        somebody.rows(queue.sql(f"SET deadlock_timeout = '1min'; BEGIN; {lock.format(ids[1])}"))
        runs.leave.set()
        settles = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%.settle(%'"
        until(lambda: queue.value(settles) == "1")
        errors = counted(worker)["store_errors"]
        somebody.rows(queue.sql(lock.format(ids[0])))
        until(lambda: counted(worker)["store_errors"] > errors)
        somebody.rows("COMMIT")
    until(lambda: counted(worker)["finished"] == 2)
    assert runs.ids == ids
    assert counted(worker)["lost"] == counted(worker)["rescued"] == 0


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_another_isolation_of_transactions_costs_repetitions_and_nothing_else(
    database: str, proxy: Proxy, runs: Runs, until: Until, isolation: str
) -> None:
    with Session(database) as session:
        name = session.value("SELECT current_database()")
        session.rows(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    with new_queue(database, proxy) as queue:
        workers = [runs.of(queue.client(heartbeat=CALM_HEARTBEAT), "job") for _ in range(3)]
        ids = queue.client().enqueue_many([jobs(3) for _ in range(50)])
        with Enqueuer(queue.client()) as enqueuer:
            until(lambda: len(enqueuer.confirmed) > 100)
        ids += enqueuer.confirmed
        until(lambda: sum(counted(worker)["finished"] for worker in workers) >= len(ids))
        assert sorted(runs.ids) == sorted(ids)
        assert not enqueuer.unknown
        assert set(queue.states().values()) == {"finished"}
        assert sum(counted(worker)["lost"] + counted(worker)["rescued"] for worker in workers) == 0


def as_role(queue: Queue, limit: int) -> tuple[str, str]:
    """A role that may do what a client needs, on so many connections; its name and its URL."""
    role = f"role_{queue.schema}"
    queue.rows(
        f"CREATE ROLE {role} LOGIN CONNECTION LIMIT {limit}; GRANT USAGE ON SCHEMA {queue.schema} TO {role};"
        f"GRANT ALL ON ALL TABLES IN SCHEMA {queue.schema} TO {role};"
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {queue.schema} TO {role}"
    )
    parts = urlsplit(queue.url)
    return role, parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}").geturl()


def test_too_many_connections_are_told_and_waited_for_and_take_no_beat_from_a_worker(
    queue: Queue, runs: Runs, until: Until, ended: Ended, pool: ThreadPoolExecutor
) -> None:
    role, url = as_role(queue, 20)
    worker = runs.of(queue.client(url), "held")
    (id,) = worker.enqueue(PendingJob("held"))
    until(lambda: runs.held == [id])
    until(lambda: counted(worker)["beats"])
    runs_of_thief = Runs()
    runs_of_thief.of(queue.client(), "held")
    queue.rows(f"ALTER ROLE {role} CONNECTION LIMIT 1")
    beats = counted(worker)["beats"]
    with pytest.raises(BackendUnavailable) as caught:
        enqueue_one(queue.client(url))
    assert "too many connections" in str(caught.value)
    assert "raise max_connections or the role's CONNECTION LIMIT, or use fewer clients" in str(caught.value)
    assert counted(worker)["beats"] > beats + 4
    waits = pool.submit(enqueue_one, queue.client(url))
    queue.rows(f"ALTER ROLE {role} CONNECTION LIMIT 20")
    assert len(waits.result()) == 1
    runs.leave.set()
    info = ended(worker, id)
    assert (info.state, info.rescues) == ("finished", 0)
    assert not runs_of_thief.held


def test_a_worker_without_a_connection_to_beat_on_takes_no_job(
    queue: Queue, runs: Runs, until: Until, ended: Ended, log: Log
) -> None:
    role, url = as_role(queue, 1)
    (id,) = enqueue_one(queue.client())
    worker = queue.client(url, listen=False)
    worker.register_handler("job", runs.hold)
    worker.dequeue_loop()
    until(lambda: "too many connections" in log.text)
    beatless = list(runs.held)
    queue.rows(f"ALTER ROLE {role} CONNECTION LIMIT 20")
    runs.leave.set()
    assert not beatless
    assert ended(queue.clients[0], id).rescues == 0
    assert runs.ids == [id]


# --- the way in is wrong

CANARY = "hunter2/%@:"


def test_each_wrong_way_in_is_told_by_its_class_and_never_shows_the_password(queue: Queue, log: Log) -> None:
    queue.rows("DROP ROLE IF EXISTS stranger; CREATE ROLE stranger LOGIN PASSWORD 'the right one'")
    where = urlsplit(queue.url).netloc.rpartition("@")[2]
    nobody = fault_proxy.Proxy(servers.HOST, 1)
    nobody.close()
    wrong: dict[str, tuple[str, str, type[dejq.DejqError], str]] = {
        "password": ("stranger", f"{where}/postgres", ConfigError, "check user and password"),
        "database": ("postgres", f"{where}/nowhere", ConfigError, 'database "nowhere" does not exist'),
        "role": ("no_one", f"{where}/postgres", ConfigError, 'role "no_one" does not exist'),
        "port": ("postgres", f"{servers.HOST}:{nobody.port}/postgres", BackendUnavailable, "refused"),
        "host": ("postgres", "nowhere.invalid/postgres", BackendUnavailable, "host, port and firewall"),
    }
    dejq.set_verbosity(3)
    for user, place, kind, text in wrong.values():
        client = queue.client(f"postgresql://{user}:{quote(CANARY, safe='')}@{place}")
        texts = [repr(client)]
        for ask in (client.stats, client.migrate, lambda client=client: client.get_job(JOB_ID), client.check):
            with pytest.raises(kind, match=text) as caught:
                ask()
            assert str(caught.value).startswith(kind.code)
            texts += [repr(caught.value), *traceback.format_exception(caught.value)]
        if kind is ConfigError:
            with pytest.raises(ConfigError, match=text):
                enqueue_one(client)
        # A worker goes on trying, and says why.
        client.register_handler("job", texts.append)
        log.records.clear()
        client.dequeue_loop()
        client.stop(timeout=0)
        texts += log.texts
        for shown in (CANARY, quote(CANARY, safe=""), "hunter2", "the right one"):
            assert not [each for each in texts if shown in each]


JOB_ID = "01890a5d-ac96-774b-bcce-b302099a8057"


# --- the schema is not there, or another


def cli(queue: Queue, *words: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "dejq", *words, "--url", queue.address())
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_a_missing_schema_is_told_with_the_command_that_makes_it_and_a_worker_waits_for_it(
    queue: Queue, runs: Runs, ended: Ended, until: Until, log: Log
) -> None:
    queue.schema = f"{queue.schema}_later"
    client = queue.client()
    with pytest.raises(SchemaMissing, match=f'no dejq schema "{queue.schema}".*create it once with `dejq migrate`'):
        enqueue_one(client)
    ended_badly = cli(queue, "stats")
    assert ended_badly.returncode == 4
    assert "dejq migrate" in ended_badly.stderr
    # Deployed at the same time as the migration, perhaps.
    worker = runs.of(queue.client(), "job")
    until(lambda: "claiming jobs failed" in log.text)
    assert "`dejq migrate`" in log.text
    assert cli(queue, "migrate").returncode == 0
    ids = enqueue_chain(client)
    assert [ended(worker, id).state for id in ids] == ["finished"] * 3


def test_an_older_schema_and_one_that_broke_with_this_version_are_told_apart(queue: Queue) -> None:
    queue.rows("DELETE FROM dejq.migration WHERE version = (SELECT max(version) FROM dejq.migration)")
    with pytest.raises(SchemaOutdated, match=r"this dejq needs .*upgrade it with `dejq migrate`"):
        enqueue_one(queue.client())
    ended_badly = cli(queue, "stats")
    assert ended_badly.returncode == 4
    assert "dejq migrate" in ended_badly.stderr
    newer = "INSERT INTO dejq.migration (version, name, breaking) VALUES ({}, 'of the future', {})"
    queue.rows(
        "INSERT INTO dejq.migration (version, name, breaking) SELECT max(version) + 1, '', false FROM dejq.migration"
    )
    queue.rows(newer.format(1001, "false"))
    assert len(enqueue_one(queue.client())) == 1
    queue.rows(newer.format(1002, "true"))
    with pytest.raises(SchemaOutdated, match="upgrade this dejq with `pip install -U dejq`"):
        enqueue_one(queue.client())
    ended_badly = cli(queue, "stats")
    assert ended_badly.returncode == 4
    assert "pip install -U dejq" in ended_badly.stderr
    assert "dejq migrate" not in ended_badly.stderr


# --- the worker's process


def test_a_handler_that_holds_the_interpreter_beyond_its_lease_keeps_its_job(
    queue: Queue, tmp_path: Path, runs: Runs, ended: Ended
) -> None:
    client = queue.client()
    with worker_process(queue, tmp_path, "gil") as program:
        (id,) = client.enqueue(PendingJob("gil", 4))
        assert program.line() == f"started {id}"
        thief = runs.of(queue.client(), "gil", "job")
        info = ended(client, id)
        assert program.line() == f"returned {id}"
        program.signal(signal.SIGTERM)
        counts = json.loads(program.line())
        program.wait().passed()
    assert (info.state, info.attempt, info.rescues) == ("finished", 1, 0)
    assert (counts["started"], counts["finished"], counts["lost"]) == (1, 1, 0)
    # Four seconds are more than two leases, and eight beats of half a second.
    assert counts["extended"] >= 6
    assert not runs.ids
    assert counted(thief)["rescued"] == 0


@pytest.mark.parametrize("day", ["+1d", "-1d"], ids=["ahead", "behind"])
def test_a_clock_that_is_a_day_off_changes_neither_order_nor_delays_nor_leases(
    queue: Queue,
    tmp_path: Path,
    runs: Runs,
    until: Until,
    ended: Ended,
    monkeypatch: pytest.MonkeyPatch,
    day: str,
) -> None:
    library = f"usr/lib/{sysconfig.get_config_var('MULTIARCH')}/faketime/libfaketime.so.1"
    faketime = debian.unpacked("faketime", packages=["libfaketime"], needs=[library]) / library
    client = queue.client(workers=1)
    skewed = {"LD_PRELOAD": str(faketime), "FAKETIME": day, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with monkeypatch.context() as patch:
        for name, value in skewed.items():
            patch.setenv(name, value)
        program = Program("pg_worker", "work", queue.address(), str(tmp_path), "relay", "held")
    with program:
        clock = float(program.line().removeprefix("clock "))
        assert abs(clock - time.time()) > 80_000
        # Jobs of one type, from here and from there by turns.
        for number in range(0, 6, 2):
            client.enqueue(PendingJob("job", number))
            there = PendingJob("relay", {"type": "job", "body": number + 1, "delay": None})
            ended(client, client.enqueue(there)[0])
        late = PendingJob("relay", {"type": "late", "body": None, "delay": 0.4})
        ended(client, client.enqueue(late)[0])
        bodies: list[int] = []
        client.register_handler("job", lambda job: bodies.append(job.body))
        client.register_handler("held", runs.note)
        client.register_handler("late", runs.note)
        client.dequeue_loop()
        infos = [ended(client, info.id) for info in client.list_jobs(type="job")]
        assert len(infos) == 6
        assert bodies == [0, 1, 2, 3, 4, 5]
        (info,) = client.list_jobs(type="late")
        info = ended(client, info.id)
        assert info.started_at
        assert timedelta(seconds=0.4) <= info.started_at - info.enqueued_at < timedelta(seconds=SECONDS)
        # Its lease is renewed, and not taken for one of yesterday or tomorrow.
        client.stop()
        watcher = queue.client()
        (id,) = watcher.enqueue(PendingJob("held"))
        assert program.line() == f"started {id}"
        runs.of(watcher, "held")
        until(lambda: queue.value(beyond_its_lease(id)) == "t")
        (tmp_path / id).touch()
        assert program.line() == f"returned {id}"
        assert ended(watcher, id).rescues == 0
        assert id not in runs.ids


# --- whose turn it is


def test_jobs_of_two_clients_start_in_the_order_in_which_they_were_enqueued(
    queue: Queue, runs: Runs, until: Until
) -> None:
    clients = [queue.client() for _ in range(2)]
    ids: list[str] = []
    for client in clients * 20:
        ids += enqueue_one(client)
        ids += client.enqueue_many(jobs(3))
    runs.of(queue.client(workers=1), "job")
    until(lambda: len(runs.ids) == len(ids))
    assert runs.ids == ids


def test_a_type_that_nobody_serves_holds_up_no_other(queue: Queue, runs: Runs, ended: Ended, until: Until) -> None:
    queue.rows(
        "INSERT INTO dejq.job (id, type, body) SELECT gen_random_uuid(), 'unserved', '0' FROM generate_series(1, 50000)"
    )
    seen = (
        "SELECT coalesce(seq_tup_read + idx_tup_fetch, 0), n_tup_upd, n_tup_del"
        " FROM pg_stat_all_tables WHERE relid = 'dejq.job'::regclass"
    )

    def statistics() -> list[int]:
        return [int(number or 0) for number in queue.rows(seen)[0]]

    read, updated, deleted = statistics()
    client = queue.client()
    ids = [id for _ in range(10) for id in enqueue_one(client)]
    runs.of(queue.client(workers=1, application_name=queue.schema), "job")
    assert [ended(client, id).state for id in ids] == ["finished"] * 10
    assert runs.ids == ids
    # A session hands in what it has read and written when it ends.
    queue.rows(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{queue.schema}'")
    until(lambda: statistics()[1] >= updated + 10 and statistics()[2] >= deleted + 10)
    assert statistics()[0] < read + 5_000
    assert client.stats().by_type["unserved"].ready == 50_000
