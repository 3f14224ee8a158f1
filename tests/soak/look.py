"""What is looked at in the store when the run comes to its end."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from dejq import Client, DejqError
from dejq.info import State
from soak.history import Counted, Found, Leaked, Left, Operated, Operating, Recorder
from soak.workload import CANARY, FOREVER

_STATES: Final[tuple[State, ...]] = ("ready", "scheduled", "blocked", "running", "finished", "failed", "cancelled")
_PAGE: Final = 5_000
_steps: Final = itertools.count()


class _Numbered(msgspec.Struct):
    """All that counts of a body here."""

    n: int


def is_empty(client: Client) -> bool:
    """Waits or runs nothing?"""
    stats = client.stats()
    return not stats.enqueued_jobs and not stats.running


def operate_on_orphans(client: Client, recorder: Recorder) -> None:
    """Cancels jobs that wait for an operator who was killed before he came to them."""
    if client.store == "sqs":
        return
    for info in client.list_jobs(state="scheduled", limit=100):
        if info.due_at and (info.due_at - info.enqueued_at).total_seconds() >= FOREVER:
            step = next(_steps)
            recorder.write(Operating(step=step, verb="cancel", job=info.body["n"]))
            try:
                client.cancel_job(info.id)
            except DejqError:
                recorder.write(Operated(step=step, outcome="refused"))
            else:
                recorder.write(Operated(step=step, outcome="done"))


def look(client: Client, recorder: Recorder, left: Callable[[], dict[str, int]]) -> bool:
    """Writes down all counts and all jobs, deletes these, and says whether the store is then empty."""
    stats = client.stats()
    counts: dict[str, int] = {name: count for name in _STATES if (count := getattr(stats, name)) is not None}
    if totals := stats.totals:
        counts |= {"jobs": totals.jobs, "chains": totals.chains, "retries": totals.retries}
    recorder.write(Counted(counts=counts))
    if client.store != "sqs":
        for state in _STATES:
            _list(client, recorder, state)
        while client.delete_finished(0, batch=_PAGE):
            pass
    things = left()
    recorder.write(Left(things=things))
    return not any(things.values())


def logs(folder: Path) -> Path:
    """Where the processes of a run write what they have to say."""
    folder = folder / "logs"
    folder.mkdir(exist_ok=True)
    return folder


def look_for_leaks(folder: Path, recorder: Recorder) -> None:
    """Looks for parts of bodies in the logs."""
    for log in sorted(logs(folder).iterdir()):
        for line in log.read_text(errors="replace").splitlines():
            if CANARY in line:
                recorder.write(Leaked(process=log.stem, text=line))


def _list(client: Client, recorder: Recorder, state: State) -> None:
    numbered = msgspec.json.Decoder(_Numbered)
    after: str | None = None
    while True:
        infos = client.list_jobs(state=state, limit=_PAGE, after=after)
        numbers = [numbered.decode(info.raw_body).n for info in infos]
        recorder.write(Found(state=state, ids=[info.id for info in infos], numbers=numbers))
        if len(infos) < _PAGE:
            return
        after = infos[-1].id
