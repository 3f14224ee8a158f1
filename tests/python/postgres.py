"""Fixtures for tests against PostgreSQL: a module that wants them says ``pytest_plugins = ["python.postgres"]``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

import dejq
import servers
from dejq import Client

SECONDS = 30.0


class PgClient(Protocol):
    """Makes clients of a schema, `pg_schema` by default, and the schema; both are gone after the test."""

    def __call__(self, **options: Any) -> Client: ...


@pytest.fixture(scope="session")
def pg_url() -> Iterator[str]:
    with servers.postgres() as server:
        yield server.url


@pytest.fixture
def pg_schema() -> str:
    """The name of a schema that only this test uses."""
    return f"test_{uuid4().hex}"


@pytest.fixture
def pg_client(pg_url: str, pg_schema: str) -> Iterator[PgClient]:
    clients: list[Client] = []
    schemas: set[str] = set()

    def make(*, schema: str = pg_schema, **options: Any) -> Client:
        client = dejq.connect(pg_url, schema=schema, **options)
        clients.append(client)
        client.migrate()
        schemas.add(schema)
        return client

    yield make
    for client in clients:
        report = client.stop(timeout=SECONDS)
        assert not report.abandoned
        assert not report.forced
    with psycopg.connect(pg_url) as connection:
        for schema in schemas:
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
