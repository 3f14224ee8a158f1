"""From the engine's log ring to the standard `logging`, on a thread of its own.

The engine's threads never wait for `logging`, which may be slow, or for the interpreter, which a handler may
hold. The price: lines arrive a moment later, and under a flood the oldest are dropped and counted.
"""

from __future__ import annotations

import threading
import time

from dejq import _native
from dejq.errors import ConfigError

# `logging` itself is imported where it is used: a program that only enqueues may never need it, and it is a
# quarter of the import time of dejq.

# By verbosity: ERROR, INFO, DEBUG, and below that, as other libraries name their TRACE.
_LEVELS = (40, 20, 10, 5)
# The thread sleeps in the engine; it wakes for every line, and once in this time for nothing.
_WAIT_SECONDS = 3_600.0
# Attributes of each record, `None` when it is about no job. The attempt is 0 before the first.
JOB_FIELDS: tuple[str, ...] = ("job_id", "job_type", "chain_id", "attempt")
_NO_JOB = (None, None, None, None)
# How long a flush waits for a line that the thread is emitting.
_PATIENCE_SECONDS = 0.5

# Reentrant: a signal handler, or a handler of `logging`, may call something that flushes.
_emitting = threading.RLock()
_thread: threading.Thread | None = None


def set_verbosity(verbosity: int) -> None:
    """Sets how much dejq writes to the logger ``dejq``, in the whole process.

    Args:
        verbosity: 0 errors only (the default); 1 also each enqueue and dequeue, with id and type; 2 also what
            workers do inside; 3 also each beat. From 1 on the logger's level is lowered to match (INFO, DEBUG,
            5); where the lines go is up to the handlers of `logging`, as usual.

    Raises:
        ConfigError: It is not one of these numbers.
    """
    if not isinstance(verbosity, int) or verbosity not in range(len(_LEVELS)):
        raise ConfigError(f"verbosity {verbosity!r} must be 0 (errors), 1 (jobs), 2 (worker) or 3 (beats)")
    import logging

    logging.getLogger("dejq").setLevel(logging.NOTSET if verbosity == 0 else _LEVELS[verbosity])
    _native.set_verbosity(verbosity)
    if verbosity > 0:
        start()


def start() -> None:
    """Starts the thread, if it does not run."""
    global _thread
    if _thread is None or not _thread.is_alive():
        _thread = threading.Thread(target=_pump, name="dejq-log", daemon=True)
        _thread.start()


def flush() -> None:
    """Emits what has been written so far, on the calling thread, after what the log thread is emitting."""
    _emit()


def after_fork_in_child() -> None:
    """Forgets the parent's thread, and a lock that it may have held."""
    global _emitting, _thread
    _emitting = threading.RLock()
    _thread = None


def _pump() -> None:
    while True:
        _native.wait_log(_WAIT_SECONDS)
        _emit()


def _emit() -> None:
    # Read and emitted under one lock: who has the lock has seen everything before it emitted. A handler of the
    # user's that hangs must not keep a stop, or the end of the process, from coming: its lines are lost then.
    if not _emitting.acquire(timeout=_PATIENCE_SECONDS):
        return
    try:
        lines, dropped = _native.read_log()
        if dropped:
            text = f"{dropped} log lines were dropped: logging is slower than what is to be logged"
            lines.insert(0, (0, text, None, time.time()))
        for line in lines:
            _handle(*line)
    finally:
        _emitting.release()


def _handle(verbosity: int, message: str, about: tuple[str, str, str, int] | None, at: float) -> None:
    import logging

    logger, level = logging.getLogger("dejq"), _LEVELS[verbosity]
    if not logger.isEnabledFor(level):
        return
    extra = dict(zip(JOB_FIELDS, about or _NO_JOB, strict=True))
    text = message if about is None else _with_id(message, about[0])
    record = logger.makeRecord(logger.name, level, "(dejq)", 0, "%s", (text,), None, extra=extra)
    record.created = at
    record.msecs = (at % 1) * 1000
    try:
        logger.handle(record)
    except Exception:
        # Of a filter or a handler of the user's; `logging` itself reports such errors the same way.
        if logging.raiseExceptions:
            import traceback

            traceback.print_exc()


def _with_id(message: str, job_id: str) -> str:
    """The id goes behind the first line, where eyes and grep find it."""
    first, newline, rest = message.partition("\n")
    return f"{first} [{job_id}]{newline}{rest}"
