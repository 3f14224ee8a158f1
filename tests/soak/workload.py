"""What enqueuers ask for: a function of the seed, so that a run can be had again and a killed enqueuer can go on."""

from __future__ import annotations

import string
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, Final, Literal

from soak.history import Deed, PlannedChain, PlannedJob, Verb

How = Literal["enqueue", "many", "transaction", "rollback", "bad", "operate"]

# In every body, and never to be seen in a log.
CANARY: Final = "canary-"
# A job that waits for an operator.
FOREVER: Final = 3600.0
# Longer than a lease of three one-second beats.
LONG: Final = 4.0
# What a call of this workload has on average.
JOBS_PER_CALL: Final = 20
# Numbers of jobs: which enqueuer, which of its calls, which job of the call.
PER_ENQUEUER: Final = 10**10
PER_CALL: Final = 10**4

_LENGTHS: Final = ((0.60, 1), (0.90, 3), (0.99, 10), (1.0, 50))


@dataclass(frozen=True)
class Call:
    """One call of `enqueue`, with the bodies of its jobs, and what an operator is to do to the first of them."""

    number: int
    how: How
    chains: list[PlannedChain]
    bodies: list[list[Any]]
    verb: Verb | None = None

    @property
    def jobs(self) -> int:
        return sum(len(chain.jobs) for chain in self.chains)


@dataclass(frozen=True)
class Workload:
    """The calls of one enqueuer, without end.

    Args:
        store: Leaves out what it cannot do.
        special: Every so many calls comes one that takes its time: long, holding the interpreter, by an operator.
        poisons: How many jobs kill their workers, each again and again until it is given up.
    """

    store: str
    seed: int
    enqueuer: int
    special: int
    poisons: int = 0

    def calls(self, after: int = 0) -> Iterator[Call]:
        """All calls from that number on."""
        number = after
        while True:
            yield self.call(number)
            number += 1

    def call(self, number: int) -> Call:
        return _Maker(self, number).make()


