"""The Django project of the tests. A process has one, so whoever needs Django sets it up here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import django
import django.conf
from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING or django.VERSION >= (6, 0):
    from django.tasks import task
else:
    from django_tasks import task

__all__ = ["BACKEND", "set_up", "task"]

BACKEND = "dejq.contrib.django.backend.DejqBackend"


def set_up(url: str) -> None:
    """Sets Django up with a PostgreSQL database and the app `python.shop`; once in a process."""
    if django.conf.settings.configured:
        return
    given = conninfo_to_dict(url)
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    database = {key: str(given.get(name, "")) for key, name in names.items()}
    django.conf.settings.configure(
        DATABASES={
            "default": {"ENGINE": "django.db.backends.postgresql", **database},
            "files": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
        },
        TASKS={"default": {"BACKEND": BACKEND, "QUEUES": ["default", "mail"], "OPTIONS": {"url": "memory://shop"}}},
        INSTALLED_APPS=["dejq.contrib.django", "python.shop"],
        LOGGING_CONFIG=None,
        USE_TZ=True,
    )
    django.setup()
