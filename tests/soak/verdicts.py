"""The verdicts on a run, in the order of the promises of docs/guarantees.md.

None of them asks whether something is likely: a second start has a cause in the history or it is a finding, and so on.
What enqueuers and handlers saw themselves is the evidence; the store's word about itself is only compared with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from soak.case import SECOND, Call, Case, Chain, Job, Run
from soak.causes import LOSSES, SETTLED, SLACK, is_due, is_zombie, limit
from soak.trial import Finding, Trial

# What takes the longest of all that is nobody's fault: a handler, a delay.
LONGEST_WAIT: Final = 6 * SECOND
# Of so many blows one hits.
MANY: Final = 5
FINAL: Final = ("finished", "failed", "cancelled")


# ---- P1: enqueue returns when all of it is stored, or none


def nothing_invented(trial: Trial) -> Iterator[Finding]:
    """V2: what runs was asked for, not refused, under the id that was returned, and all of a call or none."""
    case = trial.case
    for event in case.strangers:
        yield Finding("V2", f"job {event.job} ran, and nobody has enqueued it", event.job, event.at)
    for job in case.jobs.values():
        if job.chain.call.is_confirmed and job.id is None and not job.chain.holder:
            yield Finding("V2", "it was confirmed without an id", job.number, job.chain.call.answered)
        if not job.runs:
            continue
        first = job.runs[0]
        if job.answer == "refused" and not job.chain.holder:
            yield Finding("V2", "it ran although its enqueue was refused or rolled back", job.number, first.start)
        elif job.chain.holder:
            holder = job.chain.holder.number
            yield Finding("V2", f"it ran although job {holder} held its unique key", job.number, first.start)
        if first.start < job.chain.call.asked:
            yield Finding("V2", "it ran before it was enqueued", job.number, first.start)
        yield from (
            Finding(
                "V2", f"it ran under the id {run.event.id}, and enqueue had returned {job.id}", job.number, run.start
            )
            for run in job.runs
            if job.id and run.event.id != job.id
        )
    for call in case.calls:
        if case.began.store != "sqs" and (torn := _torn(trial, call)):
            yield torn
    known = {job.id for job in case.jobs.values()}
    for id in sorted(trial.states.keys() - known):
        yield Finding("V2", f"the store has a job {id} that nobody has enqueued")


def _torn(trial: Trial, call: Call) -> Finding | None:
    ids = [job for job in call.jobs if job.id and job.answer == "stored"]
    if not trial.states or not ids or call.answered is None:
        return None
    missing = [job for job in ids if job.id not in trial.states]
    if missing and len(missing) < len(ids):
        return Finding(
            "V2", f"{len(missing)} of the {len(ids)} jobs of its call are not in the store", missing[0].number
        )
    return None


# ---- P2: nothing acknowledged is lost


def nothing_lost(trial: Trial) -> Iterator[Finding]:
    """V1: every stored job came to an end."""
    for job in trial.case.stored():
        if trial.fate(job) != "waiting":
            continue
        if not job.runs:
            text = "it was stored and never ran"
        elif job.runs[-1].how in ("raised", "retried"):
            text = "it was to be tried again and never was"
        else:
            text = "its last run had no end that counts, and there was no other"
        yield Finding("V1", f"{text}; the store calls it {trial.state(job) or 'nothing'}", job.number, _last(job))
    if trial.case.found:
        for job in trial.case.stored():
            if job.id and job.id not in trial.states:
                yield Finding("V1", "it is gone from the store", job.number, _last(job))


def _last(job: Job) -> int:
    return job.runs[-1].start if job.runs else job.chain.call.asked


def body_intact(trial: Trial) -> Iterator[Finding]:
    """V3: the handler got the body, type and place in the chain that were enqueued."""
    for run in trial.case.runs:
        event, job = run.event, run.job
        if event.sum != job.plan.sum:
            yield Finding("V3", "its body is not the one that was enqueued", job.number, event.at)
        if event.type != job.plan.type or event.type not in run.worker.types:
            text = f"it ran as {event.type} and was enqueued as {job.plan.type}; its worker handles "
            yield Finding("V3", text + ", ".join(sorted(run.worker.types)), job.number, event.at)
        if (event.position, event.length) != (job.place + 1, len(job.chain.jobs)):
            place = f"{event.position} of {event.length}"
            text = f"it ran as job {place} of its chain and is {job.place + 1} of {len(job.chain.jobs)}"
            yield Finding("V3", text, job.number, event.at)


# ---- P3: no second run without a cause


def second_starts_explained(trial: Trial) -> Iterator[Finding]:
    """V10: each start beyond the first has a cause of its own."""
    for before, run in trial.unexplained:
        if is_zombie(trial.case, run):
            text = f"it started again on {run.worker.name}, which had been silent for so long that it had lost it to "
            yield Finding("V10", text + before.worker.name, run.job.number, run.start)
        elif not _overlap(before, run):
            text = f"it started again on {run.worker.name}, and nothing explains it: on {before.worker.name} it had "
            yield Finding("V10", text + (before.how or "no end"), run.job.number, run.start)


def one_holder_at_a_time(trial: Trial) -> Iterator[Finding]:
    """V5: nobody starts a job while another one runs it, unless that one was silent for a lease."""
    for before, run in trial.unexplained:
        if _overlap(before, run) and not is_zombie(trial.case, run):
            text = f"it started on {run.worker.name} while {before.worker.name}, which nothing had silenced, ran it"
            yield Finding("V5", text, run.job.number, run.start)


def _overlap(before: Run, run: Run) -> bool:
    died = before.worker.died
    return before.was_open(run.start) and (died is None or died > run.start)


# ---- P4: a stale token changes nothing


def one_end(trial: Trial) -> Iterator[Finding]:
    """V4: each job is in the store once, in the state that its last lawful run left it in."""
    for id, times in Counter(id for ids in trial.case.found.values() for id in ids).items():
        if times > 1:
            yield Finding("V4", f"the store lists {id} {times} times")
    if not trial.case.found:
        return
    for job in trial.case.stored():
        state, fate = trial.state(job), trial.fate(job)
        if state is not None and fate not in (None, "waiting", state):
            yield Finding("V4", f"the store calls it {state}; by its history it is {fate}", job.number, _last(job))


# ---- P5, P6: chains


def chains_in_order(trial: Trial) -> Iterator[Finding]:
    """V6: a job starts when the one before it is final, never once the next has, and not at all once cancelled."""
    for chain in _chains(trial.case):
        for before, job in pairwise(chain.jobs):
            if not trial.holders[job]:
                continue
            first = trial.holders[job][0]
            if trial.ended_with_those_before(job) and not job.steps:
                text = f"it ran, although job {before.number} before it had failed and on_failure is cancel"
                yield Finding("V6", text, job.number, first.start)
            if not _was_final(trial, before, first.start):
                yield Finding(
                    "V6", f"it started before job {before.number} of its chain was final", job.number, first.start
                )
            for run in trial.holders[before]:
                if run.start > first.start:
                    text = f"it started again after job {job.number}, the next of its chain, had started"
                    yield Finding("V6", text, before.number, run.start)
        yield from _ran_after_its_end(trial, chain)


def _chains(case: Case) -> Iterator[Chain]:
    return (chain for call in case.calls for chain in call.chains)


def _was_final(trial: Trial, job: Job, at: int) -> bool:
    if any(step.outcome != "refused" and step.verb != "requeue" and step.asked < at for step in job.steps):
        return True
    for run in trial.holders[job]:
        if run.end is None or run.end > at:
            continue
        most = limit(trial.case, run)
        if run.how in ("returned", "discarded"):
            return True
        if run.how in ("raised", "retried") and most is not None and run.event.attempt >= most:
            return True
    if not trial.holders[job]:
        return trial.ended_with_those_before(job)
    # Its worker was lost once too often, which no handler sees.
    died = trial.holders[job][-1].worker.died
    return trial.fate(job) == "failed" and died is not None and died < at


def _ran_after_its_end(trial: Trial, chain: Chain) -> Iterator[Finding]:
    for job in chain.jobs:
        step = job.steps[-1] if job.steps else None
        if step and step.outcome == "done" and step.verb != "requeue":
            for run in job.runs:
                if run.start > step.done:
                    yield Finding("V6", f"it started after an operator's {step.verb}", job.number, run.start)


def chains_stay(trial: Trial) -> Iterator[Finding]:
    """V7: mostly, the next job of a chain starts on the worker of the one before it, where that one can.

    Not always: a worker that holds enough already leaves it to others. On SQS it depends on what came together.
    """
    for chain in _chains(trial.case):
        for before, job in pairwise(chain.jobs):
            if not trial.holders[before] or not job.runs or job.plan.delay or before.steps or job.steps:
                continue
            last, first = trial.holders[before][-1], job.runs[0]
            if last.end is None or last.told or job.plan.type not in last.worker.types:
                continue
            if not _was_disturbed(trial.case, last, first.start):
                trial.reached["chain stayed" if last.worker is first.worker else "chain moved"] += 1
    if trial.reached["chain stayed"] < trial.reached["chain moved"] and trial.case.began.store != "sqs":
        counts = f"{trial.reached['chain moved']} times, and stayed {trial.reached['chain stayed']} times"
        yield Finding("V7", f"chains went to another worker {counts}, where nothing was wrong with theirs")


def _was_disturbed(case: Case, run: Run, until: int) -> bool:
    worker = run.worker
    if any(at is not None and at < until for at in (worker.died, worker.stopped)):
        return True
    since = run.start - case.lease
    return any(span.begin < until and span.end > since for span in (*worker.faults, *case.store_faults))


# ---- P7: first in, first out


def first_in_first_out(trial: Trial) -> Iterator[Finding]:
    """V16: one worker with one slot starts what one process enqueued, of one type, in the order of its calls."""
    began = trial.case.began
    if (began.workers, began.slots) != (1, 1) or began.faults:
        return
    newest: dict[tuple[str, str], Job] = {}
    for run in trial.case.runs:
        job = run.job
        if job.place or job.plan.delay or job.steps or run is not job.runs[0]:
            continue
        earlier = newest.setdefault((job.chain.call.process, job.plan.type), job)
        if earlier.number > job.number:
            text = f"it started after job {earlier.number}, which was enqueued after it"
            yield Finding("V16", text, job.number, run.start)
        newest[job.chain.call.process, job.plan.type] = job


# ---- what was asked for: times, limits, unique keys


def not_early(trial: Trial) -> Iterator[Finding]:
    """V8: nothing starts before its time, be it a delay or the wait before a retry."""
    for job in trial.case.jobs.values():
        if job.plan.delay and job.runs and not job.steps:
            begin = job.chain.call.asked
            # SQS may have forgotten when the job before ended, and counts from the enqueue then.
            if job.before and trial.case.began.store != "sqs":
                earlier = (run for run in trial.holders[job.before] if run.start < job.runs[0].start)
                begin = max((run.end or run.start for run in earlier), default=begin)
            early = begin + round(job.plan.delay * SECOND) - job.runs[0].start
            if early > SLACK:
                text = f"it started {early / SECOND:.3f} s before its delay of {job.plan.delay} s had passed"
                yield Finding("V8", text, job.number, job.runs[0].start)
        for before, run in pairwise(trial.holders[job]):
            if trial.causes.get(run) == "retry" and not is_due(trial.case, before, run.start):
                yield Finding("V8", "it was tried again before its time", job.number, run.start)


def bounded(trial: Trial) -> Iterator[Finding]:
    """V9: attempts are counted one by one and never more than allowed, and neither are lost leases."""
    is_sqs = trial.case.began.store == "sqs"
    for job, runs in trial.holders.items():
        if not runs:
            continue
        if (losses := trial.losses(job, surely=True)) > trial.case.began.max_rescues and not is_sqs:
            text = f"it was started again after {losses} lost leases, which is more than max_rescues"
            yield Finding("V9", text, job.number, runs[-1].start)
        if is_sqs:
            continue
        most = job.plan.attempts
        if most and max(run.event.attempt for run in runs) > most:
            yield Finding("V9", f"it had more than its {most} attempts", job.number, runs[-1].start)
        if runs[0].event.attempt != 1:
            yield Finding("V9", f"its first run was attempt {runs[0].event.attempt}", job.number, runs[0].start)
        for before, run in pairwise(runs):
            cause = trial.causes.get(run)
            right = {"retry": before.event.attempt + 1, "requeue": 1}.get(cause or "", before.event.attempt)
            if cause and run.event.attempt != right:
                text = f"it started again ({cause}) as attempt {run.event.attempt}, which should be {right}"
                yield Finding("V9", text, job.number, run.start)


def unique_keys(trial: Trial) -> Iterator[Finding]:
    """V15: of the jobs with one unique key, one at a time is not final."""
    holders: dict[tuple[str, str], list[Job]] = {}
    for chain in _chains(trial.case):
        if chain.plan.unique is None:
            continue
        job, call = chain.jobs[0], chain.call
        of_key = holders.setdefault((job.plan.type, chain.plan.unique), [])
        if chain.holder:
            end = _ended(trial, chain.holder)
            if end is not None and end < call.asked - SETTLED and not _was_away(trial.case, end):
                yield Finding(
                    "V15", f"job {chain.holder.number} had ended and still held its key", job.number, call.asked
                )
        elif job.answer == "stored" and job.id:
            for other in of_key:
                first = trial.holders[other][0] if trial.holders[other] else None
                if call.answered and first and first.start > call.answered and not other.steps:
                    text = f"it was stored while job {other.number} with the same unique key waited"
                    yield Finding("V15", text, job.number, call.answered)
            of_key.append(job)


def _ended(trial: Trial, job: Job) -> int | None:
    """When it came to its end for good; None if it cannot be said, or an operator ended it."""
    runs = trial.holders[job]
    return runs[-1].end if runs and not job.steps and trial.fate(job) in FINAL else None


def _was_away(case: Case, end: int) -> bool:
    """May the end of a run that ended then have been stored a good deal later?"""
    return any(span.begin < end + case.lease and span.end > end - SECOND for span in case.spans)


# ---- at the end


def nothing_stuck(trial: Trial) -> Iterator[Finding]:
    """V11: the queue was worked off in time, and never stood still for longer than a rescue may take."""
    case = trial.case
    if "end" not in case.phases:
        yield Finding("V11", "the run did not come to its end")
        return
    still = 4 * case.lease + LONGEST_WAIT
    for name in ("ready", "scheduled", "blocked", "running"):
        if count := (case.counts or {}).get(name, 0):
            yield Finding("V11", f"{count} jobs were still {name} when the time was up")
    begin, end = case.phases["drain"], case.phases["end"]
    moments = sorted(
        {begin, end, *(at for run in case.runs for at in (run.start, run.end or begin) if begin < at < end)}
    )
    yield from (
        Finding("V11", f"nothing started or ended for {(later - earlier) / SECOND:.1f} s while jobs waited", at=earlier)
        for earlier, later in pairwise(moments)
        if later - earlier > still
    )


def counters_agree(trial: Trial) -> Iterator[Finding]:
    """V12: what the store counts is what happened."""
    case = trial.case
    if case.counts is None:
        return
    fates = Counter(trial.fate(job) or trial.state(job) or "waiting" for job in case.stored())
    expected = {name: fates[name] for name in FINAL}
    retries = sum(cause == "retry" for cause in trial.causes.values())
    # Whether an unclear enqueue of SQS was stored cannot be looked up.
    stored = list(case.stored())
    expected |= {
        "jobs": len(stored),
        "chains": sum(job.place == 0 for job in stored),
        "retries": retries,
    }
    for name, right in expected.items():
        counted = case.counts.get(name)
        if counted is not None and counted != right:
            yield Finding("V12", f"the store counts {counted} {name}; by the history it is {right}")


def store_is_clean(trial: Trial) -> Iterator[Finding]:
    """V13: when all final jobs are deleted, nothing of the queue is left."""
    if trial.case.left is None:
        yield Finding("V13", "nobody looked what was left in the store")
    for name, count in (trial.case.left or {}).items():
        if count:
            yield Finding("V13", f"{count} of {name} are left in the store")


def processes_end_well(trial: Trial) -> Iterator[Finding]:
    """V17: who is asked to stop does so without losing anything, and nobody writes bodies to a log."""
    for name, code in trial.case.codes.items():
        worker = trial.case.workers.get(name)
        if worker and worker.died is not None:
            continue
        if code:
            yield Finding("V17", f"{name} ended with {code}, and nobody had killed it")
        elif worker and worker.types and name not in trial.case.rested:
            yield Finding("V17", f"{name} ended without a word")
    for leak in trial.case.leaks:
        yield Finding("V17", f"{leak.process} wrote a body to its log: {leak.text[:80]}", at=leak.at)


def reached(trial: Trial) -> Iterator[Finding]:
    """V14: the run has seen what it is for."""
    case, seen = trial.case, trial.reached
    for run in case.runs:
        died = run.worker.died
        if died is not None and run.was_open(died):
            seen["killed in a handler"] += 1
        if run.job.place and trial.causes.get(run) in LOSSES:
            seen["rescue inside a chain"] += 1
        if run.job.plan.deed == "hold" and run.end and run.end - run.start >= case.lease and len(run.job.runs) == 1:
            seen["interpreter held for a lease"] += 1
        if run.told and run.how is not None:
            seen["handler told to return"] += 1
    for runs in trial.holders.values():
        for before, run in pairwise(runs):
            if trial.causes.get(run) in LOSSES and before.end is not None and before.end > run.start:
                seen["zombie"] += 1
    for job in case.jobs.values():
        seen[f"job {trial.fate(job) or 'in doubt'}"] += 1
        seen["unclear enqueue"] += job.answer == "stored" and job.chain.call.answered is None
        seen["delayed job"] += bool(job.plan.delay and job.runs)
        seen["unique key held"] += job.chain.holder is not None
    seen["retry"] = sum(cause == "retry" for cause in trial.causes.values())
    seen["chain of 10 or more"] = sum(len(chain.jobs) >= 10 for chain in _chains(case))
    for span in case.spans:
        seen[f"fault: {span.name}"] += 1
    for name in _wanted(case):
        if not seen[name]:
            yield Finding("V14", f"the run has never seen this: {name}")


def _wanted(case: Case) -> Sequence[str]:
    faults = set(case.began.faults)
    wanted = ["retry", "delayed job", "job finished", "job failed", "chain of 10 or more"]
    wanted += [f"fault: {name}" for name in sorted(faults)]
    # Blows are aimed, so of so many one hits a handler.
    workers = {name for name, worker in case.workers.items() if worker.types}
    blows = Counter(span.name for span in case.spans if span.target in workers)
    if blows["kill"] >= MANY:
        wanted.append("killed in a handler")
    if blows["pause"] >= MANY:
        wanted.append("zombie")
    if case.began.store != "sqs":
        wanted += ["job cancelled", "unique key held"]
    return wanted


class Verdict(NamedTuple):
    name: str
    promises: str
    title: str
    rule: Callable[[Trial], Iterator[Finding]]


VERDICTS: Final = (
    Verdict("V2", "P1, P13", "nothing invented", nothing_invented),
    Verdict("V1", "P2, P8", "nothing lost", nothing_lost),
    Verdict("V3", "P2", "bodies intact", body_intact),
    Verdict("V10", "P3, P9, P12", "second starts explained", second_starts_explained),
    Verdict("V5", "P3, P9", "one holder at a time", one_holder_at_a_time),
    Verdict("V4", "P4", "one end", one_end),
    Verdict("V6", "P5, P6", "chains in order", chains_in_order),
    Verdict("V7", "P5", "chains stay on their worker", chains_stay),
    Verdict("V16", "P7", "first in, first out", first_in_first_out),
    Verdict("V17", "P10, P12, P14", "processes end well and tell nothing", processes_end_well),
    Verdict("V8", "", "nothing early", not_early),
    Verdict("V9", "", "attempts and rescues bounded", bounded),
    Verdict("V15", "", "unique keys", unique_keys),
    Verdict("V11", "P2", "nothing stuck", nothing_stuck),
    Verdict("V12", "", "counters equal to the history", counters_agree),
    Verdict("V13", "", "store empty at the end", store_is_clean),
    Verdict("V14", "", "all faults reached", reached),
)
