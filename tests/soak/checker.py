"""Judges a run: a pure function, the history in, what was found out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from soak.case import SECOND, Case, build
from soak.causes import Cause
from soak.history import History
from soak.trial import Finding, Trial
from soak.verdicts import VERDICTS


@dataclass
class Judgement:
    """What came of all rules.

    Attributes:
        causes: How many second starts had which cause.
        reached: How often the run saw what it was to see.
    """

    findings: list[Finding]
    causes: Counter[Cause]
    reached: Counter[str]
    failed: list[str]
    passed: list[str]
    figures: dict[str, float]


def check(history: History) -> Judgement:
    """All verdicts on a run."""
    trial = Trial(build(history))
    findings: list[Finding] = []
    failed: list[str] = []
    passed: list[str] = []
    for verdict in VERDICTS:
        found = list(verdict.rule(trial))
        findings += found
        (failed if found else passed).append(verdict.name)
    return Judgement(findings, Counter(trial.causes.values()), trial.reached, failed, passed, _figures(trial.case))


def _figures(case: Case) -> dict[str, float]:
    stored = list(case.stored())
    seconds = (case.phases.get("end", case.last) - case.phases.get("load", 0)) / SECOND
    return {
        "jobs": len(stored),
        "chains": sum(job.place == 0 for job in stored),
        "starts": len(case.runs),
        "started twice": sum(len(job.runs) > 1 for job in stored),
        "seconds": round(seconds, 1),
        "jobs per second": round(len(stored) / seconds, 1) if seconds > 0 else 0.0,
    }
