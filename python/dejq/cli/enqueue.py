"""``dejq enqueue``: stores a job, or a chain."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import dejq
from dejq.cli.app import client_of
from dejq.cli.flags import DRY_RUN, JSON, STORE, Flag, pair, seconds, verb, whole
from dejq.cli.talk import OK, CommandError, say, show, show_json


@verb(
    "dejq enqueue email:v1 '{\"to\": \"ada@example.org\"}' --then report:v1 '{\"to\": \"ada@example.org\"}'",
    Flag(("TYPE",), "the job's type", in_environment=False),
    Flag(("BODY",), "its body: JSON, @FILE, or - for standard input; default null", in_environment=False,
         more={"nargs": "?"}),
    Flag(("--then",), "the next job of the chain; may be repeated", default=(), in_environment=False,
         more={"nargs": "+", "action": "append", "metavar": ("TYPE", "BODY")}),
    Flag(("--on-failure",), "when a job of the chain fails: continue (default) or cancel the rest",
         default="continue", more={"choices": ("continue", "cancel")}),
    Flag(("--delay",), "how long the first job waits: seconds, or 250ms, 10m, 2h, 7d", seconds,
         more={"metavar": "S"}),
    Flag(("--unique",), "nothing is stored while a job of this type with this key is not final",
         more={"metavar": "KEY"}),
    Flag(("--max-attempts",), "runs of each job whose handler fails", whole, more={"metavar": "N"}),
    Flag(("--header",), "travels with each job; may be repeated", pair, default=(),
         more={"action": "append", "metavar": "KEY=VALUE"}),
    *STORE,
    JSON,
    DRY_RUN,
)  # fmt: skip
def enqueue(given: argparse.Namespace) -> int:
    """Stores a job, or a chain of jobs, and prints the ids."""
    steps = [[given.type] if given.body is None else [given.type, given.body], *given.then]
    if long := next((step for step in steps if len(step) > 2), None):
        raise CommandError(f"--then takes a type and a body, and here come {len(long)} words; quote the JSON: '…'")
    headers = dict(given.header)
    jobs = [
        dejq.PendingJob(
            step[0],
            _body(*step),
            delay=None if place else given.delay,
            unique=None if place else given.unique,
            max_attempts=given.max_attempts,
            headers=headers,
        )
        for place, step in enumerate(steps)
    ]
    client = client_of(given)
    if given.dry_run:
        dejq.memory().enqueue(*jobs, on_failure=given.on_failure)  # refuses what no store takes
        say(f"would enqueue on {client.store}: {' → '.join(job.type for job in jobs)}")
        return OK
    if client._in_process:
        raise CommandError(
            f"{client.store} lives in one process, so the job would be gone when this command ends; name "
            "another store with --url or DEJQ_URL, or check the job with --dry-run"
        )
    ids = client.enqueue(*jobs, on_failure=given.on_failure)
    if given.json:
        show_json({"ids": ids})
    else:
        show("\n".join(ids))
    return OK


def _body(job_type: str, text: str = "null") -> Any:
    import json

    place = "the body"
    try:
        if text == "-":
            place = "standard input"
            text = sys.stdin.read()
        elif text.startswith("@"):
            place = text[1:]
            text = Path(place).read_text(encoding="utf-8")
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{place} of {job_type!r}" if place == "the body" else f"{place}, for {job_type!r},"
        raise CommandError(f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except OSError as error:
        raise CommandError(f"{place} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise CommandError(f"{place} of {job_type!r} is not JSON: {error}") from None
