"""``dejq migrate``, ``stats`` and ``enqueue``: what is done to a store."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import dejq
from dejq.cli.app import client_of
from dejq.cli.flags import DRY_RUN, JSON, STORE, Flag, pair, pause, seconds, verb, whole
from dejq.cli.talk import NO_SCHEMA, OK, CommandError, count, say, show, show_json, span, table


@verb(
    "dejq migrate --url postgresql://localhost/app",
    Flag(("WHAT",), "status: is there something to do?  sql: show it", in_environment=False,
         more={"nargs": "?", "choices": ("status", "sql")}),
    *STORE,
    JSON,
    DRY_RUN,
)  # fmt: skip
def migrate(given: argparse.Namespace) -> int:
    """Creates or upgrades what the store needs."""
    client = client_of(given)
    if given.what is None and not given.dry_run:
        applied = client.migrate().applied
        if given.json:
            show_json({"applied": applied})
        for step in () if given.json else applied:
            show(step)
        if not applied:
            say(f"nothing to do: {client.store} is up to date")
        return OK
    findings = [finding for finding in client.check() if finding.name in ("schema", "queue")]
    needed = any(finding.level == "error" for finding in findings)
    if given.what == "sql" and needed and (script := client._native.migration_script()):
        show(script.rstrip())
        return NO_SCHEMA
    if given.json:
        show_json([asdict(finding) for finding in findings])
    for finding in () if given.json else findings:
        show(f"{finding.level:<5} {finding.text}")
    if not findings:
        say(f"nothing to do: {client.store} needs no schema")
    return NO_SCHEMA if needed else OK


_STATES = ("ready", "scheduled", "blocked", "running", "finished", "failed", "cancelled")
_SUMS = ("jobs", "chains", "attempts", "failures", "retries", "rescues")
_LENGTHS = ("duration", "mean", "p50", "p95", "p99")


@verb(
    "dejq stats --watch 2",
    *STORE,
    Flag(("--watch",), "again every S seconds, until Ctrl-C", pause, more={"metavar": "S"}),
    JSON,
)
def stats(given: argparse.Namespace) -> int:
    """Prints how many jobs there are, by type and state."""
    client = client_of(given)
    try:
        while True:
            found = client.stats()
            if given.json:
                show_json(_stats_as_json(found))
            else:
                show(("\x1b[H\x1b[2J" if given.watch and sys.stdout.isatty() else "") + _stats_as_table(found))
            if not given.watch:
                return OK
            time.sleep(given.watch)
    except KeyboardInterrupt:
        if given.watch:
            return OK
        raise


def _stats_as_json(found: dejq.Stats) -> dict[str, Any]:
    return {
        "enqueued_jobs": found.enqueued_jobs,
        "workers": found.workers,
        **_counts(found),
        "totals": None if found.totals is None else _totals(found.totals),
        "bill": None if found.bill is None else asdict(found.bill),
        "by_type": {name: _counts(found.by_type[name]) for name in sorted(found.by_type)},
    }


def _totals(found: dejq.Totals) -> dict[str, Any]:
    lengths = {f"{name}_s": getattr(found, name) for name in _LENGTHS}
    return {
        **{name: getattr(found, name) for name in _SUMS},
        **{name: None if length is None else length.total_seconds() for name, length in lengths.items()},
    }


def _counts(found: dejq.TypeStats) -> dict[str, Any]:
    oldest = found.oldest_ready
    return {
        **{state: getattr(found, state) for state in _STATES},
        "oldest_ready_s": None if oldest is None else oldest.total_seconds(),
    }


def _stats_as_table(found: dejq.Stats) -> str:
    rows = [["TYPE", *(state.upper() for state in _STATES), "OLDEST"]]
    for name in sorted(found.by_type):
        of_type = found.by_type[name]
        counts = [getattr(of_type, state) for state in _STATES]
        rows.append([name, *("–" if count is None else f"{count:,}" for count in counts), span(of_type.oldest_ready)])
    if found.bill is not None:
        # A store that is paid by the call tells no types apart.
        counts = [getattr(found, state) for state in _STATES]
        rows.append(["(all)", *("–" if count is None else f"{count:,}" for count in counts), span(found.oldest_ready)])
    workers = [] if found.workers is None else [count(found.workers, "worker")]
    types = [count(len(found.by_type), "type")] if found.bill is None else ["approximately"]
    lines = [[*types, *workers, f"{found.enqueued_jobs:,} waiting to run"]]
    if totals := found.totals:
        lines.append([f"{name} {getattr(totals, name):,}" for name in _SUMS])
        lines.append([f"{name} {_took(getattr(totals, name))}" for name in _LENGTHS])
    if (bill := found.bill) and bill.total:
        lines.append([f"{name} {calls:,}" for name, calls in bill.calls.items()])
    return "\n".join([table(rows), *(" · ".join(line) for line in lines)])


def _took(length: timedelta | None) -> str:
    if length is not None and length < timedelta(milliseconds=10):
        return f"{length / timedelta(milliseconds=1):.2f} ms"
    return span(length)


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
