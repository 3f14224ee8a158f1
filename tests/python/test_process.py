"""The process around a worker: its end, its forks, its threads. The scenarios are in programs/."""

from __future__ import annotations

import signal

import pytest

from python.programs.harness import Ended, Program, passes, run, run_many

BOTH_LOOPS = pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
# From the last line of the main program to the end of the process.
MOST_SECONDS = 2.0
# What some scenarios add to it, to keep the interpreter busy while it goes down.
LINGERING = 0.3


# --- the end of the process, without a stop

ENDS = {
    "idle": "an idle worker",
    "done": "jobs that were just enqueued",
    "sleep_for_long": "a handler in a long sleep",
    "sleep_for_moments": "a handler in a loop of short sleeps",
    "c_code": "a handler in C code",
    "coroutine": "a waiting coroutine",
    "blocking_coroutine": "a coroutine that blocks its loop",
    "many_clients": "several busy clients",
    "threads_of_the_user": "a thread of the user's that stops the client later",
}
# CPython ends daemon threads by force when they come back to it while it goes down. Each of these makes sure
# that they do.
DANGERS = {
    "sleep_for_moments_while_it_takes_long": "a handler in a loop of short sleeps",
    "sleep_for_less_than_it_takes": "a handler whose sleep ends meanwhile",
    "swallow_everything": "a handler that swallows everything",
    "compute": "a handler that computes",
    "decode": "code that decodes a body",
    "stubborn_coroutine": "a coroutine that swallows everything",
    "forgotten_client": "a client that nobody refers to",
    "abandoned_by_a_stop": "a handler that a stop left behind",
    "busy_logging": "a log that is being written",
}
CODES = [(scenario, how) for scenario in ("idle", "sleep_for_moments", "coroutine") for how in ("code", "os", "raise")]
CODE_PROGRAMS = {"code": "by_exit_code", "os": "by_os_exit", "raise": "by_exception"}


class Ends:
    """All ends, a few at a time, because most of the time they wait."""

    def __init__(self) -> None:
        programs: list[tuple[str, ...]] = [("exits", "by_end", scenario) for scenario in (*ENDS, *DANGERS)]
        programs += [("exits", CODE_PROGRAMS[how], scenario) for scenario, how in CODES]
        self.futures = dict(zip(programs, run_many(programs, at_once=3), strict=True))

    def __call__(self, scenario: str, how: str = "by_end") -> Ended:
        return self.futures["exits", how, scenario].result()


@pytest.fixture(scope="module")
def ends() -> Ends:
    return Ends()


def _ends_well(ended: Ended, code: int = 0, lingering: bool = False) -> None:
    ended.passed(code)
    assert ended.out.endswith("exiting\n"), ended
    assert ended.seconds < MOST_SECONDS + lingering * LINGERING, f"{ended.seconds:.2f} s: {ended}"


@pytest.mark.parametrize("scenario", ENDS, ids=[name.replace(" ", "_") for name in ENDS.values()])
def test_a_process_that_just_ends_does_so_soon_and_well_with(ends: Ends, scenario: str) -> None:
    _ends_well(ends(scenario))


@pytest.mark.parametrize("scenario", DANGERS, ids=[name.replace(" ", "_") for name in DANGERS.values()])
def test_an_interpreter_that_takes_long_to_go_down_does_so_well_with(ends: Ends, scenario: str) -> None:
    _ends_well(ends(scenario), lingering=True)


@pytest.mark.parametrize(("scenario", "how"), CODES)
def test_the_exit_code_is_the_one_of_the_main_program(ends: Ends, scenario: str, how: str) -> None:
    ended = ends(scenario, CODE_PROGRAMS[how])
    if how != "raise":
        _ends_well(ended, code={"code": 3, "os": 4}[how])
        return
    assert ended.code == 1, ended
    assert ended.err.endswith("ValueError: of the main program\n"), ended
    assert ended.err.count("Traceback") == 1, ended
    assert ended.seconds < MOST_SECONDS, ended


@BOTH_LOOPS
def test_an_end_with_coroutines_is_as_clean_on_either_loop(uvloop: bool) -> None:
    for scenario in ("idle", "coroutine"):
        _ends_well(run("exits", "by_end", scenario, uvloop=uvloop))


def test_the_risky_ends_are_well_every_time() -> None:
    risky = ["sleep_for_moments", "sleep_for_moments_in_many_threads", "sleep_for_less_than_it_takes"]
    for future in run_many([("exits", "by_end", scenario) for scenario in risky * 12], at_once=12):
        # So many at once take longer.
        future.result().passed()


