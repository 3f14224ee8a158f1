"""What dejq writes to the logger ``dejq``: at which verbosity, with what beside the text, and what never."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

import dejq
from dejq import Client, ConfigError, Job, PendingJob, _logging, testing

if TYPE_CHECKING:
    from python.conftest import Ended, Log, NewClient, Until

SECRET = "hunter2-5ecret"
BEATS = 5


def noop(job: Job) -> None:
    pass


def fail(job: Job) -> None:
    raise OSError("not today")


def has(log: Log, part: str) -> list[logging.LogRecord]:
    return [record for record in log.records if part in record.getMessage()]


# ---- which lines at which verbosity ----------------------------------------------------------------------

# Part of a line of each kind, and the verbosity at which it is first seen.
KINDS = {
    "failed for good on attempt 1": 0,
    "enqueue good": 1,
    "dequeue good": 1,
    "cancelled was cancelled": 1,
    "stop 1/5": 2,
    "beat: ": 3,
}


@pytest.mark.parametrize("verbosity", [0, 1, 2, 3])
def test_each_verbosity_shows_its_own_lines_and_those_below(
    verbosity: int, new_client: NewClient, log: Log, ended: Ended, until: Until
) -> None:
    dejq.set_verbosity(verbosity)
    client = new_client(workers=2, heartbeat=0.02)

    async def until_cancelled(job: Job) -> None:
        await asyncio.Event().wait()

    client.register_handler("good", noop)
    client.register_handler("bad", fail)
    client.register_handler("cancelled", until_cancelled)
    good, bad, cancelled = client.enqueue_many([PendingJob("good"), PendingJob("bad"), PendingJob("cancelled")])
    client.dequeue_loop()
    until(lambda: client.get_job(cancelled).state == "running")
    client.cancel_job(cancelled)
    for id in (good, bad, cancelled):
        ended(client, id)
    client.stop()
    expected = {kind for kind, least in KINDS.items() if least <= verbosity}
    until(lambda: all(has(log, kind) for kind in expected))
    assert {kind for kind in KINDS if has(log, kind)} == expected


LEVELS = {
    "failed for good": logging.ERROR,
    "enqueue bad": logging.INFO,
    "dequeue bad": logging.INFO,
    "stop 1/5": logging.DEBUG,
    "beat: ": BEATS,
}


def test_each_verbosity_has_its_level(new_client: NewClient, log: Log, ended: Ended, until: Until) -> None:
    dejq.set_verbosity(3)
    client = new_client(heartbeat=0.02)
    client.register_handler("bad", fail)
    (id,) = client.enqueue(PendingJob("bad"))
    client.dequeue_loop()
    ended(client, id)
    until(lambda: has(log, "beat: "))
    client.stop()
    until(lambda: all(has(log, kind) for kind in LEVELS))
    assert {kind: {record.levelno for record in has(log, kind)} for kind in LEVELS} == {
        kind: {level} for kind, level in LEVELS.items()
    }


@pytest.mark.parametrize(
    ("verbosity", "level"), [(0, logging.NOTSET), (1, logging.INFO), (2, logging.DEBUG), (3, BEATS)]
)
def test_the_level_of_the_logger_follows_the_verbosity(verbosity: int, level: int) -> None:
    dejq.set_verbosity(verbosity)
    assert logging.getLogger("dejq").level == level


def test_a_level_that_the_user_sets_afterwards_holds(client: Client, log: Log, until: Until) -> None:
    dejq.set_verbosity(1)
    logging.getLogger("dejq").setLevel(logging.ERROR)
    client.register_handler("bad", fail)
    client.enqueue(PendingJob("bad"))
    client.dequeue_loop()
    until(lambda: has(log, "failed for good"))
    assert not has(log, "enqueue bad")
    assert not has(log, "dequeue bad")


@pytest.mark.parametrize("verbosity", [-1, 4, 1.0, "1", None, float("nan")], ids=repr)
def test_a_bad_verbosity_is_refused_with_what_there_is(verbosity: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        dejq.set_verbosity(verbosity)
    assert caught.value.code == "DEJQ-E100"
    assert f"verbosity {verbosity!r} must be 0 (errors), 1 (jobs), 2 (worker) or 3 (beats)" in str(caught.value)


# ---- what a record has -----------------------------------------------------------------------------------


def test_a_record_about_a_job_has_its_id_and_type_and_the_time_it_happened(
    client: Client, log: Log, until: Until
) -> None:
    dejq.set_verbosity(1)
    before = time.time()
    (id,) = client.enqueue(PendingJob("email:v1"))
    after = time.time()
    until(lambda: has(log, "enqueue email:v1"))
    (record,) = has(log, "enqueue email:v1")
    assert record.getMessage() == f"enqueue email:v1 [{id}]"
    assert (vars(record)["job_id"], vars(record)["job_type"]) == (id, "email:v1")
    assert (record.name, record.levelname) == ("dejq", "INFO")
    assert before - 0.01 <= record.created <= after + 0.01
    assert record.msecs == pytest.approx(record.created % 1 * 1000)


def test_a_record_about_no_job_has_none(client: Client, log: Log, until: Until) -> None:
    dejq.set_verbosity(2)
    client.register_handler("t", noop)
    client.dequeue_loop()
    client.stop()
    until(lambda: has(log, "stop 5/5"))
    (record,) = has(log, "stop 5/5")
    assert (vars(record)["job_id"], vars(record)["job_type"]) == (None, None)


def test_a_text_with_percent_signs_is_left_alone(client: Client, log: Log, ended: Ended, until: Until) -> None:
    def handler(job: Job) -> None:
        raise OSError("100 %s %d")

    client.register_handler("t", handler)
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    ended(client, id)
    until(lambda: has(log, "OSError: 100 %s %d"))


def test_a_failure_is_logged_with_its_traceback_and_the_id_behind_the_first_line(
    client: Client, log: Log, ended: Ended, until: Until
) -> None:
    client.register_handler("t", fail)
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    ended(client, id)
    until(lambda: log.records)
    first, *trace = log.records[0].getMessage().splitlines()
    assert first == f"t failed for good on attempt 1: OSError: not today [{id}]"
    assert trace[0] == "Traceback (most recent call last):"
    assert trace[-1] == "OSError: not today"


def test_a_retry_is_logged_with_its_wait(client: Client, log: Log, until: Until) -> None:
    client.register_handler("t", fail, max_attempts=2, backoff=dejq.Backoff(60, jitter=0))
    client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    until(lambda: has(log, "t failed on attempt 1, next try in 60.0s: OSError: not today"))


def test_a_timeout_is_logged_when_the_handler_is_told(client: Client, log: Log, until: Until) -> None:
    async def handler(job: Job) -> None:
        await asyncio.Event().wait()

    client.register_handler("t", handler, timeout=0.02)
    client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    until(lambda: has(log, "t runs for longer than its timeout; it is told to return"))
    until(lambda: has(log, "t failed for good on attempt 1: timeout: ran for longer than its timeout of 20ms"))


# ---- what is never written -------------------------------------------------------------------------------


@pytest.mark.parametrize("verbosity", [0, 1, 2, 3])
def test_bodies_headers_and_keys_of_jobs_are_never_written(
    verbosity: int, new_client: NewClient, log: Log, ended: Ended, until: Until
) -> None:
    dejq.set_verbosity(verbosity)
    client = new_client(heartbeat=0.02)
    client.register_handler("t", fail, max_attempts=2, backoff=dejq.Backoff(0))
    job = PendingJob("t", {"password": SECRET}, headers={"token": SECRET}, unique=SECRET)
    (id,) = client.enqueue(job)
    client.enqueue(job)
    client.dequeue_loop()
    ended(client, id)
    client.stop()
    until(lambda: has(log, "failed for good"))
    assert SECRET not in log.text
    assert not any(SECRET in repr(vars(record)) for record in log.records)


def test_refused_bodies_are_never_written(client: Client, log: Log) -> None:
    dejq.set_verbosity(3)
    with pytest.raises(dejq.BodyError) as caught:
        client.enqueue(PendingJob("t", [SECRET, {SECRET}]))
    _logging.flush()
    assert SECRET not in log.text
    assert SECRET not in str(caught.value)


# ---- logging that is slow or broken ----------------------------------------------------------------------


class Gate(logging.Handler):
    """Lets no record pass before it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.is_reached = threading.Event()
        self.opened = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.is_reached.set()
        self.opened.wait(30)


