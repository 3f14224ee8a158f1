"""``dejq top``: a live screen."""

from __future__ import annotations

import argparse
import sys

from dejq.cli.app import client_of
from dejq.cli.flags import STORE, Flag, pause, switch, verb
from dejq.cli.talk import OK, CommandError


@verb(
    "dejq top --interval 5",
    Flag(("--interval",), "seconds between two looks at the store; default 2", pause, default=2.0, in_project=True,
         more={"metavar": "S"}),
    switch("--read-only", "without the keys that change something"),
    *STORE,
)  # fmt: skip
def top(given: argparse.Namespace) -> int:
    """Shows what happens, live.

    Counts and rates by type, running, failed and ready jobs; the keys stand at the bottom. Needs the extra: pip
    install "dejq[top]". On a store that can only count (SQS) it shows the counts.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandError("top needs a terminal; to write it down there is: dejq stats --watch 2")
    try:
        from dejq.cli.screen import Top
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in ("textual", "rich"):
            raise
        raise CommandError('top needs textual: pip install "dejq[top]"') from None
    client = client_of(given)
    client.stats()  # what would keep it from showing anything is said before the screen is taken
    screen = Top(client, interval=given.interval, is_read_only=given.read_only)
    screen.run()
    return screen.return_code or OK
