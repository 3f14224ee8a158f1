"""Clients that come and go. The scenarios are in programs/leaks.py."""

from __future__ import annotations

import pytest

from python.programs.harness import passes


def test_500_starts_and_stops_of_plain_handlers_leak_no_thread_descriptor_or_memory() -> None:
    passes("leaks", "cycles_of_plain_handlers", seconds=60)


@pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_500_starts_and_stops_of_coroutines_leak_no_thread_descriptor_or_memory(uvloop: bool) -> None:
    passes("leaks", "cycles_of_coroutines", seconds=60, uvloop=uvloop)


def test_a_client_that_does_not_run_goes_away_with_its_handlers() -> None:
    passes("leaks", "clients_go_away")


def test_a_client_that_runs_stays_until_it_is_stopped_whoever_refers_to_it() -> None:
    passes("leaks", "a_running_client_stays")


def test_a_job_that_is_kept_does_not_keep_its_client() -> None:
    passes("leaks", "jobs_go_away")
