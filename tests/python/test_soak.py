"""The soak itself: its programs, when they do something wrong on purpose, are found out by the verdict that must."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from soak import report
from soak.checker import Judgement
from soak.history import History, Sabotage
from soak.nemesis import schedule
from soak.run import Options, run
from soak.stores import Redis
from soak.workload import Workload


def soak(folder: Path, sabotage: Sabotage = "") -> tuple[History, Judgement]:
    """A run of some seconds, with no faults and no jobs that take long."""
    return run(Options("memory", 1, jobs=400, seconds=1.0, folder=folder / "soak", faults=(), sabotage=sabotage))


def test_a_run_without_faults_has_no_findings_and_leaves_a_report(tmp_path: Path) -> None:
    history, judgement = soak(tmp_path)
    # It is too short to see everything.
    assert {finding.verdict for finding in judgement.findings} <= {"V14"}
    assert judgement.figures["jobs"] >= 400
    assert set(judgement.causes) == {"retry"}
    report.write(tmp_path, history, judgement)
    assert report.verdict(judgement) in (tmp_path / "report.md").read_text()
    assert {"report.md", "report.json", "throughput.svg"} <= {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("sabotage", "verdict"),
    [("forget", "V1"), ("truncate", "V3"), ("run-twice", "V5"), ("no-ends", "V1"), ("leak", "V17")],
)
def test_what_a_program_does_wrong_on_purpose_is_found(tmp_path: Path, sabotage: Sabotage, verdict: str) -> None:
    _, judgement = soak(tmp_path, sabotage)
    assert verdict in judgement.failed


def test_faults_that_nobody_wrote_down_explain_nothing(tmp_path: Path) -> None:
    options = Options("redis", 1, jobs=300, seconds=6.0, every=1.0, folder=tmp_path / "soak", faults=("kill",))
    _, judgement = run(replace(options, sabotage="secret-faults"))
    assert "V17" in judgement.failed
    assert "killed" not in judgement.causes


def test_workload_and_faults_follow_from_the_seed() -> None:
    def planned(seed: int) -> object:
        calls = [Workload("redis", seed, enqueuer=1, special=5).call(number) for number in range(50)]
        acts = schedule(seed, Redis.faults, 60.0, every=1.0, heartbeat=1.0, slots=4, enqueuers=2)
        return calls, acts

    assert planned(1) == planned(1)
    assert planned(1) != planned(2)


def test_faults_leave_a_process_alone_until_another_has_come_up() -> None:
    acts = schedule(3, Redis.faults, 300.0, every=0.5, heartbeat=1.0, slots=4, enqueuers=2)
    assert {act.name for act in acts} == set(Redis.faults)
    for slot in {act.slot for act in acts}:
        of_slot = [act for act in acts if act.slot == slot]
        for earlier, later in pairwise(of_slot):
            assert later.at >= earlier.at + earlier.seconds + 3.0
