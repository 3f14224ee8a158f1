"""A worker process below a supervisor: what it is told, and what it tells. The other side is `supervisor.py`.

A signal may come to one process, or, from a terminal or a service manager, to all of them and to the supervisor, which
passes it on. So a child takes any number of signals as one wish to stop, and only the supervisor says "now". When the
supervisor is gone, its end of the socket is closed: the child stops, too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import FrameType

from dejq._signals import STOP_SIGNALS

# In the environment: number, and file descriptors of the sockets for words and, if they are wanted, for metrics.
VARIABLE = "DEJQ_CHILD"
STOP, NOW = b"s", b"n"
# The exit code of a child that has reached a limit, for another to take its place.
REPLACE = 75


class Supervisor:
    """The supervisor, as its child sees it.

    Attributes:
        number: Which child this is, from 1.
        metrics: File descriptor of the socket for metrics, if the supervisor wants some.
        asked: Has an entry when this process is to stop.
        is_gone: Has it died?
    """

    def __init__(self, number: int, words: int, metrics: int | None = None) -> None:
        self.number = number
        self.metrics = metrics
        self.asked: SimpleQueue[None] = SimpleQueue()
        self._socket = socket.socket(fileno=words)
        for fd in (words, metrics):
            if fd is not None:
                os.set_inheritable(fd, False)  # not for what handlers start
        self._lock = threading.Lock()
        self._hurry: Callable[[], None] | None = None
        self._is_now = self.is_gone = False
        for name in STOP_SIGNALS:
            signal.signal(name, self._ask)
        # They were blocked by the supervisor, so that none was lost before.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        threading.Thread(target=self._listen, name="dejq-supervisor", daemon=True).start()

    def tell(self, what: str, **more: object) -> None:
        """Tells it something; a supervisor that is gone is not told."""
        try:
            self._socket.sendall(json.dumps({"what": what, **more}).encode() + b"\n")
        except OSError:
            pass

    def when_in_a_hurry(self, hurry: Callable[[], None]) -> None:
        """What to do when it says "now", or has said so."""
        with self._lock:
            self._hurry = hurry
            is_now = self._is_now
        if is_now:
            hurry()

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked.put(None)

    def _listen(self) -> None:
        while order := self._receive():
            if NOW in order:
                with self._lock:
                    self._is_now, hurry = True, self._hurry
                if hurry is not None:
                    hurry()
            self.asked.put(None)
        self.is_gone = True
        self.asked.put(None)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(16)
        except OSError:
            return b""


def supervisor() -> Supervisor | None:
    """The supervisor of this process, if it has one. What this process starts has another one, or none."""
    found = os.environ.pop(VARIABLE, None)
    return None if found is None else Supervisor(*map(int, found.split(",")))
