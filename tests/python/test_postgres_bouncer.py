"""Workers behind PgBouncer, which in transaction mode gives each statement to whatever connection is free.

Whatever a client leaves behind in a session, others of the pool get: so it must leave nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit
from uuid import uuid4

import psycopg
import pytest

import dejq
import servers
from dejq import Client, Job, PendingJob
from python.conftest import SECONDS, Ended, Log, Until
from python.programs.harness import Program
from servers import Server

# What a client says when it finds that no notification reaches it.
POLLS = "notifications do not reach this client"


class NewClient(Protocol):
    """Makes clients of one fresh schema, through PgBouncer unless a URL is given; they are stopped after the test."""

    def __call__(self, url: str | None = None, **options: Any) -> Client: ...


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with servers.postgres(own=True) as made:
        yield made


@pytest.fixture(scope="module", params=[10, 1], ids=lambda size: f"pool of {size}")
def pool_size(request: pytest.FixtureRequest) -> int:
    size: int = request.param
    return size


@pytest.fixture(scope="module")
def bouncer(server: Server, pool_size: int) -> Iterator[Server]:
    # In turn: so that a statement hardly ever meets the session of the one before it.
    settings = {"server_round_robin": "1"}
    with servers.pgbouncer(server, pool_mode="transaction", pool_size=pool_size, settings=settings) as made:
        yield made


@pytest.fixture
def schema() -> str:
    return f"test_{uuid4().hex}"


@pytest.fixture
def new_client(bouncer: Server, schema: str) -> Iterator[NewClient]:
    yield from clients(bouncer, schema)


def clients(bouncer: Server, schema: str) -> Iterator[NewClient]:
    made: list[Client] = []

    def make(url: str | None = None, **options: Any) -> Client:
        made.append(dejq.connect(url or bouncer.url, **{"schema": schema, "workers": 2, **options}))
        return made[-1]

    make().migrate()
    yield make
    for client in made:
        report = client.stop(timeout=SECONDS)
        assert not report.abandoned
        assert not report.forced


def connected(server: Server) -> psycopg.Connection:
    """Another client."""
    return psycopg.connect(server.url, prepare_threshold=None)


def listeners(server: Server, schema: str) -> int:
    """Sessions whose last statement was to listen for this schema."""
    with connected(server) as client:
        found = client.execute("SELECT FROM pg_stat_activity WHERE query LIKE %s", [f'LISTEN "dejq:{schema}"%'])
        return found.rowcount


class Runs:
    """Notes what ran, and says so."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []

    def __call__(self, job: Job) -> None:
        self.bodies.append(job.body)


# ---- everything works --------------------------------------------------------------------------------------


def test_a_worker_does_all_it_has_to(new_client: NewClient, ended: Ended, until: Until, log: Log) -> None:
    enqueuer, worker, runs = new_client(), new_client(), Runs()
    failing: list[int] = []

    def fail_once(job: Job) -> None:
        failing.append(job.attempt)
        if job.attempt == 1:
            raise ValueError("once")

    worker.register_handler("note", runs)
    worker.register_handler("fails", fail_once, max_attempts=2, backoff=dejq.Backoff(initial=0.01))
    worker.dequeue_loop()
    chain = enqueuer.enqueue(*(PendingJob("note", number) for number in range(20)))
    (retried,) = enqueuer.enqueue(PendingJob("fails"))
    # Enough for COPY.
    many = enqueuer.enqueue_many([PendingJob("note", "many")] * 3000)
    later = enqueuer.enqueue(PendingJob("note", "later", delay=0.05), PendingJob("note", "last"))
    for id in (*chain, retried, *later):
        assert ended(enqueuer, id).state == "finished"
    assert [body for body in runs.bodies if isinstance(body, int)] == list(range(20))
    assert failing == [1, 2]
    until(lambda: enqueuer.stats().enqueued_jobs == enqueuer.stats().running == 0)
    stats = enqueuer.stats()
    assert (stats.finished, stats.failed, stats.workers) == (20 + 1 + 3000 + 2, 0, 1)
    assert enqueuer.get_job(many[-1]).state == "finished"
    worker.stop(timeout=SECONDS)
    assert enqueuer.stats().workers == 0
    assert [text for text in log.texts if POLLS not in text and "ValueError" not in text] == []


