"""Flags and verbs. A verb is a function with `verb` above it, which gives its example and its flags."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import dejq
from dejq._secrets import scrub
from dejq._settings import project_settings
from dejq.cli.talk import CommandError


@dataclass(frozen=True)
class Flag:
    """A flag or an argument. When the command line leaves it out, the environment counts, then the project.

    Attributes:
        names: As typed: ``("-w", "--workers")``; of an argument: ``("TYPE",)``.
        help: For ``--help``.
        read: Makes the value from text; raises `ValueError` with what it must be.
        default: When it is given nowhere.
        in_environment: Does ``DEJQ_<NAME>`` count?
        in_project: Does the key under ``[tool.dejq]`` in pyproject.toml count?
        more: Further arguments of `argparse.ArgumentParser.add_argument`.
    """

    names: tuple[str, ...]
    help: str
    read: Callable[[str], Any] = str
    default: Any = None
    in_environment: bool = True
    in_project: bool = False
    more: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        """Its name in `argparse.Namespace` and in the project's file."""
        name = (self.more or {}).get("dest", self.names[-1])
        return str(name).lstrip("-").replace("-", "_").lower()

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"DEJQ_{self.key.upper()}"

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Tells argparse. Defaults are filled in later: they have more than one place."""
        more: dict[str, Any] = {"help": self.help.replace("%", "%%"), "default": None, **(self.more or {})}
        if more.get("action") not in ("store_true", "count"):
            more["type"] = self._read
        if self.names[0].startswith("-"):
            parser.add_argument(*self.names, **more)
        else:
            parser.add_argument(self.key, metavar=self.names[0], **more)

    def _read(self, text: str) -> Any:
        try:
            return self.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} {error}") from None

    def from_text(self, text: str, source: str) -> Any:
        """The value, given in another place than the command line.

        Raises:
            CommandError: It cannot be read; the text names the place.
        """
        try:
            value = self.read(text)
        except ValueError as error:
            raise CommandError(f"{source} is {text!r}, and {error}") from None
        return [value] if (self.more or {}).get("action") == "append" else value


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        run: Does it; returns the exit code. The first line of its docstring is the help.
        example: A command that a person might type.
        flags: Its flags and arguments, in the order of ``--help``.
    """

    run: Callable[[argparse.Namespace], int]
    example: str
    flags: tuple[Flag, ...]

    @property
    def name(self) -> str:
        """As typed: the name of the function, without what keeps it apart from a built-in."""
        return self.run.__name__.rstrip("_")


def verb(example: str, *flags: Flag) -> Callable[[Callable[[argparse.Namespace], int]], Verb]:
    """Makes a `Verb` of a function."""
    return lambda run: Verb(run, example, flags)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(scrub(message))


def make_parser(verbs: Iterable[Verb]) -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="dejq",
        allow_abbrev=False,
        description="A very simple job queue. `dejq VERB --help` explains a verb.",
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage, 3 no connection to the store, 4 run migrate",
    )
    parser.add_argument("-V", "--version", action="version", version=f"dejq {dejq.__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    width = shutil.get_terminal_size().columns - 2  # as argparse has it
    for verb in verbs:
        paragraphs = [" ".join(part.split()) for part in (verb.run.__doc__ or "").split("\n\n")]
        one = subparsers.add_parser(
            verb.name,
            help=paragraphs[0],
            description="\n\n".join(textwrap.fill(part, width) for part in paragraphs),
            epilog="\n".join(["example:", f"  {verb.example}", "", *_places(verb.flags)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for flag in verb.flags:
            flag.add_to(one)
    return parser


def _places(flags: Iterable[Flag]) -> Iterable[str]:
    """The other places where flags may stand, for the end of ``--help``."""
    places = {
        "environment:": [flag.variable for flag in flags if flag.in_environment],
        "under [tool.dejq] in pyproject.toml:": [flag.key for flag in flags if flag.in_project],
    }
    for title, names in places.items():
        if names:
            yield title
        for first in range(0, len(names), 4):
            yield "  " + "  ".join(names[first : first + 4])


def fill_in(given: argparse.Namespace, flags: Iterable[Flag]) -> None:
    """Fills in what the command line left out.

    `given.source` gets the place that each value comes from, after its rank: 0 the command line, 1 the
    environment, 2 the project.
    """
    project = project_settings() if any(flag.in_project for flag in flags) else {}
    source: dict[str, tuple[int, str]] = {}
    for flag in flags:
        key = flag.key
        if getattr(given, key) is not None:
            source[key] = (0, flag.names[-1])
        elif flag.in_environment and (text := os.environ.get(flag.variable)):
            source[key] = (1, flag.variable)
            setattr(given, key, flag.from_text(text, flag.variable))
        elif flag.in_project and key in project:
            place = "[tool.dejq] in pyproject.toml"
            source[key] = (2, place)
            setattr(given, key, flag.from_text(str(project[key]), f"{key} under {place}"))
        else:
            setattr(given, key, flag.default)
    given.source = source


def whole(text: str) -> int:
    """A number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("must be a whole number of at least 1")
    return int(text)


def loudness(text: str) -> int:
    """A verbosity, as `dejq.set_verbosity` takes it."""
    if text not in ("0", "1", "2", "3"):
        raise ValueError("must be 0, 1, 2 or 3")
    return int(text)


def log_format(text: str) -> str:
    """The form of log lines."""
    if text not in ("text", "json"):
        raise ValueError("must be text or json")
    return text


def _truth(text: str) -> bool:
    if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError("must be 1 or 0")
    return text.lower() in ("1", "true", "yes", "on")


def seconds(text: str) -> float:
    """A length of time, with or without a unit, in seconds."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s|m|h|d)?", text)
    if found is None:
        raise ValueError("must be seconds, or a number with a unit: 250ms, 90s, 10m, 2h, 7d")
    length = float(found[1]) * units[found[2] or "s"]
    if length > 36_525 * 86_400:
        raise ValueError("must be at most 100 years")
    return length


def pause(text: str) -> float:
    """Seconds between two looks: not so short that looking is all that is done."""
    if (length := seconds(text)) < 0.1:
        raise ValueError("must be at least 0.1")
    return length


def patience(text: str) -> float:
    """Seconds, or ``forever``, which is infinite."""
    return float("inf") if text == "forever" else seconds(text)


def pair(text: str) -> tuple[str, str]:
    """``KEY=VALUE``."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError("must be KEY=VALUE")
    return key, value


def switch(name: str, help: str) -> Flag:
    """A flag without a value."""
    return Flag((name,), help, read=_truth, default=False, more={"action": "store_true"})


_APP_HELP = "module:attribute of the client, or of a function that makes it"
APP = Flag(("APP",), _APP_HELP, in_project=True, more={"nargs": "?"})
URL = Flag(("--url",), "the store, for example redis://localhost", in_project=True, more={"metavar": "URL"})
# Of verbs that need a store, wherever it is named.
STORE = (
    URL,
    Flag(("--app",), f"instead of a URL: {_APP_HELP}", in_project=True, more={"metavar": "APP"}),
)
JSON = switch("--json", "print JSON")
DRY_RUN = switch("--dry-run", "only say what would be done")
