"""The types of the public API, as a user's type checker sees them: good use passes, misuse is found."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

HEAD = """\
from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict

from typing_extensions import assert_type

import dejq
from dejq import Backoff, Client, Job, JobInfo, PendingJob, Retry, testing

client = dejq.memory()


@dataclass
class Email:
    to: str


class Point(TypedDict):
    x: int


@client.handler("plain", max_attempts=3, timeout=timedelta(seconds=5), backoff=Backoff(1, factor=2))
def plain(job: Job) -> None:
    print(job.body)


@client.handler("typed")
async def typed(body: Email) -> int:
    return len(body.to)

"""

GOOD = """\

class Service:
    def handle(self, job: Job, body: Point) -> None:
        assert_type(job.id, str)
        assert_type(job.attempt, int)
        assert_type(job.enqueued_at, datetime)
        assert_type(job.headers, dict[str, str])
        assert_type(job.cancelled, bool)
        assert_type(job.decode(Email), Email)
        assert_type(job.decode(list[int]), list[int])
        assert_type(job.decode(), Any)
        print(body["x"] + job.position)

    def with_prefix(self, prefix: str, job: Job) -> str:
        raise Retry(after=timedelta(minutes=1), reason=prefix)


class Tenant(Client):
    tenant = "a"


def each(jobs: list[PendingJob[int]]) -> int:
    return sum(job.body for job in jobs)


async def main() -> None:
    async with Tenant("memory://", workers=2) as tenant:
        assert_type(tenant, Tenant)
        assert_type(await tenant.aenqueue(PendingJob("t", 1), on_failure="cancel"), list[str])
        assert_type(await tenant.astats(), dejq.Stats)
        assert_type(await tenant.astop(timeout=1.5), dejq.StopReport)
    assert_type(await typed(Email("ada")), int)


assert_type(dejq.connect("memory://", heartbeat=1.5), Client)
assert_type(PendingJob("t", 1), PendingJob[int])
assert_type(PendingJob("t", Email("ada"), delay=1).body, Email)
assert_type(plain.job({"any": "body"}, delay=5, unique="k", headers={"a": "b"}), PendingJob[Any])
assert_type(client.enqueue(PendingJob("t"), plain.job(), typed.job(Email("ada"))), list[str])
assert_type(client.enqueue_many([PendingJob("t", 1), [plain.job(), PendingJob("t", "x")]]), list[str])
assert_type(client.enqueue_many(PendingJob("t", number) for number in range(3)), list[str])
client.register_handler("method", Service().handle, max_attempts=2)
client.register_handler("partial", functools.partial(Service().with_prefix, "p"))
client.register_handler("lambda", lambda job: job.body)
client.register_handler("asynchronous", main)
assert_type(client.stats().enqueued_jobs, int)
assert_type(client.stats().running, int | None)
assert_type(client.stats().by_type["t"].oldest_ready, timedelta | None)
assert_type(client.list_jobs(state="failed", type="t", older_than=60, limit=5), list[JobInfo])
assert_type(client.get_job("id").due_at, datetime | None)
assert_type(client.delete_finished(timedelta(days=7), batch=100), int)
assert_type(client.check()[0].level, Literal["ok", "warn", "error"])
assert_type(client.migrate().applied, tuple[str, ...])
assert_type(testing.assert_enqueued(client, "t", {"a": 1}, count=2), list[JobInfo])
assert_type(each([PendingJob("t", 1)]), int)
with testing.inline(client) as same, dejq.memory(inline=True):
    assert_type(same, Client)
try:
    dejq.set_verbosity(2)
except dejq.BodyTooLarge as error:
    assert_type((error.code, error.size, error.limit), tuple[str, int, int])
