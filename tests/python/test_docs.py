"""The programs in README.md and docs/ run as written, and print what stands below them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:(?P<between>.*?)^```text(?P<sorted> sorted)?\n(?P<output>.*?)^```$)?",
    re.M | re.S,
)


class Program(NamedTuple):
    name: str
    code: str
    output: str
    is_sorted: bool


def programs() -> list[Program]:
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for match in PROGRAM.finditer(text):
            assert match["output"] is not None, f"{page.name}: a program without its output"
            assert "```" not in match["between"], f"{page.name}: another block stands between program and output"
            line = text.count("\n", 0, match.start()) + 1
            found.append(Program(f"{page.name}:{line}", match["code"], match["output"], bool(match["sorted"])))
    return found


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.name)
def test_a_program_in_the_docs_prints_what_stands_below_it(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(program.code, encoding="utf-8")
    ran = subprocess.run([sys.executable, "-W", "error", file], capture_output=True, text=True, timeout=30, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    printed, expected = ran.stdout.splitlines(), program.output.splitlines()
    if program.is_sorted:
        printed, expected = sorted(printed), sorted(expected)
    assert printed == expected


def test_every_page_that_the_docs_link_to_exists() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tests_that_the_guarantees_name_exist() -> None:
    table = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8").split("where they are tested")[1]
    named = set(re.findall(r"`([\w:.]+)`", table)) - {"max_beats"}
    assert len(named) > 10
    for name in named:
        if name.endswith(".py"):
            place = ROOT / "tests" / "python" / name
        elif "::" in name:
            place = ROOT / "tests" / f"{name.replace('::', '/')}.rs"
        else:
            place = ROOT / "tests" / name / "main.rs"
        assert place.exists(), name
