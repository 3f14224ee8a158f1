"""Django's tasks as jobs: with Django 6 on Python 3.12 and later (`make test-django`), else with the backport."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pytest
from psycopg import sql

import dejq
from dejq import Client, testing
from python import django_project

if TYPE_CHECKING:
    from python.conftest import Until

pytest_plugins = ["python.postgres"]

HERE = Path(__file__).parent


class Shop(Protocol):
    """Sets TASKS up with these OPTIONS and QUEUES, and returns the client, with handlers for all tasks."""

    def __call__(self, *, queues: list[str] = ..., **options: Any) -> Client: ...


@pytest.fixture(scope="module")
def project(pg_url: str) -> Any:
    """The module with the tasks."""
    django_project.set_up(pg_url)
    from python.shop import tasks

    return tasks


@pytest.fixture
def tasks(project: Any) -> Any:
    project.done.clear()
    return project


@pytest.fixture
def shop(tasks: Any, pg_url: str, pg_schema: str) -> Iterator[Shop]:
    from django.db import connections
    from django.test.utils import override_settings

    from dejq.contrib.django import worker
    from dejq.contrib.django.backend import _clients as clients_of_process

    settings: list[override_settings] = []
    clients: list[Client] = []

    def make(*, queues: list[str] = ["default", "mail"], **options: Any) -> Client:  # noqa: B006
        if "database" in options:
            options = {"schema": pg_schema, **options}
        backend = {"BACKEND": django_project.BACKEND, "QUEUES": queues, "OPTIONS": options}
        settings.append(override_settings(TASKS={"default": backend}))
        settings[-1].enable()
        client = worker.client()
        clients.append(client)
        if client.store == "postgres":
            client.migrate()
        return client

    yield make
    for client in clients:
        client.stop(timeout=30)
    clients_of_process.clear()
    for one in reversed(settings):
        one.disable()
    connections.close_all()
    with psycopg.connect(pg_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(pg_schema)))


@pytest.fixture
def queue(shop: Shop) -> Client:
    return shop(url="memory://")


# ---- enqueue and run -----------------------------------------------------------------------------------------


def test_a_task_becomes_a_job_of_its_own_type_and_runs(queue: Client, tasks: Any) -> None:
    before = datetime.now(timezone.utc)
    result = tasks.ship.enqueue(7, express=True)
    (job,) = testing.assert_enqueued(queue, "python.shop.tasks.ship", {"args": [7], "kwargs": {"express": True}})
    assert (result.id, result.status, result.args, result.kwargs) == (job.id, "READY", [7], {"express": True})
    assert before <= result.enqueued_at <= datetime.now(timezone.utc)
    testing.drain(queue)
    assert tasks.done == [(7, True)]


def test_a_coroutine_is_a_task_as_well(queue: Client, tasks: Any) -> None:
    tasks.notify.enqueue("ada")
    asyncio.run(tasks.notify.aenqueue("bob"))
    testing.drain(queue)
    assert tasks.done == ["ada", "bob"]


def test_a_task_that_takes_its_context_learns_the_attempt_and_the_id(queue: Client, tasks: Any) -> None:
    result = tasks.count.enqueue("one")
    testing.drain(queue)
    assert tasks.done == [("one", 1, result.id)]


def test_a_queue_is_a_part_of_the_type(queue: Client, tasks: Any) -> None:
    tasks.mail.enqueue()
    tasks.ship.using(queue_name="mail").enqueue(1)
    assert [job.type for job in testing.enqueued(queue)] == [
        "mail/python.shop.tasks.mail",
        "mail/python.shop.tasks.ship",
    ]
    testing.drain(queue)
    assert tasks.done == ["mail", (1, False)]


def test_run_after_delays(queue: Client, tasks: Any) -> None:
    tasks.ship.using(run_after=datetime.now(timezone.utc) + timedelta(hours=1)).enqueue(1)
    tasks.ship.using(run_after=datetime.now(timezone.utc) - timedelta(hours=1)).enqueue(2)
    later, now = testing.enqueued(queue)
    assert (later.state, now.state) == ("scheduled", "ready")
    assert later.due_at is not None
    assert timedelta(minutes=59) < later.due_at - later.enqueued_at <= timedelta(hours=1)


def test_retries_are_those_of_dejq(shop: Shop, tasks: Any) -> None:
    client = shop(url="memory://", max_attempts=3)
    asked, failed = tasks.again.enqueue(), tasks.fail.enqueue("no")
    testing.drain(client, scheduled=True)
    assert [client.get_job(one.id).attempt for one in (asked, failed)] == [3, 3]


def test_the_connection_of_a_thread_is_not_kept_longer_than_django_says(shop: Shop, tasks: Any, until: Until) -> None:
    from django.db import connections

    client = shop(url="memory://", workers=1)
    closed: list[bool] = []

    @client.middleware
    @contextmanager
    def look(job: dejq.Job) -> Iterator[None]:
        yield
        closed.append(connections["default"].connection is None)

    tasks.ship.enqueue(1)
    client.dequeue_loop()
    until(lambda: closed)
    assert tasks.done == [(1, False)]
    assert closed == [True]


# ---- results -------------------------------------------------------------------------------------------------


def test_a_result_says_what_became_of_a_task(queue: Client, tasks: Any) -> None:
    waiting = tasks.ship.enqueue(1)
    assert tasks.ship.get_result(waiting.id).status == "READY"
    testing.drain(queue)
    waiting.refresh()
    assert (waiting.status, waiting.is_finished, waiting.attempts, waiting.errors) == ("SUCCESSFUL", True, 1, [])
    assert waiting.enqueued_at <= waiting.started_at <= waiting.finished_at
    assert waiting.last_attempted_at == waiting.started_at
    assert (waiting.args, waiting.backend, waiting.task) == ([1], "default", tasks.ship)


def test_the_value_of_a_task_is_not_kept_and_says_so(queue: Client, tasks: Any) -> None:
    result = tasks.ship.enqueue(1)
    with pytest.raises(ValueError, match="not finished"):
        _ = result.return_value
    testing.drain(queue)
    result.refresh()
    with pytest.raises(dejq.NotSupported, match=r"returned was not kept.*let the task save what it makes"):
        _ = result.return_value


def test_the_result_of_a_failed_task_has_its_error(queue: Client, tasks: Any) -> None:
    result = tasks.fail.enqueue("no route")
    cancelled = tasks.ship.enqueue(1)
    queue.cancel_job(cancelled.id)
    testing.drain(queue)
    result.refresh()
    cancelled.refresh()
    (error,) = result.errors
    assert (result.status, error.exception_class) == ("FAILED", OSError)
    assert error.traceback.endswith("OSError: no route\n")
    (error,) = cancelled.errors
    assert (cancelled.status, error.exception_class) == ("FAILED", RuntimeError)
    with pytest.raises(ValueError, match="failed"):
        _ = result.return_value


def test_a_result_of_something_else_does_not_exist(queue: Client, tasks: Any) -> None:
    from dejq.contrib.django._tasks import TaskResultDoesNotExist, task_backends

    (other,) = queue.enqueue(dejq.PendingJob("something.else"))
    result = tasks.ship.enqueue(1)
    for id in ("nonsense", "01890a5d-ac96-774b-bcce-b302099a8057", other):
        with pytest.raises(TaskResultDoesNotExist):
            task_backends["default"].get_result(id)
    with pytest.raises(Exception, match="does not match"):
        tasks.mail.get_result(result.id)
    assert asyncio.run(tasks.ship.aget_result(result.id)).id == result.id


def test_the_flags_say_what_the_store_can(shop: Shop, tasks: Any) -> None:
    from dejq.contrib.django._tasks import task_backends

    def flags() -> tuple[bool, ...]:
        backend = task_backends["default"]
        return (
            backend.supports_async_task,
            backend.supports_defer,
            backend.supports_get_result,
            backend.supports_priority,
        )

    shop(url="memory://")
    assert flags() == (True, True, True, False)
    shop(url="sqs://eu-west-1/shop.fifo")
    assert flags() == (True, True, False, False)
    with pytest.raises(NotImplementedError, match="not possible on sqs"):
        task_backends["default"].get_result("01890a5d-ac96-774b-bcce-b302099a8057")


# ---- signals -------------------------------------------------------------------------------------------------


def test_the_signals_of_django_are_sent(queue: Client, tasks: Any) -> None:
    from dejq.contrib.django._tasks import signals

    seen: list[tuple[str, str, str]] = []

    def hear(name: str) -> Callable[..., None]:
        return lambda task_result, **_: seen.append((name, task_result.task.name, str(task_result.status)))

    receivers = {name: hear(name) for name in ("task_enqueued", "task_started", "task_finished")}
    for name, receiver in receivers.items():
        getattr(signals, name).connect(receiver)
    try:
        for one in (tasks.ship.enqueue, tasks.notify.enqueue, tasks.fail.enqueue):
            one("1")
        tasks.again.enqueue()
        testing.drain(queue, scheduled=True)
    finally:
        for name, receiver in receivers.items():
            getattr(signals, name).disconnect(receiver)
    ran = [("ship", "SUCCESSFUL"), ("notify", "SUCCESSFUL"), ("fail", "FAILED"), ("again", "SUCCESSFUL")]
    assert [one for one in seen if one[0] == "task_enqueued"] == [
        ("task_enqueued", name, "READY") for name in ("ship", "notify", "fail", "again")
    ]
    assert [one for one in seen if one[0] == "task_finished"] == [("task_finished", *one) for one in ran]
    assert [one[1:] for one in seen if one[0] == "task_started"] == [
        (name, "RUNNING") for name in ("ship", "notify", "fail", "again", "again", "again")
    ]


# ---- transactions --------------------------------------------------------------------------------------------


@contextmanager
def rolled_back() -> Iterator[None]:
    from django.db import transaction

    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def test_in_the_database_of_the_jobs_a_task_is_part_of_the_transaction(shop: Shop, tasks: Any) -> None:
    from django.db import transaction

    client = shop(database="default")
    with transaction.atomic():
        kept = tasks.ship.enqueue(1)
        assert testing.enqueued(client) == []
    with rolled_back():
        tasks.ship.enqueue(2)
    at_once = tasks.ship.enqueue(3)
    assert [job.id for job in testing.enqueued(client)] == [kept.id, at_once.id]
    asyncio.run(tasks.ship.aenqueue(4))
    testing.drain(client)
    assert [order for order, _ in tasks.done] == [1, 3, 4]


def test_elsewhere_a_task_may_wait_for_the_commit(shop: Shop, tasks: Any) -> None:
    from django.db import transaction

    client = shop(url="memory://", on_commit="default")
    with transaction.atomic():
        result = tasks.ship.enqueue(1)
        assert (result.id, testing.enqueued(client)) == ("", [])
    with rolled_back():
        tasks.ship.enqueue(2)
    at_once = tasks.ship.enqueue(3)
    assert [job.id for job in testing.enqueued(client)] == [result.id, at_once.id]


def test_by_default_a_task_does_not_wait(queue: Client, tasks: Any) -> None:
    from django.db import transaction

    with transaction.atomic():
        result = tasks.ship.enqueue(1)
        assert [job.id for job in testing.enqueued(queue)] == [result.id]


def test_migrate_makes_the_schema_in_the_database_of_the_jobs(
    shop: Shop, tasks: Any, pg_url: str, pg_schema: str
) -> None:
    from django.core.management import call_command

    def exists() -> bool:
        with psycopg.connect(pg_url) as connection:
            return connection.execute("SELECT to_regclass(%s)", [f"{pg_schema}.jobs"]).fetchone() != (None,)

    client = shop(database="default")
    with psycopg.connect(pg_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(pg_schema)))
    call_command("migrate", database="files", verbosity=0)
    assert not exists()
    call_command("migrate", verbosity=0)
    assert exists()
    assert client.store == "postgres"


# ---- what is refused -----------------------------------------------------------------------------------------


def test_a_priority_is_refused_with_what_to_do_instead(queue: Client, tasks: Any) -> None:
    from dejq.contrib.django._tasks import InvalidTask

    with pytest.raises(InvalidTask, match=r"the task ship has priority 5.*give urgent ones a queue_name and workers"):
        tasks.ship.using(priority=5)
    with pytest.raises(InvalidTask, match="not valid for backend"):
        tasks.ship.using(queue_name="unheard")


def test_a_queue_whose_name_is_no_type_is_refused(shop: Shop, tasks: Any) -> None:
    from dejq.contrib.django._tasks import InvalidTask

    shop(url="memory://", queues=["default", "mail"])
    with pytest.raises(InvalidTask, match='cannot be a job: DEJQ-E100 job type "late night/'):
        shop(url="memory://", queues=["late night"])


@pytest.mark.parametrize(
    ("options", "queues", "text"),
    [
        ({"database": "default", "url": "memory://"}, ["default"], 'has "database", whose transactions.*leave out one'),
        ({"database": "default", "on_commit": "default"}, ["default"], 'has "database", whose transactions'),
        ({"database": "files"}, ["default"], "is 'files', which is no PostgreSQL; name one that is, or a store"),
        ({"url": "memory://"}, [], r"\"QUEUES\"\] is empty, which allows any name.*list them all"),
        ({"url": "memory://", "wrokers": 1}, ["default"], "wrokers"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    options: dict[str, Any], queues: list[str], text: str, shop: Shop
) -> None:
    from dejq.contrib.django._tasks import InvalidTaskBackend

    with pytest.raises((InvalidTaskBackend, dejq.ConfigError), match=text):
        shop(queues=queues, **options)


def test_the_system_check_finds_options_that_are_wrong(shop: Shop, tasks: Any) -> None:
    from django.test.utils import override_settings

    from dejq.contrib.django._tasks import task_backends

    shop(url="memory://")
    assert list(task_backends["default"].check()) == []
    wrong = {"default": {"BACKEND": django_project.BACKEND, "OPTIONS": {"url": "nonsense://"}}}
    with override_settings(TASKS=wrong):
        (error,) = task_backends["default"].check()
    assert (error.id, error.obj) == ("dejq.E001", 'TASKS["default"]')
    assert "nonsense" in error.msg


def test_without_a_tasks_framework_it_says_where_to_get_one() -> None:
    program = (
        "import sys, django\n"
        "django.VERSION = (5, 2, 0, 'final', 0)\n"
        "sys.modules['django_tasks'] = None\n"
        "import dejq.contrib.django._tasks"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=HERE.parent
    )
    assert ran.returncode == 1
    assert ran.stderr.rstrip().endswith("upgrade to Django 6, or pip install django-tasks")


# ---- manage.py -----------------------------------------------------------------------------------------------


def test_the_worker_runs_what_the_web_process_enqueued(
    shop: Shop, tasks: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from django.core.management import call_command

    shop(database="default")
    tasks.ship.enqueue(1)
    tasks.notify.enqueue("ada")
    tasks.mail.enqueue()
    call_command("dejq_worker", "--drain", "--workers", "1")
    assert sorted(map(str, tasks.done)) == ["(1, False)", "ada", "mail"]
    assert "mail/python.shop.tasks.mail" in capfd.readouterr().err


def test_the_worker_takes_only_the_queues_that_it_is_told(
    shop: Shop, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dejq.contrib.django import worker

    monkeypatch.setenv("DEJQ_QUEUES", "mail")
    client = shop(url="memory://")
    tasks.ship.enqueue(1)
    tasks.mail.enqueue()
    testing.drain(client)
    assert tasks.done == ["mail"]
    monkeypatch.setenv("DEJQ_QUEUES", "mail,mial")
    with pytest.raises(dejq.ConfigError, match=r"has no 'mial'; it has default, mail"):
        worker.client()


def test_the_worker_refuses_a_backend_of_another_kind(tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.core.management import CommandError, call_command
    from django.test.utils import override_settings

    package = "django.tasks" if django_project.task.__module__.startswith("django.tasks") else "django_tasks"
    other = {"default": {"BACKEND": f"{package}.backends.dummy.DummyBackend"}}
    monkeypatch.setenv("DEJQ_BACKEND", "default")
    with (
        override_settings(TASKS=other),
        pytest.raises(CommandError, match="DummyBackend, whose"),
    ):
        call_command("dejq_worker", "--drain")


MANAGE = """
import sys

