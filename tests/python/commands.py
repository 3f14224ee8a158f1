"""A command of dejq, and what came of it."""

from __future__ import annotations

import sys
from typing import NamedTuple, Protocol

SECONDS = 60.0
CANARY = "hunter2"

# A client that may be enqueued to from the command line, as that of a server could.
APP = """
import dejq

client = dejq.connect("memory://", workers=2)
client._in_process = False


@client.handler("email:v1")
def send(job: dejq.Job) -> None:
    print("sending", job.body, flush=True)


def make() -> dejq.Client:
    return client


def make_nothing() -> None: ...


def needs(something: str) -> dejq.Client:
    return client


def stumble() -> dejq.Client:
    raise KeyError("settings")


settings = {"workers": 2}
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


class Run(Protocol):
    """Runs a command in a folder with `app.py`."""

    def __call__(self, *args: str) -> Ran: ...


def command(*args: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "dejq", *args]