class _Maker:
    def __init__(self, workload: Workload, number: int) -> None:
        self.all = workload
        self.number = number
        self.dice = Random(f"{workload.seed} {workload.enqueuer} {number}")
        self.next = workload.enqueuer * PER_ENQUEUER + number * PER_CALL
        self.chains: list[PlannedChain] = []
        self.bodies: list[list[Any]] = []

    @property
    def is_sqs(self) -> bool:
        return self.all.store == "sqs"

    def make(self) -> Call:
        if self.number % self.all.special == self.all.special - 1:
            return self.special(self.number // self.all.special)
        die = self.dice.random()
        if die < 0.45:
            self.chain()
            return self.done("enqueue")
        if die < 0.92:
            for _ in range(self.dice.randint(4, 24)):
                self.chain()
            return self.done("many")
        if die < 0.94:
            self.add([self.job("quick", "return")])
            return self.done("bad")
        if self.is_sqs:
            self.chain()
            return self.done("enqueue")
        if die < 0.97 or self.all.store != "pg":
            # One key, so that it is often taken.
            self.add([self.job("quick", "sleep", wait=1.0)], unique=f"{self.all.enqueuer}")
            return self.done("enqueue")
        self.chain()
        return self.done("transaction" if die < 0.99 else "rollback")

    def special(self, turn: int) -> Call:
        # The poison comes early: it takes several leases to be given up.
        if turn < self.all.poisons:
            self.add([self.job("quick", "poison"), self.job("quick", "return")])
            return self.done("enqueue")
        kinds = ["long", "hold", "long chain", "long coroutine"]
        if not self.is_sqs:
            kinds = ["long", "operate", "long chain", "hold", "operate", "long coroutine", "long chain", "long"]
        match kinds[turn % len(kinds)]:
            case "long":
                self.add([self.job("quick", "long", wait=LONG)])
            case "hold":
                self.add([self.job("quick", "hold", wait=LONG)])
            case "long coroutine":
                self.add([self.job("aio", "long", wait=LONG)])
            case "long chain":
                self.add([self.job("quick", "return"), self.job("quick", "long", wait=LONG), self.job("aio", "return")])
            case _:
                return self.operated(turn)
        return self.done("enqueue")

    def operated(self, turn: int) -> Call:
        verbs: tuple[Verb, ...] = ("cancel", "finish", "requeue")
        verb = verbs[turn // 3 % 3]
        first = self.job("quick", "operated", delay=FOREVER)
        self.add([first, self.job("quick", "return")], cancels=self.dice.random() < 0.5)
        return self.done("operate", verb)

    def chain(self) -> None:
        die = self.dice.random()
        length = next(length for most, length in _LENGTHS if die <= most)
        self.add([self.any_job() for _ in range(length)], cancels=length > 1 and self.dice.random() < 0.3)

    def any_job(self) -> tuple[PlannedJob, Any]:
        dice = self.dice
        type = "aio" if (kind := dice.random()) < 0.25 else "picky" if kind < 0.35 and not self.is_sqs else "quick"
        delay = round(dice.uniform(0.1, 3.0), 3) if dice.random() < 0.02 else 0.0
        if self.is_sqs and delay:
            delay = float(dice.randint(1, 3))
        die = dice.random()
        if die < 0.93:
            return self.job(type, "return", delay=delay)
        if die < 0.94:
            return self.job(type, "sleep", delay=delay, wait=round(dice.uniform(0.02, 0.3), 3))
        if die < 0.965:
            return self.job(type, "flaky", delay=delay, attempts=3)
        if die < 0.975:
            return self.job(type, "exit", delay=delay, attempts=3)
        if die < 0.985:
            return self.job(type, "interrupt", delay=delay, attempts=3)
        if die < 0.99:
            return self.job(type, "retry", delay=delay, wait=1.0 if self.is_sqs else 0.3)
        if die < 0.995 or self.is_sqs:
            return self.job(type, "discard", delay=delay, attempts=3)
        return self.job(type, "fail", delay=delay, attempts=2)

    def job(
        self, type: str, deed: Deed, *, delay: float = 0.0, attempts: int = 0, wait: float = 0.0
    ) -> tuple[PlannedJob, Any]:
        dice, text = self.dice, _text()
        most = 200_000 if dice.random() < 0.001 and not self.is_sqs else 2_000 if dice.random() < 0.1 else 120
        begin = dice.randrange(len(text) - most)
        body = {"n": self.next, "do": deed, "wait": wait, "pad": CANARY + text[begin : begin + dice.randint(0, most)]}
        self.next += 1
        return PlannedJob(type, deed, checksum(body), delay, attempts, wait), body

    def add(self, jobs: list[tuple[PlannedJob, Any]], *, cancels: bool = False, unique: str | None = None) -> None:
        first = jobs[0][1]["n"]
        self.chains.append(PlannedChain(first, [job for job, _ in jobs], cancels, unique))
        self.bodies.append([body for _, body in jobs])

    def done(self, how: How, verb: Verb | None = None) -> Call:
        if how == "many" and len({chain.cancels for chain in self.chains}) > 1:
            # One call has one `on_failure`.
            self.chains = [PlannedChain(chain.first, chain.jobs, False) for chain in self.chains]
        return Call(self.number, how, self.chains, self.bodies, verb)


def checksum(body: dict[str, Any]) -> int:
    """CRC-32 of all that a body says."""
    return zlib.crc32(f"{body['n']} {body['do']} {body['wait']} {body['pad']}".encode())


@cache
def _text() -> str:
    """Something to cut bodies from: what JSON has to escape, what UTF-8 has in one to four bytes, and NUL."""
    letters = string.ascii_letters + string.digits + "\"\\/\b\f\n\r\t\0\x7f%{};'" + "äß€漢字🦀\u2028\ufffd"
    return "".join(Random(0).choices(letters, k=401_000))
