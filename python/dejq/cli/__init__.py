"""The command line: ``dejq``, or ``python -m dejq``.

A file per verb, or for a few that belong together. To add one, write it with `flags.verb` and name it in `VERBS`.
What costs time to import is imported where it is used: ``dejq --help`` must be quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import dejq
from dejq.cli.bench import bench
from dejq.cli.cleanup import cleanup
from dejq.cli.completion import completion
from dejq.cli.doctor import doctor
from dejq.cli.enqueue import enqueue
from dejq.cli.example import example
from dejq.cli.flags import Verb, fill_in, make_parser
from dejq.cli.jobs import inspect, list_
from dejq.cli.migrate import migrate
from dejq.cli.operate import cancel, finish, requeue
from dejq.cli.stats import stats
from dejq.cli.talk import FAILED, CommandError, exit_code, say
from dejq.cli.top import top
from dejq.cli.worker import worker

# By name, in the order of ``--help``.
VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        worker, migrate, stats, top, list_, inspect, enqueue, requeue, cancel, finish, cleanup, doctor, bench, example,
        completion,
    )
}  # fmt: skip

_INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments; default: the program's own.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 3 the store cannot be reached, 4 it is not set up or
        too old.

    Raises:
        SystemExit: After ``--help`` and ``--version``, and for arguments that do not parse.
    """
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="backslashreplace")  # a dash is no reason to fail on a terminal of another age
    given = make_parser(VERBS.values()).parse_args(argv)
    given.argv = sys.argv[1:] if argv is None else list(argv)  # for processes that run the same command
    try:
        verb = VERBS[given.verb]
        fill_in(given, verb.flags)
        return verb.run(given)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough (`dejq stats | head`). Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (CommandError, dejq.DejqError) as error:
        say(f"dejq: {error}")
        return exit_code(error)
    except Exception:
        import traceback

        say(f"dejq: this is a bug in dejq, please report it\n{traceback.format_exc()}")
        return FAILED
