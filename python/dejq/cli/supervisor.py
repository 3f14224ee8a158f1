"""``dejq worker --processes`` and ``--reload``: starts worker processes, and new ones in place of those that end.

They are interpreters of their own and never forks. Each has a socket to here, over which it is told to stop and tells
what it does (`child.py`); with ``--http`` a second one, over which it tells its metrics. One thread does all the work,
from a queue that signals, sockets, ends of processes and changed files write to.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any

from dejq import _native, _signals
from dejq._signals import STOP_SIGNALS
from dejq.cli.child import NOW, REPLACE, STOP, VARIABLE
from dejq.cli.talk import FAILED, NO_CONNECTION, NO_SCHEMA, OK, USAGE, CommandError, count, say
from dejq.cli.worker import HURRY, summary, up_to

# Before a process that has died is started again: doubled each time, until it has lived for a while.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_WELL_SECONDS = 60.0
# What a process gets, beyond the shutdown timeout, to end in. One whose handler holds the interpreter never does.
_KILL_SECONDS = 5.0
# Words of a process that has ended are in the socket already.
_LAST_WORDS_SECONDS = 1.0


class _Process:
    """A worker process.

    Attributes:
        number: From 1; what takes its place has the same.
        popen: The process itself.
        since: When it was started, by the monotonic clock.
        why: What it said about why it ended.
        is_ready: Has it said so?
        is_replaced: Was it told to stop, for another to take its place?
        kill_at: When it has had enough time to end.
    """

    def __init__(self, number: int, popen: subprocess.Popen[bytes], words: socket.socket) -> None:
        self.number = number
        self.popen = popen
        self.since = time.monotonic()
        self.why: str | None = None
        self.is_ready = self.is_replaced = False
        self.kill_at: float | None = None
        self._words = words

    def order(self, what: bytes) -> None:
        """Tells it to stop, or to stop now."""
        with suppress(OSError):  # it is ending
            self._words.sendall(what)

    def listen(self, tell: Callable[[str, Any], None]) -> None:
        """Passes on what it says, and then how it has ended."""
        reader = threading.Thread(target=self._read, args=(tell,), daemon=True)
        reader.start()
        code = self.popen.wait()
        # Not until the socket is closed: what the process has forked may hold it open.
        reader.join(_LAST_WORDS_SECONDS)
        with suppress(OSError):
            self._words.shutdown(socket.SHUT_RDWR)
        self._words.close()
        tell("ended", code)

    def _read(self, tell: Callable[[str, Any], None]) -> None:
        try:
            with self._words.makefile("rb") as lines:
                for line in lines:
                    said = json.loads(line)
                    tell(said.pop("what"), said)
        except (OSError, ValueError):
            pass  # killed in the middle of a word


class _Supervisor:
    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._numbers = range(1, (given.processes or 1) + 1)
        self._events: SimpleQueue[tuple[str, _Process | None, Any]] = SimpleQueue()
        self._running: dict[int, _Process] = {}
        self._due: dict[int, float] = {}
        self._deaths: Counter[int] = Counter()
        self._sums: Counter[str] = Counter()
        self._said: set[str] = set()
        self._is_up = self._is_complete = False  # Has a process been ready? Have all been?
        self._stops = 0
        self._code = OK
        self._team: _native.Team | None = None

    def run(self) -> int:
        with self._signals():
            if self._given.reload:
                from dejq.cli import reload

                reload.watch(lambda paths: self._events.put(("changed", None, paths)))
            if self._given.http is not None:
                self._team = _native.Team()
                say(f"metrics   http://{self._team.serve(self._given.http)}/metrics")
            for number in self._numbers:
                self._start(number)
            while self._running or self._due or (self._given.reload and not self._given.drain and not self._stops):
                self._turn()
        if self._is_up:
            say(summary(*(self._sums[name] for name in ("finished", "given_back", "abandoned", "ended"))))
        return self._code

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Within it, signals are events. Whatever happens, no process is left behind."""
        with _signals.taken(lambda: self._events.put(("signal", None, None))):
            try:
                yield
            finally:
                for process in self._running.values():
                    process.popen.kill()

    def _turn(self) -> None:
        """Waits until something happens or is due, and does what is to be done about it."""
        kills = [process.kill_at for process in self._running.values() if process.kill_at is not None]
        first = min([*self._due.values(), *kills], default=None)
        try:
            what, process, more = self._events.get(timeout=None if first is None else max(0, first - time.monotonic()))
        except Empty:
            pass
        else:
            getattr(self, f"_on_{what}")(process, more)
        now = time.monotonic()
        for number in [number for number, at in self._due.items() if at <= now]:
            del self._due[number]
            self._start(number)
        for late in self._running.values():
            if late.kill_at is not None and late.kill_at <= now:
                say(f"killed    process {late.number}, which did not end in time")
                late.kill_at, self._code = None, FAILED
                late.popen.kill()

    # ---- processes ---------------------------------------------------------------------------------------

    def _start(self, number: int) -> None:
        pairs = [socket.socketpair() for _ in range(1 if self._team is None else 2)]
        fds = [theirs.fileno() for _, theirs in pairs]
        # Blocked, signals wait in the new process until it can take them for what they are.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            popen = subprocess.Popen(  # noqa: S603  (this very command)
                self._command(),
                env={**os.environ, VARIABLE: ",".join(map(str, [number, *fds]))},
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
            )
        except OSError as error:
            if not self._is_up:
                raise CommandError(f"no process can be started: {error.strerror}", FAILED) from error
            self._start_after_death(number, f"it could not be started: {error.strerror}")
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for _, theirs in pairs:
                theirs.close()
        (words, _), *metrics = pairs
        process = self._running[number] = _Process(number, popen, words)
        if self._team is not None:
            self._team.add(number, metrics[0][0].detach())

        def tell(what: str, more: Any) -> None:
            self._events.put((what, process, more))

        threading.Thread(target=process.listen, args=(tell,), daemon=True).start()

    def _command(self) -> list[str]:
        # -W, -X and the like hold for all processes; multiprocessing asks the same function.
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        return [sys.executable, *flags, "-m", "dejq", *self._given.argv]

    def _start_again(self, number: int, pause: float = 0.0) -> None:
        if self._team is not None:
            self._team.restarted()
        self._due[number] = time.monotonic() + pause

    def _start_after_death(self, number: int, why: str, *, lived: float = 0.0) -> None:
        self._deaths[number] = 1 if lived > _WELL_SECONDS else self._deaths[number] + 1
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._deaths[number] - 1))
        self._say_once(f"died      process {number}: {why}", why, f"; a new one starts in {pause:g} s")
        self._start_again(number, pause)

    def _say_once(self, text: str, why: str, more: str) -> None:
        """Once for all processes, until one has been ready again."""
        if why not in self._said:
            self._said.add(why)
            say(text + more)

    def _tell_to_stop(self, process: _Process) -> None:
        process.order(STOP)
        if process.kill_at is None and self._given.shutdown_timeout != float("inf"):
            process.kill_at = time.monotonic() + self._given.shutdown_timeout + _KILL_SECONDS

    def _stop(self) -> None:
        self._stops += 1
        self._due.clear()
        for process in self._running.values():
            self._tell_to_stop(process)

    # ---- events ------------------------------------------------------------------------------------------

    def _on_signal(self, _process: None, _more: None) -> None:
        if not self._stops:
            say(f"stopping  {_processes(len(self._running))}{up_to(self._given)} (Ctrl-C again to stop now)")
            self._stop()
            return
        self._stops += 1
        if self._stops == 2:
            say(HURRY)
        for process in self._running.values():
            process.order(NOW)
            process.kill_at = min(process.kill_at or float("inf"), time.monotonic() + _KILL_SECONDS)

    def _on_changed(self, _process: None, paths: list[str]) -> None:
        if self._stops:
            return
        say(f"reloading {', '.join(paths)}")
        self._said.clear()
        for process in self._running.values():
            process.is_replaced = True
            self._tell_to_stop(process)
        for number in self._numbers:
            if number not in self._running:
                self._due[number] = 0.0

    def _on_ready(self, process: _Process, said: dict[str, Any]) -> None:
        process.is_ready = True
        self._said.clear()
        if not self._is_up:
            self._is_up = True
            for line in said["banner"]:
                say(line)
        if self._is_complete:
            say(f"ready     process {process.number} again")
        elif all(number in self._running and self._running[number].is_ready for number in self._numbers):
            self._is_complete = True
            say(f"ready     {_processes(len(self._numbers))} waiting for jobs; Ctrl-C to stop")

    def _on_stopping(self, process: _Process, said: dict[str, Any]) -> None:
        because = "" if said["why"] is None else f": {said['why']}"
        jobs = f", {count(said['running'], 'job')} running" if said["running"] else ""
        if because or jobs:
            say(f"stopping  process {process.number}{because}{jobs}")
        # By itself or not, it has the same time as all.
        self._tell_to_stop(process)

    def _on_stopped(self, _process: _Process, said: dict[str, Any]) -> None:
        self._sums.update(said)

    def _on_failed(self, process: _Process, said: dict[str, Any]) -> None:
        process.why = said["why"]

    def _on_ended(self, process: _Process, code: int) -> None:
        number = process.number
        del self._running[number]
        if self._team is not None:
            self._team.remove(number)
        if self._stops:
            if code not in (OK, REPLACE) and self._code == OK:
                self._code = FAILED
            return
        why = process.why or _how(code)
        if process.is_replaced or code == REPLACE:
            self._start_again(number)
        elif code == OK and self._given.drain:
            pass
        elif process.is_ready or (self._is_up and not self._given.reload):
            if process.is_ready:
                self._said.discard(why)
            self._start_after_death(number, why, lived=time.monotonic() - process.since)
        elif self._given.reload:
            self._say_once(f"failed    {why}", why, "; waiting for a change")
        else:
            # As one process alone would: who starts it sees at once that it cannot work.
            say(f"dejq: {why}" if process.why else f"dejq: process {number} ended before it was ready: {why}")
            self._code = code if code in (FAILED, USAGE, NO_CONNECTION, NO_SCHEMA) else FAILED
            self._stop()


def supervise(given: argparse.Namespace) -> int:
    """Runs the processes of a worker until signals, or the end of the work, have ended all of them.

    Args:
        given: The flags of ``dejq worker``, and ``argv``, the command line for each process.

    Returns:
        The exit code: 1 if a job was cut short or a process did not end by itself; that of the process if the first
        ones cannot start.

    Raises:
        CommandError: The system gives no process, or ``--reload`` misses its package.
    """
    return _Supervisor(given).run()


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number:,} processes"


def _how(code: int) -> str:
    """How a process has ended that said nothing about it."""
    if code >= 0:
        return f"exit code {code}" if code else "it was told to stop"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
