"""The processes of a run: workers and enqueuers, each in a slot where another one follows when it has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Protocol

import msgspec

from soak.history import AnyEvent, Ended, Exited, Ready, Recorder, Started, read
from soak.look import is_empty, logs, look, look_for_leaks, operate_on_orphans
from soak.nemesis import Act, Victims
from soak.stores import Store
from soak.worker import Settings

TESTS: Final = Path(__file__).parents[1]
# A process that is asked to stop has nothing that takes longer.
STOP_SECONDS: Final = 60.0
_TICK: Final = 0.02
_TAIL_BYTES: Final = 200_000
# A handler that has run for so long will mostly go on for a while.
_LONG_NS: Final = 200_000_000
_decoder: Final = msgspec.json.Decoder(AnyEvent)


@dataclass(eq=False)
class Process:
    name: str
    slot: int
    popen: subprocess.Popen[bytes]
    is_leaving: bool = False

    @property
    def is_over(self) -> bool:
        return self.popen.poll() is not None


class Crew(Victims, Protocol):
    """Who works and enqueues in a run, and the store that they do it with."""

    worker: Settings

    def begin(self, workers: int, enqueuers: int) -> None:
        """Starts all; when it returns, workers take jobs."""

    def is_enqueued(self) -> bool:
        """Have all enqueuers made all their calls?"""
        ...

    def is_empty(self) -> bool:
        """Does nothing wait or run in the store?"""
        ...

    def end(self) -> None:
        """Stops all workers gracefully, and has a look at what they have left."""

    def evidence(self) -> str:
        """What is in the store in its own words."""
        ...


class Processes:
    """Workers and enqueuers of a server. Leaving the context kills those that are still there."""

    def __init__(self, store: Store, recorder: Recorder, worker: Settings, enqueuer: Settings) -> None:
        self.store = store
        self.worker = msgspec.structs.replace(worker, options=store.options)
        self._enqueuer = msgspec.structs.replace(enqueuer, options=store.options)
        self._folder = Path(worker.folder)
        self._recorder = recorder
        self._client = store.client()
        self._stack = ExitStack()
        self._incarnations: dict[int, int] = {}
        self._now: dict[int, Process] = {}
        self._all: list[Process] = []
        self._ready: set[str] = set()
        self._is_over = False

    # ---- coming and going

    def begin(self, workers: int, enqueuers: int) -> None:
        for slot in range(workers):
            self.start(slot)
        for slot in range(workers):
            self.wait_until_ready(slot)
        for slot in range(enqueuers):
            self.start(-slot - 1)

    def start(self, slot: int) -> None:
        """Starts a worker in that slot, or in a negative one an enqueuer."""
        incarnation = self._incarnations[slot] = self._incarnations.get(slot, -1) + 1
        if slot >= 0:
            program, line, settings = "worker", f"w{slot}", self.worker
            settings = msgspec.structs.replace(settings, picky=slot % 2 == 0)
        else:
            program, line, settings = "enqueuer", f"e{-slot - 1}", self._enqueuer
            settings = msgspec.structs.replace(
                settings, enqueuer=-slot - 1, poisons=settings.poisons if slot == -1 else 0
            )
        name = f"{line}.{incarnation}"
        settings = msgspec.structs.replace(settings, url=self.store.line(line, self._stack))
        with (logs(self._folder) / f"{name}.log").open("wb") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", f"soak.{program}", name, msgspec.json.encode(settings).decode()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": str(TESTS), "PYTHONFAULTHANDLER": "1"},
            )
        self._now[slot] = Process(name, slot, popen)
        self._all.append(self._now[slot])

    def wait_until_ready(self, slot: int) -> None:
        """Waits until the worker in that slot takes jobs, and so also knows what to do on a signal."""
        process = self._now[slot]
        while not process.is_over and not self._is_ready(process.name):
            time.sleep(_TICK)

    def _is_ready(self, name: str) -> bool:
        if name not in self._ready and any(
            isinstance(entry.event, Ready) for entry in read(self._folder, f"{name}.jsonl")
        ):
            self._ready.add(name)
        return name in self._ready

    def look_after(self) -> None:
        """Writes down who has ended, and starts others in their places."""
        for process in [process for process in self._all if process.is_over]:
            self._all.remove(process)
            self._recorder.write(Exited(process=process.name, code=process.popen.returncode))
            if self._now.get(process.slot) is process:
                del self._now[process.slot]
                if process.popen.returncode and not self._is_over:
                    self.start(process.slot)

    def is_enqueued(self) -> bool:
        return not any(slot < 0 for slot in self._now)

    def is_empty(self) -> bool:
        operate_on_orphans(self._client, self._recorder)
        return is_empty(self._client)

    def evidence(self) -> str:
        return self.store.evidence()

    def end(self) -> None:
        self._stop()
        look_for_leaks(self._folder, self._recorder)
        if not look(self._client, self._recorder, self.store.left):
            (self._folder / "left.txt").write_text(self.evidence())

    def _stop(self) -> None:
        """Ends all workers as a deploy would, and waits for that."""
        self._is_over = True
        for slot, process in list(self._now.items()):
            if slot >= 0:
                self.wait_until_ready(slot)
                process.popen.terminate()
        until = time.monotonic() + STOP_SECONDS
        while self._all and time.monotonic() < until:
            self.look_after()
            time.sleep(_TICK)
        for process in self._all:
            # It hangs: what it was doing then is in its log.
            process.popen.send_signal(signal.SIGABRT)
            process.popen.wait()
        self.look_after()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all:
            process.popen.send_signal(signal.SIGCONT)
            process.popen.kill()
            process.popen.wait()
        self._client.stop()
        self._stack.close()

    # ---- faults

    def process(self, slot: int) -> str:
        """The name of who is in that slot; one that has just ended by itself still counts."""
        process = self._now.get(slot)
        return process.name if process else f"{'e' if slot < 0 else 'w'}{-slot - 1 if slot < 0 else slot}.gone"

    def is_busy(self, slot: int) -> bool:
        process = self._now.get(slot)
        if process is None or not self._is_ready(process.name):
            return False
        # The end of its history is enough: a handler that has run for long is rarely far up in it.
        with (self._folder / f"{process.name}.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().splitlines()[1:-1]
        events = [_decoder.decode(line) for line in lines]
        ended = {event.run for event in events if isinstance(event, Ended)}
        before = time.monotonic_ns() - _LONG_NS
        return any(isinstance(event, Started) and event.run not in ended and event.at < before for event in events)

    def strike(self, act: Act, dice: Random) -> Callable[[], None] | None:
        if act.slot is None:
            match act.name:
                case "restart":
                    self.store.restart()
                case "sleep":
                    return self.store.sleep()
                case _:
                    self.store.terminate(dice)
            return None
        process = self._now.get(act.slot)
        if process is None:
            return None
        name = process.name.partition(".")[0]
        line = self.store.lines[name]
        match act.name:
            case "kill":
                process.popen.kill()
                process.popen.wait()
                self.look_after()
            case "pause" | "blink":
                process.popen.send_signal(signal.SIGSTOP)
                return lambda: process.popen.send_signal(signal.SIGCONT)
            case "stop" | "hurry":
                self.wait_until_ready(act.slot)
                process.popen.terminate()
                # As in a deploy, the next one comes while this one finishes what it has begun.
                self.start(act.slot)
                return process.popen.terminate if act.name == "hurry" else None
            case "hole" | "gap":
                line.black_hole(True)
                return lambda: line.black_hole(False)
            case "lag":
                line.delay(0.1)
                return lambda: line.delay(0.0)
            case "cut":
                line.cut()
            case "mute":
                self.store.mute(name)
            case _:
                self.store.disrupt(name, dice)
        return None