def test_operators_can_do_all_they_can_elsewhere(new_client: NewClient) -> None:
    client = new_client()
    first, second = client.enqueue(PendingJob("a", {"n": 1}), PendingJob("b"))
    (other,) = client.enqueue(PendingJob("c", unique="one"))
    assert client.enqueue(PendingJob("c", unique="one")) == [other]
    assert {job.id for job in client.list_jobs()} == {first, second, other}
    assert [job.id for job in client.list_jobs(state="blocked")] == [second]
    client.finish_job(first)
    assert client.get_job(second).state == "ready"
    client.cancel_job(other)
    client.requeue_job(other)
    assert client.get_job(other).state == "ready"
    client.cancel_job(second)
    with pytest.raises(dejq.WrongState):
        client.cancel_job(second)
    with pytest.raises(dejq.UnknownJob):
        client.get_job(str(uuid4()))
    assert client.unresponsive_jobs(timedelta(seconds=1)) == []
    assert client.delete_finished(0) == 2
    client.vacuum()
    assert client.migrate().applied == ()
    assert all(finding.level != "error" for finding in client.check())
    assert client.stats().ready == 1


def test_a_job_of_a_worker_that_died_is_rescued(
    new_client: NewClient, bouncer: Server, schema: str, ended: Ended, tmp_path: Path
) -> None:
    client, runs = new_client(heartbeat=0.1), Runs()
    id, next = client.enqueue(PendingJob("deadly"), PendingJob("note", "next"))
    with Program("pg_worker", "work", f"{bouncer.url}?schema={schema}&heartbeat=0.1", str(tmp_path), "deadly") as dying:
        assert dying.line().startswith("clock")
        assert dying.line() == f"started {id}"
        assert dying.wait().code < 0
    client.register_handler("deadly", runs)
    client.register_handler("note", runs)
    client.dequeue_loop()
    assert ended(client, next).state == "finished"
    assert (client.get_job(id).rescues, runs.bodies) == (1, [None, "next"])


def test_a_stop_gives_back_and_flushes(new_client: NewClient, until: Until, event: threading.Event) -> None:
    worker, started = new_client(workers=1), threading.Event()

    def hold(job: Job) -> None:
        started.set()
        event.wait(SECONDS)

    worker.register_handler("hold", hold)
    jobs = worker.enqueue_many([PendingJob("hold")] * 3)
    worker.dequeue_loop()
    assert started.wait(SECONDS)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(worker.stop)
        until(lambda: not worker.stats().running or worker.stats().ready == 2)
        event.set()
        assert stopping.result(SECONDS).finished == 1
    assert sorted(worker.get_job(id).state for id in jobs) == ["finished", "ready", "ready"]


# ---- nobody is told ----------------------------------------------------------------------------------------


def test_a_worker_says_once_that_it_polls_and_finds_jobs(
    new_client: NewClient, ended: Ended, until: Until, log: Log
) -> None:
    worker, enqueuer, runs = new_client(), new_client(), Runs()
    worker.register_handler("note", runs)
    worker.dequeue_loop()
    until(lambda: POLLS in log.text)
    assert "listen_url=" in log.text
    for number in range(3):
        # Each waits until the worker looks again.
        (id,) = enqueuer.enqueue(PendingJob("note", number))
        assert ended(enqueuer, id).state == "finished"
    assert log.text.count(POLLS) == 1
    warnings = [finding for finding in worker.check() if finding.name == "notifications"]
    assert [finding.level for finding in warnings] == ["warn"]


def test_who_does_not_want_to_listen_does_not_and_hears_nothing_of_it(
    new_client: NewClient, server: Server, schema: str, ended: Ended, log: Log
) -> None:
    worker, runs = new_client(listen=False), Runs()
    worker.register_handler("note", runs)
    worker.dequeue_loop()
    for number in range(3):
        (id,) = worker.enqueue(PendingJob("note", number))
        assert ended(worker, id).state == "finished"
    assert listeners(server, schema) == 0
    assert [finding for finding in worker.check() if finding.name == "notifications"] == []
    assert log.texts == []


def test_a_listener_past_the_bouncer_is_told(
    new_client: NewClient, bouncer: Server, server: Server, schema: str, ended: Ended, until: Until, log: Log
) -> None:
    direct = urlsplit(server.url)
    # User and database are those of the bouncer's URL.
    worker, runs = new_client(listen_url=f"postgresql://{direct.hostname}:{direct.port}"), Runs()
    worker.register_handler("note", runs)
    worker.dequeue_loop()
    until(lambda: listeners(server, schema))
    (id,) = new_client().enqueue(PendingJob("note", 1))
    assert ended(worker, id).state == "finished"
    # In the URL's query too.
    new_client(f"{bouncer.url}?listen_url={quote(server.url)}").stats()
    assert [text for text in log.texts if POLLS in text] == []


