"""The signals that ask a process to stop."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def taken(take: Callable[[], None]) -> Iterator[None]:
    """Within it, each signal calls `take`, on the main thread and amid whatever runs there."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        take()

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            # `None` was not set from Python, and cannot be set again from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def stopping(wanted: queue.SimpleQueue[None], hurry: Callable[[], None]) -> Iterator[None]:
    """A signal asks for the stop, each further one hurries; elsewhere than on the main thread, nothing."""
    came = False

    def take() -> None:
        nonlocal came
        if came:
            hurry()
        came = True
        wanted.put(None)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with taken(take):
        yield
