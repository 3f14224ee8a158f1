"""Fixtures for tests against Redis: a module that wants them says ``pytest_plugins = ["python.redis_store"]``.

They are not in ``redis.py`` for that is the name of the client library.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol
from uuid import uuid4

import pytest
import redis

import dejq
import servers
from dejq import Client

SECONDS = 30.0


class RedisClient(Protocol):
    """Makes clients of a queue, `redis_queue` by default; they and the queue's keys are gone after the test."""

    def __call__(self, **options: Any) -> Client: ...


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with servers.redis() as server:
        yield server.url


@pytest.fixture
def redis_queue() -> str:
    """The name of a queue that only this test uses."""
    return f"test-{uuid4().hex}"


@pytest.fixture
def redis_server(redis_url: str) -> Iterator[redis.Redis]:
    """For a look into the server; keys and values are bytes."""
    with redis.Redis.from_url(redis_url) as server:
        yield server


@pytest.fixture
def redis_client(redis_url: str, redis_queue: str, redis_server: redis.Redis) -> Iterator[RedisClient]:
    clients: list[Client] = []
    queues: set[str] = set()

    def make(*, queue: str = redis_queue, **options: Any) -> Client:
        client = dejq.connect(redis_url, queue=queue, **options)
        clients.append(client)
        queues.add(queue)
        return client

    yield make
    for client in clients:
        report = client.stop(timeout=SECONDS)
        assert not report.abandoned
        assert not report.forced
    for queue in queues:
        for key in redis_server.scan_iter(match=f"dejq:{{{queue}}}:*", count=1000):
            redis_server.unlink(key)
