"""What the tests here share: clients that are stopped, waiting with a deadline, and what was logged."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import hypothesis
import pytest

import dejq
from dejq import Client, JobInfo, testing

# Far beyond what anything here takes; only a bug makes a test wait for so long.
SECONDS = 30.0
# Between two looks at a condition.
PAUSE = 0.002

# The same examples in every run: a red run is a reason to look at the change, never at the dice.
hypothesis.settings.register_profile("dejq", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("dejq")


class NewClient(Protocol):
    """Makes clients of fresh memory queues, which are stopped after the test."""

    def __call__(self, **options: Any) -> Client: ...


class Until(Protocol):
    """Waits until a condition holds; fails the test when it does not within `SECONDS`."""

    def __call__(self, condition: Callable[[], object]) -> None: ...


class Ended(Protocol):
    """Waits until a job is final, and returns it."""

    def __call__(self, client: Client, id: str) -> JobInfo: ...


class RunAll(Protocol):
    """Runs everything that waits in the queue of a client, and what comes of it, to the end."""

    def __call__(self, client: Client) -> None: ...


@pytest.fixture
def new_client() -> Iterator[NewClient]:
    clients: list[Client] = []

    def make(**options: Any) -> Client:
        clients.append(dejq.memory(**options))
        return clients[-1]

    yield make
    for client in clients:
        report = client.stop(timeout=SECONDS)
        assert not report.abandoned
        assert not report.forced


@pytest.fixture
def client(new_client: NewClient) -> Client:
    return new_client(workers=2)


@pytest.fixture
def until() -> Until:
    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"the condition did not come true within {SECONDS} s")
            time.sleep(PAUSE)

    return wait


@pytest.fixture
def ended(until: Until) -> Ended:
    def wait(client: Client, id: str) -> JobInfo:
        until(lambda: client.get_job(id).state in ("finished", "failed", "cancelled"))
        return client.get_job(id)

    return wait


@pytest.fixture
def work(until: Until) -> RunAll:
    """`RunAll` by a worker."""

    def run(client: Client) -> None:
        if not client._native.is_running:
            client.dequeue_loop()

        def is_done() -> bool:
            stats = client.stats()
            return not stats.enqueued_jobs and not stats.running

        until(is_done)

    return run


@pytest.fixture(params=["worker", "drain"])
def run_all(request: pytest.FixtureRequest, work: RunAll) -> RunAll:
    """`RunAll` both ways: by a worker, and by `dejq.testing.drain` on the calling thread."""

    def drain(client: Client) -> None:
        testing.drain(client, scheduled=True)

    return work if request.param == "worker" else drain


class Log(logging.Handler):
    """Keeps what the logger ``dejq`` got."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


@pytest.fixture
def log() -> Iterator[Log]:
    handler = Log()
    logger = logging.getLogger("dejq")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def default_verbosity() -> Iterator[None]:
    yield
    dejq.set_verbosity(0)


@pytest.fixture
def event() -> threading.Event:
    return threading.Event()
