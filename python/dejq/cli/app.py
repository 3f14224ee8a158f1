"""The client that a command works with: of an application, or of a URL."""

from __future__ import annotations

import argparse
import operator
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dejq
from dejq.cli.talk import CommandError, close, exit_code


def client_of(given: argparse.Namespace, *, first: str = "url") -> dejq.Client:
    """The client that is named by the command line, else by the environment, else by the project.

    Args:
        given: With ``url`` and ``app``.
        first: Which of the two counts when both stand in the same place.
    """
    named = [(given.source[key][0], key != first, key) for key in ("url", "app") if key in given.source]
    if named and min(named)[-1] == "app":
        return load(given.app)
    client = dejq.connect(given.url)  # says what to do when there is none
    client.url_source = given.source["url"][1]
    return client


def load(app: str) -> dejq.Client:
    """The client that ``module:attribute`` names. The current folder is searched first.

    Raises:
        CommandError: There is no such module or attribute, it cannot be imported, or it is no client.
    """
    module_name, _, path = app.partition(":")
    if not module_name or not path or "/" in module_name or module_name.endswith(".py"):
        name = re.sub(r"\W+", ".", module_name.removesuffix(".py")).strip(".") or "app"
        raise CommandError(f"APP is module:attribute, and {app!r} is not; for example {name}:{path or 'client'}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = operator.attrgetter(path)(_import(module_name))
    except AttributeError as error:
        raise CommandError(f"there is no {error.name!r} in {module_name}{_meant(str(error.name), error.obj)}") from None
    if callable(found) and not isinstance(found, dejq.Client):
        found = _call(app, found)
    if not isinstance(found, dejq.Client):
        raise CommandError(
            f"{app} is of type {type(found).__name__}; it must be a dejq.Client or a function that makes one"
        )
    return found


def _import(name: str) -> Any:
    import importlib
    import pkgutil

    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            raise _broken(f"{name} cannot be imported", error) from error
        parent = sys.modules.get(missing.rpartition(".")[0])
        folders = [str(Path.cwd())] if parent is None else getattr(parent, "__path__", [])
        there = [module.name for module in pkgutil.iter_modules(folders)]
        meant = close(missing.rpartition(".")[2], there)
        raise CommandError(f"there is no module {missing!r} in {Path.cwd()} or on Python's path{meant}") from None


def _call(app: str, factory: Callable[[], object]) -> object:
    try:
        return factory()
    except Exception as error:
        trace = error.__traceback__
        if isinstance(error, TypeError) and trace is not None and trace.tb_next is None:
            raise CommandError(
                f"{app} is neither a dejq.Client nor a function that makes one without arguments ({error})"
            ) from None
        raise _broken(f"{app} made no client", error) from error


def _broken(what: str, error: BaseException) -> CommandError:
    """The application's own code raised: says where, without the traceback."""
    import traceback

    own = f"{Path(dejq.__file__).parent}{os.sep}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", own)) and "importlib" not in frame.filename
    ]
    where = f" ({os.path.relpath(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    why = str(error) if isinstance(error, dejq.DejqError) else f"{type(error).__name__}: {error}"
    return CommandError(f"{what}: {why}{where}", exit_code(error))


def _meant(word: str, found: object) -> str:
    names = [name for name in dir(found) if not name.startswith("_")]
    clients = [name for name in names if isinstance(getattr(found, name, None), dejq.Client)]
    return close(word, clients) or close(word, names) or (f"; it has {clients[0]!r}" if clients else "")
