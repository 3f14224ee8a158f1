"""``dejq requeue``, ``cancel`` and ``finish``: stepping in, by id or by filter."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import dejq
from dejq.cli.app import client_of
from dejq.cli.flags import DRY_RUN, JSON, STORE, Flag, switch, verb, whole
from dejq.cli.jobs import OLDER_THAN, TYPE, every_page
from dejq.cli.looks import shown_progress
from dejq.cli.talk import FAILED, OK, CommandError, count, say, show_json
from dejq.info import State

_WAITING: tuple[State, ...] = ("blocked", "scheduled", "ready")


@dataclass(frozen=True)
class Operation:
    """What is done to jobs, and to which.

    Attributes:
        verb: As typed.
        done: "requeued".
        of: From these states.
        usual: From these when a filter names none.
        backwards: Begin with those that were enqueued last?
        method: Does it to one job.
    """

    verb: str
    done: str
    of: tuple[State, ...]
    usual: tuple[State, ...]
    backwards: bool
    method: Callable[[dejq.Client, str], None]


# In a chain, the jobs after one that fails are cancelled with it and come back with it, so it is requeued first. They
# start when it ends, so they are ended first.
REQUEUE = Operation(
    "requeue", "requeued", ("failed", "cancelled", "scheduled", "running"), ("failed", "cancelled"), False,
    dejq.Client.requeue_job,
)  # fmt: skip
CANCEL, FINISH = (
    Operation(verb, done, (*_WAITING, "running"), (*_WAITING, "running"), True, method)
    for verb, done, method in (
        ("cancel", "cancelled", dejq.Client.cancel_job),
        ("finish", "finished", dejq.Client.finish_job),
    )
)

YES = switch("--yes", "do not ask")


def _flags(operation: Operation) -> tuple[Flag, ...]:
    usual = f"; without it, {' and '.join(operation.usual)}" if operation.usual != operation.of else ""
    return (
        Flag(("IDS",), "of jobs; or say by --state, --type or --older-than which ones", in_environment=False,
             more={"nargs": "*"}),
        Flag(("--state",), f"those in this state: {', '.join(operation.of)}{usual}", in_environment=False,
             more={"choices": operation.of, "metavar": "STATE"}),
        TYPE,
        OLDER_THAN,
        Flag(("--limit",), "at most so many", whole, more={"metavar": "N"}),
        YES,
        *STORE,
        JSON,
        DRY_RUN,
    )  # fmt: skip


@verb("dejq requeue --state failed --type email:v1", *_flags(REQUEUE))
def requeue(given: argparse.Namespace) -> int:
    """Runs jobs again that failed, were cancelled or were lost.

    Also those that wait for a retry. Their attempts count anew. Jobs that are chosen by a filter are counted,
    and you are asked before anything is done.
    """
    return _operate(REQUEUE, given)


@verb("dejq cancel --type email:v1 --dry-run", *_flags(CANCEL))
def cancel(given: argparse.Namespace) -> int:
    """Cancels jobs.

    Running ones are told to return, by the next beat of their worker. Jobs that are chosen by a filter are
    counted, and you are asked before anything is done.
    """
    return _operate(CANCEL, given)


@verb("dejq finish 01890a5d-ac96-774b-bcce-b302099a8057", *_flags(FINISH))
def finish(given: argparse.Namespace) -> int:
    """Declares jobs finished.

    The next ones of their chains run then. Jobs that are chosen by a filter are counted, and you are asked
    before anything is done.
    """
    return _operate(FINISH, given)


def _operate(operation: Operation, given: argparse.Namespace) -> int:
    by_filter = bool(given.state or given.type or given.older_than is not None)
    if by_filter == bool(given.ids):
        wrong = "and not both" if by_filter else f"for example: dejq {operation.verb} --state {operation.usual[0]}"
        raise CommandError(f"{operation.verb} takes the ids of jobs or a filter, {wrong}")
    client = client_of(given)
    # Of ids, twice the same is once.
    ids = _fitting(client, operation, given) if by_filter else list(dict.fromkeys(given.ids))[: given.limit]
    if given.dry_run:
        return _say_what_would_be(client, operation, ids, given)
    if by_filter and ids and not given.yes and not _agreed(f"{operation.verb} {count(len(ids), 'job')}?"):
        say("nothing was done")
        return FAILED
    done, refused = _work(operation, client, ids)
    if given.json:
        show_json({operation.done: done, "refused": refused})
    elif by_filter:
        say(f"{operation.done} {count(done, 'job')}{_left(refused)}")
    else:
        for text in refused.values():
            say(f"dejq: {text}")
        say(f"{operation.done} {count(done, 'job')}")
    # Jobs move on while a filter is worked through; an id was meant.
    return FAILED if refused and not (by_filter and done) else OK


def _work(operation: Operation, client: dejq.Client, ids: list[str]) -> tuple[int, dict[str, str]]:
    """How many were done, and why the others could not be."""
    done, refused = 0, dict[str, str]()
    try:
        with shown_progress(operation.done, len(ids)) as progress:
            for place, id in enumerate(ids):
                try:
                    operation.method(client, id)
                    done += 1
                except (dejq.UnknownJob, dejq.WrongState) as error:
                    refused[id] = str(error)
                progress(place + 1)
    except BaseException:
        # What is done is done, also when it was cut short.
        if done:
            say(f"{operation.done} {count(done, 'job')}")
        raise
    return done, refused


def _left(refused: dict[str, str]) -> str:
    if not refused:
        return ""
    first = next(iter(refused.values()))
    return f"; {len(refused):,} could not be, the first one because: {first}"


def _fitting(client: dejq.Client, operation: Operation, given: argparse.Namespace) -> list[str]:
    """Ids of the jobs that fit now, in the order in which they are to be worked through."""
    states = (cast(State, given.state),) if given.state else operation.usual
    found: list[str] = []
    with shown_progress("looking for jobs: found") as progress:
        for state in states:
            for page in every_page(client, state, given.type, given.older_than):
                found += [job.id for job in page]
                progress(len(found))
    # An id begins with the time at which it was made.
    first = sorted(found)[: given.limit]
    return first[::-1] if operation.backwards else first


def _say_what_would_be(client: dejq.Client, operation: Operation, ids: list[str], given: argparse.Namespace) -> int:
    refused: dict[str, str] = {}
    for id in given.ids and ids:
        try:
            if (state := client.get_job(id).state) not in operation.of:
                refused[id] = f"it is {state}"
        except dejq.UnknownJob as error:
            refused[id] = str(error)
    would = len(ids) - len(refused)
    if given.json:
        show_json({operation.done: 0, "would_be": would, "refused": refused})
        return OK
    for id, why in refused.items():
        say(f"would not {operation.verb} {id}: {why}")
    say(f"would {operation.verb} {count(would, 'job')}; nothing was done")
    return OK


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise CommandError(f"{question} Nobody is there to answer; repeat it with --yes, or with --dry-run")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
