"""Fixtures that run commands: a module that wants them says ``pytest_plugins = ["python.command_line"]``.

A plugin is there for all modules, so it says ``pytestmark = pytest.mark.usefixtures("folder")`` as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dejq import cli
from python.commands import APP, SECONDS, Ran, Run, command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own for every test, and no settings from elsewhere."""
    for variable in [name for name in os.environ if name.startswith("DEJQ_")]:
        monkeypatch.delenv(variable)
    (tmp_path / "app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """In this process: quick."""

    def run_here(*args: str) -> Ran:
        try:
            code = cli.main(args)
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run_here


@pytest.fixture
def run_process() -> Run:
    """In a process of its own: everything counts, from the interpreter's start to its end."""

    def run_there(*args: str) -> Ran:
        done = subprocess.run(
            command(*args), capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run_there
