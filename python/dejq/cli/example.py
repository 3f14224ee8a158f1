"""``dejq example``: the program in `dejq.example`."""

from __future__ import annotations

import argparse

from dejq.cli.flags import Flag, verb


@verb(
    "dejq example mem",
    Flag(("STORE",), "mem (default), pg, redis or sqs, on this machine; DEJQ_URL names another one",
         in_environment=False, more={"nargs": "?", "choices": ("mem", "pg", "redis", "sqs")}),
    Flag(("FOLDER",), "what to index; default: the project of the current folder", in_environment=False,
         more={"nargs": "?"}),
)  # fmt: skip
def example(given: argparse.Namespace) -> int:
    """Shows jobs at work, on your own files.

    It indexes the files below FOLDER, with chains, a slow job and a retry. The program is short and made to be
    read: python/dejq/example.py.
    """
    from dejq.example import main as run_example

    return run_example(given.store, given.folder)
