"""What a soak writes down: each process appends to a file of its own, before it does something and after.

A line is an event as JSON, and one `write` to the end of a file: it survives SIGKILL of who wrote it, and only the last
line can be cut short. All processes are of one machine and one boot, so CLOCK_MONOTONIC puts their events in one order.
Verdicts rest on what enqueuers and handlers saw themselves; faults only explain, and the store is only compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

# What a job's handler does; `workload.py` says how often each comes, `worker.py` does it.
Deed = Literal[
    "return", "sleep", "flaky", "exit", "interrupt", "fail", "retry", "discard", "long", "hold", "poison", "operated"
]
# What the programs of a soak do wrong on purpose, to see that the checker notices.
Sabotage = Literal["", "forget", "truncate", "run-twice", "no-ends", "leak", "secret-faults"]
How = Literal["returned", "raised", "retried", "discarded", "cancelled"]
Verb = Literal["cancel", "finish", "requeue"]
Outcome = Literal["done", "refused", "unclear"]
FaultName = Literal[
    "kill",
    "pause",
    "blink",
    "stop",
    "hurry",
    "cut",
    "hole",
    "gap",
    "lag",
    "mute",
    "terminate",
    "restart",
    "sleep",
    "disrupt",
]


class Event(Struct, tag=str.lower, tag_field="event", omit_defaults=True, kw_only=True):
    """Anything that is written down.

    Attributes:
        at: Nanoseconds of CLOCK_MONOTONIC.
    """

    at: int = msgspec.field(default_factory=time.monotonic_ns)


class PlannedJob(Struct, frozen=True, array_like=True):
    """A job as it is to be enqueued.

    Attributes:
        sum: CRC-32 of its body, which the handler computes anew.
        delay: Seconds.
        attempts: Its `max_attempts`; 0 leaves it to the worker, which grants one.
        wait: Seconds, of what `deed` is about: a handler that takes so long, a retry that comes after so long.
    """

    type: str
    deed: Deed
    sum: int
    delay: float = 0.0
    attempts: int = 0
    wait: float = 0.0


class PlannedChain(Struct, frozen=True, array_like=True):
    """The jobs of one chain; their numbers count on from `first` and are in no other chain of the run."""

    first: int
    jobs: list[PlannedJob]
    cancels: bool = False
    unique: str | None = None


# ---- by the run itself


class Began(Event):
    """The first event: what the verdicts have to know of the run, and the command that repeats it."""

    store: str
    seed: int
    heartbeat: float
    max_rescues: int
    slots: int
    workers: int
    backoff: float
    faults: list[FaultName]
    command: str = ""


class Phase(Event):
    """`load`: enqueuers work; `drain`: all is healed, nothing new comes; `end`: it was empty, or the time was up."""

    name: Literal["load", "drain", "end"]


class Fault(Event):
    """The nemesis is about to do it; `number` ties it to its end.

    Attributes:
        target: The process that it is about; None when it is the store.
    """

    number: int
    name: FaultName
    target: str | None = None


class Healed(Event):
    """It is over: the process is gone or runs on, the store answers."""

    number: int


class Exited(Event):
    """A process has ended; a negative code is the signal."""

    process: str
    code: int


class Leaked(Event):
    """A process wrote a part of a body to its log."""

    process: str
    text: str


class Found(Event):
    """Jobs in this state, as the store lists them at the end: the id of each, and the number in its body."""

    state: str
    ids: list[str]
    numbers: list[int]


class Counted(Event):
    """What the store counts at the end; a store that cannot tell leaves it out."""

    counts: dict[str, int]


class Left(Event):
    """What was still in the store when all final jobs had been deleted."""

    things: dict[str, int]


# ---- by enqueuers


class Asked(Event):
    """A call of `enqueue` begins."""

    call: int
    chains: list[PlannedChain]
    rolls_back: bool = False


class Stored(Event):
    """It was confirmed."""

    call: int
    ids: list[str]


class Refused(Event):
    """It raised that nothing is stored, or was rolled back."""

    call: int
    error: str


class Unclear(Event):
    """It raised that nobody knows: each of the jobs is stored, or none. A connection of the caller's knows no ids."""

    call: int
    ids: list[str] = []
    error: str = ""


class Broken(Event):
    """SQS took a part of it."""

    call: int
    sent: list[str]
    unsent: list[str]


class Operating(Event):
    """An operator's step on a job begins."""

    step: int
    verb: Verb
    job: int


class Operated(Event):
    """It has ended."""

    step: int
    outcome: Outcome


# ---- by workers


class Started(Event):
    """The first thing that a handler does.

    Attributes:
        run: Numbers the calls of handlers in one process.
        job: The job's number, from its body.
        sum: Computed from the body that came.
    """

    run: int
    job: int
    id: str
    type: str
    attempt: int
    position: int
    length: int
    sum: int


class Ended(Event):
    """The last thing that a handler does.

    Attributes:
        told: The handler could have known by `job.cancelled` that its lease is gone, or a stop wants it back.
    """

    run: int
    how: How
    told: bool = False


class Poisoned(Event):
    """A handler is about to kill its own process."""


class Ready(Event):
    """A worker takes jobs from now on."""

    types: list[str]


class Rested(Event):
    """A worker has stopped by itself, in its words."""

    counts: dict[str, int]


AnyEvent: TypeAlias = (
    Began
    | Phase
    | Fault
    | Healed
    | Exited
    | Leaked
    | Found
    | Counted
    | Left
    | Asked
    | Stored
    | Refused
    | Unclear
    | Broken
    | Operating
    | Operated
    | Started
    | Ended
    | Poisoned
    | Ready
    | Rested
)


class Entry(NamedTuple):
    """An event, and the process that wrote it."""

    process: str
    event: AnyEvent


History: TypeAlias = list[Entry]


class Recorder:
    """Appends the events of one process; from any thread."""

    def __init__(self, folder: Path, process: str) -> None:
        self.process = process
        self._file = os.open(folder / f"{process}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._encoder = msgspec.json.Encoder()

    def write(self, event: AnyEvent) -> None:
        line = self._encoder.encode(event) + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError("an event was cut short: is the disk full?")

    def close(self) -> None:
        os.close(self._file)


def read(folder: Path, files: str = "*.jsonl") -> History:
    """All events of a run, in the order in which they happened."""
    decoder = msgspec.json.Decoder(AnyEvent)
    lines = [
        Entry(file.stem, decoder.decode(line)) for file in sorted(folder.glob(files)) for line in _whole_lines(file)
    ]
    # What one process wrote at the same nanosecond stays in its order.
    lines.sort(key=lambda line: line.event.at)
    return lines


def _whole_lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        for line in opened:
            if line.endswith(b"\n"):
                yield line


def save(history: Iterable[Entry], folder: Path) -> None:
    """Writes a history that was made by hand."""
    recorders: dict[str, Recorder] = {}
    for process, event in history:
        if process not in recorders:
            recorders[process] = Recorder(folder, process)
        recorders[process].write(event)
    for recorder in recorders.values():
        recorder.close()