@pytest.fixture
def gate() -> Iterator[Gate]:
    handler = Gate()
    logger = logging.getLogger("dejq")
    logger.addHandler(handler)
    yield handler
    handler.opened.set()
    logger.removeHandler(handler)


def test_lines_that_come_faster_than_logging_is_are_dropped_and_counted(
    client: Client, log: Log, gate: Gate, until: Until
) -> None:
    dejq.set_verbosity(1)
    client.enqueue(PendingJob("first"))
    assert gate.is_reached.wait(20)
    client.enqueue_many([PendingJob("flood") for _ in range(3000)])  # returns although logging is stuck
    gate.opened.set()
    until(lambda: has(log, "log lines were dropped"))
    (told,) = has(log, "log lines were dropped")
    assert told.levelno == logging.ERROR
    dropped = int(told.getMessage().split()[0])
    until(lambda: len(has(log, "enqueue flood")) + dropped == 3000)
    assert dropped > 0


def test_a_stuck_handler_of_logging_stops_no_job(client: Client, gate: Gate, ended: Ended) -> None:
    dejq.set_verbosity(3)
    client.register_handler("t", noop)
    client.enqueue(PendingJob("first"))
    assert gate.is_reached.wait(20)
    ids = client.enqueue_many([PendingJob("t") for _ in range(100)])
    client.dequeue_loop()
    for id in ids:
        assert ended(client, id).state == "finished"
    gate.opened.set()