def test_a_handler_can_clean_up_when_the_process_ends() -> None:
    ended = run("exits", "by_end", "finally_runs").passed()
    assert ended.out == "exiting\ncleaned up\n", ended


def test_a_failure_right_before_the_end_of_the_process_is_still_logged() -> None:
    ended = run("exits", "by_end", "failures_are_told")
    assert ended.code == 0, ended
    assert "ValueError: the last words" in ended.err, ended


def test_ctrl_c_in_a_main_program_that_does_not_stop_ends_it() -> None:
    with Program("exits", "by_ctrl_c", "sleep_for_moments") as program:
        assert program.line() == "exiting"
        program.signal(signal.SIGINT)
        ended = program.wait()
    assert ended.code == -signal.SIGINT, ended
    assert ended.err.endswith("KeyboardInterrupt\n"), ended
    assert ended.err.count("Traceback") == 1, ended
    assert ended.seconds < MOST_SECONDS, ended


# --- forks


def test_a_child_forked_before_the_first_use_is_told_to_make_its_own_client() -> None:
    passes("forks", "before_first_use")


def test_a_child_forked_after_an_enqueue_is_told_to_make_its_own_client() -> None:
    passes("forks", "after_an_enqueue")


def test_a_child_forked_after_a_stop_works_with_a_client_of_its_own() -> None:
    passes("forks", "after_a_stop")


def test_a_child_forked_from_a_running_worker_works_and_the_parent_does_not_notice() -> None:
    passes("forks", "with_a_running_worker")


def test_a_child_that_just_ends_stops_its_own_worker_and_not_its_parents() -> None:
    passes("forks", "a_child_that_just_ends")


def test_children_forked_under_load_do_not_hang() -> None:
    passes("forks", "under_load")


def test_a_fork_next_to_the_hooks_of_other_libraries_hangs_neither_parent_nor_child() -> None:
    passes("hooks", "slow_hook")


def test_ids_made_in_parent_and_children_differ() -> None:
    passes("forks", "ids_differ")


def test_a_child_that_names_a_memory_queue_of_its_parent_gets_an_empty_one() -> None:
    passes("forks", "named_queues_are_not_shared")


def test_a_child_that_returns_from_a_handler_is_no_second_worker() -> None:
    passes("forks", "a_handler_that_forks")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_works_next_to_a_worker_and_in_its_children_by(method: str) -> None:
    passes("forks", f"mp_{method}")


# --- what handlers do to threads, and find there


def test_whatever_a_handler_raises_fails_the_attempt_and_the_worker_goes_on() -> None:
    passes("threads", "raise_anything")


def test_the_exception_of_a_rust_panic_fails_the_attempt_with_its_traceback() -> None:
    passes("threads", "raise_a_panic")


def test_a_rust_panic_below_a_handler_fails_the_attempt_and_the_worker_goes_on() -> None:
    ended = run("threads", "panic_below_a_handler")
    # PyO3 itself tells of it on stderr.
    assert ended.code == 0, ended
    assert ended.out == "passed\n", ended


def test_endless_recursion_fails_the_attempt_and_the_worker_goes_on() -> None:
    passes("threads", "recurse")


@BOTH_LOOPS
def test_a_coroutine_that_stops_its_loop_or_cancels_all_tasks_does_not_stop_the_worker(uvloop: bool) -> None:
    passes("threads", "meddle_with_the_loop", uvloop=uvloop)


def test_threads_carry_names_that_tell_what_they_do() -> None:
    passes("threads", "names")


def test_a_thread_local_stays_with_its_thread_and_a_context_variable_with_its_job() -> None:
    passes("threads", "thread_locals")


def test_tracers_profilers_and_faulthandler_see_handlers() -> None:
    passes("threads", "tools")


def test_as_many_handlers_run_side_by_side_as_there_are_slots() -> None:
    passes("threads", "side_by_side")


def test_a_client_does_not_notice_that_another_one_is_stopped() -> None:
    passes("threads", "two_clients")


def test_full_verbosity_under_load_from_every_thread_does_not_deadlock() -> None:
    passes("threads", "log_everything")


def test_the_log_of_what_happened_before_a_stop_is_complete_when_it_returns() -> None:
    passes("threads", "log_is_complete_after_a_stop")


def test_a_signal_handler_may_stop_while_the_main_thread_emits_the_log() -> None:
    passes("threads", "log_while_signals_come")


def test_a_second_interpreter_in_the_process_is_refused_clearly() -> None:
    passes("threads", "subinterpreter")
