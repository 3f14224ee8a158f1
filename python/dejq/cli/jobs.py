"""``dejq list`` and ``inspect``: looking at jobs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, get_args

import dejq
from dejq._secrets import AsItIs
from dejq.cli.app import client_of
from dejq.cli.flags import JSON, STORE, Flag, seconds, switch, verb, whole
from dejq.cli.looks import Column, show_table
from dejq.cli.talk import OK, count, say, show, show_json, since, span, visible
from dejq.info import State

# Jobs come with their bodies: so many in a page at first, and so many bytes in one that is large.
_PAGE = 100
_LARGEST_PAGE = 20_000
_PAGE_BYTES = 8 * 1024 * 1024
# What a look at a chain goes through besides its own jobs: others may have been enqueued at the same time.
_MORE_PAGES = 10

# Which jobs are meant has no variable: one that was forgotten would mean others than those that were typed.
TYPE = Flag(("--type",), "only this type", in_environment=False, more={"metavar": "TYPE"})
OLDER_THAN = Flag(("--older-than",), "only jobs enqueued longer ago: seconds, or 250ms, 10m, 2h, 7d", seconds,
                  in_environment=False, more={"metavar": "S"})  # fmt: skip


@verb(
    "dejq list --state failed --type email:v1",
    Flag(("--state",), f"only this state: {', '.join(get_args(State))}", in_environment=False,
         more={"choices": get_args(State), "metavar": "STATE"}),
    TYPE,
    OLDER_THAN,
    Flag(("--limit",), "at most so many; default 100", whole, default=100, more={"metavar": "N"}),
    Flag(("--after",), "only those behind this one: the last id of the page before", in_environment=False,
         more={"metavar": "ID"}),
    *STORE,
    JSON,
)  # fmt: skip
def list_(given: argparse.Namespace) -> int:
    """Lists jobs in the order in which they were enqueued.

    Without their bodies. Not on SQS, which can only count.
    """
    found = client_of(given).list_jobs(
        state=given.state, type=given.type, older_than=given.older_than, limit=given.limit, after=given.after
    )
    if given.json:
        show_json([as_json(job) for job in found])
    elif found:
        now = datetime.now(timezone.utc)
        columns = [
            Column("ID"),
            Column("STATE"),
            Column("TYPE", gives_way=True),
            Column("AGE", is_number=True),
            Column("CHAIN", is_number=True),
            Column("ERROR", gives_way=True),
        ]
        show_table(
            columns,
            [[job.id, job.state, job.type, span(since(job.enqueued_at, now)), place(job), job.error or ""]
             for job in found],
        )  # fmt: skip
    if not found:
        say("no job fits" if given.state or given.type or given.older_than or given.after else "there are no jobs")
    elif len(found) == given.limit:
        say(f"{count(len(found), 'job')}; there may be more: --after {found[-1].id}")
    return OK


SHOW_BODY = switch("--show-body", "print the body, too, as it is, with whatever is secret in it")


@verb(
    "dejq inspect 01890a5d-ac96-774b-bcce-b302099a8057",
    Flag(("ID",), "of the job", in_environment=False),
    SHOW_BODY,
    *STORE,
    JSON,
)
def inspect(given: argparse.Namespace) -> int:
    """Shows what is known of one job.

    Its state, its chain, when it did what, and why it failed. Bodies may be secret, so only --show-body prints
    it. Not on SQS, which can only count.
    """
    client = client_of(given)
    job = client.get_job(given.id)
    chain = chain_of(client, job)
    if given.json:
        body = {"body": AsItIs(_decoded(job))} if given.show_body else {}
        steps = [{"id": one.id, "position": one.position, "type": one.type, "state": one.state} for one in chain]
        show_json(as_json(job) | {"chain": steps} | body)
        return OK
    for name, text in facts(job, chain, datetime.now(timezone.utc)):
        show("\n".join(f"{'' if place else name:<9}  {line}" for place, line in enumerate(text.split("\n"))))
    if given.show_body:
        import json

        # Not scrubbed: who asks for it wants what is there.
        print(visible(json.dumps(_decoded(job), indent=2, ensure_ascii=False)), flush=True)
    return OK


def place(job: dejq.JobInfo) -> str:
    """Where in its chain it stands; empty for a single job."""
    return f"{job.position}/{job.chain_length}" if job.chain_length > 1 else ""


def as_json(job: dejq.JobInfo) -> dict[str, Any]:
    """All that is known of a job but for its body, of which there is only the size; times as ISO 8601."""
    names = ("id", "type", "state", "attempt", "max_attempts", "rescues", "chain_id", "position", "chain_length")
    moments = {name: getattr(job, f"{name}_at") for name in ("enqueued", "due", "started", "last_beat", "finished")}
    return {
        **{name: getattr(job, name) for name in names},
        "headers": dict(job.headers),
        "body_bytes": len(job.raw_body),
        **{f"{name}_at": None if moment is None else moment.isoformat() for name, moment in moments.items()},
        "error": job.error,
        "traceback": job.traceback,
    }


def facts(job: dejq.JobInfo, chain: list[dejq.JobInfo], now: datetime) -> Iterator[tuple[str, str]]:
    """What is known of a job, each with its name, in words. Without its body."""
    yield "job", f"{job.type}  {job.id}"
    most = "" if job.max_attempts is None else f" of {job.max_attempts}"
    yield "state", job.state + (f", attempt {job.attempt}{most}" if job.attempt else "")
    if job.chain_length > 1:
        steps = [f"{one.position}/{one.chain_length}  {one.state:<9}  {one.id}  {one.type}" for one in chain]
        if missing := job.chain_length - len(chain):
            steps.append(f"{missing} more were deleted, or are not found among jobs enqueued at the same time")
        yield "chain", "\n".join(steps)
    yield from _times(job, now)
    if job.rescues:
        yield "rescued", f"{count(job.rescues, 'time')}: its worker was lost"
    if job.headers:
        yield "headers", "\n".join(f"{name}={value}" for name, value in job.headers.items())
    yield "body", f"{count(len(job.raw_body), 'byte')} of JSON"
    if job.error:
        yield "error", (job.traceback or job.error).rstrip()
    if job.state in ("failed", "cancelled"):
        yield "next", f"dejq requeue {job.id}"
    elif job.state != "finished":
        yield "next", f"dejq cancel {job.id}"


def _times(job: dejq.JobInfo, now: datetime) -> Iterator[tuple[str, str]]:
    ran = job.finished_at - job.started_at if job.finished_at and job.started_at else timedelta()
    for name, at in (
        ("enqueued", job.enqueued_at),
        ("due", job.due_at),
        ("started", job.started_at),
        ("last beat", job.last_beat_at),
        ("ended", job.finished_at),
    ):
        if at is not None:
            ago = f"in {span(at - now)}" if at > now else f"{span(now - at)} ago"
            after = f", after {span(ran)}" if name == "ended" and ran > timedelta() else ""
            yield name, f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC, {ago}{after}"


def chain_of(client: dejq.Client, job: dejq.JobInfo) -> list[dejq.JobInfo]:
    """The jobs of its chain that can be found, in order.

    No store looks up chains. But their ids begin with the time at which they were made, all in one call, so that
    these jobs are among the next ones from there on.
    """
    if job.chain_length == 1:
        return [job]
    from uuid import UUID

    found = {job.position: job}
    # The last id that could have been made before that millisecond.
    after = str(UUID(int=(UUID(job.chain_id).int >> 80 << 80) - 1))
    for _ in range(_MORE_PAGES + job.chain_length // _PAGE):
        page = client.list_jobs(after=after, limit=_PAGE)
        found |= {one.position: one for one in page if one.chain_id == job.chain_id}
        if len(found) == job.chain_length or len(page) < _PAGE:
            break
        after = page[-1].id
    return [found[position] for position in sorted(found)]


def every_page(
    client: dejq.Client, state: State, type: str | None, older_than: float | None
) -> Iterator[list[dejq.JobInfo]]:
    """All jobs that fit, a page at a time.

    Pages grow while their bodies are small, for on Redis each of them costs a look at every job.
    """
    after, limit = None, _PAGE
    while True:
        page = client.list_jobs(state=state, type=type, older_than=older_than, limit=limit, after=after)
        yield page
        if len(page) < limit:
            return
        after = page[-1].id
        if 4 * sum(len(job.raw_body) for job in page) <= _PAGE_BYTES:
            limit = min(4 * limit, _LARGEST_PAGE)


def _decoded(job: dejq.JobInfo) -> Any:
    try:
        return job.body
    except ValueError:
        # Somebody else put it there.
        return job.raw_body.decode(errors="backslashreplace")
