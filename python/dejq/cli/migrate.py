"""``dejq migrate``: creates or upgrades what the store needs."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from dejq.cli.app import client_of
from dejq.cli.flags import DRY_RUN, JSON, STORE, Flag, verb
from dejq.cli.talk import NO_SCHEMA, OK, say, show, show_json


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
