"""A soak from begin to end: servers, processes, faults, the drain, a look into the store, and the verdicts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from soak import stores
from soak.checker import Judgement, check
from soak.crew import Crew, Processes
from soak.history import Began, FaultName, History, Phase, Recorder, Sabotage, read
from soak.memory import FAULTS as MEMORY_FAULTS
from soak.memory import Memory
from soak.nemesis import Nemesis, schedule
from soak.worker import Settings
from soak.workload import JOBS_PER_CALL

# All is healed, and nothing new comes: within this time the queue must be empty.
DRAIN_SECONDS: Final = 60.0
# Each enqueuer has a job that takes its time once in so long. In one process, whoever holds the interpreter stops all.
SPECIAL_SECONDS: Final = {"memory": 5.0}
_TICK: Final = 0.1


@dataclass(frozen=True)
class Options:
    """What a run is.

    Attributes:
        jobs: How many are enqueued, about.
        seconds: How long that takes, while faults come.
        every: Seconds between two faults, on average.
        faults: Which; None for all that the store knows.
        poisons: Jobs that kill their workers, again and again until they are given up.
    """

    store: str
    seed: int
    jobs: int
    seconds: float
    folder: Path
    every: float = 2.0
    faults: tuple[FaultName, ...] | None = None
    workers: int = 4
    slots: int = 2
    enqueuers: int = 2
    heartbeat: float = 1.0
    poisons: int = 0
    sabotage: Sabotage = ""
    command: str = ""


def run(options: Options) -> tuple[History, Judgement]:
    """Does it all; the history stays in the folder."""
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    recorder = Recorder(options.folder, "run")
    with _crew(options, recorder) as crew:
        _soak(options, crew, recorder)
    recorder.close()
    history = read(options.folder)
    return history, check(history)


@contextmanager
def _crew(options: Options, recorder: Recorder) -> Iterator[Crew]:
    worker = Settings(
        store=options.store,
        url="memory://soak",
        folder=str(options.folder),
        seed=options.seed,
        heartbeat=options.heartbeat,
        slots=options.slots,
        sabotage=options.sabotage,
    )
    calls = options.jobs / JOBS_PER_CALL / options.enqueuers
    enqueuer = msgspec.structs.replace(
        worker,
        jobs=options.jobs // options.enqueuers,
        seconds=options.seconds,
        special=max(3, round(calls / options.seconds * SPECIAL_SECONDS.get(options.store, 1.5))),
        poisons=options.poisons,
    )
    if options.store == "memory":
        with Memory(recorder, worker, enqueuer) as memory:
            yield memory
    else:
        with stores.start(options.store) as store, Processes(store, recorder, worker, enqueuer) as processes:
            yield processes


def _soak(options: Options, crew: Crew, recorder: Recorder) -> None:
    faults = MEMORY_FAULTS if options.store == "memory" else stores.KINDS[options.store].faults
    acts = schedule(
        options.seed,
        faults if options.faults is None else options.faults,
        options.seconds,
        every=options.every,
        heartbeat=options.heartbeat,
        slots=options.workers,
        enqueuers=options.enqueuers,
    )
    recorder.write(
        Began(
            store=options.store,
            seed=options.seed,
            heartbeat=options.heartbeat,
            max_rescues=crew.worker.max_rescues,
            slots=options.slots,
            workers=options.workers,
            backoff=crew.worker.backoff,
            # A short run does not come to all of them.
            faults=sorted({act.name for act in acts}),
            command=options.command,
        )
    )
    crew.begin(options.workers, options.enqueuers)
    recorder.write(Phase(name="load"))
    notes = None if options.sabotage == "secret-faults" else recorder
    Nemesis(acts, crew, notes, options.seed).run(options.seconds)
    _wait(crew, crew.is_enqueued)
    recorder.write(Phase(name="drain"))
    if not _wait(crew, crew.is_empty):
        (options.folder / "stuck.txt").write_text(crew.evidence())
    recorder.write(Phase(name="end"))
    crew.end()


def _wait(crew: Crew, condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + DRAIN_SECONDS
    while not condition():
        if time.monotonic() > until:
            return False
        crew.look_after()
        time.sleep(_TICK)
    return True
