"""Fixtures for tests against SQS: a module that wants them says ``pytest_plugins = ["python.sqs_store"]``.

Each test with `sqs_url` runs on ministack, and on ElasticMQ too where Java and Maven are found, or where
DEJQ_TEST_ELASTICMQ_URL is set. With DEJQ_TEST_SQS_URL=sqs://REGION/ANY.fifo, without an endpoint, it is AWS itself:
queues called dejq-test-… come and go.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
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


class SqsClient:
    """Makes clients of a queue, `sqs_queue` by default, which are stopped after the test.

    `by` is an endpoint that leads there, as that of a proxy.
    """

    def __init__(self, url: str, queue: str) -> None:
        self._url, self._queue = url, queue
        self._made: list[Client] = []

    def __call__(self, *, by: str | None = None, **options: Any) -> Client:
        client = dejq.connect(servers.queue_url(self._url, self._queue, by=by), **options)
        self._made.append(client)
        return client

    def stop(self) -> None:
        for client in self._made:
            report = client.stop(timeout=SECONDS)
            assert not report.abandoned
            assert not report.forced
        self._made.clear()


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


@pytest.fixture
def is_like_aws(sqs_url: str, request: pytest.FixtureRequest) -> bool:
    """In which messages of a group come when, and in what a repeated receive brings; ministack is not."""
    return servers.endpoint(sqs_url) is None or request.node.callspec.params["sqs_url"] == "elasticmq"


@pytest.fixture
def sqs_queue() -> str:
    """The name of a queue that only this test uses; AWS keeps a name for a minute after its queue is gone."""
    return f"{PREFIX}{uuid4().hex}.fifo"


@pytest.fixture
def sqs(sqs_url: str, sqs_queue: str) -> Iterator[Sqs]:
    """For a look past dejq. What begins like the queue of the test is deleted after it."""
    api = Sqs(sqs_url)
    yield api
    for name in api.names(sqs_queue.removesuffix(".fifo")):
        with suppress(sqs_api.SqsError):
            api.drop(api.url(name))
    api.close()


@pytest.fixture
def make_queue(sqs: Sqs, sqs_queue: str) -> MakeQueue:
    def make(receives: int = RECEIVES, **attributes: object) -> tuple[str, str]:
        chosen = {"VisibilityTimeout": 30, **attributes}
        return sqs.create_pair(sqs_queue, receives, **chosen) if receives else (sqs.create(sqs_queue, **chosen), "")

    return make


@pytest.fixture
def sqs_client(sqs_url: str, sqs_queue: str, sqs: Sqs) -> Iterator[SqsClient]:
    make = SqsClient(sqs_url, sqs_queue)
    yield make
    make.stop()


@pytest.fixture
def emptied(sqs: Sqs, until: Callable[[Callable[[], object]], None]) -> Callable[[str], None]:
    """Waits until nothing of a queue is left, and nothing in flight."""

    def wait(queue: str) -> None:
        until(lambda: sqs.waiting(queue) == (0, 0))

    return wait


@pytest.fixture
def proxy(sqs_url: str, sqs_client: SqsClient) -> Iterator[sqs_faults.Proxy]:
    """In front of the emulator; its endpoint is for `sqs_client(by=…)`."""
    if servers.endpoint(sqs_url) is None:
        pytest.skip(f"{servers.VARIABLES['sqs']} is AWS itself, and nothing can stand in front of that")
    with sqs_faults.proxy(sqs_url) as made:
        yield made
        # Ends that are on their way would have nowhere to go.
        sqs_client.stop()
