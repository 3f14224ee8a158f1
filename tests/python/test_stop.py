"""Stops at every moment and from everywhere. The scenarios are in programs/stops.py and programs/service.py."""

from __future__ import annotations

import random
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from python.programs.harness import Ended, Program, passes, run

BOTH_LOOPS = pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])


# --- when


def test_a_stop_before_the_start_returns_at_once_and_refuses_the_start() -> None:
    passes("stops", "before_start")


def test_a_second_stop_returns_the_report_of_the_first() -> None:
    passes("stops", "twice")


def test_a_stop_during_the_start_leaves_no_thread_and_loses_no_job() -> None:
    passes("stops", "during_start")


def test_two_threads_that_stop_wait_for_the_same_end() -> None:
    passes("stops", "from_two_threads")


def test_a_second_stop_can_shorten_the_first() -> None:
    passes("stops", "the_nearest_deadline_counts")


# --- from where


def test_a_stop_by_a_handler_happens_although_nobody_waits_for_it() -> None:
    passes("stops", "from_a_handler")


@BOTH_LOOPS
def test_a_stop_by_a_coroutine_happens_although_nobody_waits_for_it(uvloop: bool) -> None:
    passes("stops", "from_a_coroutine", uvloop=uvloop)


def test_the_timeout_that_a_handler_gives_holds_for_the_other_handlers() -> None:
    passes("stops", "from_a_handler_with_a_timeout")


def test_a_handler_that_stops_while_threads_are_still_started_is_not_waited_for() -> None:
    passes("stops", "from_the_first_job")


def test_run_ends_when_a_handler_or_another_thread_stops_the_client() -> None:
    passes("stops", "run_ends_by_a_stop")


# --- with a timeout


def test_a_stop_with_a_timeout_counts_whom_it_left_behind_and_others_get_their_jobs() -> None:
    passes("stops", "timeout_and_a_stuck_handler")


@BOTH_LOOPS
def test_a_stop_with_a_timeout_cancels_coroutines_and_leaves_stubborn_ones_running(uvloop: bool) -> None:
    passes("stops", "timeout_and_coroutines", uvloop=uvloop)


def test_a_stop_gives_unstarted_jobs_back_to_another_client_while_a_handler_still_runs() -> None:
    passes("stops", "queued_jobs_are_given_back")


# --- Ctrl-C, contexts, and starts that fail


def test_ctrl_c_during_a_stop_gets_through_and_the_stop_goes_on() -> None:
    passes("stops", "ctrl_c_during_stop")


def test_leaving_the_context_with_an_exception_stops_and_passes_it_on() -> None:
    passes("stops", "context_with_an_exception")


def test_leaving_the_async_context_with_an_exception_stops_and_passes_it_on() -> None:
    passes("stops", "async_context")


def test_a_start_that_gets_too_few_threads_fails_and_holds_no_job() -> None:
    passes("stops", "threads_that_cannot_start")


@BOTH_LOOPS
def test_a_start_that_gets_too_few_descriptors_fails_and_holds_no_job(uvloop: bool) -> None:
    # The loops themselves complain on stderr about their half-made selves.
    ended = run("stops", "descriptors_that_run_out", uvloop=uvloop)
    assert ended.code == 0, ended
    assert ended.out.endswith("passed\n"), ended


def test_an_enqueue_against_a_stop_gets_ids_or_client_stopped_and_no_job_is_lost() -> None:
    passes("stops", "enqueue_against_stop")


# --- signals


def test_a_signal_at_any_step_of_run_ends_it_and_so_do_two() -> None:
    passes("stops", "signal_at_every_line", seconds=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_the_second_signal_ends_the_wait_for_a_stuck_handler(number: signal.Signals) -> None:
    with Program("stops", "second_signal") as program:
        assert program.line() == "stuck"
        program.signal(number)
        assert program.line() == "stopping"
        program.signal(number)
        assert program.line() == "over"
        ended = program.wait().passed()
    assert ended.seconds < 2, ended


def test_a_hundred_services_end_well_and_lose_nothing_when_a_signal_comes_at_any_moment() -> None:
    moments = random.Random(7)
    plans = [(moments.uniform(0.0, 0.05), moments.choice([signal.SIGTERM, signal.SIGINT])) for _ in range(100)]
    with ThreadPoolExecutor(3) as pool:
        ends = list(pool.map(lambda plan: _serve(*plan), plans))
    finished = sum(end["finished"] for end in ends)
    left = sum(end["left"] for end in ends)
    # They were stopped in the middle of something.
    assert finished > 1_000
    assert left > 100


def _serve(delay: float, number: signal.Signals) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder, Program("service", folder) as program:
        assert program.line() == "running"
        # The moment is the scenario.
        time.sleep(delay)
        program.signal(number)
        ended = program.wait().passed()
        end: Any = ended.json
        stored = _ids(Path(folder) / "stored")
        ran = _ids(Path(folder) / "ran")
    _nothing_is_lost(ended, stored, ran, end["left"])
    assert end["running"] == end["failed"] == 0, ended
    assert end["finished"] == len(ran), ended
    return {"finished": len(ran), "left": len(end["left"])}


def _nothing_is_lost(ended: Ended, stored: list[str], ran: list[str], left: list[str]) -> None:
    assert len(set(ran)) == len(ran), ended
    assert not set(ran) & set(left), ended
    lost = set(stored) - set(ran) - set(left)
    assert not lost, f"{len(lost)} jobs are lost: {ended}"


def _ids(file: Path) -> list[str]:
    return file.read_text().split()
