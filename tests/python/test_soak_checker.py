"""The checker of the soak is awake: it finds nothing in a clean history, and each fault that is put into it.

The clean history is a small run told by hand, with something of everything that verdicts are about. Each test changes
one thing in it, as a bug of a store or of the worker would, and names the verdict that must find it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from soak.case import build
from soak.checker import Judgement, check
from soak.history import (
    AnyEvent,
    Asked,
    Began,
    Counted,
    Ended,
    Entry,
    Exited,
    Fault,
    Found,
    Healed,
    History,
    Leaked,
    Left,
    Operated,
    Operating,
    Phase,
    PlannedChain,
    PlannedJob,
    Ready,
    Refused,
    Rested,
    Started,
    Stored,
    Unclear,
    read,
    save,
)
from soak.report import around, picture
from soak.verdicts import VERDICTS

MS: Final = 1_000_000
TYPES: Final = ["quick", "aio"]


@dataclass
class Story:
    """A history in the making. Times are milliseconds; a lease lasts 3,000, and a job is known by its number."""

    entries: list[Entry]

    def note(self, process: str, event: AnyEvent) -> None:
        self.entries.append(Entry(process, event))

    def enqueue(
        self,
        at: int,
        first: int,
        *jobs: PlannedJob,
        cancels: bool = False,
        unique: str | None = None,
        answer: Callable[[int], AnyEvent] | None = None,
    ) -> None:
        """A call of `enqueue`, whose number is that of the first job."""
        chain = PlannedChain(first, list(jobs), cancels, unique)
        ids = [f"id{first + place}" for place in range(len(jobs))]
        self.note("e0.0", Asked(at=at * MS, call=first, chains=[chain]))
        self.note("e0.0", answer(at + 2) if answer else Stored(at=(at + 2) * MS, call=first, ids=ids))

    def run(
        self,
        worker: str,
        start: int,
        end: int | None,
        job: int,
        how: Any = "returned",
        *,
        attempt: int = 1,
        place: tuple[int, int] = (1, 1),
        told: bool = False,
        sum: int | None = None,
        type: str = "quick",
    ) -> None:
        number = len(self.entries)
        self.note(
            worker,
            Started(
                at=start * MS,
                run=number,
                job=job,
                id=f"id{job}",
                type=type,
                attempt=attempt,
                position=place[0],
                length=place[1],
                sum=job if sum is None else sum,
            ),
        )
        if end is not None:
            self.note(worker, Ended(at=end * MS, run=number, how=how, told=told))

    def fault(self, number: int, name: Any, target: str | None, begin: int, end: int) -> None:
        self.note("run", Fault(at=begin * MS, number=number, name=name, target=target))
        self.note("run", Healed(at=end * MS, number=number))


def job(number: int, deed: Any = "return", **options: Any) -> PlannedJob:
    return PlannedJob("quick", deed, number, **options)


def clean() -> History:
    """Two workers, one of which is killed and replaced, then the other one paused; all ends well."""
    story = Story([])
    faults: list[Any] = ["hurry", "kill", "pause"]
    story.note(
        "run",
        Began(
            at=0, store="redis", seed=1, heartbeat=1.0, max_rescues=3, slots=2, workers=2, backoff=0.3, faults=faults
        ),
    )
    for worker, at in (("w0.0", 10), ("w1.0", 10), ("w0.1", 5500), ("w0.2", 26_050)):
        story.note(worker, Ready(at=at * MS, types=TYPES))
    story.note("run", Phase(at=20 * MS, name="load"))
    # Alone, and a chain.
    story.enqueue(90, 0, job(0))
    story.run("w0.0", 100, 110, 0)
    story.enqueue(190, 10, job(10), job(11), job(12))
    for place in range(3):
        story.run("w1.0", 200 + 20 * place, 210 + 20 * place, 10 + place, place=(place + 1, 3))
    # Retries, by failure and by wish.
    story.enqueue(290, 20, job(20, "flaky", attempts=3))
    story.run("w0.0", 300, 301, 20, "raised")
    story.run("w1.0", 700, 701, 20, attempt=2)
    story.enqueue(290, 25, job(25, "retry", wait=0.5))
    story.run("w0.0", 310, 311, 25, "retried")
    story.run("w0.0", 900, 901, 25, attempt=2)
    # A failure cancels the rest of one chain, and not of the other.
    story.enqueue(390, 30, job(30, "discard"), job(31), cancels=True)
    story.run("w0.0", 400, 401, 30, "discarded", place=(1, 2))
    story.enqueue(390, 40, job(40, "fail", attempts=2), job(41))
    story.run("w0.0", 410, 411, 40, "raised", place=(1, 2))
    story.run("w0.0", 800, 801, 40, "raised", attempt=2, place=(1, 2))
    story.run("w0.0", 810, 811, 41, place=(2, 2))
    # A delay, and a unique key that is held.
    story.enqueue(400, 50, job(50, delay=2.0))
    story.run("w1.0", 2405, 2406, 50)
    story.enqueue(500, 60, job(60), unique="key")
    story.enqueue(510, 61, job(61), unique="key", answer=lambda at: Stored(at=at * MS, call=61, ids=["id60"]))
    story.run("w1.0", 600, 610, 60)
    # Calls that did not get a clear yes: nothing stored, stored all the same, not stored.
    story.enqueue(1000, 70, job(70), answer=lambda at: Refused(at=at * MS, call=70, error="BackendUnavailable"))
    story.enqueue(1010, 80, job(80), job(81), answer=lambda at: Unclear(at=at * MS, call=80, ids=["id80", "id81"]))
    story.run("w1.0", 1020, 1021, 80, place=(1, 2))
    story.run("w1.0", 1030, 1031, 81, place=(2, 2))
    story.enqueue(1010, 90, job(90), answer=lambda at: Unclear(at=at * MS, call=90, ids=["id90"]))
    # Its worker is killed, inside a chain.
    story.enqueue(4990, 100, job(100), job(101))
    story.run("w0.0", 5000, 5005, 100, place=(1, 2))
    story.run("w0.0", 5010, None, 101, place=(2, 2))
    story.fault(0, "kill", "w0.0", 5020, 5025)
    story.note("run", Exited(at=5024 * MS, process="w0.0", code=-9))
    story.run("w1.0", 8500, 8510, 101, place=(2, 2))
    # Its worker is paused for longer than a lease, and comes back.
    story.enqueue(9980, 110, job(110))
    story.run("w1.0", 9990, 15_010, 110, told=True)
    story.fault(1, "pause", "w1.0", 10_000, 15_000)
    story.run("w0.1", 13_200, 13_300, 110)
    # An operator cancels one, and lets another one run now.
    forever = 3600.0
    for at, number, verb in ((16_000, 120, "cancel"), (16_100, 130, "requeue")):
        story.enqueue(at, number, job(number, "operated", delay=forever), job(number + 1))
        chosen: Any = verb
        story.note("e0.0", Operating(at=(at + 10) * MS, step=number, verb=chosen, job=number))
        story.note("e0.0", Operated(at=(at + 15) * MS, step=number, outcome="done"))
    story.run("w0.1", 16_020, 16_021, 121, place=(2, 2))
    story.run("w0.1", 16_120, 16_121, 130, place=(1, 2))
    story.run("w0.1", 16_130, 16_131, 131, place=(2, 2))
    # The interpreter is held for longer than a lease, and nobody takes the job.
    story.enqueue(19_990, 150, job(150, "hold", wait=4.0))
    story.run("w1.0", 20_000, 24_000, 150)
    # A stop that does not wait.
    story.enqueue(24_990, 160, job(160, "long", wait=4.0))
    story.run("w0.1", 25_000, 26_100, 160, "cancelled", told=True)
    story.fault(2, "hurry", "w0.1", 26_000, 26_090)
    story.note("w0.1", Rested(at=26_200 * MS, counts={}))
    story.note("run", Exited(at=26_300 * MS, process="w0.1", code=0))
    story.run("w0.2", 26_210, 27_000, 160)
    # Ten in a chain.
    story.enqueue(27_100, 200, *(job(200 + place) for place in range(10)))
    for place in range(10):
        story.run("w0.2", 27_110 + 10 * place, 27_112 + 10 * place, 200 + place, place=(place + 1, 10))
    story.note("run", Phase(at=28_000 * MS, name="drain"))
    story.note("run", Phase(at=28_500 * MS, name="end"))
    for worker in ("w0.2", "w1.0"):
        story.note(worker, Rested(at=28_600 * MS, counts={}))
        story.note("run", Exited(at=28_700 * MS, process=worker, code=0))
    story.note("run", Exited(at=28_700 * MS, process="e0.0", code=0))
    failed, cancelled = [30, 40], [31, 120]
    finished = [0, 10, 11, 12, 20, 25, 41, 50, 60, 80, 81, 100, 101, 110, 121, 130, 131, 150, 160, *range(200, 210)]
    states = {"ready": [], "finished": finished, "failed": failed, "cancelled": cancelled}
    counts = {"ready": 0, "finished": len(finished), "failed": 2, "cancelled": 2}
    jobs = len(finished) + 4
    chains = jobs - 9 - 2 - 1 - 1 - 1 - 1 - 1 - 1
    story.note("run", Counted(at=28_800 * MS, counts=counts | {"jobs": jobs, "chains": chains, "retries": 3}))
    for state, numbers in states.items():
        story.note("run", Found(at=28_810 * MS, state=state, ids=[f"id{each}" for each in numbers], numbers=numbers))
    story.note("run", Left(at=28_900 * MS, things={}))
    return in_order(story.entries)


def in_order(entries: Iterable[Entry]) -> History:
    return sorted(entries, key=lambda entry: entry.event.at)


# ---- changes


Change = Callable[[History], History]


def without(condition: Callable[[Any], bool]) -> Change:
    def change(history: History) -> History:
        return [entry for entry in history if not condition(entry.event)]

    return change


def altered(condition: Callable[[Any], bool], **changes: Any) -> Change:
    """Events that fulfil a condition get other values; `at` is in milliseconds."""
    if "at" in changes:
        changes["at"] *= MS

    def change(history: History) -> History:
        assert any(condition(entry.event) for entry in history)
        return in_order(
            Entry(process, msgspec.structs.replace(event, **changes) if condition(event) else event)
            for process, event in history
        )

    return change


def also(*notes: tuple[str, AnyEvent]) -> Change:
    return lambda history: in_order([*history, *(Entry(*note) for note in notes)])


def also_run(worker: str, start: int, end: int | None, number: int, how: Any = "returned", **options: Any) -> Change:
    def change(history: History) -> History:
        story = Story(list(history))
        story.run(worker, start, end, number, how, **options)
        return in_order(story.entries)

    return change


def both(*changes: Change) -> Change:
    def change(history: History) -> History:
        for each in changes:
            history = each(history)
        return history

    return change


def moved(by: int, condition: Callable[[Any], bool]) -> Change:
    """Events happen so many milliseconds later."""

    def change(history: History) -> History:
        return in_order(
            Entry(process, msgspec.structs.replace(event, at=event.at + by * MS) if condition(event) else event)
            for process, event in history
        )

    return change


def starts(number: int, at: int | None = None) -> Callable[[Any], bool]:
    return lambda event: isinstance(event, Started) and event.job == number and (at is None or event.at == at * MS)


def runs(number: int, since: int = 0) -> Callable[[Any], bool]:
    """Starts and ends of the runs of a job, from a time on."""
    numbers = {
        event.run
        for _, event in clean()
        if isinstance(event, Started) and event.job == number and event.at >= since * MS
    }
    return lambda event: isinstance(event, (Started, Ended)) and event.run in numbers


def is_a(kind: type, **values: Any) -> Callable[[Any], bool]:
    return lambda event: (
        isinstance(event, kind) and all(getattr(event, name) == value for name, value in values.items())
    )


def found(state: str, *numbers: int) -> Change:
    """The store lists these in that state, and nowhere else."""

    def change(history: History) -> History:
        lists = {event.state: list(event.numbers) for _, event in history if isinstance(event, Found)}
        for name, each in lists.items():
            lists[name] = [number for number in each if number not in numbers]
        lists[state] = [*lists.get(state, []), *numbers]
        kept = without(is_a(Found))(history)
        return in_order(
            [
                *kept,
                *(
                    Entry("run", Found(at=28_810 * MS, state=name, ids=[f"id{each}" for each in all], numbers=all))
                    for name, all in lists.items()
                    if name != "nowhere"
                ),
            ]
        )

    return change


def counted(**counts: int) -> Change:
    def change(history: History) -> History:
        (before,) = (event.counts for _, event in history if isinstance(event, Counted))
        return altered(is_a(Counted), counts=before | counts)(history)

    return change


def killer(history: History) -> History:
    """A job kills one worker after the other."""
    story = Story(list(history))
    story.enqueue(16_190, 300, job(300, "poison"))
    for number in range(5):
        begin = 16_200 + 1500 * number
        story.note(f"w9.{number}", Ready(at=begin * MS, types=TYPES))
        story.run(f"w9.{number}", begin + 10, None, 300)
        story.fault(20 + number, "kill", f"w9.{number}", begin + 20, begin + 25)
    story.run("w1.0", 24_500, 24_501, 300)
    return in_order(story.entries)


FAULTS: Final[dict[str, tuple[str, Change]]] = {
    # P1
    "a job runs that nobody enqueued": ("V2", also_run("w1.0", 3000, 3001, 999)),
    "a refused enqueue was stored": ("V2", also_run("w1.0", 3000, 3001, 70)),
    "a unique key did not hold": ("V2", also_run("w1.0", 3000, 3001, 61)),
    "enqueue returned the ids in another order": ("V2", altered(is_a(Stored, call=10), ids=["id11", "id10", "id12"])),
    "enqueue returned too few ids": ("V2", altered(is_a(Stored, call=10), ids=["id10", "id11"])),
    "enqueue returned an id twice": ("V2", altered(is_a(Stored, call=10), ids=["id10", "id11", "id11"])),
    "a chain was stored in part": ("V2", both(without(runs(209)), found("nowhere", 209))),
    "a job runs before it is enqueued": ("V2", moved(-80, runs(10))),
    "the store has a job of nobody's": ("V2", found("failed", 999)),
    # P2
    "enqueue returns before the write, and the write is lost": ("V1", both(without(runs(0)), found("nowhere", 0))),
    "popped before it was run, and forgotten": ("V1", without(runs(160, since=26_000))),
    "a killed worker's job is not rescued": ("V1", without(runs(101, since=8000))),
    "a retry is forgotten": ("V1", without(runs(20, since=700))),
    "the next job of a chain is never released": ("V1", without(runs(12))),
    "jobs after a failed one are dropped": ("V1", without(runs(41))),
    "a finished job is gone": ("V1", found("nowhere", 0)),
    "a body is cut short": ("V3", altered(starts(11), sum=1)),
    "a job is given to a handler of another type": ("V3", altered(starts(11), type="aio")),
    "a worker takes a type that it has no handler for": ("V3", altered(is_a(Ready, at=10 * MS), types=["aio"])),
    "a job has lost its place in the chain": ("V3", altered(starts(11), position=1, length=1)),
    # P3
    "a finish is not stored, and nobody died": ("V10", also_run("w1.0", 3000, 3001, 0)),
    "a job is pushed twice": ("V10", also_run("w0.0", 112, 113, 0)),
    "a rescue comes before the lease is over": ("V10", moved(-3300, runs(101, since=8000))),
    "one kill, two rescues": ("V10", also_run("w0.1", 8600, 8610, 101, place=(2, 2))),
    "a pause long after the end is an excuse for a second run": ("V10", also_run("w0.1", 13_000, 13_001, 50)),
    "a retry is pushed twice": ("V10", also_run("w0.0", 702, 703, 20, attempt=2)),
    "a retry is not counted": ("V10", altered(starts(20, 700), attempt=1)),
    "a kill long after the end is an excuse for a second run": ("V10", also_run("w1.0", 8500, 8501, 0)),
    "a handler that holds the interpreter loses its lease": ("V5", also_run("w0.1", 23_000, 23_001, 150)),
    "a rescue looks at age only": ("V5", also_run("w0.1", 22_000, 22_001, 150)),
    "a pause shorter than a lease costs the job": (
        "V5",
        both(altered(is_a(Healed, number=1), at=11_000), moved(-1800, runs(110, since=13_000))),
    ),
    "a worker without beats is rescued while it is alive": (
        "V5",
        without(lambda event: getattr(event, "number", 0) == 1),
    ),
    "a store that stood still takes a job from a worker that was alive": (
        "V5",
        both(
            also(("run", Fault(at=20_500 * MS, number=9, name="sleep")), ("run", Healed(at=23_500 * MS, number=9))),
            also_run("w0.1", 23_600, 23_601, 150),
        ),
    ),
    "a worker starts what it has lost": ("V10", also_run("w1.0", 15_005, 15_006, 110)),
    # P4
    "a zombie's finish counts": ("V4", found("failed", 110)),
    "a rescued job is failed after it had finished": ("V4", found("failed", 101)),
    "a finished job is failed": ("V4", found("failed", 0)),
    "a job ends twice": (
        "V4",
        also(("run", Found(at=28_811 * MS, state="failed", ids=["id0"], numbers=[0]))),
    ),
    # P5, P6
    "the next job starts before the end is stored": ("V6", moved(-15, runs(11))),
    "a chain runs backwards": ("V6", both(moved(25, runs(10)), moved(-20, runs(11)))),
    "a rescue goes back to the begin of the chain": ("V6", also_run("w1.0", 8450, 8451, 100, place=(1, 2))),
    "a repeated end skips a job": ("V6", both(without(runs(11)), found("finished", 11))),
    "a failed job does not cancel the rest": ("V6", also_run("w0.0", 420, 421, 31, place=(2, 2))),
    "the next job does not wait for a retry": ("V6", moved(-200, runs(41))),
    "a cancelled job runs": ("V6", also_run("w0.1", 16_500, 16_501, 120, place=(1, 2))),
    "chains are never handed on": (
        "V7",
        lambda history: [
            Entry(
                "w1.0" if runs(201)(event) or runs(203)(event) or runs(205)(event) or runs(207)(event) else process,
                event,
            )
            for process, event in history
        ],
    ),
    # P10, P12, P14
    "a handler ends its process": ("V17", altered(is_a(Exited, process="w0.2"), code=-11)),
    "a stop is not graceful": ("V17", without(is_a(Rested, at=28_600 * MS))),
    "a body is logged": ("V17", also(("run", Leaked(at=28_650 * MS, process="w0.0", text="canary-")))),
    # Times, limits, keys
    "a delay by the client's clock": ("V8", moved(-200, runs(50))),
    "a delay is forgotten": ("V8", moved(-1900, runs(50))),
    "a retry does not wait": ("V8", moved(-350, runs(20, since=700))),
    "a claim counts as an attempt": ("V9", altered(starts(0), attempt=2)),
    "a rescue counts as an attempt": ("V9", altered(starts(101, 8500), attempt=2)),
    "the limit of attempts does not hold": ("V9", altered(starts(20, 700), attempt=4)),
    "a job that kills its worker is never given up": ("V9", killer),
    "a unique key outlives its job": ("V15", moved(20_000, lambda event: getattr(event, "call", None) == 61)),
    "two jobs with one key": ("V15", altered(is_a(Stored, call=61), ids=["id61"])),
    # At the end
    "a wake-up is lost, and nobody polls": ("V11", moved(40_000, is_a(Phase, name="end"))),
    "a job waits for ever": ("V11", counted(ready=1)),
    "the run has no end": ("V11", without(is_a(Phase, name="end"))),
    "a refused end is counted": ("V12", counted(finished=30)),
    "a retry is counted twice": ("V12", counted(retries=4)),
    "jobs of a refused enqueue are counted": ("V12", counted(jobs=34)),
    "a dead worker is never forgotten": ("V13", altered(is_a(Left), things={"workers": 1})),
    "nobody looked into the store": ("V13", without(is_a(Left))),
    "a fault never came": ("V14", altered(is_a(Began), faults=["hurry", "kill", "pause", "restart"])),
    "no kill ever hit a handler": (
        "V14",
        both(
            without(starts(101, 5010)),
            also(
                *(("run", Fault(at=28_650 * MS, number=number, name="kill", target="w0.2")) for number in range(5, 10))
            ),
        ),
    ),
}


def failed(judgement: Judgement) -> str:
    return "\n".join(f"{finding.verdict}: {finding.text} ({finding.job})" for finding in judgement.findings)


def test_a_clean_history_has_no_findings() -> None:
    judgement = check(clean())
    assert not judgement.findings, failed(judgement)
    assert judgement.passed == [verdict.name for verdict in VERDICTS]
    assert judgement.causes == {"retry": 3, "killed": 1, "paused": 1, "cut short": 1}


@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_is_found_by_its_verdict(name: str) -> None:
    verdict, change = FAULTS[name]
    judgement = check(change(clean()))
    assert verdict in judgement.failed, failed(judgement)


def test_each_verdict_has_a_seeded_fault() -> None:
    seeded = {verdict for verdict, _ in FAULTS.values()}
    assert seeded == {verdict.name for verdict in VERDICTS} - {"V16"}  # which has a test of its own


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)], ids=["fifo", "lifo"])
def test_a_store_that_is_last_in_first_out_is_found(order: tuple[int, ...]) -> None:
    story = Story([])
    story.note(
        "run",
        Began(at=0, store="redis", seed=1, heartbeat=1.0, max_rescues=3, slots=1, workers=1, backoff=0.3, faults=[]),
    )
    story.note("w0.0", Ready(at=1 * MS, types=TYPES))
    for number in range(3):
        story.enqueue(10 + number, number, job(number))
    for place, number in enumerate(order):
        story.run("w0.0", 20 + place, 20 + place, number)
    assert ("V16" in check(in_order(story.entries)).failed) == (order != (0, 1, 2))


def test_a_history_is_read_as_it_was_written_and_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    history = clean()
    save(history, tmp_path)
    with (tmp_path / "w0.0.jsonl").open("ab") as file:
        file.write(b'{"event":"ended","ru')
    again = read(tmp_path)
    assert sorted(again, key=repr) == sorted(history, key=repr)
    assert check(again).findings == []


def test_evidence_shows_the_chain_and_what_went_wrong_about_it() -> None:
    history = FAULTS["one kill, two rescues"][1](clean())
    case = build(history)
    (finding,) = check(history).findings
    kinds = {type(entry.event) for entry in around(case, history, finding)}
    assert {Asked, Stored, Started, Ended, Fault, Exited} <= kinds
    assert "kill of w0.0" in picture(case)
