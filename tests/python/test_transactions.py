"""Enqueue and finish in the caller's own transaction, with each kind of connection that dejq knows."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import dejq
from dejq import Backoff, Client, ConfigError, DejqError, Job, NotSupported, PendingJob, UnknownJob, WrongState, testing
from python import django_project
from python.programs.harness import run

if TYPE_CHECKING:
    from python.conftest import Ended, Until
    from python.postgres import PgClient

pytest_plugins = ["python.postgres"]


class Oops(Exception):
    """Ends a transaction without a commit."""


# ---- the connections: each in a transaction that ends with the `with` block ------------------------------


@dataclass(frozen=True)
class Opened:
    connection: Any
    execute: Callable[[str], Any]
    loop: asyncio.AbstractEventLoop | None = None

    def run(self, sql: str) -> None:
        if self.loop:
            self.loop.run_until_complete(self.execute(sql))
        else:
            self.execute(sql)

    def enqueue(self, client: Client, *jobs: PendingJob[Any], **options: Any) -> list[str]:
        if self.loop:
            return self.loop.run_until_complete(client.aenqueue(*jobs, connection=self.connection, **options))
        return client.enqueue(*jobs, connection=self.connection, **options)

    def finish(self, job: Job) -> None:
        if self.loop:
            self.loop.run_until_complete(job.afinish(connection=self.connection))
        else:
            job.finish(connection=self.connection)


Way = Callable[[str], AbstractContextManager[Opened]]
Awaitables = tuple[Any, Callable[[str], Awaitable[Any]]]


@contextmanager
def psycopg_connection(url: str, **options: Any) -> Iterator[Opened]:
    with psycopg.connect(url, **options) as connection:
        yield Opened(connection, lambda sql: connection.execute(sql.encode()))


@contextmanager
def psycopg_cursor(url: str) -> Iterator[Opened]:
    """With rows and parameters that are not the usual ones."""
    with psycopg_connection(url, row_factory=dict_row, cursor_factory=psycopg.RawCursor) as opened:
        yield Opened(opened.connection.cursor(), opened.execute)


@contextmanager
def psycopg2_connection(url: str, autocommit: bool = False) -> Iterator[Opened]:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = autocommit
        cursor = connection.cursor()
        yield Opened(connection, cursor.execute)
        connection.commit()


@contextmanager
def psycopg2_cursor(url: str) -> Iterator[Opened]:
    factory = psycopg2.extras.RealDictCursor
    with (
        closing(psycopg2.connect(url, cursor_factory=factory)) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        yield Opened(cursor, cursor.execute)


def engine_of(url: str, driver: str, **options: Any) -> sqlalchemy.Engine:
    return create_engine(url.replace("postgresql:", f"postgresql+{driver}:"), poolclass=NullPool, **options)


@contextmanager
def sqlalchemy_connection(url: str, driver: str, **options: Any) -> Iterator[Opened]:
    with engine_of(url, driver, **options).begin() as connection:
        yield Opened(connection, lambda sql: connection.execute(text(sql)))


@contextmanager
def sqlalchemy_session(url: str, driver: str) -> Iterator[Opened]:
    with Session(engine_of(url, driver)) as session, session.begin():
        yield Opened(session, lambda sql: session.execute(text(sql)))


@contextmanager
def sqlalchemy_scoped_session(url: str) -> Iterator[Opened]:
    session = scoped_session(sessionmaker(engine_of(url, "psycopg")))
    with session.begin():
        yield Opened(session, lambda sql: session.execute(text(sql)))
    session.remove()


@contextmanager
def django_connection(url: str, atomic: bool = True) -> Iterator[Opened]:
    django_project.set_up(url)
    from django.db import connection, transaction

    try:
        if not atomic:
            yield Opened(connection, lambda sql: connection.cursor().execute(sql))
            return
        with transaction.atomic():
            yield Opened(connection, lambda sql: connection.cursor().execute(sql))
    finally:
        connection.close()


@contextmanager
def django_wrapper(url: str) -> Iterator[Opened]:
    with django_connection(url) as opened:
        from django.db import connections

        yield Opened(connections["default"], opened.execute)


def awaited(way: Callable[[str], AbstractAsyncContextManager[Awaitables]]) -> Way:
    """The same from plain functions, on a loop of its own."""

    @contextmanager
    def opened(url: str) -> Iterator[Opened]:
        with closing(asyncio.new_event_loop()) as loop:
            manager = way(url)
            connection, execute = loop.run_until_complete(manager.__aenter__())
            try:
                yield Opened(connection, execute, loop)
            except BaseException as error:
                loop.run_until_complete(manager.__aexit__(type(error), error, error.__traceback__))
                raise
            loop.run_until_complete(manager.__aexit__(None, None, None))

    return opened


@asynccontextmanager
async def psycopg_async_connection(url: str, **options: Any) -> AsyncIterator[Awaitables]:
    async with await psycopg.AsyncConnection.connect(url, **options) as connection:
        yield connection, lambda sql: connection.execute(sql.encode())


@asynccontextmanager
async def psycopg_async_cursor(url: str) -> AsyncIterator[Awaitables]:
    """With rows and parameters that are not the usual ones."""
    options = {"row_factory": dict_row, "cursor_factory": psycopg.AsyncRawCursor}
    async with psycopg_async_connection(url, **options) as (connection, execute):
        yield connection.cursor(), execute


@asynccontextmanager
async def asyncpg_connection(url: str, in_transaction: bool = True) -> AsyncIterator[Awaitables]:
    connection = await asyncpg.connect(url)
    try:
        if not in_transaction:
            yield connection, connection.execute
            return
        async with connection.transaction():
            yield connection, connection.execute
    finally:
        await connection.close()


@asynccontextmanager
async def asyncpg_acquired(url: str) -> AsyncIterator[Awaitables]:
    async with (
        asyncpg.create_pool(url, min_size=1, max_size=1) as pool,
        pool.acquire() as connection,
        connection.transaction(),
    ):
        yield connection, connection.execute


@asynccontextmanager
async def sqlalchemy_async_connection(url: str, driver: str) -> AsyncIterator[Awaitables]:
    engine = create_async_engine(url.replace("postgresql:", f"postgresql+{driver}:"), poolclass=NullPool)
    async with engine.begin() as connection:
        yield connection, lambda sql: connection.execute(text(sql))


@asynccontextmanager
async def sqlalchemy_async_session(url: str, driver: str) -> AsyncIterator[Awaitables]:
    engine = create_async_engine(url.replace("postgresql:", f"postgresql+{driver}:"), poolclass=NullPool)
    async with AsyncSession(engine) as session, session.begin():
        yield session, lambda sql: session.execute(text(sql))


@asynccontextmanager
async def sqlalchemy_async_scoped_session(url: str) -> AsyncIterator[Awaitables]:
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"), poolclass=NullPool)
    session = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: 1)
    async with session.begin():
        yield session, lambda sql: session.execute(text(sql))
    await session.remove()


WAYS: dict[str, Way] = {
    "psycopg": psycopg_connection,
    "psycopg-cursor": psycopg_cursor,
    "psycopg-async": awaited(psycopg_async_connection),
    "psycopg-async-cursor": awaited(psycopg_async_cursor),
    "psycopg2": psycopg2_connection,
    "psycopg2-cursor": psycopg2_cursor,
    "asyncpg": awaited(asyncpg_connection),
    "asyncpg-pool": awaited(asyncpg_acquired),
    "sqlalchemy-psycopg": partial(sqlalchemy_connection, driver="psycopg"),
    "sqlalchemy-psycopg2": partial(sqlalchemy_connection, driver="psycopg2"),
    "sqlalchemy-psycopg-session": partial(sqlalchemy_session, driver="psycopg"),
    "sqlalchemy-psycopg2-session": partial(sqlalchemy_session, driver="psycopg2"),
    "sqlalchemy-scoped-session": sqlalchemy_scoped_session,
    "sqlalchemy-asyncpg": awaited(partial(sqlalchemy_async_connection, driver="asyncpg")),
    "sqlalchemy-psycopg-async": awaited(partial(sqlalchemy_async_connection, driver="psycopg")),
    "sqlalchemy-asyncpg-session": awaited(partial(sqlalchemy_async_session, driver="asyncpg")),
    "sqlalchemy-psycopg-async-session": awaited(partial(sqlalchemy_async_session, driver="psycopg")),
    "sqlalchemy-async-scoped-session": awaited(sqlalchemy_async_scoped_session),
    "django": django_connection,
    "django-wrapper": django_wrapper,
}
AUTOCOMMIT: dict[str, Way] = {
    "psycopg": partial(psycopg_connection, autocommit=True),
    "psycopg2": partial(psycopg2_connection, autocommit=True),
    "asyncpg": awaited(partial(asyncpg_connection, in_transaction=False)),
    "sqlalchemy": partial(sqlalchemy_connection, driver="psycopg", isolation_level="AUTOCOMMIT"),
    "django": partial(django_connection, atomic=False),
}


@pytest.fixture(params=WAYS.values(), ids=list(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    chosen: Way = request.param
    return chosen


@contextmanager
def rolled_back(way: Way, url: str) -> Iterator[Opened]:
    try:
        with way(url) as opened:
            yield opened
            raise Oops
    except Oops:
        pass


# ---- the queue, and a table for what handlers do ---------------------------------------------------------


@dataclass(frozen=True)
class Queue:
    url: str
    schema: str
    client: Client

    @property
    def effect(self) -> str:
        """What a handler does in its transaction."""
        return f"INSERT INTO {self.schema}.effect VALUES ('done')"

    @property
    def effects(self) -> int:
        with psycopg.connect(self.url) as connection:
            return len(connection.execute(f"SELECT FROM {self.schema}.effect".encode()).fetchall())

    def work(self, handler: Callable[[Job], Any], **options: Any) -> None:
        """Starts a worker that runs jobs of type t."""
        self.client.register_handler("t", handler, backoff=Backoff(initial=0.001, maximum=0.001), **options)
        self.client.dequeue_loop()


@pytest.fixture
def queue(pg_url: str, pg_schema: str, pg_client: PgClient) -> Queue:
    client = pg_client(workers=2)
    with psycopg.connect(pg_url) as connection:
        connection.execute(f"CREATE TABLE {pg_schema}.effect (what text)".encode())
    return Queue(pg_url, pg_schema, client)


def sqlstate(error: BaseException) -> str | None:
    """What the server said, whoever wrapped it."""
    driver = getattr(error, "orig", None) or error.__cause__ or error
    state: str | None = getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)
    return state


# ---- enqueue ---------------------------------------------------------------------------------------------


def test_a_job_appears_with_the_commit_and_then_runs(way: Way, queue: Queue, ended: Ended) -> None:
    bodies: list[object] = []
    queue.work(lambda job: bodies.append(job.body))
    with way(queue.url) as opened:
        ids = opened.enqueue(queue.client, PendingJob("t", {"n": 1}))
        with pytest.raises(UnknownJob):
            queue.client.get_job(ids[0])
    assert [type(ids), *map(type, ids)] == [list, str]
    assert ended(queue.client, ids[0]).state == "finished"
    assert bodies == [{"n": 1}]


def test_after_a_rollback_there_was_no_job(way: Way, queue: Queue) -> None:
    with rolled_back(way, queue.url) as opened:
        opened.run(queue.effect)
        (id,) = opened.enqueue(queue.client, PendingJob("t"))
    with pytest.raises(UnknownJob):
        queue.client.get_job(id)
    assert queue.client.stats().enqueued_jobs == 0
    assert queue.effects == 0


def test_several_jobs_are_a_chain_in_order(way: Way, queue: Queue, ended: Ended) -> None:
    def fail(job: Job) -> None:
        raise Oops

    with way(queue.url) as opened:
        chain = [PendingJob("t", n) for n in range(3)]
        ids = opened.enqueue(queue.client, *chain, on_failure="cancel")
        others = opened.enqueue(queue.client, PendingJob("t", 3)) + opened.enqueue(queue.client, PendingJob("t", 4))
    jobs = [queue.client.get_job(id) for id in ids]
    assert [(job.body, job.chain_id, job.position, job.chain_length) for job in jobs] == [
        (n, ids[0], n + 1, 3) for n in range(3)
    ]
    assert sorted(ids + others) == ids + others
    assert [queue.client.get_job(id).state for id in ids + others] == ["ready", "blocked", "blocked", "ready", "ready"]
    queue.work(fail)
    assert [ended(queue.client, id).state for id in ids] == ["failed", "cancelled", "cancelled"]


def test_what_a_job_asks_for_is_kept(way: Way, queue: Queue) -> None:
    headers = {"trace": "é '\"\\ % {} :x $1"}
    with way(queue.url) as opened:
        (id,) = opened.enqueue(queue.client, PendingJob("t", delay=3600, max_attempts=7, headers=headers))
    job = queue.client.get_job(id)
    assert (job.state, job.max_attempts, job.headers) == ("scheduled", 7, headers)


def test_the_id_of_a_unique_job_is_that_of_the_one_that_holds_its_key(way: Way, queue: Queue) -> None:
    with way(queue.url) as opened:
        first = opened.enqueue(queue.client, PendingJob("t", 1, unique="key"))
        assert opened.enqueue(queue.client, PendingJob("t", 2, unique="key")) == first
    with way(queue.url) as opened:
        assert opened.enqueue(queue.client, PendingJob("t", 3, unique="key")) == first
    assert queue.client.stats().enqueued_jobs == 1
    assert queue.client.get_job(first[0]).body == 1


BODIES: list[Any] = [
    None,
    "\0 and \\u0000",
    "'single' \"double\" $$ \\ -- /* ;",
    "% %s %(a)s %% {} {0} {{}} :a ::b :v1 $1 ? CAST({} AS text)",
    "é 漢 😀 \u2028",
    {"b": 1, "a": [10**300, -0.0, True, {"\0": "\0"}]},
    "x" * (1024 * 1024 - 2),
]


def test_every_body_comes_back_as_it_was(way: Way, queue: Queue) -> None:
    with way(queue.url) as opened:
        ids = [opened.enqueue(queue.client, PendingJob("t", body))[0] for body in BODIES]
    assert [queue.client.get_job(id).body for id in ids] == BODIES


@pytest.mark.parametrize("way", AUTOCOMMIT.values(), ids=list(AUTOCOMMIT))
def test_without_a_transaction_a_job_is_there_at_once(way: Way, queue: Queue) -> None:
    with rolled_back(way, queue.url) as opened:
        (id,) = opened.enqueue(queue.client, PendingJob("t"))
        assert queue.client.get_job(id).state == "ready"
    assert queue.client.get_job(id).state == "ready"


def test_a_savepoint_undoes_what_was_enqueued_since(way: Way, queue: Queue) -> None:
    with way(queue.url) as opened:
        kept = opened.enqueue(queue.client, PendingJob("t"))
        opened.run("SAVEPOINT s")
        opened.enqueue(queue.client, PendingJob("t"))
        opened.run("ROLLBACK TO SAVEPOINT s")
    assert [job.id for job in queue.client.list_jobs()] == kept


def test_a_session_of_sqlalchemy_works_within_run_sync(queue: Queue) -> None:
    async def enqueue() -> list[str]:
        engine = create_async_engine(queue.url.replace("postgresql:", "postgresql+asyncpg:"), poolclass=NullPool)
        async with AsyncSession(engine) as session, session.begin():
            return await session.run_sync(lambda sync: queue.client.enqueue(PendingJob("t"), connection=sync))

    (id,) = asyncio.run(enqueue())
    assert queue.client.get_job(id).state == "ready"


SYNC = ["psycopg", "psycopg-cursor", "psycopg2", "psycopg2-cursor", "sqlalchemy-psycopg", "sqlalchemy-psycopg2-session"]


@pytest.mark.parametrize("way", [WAYS[name] for name in SYNC], ids=SYNC)
def test_a_coroutine_may_use_a_connection_that_blocks(way: Way, queue: Queue) -> None:
    with way(queue.url) as opened:
        ids = asyncio.run(queue.client.aenqueue(PendingJob("t"), connection=opened.connection))
        with pytest.raises(UnknownJob):
            queue.client.get_job(ids[0])
    assert queue.client.get_job(ids[0]).state == "ready"


# ---- what is refused -------------------------------------------------------------------------------------


def test_in_a_transaction_that_was_aborted_the_driver_says_so(way: Way, queue: Queue) -> None:
    with rolled_back(way, queue.url) as opened:
        with pytest.raises(Exception, match="zero"):
            opened.run("SELECT 1 / 0")
        with pytest.raises(Exception, match="aborted") as caught:
            opened.enqueue(queue.client, PendingJob("t"))
        assert sqlstate(caught.value) == "25P02"
        assert not isinstance(caught.value, DejqError)


def test_where_nothing_was_migrated_the_driver_says_so_and_shows_no_body(way: Way, pg_url: str) -> None:
    client = dejq.connect(pg_url, schema="test_that_is_not_there")
    with rolled_back(way, pg_url) as opened:
        with pytest.raises(Exception, match="does not exist") as caught:
            opened.enqueue(client, PendingJob("t", "the secret"))
        assert sqlstate(caught.value) == "3F000"
        assert "secret" not in "".join(map(repr, [caught.value, str(caught.value), caught.value.args]))


CLOSED: dict[str, tuple[Way, type[Exception]]] = {
    "psycopg": (psycopg_connection, psycopg.OperationalError),
    "psycopg2": (psycopg2_connection, psycopg2.InterfaceError),
}


@pytest.mark.parametrize(("way", "error"), CLOSED.values(), ids=list(CLOSED))
def test_of_a_connection_that_is_closed_the_driver_says_so(way: Way, error: type[Exception], queue: Queue) -> None:
    with rolled_back(way, queue.url) as opened:
        opened.connection.close()
        with pytest.raises(error, match="closed"):
            opened.enqueue(queue.client, PendingJob("t"))


def test_a_connection_that_has_to_be_awaited_is_refused_by_enqueue(way: Way, queue: Queue) -> None:
    with way(queue.url) as opened:
        if opened.loop:
            with pytest.raises(ConfigError, match=r"use await client\.aenqueue\(…, connection=…\)"):
                queue.client.enqueue(PendingJob("t"), connection=opened.connection)
    assert queue.client.stats().enqueued_jobs == 0


class Lookalike:
    """Has what a connection has, except that dejq knows it."""

    def execute(self, sql: str) -> None: ...


def unknown(url: str) -> dict[str, tuple[object, str]]:
    sync, other = engine_of(url, "psycopg"), create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
    return {
        "test_transactions.Lookalike": (Lookalike(), "pass one of psycopg, psycopg2, asyncpg or SQLAlchemy"),
        "builtins.str": (url, "pass one of psycopg"),
        "sqlalchemy.Engine": (sync, "acquire a connection from it"),
        "sqlalchemy.AsyncEngine": (other, "acquire a connection from it"),
    }


def test_what_is_no_connection_is_refused_by_name_and_with_what_to_pass(queue: Queue) -> None:
    async def with_pool() -> None:
        async with asyncpg.create_pool(queue.url, min_size=1, max_size=1) as pool:
            with pytest.raises(ConfigError, match=r"is a asyncpg\.Pool.* acquire a connection from it"):
                await queue.client.aenqueue(PendingJob("t"), connection=pool)

    asyncio.run(with_pool())
    for name, (connection, fix) in unknown(queue.url).items():
        for enqueue in (queue.client.enqueue, lambda *jobs, **to: asyncio.run(queue.client.aenqueue(*jobs, **to))):
            with pytest.raises(ConfigError, match=f"{name.partition('.')[2]}.* {fix}") as caught:
                enqueue(PendingJob("t"), connection=connection)
            assert queue.url not in str(caught.value)
    assert queue.client.stats().enqueued_jobs == 0


def test_the_connection_of_django_is_refused_where_it_would_be_another_one(queue: Queue) -> None:
    refused = pytest.raises(ConfigError, match=r"use client\.enqueue\(…, connection=…\)")
    with django_connection(queue.url) as opened, refused:
        asyncio.run(queue.client.aenqueue(PendingJob("t"), connection=opened.connection))
    assert queue.client.stats().enqueued_jobs == 0


def test_a_store_without_transactions_refuses_any_connection(queue: Queue) -> None:
    refused: list[str] = []

    def handler(job: Job) -> None:
        with pytest.raises(NotSupported, match="memory") as caught:
            job.finish(connection=Lookalike())
        refused.append(str(caught.value))

    client = dejq.memory(inline=True)
    client.register_handler("t", handler)
    client.enqueue(PendingJob("t"))
    with pytest.raises(NotSupported, match="memory"), psycopg_connection(queue.url) as opened:
        opened.enqueue(client, PendingJob("t"))
    assert len(refused) == 1


# ---- finish ----------------------------------------------------------------------------------------------


def test_a_job_is_finished_with_the_commit_of_its_effect(way: Way, queue: Queue, ended: Ended) -> None:
    before: list[str] = []

    def handler(job: Job) -> None:
        with way(queue.url) as opened:
            opened.run(queue.effect)
            opened.finish(job)
            before.append(queue.client.get_job(job.id).state)

    queue.work(handler)
    job = ended(queue.client, queue.client.enqueue(PendingJob("t"))[0])
    queue.client.stop()
    assert (job.state, job.attempt, job.error, before, queue.effects) == ("finished", 1, None, ["running"], 1)
    assert queue.client._native.counted()["finished"] == queue.client.stats().finished == 1


def test_an_attempt_whose_transaction_was_rolled_back_has_failed_and_is_retried(
    way: Way, queue: Queue, ended: Ended
) -> None:
    def handler(job: Job) -> None:
        try:
            with way(queue.url) as opened:
                opened.run(queue.effect)
                opened.finish(job)
                if job.attempt < job.body:
                    raise Oops
        except Oops:
            pass

    queue.work(handler, max_attempts=2)
    retried = ended(queue.client, queue.client.enqueue(PendingJob("t", 2))[0])
    assert (retried.state, retried.attempt, queue.effects) == ("finished", 2, 1)
    failed = ended(queue.client, queue.client.enqueue(PendingJob("t", 3))[0])
    assert (failed.state, failed.attempt, queue.effects) == ("failed", 2, 1)
    assert "not committed" in (failed.error or "")


def test_a_transaction_that_is_left_open_holds_up_its_own_job_only(queue: Queue, ended: Ended, until: Until) -> None:
    left_open: list[psycopg.Connection[Any]] = []

    def handler(job: Job) -> None:
        if job.body == "leave open":
            left_open.append(psycopg.connect(queue.url))
            job.finish(connection=left_open[0])

    queue.work(handler)
    (forgotten,) = queue.client.enqueue(PendingJob("t", "leave open"))
    until(lambda: left_open)
    for _ in range(3):
        (id,) = queue.client.enqueue(PendingJob("t"))
        assert ended(queue.client, id).state == "finished"
    assert queue.client.get_job(forgotten).state == "running"
    left_open[0].close()
    assert "not committed" in (ended(queue.client, forgotten).error or "")


def test_drain_keeps_the_rule_as_a_worker_does(queue: Queue, pg_url: str) -> None:
    def handler(job: Job) -> None:
        connection = psycopg.connect(pg_url)
        job.finish(connection=connection)
        if job.body == "commit":
            connection.commit()
        connection.close()

    queue.client.register_handler("t", handler)
    ids = [queue.client.enqueue(PendingJob("t", end))[0] for end in ("commit", "forget")]
    testing.drain(queue.client)
    assert [queue.client.get_job(id).state for id in ids] == ["finished", "failed"]


def test_an_attempt_that_raises_after_the_finish_has_failed_as_ever(way: Way, queue: Queue, ended: Ended) -> None:
    def handler(job: Job) -> None:
        with way(queue.url) as opened:
            opened.run(queue.effect)
            opened.finish(job)
            raise Oops("after the finish")

    queue.work(handler)
    job = ended(queue.client, queue.client.enqueue(PendingJob("t"))[0])
    assert (job.state, queue.effects) == ("failed", 0)
    assert "after the finish" in (job.error or "")


def test_a_stale_lease_raises_wrong_state_and_the_effect_is_undone(way: Way, queue: Queue, ended: Ended) -> None:
    lost: list[str] = []
    raised: list[BaseException] = []

    def handler(job: Job) -> None:
        if not lost:
            lost.append(job.id)
            queue.client.requeue_job(job.id)
        try:
            with way(queue.url) as opened:
                opened.run(queue.effect)
                opened.finish(job)
        except BaseException as error:
            raised.append(error)
            raise

    queue.work(handler)
    job = ended(queue.client, queue.client.enqueue(PendingJob("t"))[0])
    queue.client.stop()
    (error,) = raised
    assert type(error) is WrongState
    assert job.id in str(error)
    assert sqlstate(error) == "DQ003"
    assert (job.state, queue.effects) == ("finished", 1)


def test_a_chain_goes_on_after_a_finish_and_so_does_what_it_enqueued(way: Way, queue: Queue, ended: Ended) -> None:
    order: list[object] = []

    def handler(job: Job) -> None:
        order.append(job.body)
        with way(queue.url) as opened:
            opened.run(queue.effect)
            if job.body == "last":
                opened.enqueue(queue.client, PendingJob("t", "enqueued", unique="enqueued"))
            opened.finish(job)

    queue.work(handler)
    ids = queue.client.enqueue(PendingJob("t", "first"), PendingJob("t", "last"))
    assert [ended(queue.client, id).state for id in ids] == ["finished", "finished"]
    (enqueued,) = (job.id for job in queue.client.list_jobs() if job.body == "enqueued")
    assert ended(queue.client, enqueued).state == "finished"
    assert (order, queue.effects) == (["first", "last", "enqueued"], 3)


@pytest.mark.parametrize("way", AUTOCOMMIT.values(), ids=list(AUTOCOMMIT))
def test_without_a_transaction_a_job_is_finished_at_once(way: Way, queue: Queue, ended: Ended) -> None:
    before: list[str] = []

    def handler(job: Job) -> None:
        with way(queue.url) as opened:
            opened.finish(job)
            before.append(queue.client.get_job(job.id).state)
            raise Oops

    queue.work(handler, max_attempts=2)
    job = ended(queue.client, queue.client.enqueue(PendingJob("t"))[0])
    queue.client.stop()
    assert (before, queue.client.get_job(job.id)) == (["finished"], job)


def test_a_handler_that_raises_after_the_commit_changes_nothing(queue: Queue, ended: Ended) -> None:
    runs: list[int] = []

    def handler(job: Job) -> None:
        runs.append(job.attempt)
        with psycopg_connection(queue.url) as opened:
            opened.finish(job)
        raise Oops

    queue.work(handler, max_attempts=2)
    job = ended(queue.client, queue.client.enqueue(PendingJob("t"))[0])
    queue.client.stop()
    assert (runs, queue.client.get_job(job.id).state) == ([1], "finished")


def test_a_handler_may_try_its_transaction_again(queue: Queue, ended: Ended) -> None:
    def handler(job: Job) -> None:
        for last in (False, True):
            with psycopg.connect(queue.url) as connection:
                connection.execute(queue.effect.encode())
                job.finish(connection=connection)
                if not last:
                    connection.rollback()

    queue.work(handler)
    job = ended(queue.client, queue.client.enqueue(PendingJob("t"))[0])
    assert (job.state, job.attempt, queue.effects) == ("finished", 1, 1)


def test_a_coroutine_finishes_its_job(queue: Queue, ended: Ended) -> None:
    async def handler(job: Job) -> None:
        async with asyncpg_connection(queue.url) as (connection, execute):
            await execute(queue.effect)
            with pytest.raises(ConfigError, match=r"use await job\.afinish\(…, connection=…\)"):
                job.finish(connection=connection)
            await job.afinish(connection=connection)

    queue.work(handler)
    job = ended(queue.client, queue.client.enqueue(PendingJob("t"))[0])
    assert (job.state, job.error, queue.effects) == ("finished", None, 1)


def test_a_coroutine_finishes_its_job_by_a_connection_that_blocks(queue: Queue, ended: Ended) -> None:
    async def handler(job: Job) -> None:
        with psycopg_connection(queue.url) as opened:
            opened.run(queue.effect)
            await job.afinish(connection=opened.connection)

    queue.work(handler)
    job = ended(queue.client, queue.client.enqueue(PendingJob("t"))[0])
    assert (job.state, job.error, queue.effects) == ("finished", None, 1)


def test_a_refused_connection_leaves_the_end_to_the_handler(queue: Queue, ended: Ended) -> None:
    def handler(job: Job) -> None:
        with pytest.raises(ConfigError, match="Lookalike"):
            job.finish(connection=Lookalike())

    queue.work(handler)
    assert ended(queue.client, queue.client.enqueue(PendingJob("t"))[0]).state == "finished"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_effect_happens_once_though_the_worker_is_killed_around_its_commit(
    moment: str, pg_client: PgClient, queue: Queue, ended: Ended
) -> None:
    (id,) = queue.client.enqueue(PendingJob("t"))
    program = run("pg_finish", moment, queue.url, queue.schema)
    assert program.code == -signal.SIGKILL, str(program)
    assert queue.client.get_job(id).state == ("running" if moment == "before" else "finished")

    def handler(job: Job) -> None:
        with psycopg_connection(queue.url) as opened:
            opened.run(queue.effect)
            opened.finish(job)

    other = pg_client(workers=1, heartbeat=0.2)
    other.register_handler("t", handler)
    other.dequeue_loop()
    job = ended(other, id)
    assert (job.state, job.rescues, queue.effects) == ("finished", int(moment == "before"), 1)
