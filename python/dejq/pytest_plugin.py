"""The pytest plugin: installed with dejq, active at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dejq.client import Client, memory


@pytest.fixture
def dejq_client() -> Iterator[Client]:
    """A client of a fresh memory queue; stopped after the test."""
    with memory() as client:
        yield client
