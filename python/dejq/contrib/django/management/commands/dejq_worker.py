"""``manage.py dejq_worker``: ``dejq worker``, for the tasks of Django."""

from __future__ import annotations

import argparse
import os
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

import dejq
from dejq.cli.flags import Flag, fill_in
from dejq.cli.talk import CommandError as Refused
from dejq.cli.talk import exit_code
from dejq.cli.worker import worker

_APP = "dejq.contrib.django.worker:client"
# Their values reach the application, and worker processes of its own, by the environment.
_OURS = (
    Flag(("--backend",), 'key in TASKS; default "default"', more={"metavar": "ALIAS"}),
    Flag(("--queues",), "only these, separated by commas; default: all of the backend's", more={"metavar": "NAMES"}),
)
# Django has a flag of that name, and the application is known.
_FLAGS = tuple(flag for flag in worker.flags if flag.key not in ("app", "verbosity"))


class Command(BaseCommand):
    """The command, as Django finds it."""

    help = (
        "Runs tasks until a signal comes. SIGTERM or Ctrl-C stops gracefully. -v 2 shows each task, -v 3 the insides."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """The flags of ``dejq worker``, and ours."""
        for flag in (*_OURS, *_FLAGS):
            flag.add_to(parser)

    def handle(self, *_: Any, **options: Any) -> None:
        """Runs the worker.

        Raises:
            CommandError: It cannot be started.
            SystemExit: It ended otherwise than gracefully.
        """
        given = argparse.Namespace(**options)
        fill_in(given, (*_OURS, *_FLAGS))
        for flag in _OURS:
            if value := getattr(given, flag.key):
                os.environ[flag.variable] = value
        given.app = _APP
        given.verbosity = max(0, given.verbosity - 1)  # Django's default is 1
        try:
            code = worker.run(given)
        except (Refused, dejq.DejqError) as error:
            raise CommandError(str(error), returncode=exit_code(error)) from error
        if code:
            raise SystemExit(code)
