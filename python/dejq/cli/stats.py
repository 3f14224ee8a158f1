"""``dejq stats``: how many jobs there are."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import dejq
from dejq.cli.app import client_of
from dejq.cli.flags import JSON, STORE, Flag, pause, verb
from dejq.cli.looks import Column, clear_screen, show_table
from dejq.cli.rates import ALL, Rates, per_minute
from dejq.cli.talk import OK, count, show, show_json, span

_STATES = ("ready", "scheduled", "blocked", "running", "finished", "failed", "cancelled")
_SUMS = ("jobs", "chains", "attempts", "failures", "retries", "rescues")
_LENGTHS = ("duration", "mean", "p50", "p95", "p99")


@verb(
    "dejq stats --watch 2",
    *STORE,
    Flag(("--watch",), "again every S seconds, until Ctrl-C, and how many finish a minute", pause,
         more={"metavar": "S"}),
    JSON,
)  # fmt: skip
def stats(given: argparse.Namespace) -> int:
    """Prints how many jobs there are, by type and state."""
    client = client_of(given)
    rates = Rates() if given.watch else None
    try:
        while True:
            found = client.stats()
            if rates:
                rates.note(found)
            if given.json:
                show_json(_as_json(found))
            else:
                if rates:
                    clear_screen()
                _show(found, rates)
            if not given.watch:
                return OK
            time.sleep(given.watch)
    except KeyboardInterrupt:
        if given.watch:
            return OK
        raise


def _as_json(found: dejq.Stats) -> dict[str, Any]:
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


def _show(found: dejq.Stats, rates: Rates | None) -> None:
    columns = [
        Column("TYPE", gives_way=True),
        *(Column(state.upper(), is_number=True, is_spare=True) for state in _STATES),
        *([Column("DONE/MIN", is_number=True)] if rates else []),
        Column("OLDEST", is_number=True),
    ]

    def row(shown: str, name: str, of: dejq.TypeStats) -> list[str]:
        counts = [getattr(of, state) for state in _STATES]
        return [
            shown,
            *("–" if count is None else f"{count:,}" for count in counts),
            *([per_minute(rates.finished(name))] if rates else []),
            span(of.oldest_ready),
        ]

    rows = [row(name, name, found.by_type[name]) for name in sorted(found.by_type)]
    if found.bill is not None:
        # A store that is paid by the call tells no types apart.
        rows.append(row("(all)", ALL, found))
    show_table(columns, rows)
    workers = [] if found.workers is None else [count(found.workers, "worker")]
    types = [count(len(found.by_type), "type")] if found.bill is None else ["approximately"]
    lines = [[*types, *workers, f"{found.enqueued_jobs:,} waiting to run"]]
    if totals := found.totals:
        lines.append([f"{name} {getattr(totals, name):,}" for name in _SUMS])
        lines.append([f"{name} {_took(getattr(totals, name))}" for name in _LENGTHS])
    if (bill := found.bill) and bill.total:
        lines.append([f"{name} {calls:,}" for name, calls in bill.calls.items()])
    show("\n".join(" · ".join(line) for line in lines))


def _took(length: timedelta | None) -> str:
    if length is not None and length < timedelta(milliseconds=10):
        return f"{length / timedelta(milliseconds=1):.2f} ms"
    return span(length)
