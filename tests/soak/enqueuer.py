"""An enqueuer of a soak: makes the calls of its workload at an even pace, and writes down what became of each."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import msgspec
import psycopg

from dejq import BackendUnavailable, BodyError, ChainBroken, OutcomeUnknown, PendingJob, WrongState
from dejq.client import OnFailure
from soak.history import Asked, Broken, Operated, Operating, PlannedJob, Recorder, Refused, Stored, Unclear, Verb, read
from soak.worker import Settings, connect
from soak.workload import Call, Workload

# Between two tries of an operator whose store does not answer.
_AGAIN: Final = 0.2


class Enqueuer:
    """Makes calls until it has enqueued its share, or is told to end."""

    def __init__(self, settings: Settings, name: str, over: threading.Event | None = None) -> None:
        self.settings = settings
        self.recorder = Recorder(Path(settings.folder), name)
        self.client = connect(settings)
        self.over = over or threading.Event()
        self._steps = itertools.count()
        self._connection: psycopg.Connection[Any] | None = None
        self._workload = Workload(settings.store, settings.seed, settings.enqueuer, settings.special, settings.poisons)

    def run(self, after: int = 0, jobs: int = 0) -> None:
        """Goes on after so many calls, of so many jobs."""
        began = time.monotonic() - self.settings.seconds * jobs / self.settings.jobs
        for call in self._workload.calls(after):
            due = began + self.settings.seconds * jobs / self.settings.jobs
            if jobs >= self.settings.jobs or self.over.wait(max(0.0, due - time.monotonic())):
                break
            jobs += call.jobs
            self.make(call)
        if self._connection:
            self._connection.close()
        self.client.stop()

    def make(self, call: Call) -> None:
        self.recorder.write(Asked(call=call.number, chains=call.chains, rolls_back=call.how == "rollback"))
        if self.settings.sabotage == "truncate":
            call.bodies[0][0]["pad"] = call.bodies[0][0]["pad"][:-1]
        chains = [
            [_pending(job, body, chain.unique) for job, body in zip(chain.jobs, bodies, strict=True)]
            for chain, bodies in zip(call.chains, call.bodies, strict=True)
        ]
        cancels: OnFailure = "cancel" if call.chains[0].cancels else "continue"
        match call.how:
            case "many":
                self._enqueue(call, lambda: self.client.enqueue_many(chains, on_failure=cancels))
            case "bad":
                job = PendingJob("quick", {"nothing": [float("nan")]})
                self._enqueue(call, lambda: self.client.enqueue(*chains[0], job))
            case "transaction" | "rollback":
                self._in_transaction(call, chains[0], cancels)
            case _:
                stored = self._enqueue(call, lambda: self.client.enqueue(*chains[0], on_failure=cancels))
                if stored and call.verb:
                    self.operate(call.verb, call.chains[0].first, stored[0])

    def _enqueue(self, call: Call, enqueue: Callable[[], list[str]]) -> list[str] | None:
        try:
            forgets = self.settings.sabotage == "forget" and call.number % 5 == 4
            ids = [str(uuid4()) for _ in range(call.jobs)] if forgets else enqueue()
        except (BackendUnavailable, BodyError) as error:
            self.recorder.write(Refused(call=call.number, error=type(error).__name__))
        except OutcomeUnknown as error:
            self.recorder.write(Unclear(call=call.number, ids=error.ids, error=type(error).__name__))
        except ChainBroken as error:
            self.recorder.write(Broken(call=call.number, sent=error.sent, unsent=error.unsent))
        else:
            self.recorder.write(Stored(call=call.number, ids=ids))
            return ids
        return None

    def _in_transaction(self, call: Call, jobs: list[PendingJob[Any]], cancels: OnFailure) -> None:
        """As a program would that writes rows of its own next to the jobs."""
        ids: list[str] = []
        commits = False
        try:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(self.settings.url, connect_timeout=5)
            ids = self.client.enqueue(*jobs, on_failure=cancels, connection=self._connection)
            if call.how == "rollback":
                self._connection.rollback()
            else:
                commits = True
                self._connection.commit()
        except psycopg.Error as error:
            with suppress(psycopg.Error):
                if self._connection:
                    self._connection.close()
            # Whether a commit happened whose answer was lost, nobody knows.
            name = type(error).__name__
            unclear = Unclear(call=call.number, ids=ids, error=name)
            self.recorder.write(unclear if commits else Refused(call=call.number, error=name))
        else:
            rolled_back = call.how == "rollback"
            self.recorder.write(
                Refused(call=call.number, error="rolled back") if rolled_back else Stored(call=call.number, ids=ids)
            )

    def operate(self, verb: Verb, job: int, id: str) -> None:
        """Does it, and repeats it until it is clear that it was done."""
        act = {"cancel": self.client.cancel_job, "finish": self.client.finish_job, "requeue": self.client.requeue_job}
        tries = 0
        while not self.over.wait(_AGAIN if tries else 0):
            tries += 1
            step = next(self._steps)
            self.recorder.write(Operating(step=step, verb=verb, job=job))
            try:
                act[verb](id)
            except (BackendUnavailable, OutcomeUnknown):
                self.recorder.write(Operated(step=step, outcome="unclear"))
            except WrongState:
                # Nobody else touches this job, so an earlier try has done it.
                self.recorder.write(Operated(step=step, outcome="done" if tries > 1 else "refused"))
                return
            else:
                self.recorder.write(Operated(step=step, outcome="done"))
                return


def _pending(job: PlannedJob, body: Any, unique: str | None) -> PendingJob[Any]:
    return PendingJob(job.type, body, delay=job.delay or None, max_attempts=job.attempts or None, unique=unique)


def made(folder: Path, enqueuer: int) -> tuple[int, int]:
    """How many calls, and jobs in them, an enqueuer has begun in all its processes."""
    calls = [entry.event for entry in read(folder, f"e{enqueuer}.*.jsonl") if isinstance(entry.event, Asked)]
    return len(calls), sum(len(chain.jobs) for call in calls for chain in call.chains)


def main() -> None:
    settings = msgspec.json.decode(sys.argv[2], type=Settings)
    enqueuer = Enqueuer(settings, sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: enqueuer.over.set())
    enqueuer.run(*made(Path(settings.folder), settings.enqueuer))


if __name__ == "__main__":
    main()
