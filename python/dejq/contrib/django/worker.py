"""The application of ``manage.py dejq_worker``, and of ``dejq worker dejq.contrib.django.worker:client``."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Collection
from importlib import import_module
from inspect import iscoroutinefunction
from typing import Any

import django
from asgiref.sync import sync_to_async
from django.apps import apps
from django.conf import settings
from django.db import close_old_connections
from django.utils import timezone
from django.utils.module_loading import autodiscover_modules

from dejq import Client, ConfigError, Job, Retry
from dejq.contrib.django._tasks import (
    AnyResult,
    AnyTask,
    TaskContext,
    TaskError,
    TaskResultStatus,
    signals,
    task_backends,
)
from dejq.contrib.django.backend import DejqBackend


def client() -> Client:
    """The client of a backend in TASKS, with handlers for its tasks.

    Knows the tasks in the modules ``tasks`` of the installed apps, in what ROOT_URLCONF imports, and in whatever else
    has been imported.
    The environment says which backend (``DEJQ_BACKEND``; "default") and which of its queues, separated by commas
    (``DEJQ_QUEUES``; all).

    Raises:
        ConfigError: There is no such backend or queue, or it is another one's than dejq's.
    """
    if not apps.ready:
        django.setup()
    autodiscover_modules("tasks")
    if urls := getattr(settings, "ROOT_URLCONF", None):
        import_module(urls)
    alias = os.environ.get("DEJQ_BACKEND") or "default"
    backend = task_backends[alias]
    if not isinstance(backend, DejqBackend):
        raise ConfigError(
            f'TASKS["{alias}"] is a {type(backend).__name__}, whose tasks dejq cannot run; set its BACKEND to '
            '"dejq.contrib.django.backend.DejqBackend", or name another one with --backend'
        )
    wanted = [name for name in (os.environ.get("DEJQ_QUEUES") or "").split(",") if name]
    if unknown := set(wanted) - backend.queues:
        raise ConfigError(
            f'TASKS["{alias}"]["QUEUES"] has no {min(unknown)!r}; it has {", ".join(sorted(backend.queues))}'
        )
    register(backend, wanted or backend.queues)
    return backend.client


def register(backend: DejqBackend, queues: Collection[str]) -> None:
    """Registers the backend's tasks with its client, once for each queue that they may come by."""
    known = set(backend.client.types)
    for task in backend.tasks:
        for queue in sorted(queues):
            type = backend.job_type(task, queue)
            if type not in known:
                backend.client.register_handler(type, _handler(backend, task.using(queue_name=queue)))


def _handler(backend: DejqBackend, task: AnyTask) -> Callable[[Job], Any]:
    if iscoroutinefunction(task.func):

        async def arun(job: Job) -> None:
            # As around a request. The connections are those of the thread that `sync_to_async` uses.
            await sync_to_async(close_old_connections)()
            result = _started(backend, task, job)
            await signals.task_started.asend(type(backend), task_result=result)
            try:
                await task.func(*_arguments(result), **result.kwargs)
            except Retry:
                raise
            except BaseException as error:
                _failed(result, error)
                await signals.task_finished.asend(type(backend), task_result=result)
                raise
            else:
                _succeeded(result)
                await signals.task_finished.asend(type(backend), task_result=result)
            finally:
                await sync_to_async(close_old_connections)()

        return arun

    def run(job: Job) -> None:
        close_old_connections()
        result = _started(backend, task, job)
        signals.task_started.send(type(backend), task_result=result)
        try:
            task.func(*_arguments(result), **result.kwargs)
        except Retry:
            raise
        except BaseException as error:
            _failed(result, error)
            signals.task_finished.send(type(backend), task_result=result)
            raise
        else:
            _succeeded(result)
            signals.task_finished.send(type(backend), task_result=result)
        finally:
            close_old_connections()

    return run


def _started(backend: DejqBackend, task: AnyTask, job: Job) -> AnyResult:
    body = job.body
    result = backend.new_result(
        task, TaskResultStatus.RUNNING, body["args"], body["kwargs"], id=job.id, attempts=job.attempt
    )
    now = timezone.now()
    _set(result, enqueued_at=job.enqueued_at, started_at=now, last_attempted_at=now)
    return result


def _arguments(result: AnyResult) -> list[Any]:
    context: list[Any] = [TaskContext(task_result=result)] if result.task.takes_context else []
    return [*context, *result.args]


def _succeeded(result: AnyResult) -> None:
    _set(result, status=TaskResultStatus.SUCCESSFUL, finished_at=timezone.now())


def _failed(result: AnyResult, error: BaseException) -> None:
    kind = type(error)
    text = "".join(traceback.format_exception(error))
    result.errors.append(TaskError(exception_class_path=f"{kind.__module__}.{kind.__qualname__}", traceback=text))
    _set(result, status=TaskResultStatus.FAILED, finished_at=timezone.now())


def _set(result: AnyResult, **values: Any) -> None:
    # It is frozen; Django's own backends change it this way, too.
    for name, value in values.items():
        object.__setattr__(result, name, value)
