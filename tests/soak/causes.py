"""Why a job started again: the causes that P3 allows, each with its evidence in the history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from soak.case import SECOND, Case, Run, Span

Cause = Literal["retry", "requeue", "killed", "cut short", "paused", "cut off", "store away"]

# What cost the job its lease, without its handler having a say.
LOSSES: Final[frozenset[Cause]] = frozenset({"killed", "paused", "cut off", "store away"})
# The end of a run is stored within this time, unless something is in the way. Later, a kill is no excuse.
SETTLED: Final = 1 * SECOND
# A worker that is late by this much with what it says is none that was silent.
SLACK: Final = SECOND // 20

_SILENCES: Final[dict[str, Cause]] = {
    "pause": "paused",
    "blink": "paused",
    "hole": "cut off",
    "gap": "cut off",
    "restart": "store away",
    "sleep": "store away",
}


def explain(case: Case, before: Run, run: Run) -> Cause | None:
    """The cause of `run`, given the run that had the lease before it; None if there is none."""
    if _was_requeued(before, run):
        return "requeue"
    if _is_retry(case, before, run):
        return "retry"
    if _was_killed(case, before, run):
        return "killed"
    if _was_cut_short(before, run):
        return "cut short"
    return _silence(case, before, run.start)


def is_zombie(case: Case, run: Run) -> bool:
    """Was the worker itself silent until now, for so long that it had no right any more to start anything?"""
    longest, _ = _longest(run.worker.faults, run.start - case.lease - SECOND, run.start)
    over = any(run.start - SECOND // 4 <= span.end for span in run.worker.faults if span.name in _SILENCES)
    return over and longest >= _needed(case)


def is_due(case: Case, before: Run, at: int) -> bool:
    """Has the wait between two attempts passed by then?"""
    assert before.end is not None
    wait = before.job.plan.wait if before.how == "retried" else case.began.backoff
    return at >= before.end + round(wait * SECOND) - SLACK


def limit(case: Case, run: Run) -> int | None:
    """Most attempts of the job of a run; None: a handler that asks for another one gets it."""
    if case.began.store == "sqs":
        return None  # the queue's redrive policy decides
    return run.job.plan.attempts or (None if run.how == "retried" else 1)


def _was_requeued(before: Run, run: Run) -> bool:
    steps = (step for step in run.job.steps if step.verb == "requeue" and step.outcome != "refused")
    return any(before.start < step.done and step.asked < run.start for step in steps)


def _is_retry(case: Case, before: Run, run: Run) -> bool:
    if before.how not in ("raised", "retried") or before.end is None or before.end > run.start:
        return False
    most = limit(case, before)
    if case.began.store == "sqs":
        # What counts there are receives, of which some bring no run.
        return run.event.attempt > before.event.attempt
    return run.event.attempt == before.event.attempt + 1 and (most is None or before.event.attempt < most)


def _was_killed(case: Case, before: Run, run: Run) -> bool:
    died = before.worker.died
    if died is None or run.start <= died:
        return False
    troubled = _is_troubled(case, before, (before.end or died) - case.lease, died)
    if before.end is not None and died - before.end > SETTLED and not troubled:
        return False
    # Its last beat was no longer ago than a beat, so that its lease was good for two more; one is for delays.
    return troubled or run.start >= died + case.heartbeat


def _was_cut_short(before: Run, run: Run) -> bool:
    """A stop that did not wait: the job is given back, and anybody may start it at once."""
    hurried = before.worker.hurried
    return hurried is not None and run.start > hurried and (before.end is None or before.end > hurried - SETTLED)


def _is_troubled(case: Case, run: Run, since: int, until: int) -> bool:
    """Was anything wrong around the worker in that time, except its death?"""
    spans = [span for span in (*run.worker.faults, *case.store_faults) if span.name != "kill"]
    return any(span.begin < until and span.end > since for span in spans)


def _needed(case: Case) -> int:
    """The shortest silence that can cost a lease: the beat before it is up to one beat old, and a little late."""
    return case.lease - case.heartbeat - case.heartbeat // 4


def _silence(case: Case, before: Run, until: int) -> Cause | None:
    spans = [*before.worker.faults, *case.store_faults]
    if not before.told or before.how == "returned":
        # When the store stands still, all workers are silent, and nobody may take anything from another; but a handler
        # that was told so, and gave up, is to have another run, which is the same attempt.
        spans = [span for span in spans if span.name != "sleep"]
    if before.end is not None:
        # What came later than that found its end stored.
        spans = [span for span in spans if span.begin < before.end + SETTLED]
    longest, name = _longest(spans, before.start - case.lease, until)
    return _SILENCES[name] if longest >= _needed(case) else None


def _longest(spans: Iterable[Span], since: int, until: int) -> tuple[int, str]:
    """The longest silence in that time, and the name of what began it; two that meet are one."""
    longest, name = 0, ""
    begin = end = since
    first = ""
    for span in sorted((span for span in spans if span.name in _SILENCES), key=lambda span: span.begin):
        if span.end < since or span.begin > until:
            continue
        if span.begin > end + SECOND // 4 or not first:
            begin, first = max(span.begin, since), span.name
            end = begin
        end = max(end, min(span.end, until))
        if end - begin > longest:
            longest, name = end - begin, first
    return longest, name
