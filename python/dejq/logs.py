"""Formatters for `logging`: for what dejq logs and what your handlers log."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any

from dejq._logging import JOB_FIELDS
from dejq._secrets import plain, scrub

__all__ = ["JsonFormatter", "TextFormatter"]

# What `logging` itself puts on a record; the rest came by `extra=`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """A line for people: the time and the message, and no passwords.

    Args:
        prefix: Stands before each message, as which of several processes wrote it.
    """

    def __init__(self, prefix: str = "") -> None:
        super().__init__(f"%(asctime)s  {prefix.replace('%', '%%')}%(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The record as text; tracebacks stand below the line."""
        return scrub(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line.

    Its keys: ``time`` (ISO 8601, UTC, by the millisecond), ``level``, ``logger``, ``message``; ``exception`` (the
    traceback) and ``stack`` if there are; and every field given by ``extra=``, so with records about a job its
    ``job_id``, ``job_type``, ``chain_id`` and ``attempt``. What JSON cannot say is written as its ``str()``.
    Passwords in URLs, in ``password=…`` and under a key of such a name are replaced; a body is in no record of dejq.

    Args:
        fields: Keys that every line has besides, as which of several processes wrote it.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        at = datetime.fromtimestamp(record.created, timezone.utc)
        # The fields of a job are on every record of dejq, and empty when it is about none.
        extra = {
            name: value
            for name, value in vars(record).items()
            if name not in _STANDARD and not (value is None and name in JOB_FIELDS)
        }
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields,
            **extra,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        text = json.dumps(plain(line), ensure_ascii=False)
        # A lone surrogate, which no stream can write, becomes the escape that JSON has for it.
        return text.encode("utf-8", "backslashreplace").decode()