class Broken(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if "broken" in record.getMessage():
            raise ZeroDivisionError("of the filter")
        return True


def test_a_filter_that_raises_costs_one_line_and_not_the_log(
    client: Client, log: Log, until: Until, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Broken()
    logger = logging.getLogger("dejq")
    logger.addFilter(broken)
    try:
        dejq.set_verbosity(1)
        client.enqueue(PendingJob("broken"))
        client.enqueue(PendingJob("whole"))
        until(lambda: has(log, "enqueue whole"))
    finally:
        logger.removeFilter(broken)
    assert not has(log, "enqueue broken")
    assert "ZeroDivisionError: of the filter" in capsys.readouterr().err


def test_stop_does_not_raise_what_logging_raises(client: Client) -> None:
    logger = logging.getLogger("dejq")
    broken = Broken()
    logger.addFilter(broken)
    raise_exceptions, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        dejq.set_verbosity(1)
        for _ in range(20):
            client.enqueue(PendingJob("broken"))
            _logging.flush()
        client.stop()
    finally:
        logging.raiseExceptions = raise_exceptions
        logger.removeFilter(broken)


def test_drain_and_inline_say_what_they_enqueue(client: Client, log: Log, until: Until) -> None:
    dejq.set_verbosity(1)
    client.register_handler("t", noop)
    client.enqueue(PendingJob("t"))
    testing.drain(client)
    until(lambda: has(log, "enqueue t"))


# ---- the environment -------------------------------------------------------------------------------------

PROGRAM = """
import logging, sys
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
import dejq
with dejq.memory() as client:
    client.register_handler("t", lambda job: 1 / 0)
    client.enqueue(dejq.PendingJob("t"))
    client.run(drain=True)
"""


def run(verbosity: str | None, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEJQ_")}
    if verbosity is not None:
        environment["DEJQ_VERBOSITY"] = verbosity
    command = [sys.executable, *flags, "-c", PROGRAM]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("verbosity", "levels"),
    [
        (None, {"ERROR"}),
        ("0", {"ERROR"}),
        ("1", {"ERROR", "INFO"}),
        ("2", {"ERROR", "INFO", "DEBUG"}),
        ("", {"ERROR"}),
    ],
    ids=["unset", "0", "1", "2", "empty"],
)
def test_the_environment_sets_the_verbosity(verbosity: str | None, levels: set[str]) -> None:
    ran = run(verbosity, "-W", "error")
    assert ran.returncode == 0, ran.stderr
    words = {line.split()[0] for line in ran.stdout.splitlines()}
    assert words & {"ERROR", "INFO", "DEBUG"} == levels
    assert ran.stderr == ""


@pytest.mark.parametrize("verbosity", ["9", "-1", "loud", "1.5"])
def test_a_bad_verbosity_in_the_environment_is_warned_about_and_ignored(verbosity: str) -> None:
    ran = run(verbosity)
    assert ran.returncode == 0, ran.stderr
    assert f"DEJQ_VERBOSITY={verbosity!r} is ignored: it must be 0, 1, 2 or 3" in ran.stderr
    assert "INFO" not in ran.stdout
