"""Fixtures for tests against SQS: a module that wants them says ``pytest_plugins = ["python.sqs_store"]``.

Each test with `sqs_url` runs on ministack, and on ElasticMQ too where Java and Maven are found, or where
DEJQ_TEST_ELASTICMQ_URL is set. With DEJQ_TEST_SQS_URL=sqs://REGION/ANY.fifo, without an endpoint, it is AWS itself:
queues called dejq-test-… come and go.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from uuid import uuid4

import pytest

import dejq
import servers
import sqs_api
import sqs_faults
from dejq import Client
from sqs_api import Sqs

SECONDS = 30.0
PREFIX = "dejq-test-"
# In a batch of 10, all of them can be released so often; not so few that a busy machine makes a dead letter.
RECEIVES = 20


class SqsClient(Protocol):
    """Makes clients of a queue, `sqs_queue` by default, which are stopped after the test."""

    def __call__(self, **options: Any) -> Client: ...


class MakeQueue(Protocol):
    """Makes the queue of the test and its dead letter queue, with these attributes; returns the URLs of both.

    `receives` is the redrive policy's maxReceiveCount; 0 means that there is none, and no dead letter queue.
    """

    def __call__(self, receives: int = RECEIVES, **attributes: object) -> tuple[str, str]: ...


@pytest.fixture(scope="session", autouse=True)
def credentials() -> Iterator[None]:
    """Who starts pytest without servers.py has none; real ones are taken only for AWS itself."""
    with pytest.MonkeyPatch.context() as patch:
        if servers.endpoint(os.environ.get(servers.VARIABLES["sqs"], "sqs://x/?endpoint=http://x")):
            for name, value in servers.EMULATOR_CREDENTIALS.items():
                patch.setenv(name, value)
        yield


@pytest.fixture(scope="session", params=servers.emulators(), ids=lambda name: {"sqs": "ministack"}.get(name, name))
def sqs_url(request: pytest.FixtureRequest) -> Iterator[str]:
    with servers.start(request.param) as server:
        yield server.url


@pytest.fixture(scope="session")
def ministack_url() -> Iterator[str]:
    """For tests that one emulator is enough for."""
    with servers.sqs() as server:
        yield server.url


@pytest.fixture
def is_elasticmq(sqs_url: str, request: pytest.FixtureRequest) -> bool:
    return bool(request.node.callspec.params.get("sqs_url") == "elasticmq")


@pytest.fixture
def sqs_queue() -> str:
    """The name of a queue that only this test uses; AWS keeps a name for a minute after its queue is gone."""
    return f"{PREFIX}{uuid4().hex}.fifo"


@pytest.fixture
def sqs(sqs_url: str, sqs_queue: str) -> Iterator[Sqs]:
    """For a look past dejq. What begins like the queue of the test is deleted after it."""
    with opened(sqs_url, sqs_queue) as api:
        yield api


@contextmanager
def opened(url: str, queue: str) -> Iterator[Sqs]:
    api = Sqs(url)
    yield api
    for name in api.names(queue.removesuffix(".fifo")):
        with suppress(sqs_api.SqsError):
            api.drop(api.url(name))
    api.close()


@pytest.fixture
def make_queue(sqs: Sqs, sqs_queue: str) -> MakeQueue:
    return maker(sqs, sqs_queue)


def maker(sqs: Sqs, name: str) -> MakeQueue:
    def make(receives: int = RECEIVES, **attributes: object) -> tuple[str, str]:
        chosen = {"VisibilityTimeout": 30, **attributes}
        return sqs.create_pair(name, receives, **chosen) if receives else (sqs.create(name, **chosen), "")

    return make


@pytest.fixture
def sqs_client(sqs_url: str, sqs_queue: str, sqs: Sqs) -> Iterator[SqsClient]:
    with clients(sqs_url, sqs_queue) as make:
        yield make


@contextmanager
def clients(url: str, queue: str) -> Iterator[SqsClient]:
    made: list[Client] = []

    def make(*, queue: str = queue, by: str | None = None, **options: Any) -> Client:
        client = dejq.connect(servers.queue_url(url, queue, by=by), **options)
        made.append(client)
        return client

    yield make
    for client in made:
        report = client.stop(timeout=SECONDS)
        assert not report.abandoned
        assert not report.forced


@pytest.fixture
def proxy(sqs_url: str) -> Iterator[sqs_faults.Proxy]:
    """In front of the emulator; its endpoint is for `sqs_client(by=…)`."""
    with sqs_faults.proxy(sqs_url) as made:
        yield made
