"""A case before its judges: whose lease each run had, and how each job must have ended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from soak.case import Case, Job, Run
from soak.causes import LOSSES, Cause, explain, is_zombie, limit


@dataclass(frozen=True)
class Finding:
    """Something that must not be.

    Attributes:
        verdict: The rule's name.
        text: What, in a sentence.
        job: The number of the job that it is about.
        at: When, in nanoseconds of CLOCK_MONOTONIC.
    """

    verdict: str
    text: str
    job: int | None = None
    at: int | None = None


@dataclass
class Trial:
    """What several rules need to know."""

    case: Case
    causes: dict[Run, Cause] = field(init=False, default_factory=dict[Run, "Cause"])
    unexplained: list[tuple[Run, Run]] = field(init=False, default_factory=list[tuple[Run, Run]])
    holders: dict[Job, list[Run]] = field(init=False)
    states: dict[str, str] = field(init=False)
    reached: Counter[str] = field(init=False, default_factory=Counter[str])
    _fates: dict[Job, str | None] = field(init=False, default_factory=dict[Job, "str | None"])

    def __post_init__(self) -> None:
        self.states = {id: state for state, ids in self.case.found.items() for id in ids}
        self.holders = {job: self._follow(job) for job in self.case.jobs.values()}

    def _follow(self, job: Job) -> list[Run]:
        """The runs that had the lease, one after the other, each with the cause of its start."""
        holders: list[Run] = job.runs[:1]
        for run in job.runs[1:]:
            cause = explain(self.case, holders[-1], run)
            if cause is None:
                self.unexplained.append((holders[-1], run))
            else:
                self.causes[run] = cause
            if cause or not is_zombie(self.case, run):
                holders.append(run)
        return holders

    def losses(self, job: Job, *, surely: bool = False) -> int:
        """How often its lease was lost, at most; `surely` leaves out what its handler may have given back."""
        return sum(
            self.causes.get(run) in LOSSES
            and not (surely and before.told and before.end is not None and before.end < run.start)
            for before, run in pairwise(self.holders[job])
        )

    def fate(self, job: Job) -> str | None:
        """The state in which it must be at the end; None if several would be right."""
        if job not in self._fates:
            self._fates[job] = self._fate(job)
        return self._fates[job]

    def _fate(self, job: Job) -> str | None:
        step = job.steps[-1] if job.steps else None
        if step and step.outcome == "unclear":
            return None
        if step and step.outcome == "done" and step.verb != "requeue":
            return {"cancel": "cancelled", "finish": "finished"}[step.verb]
        runs = self.holders[job]
        if not runs:
            return "cancelled" if self.ended_with_those_before(job) else "waiting"
        last = runs[-1]
        most = limit(self.case, last)
        match last.how:
            case "returned":
                return "finished"
            case "discarded":
                return "failed"
            case "raised" | "retried" if most is not None and last.event.attempt >= most:
                return "failed"
            case None if last.worker.died and self.losses(job) >= self.case.began.max_rescues:
                return "failed"
            case _:
                return "waiting"

    def ended_with_those_before(self, job: Job) -> bool:
        """Was it cancelled because a job before it in its chain had failed?"""
        before = job.before
        if not job.chain.plan.cancels or before is None:
            return False
        return self.fate(before) in ("failed", "cancelled")

    def state(self, job: Job) -> str | None:
        return self.states.get(job.id) if job.id else None
