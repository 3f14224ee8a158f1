"""The crew of a run on the memory store, which lives in one process: workers and enqueuers are clients in it.

The process is a program of its own, which takes commands as lines and answers each by a line.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

import msgspec

import dejq
from dejq import Client
from soak.enqueuer import Enqueuer
from soak.history import Exited, FaultName, Recorder
from soak.look import is_empty, logs, look, look_for_leaks, operate_on_orphans
from soak.nemesis import Act
from soak.worker import Settings, Worker

FAULTS: Final[tuple[FaultName, ...]] = ("stop", "hurry", "sleep")
TESTS: Final = Path(__file__).parents[1]
# So many final jobs are kept, which is all of them.
OPTIONS: Final = {"keep_finished": 50_000_000}


class Memory:
    """Clients in another process. Leaving the context kills it."""

    def __init__(self, recorder: Recorder, worker: Settings, enqueuer: Settings) -> None:
        self.worker = msgspec.structs.replace(worker, options=OPTIONS)
        self._enqueuer = msgspec.structs.replace(enqueuer, options=OPTIONS)
        self._recorder = recorder
        self._incarnations: dict[int, int] = {}
        with (logs(Path(worker.folder)) / "memory.log").open("wb") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "soak.memory", *(_json(each) for each in (self.worker, self._enqueuer))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"PYTHONPATH": str(TESTS), "PYTHONFAULTHANDLER": "1"},
            )

    def _ask(self, *words: object) -> str:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write(" ".join(map(str, words)) + "\n")
        self._popen.stdin.flush()
        return self._popen.stdout.readline().strip()

    def begin(self, workers: int, enqueuers: int) -> None:
        self._ask("begin", workers, enqueuers)

    def is_enqueued(self) -> bool:
        return self._ask("enqueued") == "yes"

    def is_empty(self) -> bool:
        return self._ask("empty") == "yes"

    def evidence(self) -> str:
        return self._ask("evidence")

    def end(self) -> None:
        self._ask("end")
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        self._recorder.write(Exited(process="memory", code=self._popen.wait()))
        look_for_leaks(Path(self.worker.folder), self._recorder)

    def process(self, slot: int) -> str:
        return f"w{slot}.{self._incarnations.get(slot, 0)}"

    def strike(self, act: Act, dice: Random) -> Callable[[], None] | None:
        if act.slot is None:
            self._popen.send_signal(signal.SIGSTOP)
            return lambda: self._popen.send_signal(signal.SIGCONT)
        self._ask(act.name, act.slot)
        self._incarnations[act.slot] = self._incarnations.get(act.slot, 0) + 1
        return None

    def is_busy(self, slot: int) -> bool:
        return True

    def look_after(self) -> None:
        """Nobody ends here without being told so."""

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        with self._popen:  # which closes its pipes and waits
            self._popen.kill()


def _json(settings: Settings) -> str:
    return msgspec.json.encode(settings).decode()


class Host:
    """Clients of one queue in memory. Each has a name of its own, as if it were a process."""

    def __init__(self, worker: Settings, enqueuer: Settings) -> None:
        self._settings, self._enqueuer = worker, enqueuer
        self.recorder = Recorder(Path(worker.folder), "memory")
        self.client: Client = dejq.connect(worker.url, **worker.options)
        self._incarnations: dict[int, itertools.count[int]] = {}
        self._workers: dict[int, Worker] = {}
        self._threads: list[threading.Thread] = []

    def start(self, slot: int) -> None:
        incarnation = next(self._incarnations.setdefault(slot, itertools.count()))
        settings = msgspec.structs.replace(self._settings, picky=slot % 2 == 0)
        worker = self._workers[slot] = Worker(settings, f"w{slot}.{incarnation}")
        worker.client.dequeue_loop()
        worker.ready()

    def restart(self, slot: int, timeout: float | None) -> None:
        """The next one comes while this one still finishes what it has begun."""
        leaving = self._workers[slot]
        self.start(slot)
        thread = threading.Thread(target=self._stop, args=(leaving, timeout))
        thread.start()
        self._threads.append(thread)

    def _stop(self, worker: Worker, timeout: float | None) -> None:
        worker.client.stop(timeout)
        worker.rested()
        self.recorder.write(Exited(process=worker.recorder.process, code=0))

    def enqueue(self, number: int) -> None:
        settings = msgspec.structs.replace(self._enqueuer, enqueuer=number)
        thread = threading.Thread(target=self._run, args=(Enqueuer(settings, f"e{number}.0"),))
        thread.start()
        self._threads.append(thread)

    def _run(self, enqueuer: Enqueuer) -> None:
        code = 1
        try:
            enqueuer.run()
            code = 0
        finally:
            self.recorder.write(Exited(process=enqueuer.recorder.process, code=code))

    def end(self) -> None:
        for worker in self._workers.values():
            self._stop(worker, None)
        for thread in self._threads:
            thread.join()
        look(self.client, self.recorder, lambda: {"jobs": len(self.client.list_jobs(limit=1_000))})

    def obey(self, command: str, *numbers: int) -> str:
        match command:
            case "begin":
                for slot in range(numbers[0]):
                    self.start(slot)
                for number in range(numbers[1]):
                    self.enqueue(number)
            case "stop" | "hurry":
                self.restart(numbers[0], 0.0 if command == "hurry" else None)
            case "enqueued":
                return "no" if any(thread.is_alive() for thread in self._threads) else "yes"
            case "empty":
                operate_on_orphans(self.client, self.recorder)
                return "yes" if is_empty(self.client) else "no"
            case "evidence":
                return repr(self.client.stats())
            case _:
                self.end()
        return "ok"


def main() -> None:
    worker, enqueuer = (msgspec.json.decode(text, type=Settings) for text in sys.argv[1:])
    host = Host(worker, enqueuer)
    for line in sys.stdin:
        command, *numbers = line.split()
        print(host.obey(command, *map(int, numbers)), flush=True)


if __name__ == "__main__":
    main()
