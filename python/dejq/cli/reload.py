"""Python files that change, for ``--reload``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from dejq.cli.talk import CommandError


def watch(changed: Callable[[list[str]], None]) -> None:
    """Calls `changed` with the paths whenever Python files below the current folder change, until the process ends.

    Raises:
        CommandError: watchfiles is not installed.
    """
    try:
        import watchfiles
    except ImportError:
        raise CommandError("--reload needs watchfiles, which is not installed: pip install 'dejq[cli]'") from None
    here = Path.cwd()

    def run() -> None:
        for changes in watchfiles.watch(here, watch_filter=watchfiles.PythonFilter(), raise_interrupt=False):
            changed(sorted({str(Path(path).relative_to(here)) for _, path in changes}))

    threading.Thread(target=run, name="dejq-reload", daemon=True).start()
