"""Runs the programs of this folder, each in a process of its own that cannot outlive its time.

A program that hangs holds the interpreter, perhaps, so nothing inside of it could end it. It gets SIGABRT, on which
faulthandler writes where each thread is, and then SIGKILL together with its children.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

TESTS = Path(__file__).parents[2]
SECONDS = 30.0
# What faulthandler gets to write in.
DUMP_SECONDS = 2.0

CLEAN = ("-X", "faulthandler", "-W", "error", "-W", "ignore:.*fork:DeprecationWarning")


@dataclass
class Ended:
    """How a program ended. `seconds` run from its last line on stdout, or else from its start."""

    name: str
    code: int
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.name} ended with {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"

    def passed(self, code: int = 0) -> Ended:
        """Asserts that it ended with this code and has written nothing to stderr."""
        assert self.code == code, str(self)
        assert not self.err, str(self)
        return self

    @property
    def json(self) -> Any:
        """The last line on stdout."""
        return json.loads(self.out.splitlines()[-1])


class Program:
    """A running program. Leaving the context ends it."""

    def __init__(self, program: str, *args: str, seconds: float = SECONDS, uvloop: bool = True) -> None:
        self.name = " ".join([program, *args])
        self.until = time.monotonic() + seconds
        self.seconds = seconds
        self.last_line = time.monotonic()
        self.out: list[str] = []
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.err: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __exit__)
        path = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, *CLEAN, "-m", f"python.programs.{program}", *args],
            stdout=subprocess.PIPE,
            stderr=self.err,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "DEJQ_TEST_UVLOOP": str(int(uvloop))},
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.last_line = time.monotonic()
            self.out.append(line)
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def line(self) -> str:
        """The next line on stdout."""
        try:
            line = self.lines.get(timeout=max(0.0, self.until - time.monotonic()))
        except queue.Empty:
            line = None
        if line is None:
            self.wait()
            raise AssertionError(f"a line was expected: {self._ended()}")
        return line

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> Ended:
        """Waits for the end."""
        try:
            self.process.wait(max(0.0, self.until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._abort()
            raise AssertionError(f"no end within {self.seconds} s: {self._ended()}") from None
        seconds = time.monotonic() - self.last_line
        self._kill()
        ended = self._ended()
        ended.seconds = seconds
        return ended

    def _abort(self) -> None:
        self.process.send_signal(signal.SIGABRT)
        try:
            self.process.wait(DUMP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        self._kill()
        self.process.wait()

    def _kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def _ended(self) -> Ended:
        # Its children are dead too, so nobody holds the pipe.
        self.reader.join()
        self.err.seek(0)
        err = self.err.read().decode(errors="replace")
        return Ended(self.name, self.process.returncode, "".join(self.out), err, 0.0)

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()
        self.process.wait()
        self.reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.err.close()


def run(program: str, *args: str, seconds: float = SECONDS, uvloop: bool = True) -> Ended:
    """Runs a program to its end."""
    with Program(program, *args, seconds=seconds, uvloop=uvloop) as running:
        return running.wait()


def passes(program: str, *args: str, seconds: float = SECONDS, uvloop: bool = True) -> Ended:
    """Runs a program that must end well, having said so, and without a word on stderr."""
    ended = run(program, *args, seconds=seconds, uvloop=uvloop).passed()
    assert ended.out.endswith("passed\n"), str(ended)
    return ended


def run_many(programs: Sequence[tuple[str, ...]], at_once: int, seconds: float = SECONDS) -> list[Future[Ended]]:
    """Runs programs side by side, to the end of all of them."""
    with ThreadPoolExecutor(at_once) as pool:
        return [pool.submit(run, *args, seconds=seconds) for args in programs]
