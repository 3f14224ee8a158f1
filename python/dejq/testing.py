"""For the tests of code that uses dejq: run jobs without threads, and look at what was enqueued.

Every way of running a job here encodes its body to JSON and back, as in production. The pytest plugin
(`dejq.pytest_plugin`) adds the fixture ``dejq_client``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dejq import _threads
from dejq._native import PendingJob
from dejq.client import Client
from dejq.errors import WrongState
from dejq.info import JobInfo, State

_ANY: Any = object()
_WAITING: tuple[State, ...] = ("ready", "scheduled", "blocked")


def drain(client: Client, *, scheduled: bool = False) -> int:
    """Runs the ready jobs of a client on the calling thread, until there are none.

    Jobs that these enqueue, and the rest of their chains, run too. Failures are stored as in production and
    follow the same rules of retry; nothing is raised.

    Args:
        client: Its worker must not run.
        scheduled: Run delayed jobs and retries too, without waiting for their time.

    Returns:
        How many handler calls there were.

    Raises:
        WrongState: The client's worker runs.
    """
    _must_not_run(client, "drain")
    return client._native.drain(_threads.run_coroutine, scheduled)


@contextmanager
def inline(client: Client) -> Iterator[Client]:
    """Within this context, ``enqueue`` runs handlers before it returns, and raises what they raise.

    Delays are not waited for and nothing is retried. When a job of a chain raises, the rest of the chain still
    goes by ``on_failure``; the first exception comes out at the end.

    Raises:
        WrongState: The client's worker runs.
    """
    _must_not_run(client, "inline")
    client._inline += 1
    try:
        yield client
    finally:
        client._inline -= 1


def enqueued(client: Client, type: str | None = None) -> list[JobInfo]:
    """Lists the jobs that wait to run (ready, scheduled or blocked), in the order they were enqueued."""
    waiting: list[JobInfo] = []
    for state in _WAITING:
        page = client.list_jobs(state=state, type=type, limit=1000)
        while page:
            waiting += page
            page = client.list_jobs(state=state, type=type, limit=1000, after=page[-1].id)
    return sorted(waiting, key=lambda job: job.id)


def assert_enqueued(client: Client, type: str, body: Any = _ANY, *, count: int | None = None) -> list[JobInfo]:
    """Asserts that jobs of a type wait to run.

    Args:
        client: Where to look.
        type: Only this type.
        body: Only jobs with this body, compared as JSON; of a dict, the given keys are compared. Default: any.
        count: Exactly so many. Default: at least one.

    Returns:
        The jobs that were found.

    Raises:
        AssertionError: There are none, or not so many. The text lists what there is, bodies included.
    """
    of_type = enqueued(client, type)
    found = [job for job in of_type if body is _ANY or _matches(job.body, _as_json(type, body))]
    if (count is None and not found) or (count is not None and len(found) != count):
        wanted = "at least one" if count is None else str(count)
        there = "".join(f"\n  {job.type} {job.state} {job.body!r}" for job in of_type or enqueued(client)) or " nothing"
        with_body = "" if body is _ANY else f" with body {_as_json(type, body)!r}"
        raise AssertionError(f"expected {wanted} {type!r} job{with_body}, found {len(found)}; waiting:{there}")
    return found


def refute_enqueued(client: Client, type: str, body: Any = _ANY) -> None:
    """Asserts that no such job waits to run; see `assert_enqueued`."""
    assert_enqueued(client, type, body, count=0)


def _must_not_run(client: Client, what: str) -> None:
    if client._native.is_running:
        raise WrongState(
            f"{what}() runs jobs on the calling thread, but this client's worker runs already; use another client"
        )


def _as_json(type: str, body: Any) -> Any:
    """The body after a round trip, by the encoder that `enqueue` uses."""
    scratch = Client("memory://")
    (id,) = scratch.enqueue(PendingJob(type, body))
    return scratch.get_job(id).body


def _matches(actual: Any, expected: Any) -> bool:
    if isinstance(expected, dict) and isinstance(actual, dict):
        return all(key in actual and _matches(actual[key], value) for key, value in expected.items())
    return json.dumps(actual, sort_keys=True) == json.dumps(expected, sort_keys=True)
