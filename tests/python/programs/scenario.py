"""What the programs of this folder share. Each function of a program is a scenario, named on the command line."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

if os.environ.get("DEJQ_TEST_UVLOOP") == "0":
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # makes its import fail

import dejq
from dejq import Client, JobInfo, PendingJob

SECONDS = 10.0


class Log(logging.Handler):
    """Keeps what dejq logs, which otherwise goes to stderr."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


log = Log()


def main(scenarios: Mapping[str, Any], quiet: bool = True) -> None:
    """Runs the scenario that the command line names, with the rest of it as arguments."""
    if quiet:
        logging.getLogger("dejq").addHandler(log)
    scenario: Callable[..., None] = scenarios[sys.argv[1]]
    scenario(*sys.argv[2:])
    say("passed")


def say(text: str) -> None:
    print(text, flush=True)


def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.001)


def ended(client: Client, id: str, seconds: float = SECONDS) -> JobInfo:
    """Waits until a job is final."""
    until(lambda: client.get_job(id).state in ("finished", "failed", "cancelled"), seconds)
    return client.get_job(id)


def put(client: Client, type: str = "job", body: object = None) -> str:
    """Enqueues one job."""
    return client.enqueue(PendingJob(type, body))[0]


def hold(client: Client) -> tuple[str, threading.Event]:
    """Starts the worker with a plain handler that runs until the event is set; returns the job's id and the event."""
    entered, leave = threading.Event(), threading.Event()

    def held(job: dejq.Job) -> None:
        entered.set()
        leave.wait()

    client.register_handler("held", held)
    client.dequeue_loop()
    id = put(client, "held")
    entered.wait()
    return id, leave


def counted(*clients: Client) -> dict[str, int]:
    """The workers' counters, added up."""
    each = [client._native.counted() for client in clients]
    return {name: sum(counts[name] for counts in each) for name in each[0]}


def works(client: Client) -> None:
    """Asserts that a fresh client runs a plain and a coroutine handler, and stops."""
    ran = []

    def plain(job: dejq.Job) -> None:
        ran.append(job.type)

    async def coroutine(job: dejq.Job) -> None:
        ran.append(job.type)

    client.register_handler("plain", plain)
    client.register_handler("coroutine", coroutine)
    client.dequeue_loop(workers=2)
    put(client, "plain")
    put(client, "coroutine")
    until(lambda: client.stats().finished == 2)
    assert not client.stop().abandoned
    assert sorted(ran) == ["coroutine", "plain"]
