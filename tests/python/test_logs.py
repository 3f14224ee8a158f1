"""The formatters of `dejq.logs`, and ``dejq worker --log-format``."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import dejq
from dejq import Client, Job, PendingJob
from dejq.logs import JsonFormatter, TextFormatter

if TYPE_CHECKING:
    from python.conftest import Ended, Log, NewClient, Until

CANARY = "hunter2-5ecret"
URL = f"postgresql://app:{CANARY}@db.example.org/app"
APP = """
import dejq

client = dejq.connect("memory://", workers=1)


@client.handler("good")
def good(job: dejq.Job) -> None: ...


@client.handler("bad")
def bad(job: dejq.Job) -> None:
    raise OSError(job.headers["url"])


client.enqueue(good.job("a body"), bad.job("a body", headers={"url": "URL"}))
"""


def record(**values: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "app", "levelname": "INFO", "msg": "hello", **values})


def line(**values: Any) -> dict[str, Any]:
    text = JsonFormatter().format(record(**values))
    assert "\n" not in text
    found: dict[str, Any] = json.loads(text)
    return found


# ---- what stands on a record ---------------------------------------------------------------------------------


def test_every_record_about_a_job_says_which_one(new_client: NewClient, log: Log, ended: Ended, until: Until) -> None:
    dejq.set_verbosity(2)
    client = new_client(max_attempts=2, backoff=dejq.Backoff(0.001))

    def fail(job: Job) -> None:
        raise OSError("no")

    client.register_handler("bad", fail)
    first, second = client.enqueue(PendingJob("bad"), PendingJob("bad"))
    client.dequeue_loop()
    ended(client, second)
    client.stop()

    def fields(*words: str) -> list[tuple[Any, ...]]:
        return [
            tuple(getattr(record, name) for name in ("job_id", "job_type", "chain_id", "attempt"))
            for record in log.records
            if all(word in record.getMessage() for word in words)
        ]

    until(lambda: fields("stop 5/5"))
    assert fields("enqueue") == [(first, "bad", first, 0), (second, "bad", first, 0)]
    assert fields("dequeue") == [(id, "bad", first, attempt) for id in (first, second) for attempt in (1, 2)]
    assert fields("failed for good") == [(first, "bad", first, 2), (second, "bad", first, 2)]
    assert fields("stop 5/5") == [(None,) * 4]


def test_of_a_unique_job_that_was_there_already_the_chain_is_its_own(client: Client, log: Log, until: Until) -> None:
    dejq.set_verbosity(1)
    (id,) = client.enqueue(PendingJob("t", unique="k"))
    client.enqueue(PendingJob("t", unique="k"))
    until(lambda: len(log.records) == 2)
    for one in log.records:
        assert (vars(one)["job_id"], vars(one)["chain_id"]) == (id, id)


# ---- JSON ------------------------------------------------------------------------------------------------------


def test_a_record_is_one_object_on_one_line() -> None:
    assert line(msg="two\nlines of %s", args=("text",), created=1_764_500_000.123, extra_field={"a": [1, None]}) == {
        "time": "2025-11-30T10:53:20.123Z",
        "level": "INFO",
        "logger": "app",
        "message": "two\nlines of text",
        "extra_field": {"a": [1, None]},
    }


def test_the_fields_of_a_job_are_there_when_it_is_about_one() -> None:
    job = {"job_id": "1", "job_type": "t", "chain_id": "2", "attempt": 3}
    assert line(**job).items() >= job.items()
    assert not line(**dict.fromkeys(job)).keys() & job.keys()


def test_a_traceback_is_a_field() -> None:
    try:
        raise OSError("no route")
    except OSError:
        found = line(exc_info=sys.exc_info(), stack_info="Stack (most recent call last):")
    assert found["exception"].startswith("Traceback")
    assert found["exception"].endswith("OSError: no route")
    assert found["stack"] == "Stack (most recent call last):"


def test_what_json_cannot_say_is_written_as_text() -> None:
    at = datetime(2026, 11, 30, tzinfo=timezone.utc)
    found = line(at=at, lasted=timedelta(seconds=1), path=Path("/a"), rate=float("nan"), types={"t"})
    assert (
        found.items()
        >= {
            "at": "2026-11-30 00:00:00+00:00",
            "lasted": "0:00:01",
            "path": "/a",
            "rate": "nan",
            "types": ["t"],
        }.items()
    )


def test_what_utf_8_cannot_hold_is_escaped() -> None:
    text = JsonFormatter().format(record(lone="\ud800"))
    assert json.loads(text.encode())["lone"] == "\ud800"


@pytest.mark.parametrize(
    "values",
    [
        {"msg": f"cannot connect to {URL}"},
        {"msg": "cannot connect to %s", "args": (URL,)},
        {"msg": f'"password={CANARY}"'},
        {"url": URL},
        {"deep": [{"urls": (URL,)}, {URL: 1}]},
        {"password": CANARY},
        {"given": {"Token": CANARY}},
        {"where": Path(f"x/password={CANARY}")},
        {"exc_info": (OSError, OSError(URL), None)},
    ],
    ids=lambda values: next(iter(values)),
)
def test_no_password_comes_out(values: dict[str, Any]) -> None:
    assert CANARY not in JsonFormatter().format(record(**values))
    assert CANARY not in TextFormatter().format(record(**values))


def test_text_is_the_time_and_the_message() -> None:
    at = datetime(2026, 11, 30, 12, 4, 31).timestamp()
    assert TextFormatter().format(record(created=at)) == "12:04:31  hello"


# ---- dejq worker -----------------------------------------------------------------------------------------------


def worker(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "app.py").write_text(APP.replace("URL", URL))
    return subprocess.run(
        [sys.executable, "-m", "dejq", "worker", "app:client", "--drain", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("environment", [{}, {"DEJQ_LOG_FORMAT": "json"}], ids=["flag", "variable"])
def test_a_worker_whose_log_is_json_says_nothing_else(tmp_path: Path, environment: dict[str, str]) -> None:
    ran = worker(tmp_path, "-v", *([] if environment else ["--log-format", "json"]), **environment)
    assert (ran.returncode, ran.stdout) == (0, "")
    lines = [json.loads(text) for text in ran.stderr.splitlines()]
    talk = [found["message"].split()[0] for found in lines if found["logger"] == "dejq.worker"]
    assert talk == ["dejq", "handlers", "ready", "stopping", "stopped"]
    (failed,) = [found for found in lines if "failed for good" in found["message"]]
    assert (failed["level"], failed["job_type"], failed["attempt"]) == ("ERROR", "bad", 1)
    assert "postgresql://app:***@db.example.org/app" in failed["message"]
    assert CANARY not in ran.stderr
    assert "a body" not in ran.stderr


def test_a_worker_logs_text_by_default(tmp_path: Path) -> None:
    ran = worker(tmp_path, "-v")
    assert "handlers  good  bad\n" in ran.stderr
    assert "  dequeue good [" in ran.stderr


def test_another_format_is_wrong_usage(tmp_path: Path) -> None:
    ran = worker(tmp_path, "--log-format", "xml")
    assert ran.returncode == 2
    assert "'xml' must be text or json" in ran.stderr
