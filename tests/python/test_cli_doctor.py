"""``dejq doctor`` finds what somebody has broken, and says how to mend it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
import redis
from psycopg import sql

import debian
import dejq
import servers
import sqs_api
from dejq import PendingJob
from python.commands import CANARY, SECONDS, Run, command
from servers import Server

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["python.command_line", "python.postgres", "python.redis_store"]
pytestmark = pytest.mark.usefixtures("folder")


class Found(NamedTuple):
    code: int
    findings: list[dict[str, str | None]]

    def about(self, name: str) -> list[dict[str, str | None]]:
        return [finding for finding in self.findings if finding["name"] == name]

    def assert_found(self, level: str, name: str, text: str, fix: str | None) -> None:
        """`fix` may stand in the text, where an error of the store is what was found."""
        (found,) = [finding for finding in self.about(name) if finding["level"] == level]
        said = str(found["text"])
        assert text in said
        assert (fix or "") in (said if found["fix"] is None else found["fix"])


@pytest.fixture
def doctor(run: Run) -> Callable[..., Found]:
    """Runs it on a URL. What it says for people has the same findings as the JSON, and no password."""

    def examine(url: str, *args: str) -> Found:
        ran = run("doctor", "--url", url, *args, "--json")
        found = Found(ran.code, json.loads(ran.out))
        said = run("doctor", "--url", url, *(arg for arg in args if arg != "--repair"))
        for finding in () if "--repair" in args else found.findings:
            if finding["name"] != "clocks":
                assert str(finding["text"]) in said.out
                assert f"fix: {finding['fix']}\n" in said.out or finding["fix"] is None
        assert CANARY not in ran.text + said.text
        assert said.code == ran.code or "--repair" in args
        return found

    return examine


Doctor = Callable[..., Found]


# ---- PostgreSQL ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A PostgreSQL that asks `app` for a password."""
    with servers.postgres(hba=["host all app all scram-sha-256"]) as server:
        with psycopg.connect(server.url) as connection:
            connection.execute(f"CREATE ROLE app LOGIN PASSWORD '{CANARY}'".encode())
        yield server


def as_app(server: Server, password: str = CANARY, **more: str) -> str:
    parts = urlsplit(server.url)
    place = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"app:{password}@{place}", **more).geturl()


def test_a_database_in_good_health(pg_url: str, pg_schema: str, doctor: Doctor) -> None:
    url = f"{pg_url}?schema={pg_schema}"
    with dejq.connect(url) as client, drops_schema(pg_url, pg_schema):
        client.migrate()
        found = doctor(url)
    assert found.code == 0
    levels = {(finding["name"], finding["level"]) for finding in found.findings}
    assert {("schema", "ok"), ("server", "ok"), ("rights", "ok"), ("connection", "ok")} <= levels
    assert not {"clocks", "notifications"} & {name for name, _ in levels}


@contextmanager
def drops_schema(url: str, schema: str) -> Iterator[None]:
    try:
        yield
    finally:
        with psycopg.connect(url) as connection:
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


def test_the_wrong_password(guarded: Server, doctor: Doctor) -> None:
    found = doctor(as_app(guarded, f"not{CANARY}"))
    assert found.code == 2
    found.assert_found("error", "client", 'password authentication failed for user "app"', "check user and password")


def test_the_wrong_database(pg_url: str, doctor: Doctor) -> None:
    found = doctor(urlsplit(pg_url)._replace(path="/nowhere").geturl())
    assert found.code == 2
    found.assert_found("error", "client", 'database "nowhere" does not exist', "create")


def test_a_missing_schema(pg_url: str, pg_schema: str, doctor: Doctor) -> None:
    found = doctor(f"{pg_url}?schema={pg_schema}")
    assert found.code == 4
    found.assert_found("error", "schema", f'"{pg_schema}"', "dejq migrate")


def test_an_outdated_schema(pg_url: str, pg_schema: str, doctor: Doctor) -> None:
    url = f"{pg_url}?schema={pg_schema}"
    with dejq.connect(url) as client, drops_schema(pg_url, pg_schema):
        client.migrate()
        with psycopg.connect(pg_url) as connection:
            connection.execute(f'DELETE FROM "{pg_schema}".migration WHERE version > 1'.encode())
        found = doctor(url)
    assert found.code == 4
    found.assert_found("error", "schema", f'"{pg_schema}"', "dejq migrate")


