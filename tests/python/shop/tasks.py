"""The tasks of the shop, as Django finds them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from django.db import connection

import dejq
from python.django_project import task

if TYPE_CHECKING:
    from django.tasks import TaskContext

# What the tasks did, in order.
done: list[Any] = []


@task
def ship(order: int, *, express: bool = False) -> str:
    """Looks at the database, as tasks do."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    done.append((order, express))
    return "shipped"


@task
async def notify(who: str) -> None:
    await asyncio.sleep(0)
    done.append(who)


@task(takes_context=True)
def count(context: TaskContext[..., Any], text: str) -> None:
    done.append((text, context.attempt, context.task_result.id))


@task
def fail(text: str) -> None:
    raise OSError(text)


@task(takes_context=True)
def again(context: TaskContext[..., Any]) -> None:
    if context.attempt < 3:
        raise dejq.Retry(after=0)


@task(queue_name="mail")
def mail() -> None:
    done.append("mail")
