"""The programs in examples/ run as they are, and print what stands at their end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from python.printed import assert_printed

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
EXPECTED = re.compile(r"^# Prints(?P<sorted>, in any order.*)?:\n(?P<lines>(?:# .*\n)+)\Z", re.MULTILINE)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 6


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: str(file.name))
def test_an_example_prints_what_stands_at_its_end(file: Path, tmp_path: Path) -> None:
    match = EXPECTED.search(file.read_text(encoding="utf-8"))
    assert match is not None, "it ends with a comment that starts with '# Prints:'"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEJQ_")}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-B", file],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    expected = [line.removeprefix("# ") for line in match["lines"].splitlines()]
    assert_printed(ran.stdout, expected, in_any_order=bool(match["sorted"]))
