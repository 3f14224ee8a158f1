"""A terminal without a window: what a program shows on it, and keys for the program."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import pyte

SECONDS = 60.0
# What programs ask newer terminals; pyte would show the end of it.
_QUESTIONS = re.compile(rb"\x1b\[[<>=?][0-9;]*[a-zA-Z$]+[a-z]?")


class Terminal:
    """Runs a command on a terminal of that size; leaving the context kills what still runs."""

    def __init__(
        self, command: Sequence[str], columns: int, lines: int = 24, environment: Mapping[str, str] | None = None
    ) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._own, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        unset = ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR")
        inherited = {name: value for name, value in os.environ.items() if name not in unset}
        settings = {"TERM": "xterm-256color", "PYTHONUTF8": "1", **(environment or {})}
        self._process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=inherited | settings, start_new_session=True
        )
        os.close(theirs)
        self.seen = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._own)

    @property
    def shown(self) -> list[str]:
        """The lines on it, without what is empty at their ends and at its end."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip().split("\n")

    def colours(self, word: str) -> set[str]:
        """In which it stands there."""
        found: set[str] = set()
        for number, line in enumerate(self._screen.display):
            for match in re.finditer(re.escape(word), line):
                found |= {self._screen.buffer[number][column].fg for column in range(*match.span())}
        return found

    def wait_for(self, text: str) -> None:
        """Until it stands there."""
        self.wait_until(lambda: any(text in line for line in self.shown))

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Until what the program writes makes it true."""
        end = time.monotonic() + SECONDS
        while not condition():
            assert self._read(end), "it did not come:\n" + "\n".join(self.shown)

    def wait_for_end(self) -> int:
        """Until the program has ended; gives its exit code."""
        end = time.monotonic() + SECONDS
        while self._read(end):
            pass
        return self._process.wait(max(end - time.monotonic(), 1.0))

    def press(self, keys: str) -> None:
        """As if somebody had typed them."""
        os.write(self._own, keys.encode())

    def _read(self, end: float) -> bool:
        """Shows what comes next; false when nothing more will, or in time."""
        ready, _, _ = select.select([self._own], [], [], max(end - time.monotonic(), 0.0))
        if not ready:
            return False
        try:
            came = os.read(self._own, 65536)
        except OSError:  # Linux: nobody is at the other end
            came = b""
        self.seen += came
        self._stream.feed(_QUESTIONS.sub(b"", came))
        return bool(came)