def test_a_pooler_in_between(pg_schema: str, doctor: Doctor) -> None:
    query = f"?schema={pg_schema}"
    with (
        servers.postgres() as server,
        servers.pgbouncer(server, pool_mode="transaction") as bouncer,
        dejq.connect(server.url + query) as client,
        drops_schema(server.url, pg_schema),
    ):
        client.migrate()
        found = doctor(bouncer.url + query)
        fixed = doctor(f"{bouncer.url}{query}&listen=false")
    assert found.code == 0
    found.assert_found("warn", "notifications", "do not reach this client", "listen_url=")
    assert fixed.about("notifications") == []


def test_missing_rights(guarded: Server, pg_schema: str, doctor: Doctor) -> None:
    with dejq.connect(f"{guarded.url}?schema={pg_schema}") as client, drops_schema(guarded.url, pg_schema):
        client.migrate()
        url = as_app(guarded, query=f"schema={pg_schema}")
        found = doctor(url)
        assert found.code == 2
        found.assert_found("error", "client", "permission denied for schema", "USAGE")
        with psycopg.connect(guarded.url) as connection:
            connection.execute(f'GRANT USAGE ON SCHEMA "{pg_schema}" TO app'.encode())
            connection.execute(f'GRANT SELECT ON "{pg_schema}".migration TO app'.encode())
        found = doctor(url)
        assert found.code == 1
        found.assert_found("error", "rights", "may not enqueue jobs", "Least privilege")
        with psycopg.connect(guarded.url) as connection:
            connection.execute(f'GRANT INSERT (id, type) ON "{pg_schema}".job TO app'.encode())
            connection.execute(f'GRANT USAGE ON SEQUENCE "{pg_schema}".place TO app'.encode())
        found = doctor(url)
        assert found.code == 0
        found.assert_found("ok", "rights", "may enqueue jobs, not work them", None)


def test_a_server_that_is_not_there(doctor: Doctor) -> None:
    for url in ("postgresql://127.0.0.1:1/jobs", "redis://127.0.0.1:1"):
        found = doctor(url)
        assert found.code == 3
        found.assert_found("error", "client", "127.0.0.1:1", "runs there")


# ---- Redis -----------------------------------------------------------------------------------------------


