"""The programs in README.md and docs/ run as written, and print what stands below them; so do queries and commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
import redis
from psycopg import sql

import dejq
import servers
import sqs_api
import sqs_faults
from dejq import Job, PendingJob
from python.printed import assert_printed

if TYPE_CHECKING:
    from python.conftest import NewClient, Until
    from python.postgres import PgClient
    from python.redis_store import RedisClient

pytest_plugins = ["python.postgres", "python.redis_store", "python.sqs_store"]

ROOT = Path(__file__).parents[2]
POSTGRES, REDIS, SQS = "postgres.md", "redis.md", "sqs.md"
PROGRAM = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:(?P<between>.*?)^```text(?P<sorted> sorted)?\n(?P<output>.*?)^```$)?",
    re.M | re.S,
)


# A command, of a line or of a quoted text that goes on in the next ones.
COMMAND = re.compile(r"^\$ ((?:.+\n(?:    .*\n)*))", re.M)
CONSOLE = re.compile(r"^```console\n(?P<session>.*?)^```$", re.M | re.S)
QUERY = re.compile(r"^```sql\n(?P<query>.*?)^```$", re.M | re.S)


class Program(NamedTuple):
    name: str
    code: str
    output: str
    is_sorted: bool

    def check(self, folder: Path, **environment: str) -> None:
        """Runs it in an empty folder, and compares what it prints."""
        file = folder / "program.py"
        file.write_text(self.code, encoding="utf-8")
        ran = subprocess.run(
            [sys.executable, "-W", "error", file],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=os.environ | environment,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert_printed(ran.stdout, self.output.splitlines(), in_any_order=self.is_sorted)


def programs(*pages: Path) -> list[Program]:
    found = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for match in PROGRAM.finditer(text):
            assert match["output"] is not None, f"{page.name}: a program without its output"
            assert "```" not in match["between"], f"{page.name}: another block stands between program and output"
            line = text.count("\n", 0, match.start()) + 1
            found.append(Program(f"{page.name}:{line}", match["code"], match["output"], bool(match["sorted"])))
    return found


def pages() -> list[Path]:
    """Those that need no server."""
    return [
        ROOT / "README.md",
        *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in (POSTGRES, REDIS, SQS)),
    ]


@pytest.mark.parametrize("program", programs(*pages()), ids=lambda program: program.name)
def test_a_program_in_the_docs_prints_what_stands_below_it(program: Program, tmp_path: Path) -> None:
    program.check(tmp_path)


# ---- what needs a database ---------------------------------------------------------------------------------


@pytest.fixture
def database(pg_url: str) -> Iterator[str]:
    """The URL of a database with a queue, as the reader of the page has one."""
    name = f"docs_{uuid4().hex}"
    url = urlsplit(pg_url)._replace(path=f"/{name}").geturl()
    with psycopg.connect(pg_url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            with dejq.postgres(url) as client:
                client.migrate()
            yield url
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.mark.parametrize("program", programs(ROOT / "docs" / POSTGRES), ids=lambda program: program.name)
def test_a_program_on_postgres_prints_what_stands_below_it(program: Program, tmp_path: Path, database: str) -> None:
    program.check(tmp_path, DEJQ_URL=database)


def test_every_query_on_the_page_about_postgres_works(database: str) -> None:
    queries = QUERY.findall((ROOT / "docs" / POSTGRES).read_text(encoding="utf-8"))
    assert len(queries) > 10
    with psycopg.connect(database) as connection:
        for query in queries:
            with connection.transaction(force_rollback=True):
                for role in set(re.findall(r"^GRANT [^;]* TO (\w+);", query, re.M)):
                    connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
                connection.execute(query.encode())


# ---- what needs a Redis ------------------------------------------------------------------------------------


@pytest.fixture
def docs_redis() -> Iterator[redis.Redis]:
    """A server without a queue, as the reader of the page has one."""
    with servers.redis(own=True) as server, redis.Redis.from_url(server.url) as connection:
        yield connection


def url_of(server: redis.Redis, login: str = "") -> str:
    where = server.get_connection_kwargs()
    return f"redis://{login}{where['host']}:{where['port']}"


def ask(server: redis.Redis, *words: str) -> Any:
    execute: Callable[..., Any] = server.execute_command
    return execute(*words)


@pytest.mark.parametrize("program", programs(ROOT / "docs" / REDIS), ids=lambda program: program.name)
def test_a_program_on_redis_prints_what_stands_below_it(
    program: Program, tmp_path: Path, docs_redis: redis.Redis
) -> None:
    program.check(tmp_path, DEJQ_URL=url_of(docs_redis))


def test_every_command_on_the_page_about_redis_finds_something(docs_redis: redis.Redis, until: Until) -> None:
    sessions = CONSOLE.findall((ROOT / "docs" / REDIS).read_text(encoding="utf-8"))
    commands = [command for session in sessions for command in COMMAND.findall(session)]
    assert sum(map(len, commands)) + 2 * len(commands) == sum(map(len, sessions)), "a line belongs to no command"
    leave = threading.Event()

    def fail(job: Job) -> None:
        raise ValueError("as it should")

    # Without beats, nothing comes back after the last command, which deletes the queue.
    with dejq.connect(url_of(docs_redis), workers=1, heartbeat=60) as client:
        client.register_handler("bad", fail)
        client.register_handler("held", lambda job: leave.wait(30))
        client.enqueue_many([PendingJob("email:v1"), PendingJob("email:v1", delay=60), PendingJob("bad")])
        (held,) = client.enqueue(PendingJob("held"))
        client.dequeue_loop()
        until(lambda: client.get_job(held).state == "running" and client.stats().failed == 1)
        (failed,) = client.list_jobs(state="failed")
        answers = {}
        for command in commands:
            words = shlex.split(command.replace("01890a5d-ac96-774b-bcce-b302099a8057", failed.id))
            if words[0] == "redis-cli":
                answers[command] = ask(docs_redis, *words[1:])
            elif words[0] == "dejq":
                url = {"DEJQ_URL": url_of(docs_redis)}
                ran = subprocess.run(
                    [sys.executable, "-m", *words], capture_output=True, check=True, env=os.environ | url, timeout=30
                )
                answers[command] = ran.stdout
            else:
                assert words[0] in ("pip", "export")
        left = docs_redis.dbsize()
        leave.set()
    assert len(answers) > 12
    # Nothing was slow, or it would be bad news.
    assert [command for command, answer in answers.items() if not answer and "SLOWLOG" not in command] == []
    (one,) = [answer for command, answer in answers.items() if "'job', 'state', 'failure'" in command]
    assert (one[0].split()[1], one[1].split()[0]) == (b"bad", b"failed")
    assert b"as it should" in one[2]
    (last,) = [answer for command, answer in answers.items() if "ZREVRANGE" in command]
    assert last == [failed.id.replace("-", "").encode(), *one[1:]]
    assert left == 0


def test_the_user_on_the_page_about_redis_may_do_what_is_needed_and_no_more(
    docs_redis: redis.Redis, tmp_path: Path
) -> None:
    page = ROOT / "docs" / REDIS
    (line,) = re.findall(r"^```text\n(ACL SETUSER .*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    ask(docs_redis, *line.replace("QUEUE", "dejq").split())
    url = url_of(docs_redis, "dejq:PASSWORD@")
    programs(page)[0].check(tmp_path, DEJQ_URL=url)
    with dejq.connect(url, queue="other") as client, pytest.raises(dejq.ConfigError, match=r"docs/redis\.md"):
        client.stats()


# ---- what needs an SQS -----------------------------------------------------------------------------------------


@pytest.fixture
def docs_sqs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a queue that is not there yet, as the reader of the page has one."""
    for name, value in servers.EMULATOR_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with servers.sqs(own=True) as server:
        yield server.url


