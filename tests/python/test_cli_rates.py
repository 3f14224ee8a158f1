"""Rates are made of counts at different times."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

import pytest

import dejq
from dejq.cli.rates import Rates, per_minute
from python.commands import SECONDS, command

pytest_plugins = ["python.command_line"]
pytestmark = pytest.mark.usefixtures("folder")

UNKNOWN: dict[str, Any] = dict.fromkeys(("ready", "scheduled", "blocked", "running", "cancelled", "oldest_ready"))


def stats(finished: int | None, failed: int | None = 0, **by_type: int) -> dejq.Stats:
    types = {name: dejq.TypeStats(finished=ends, failed=0, **UNKNOWN) for name, ends in by_type.items()}
    return dejq.Stats(finished=finished, failed=failed, enqueued_jobs=0, by_type=types, workers=None, **UNKNOWN)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def note(rates: Rates, clock: Clock, at: float, found: dejq.Stats) -> None:
    clock.now = at
    rates.note(found)


def test_one_look_is_no_rate(clock: Clock) -> None:
    rates = Rates(clock)
    assert rates.finished() is None
    note(rates, clock, 0, stats(5))
    assert rates.finished() is None


def test_a_rate_is_what_ended_between_two_looks_for_a_minute(clock: Clock) -> None:
    rates = Rates(clock)
    note(rates, clock, 10, stats(5, 1, a=5))
    note(rates, clock, 30, stats(15, 2, a=12, b=3))
    assert (rates.finished(), rates.failed()) == (30, 3)
    # All of a type that is new have ended since.
    assert (rates.finished("a"), rates.finished("b"), rates.finished("c")) == (21, 9, None)


def test_it_is_of_the_last_minute(clock: Clock) -> None:
    rates = Rates(clock)
    for second in range(0, 121, 10):
        # Fast at first, and then slow.
        note(rates, clock, second, stats(min(second, 60) * 100 + second))
    assert rates.finished() == 60


def test_the_last_look_before_that_minute_counts(clock: Clock) -> None:
    rates = Rates(clock)
    for second, finished in ((0, 0), (50, 100), (100, 100)):
        note(rates, clock, second, stats(finished))
    assert rates.finished() == 60


def test_looks_that_are_more_than_a_minute_apart_are_compared_all_the_same(clock: Clock) -> None:
    rates = Rates(clock)
    note(rates, clock, 0, stats(0))
    note(rates, clock, 600, stats(100))
    assert rates.finished() == 10
    note(rates, clock, 1200, stats(100))
    assert rates.finished() == 0


def test_what_a_store_cannot_tell_has_no_rate(clock: Clock) -> None:
    rates = Rates(clock)
    note(rates, clock, 0, stats(None, None))
    note(rates, clock, 1, stats(None, None))
    assert (rates.finished(), rates.failed()) == (None, None)


def test_requeued_failures_are_no_rate_below_zero(clock: Clock) -> None:
    rates = Rates(clock)
    note(rates, clock, 0, stats(0, 9))
    note(rates, clock, 1, stats(0, 2))
    assert rates.failed() == 0


@pytest.mark.parametrize(
    ("rate", "text"), [(None, "–"), (0, "0"), (0.25, "0.2"), (9.94, "9.9"), (12.4, "12"), (12_345.6, "12,346")]
)
def test_a_rate_as_people_read_it(rate: float | None, text: str) -> None:
    assert per_minute(rate) == text


def test_watched_stats_have_rates_and_those_of_one_look_none() -> None:
    once = subprocess.run(
        command("stats", "--url", "memory://"), capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert "DONE/MIN" not in once.stdout
    with subprocess.Popen(
        command("stats", "--url", "memory://", "--watch", "0.1"), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split()[-2:] == ["DONE/MIN", "OLDEST"]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS)
    assert process.returncode == 0
