"""``dejq completion``: what makes a shell complete verbs and flags."""

from __future__ import annotations

import argparse

from dejq.cli.flags import Flag, make_parser, verb
from dejq.cli.talk import OK, CommandError

_SHELLS = ("bash", "zsh", "fish", "tcsh")


@verb(
    "dejq completion bash",
    Flag(("SHELL",), f"{', '.join(_SHELLS)}", in_environment=False, more={"choices": _SHELLS}),
)
def completion(given: argparse.Namespace) -> int:
    """Prints a script that makes a shell complete verbs and flags.

    Needs the extra: pip install "dejq[cli]".
    """
    try:
        import shtab
    except ImportError:
        raise CommandError('completion needs shtab: pip install "dejq[cli]"') from None
    from dejq.cli import VERBS  # which has this verb among them

    print(shtab.complete(make_parser(VERBS.values()), given.shell, root_prefix="dejq"))
    return OK