@pytest.mark.parametrize("program", programs(ROOT / "docs" / SQS), ids=lambda program: program.name)
def test_a_program_on_sqs_prints_what_stands_below_it(program: Program, tmp_path: Path, docs_sqs: str) -> None:
    program.check(tmp_path, DEJQ_URL=docs_sqs)


def block(page: str, language: str) -> str:
    """The only block of a language."""
    (text,) = re.findall(
        rf"^```{language}\n(.*?)^```$", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.M | re.S
    )
    return str(text)


def test_the_policy_on_the_page_about_sqs_allows_what_is_called_and_no_more(docs_sqs: str, tmp_path: Path) -> None:
    allowed: dict[str, set[str]] = {}
    for statement in json.loads(block(SQS, "json"))["Statement"]:
        allowed[statement["Resource"].rpartition(":")[2]] = set(statement["Action"])
    with dejq.connect(docs_sqs) as client:
        client.migrate()
    called: dict[str, set[str]] = {name: set() for name in allowed}
    with sqs_faults.proxy(docs_sqs) as proxy:
        # Something runs, fails for good, and is renewed and given back.
        with dejq.connect(proxy.in_front_of(docs_sqs), heartbeat=0.5, workers=2, backoff=dejq.Backoff(0.01)) as client:
            leave = threading.Event()

            def discard(job: Job) -> None:
                raise dejq.Discard("of no use")

            client.register_handler("held", lambda job: leave.wait(3))
            client.register_handler("bad", discard)
            client.enqueue(PendingJob("bad"), PendingJob("held"), PendingJob("unknown"))
            client.stats()
            client.run(drain=True)
        for request in proxy.requests:
            parameters = request.parameters
            name = str(parameters.get("QueueName") or parameters["QueueUrl"].rpartition("/")[2])
            called[name].add(f"sqs:{request.action.removesuffix('Batch')}")
    assert called == allowed


