"""What the Postgres store has for its users: options, migrations by hand, coroutines that need no thread."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import dejq
from dejq import Client, Job, PendingJob, testing
from dejq.cli import main

if TYPE_CHECKING:
    from python.conftest import Until
    from python.postgres import PgClient

pytest_plugins = ["python.postgres"]

# Far beyond what anything here takes.
SECONDS = 30.0


def is_there(client: Client, id: str) -> bool:
    try:
        return bool(client.get_job(id))
    except dejq.UnknownJob:
        return False


# ---- options ---------------------------------------------------------------------------------------------


def test_a_worker_forgets_what_ended_longer_ago_than_the_retention(pg_client: PgClient, until: Until) -> None:
    client = pg_client(heartbeat=0.05, retention=1)
    client.register_handler("t", lambda job: None)
    client.dequeue_loop()
    (ended, waits) = (client.enqueue(PendingJob("t"))[0], client.enqueue(PendingJob("unserved"))[0])
    until(lambda: not is_there(client, ended))
    assert is_there(client, waits)
    assert client.stats().finished == 1


def test_without_a_retention_nothing_is_forgotten(pg_client: PgClient, until: Until) -> None:
    client = pg_client(heartbeat=0.05)
    client.register_handler("t", lambda job: None)
    client.dequeue_loop()
    (id,) = client.enqueue(PendingJob("t"))
    until(lambda: client.get_job(id).state == "finished")
    beats = client._native.counted()["beats"]
    until(lambda: client._native.counted()["beats"] > beats + 5)  # and as many rescues, which would do it
    assert client.get_job(id).state == "finished"


def test_finished_jobs_are_dropped_at_once_when_asked_for_and_failed_ones_are_kept(pg_client: PgClient) -> None:
    client = pg_client(keep_finished=False)

    def handler(job: Job) -> None:
        if job.body:
            raise ValueError

    client.register_handler("t", handler)
    finished, failed = client.enqueue(PendingJob("t", 0))[0], client.enqueue(PendingJob("t", 1))[0]
    testing.drain(client)
    assert (is_there(client, finished), client.get_job(failed).state) == (False, "failed")
    assert (client.stats().finished, client.stats().failed) == (1, 1)


def test_a_body_of_ten_megabytes_fits_when_the_limit_is_raised(pg_client: PgClient) -> None:
    text = "ż" * 5_000_000
    with pytest.raises(dejq.BodyTooLarge):
        pg_client().enqueue(PendingJob("t", text))
    client, bodies = pg_client(max_body=20_000_000), list[Any]()
    client.register_handler("t", lambda job: bodies.append(job.body))
    client.enqueue(PendingJob("t", text))
    testing.drain(client)
    assert bodies == [text]


@pytest.mark.parametrize("name", ["order", "a name with spaces", "Upper-Case"])
def test_a_schema_may_have_a_name_that_sql_reads_otherwise(pg_client: PgClient, name: str) -> None:
    client, ran = pg_client(schema=name), list[int]()
    client.register_handler("t", lambda job: ran.append(job.body))
    client.enqueue(PendingJob("t", 1), PendingJob("t", 2))
    testing.drain(client)
    assert ran == [1, 2]


@pytest.mark.parametrize("name", ['a"b', "a'b", "a.b", "ünï", "pg_mine", "x" * 59, ""])
def test_a_schema_that_cannot_have_its_name_is_refused_with_what_it_may_be(pg_url: str, name: str) -> None:
    with pytest.raises(dejq.ConfigError, match="A-Z a-z 0-9 _ - and space"):
        dejq.postgres(pg_url, schema=name)


# ---- migrations by hand ----------------------------------------------------------------------------------


def test_what_migrate_sql_prints_makes_the_schema(
    pg_url: str, pg_schema: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{pg_url}{'&' if '?' in pg_url else '?'}schema={pg_schema}"
    assert main(["migrate", "sql", "--url", url]) == 4
    with psycopg.connect(pg_url) as connection:
        connection.execute(capsys.readouterr().out.encode())
    assert main(["migrate", "status", "--url", url]) == 0
    with dejq.connect(url) as client:
        assert client.migrate().applied == ()
        client.register_handler("t", lambda job: None)
        client.enqueue(PendingJob("t"))
        assert testing.drain(client) == 1


# ---- coroutines ------------------------------------------------------------------------------------------


def test_many_coroutines_enqueue_at_once_and_none_of_them_takes_a_thread(pg_client: PgClient) -> None:
    client = pg_client()

    async def enqueue() -> list[list[str]]:
        client.stats()  # starts what runs in any case
        threads = threading.active_count()
        ids = await asyncio.gather(*(client.aenqueue(PendingJob("t", n)) for n in range(100)))
        assert threading.active_count() == threads
        return ids

    ids = [id for (id,) in asyncio.run(enqueue())]
    assert [client.get_job(id).state for id in ids] == ["ready"] * 100
    assert len(set(ids)) == 100


def test_event_loops_of_several_threads_get_their_own_answers(pg_client: PgClient) -> None:
    client, states = pg_client(), list[str]()

    async def enqueue() -> None:
        for _ in range(20):
            (id,) = await client.aenqueue(PendingJob("t"))
            states.append(client.get_job(id).state)

    threads = [threading.Thread(target=asyncio.run, args=(enqueue(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states == ["ready"] * 80


def test_a_coroutine_that_is_cancelled_takes_no_other_along(pg_client: PgClient) -> None:
    client = pg_client()

    async def enqueue() -> None:
        impatient, patient = (asyncio.create_task(client.aenqueue(PendingJob("t"))) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        assert client.get_job((await patient)[0]).state == "ready"

    asyncio.run(enqueue())


def test_a_coroutine_gets_the_errors_that_a_thread_gets(pg_client: PgClient) -> None:
    async def refused(client: Client, body: object) -> dejq.DejqError:
        with pytest.raises(dejq.DejqError) as error:
            await client.aenqueue(PendingJob("t", body))
        return error.value

    assert isinstance(asyncio.run(refused(pg_client(), float("nan"))), dejq.BodyError)
    assert isinstance(asyncio.run(refused(pg_client(), "x" * 2**20)), dejq.BodyTooLarge)
    nowhere = dejq.connect("postgresql://postgres@127.0.0.1:1/db")
    assert isinstance(asyncio.run(refused(nowhere, 1)), dejq.BackendUnavailable)


# ---- who waits is told -----------------------------------------------------------------------------------


def test_a_chain_that_goes_on_at_another_worker_is_announced_to_it(
    pg_url: str, pg_schema: str, pg_client: PgClient, until: Until
) -> None:
    first, second, ran = pg_client(), pg_client(), list[str]()
    first.register_handler("a", lambda job: ran.append("a"))
    second.register_handler("b", lambda job: ran.append("b"))
    with psycopg.connect(pg_url, autocommit=True) as listener:
        listener.execute(f'LISTEN "dejq:{pg_schema}"'.encode())
        second.dequeue_loop()
        waits = f"SELECT count(*) FROM {pg_schema}.worker WHERE listens_until > now()".encode()
        until(lambda: listener.execute(waits).fetchone() == (1,))
        first.dequeue_loop()
        first.enqueue(PendingJob("a"), PendingJob("b"))
        with closing(listener.notifies(timeout=SECONDS)) as heard:
            assert any(notification.payload == "b" for notification in heard)
    until(lambda: ran == ["a", "b"])


# ---- looking back ----------------------------------------------------------------------------------------

# So slow, as behind many dead entries of the index, that no claim makes them.
SLOW_LOOKS_FROM_THE_BEGINNING = """
    DO $do$ BEGIN
        EXECUTE regexp_replace(
            pg_get_functiondef('claim'::regproc),
            'BEGIN',
            'BEGIN IF 0 = ANY (after) THEN PERFORM pg_sleep(0.1); END IF;');
    END $do$
"""


def test_a_job_that_came_in_before_the_place_where_claims_begin_is_found_beside_them(
    pg_url: str, pg_schema: str, pg_client: PgClient, until: Until
) -> None:
    client = pg_client()
    with psycopg.connect(pg_url, autocommit=True, options=f"-csearch_path={pg_schema}") as connection:
        connection.execute(SLOW_LOOKS_FROM_THE_BEGINNING)
        client.register_handler("t", lambda job: None)
        client.dequeue_loop()
        client.enqueue_many([PendingJob("t")] * 3)
        until(lambda: client.stats().finished == 3)
        (late,) = client.enqueue(PendingJob("t", delay=3600))
        # As by a transaction that drew its place long before it committed.
        connection.execute("UPDATE job SET hold = 0, seq = 0 WHERE id = %s", [late])
    until(lambda: client.get_job(late).state == "finished")
