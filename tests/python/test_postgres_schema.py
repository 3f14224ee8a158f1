"""The migrations of the Postgres store make what migrations/postgres/schema.sql shows."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

import postgres_schema
from postgres_schema import MIGRATIONS, RENEW, SNAPSHOT

if TYPE_CHECKING:
    from python.postgres import PgClient

pytest_plugins = ["python.postgres"]


def test_the_snapshot_is_what_the_migrations_make(pg_url: str) -> None:
    shown, made = SNAPSHOT.read_text().splitlines(), postgres_schema.made_by_migrations(pg_url).splitlines()
    difference = "\n".join(difflib.unified_diff(shown, made, "migrations/postgres/schema.sql", "made", lineterm=""))
    if difference:
        pytest.fail(f"the migrations make something else than the snapshot; if it is meant: {RENEW}\n{difference}")


def test_files_with_a_number_are_migrations_and_the_snapshot_is_none(
    pg_client: PgClient, pg_url: str, pg_schema: str
) -> None:
    pg_client()
    with psycopg.connect(pg_url) as connection:
        names = sql.SQL("SELECT name FROM {} ORDER BY version").format(sql.Identifier(pg_schema, "migration"))
        applied = [name for (name,) in connection.execute(names)]
    assert applied == sorted(file.stem for file in MIGRATIONS.glob("[0-9]*.sql"))