def test_the_settings_on_the_page_about_sqs_are_those_of_migrate(docs_sqs: str) -> None:
    """Terraform and CloudFormation make what `dejq migrate` makes."""
    hcl, yaml = block(SQS, "hcl"), block(SQS, "yaml")
    terraform = {
        "fifo_queue": "FifoQueue",
        "deduplication_scope": "DeduplicationScope",
        "fifo_throughput_limit": "FifoThroughputLimit",
        "visibility_timeout_seconds": "VisibilityTimeout",
        "message_retention_seconds": "MessageRetentionPeriod",
        "receive_wait_time_seconds": "ReceiveMessageWaitTimeSeconds",
        "maxReceiveCount": "maxReceiveCount",
    }
    by_terraform, by_formation = [], []
    for queue in hcl.split("resource ")[1:]:
        found = re.findall(r'^ +(\w+) += "?([\w-]+)"?$', queue, re.M)
        by_terraform.append({terraform[name]: value for name, value in found if name in terraform})
    for queue in yaml.split("Type: AWS::SQS::Queue")[1:]:
        found = re.findall(r"^ +(\w+): ([\w-]+)$", queue, re.M)
        by_formation.append({name: value for name, value in found if name in terraform.values()})
    assert by_terraform == by_formation

    with dejq.connect(docs_sqs) as client:
        client.migrate()
        sqs = sqs_api.Sqs(docs_sqs)
        for said, name in zip(by_terraform, ("dejq-dlq.fifo", "dejq.fifo"), strict=True):
            made = sqs.attributes(sqs.url(name))
            made |= {key: str(value) for key, value in json.loads(made.get("RedrivePolicy", "{}")).items()}
            assert {key: made[key] for key in said} == said
        assert {finding.level for finding in client.check()} == {"ok"}
        sqs.close()


# ---- the guarantees ----------------------------------------------------------------------------------------


def test_the_table_of_guarantees_says_what_the_stores_do(
    new_client: NewClient, pg_client: PgClient, redis_client: RedisClient, docs_sqs: str
) -> None:
    head, _, *rows = re.findall(r"^\|(.*)\|$", (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8"), re.M)
    _, *stores = (cell.strip() for cell in head.split("|"))
    said = {name.strip(): [cell.strip() for cell in cells] for name, *cells in (row.split("|") for row in rows)}
    assert stores == ["memory", "PostgreSQL", "Redis", "SQS FIFO"]
    sqs = dejq.connect(docs_sqs)
    sqs.migrate()
    for place, client in enumerate([new_client(), pg_client(), redis_client(), sqs]):
        with pytest.raises(dejq.BodyTooLarge) as too_large:
            client.enqueue(dejq.PendingJob("t", "x" * 2**20))
        # What SQS needs for attributes is a part of its mebibyte.
        assert said["largest body"][place].startswith(f"{round(too_large.value.limit / 2**20)} MiB")
        # What is no connection is refused as such only where there are some.
        with pytest.raises((dejq.NotSupported, dejq.ConfigError)) as refused:
            client.enqueue(dejq.PendingJob("t"), connection=object())
        transactions = "no" if isinstance(refused.value, dejq.NotSupported) else "yes"
        assert said["enqueue in the caller's transaction"][place] == transactions
        assert said["effects and end of a job in one transaction (`job.finish`)"][place] == transactions
        if said["list, inspect, finish, requeue, cancel"][place] == "yes":
            assert client.list_jobs() == []
        else:
            with pytest.raises(dejq.NotSupported):
                client.list_jobs()
        has_totals = not said["totals: attempts, failures, retries, rescues, durations"][place].startswith("no")
        assert (client.stats().totals is not None) == has_totals
    assert said["unique keys"][3].startswith("no")
    with pytest.raises(dejq.NotSupported, match="unique="):
        sqs.enqueue(dejq.PendingJob("t", unique="k"))
    with pytest.raises(dejq.NotSupported, match="12 hours"):
        sqs.enqueue(dejq.PendingJob("t", delay=12 * 3600))
    sqs.stop()


# ---- pages and tests -----------------------------------------------------------------------------------------


def test_every_page_that_the_docs_link_to_exists() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tests_that_the_guarantees_name_exist() -> None:
    table = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8").split("where they are tested")[1]
    named = set(re.findall(r"`([\w:.]+)`", table)) - {"max_beats"}
    assert len(named) > 10
    for name in named:
        if name.endswith(".py"):
            place = ROOT / "tests" / "python" / name
        elif "::" in name:
            place = ROOT / "tests" / f"{name.replace('::', '/')}.rs"
        else:
            place = ROOT / "tests" / name / "main.rs"
        assert place.exists(), name
