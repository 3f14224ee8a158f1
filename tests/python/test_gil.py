"""Handlers that keep the interpreter to themselves. The scenarios are in programs/gil.py."""

from __future__ import annotations

import json
from typing import Any

from python.programs.harness import passes, run_many


def test_a_handler_that_holds_the_interpreter_for_three_leases_keeps_its_job() -> None:
    ends = run_many([("gil", "hold_in_a_plain_handler"), ("gil", "hold_in_a_coroutine")], at_once=2, seconds=60)
    for future in ends:
        end = future.result().passed()
        seen: Any = _seen(end.out)
        assert seen["lease"] == 5.0
        # The control: in the same situation, a heartbeat on a Python thread is silent for all the time.
        assert seen["held"] > 3 * seen["lease"] - 0.1, seen
        assert seen["python_gap"] > 2.5 * seen["lease"], seen
        # Two clients beat, and one of them has a lease to renew; each interval is a third of a lease.
        assert seen["extended"] >= 6, seen
        assert seen["beats"] >= 12, seen
        assert seen["runs"] == [1], seen
        assert seen["state"] == "finished", seen
        assert seen["rescues"] == 0, seen
        counted = seen["counted"]
        assert counted["started"] == counted["finished"] == 1, seen
        assert counted["rescued"] == counted["lost"] == counted["given_back"] == counted["stuck"] == 0, seen


def _seen(out: str) -> Any:
    return json.loads(out.splitlines()[-2])


def test_enqueues_handlers_and_the_stop_get_through_when_other_threads_compute() -> None:
    passes("gil", "enqueue_in_a_crowd")


def test_coroutines_get_their_jobs_although_a_handler_held_the_interpreter_when_they_came() -> None:
    passes("gil", "coroutines_next_to_a_held_interpreter")
