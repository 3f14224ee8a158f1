"""A worker of a soak: handlers that do what their jobs say, and write down when they begin and end."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final

import msgspec

import dejq
from dejq import Backoff, Client, Discard, Job, Retry
from soak.history import Ended, How, Poisoned, Ready, Recorder, Rested, Sabotage, Started
from soak.workload import checksum

# Calls C code without letting go of the interpreter.
_libc: Final = ctypes.PyDLL(None)
# How often a long handler looks whether it is to return.
_LOOK: Final = 0.05


class Interrupted(Exception):
    """A handler was told to return. It raises, because to return would be to say that the work is done."""


class Settings(msgspec.Struct, frozen=True):
    """What a worker or an enqueuer has to know.

    Attributes:
        picky: Handles the type that only some workers do.
    """

    store: str
    url: str
    folder: str
    seed: int
    options: dict[str, Any] = {}
    heartbeat: float = 1.0
    max_rescues: int = 3
    slots: int = 2
    backoff: float = 0.3
    picky: bool = True
    sabotage: Sabotage = ""
    enqueuer: int = 0
    jobs: int = 0
    seconds: float = 0.0
    special: int = 20
    poisons: int = 0


def connect(settings: Settings) -> Client:
    """A client of the run's queue."""
    options = {
        "heartbeat": settings.heartbeat,
        "max_rescues": settings.max_rescues,
        "workers": settings.slots,
        "async_workers": settings.slots,
        **settings.options,
    }
    return dejq.connect(settings.url, backoff=Backoff(settings.backoff, factor=1.0, jitter=0.0), **options)


class Worker:
    """Handlers and their notes, on a client that is started and stopped by who made this."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.recorder = Recorder(Path(settings.folder), name)
        self.client = connect(settings)
        self._runs = itertools.count()
        self._sabotage = settings.sabotage
        self._pause = threading.Event()
        self.client.register_handler("quick", self.plain)
        self.client.register_handler("aio", self.coroutine)
        if settings.picky:
            self.client.register_handler("picky", self.plain)

    def ready(self) -> None:
        """Writes that it takes jobs, once it does; from then on signals find their handlers, too."""
        while not self.client._native.is_running:
            self._pause.wait(_LOOK)
        self.recorder.write(Ready(types=self.client.types))

    def rested(self) -> None:
        self.recorder.write(Rested(counts=self.client._native.counted()))

    def plain(self, job: Job) -> None:
        body = job.body
        run = self._start(job, body)
        how: How = "raised"
        try:
            how = self._do(job, body["do"], body["wait"])
            self._raise(how, body)
        except Interrupted:
            how = "cancelled"
            raise
        finally:
            self._end(run, job, how)

    async def coroutine(self, job: Job) -> None:
        body = job.body
        run = self._start(job, body)
        how: How = "raised"
        try:
            if body["do"] in ("sleep", "long"):
                await asyncio.sleep(body["wait"])
                how = "returned"
            else:
                how = self._do(job, body["do"], body["wait"])
            self._raise(how, body)
        except asyncio.CancelledError:
            how = "cancelled"
            raise
        finally:
            self._end(run, job, how)

    def _start(self, job: Job, body: Any) -> int:
        if self._sabotage == "run-twice":
            self._note(next(self._runs), job, body)
        if self._sabotage == "leak":
            print(body["pad"], file=sys.stderr, flush=True)
        run = next(self._runs)
        self._note(run, job, body)
        return run

    def _note(self, run: int, job: Job, body: Any) -> None:
        self.recorder.write(
            Started(
                run=run,
                job=body["n"],
                id=job.id,
                type=job.type,
                attempt=job.attempt,
                position=job.position,
                length=job.chain_length,
                sum=checksum(body),
            )
        )

    def _end(self, run: int, job: Job, how: How) -> None:
        if self._sabotage != "no-ends" or run % 50:
            self.recorder.write(Ended(run=run, how=how, told=job.cancelled))

    def _do(self, job: Job, deed: str, wait: float) -> How:
        match deed:
            case "sleep":
                self._pause.wait(wait)
            case "long":
                for _ in range(round(wait / _LOOK)):
                    if job.cancelled:
                        raise Interrupted
                    self._pause.wait(_LOOK)
            case "hold":
                _libc.usleep(round(wait * 1_000_000))
            case "poison":
                self.recorder.write(Poisoned())
                os.kill(os.getpid(), signal.SIGKILL)
            case "flaky" if job.attempt == 1:
                raise ValueError("as it should")
            case "exit" if job.attempt == 1:
                raise SystemExit("as it should")
            case "interrupt" if job.attempt == 1:
                raise KeyboardInterrupt
            case "fail":
                raise RuntimeError("as it should")
            case "retry" if job.attempt == 1:
                return "retried"
            case "discard":
                return "discarded"
            case _:
                pass
        return "returned"

    def _raise(self, how: How, body: Any) -> None:
        """What a handler says by raising."""
        if how == "retried":
            raise Retry(after=body["wait"])
        if how == "discarded":
            raise Discard("as it should")


def main() -> None:
    settings = msgspec.json.decode(sys.argv[2], type=Settings)
    worker = Worker(settings, sys.argv[1])
    threading.Thread(target=worker.ready, daemon=True).start()
    worker.client.run()
    worker.rested()


if __name__ == "__main__":
    main()
