"""The Django app."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class DejqConfig(AppConfig):
    """Makes the schema of the queue beside the application's own, in ``manage.py migrate`` and in test databases."""

    name = "dejq.contrib.django"
    label = "dejq"
    verbose_name = "dejq"

    def ready(self) -> None:
        """Called by Django once all apps are there."""
        post_migrate.connect(_migrate, sender=self)


def _migrate(using: str, **_: Any) -> None:
    from dejq.contrib.django._tasks import task_backends
    from dejq.contrib.django.backend import DejqBackend

    for backend in task_backends.all():
        if isinstance(backend, DejqBackend) and backend.database == using:
            backend.client.migrate()
