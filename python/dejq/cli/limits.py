"""When a worker process has done enough: ``--max-jobs`` and ``--max-memory``."""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path

import dejq
from dejq.cli.talk import CommandError, count

_MIB = 1 << 20
# How often memory is looked at: a page of /proc, microseconds.
_LOOK_SECONDS = 1.0


class Limits:
    """Asks for the stop of a client when a limit is reached, or when its worker has given up.

    Args:
        client: Not yet started.
        jobs: Handler calls; ``None``: no limit.
        memory: Bytes; ``None``: no limit.

    Attributes:
        reached: Which limit was reached, in words; ``None`` while none is.
        has_given_up: Has the worker stopped by itself, after panics? Its log says why.

    Raises:
        CommandError: The process has reached the limit before it has done anything.
    """

    def __init__(self, client: dejq.Client, jobs: int | None, memory: int | None) -> None:
        if memory is not None and (used := _memory()) >= memory:
            raise CommandError(
                f"--max-memory {_mib(memory)} is less than the {_mib(used)} that the process needs before its "
                "first job; give more"
            )
        client._max_jobs = jobs
        self.reached: str | None = None
        self.has_given_up = False
        self._client = client
        self._jobs = jobs
        self._memory = memory

    def watch(self) -> None:
        """Starts to look. The client must have been started."""
        threading.Thread(target=self._watch, name="dejq-limits", daemon=True).start()

    def _watch(self) -> None:
        native = self._client._native
        while not native.wait_until_stopping(None if self._memory is None else _LOOK_SECONDS):
            if self._memory is not None and (used := _memory()) >= self._memory:
                self.reached = f"{_mib(used)} of memory are in use (--max-memory {_mib(self._memory)})"
                break
        else:
            if native.is_spent and self._jobs is not None:
                self.reached = f"{count(self._jobs, 'job')} run (--max-jobs)"
            else:
                self.has_given_up = not native.is_stopped
        self._client._stop_asked.put(None)


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f} MiB"


def _memory() -> int:
    """Bytes of memory that this process holds; where the system does not tell, the most it has ever held."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