asyncio.run(main())
"""

# Misuse, a line each, with the code of the error that mypy must find there.
BAD: dict[str, str] = {
    'client.enqueue("t")': "arg-type",
    'client.enqueue([PendingJob("t")])': "arg-type",
    'client.enqueue(PendingJob("t"), on_failure="stop")': "arg-type",
    'client.enqueue(PendingJob("t"), onfailure="cancel")': "call-arg",
    'client.enqueue_many(PendingJob("t"))': "arg-type",
    "client.enqueue_many([1])": "list-item",
    "PendingJob()": "call-arg",
    "PendingJob(1)": "arg-type",
    'PendingJob("t", None, 5)': "call-arg",
    'PendingJob("t", delay="1")': "arg-type",
    'PendingJob("t", dealy=1)': "call-arg",
    'PendingJob("t", max_attempts=1.5)': "arg-type",
    'PendingJob("t", unique=1)': "arg-type",
    'PendingJob("t", headers={"a": 1})': "dict-item",
    'PendingJob("t").type = "u"': "misc",
    'wrong_body: PendingJob[str] = PendingJob("t", 1)': "arg-type",
    'client.register_handler("t", "handler")': "arg-type",
    'client.register_handler("t", plain, max_attempts="3")': "arg-type",
    'client.register_handler("t", plain, tiemout=3)': "call-arg",
    'client.register_handler("t", plain, backoff=3)': "arg-type",
    'client.handler("t", timeout="3")': "arg-type",
    'plain("no job")': "arg-type",
    "plain.job(1, dealy=5)": "call-arg",
    "plain.jobs(1)": "attr-defined",
    'asyncio.run(typed("no email"))': "arg-type",
    'client.list_jobs(state="dead")': "arg-type",
    'client.list_jobs("failed")': "call-arg",
    "client.get_job(5)": "arg-type",
    'client.stop("soon")': "arg-type",
    'client.dequeue_loop("2")': "arg-type",
    "client.delete_finished()": "call-arg",
    "client.stats().ready + 1": "operator",
    "client.stats().enqueued_jobs = 1": "misc",
    'client.enqueue(PendingJob("t")) + 1': "operator",
    'len(client.aenqueue(PendingJob("t")))': "arg-type",
    'dejq.memory(inline="yes")': "arg-type",
    "dejq.connect(5)": "arg-type",
    'dejq.set_verbosity("1")': "arg-type",
    "dejq.StopReport(1, 2, 3, True)": "call-arg",
    'raise dejq.Retry(after="soon")': "arg-type",
    'Backoff("1")': "arg-type",
    "Backoff(1).factor = 3": "misc",
    "testing.drain(5)": "arg-type",
    "dejq.Clinet": "attr-defined",
    "lambda job: job.attempt.upper() if isinstance(job, Job) else None": "attr-defined",
}
INDENTED: dict[str, str] = {
    "job.attempt = 2": "misc",
    "job.decode(5)": "call-overload",
    "number: int = job.decode(Email)": "assignment",
    "job.finish()": "call-arg",
    "client.aenqueue(job)": "unused-coroutine",
    "await client.stats()": "misc",
    "job.bdoy": "attr-defined",
}
FUNCTION = "\n\nasync def misuse(job: Job) -> None:\n"
CLASS = "class Own(Job): pass"


class Found:
    """What mypy has found, by file and line."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.codes: dict[tuple[str, int], set[str]] = defaultdict(set)
        for file, line, code in re.findall(r"^(\w+)\.py:(\d+): error: .*\[([\w-]+)\]$", output, re.M):
            self.codes[file, int(line)].add(code)


def bad_lines() -> list[str]:
    lines = f"{HEAD}\n".splitlines()
    lines += list(BAD)
    lines += f"{CLASS}{FUNCTION}".splitlines()
    lines += [f"    {line}" for line in INDENTED]
    return lines


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """One run over everything: most of it is reading the standard library."""
    folder = tmp_path_factory.mktemp("types")
    (folder / "good.py").write_text(HEAD + GOOD)
    # `raise` ends what mypy looks at, so it stands in a function of its own.
    text = "\n".join(bad_lines()).replace("raise dejq", "def late() -> None: raise dejq")
    (folder / "bad.py").write_text(text + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-pretty", "--config-file=", "good.py", "bad.py"]
    command += ["--cache-dir", str(folder / "cache"), "--python-version", "3.10"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    return Found(ran.stdout)


def test_good_use_passes_a_strict_type_checker(found: Found) -> None:
    assert [line for line in found.output.splitlines() if line.startswith("good.py")] == []


@pytest.mark.parametrize(("line", "code"), [*BAD.items(), *INDENTED.items(), (CLASS, "misc")])
def test_misuse_is_found(line: str, code: str, found: Found) -> None:
    (number,) = [number for number, text in enumerate(bad_lines(), 1) if text.strip() == line]
    assert code in found.codes["bad", number], found.output


def test_nothing_else_is_found(found: Found) -> None:
    expected = {*BAD, *INDENTED, CLASS}
    lines = bad_lines()
    assert {lines[number - 1].strip() for _, number in found.codes} <= expected


def test_the_package_says_that_it_is_typed() -> None:
    import dejq

    assert (Path(dejq.__file__).parent / "py.typed").exists()
