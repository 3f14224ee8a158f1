"""A history put in order: jobs with their runs, calls with their answers, processes with what was done to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from soak.history import (
    Asked,
    Began,
    Broken,
    Counted,
    Ended,
    Exited,
    Fault,
    FaultName,
    Found,
    Healed,
    History,
    How,
    Leaked,
    Left,
    Operated,
    Operating,
    Outcome,
    Phase,
    PlannedChain,
    PlannedJob,
    Poisoned,
    Ready,
    Refused,
    Rested,
    Started,
    Stored,
    Unclear,
    Verb,
)

SECOND = 1_000_000_000
Answer = Literal["stored", "refused", "unclear"]


@dataclass(slots=True)
class Span:
    """A fault: from before its cause to after its end."""

    name: FaultName
    target: str | None
    begin: int
    end: int


@dataclass(slots=True)
class Worker:
    """A process that ran jobs. `died` is when it may have been killed, `hurried` when it was told not to wait."""

    name: str
    types: frozenset[str] = frozenset()
    died: int | None = None
    hurried: int | None = None
    stopped: int | None = None
    code: int | None = None
    faults: list[Span] = field(default_factory=list[Span])


@dataclass(slots=True, eq=False)
class Run:
    """A call of a handler; without an end, its process died in it or the run of the soak ended before."""

    event: Started
    worker: Worker
    job: Job
    end: int | None = None
    how: How | None = None
    told: bool = False

    @property
    def start(self) -> int:
        return self.event.at

    def was_open(self, at: int) -> bool:
        return self.start <= at and (self.end is None or self.end > at)


@dataclass(slots=True)
class Step:
    """What an operator did to a job; `done` is when it returned."""

    verb: Verb
    asked: int
    done: int
    outcome: Outcome


@dataclass(slots=True, eq=False)
class Job:
    number: int
    plan: PlannedJob
    chain: Chain
    place: int
    id: str | None = None
    answer: Answer = "unclear"
    runs: list[Run] = field(default_factory=list[Run])
    steps: list[Step] = field(default_factory=list[Step])

    @property
    def before(self) -> Job | None:
        return self.chain.jobs[self.place - 1] if self.place else None


@dataclass(slots=True, eq=False)
class Call:
    """A call of `enqueue`. Without an answer, its process died in it."""

    process: str
    asked: int
    chains: list[Chain] = field(default_factory=list["Chain"])
    answered: int | None = None
    is_confirmed: bool = False

    @property
    def jobs(self) -> Iterator[Job]:
        return (job for chain in self.chains for job in chain.jobs)


@dataclass(slots=True, eq=False)
class Chain:
    """A chain; `holder` is the job that held its unique key, so that nothing was stored."""

    plan: PlannedChain
    call: Call
    jobs: list[Job] = field(default_factory=list[Job])
    holder: Job | None = None


@dataclass
class Case:
    """All that a history says."""

    began: Began
    calls: list[Call] = field(default_factory=list[Call])
    jobs: dict[int, Job] = field(default_factory=dict[int, Job])
    workers: dict[str, Worker] = field(default_factory=dict[str, Worker])
    runs: list[Run] = field(default_factory=list[Run])
    # Runs of jobs that nobody has ever asked for.
    strangers: list[Started] = field(default_factory=list[Started])
    store_faults: list[Span] = field(default_factory=list[Span])
    spans: list[Span] = field(default_factory=list[Span])
    phases: dict[str, int] = field(default_factory=dict[str, int])
    found: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    counts: dict[str, int] | None = None
    left: dict[str, int] | None = None
    codes: dict[str, int] = field(default_factory=dict[str, int])
    leaks: list[Leaked] = field(default_factory=list[Leaked])
    rested: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    last: int = 0

    @property
    def heartbeat(self) -> int:
        return round(self.began.heartbeat * SECOND)

    @property
    def lease(self) -> int:
        return 3 * self.heartbeat

    def stored(self) -> Iterable[Job]:
        """Jobs that are to have run: the confirmed ones, and those of unclear calls that turned out to be stored."""
        return (job for job in self.jobs.values() if job.answer == "stored")


def build(history: History) -> Case:
    """Puts a history in order."""
    case = Case(next(line.event for line in history if isinstance(line.event, Began)))
    case.last = history[-1].event.at
    _read_calls(case, history)
    _read_faults(case, history)
    _read_runs(case, history)
    _read_end(case, history)
    _recover(case)
    return case


def _read_calls(case: Case, history: History) -> None:
    calls: dict[tuple[str, int], Call] = {}
    holders: dict[str, Job] = {}
    steps: dict[tuple[str, int], tuple[Job, Step]] = {}
    for process, event in history:
        if isinstance(event, Asked):
            call = calls[process, event.call] = Call(process, event.at)
            for plan in event.chains:
                chain = Chain(plan, call)
                for place, job in enumerate(plan.jobs):
                    chain.jobs.append(Job(plan.first + place, job, chain, place))
                    case.jobs[plan.first + place] = chain.jobs[-1]
                call.chains.append(chain)
            case.calls.append(call)
        elif isinstance(event, (Stored, Unclear, Refused, Broken)):
            _answer(calls[process, event.call], event, holders)
        elif isinstance(event, Operating):
            step = Step(event.verb, event.at, case.last, "unclear")
            steps[process, event.step] = (case.jobs[event.job], step)
            case.jobs[event.job].steps.append(step)
        elif isinstance(event, Operated):
            _, step = steps[process, event.step]
            step.done, step.outcome = event.at, event.outcome


def _answer(call: Call, event: Stored | Unclear | Refused | Broken, holders: dict[str, Job]) -> None:
    call.answered = event.at
    jobs = list(call.jobs)
    if isinstance(event, Refused):
        for job in jobs:
            job.answer = "refused"
        return
    call.is_confirmed = isinstance(event, Stored)
    ids = [*event.sent, *event.unsent] if isinstance(event, Broken) else event.ids
    sent = len(event.sent) if isinstance(event, Broken) else len(jobs) if isinstance(event, Stored) else 0
    for job in jobs[:sent]:
        job.answer = "stored"
    for job, id in zip(jobs, ids, strict=False):
        holder = holders.setdefault(id, job)
        if holder is not job and job.chain.plan.unique is not None:
            job.chain.holder, job.answer = holder, "refused"
        else:
            job.id = id


def _read_faults(case: Case, history: History) -> None:
    open_spans: dict[int, Span] = {}
    for process, event in history:
        if isinstance(event, Fault):
            span = open_spans[event.number] = Span(event.name, event.target, event.at, case.last)
            case.spans.append(span)
            if event.target is None:
                case.store_faults.append(span)
                continue
            worker = _worker(case, event.target)
            worker.faults.append(span)
            if event.name == "kill":
                worker.died = event.at
            elif event.name == "hurry":
                worker.hurried = worker.stopped = event.at
            elif event.name == "stop":
                worker.stopped = event.at
        elif isinstance(event, Healed):
            open_spans[event.number].end = event.at
        elif isinstance(event, Poisoned):
            _worker(case, process).died = event.at
            case.spans.append(Span("kill", process, event.at, event.at))
        elif isinstance(event, Ready):
            _worker(case, process).types = frozenset(event.types)


def _worker(case: Case, name: str) -> Worker:
    return case.workers.setdefault(name, Worker(name))


def _read_runs(case: Case, history: History) -> None:
    runs: dict[tuple[str, int], Run] = {}
    for process, event in history:
        if isinstance(event, Started):
            if job := case.jobs.get(event.job):
                run = runs[process, event.run] = Run(event, _worker(case, process), job)
                job.runs.append(run)
                case.runs.append(run)
            else:
                case.strangers.append(event)
        elif isinstance(event, Ended) and (ended := runs.get((process, event.run))):
            ended.end, ended.how, ended.told = event.at, event.how, event.told


def _read_end(case: Case, history: History) -> None:
    for process, event in history:
        if isinstance(event, Phase):
            case.phases[event.name] = event.at
        elif isinstance(event, Found):
            case.found.setdefault(event.state, []).extend(event.ids)
            for id, number in zip(event.ids, event.numbers, strict=True):
                # Who enqueued it may have died before it heard of the id.
                job = case.jobs.get(number)
                if job and job.id is None and job.answer == "unclear":
                    job.id = id
        elif isinstance(event, Counted):
            case.counts = event.counts
        elif isinstance(event, Left):
            case.left = event.things
        elif isinstance(event, Exited):
            case.codes[event.process] = event.code
        elif isinstance(event, Leaked):
            case.leaks.append(event)
        elif isinstance(event, Rested):
            case.rested[process] = event.counts


def _recover(case: Case) -> None:
    """What is stored of a call without a clear answer: all of it if any of it was seen, on SQS a chain up to there."""
    seen = {id for ids in case.found.values() for id in ids}
    for call in case.calls:
        unclear = [job for job in call.jobs if job.answer == "unclear"]
        if not unclear:
            continue
        if case.began.store == "sqs":
            for chain in call.chains:
                last = max((job.place for job in chain.jobs if job.runs), default=-1)
                for job in chain.jobs[: last + 1]:
                    job.answer = "stored"
        elif any(job.runs or job.id in seen for job in unclear):
            for job in unclear:
                job.answer = "stored"
