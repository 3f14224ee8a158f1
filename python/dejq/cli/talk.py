"""What the command line says: data to stdout, talk to stderr, and both without passwords."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta

import dejq
from dejq._secrets import plain, scrub

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


# Control characters but for tab and line end, and those that turn the direction of writing.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with escapes for what would move the cursor: what handlers raise is not written for terminals."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


_is_json = False


def speak_json() -> None:
    """From now on talk has the form of JSON log lines, between which it stands."""
    global _is_json
    _is_json = True


def worded(text: str) -> str:
    """The text as `say` writes it."""
    if not _is_json:
        return visible(scrub(text))
    import logging

    from dejq.logs import JsonFormatter

    said = {"name": "dejq.worker", "levelname": "INFO", "msg": " ".join(text.split())}
    return JsonFormatter().format(logging.makeLogRecord(said))


def say(text: str) -> None:
    """Talk: for people, on stderr."""
    # In one piece: the log is written to the same place by other threads.
    sys.stderr.write(f"{worded(text)}\n")
    sys.stderr.flush()


def show(text: str) -> None:
    """Data: for people and programs, on stdout."""
    print(visible(scrub(text)), flush=True)


def show_json(value: object) -> None:
    """Data for programs: one line of JSON."""
    import json

    print(json.dumps(plain(value)), flush=True)


def progress(text: str) -> None:
    """A line on the terminal that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{visible(scrub(text))}", end="", file=sys.stderr, flush=True)


def count(number: int, thing: str) -> str:
    """A number with its noun: ``1 job``, ``2 jobs``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def span(length: timedelta | None) -> str:
    """A length of time as people say it."""
    if length is None:
        return "–"
    seconds = length.total_seconds()
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def since(moment: datetime, now: datetime) -> timedelta:
    """How long ago; not less than no time, for clocks differ."""
    return max(now - moment, timedelta())


def close(word: str, there: Sequence[str], likeness: float = 0.6) -> str:
    """A question whether `word` was meant to be one of those that are there; empty if none is like it."""
    import difflib

    close = difflib.get_close_matches(word, there, n=1, cutoff=likeness)
    return f"; did you mean {close[0]!r}?" if close else ""
