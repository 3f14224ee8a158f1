"""Statements on the caller's own database connection, in its transaction: enqueue and finish.

A connection is known by the name of its class: no driver is imported that the caller has not imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import iscoroutinefunction
from typing import Any

from dejq import _native
from dejq.errors import ConfigError, WrongState

# A value in a statement; `{}` alone might be part of a schema's name.
_VALUE = "CAST({} AS text)"
# SQLSTATE of a finish with a stale lease.
_STALE = "DQ003"


def enqueue(connection: Any, sql: str, values: list[str]) -> list[str]:
    """Runs an enqueue statement on a connection that blocks; returns the ids."""
    ids: list[str] = _run(connection, sql, values, "await client.aenqueue")
    return ids


async def aenqueue(connection: Any, sql: str, values: list[str]) -> list[str]:
    """Runs an enqueue statement on any connection; returns the ids."""
    ids: list[str] = await _arun(connection, sql, values, "client.enqueue")
    return ids


def finish(job: _native.Job, connection: Any) -> None:
    """Finishes the job in the transaction of a connection that blocks."""
    with _wrong_state_if_stale(job):
        _run(connection, *job._finish_statement(), "await job.afinish")
    job._finishes_itself()


async def afinish(job: _native.Job, connection: Any) -> None:
    """Finishes the job in the transaction of any connection."""
    with _wrong_state_if_stale(job):
        await _arun(connection, *job._finish_statement(), "job.finish")
    job._finishes_itself()


def _run(connection: Any, sql: str, values: list[str], coroutine: str) -> Any:
    run = _find(connection)
    if iscoroutinefunction(run):
        raise ConfigError(
            f"connection= is a {_name(type(connection))}, which has to be awaited; nothing was stored; "
            f"use {coroutine}(…, connection=…) in an async def function"
        )
    return run(connection, sql, values)


async def _arun(connection: Any, sql: str, values: list[str], function: str) -> Any:
    run = _find(connection)
    if iscoroutinefunction(run):
        return await run(connection, sql, values)
    if run is _django:
        raise ConfigError(
            "connection= is Django's, which is another one in each thread, each with its own transaction; nothing was "
            f"stored; use {function}(…, connection=…) in the plain function that begins the transaction"
        )
    # Imported where a loop runs already: asyncio is half of the import time of the rest.
    from asyncio import to_thread

    return await to_thread(run, connection, sql, values)


@contextmanager
def _wrong_state_if_stale(job: _native.Job) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # SQLAlchemy and Django wrap what the driver raises.
        driver = getattr(error, "orig", None) or error.__cause__ or error
        if _STALE not in (getattr(driver, "sqlstate", None), getattr(driver, "pgcode", None)):
            raise
        raise WrongState(
            f"{job.type!r} job {job.id} cannot be finished by this attempt: its lease is over, so the job has ended or "
            "another worker has it; let this exception out of the transaction, so that its effects are undone"
        ) from driver


# ---- how each kind of connection runs a statement and returns its only value -----------------------------


def _psycopg(connection: Any, sql: str, values: list[str]) -> Any:
    return _fetch(sys.modules["psycopg"].Cursor(connection.connection, row_factory=_tuples), sql, values)


async def _psycopg_async(connection: Any, sql: str, values: list[str]) -> Any:
    async with sys.modules["psycopg"].AsyncCursor(connection.connection, row_factory=_tuples) as cursor:
        await cursor.execute(_percent(sql), values)
        return (await cursor.fetchone())[0]


def _psycopg2(connection: Any, sql: str, values: list[str]) -> Any:
    plain = sys.modules["psycopg2.extensions"].cursor
    return _fetch(getattr(connection, "connection", connection).cursor(cursor_factory=plain), sql, values)


def _django(connection: Any, sql: str, values: list[str]) -> Any:
    return _fetch(connection.cursor(), sql, values)


async def _asyncpg(connection: Any, sql: str, values: list[str]) -> Any:
    return await connection.fetchval(_numbered(sql, "$"), *values)


def _sqlalchemy(connection: Any, sql: str, values: list[str]) -> Any:
    return connection.execute(*_text(sql, values)).scalar()


async def _sqlalchemy_async(connection: Any, sql: str, values: list[str]) -> Any:
    return (await connection.execute(*_text(sql, values))).scalar()


# A cursor stands for its connection: it keeps its results, and may be made for other rows and parameters than ours.
_KINDS: dict[Callable[[Any, str, list[str]], Any], set[str]] = {
    _psycopg: {"psycopg.Connection", "psycopg.Cursor"},
    _psycopg_async: {"psycopg.AsyncConnection", "psycopg.AsyncCursor"},
    _psycopg2: {"psycopg2.connection", "psycopg2.cursor"},
    _asyncpg: {"asyncpg.Connection", "asyncpg.PoolConnectionProxy"},
    _sqlalchemy: {"sqlalchemy.Connection", "sqlalchemy.Session", "sqlalchemy.scoped_session"},
    _sqlalchemy_async: {"sqlalchemy.AsyncConnection", "sqlalchemy.AsyncSession", "sqlalchemy.async_scoped_session"},
    _django: {"django.BaseDatabaseWrapper", "django.ConnectionProxy"},
}


def _find(connection: Any) -> Callable[[Any, str, list[str]], Any]:
    names = [_name(kind) for kind in type(connection).__mro__]
    for run, known in _KINDS.items():
        if not known.isdisjoint(names):
            return run
    fix = "pass one of psycopg, psycopg2, asyncpg or SQLAlchemy (also a session), or Django's connection"
    if names[0].endswith(("Pool", "Engine")):
        fix = "acquire a connection from it, and pass that"
    raise ConfigError(f"connection= is a {names[0]}, which is no connection that dejq knows; nothing was stored; {fix}")


def _name(kind: type) -> str:
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


# ---- statements in the words of the drivers --------------------------------------------------------------


def _fetch(cursor: Any, sql: str, values: list[str]) -> Any:
    with cursor:
        cursor.execute(_percent(sql), values)
        return cursor.fetchone()[0]


def _tuples(_cursor: object) -> type[tuple[Any, ...]]:
    return tuple


def _percent(sql: str) -> str:
    return sql.replace("%", "%%").replace(_VALUE, _VALUE.format("%s"))


def _numbered(sql: str, mark: str) -> str:
    first, *rest = sql.split(_VALUE)
    return first + "".join(_VALUE.format(f"{mark}{n}") + part for n, part in enumerate(rest, 1))


def _text(sql: str, values: list[str]) -> tuple[Any, dict[str, str]]:
    text = sys.modules["sqlalchemy"].text(_numbered(sql.replace(":", r"\:"), ":v"))
    return text, {f"v{n}": _Unshown(value) for n, value in enumerate(values, 1)}


class _Unshown(str):
    """A value for SQLAlchemy, whose errors and logs show what parameters look like."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<not shown>"
