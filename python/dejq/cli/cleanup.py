"""``dejq cleanup``: deletes what ended long ago."""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta, timezone

import dejq
from dejq.cli.app import client_of
from dejq.cli.flags import DRY_RUN, JSON, STORE, Flag, seconds, verb, whole
from dejq.cli.jobs import every_page
from dejq.cli.looks import shown_progress
from dejq.cli.talk import OK, CommandError, count, say, show_json
from dejq.info import State

_BATCH = 1000
_FINAL: tuple[State, ...] = ("finished", "failed", "cancelled")


@verb(
    "dejq cleanup --older-than 7d",
    Flag(("--older-than",), "jobs that ended longer ago: seconds, or 90m, 2h, 7d", seconds, in_environment=False,
         more={"metavar": "S"}),
    Flag(("--batch",), "jobs of one call; default 1,000", whole, default=_BATCH, more={"metavar": "N"}),
    *STORE,
    JSON,
    DRY_RUN,
)  # fmt: skip
def cleanup(given: argparse.Namespace) -> int:
    """Deletes jobs that ended long ago.

    Those that finished, failed or were cancelled. A batch at a time, so that nobody waits for it; it may be cut
    short and repeated.
    """
    if given.older_than is None:
        raise CommandError("cleanup needs to know which jobs are old, for example: dejq cleanup --older-than 7d")
    client = client_of(given)
    if given.dry_run:
        would = _old_ones(client, given.older_than)
        if given.json:
            show_json({"deleted": 0, "would_be": would})
        else:
            say(f"would delete {count(would, 'job')}; nothing was done")
        return OK
    deleted = 0
    try:
        with shown_progress("deleted") as progress:
            while batch := client.delete_finished(given.older_than, batch=given.batch):
                deleted += batch
                progress(deleted)
    except BaseException:
        # What is gone is gone, also when it was cut short.
        if deleted:
            say(f"deleted {count(deleted, 'job')}")
        raise
    if given.json:
        show_json({"deleted": deleted})
    else:
        say(f"deleted {count(deleted, 'job')}")
    return OK


def _old_ones(client: dejq.Client, older_than: float) -> int:
    """Looks at every job that ended: stores count by state, not by age."""
    ended_before = datetime.now(timezone.utc) - timedelta(seconds=older_than)
    found = 0
    with shown_progress("looking for jobs: found") as progress:
        for state in _FINAL:
            # Whatever ended so long ago was enqueued before that.
            for page in every_page(client, state, None, older_than):
                found += sum(job.finished_at is not None and job.finished_at < ended_before for job in page)
                progress(found)
    return found