from django.core.management import execute_from_command_line

execute_from_command_line(sys.argv)
"""

SETTINGS = """
from psycopg.conninfo import conninfo_to_dict

given = conninfo_to_dict({url!r})
names = {{"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}}
DATABASES = {{
    "default": {{
        "ENGINE": "django.db.backends.postgresql",
        **{{key: str(given.get(name, "")) for key, name in names.items()}},
    }}
}}
INSTALLED_APPS = ["dejq.contrib.django", "python.shop"]
TASKS = {{
    "default": {{
        "BACKEND": "dejq.contrib.django.backend.DejqBackend",
        "QUEUES": ["default", "mail"],
        "OPTIONS": {{"database": "default", "schema": {schema!r}}},
    }}
}}
ROOT_URLCONF = "urls"
USE_TZ = True
"""

URLS = """
from python.django_project import task

urlpatterns = []


@task
def defined_beside_the_views() -> None: ...
"""


def test_a_project_of_its_own_needs_nothing_but_its_settings(tmp_path: Path, pg_url: str, pg_schema: str) -> None:
    (tmp_path / "manage.py").write_text(MANAGE)
    (tmp_path / "urls.py").write_text(URLS)
    (tmp_path / "settings.py").write_text(SETTINGS.format(url=pg_url, schema=pg_schema))

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DEJQ_")}
        environment |= {"DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": str(HERE.parent)}
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def manage(*words: str) -> subprocess.CompletedProcess[str]:
        return python("manage.py", *words)

    try:
        assert manage("check").returncode == 0
        assert manage("migrate").returncode == 0
        enqueue = "from python.shop import tasks; print(tasks.ship.enqueue(1).id); tasks.mail.enqueue()"
        (id,) = manage("shell", "-c", enqueue).stdout.split()[-1:]
        worker = manage("dejq_worker", "--drain", "--queues", "default", "-v", "2")
        assert worker.returncode == 0, worker
        assert f"dequeue python.shop.tasks.ship [{id}]" in worker.stderr
        assert "mail/" not in worker.stderr
        wrong = manage("dejq_worker", "--workers", "many")
        assert (wrong.returncode, "must be a whole number" in wrong.stderr) == (2, True)
        unknown = manage("dejq_worker", "--queues", "late")
        assert unknown.returncode == 2
        assert "no 'late'; it has default, mail" in unknown.stderr
        assert "Traceback" not in unknown.stderr
        doctor = python("-m", "dejq", "doctor", "dejq.contrib.django.worker:client")
        assert "urls.defined_beside_the_views" in doctor.stdout, doctor
        stats = python("-m", "dejq", "stats", "--json", "--app", "dejq.contrib.django.worker:client")
        assert json.loads(stats.stdout)["by_type"].keys() == {
            "python.shop.tasks.ship",
            "mail/python.shop.tasks.mail",
        }, stats
        with dejq.postgres(pg_url, schema=pg_schema) as client:
            assert client.get_job(id).state == "finished"
            assert [job.type for job in client.list_jobs(state="ready")] == ["mail/python.shop.tasks.mail"]
    finally:
        with psycopg.connect(pg_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(pg_schema)))