def test_a_listener_that_cannot_connect_is_not_needed(
    new_client: NewClient, ended: Ended, until: Until, log: Log
) -> None:
    worker, runs = new_client(listen_url="postgresql://127.0.0.1:1"), Runs()
    worker.register_handler("note", runs)
    worker.dequeue_loop()
    until(lambda: "cannot connect to 127.0.0.1:1/" in log.text)
    (id,) = worker.enqueue(PendingJob("note", 1))
    assert ended(worker, id).state == "finished"
    # Once, although it tries on.
    assert len(log.texts) == 1
    assert log.texts[0].startswith("listening for jobs failed, so this client polls until it can: ")


# ---- nothing is left behind --------------------------------------------------------------------------------

# Of the session that answers: what it has prepared, what it listens to, and what was set in it. Its locks too.
LEFT = """
    SELECT 'prepared: ' || statement FROM pg_prepared_statements
    UNION ALL SELECT 'listens: ' || c FROM pg_listening_channels() c
    UNION ALL SELECT 'set: ' || name || '=' || setting FROM pg_settings
        WHERE source = 'session' AND name NOT IN ('application_name')
    UNION ALL SELECT 'locks: ' || l.objid FROM pg_locks l WHERE l.pid = pg_backend_pid() AND l.locktype = 'advisory'
    UNION ALL SELECT 'temporary: ' || c.relname FROM pg_class c WHERE c.relpersistence = 't'
"""


def left(bouncer: Server, pool_size: int) -> set[str]:
    """What there is in any session of the pool, each of which a transaction keeps from the others."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(connected(bouncer)) for _ in range(pool_size)]
        return {str(text) for session in sessions for (text,) in session.execute(LEFT)}


def test_nothing_is_left_in_the_sessions_of_the_pool(
    new_client: NewClient, bouncer: Server, pool_size: int, ended: Ended, until: Until, log: Log
) -> None:
    before = left(bouncer, pool_size)
    worker, enqueuer, runs = new_client(), new_client(), Runs()
    worker.register_handler("note", runs)
    worker.dequeue_loop()
    until(lambda: POLLS in log.text)
    ids = enqueuer.enqueue(PendingJob("note", 1), PendingJob("note", 2))
    enqueuer.enqueue_many([PendingJob("note")] * 2000)
    assert ended(enqueuer, ids[-1]).state == "finished"
    assert left(bouncer, pool_size) - before == set()
    worker.stop(timeout=SECONDS)
    assert left(bouncer, pool_size) - before == set()


# ---- the bouncer goes and comes back -----------------------------------------------------------------------


def test_a_restart_of_the_bouncer_is_survived(
    new_client: NewClient, bouncer: Server, ended: Ended, until: Until, event: threading.Event
) -> None:
    worker, enqueuer, started = new_client(), new_client(), threading.Event()
    held: list[str] = []

    def hold(job: Job) -> None:
        held.append(job.id)
        started.set()
        event.wait(SECONDS)

    worker.register_handler("hold", hold)
    worker.dequeue_loop()
    before, then = enqueuer.enqueue(PendingJob("hold"), PendingJob("hold"))
    assert started.wait(SECONDS)
    bouncer.restart()
    event.set()
    assert ended(enqueuer, then).state == "finished"
    (after,) = enqueuer.enqueue(PendingJob("hold"))
    assert ended(enqueuer, after).state == "finished"
    assert held == [before, then, after]


# ---- session mode ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_session(server: Server) -> Iterator[Server]:
    with servers.pgbouncer(server, pool_mode="session") as made:
        yield made


def test_in_session_mode_a_worker_is_told(
    by_session: Server, server: Server, schema: str, ended: Ended, until: Until, log: Log
) -> None:
    for make in clients(by_session, schema):
        worker, enqueuer, runs = make(), make(), Runs()
        worker.register_handler("note", runs)
        worker.dequeue_loop()
        until(lambda: listeners(server, schema))
        ids = enqueuer.enqueue(*(PendingJob("note", number) for number in range(5)))
        assert ended(enqueuer, ids[-1]).state == "finished"
        assert runs.bodies == list(range(5))
    assert log.texts == []
