"""What the command line says: data to stdout, talk to stderr, and both without passwords."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta

import dejq
from dejq._secrets import scrub

OK, FAILED, USAGE, NO_CONNECTION, NO_SCHEMA = range(5)


class CommandError(Exception):
    """The command cannot be done; its text is the whole message.

    Args:
        text: What is wrong and what to type instead.
        code: The exit code.
    """

    def __init__(self, text: str, code: int = USAGE) -> None:
        super().__init__(text)
        self.code = code


def exit_code(error: BaseException) -> int:
    """The exit code that an error leads to."""
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, (dejq.ConfigError, dejq.BodyError)):
        return USAGE
    if isinstance(error, dejq.BackendUnavailable):
        return NO_CONNECTION
    if isinstance(error, (dejq.SchemaMissing, dejq.SchemaOutdated)):
        return NO_SCHEMA
    return FAILED


def say(text: str) -> None:
    """Talk: for people, on stderr."""
    print(scrub(text), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Data: for people and programs, on stdout."""
    print(scrub(text), flush=True)


def show_json(value: object) -> None:
    """Data for programs: one line of JSON."""
    import json

    show(json.dumps(value))


def progress(text: str) -> None:
    """A line on the terminal that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{scrub(text)}", end="", file=sys.stderr, flush=True)


def count(number: int, thing: str) -> str:
    """A number with its noun: ``1 job``, ``2 jobs``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    )


def span(length: timedelta | None) -> str:
    """A length of time as people say it."""
    if length is None:
        return "–"
    seconds = length.total_seconds()
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def close(word: str, there: Sequence[str], likeness: float = 0.6) -> str:
    """A question whether `word` was meant to be one of those that are there; empty if none is like it."""
    import difflib

    close = difflib.get_close_matches(word, there, n=1, cutoff=likeness)
    return f"; did you mean {close[0]!r}?" if close else ""
