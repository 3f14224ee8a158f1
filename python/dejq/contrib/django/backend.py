"""The backend of Django's tasks: a task is a job type, its arguments are the body."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.core import checks
from django.db import connections, transaction
from django.utils import timezone

import dejq
from dejq import Client, JobInfo, PendingJob
from dejq.contrib.django._tasks import (
    DEFAULT_TASK_PRIORITY,
    DEFAULT_TASK_QUEUE_NAME,
    AnyResult,
    AnyTask,
    BaseTaskBackend,
    InvalidTask,
    InvalidTaskBackend,
    TaskError,
    TaskResultDoesNotExist,
    TaskResultStatus,
    signals,
)

# Django makes a backend for each thread; a client is for the whole process, and not for its children.
_clients: dict[tuple[int, str], Client] = {}

# The tasks that were defined so far, by the alias of their backend and their path.
_defined: dict[str, dict[str, AnyTask]] = {}

# What libpq and the engine call the parts of DATABASES, and the OPTIONS in them that both know.
_PARTS = {"HOST": "host", "PORT": "port", "USER": "user", "PASSWORD": "password", "NAME": "dbname"}
_LIBPQ = (
    "channel_binding",
    "passfile",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
)

_STATES = {
    "finished": TaskResultStatus.SUCCESSFUL,
    "failed": TaskResultStatus.FAILED,
    "cancelled": TaskResultStatus.FAILED,
    "running": TaskResultStatus.RUNNING,
}


class StoredResult(AnyResult):
    """What `DejqBackend` returns: all but the value that the task returned, for which there is no place in a job."""

    __slots__ = ()

    @property
    def return_value(self) -> Any:
        """Raises, also for a task that succeeded.

        Raises:
            NotSupported: It succeeded.
            ValueError: It failed, or has not finished yet.
        """
        AnyResult.return_value.fget(self)  # type: ignore[attr-defined]  # its own errors first
        raise dejq.NotSupported(
            f"the value that task {self.id} returned was not kept, for dejq keeps no results; let the task save what "
            "it makes (a model, a file), and look there"
        )


class DejqBackend(BaseTaskBackend):
    """Django's tasks as jobs of dejq. The type of a job is the path of its task, after ``QUEUE/`` if it has a queue.

    Its ``OPTIONS``, beside those of `dejq.connect` such as ``max_attempts``:

    * ``database``: the alias of a PostgreSQL database of DATABASES, which holds the jobs too; they are enqueued in its
      transaction. Or:
    * ``url``: names the store, as for `dejq.connect`; default: ``DEJQ_URL``.
    * ``on_commit``: with ``url``, the alias of the database whose commit is waited for. Until then the id of the result
      is empty. Default: tasks are enqueued at once.

    Raises:
        InvalidTaskBackend: The options contradict each other, or the database is no PostgreSQL.
    """

    supports_async_task = True
    supports_defer = True
    supports_priority = False

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        super().__init__(alias, dict(params))
        options = dict(self.options)
        self.database: str | None = options.pop("database", None)
        self._url: str | None = options.pop("url", None)
        self._on_commit: str | None = options.pop("on_commit", None)
        self._options = options
        if self.database is not None and (self._url or self._on_commit):
            raise InvalidTaskBackend(
                f'TASKS["{alias}"]["OPTIONS"] has "database", whose transactions the tasks are enqueued in, and '
                '"url" or "on_commit", which are for stores of another kind; leave out one of them'
            )
        if not self.queues:
            raise InvalidTaskBackend(
                f'TASKS["{alias}"]["QUEUES"] is empty, which allows any name, and a dejq worker asks for the jobs of '
                "queues by name; list them all"
            )

    @property
    def supports_get_result(self) -> bool:  # type: ignore[override]  # Django's is fixed, ours depends on the store
        """Can the store look up a job? SQS cannot. Values that tasks return are kept nowhere: see `StoredResult`."""
        return self.client.store != "sqs"

    @property
    def client(self) -> Client:
        """The client of this process, made at its first use. It connects when it has something to do."""
        key = (os.getpid(), repr((self.alias, self._url, self._database_options(), self._options)))
        client = _clients.get(key)
        if client is None:
            # Of two threads, the second one's is dropped unused.
            client = _clients.setdefault(key, self._connect())
        return client

    def _connect(self) -> Client:
        if self.database is None:
            return dejq.connect(self._url, **self._options)
        if connections[self.database].vendor != "postgresql":
            raise InvalidTaskBackend(
                f'TASKS["{self.alias}"]["OPTIONS"]["database"] is {self.database!r}, which is no PostgreSQL; name one '
                'that is, or a store with "url" (and "on_commit", to enqueue when a transaction commits)'
            )
        return dejq.connect("postgresql://", **self._database_options(), **self._options)

    def _database_options(self) -> dict[str, Any]:
        """Where the database is, asked anew each time: tests give it another name."""
        if self.database is None:
            return {}
        settings = connections[self.database].settings_dict
        parts = {ours: settings[django] for django, ours in _PARTS.items() if settings.get(django)}
        given = settings.get("OPTIONS") or {}
        return parts | {name: given[name] for name in _LIBPQ if name in given}

    # ---- tasks and their types -------------------------------------------------------------------------

    def validate_task(self, task: AnyTask) -> None:
        """Refuses what a job cannot be; Django calls it when a task is defined, changed and enqueued.

        Raises:
            InvalidTask: It has a priority, a queue that is not in QUEUES, or a path that is no job type.
        """
        if task.priority != DEFAULT_TASK_PRIORITY:
            raise InvalidTask(
                f"the task {task.name} has priority {task.priority}, and dejq runs tasks in the order in which they "
                'were enqueued; give urgent ones a queue_name and workers ("dejq_worker --queues") of their own'
            )
        super().validate_task(task)
        try:
            PendingJob(self.job_type(task, task.queue_name))
        except dejq.ConfigError as error:
            raise InvalidTask(f"the task {task.name} cannot be a job: {error}") from error
        _defined.setdefault(self.alias, {}).setdefault(task.module_path, task)

    @property
    def tasks(self) -> Iterable[AnyTask]:
        """The tasks for this backend that have been defined so far."""
        return list(_defined.get(self.alias, {}).values())

    @staticmethod
    def job_type(task: AnyTask, queue_name: str) -> str:
        """The type of the jobs of a task in a queue."""
        return task.module_path if queue_name == DEFAULT_TASK_QUEUE_NAME else f"{queue_name}/{task.module_path}"

    # ---- what Django calls -----------------------------------------------------------------------------

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Stores the task: in the transaction of ``database``, on its commit, or at once, by the options.

        Raises:
            InvalidTask: As `validate_task`.
            TypeError: An argument is nothing that JSON can say.
            DejqError: As `dejq.Client.enqueue`. With ``on_commit``, the commit raises it.
        """
        self.validate_task(task)
        result = self.new_result(task, TaskResultStatus.READY, args, kwargs)
        body = {"args": result.args, "kwargs": result.kwargs}
        job = PendingJob(self.job_type(task, task.queue_name), body, delay=_delay(task.run_after))

        def store() -> None:
            connection = None if self.database is None else connections[self.database]
            (id,) = self.client.enqueue(job, connection=connection)
            # Django's own backends change results this way, too.
            object.__setattr__(result, "id", id)
            object.__setattr__(result, "enqueued_at", timezone.now())
            signals.task_enqueued.send(type(self), task_result=result)

        if self._on_commit is None:
            store()
        else:
            transaction.on_commit(store, using=self._on_commit)
        return result

    def get_result(self, result_id: str) -> AnyResult:
        """Looks up what became of a task; see `StoredResult` for what is not there.

        Raises:
            TaskResultDoesNotExist: There is no such job, it was deleted, or it is none of a task of this backend.
            NotImplementedError: The store cannot look up jobs (SQS).
        """
        try:
            job = self.client.get_job(result_id)
        except dejq.UnknownJob as error:
            raise TaskResultDoesNotExist(str(error)) from error
        except dejq.NotSupported as error:
            raise NotImplementedError(str(error)) from error
        queue, _, path = job.type.rpartition("/")
        task = _defined.get(self.alias, {}).get(path)
        if task is None:
            raise TaskResultDoesNotExist(
                f"job {job.id} is of type {job.type!r}, which is no task that this process knows; import its module"
            )
        result = self.new_result(
            task.using(queue_name=queue or DEFAULT_TASK_QUEUE_NAME),
            _STATES.get(job.state, TaskResultStatus.READY),
            job.body["args"],
            job.body["kwargs"],
            id=job.id,
            attempts=job.attempt,
        )
        for name, value in (
            ("enqueued_at", job.enqueued_at),
            ("started_at", job.started_at),
            ("last_attempted_at", job.started_at),
            ("finished_at", job.finished_at),
        ):
            object.__setattr__(result, name, value)
        result.errors.extend(_errors(job))
        return result

    def new_result(
        self,
        task: AnyTask,
        status: TaskResultStatus,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        id: str = "",
        attempts: int = 0,
    ) -> AnyResult:
        """A result without times and errors, yet."""
        return StoredResult(
            task=task,
            id=id,
            status=status,
            enqueued_at=None,
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=list(args),
            kwargs=dict(kwargs),
            backend=self.alias,
            errors=[],
            # Django counts attempts by the workers; which ones they were is not kept.
            worker_ids=["dejq"] * attempts,
        )

    def check(self, **_: Any) -> list[checks.CheckMessage]:
        """What ``manage.py check`` says: that the options can be used."""
        try:
            self.client  # noqa: B018  (made here, if it can be)
        except (dejq.ConfigError, InvalidTaskBackend) as error:
            return [checks.Error(str(error), obj=f'TASKS["{self.alias}"]', id="dejq.E001")]
        return []


def _delay(run_after: datetime | None) -> float | None:
    if run_after is None:
        return None
    now = timezone.now() if timezone.is_aware(run_after) else datetime.now()  # as settings.USE_TZ says
    return max(0.0, (run_after - now).total_seconds())


def _errors(job: JobInfo) -> list[TaskError]:
    if job.error is None:
        return []
    kind = job.error.partition(":")[0]
    # dejq's own words, such as "worker lost", are no exceptions.
    path = kind if "." in kind else f"builtins.{kind if hasattr(builtins, kind) else 'RuntimeError'}"
    return [TaskError(exception_class_path=path, traceback=job.traceback or job.error)]