def test_a_server_that_throws_jobs_away(doctor: Doctor) -> None:
    with servers.redis(settings={"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}) as server:
        found = doctor(server.url)
        assert found.code == 2
        found.assert_found("error", "client", "allkeys-lru", "CONFIG SET maxmemory-policy noeviction")
        allowed = doctor(f"{server.url}?allow_eviction=true")
        assert allowed.code == 0
        allowed.assert_found("warn", "memory", "allkeys-lru", "CONFIG SET maxmemory-policy noeviction")


def test_a_server_that_forgets_what_it_confirmed(redis_url: str, redis_queue: str, doctor: Doctor) -> None:
    found = doctor(f"{redis_url}?queue={redis_queue}")
    assert found.code == 0
    found.assert_found("warn", "durability", "no append-only file", "CONFIG SET appendonly yes")


@pytest.fixture(scope="module")
def guarded_redis() -> Iterator[Server]:
    acl = [
        "user default on nopass ~* &* +@all",
        f"user app on >{CANARY} ~other:* +@all",
    ]
    with servers.redis(acl=acl) as server:
        yield server


def test_the_wrong_password_of_redis(guarded_redis: Server, doctor: Doctor) -> None:
    found = doctor(as_app(guarded_redis, f"not{CANARY}"))
    assert found.code == 2
    found.assert_found("error", "client", "user", "password")


def test_missing_rights_of_redis(guarded_redis: Server, doctor: Doctor) -> None:
    found = doctor(as_app(guarded_redis))
    assert found.code == 2
    found.assert_found("error", "client", "NOPERM", "docs/redis.md")


def test_a_database_that_redis_does_not_have(redis_url: str, doctor: Doctor) -> None:
    found = doctor(urlsplit(redis_url)._replace(path="/9999").geturl())
    assert found.code == 2
    found.assert_found("error", "client", "9999", "")


def test_a_queue_whose_keys_contradict_each_other(
    redis_url: str, redis_queue: str, redis_client: Any, redis_server: redis.Redis, doctor: Doctor
) -> None:
    url = f"{redis_url}?queue={redis_queue}"
    client = redis_client()
    client.enqueue(PendingJob("a"))
    for key in redis_server.scan_iter(match=f"dejq:{{{redis_queue}}}:fresh:*"):
        redis_server.delete(key)
    found = doctor(url, "--audit")
    assert found.code == 1
    broken = [finding for finding in found.findings if finding["level"] == "error"]
    assert broken
    assert all("--repair" in str(finding["fix"]) for finding in broken)
    assert doctor(url, "--repair").code == 0
    assert doctor(url, "--audit").code == 0


# ---- SQS -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sqs() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, servers.sqs() as server:
        for name, value in servers.EMULATOR_CREDENTIALS.items():
            patch.setenv(name, value)
        yield server


def test_a_queue_that_is_not_fifo(sqs: Server, doctor: Doctor) -> None:
    found = doctor(servers.queue_url(sqs.url, "jobs"))
    assert found.code == 2
    found.assert_found("error", "client", '"jobs" is not the name of a FIFO queue', ".fifo")


def test_a_queue_that_is_not_there(sqs: Server, doctor: Doctor) -> None:
    found = doctor(servers.queue_url(sqs.url, f"dejq-test-{uuid4().hex}.fifo"))
    assert found.code == 4
    found.assert_found("error", "queue", "there is no queue", "dejq migrate")


def test_a_queue_whose_failed_jobs_go_nowhere(sqs: Server, doctor: Doctor) -> None:
    api = sqs_api.Sqs(sqs.url)
    name = f"dejq-test-{uuid4().hex}.fifo"
    api.create(name, VisibilityTimeout=30)
    found = doctor(servers.queue_url(sqs.url, name))
    api.drop(api.url(name))
    api.close()
    assert found.code == 0
    found.assert_found("warn", "dead letters", "no redrive policy", "RedrivePolicy")


# ---- clocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["postgres", "redis"])
@pytest.mark.parametrize(("shift", "which"), [("+90s", "ahead of"), ("-90s", "behind")])
def test_a_clock_that_is_wrong(store: str, shift: str, which: str, request: pytest.FixtureRequest) -> None:
    library = f"usr/lib/{platform.machine()}-linux-gnu/faketime/libfaketime.so.1"
    root = debian.unpacked("libfaketime", packages=["libfaketime"], needs=[library])
    url = request.getfixturevalue("pg_url" if store == "postgres" else "redis_url")
    ran = subprocess.run(
        command("doctor", "--url", url, "--json"),
        capture_output=True,
        timeout=SECONDS,
        check=False,
        env=os.environ | {"LD_PRELOAD": str(root / library), "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1"},
    )
    found = Found(ran.returncode, json.loads(ran.stdout))
    found.assert_found("warn", "clocks", f"s {which} the server's", "NTP")


# ---- settings --------------------------------------------------------------------------------------------


def test_where_each_setting_comes_from(folder: Path, monkeypatch: pytest.MonkeyPatch, doctor: Doctor) -> None:
    (folder / "pyproject.toml").write_text('[tool.dejq]\nworkers = 4\nurl = "memory://"\nshutdown_timeout = "25s"\n')
    monkeypatch.setenv("DEJQ_WORKERS", "8")
    monkeypatch.setenv("DEJQ_JSON", "0")
    found = doctor("memory://")
    assert [finding["text"] for finding in found.about("environment")] == ["DEJQ_JSON=0", "DEJQ_WORKERS=8"]
    assert [finding["text"] for finding in found.about("pyproject")] == [
        "shutdown_timeout = '25s'",
        "url = 'memory://'",
        "workers = '4', which DEJQ_WORKERS overrides",
    ]
    assert [finding["text"] for finding in found.about("url")] == ["memory (from --url)"]


def test_a_setting_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch, doctor: Doctor) -> None:
    (folder / "pyproject.toml").write_text('[tool.dejq]\nshutdown_timeout = "soon"\n')
    monkeypatch.setenv("DEJQ_WORKERS", "many")
    found = doctor("memory://")
    assert found.code == 1
    found.assert_found("error", "environment", "DEJQ_WORKERS=many", "must be a whole number of at least 1")
    found.assert_found("error", "pyproject", "shutdown_timeout = 'soon'", "must be seconds, or a number with a unit")


def test_a_project_file_that_is_no_toml(folder: Path, run: Run) -> None:
    (folder / "pyproject.toml").write_text("[tool.dejq]\nurl = memory\n")
    ran = run("doctor", "app:client", "--json")
    assert ran.code == 2
    assert "pyproject.toml cannot be read as TOML" in ran.text


def test_a_password_in_a_setting_is_not_shown(monkeypatch: pytest.MonkeyPatch, doctor: Doctor) -> None:
    monkeypatch.setenv("DEJQ_URL", f"redis://:{CANARY}@db.example.org")
    found = doctor("memory://")
    assert [finding["text"] for finding in found.about("environment")] == ["DEJQ_URL=redis://:***@db.example.org"]
