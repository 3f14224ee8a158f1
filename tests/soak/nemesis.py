"""What goes wrong, and when: a schedule that follows from the seed, and who carries it out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

from soak.history import Fault, FaultName, Healed, Recorder

# How long each lasts, in beats. What is shorter than a lease by more than a beat must do no harm at all.
BEATS: Final[dict[FaultName, float]] = {
    # The lease of three beats, a look for lost workers after that, and some time for another one to start the job.
    "pause": 6.5,
    "hole": 6.5,
    "blink": 1.0,
    "gap": 1.0,
    "lag": 3.0,
    # Until its last handlers have ended: its successor has the same line, and a fault of that one is no fault of this.
    "stop": 5.0,
    "hurry": 0.3,
    "sleep": 5.0,
}
# How often each comes in a round; the others once. What is worth the most needs luck to hit a handler that runs.
_TIMES: Final[dict[FaultName, int]] = {"kill": 3, "pause": 2, "hole": 2}
# The store is one, so these happen to all at once.
OF_STORE: Final[frozenset[FaultName]] = frozenset({"restart", "sleep", "terminate"})
# How long after a fault the same process, or the store, is left alone: a new one has to come up first.
REST_BEATS: Final = 3.0
# These are for a handler that runs; for so many seconds they wait for one.
AIMED: Final[frozenset[FaultName]] = frozenset({"kill", "pause", "hole"})
_PATIENCE: Final = 3.0
# How often the clock is looked at.
_TICK: Final = 0.05


@dataclass(frozen=True)
class Act:
    """A fault to come.

    Attributes:
        at: Seconds from the begin of the load.
        slot: Which worker; None for the store. Negative for enqueuers, from -1 on.
    """

    at: float
    name: FaultName
    slot: int | None
    seconds: float


def schedule(
    seed: int,
    faults: Sequence[FaultName],
    seconds: float,
    *,
    every: float,
    heartbeat: float,
    slots: int,
    enqueuers: int,
) -> list[Act]:
    """All faults in turn, shuffled, one each `every` seconds, the last ones early enough to end with the load."""
    dice = Random(f"{seed} nemesis")
    acts: list[Act] = []
    free: dict[int | None, float] = {}
    bag: list[FaultName] = []
    at = 2 * every
    while faults and at < seconds - every:
        if not bag:
            bag = [name for name in faults for _ in range(_TIMES.get(name, 1))]
            dice.shuffle(bag)
        name = bag.pop()
        lasts = BEATS.get(name, 0.0) * heartbeat
        rested = [
            slot for slot in _targets(name, slots, enqueuers) if max(free.get(slot, 0.0), free.get(None, 0.0)) <= at
        ]
        if rested:
            # Mostly workers: enqueuers have no leases.
            slot = dice.choice([slot for slot in rested if slot is None or slot >= 0 or dice.random() < 0.5] or rested)
            acts.append(Act(round(at, 3), name, slot, lasts))
            free[slot] = at + lasts + REST_BEATS * heartbeat
        else:
            bag.insert(0, name)
        at += every * dice.uniform(0.5, 1.5)
    return acts


def _targets(name: FaultName, slots: int, enqueuers: int) -> list[int | None]:
    if name in OF_STORE:
        return [None]
    # Enqueuers have neither leases nor a stop worth testing, but die and lose answers as well.
    also = range(1, enqueuers + 1) if name in ("kill", "cut", "mute", "gap", "disrupt") else ()
    return [*range(slots), *(-number for number in also)]


class Victims(Protocol):
    """The processes and the store of a run, to which faults happen."""

    def process(self, slot: int) -> str:
        """The name of the process that is in that slot now."""
        ...

    def strike(self, act: Act, dice: Random) -> Callable[[], None] | None:
        """Does it; returns what undoes it, or waits for its end."""
        ...

    def is_busy(self, slot: int) -> bool:
        """Has the process in that slot been in a handler for some time?"""
        ...

    def look_after(self) -> None:
        """Replaces processes that have ended."""
        ...


class Nemesis:
    """Carries out a schedule, and writes down what it does before it does it."""

    def __init__(self, acts: Sequence[Act], victims: Victims, recorder: Recorder | None, seed: int) -> None:
        self._acts = sorted(acts, key=lambda act: act.at)
        self._victims = victims
        self._recorder = recorder
        self._dice = Random(f"{seed} strikes")
        self._numbers = itertools.count()
        # When, which fault, and how.
        self._ends: list[tuple[float, int, Callable[[], None] | None]] = []

    def run(self, seconds: float) -> None:
        """Follows the schedule for so long, and heals everything in the end."""
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            self._heal(now)
            for act in [act for act in self._acts if act.at <= now]:
                if self._is_time(act, now):
                    self._acts.remove(act)
                    self._strike(act, now)
            self._victims.look_after()
            time.sleep(_TICK)
        self._heal(float("inf"))

    def _is_time(self, act: Act, now: float) -> bool:
        if act.name not in AIMED or act.slot is None or act.slot < 0 or now > act.at + _PATIENCE:
            return True
        return self._victims.is_busy(act.slot)

    def _strike(self, act: Act, now: float) -> None:
        number = next(self._numbers)
        target = None if act.slot is None else self._victims.process(act.slot)
        self._note(Fault(number=number, name=act.name, target=target))
        undo = self._victims.strike(act, self._dice)
        self._ends.append((now + act.seconds, number, undo))
        if not act.seconds:
            self._heal(now)

    def _heal(self, now: float) -> None:
        for end in [end for end in self._ends if end[0] <= now]:
            _, number, undo = end
            if undo:
                undo()
            self._note(Healed(number=number))
            self._ends.remove(end)

    def _note(self, event: Fault | Healed) -> None:
        if self._recorder:
            self._recorder.write(event)
