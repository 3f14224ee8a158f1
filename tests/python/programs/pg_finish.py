"""Workers that are killed around the commit in which a job was finished."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import psycopg

import dejq
from dejq import Job
from python.programs.scenario import main, say


def before(url: str, schema: str) -> None:
    """Dies when the job is finished and nothing is committed."""

    work(url, schema, lambda _: die("finished"))


def after(url: str, schema: str) -> None:
    """Dies when that is committed, before the worker hears of it."""

    def commit(connection: psycopg.Connection[Any]) -> None:
        connection.commit()
        die("committed")

    work(url, schema, commit)


def die(word: str) -> None:
    say(word)
    os.kill(os.getpid(), signal.SIGKILL)


def work(url: str, schema: str, end: Callable[[psycopg.Connection[Any]], None]) -> None:
    """Runs a handler that has an effect, finishes its job with it, and then ends like that."""

    def handler(job: Job) -> None:
        with psycopg.connect(url) as connection:
            connection.execute(f"INSERT INTO {schema}.effect VALUES ('killed')".encode())
            job.finish(connection=connection)
            end(connection)

    client = dejq.connect(url, schema=schema, workers=1, heartbeat=0.2)
    client.register_handler("t", handler)
    client.run()


if __name__ == "__main__":
    main({"before": before, "after": after})
