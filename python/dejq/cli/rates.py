"""How fast jobs end, from counts at different times: no store keeps that."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import dejq

# Long enough for a rate that does not jump, short enough to see that something has changed.
_WINDOW_SECONDS = 60.0

# Stands for all types: no type has that name.
ALL = ""


class Ended(NamedTuple):
    """Jobs that have ended since the store was made; ``None`` where it cannot tell."""

    finished: int | None
    failed: int | None


class Rates:
    """Ends per minute, by type, of the last minute that it was told about.

    Args:
        clock: In seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, Mapping[str, Ended]]] = deque()

    def note(self, stats: dejq.Stats) -> None:
        """Notes what the store has now."""
        now = self._clock()
        counts = {name: Ended(found.finished, found.failed) for name, found in stats.by_type.items()}
        counts[ALL] = Ended(stats.finished, stats.failed)
        self._seen.append((now, counts))
        # The one before the window stays: without it, looks that are far apart would leave nothing to compare with.
        while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW_SECONDS:
            self._seen.popleft()

    def finished(self, type: str = ALL) -> float | None:
        """Finished a minute; ``None`` before the second look, or where the store cannot tell."""
        return self._rate(type, 0)

    def failed(self, type: str = ALL) -> float | None:
        """Failed a minute, as `finished`; failed jobs that were requeued meanwhile make it less."""
        return self._rate(type, 1)

    def _rate(self, type: str, place: int) -> float | None:
        if len(self._seen) < 2:
            return None
        (began, before), (ended, after) = self._seen[0], self._seen[-1]
        # A type that is new had no ends before.
        first, last = before.get(type, Ended(0, 0))[place], after.get(type, Ended(None, None))[place]
        if first is None or last is None or ended <= began:
            return None
        return max(last - first, 0) / (ended - began) * 60


def per_minute(rate: float | None) -> str:
    """A rate as people read it."""
    if rate is None:
        return "–"
    return f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}"
