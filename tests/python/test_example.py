"""``dejq example``: the demonstration on real files does what it says."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import dejq
from dejq import example, testing

if TYPE_CHECKING:
    from python.redis_store import RedisClient

pytest_plugins = ["python.postgres", "python.redis_store"]

ROOT = Path(__file__).parents[2]
SECONDS = 60.0


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("DEJQ_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small project, with things in it that are not to be indexed."""
    folder = tmp_path / "project"
    for name, content in {
        "README.md": "# One\n\ntext\n## Two\n",
        "app.py": "class A:\n    def b(self): ...\n\nasync def c(): ...\n",
        "src/lib.rs": "pub struct S;\npub(crate) async fn f() {}\nconst fn g() {}\n",
        "src/data.bin": "class Not: ...",
        "src/notes.md": "binary \0 after all",
        "target/debug/out.rs": "fn built() {}",
        ".git/hook.py": "def hidden(): ...",
        "env/pyvenv.cfg": "",
        "env/lib.py": "def installed(): ...",
        "node_modules/x.js": "function foreign() {}",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "huge.md").write_text("#\n" * example.MOST_BYTES)
    (folder / "link.md").symlink_to(folder / "README.md")
    return folder


def run(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "dejq", "example", *args],
        capture_output=True, text=True, timeout=SECONDS, check=False, cwd=cwd,
    )  # fmt: skip


def lines_of(output: str) -> dict[str, str]:
    """The summary: the first word of each line, and the rest."""
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in output.splitlines()}


def test_it_indexes_the_files_of_a_folder_in_order_and_says_so(folder: Path, tmp_path: Path) -> None:
    ran = run("mem", str(folder), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    said = lines_of(ran.stdout)
    assert said["dejq"].startswith(f"{dejq.__version__} · memory · ")
    assert said["folder"] == str(folder)
    assert said["enqueued"].startswith("3 chains of 3 jobs, a slow job and a failing one")
    assert said["files"].startswith("3 with 11 lines, ")
    assert " and 8 symbols in " in said["files"]
    assert said["jobs"] == "12 finished, in 13 runs"
    assert said["chains"] == "3 of 3 complete and in order"
    assert said["retries"].startswith("example:flaky was tried again: attempt 1 raised ConnectionError: ")
    assert re.fullmatch(r"[\d,]+ jobs/s, .*", said["speed"])
    assert int(said["beats"].split(",")[0]) >= 1
    assert said["stop"] == "1 running job finished first, 0 given back"
    assert "3 symbols       4 lines  app.py" in ran.stdout
    assert re.fullmatch(r"log +example:flaky failed on attempt 1, next try in [^\n]*\n", ran.stderr)


def test_it_indexes_the_project_around_the_current_folder(folder: Path) -> None:
    (folder / "pyproject.toml").touch()
    ran = run(cwd=folder / "src")
    assert ran.returncode == 0, ran.stderr
    assert lines_of(ran.stdout)["folder"] == str(folder)


def test_it_leaves_nothing_behind(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    before = sorted(folder.rglob("*"))
    assert run("mem", str(folder), cwd=folder).returncode == 0
    assert list(temporary.iterdir()) == []
    assert sorted(folder.rglob("*")) == before


def test_ctrl_c_ends_it_gracefully(
    folder: Path, tmp_path: Path, until: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    out = tmp_path / "out"
    with (
        out.open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "dejq", "example", "mem", str(folder)],
            stdout=file,
            stderr=subprocess.PIPE,
        ) as process,
    ):
        until(lambda: "enqueued" in out.read_text())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert not list(tmp_path.glob("dejq-example-*"))


def test_a_store_that_cannot_be_is_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJQ_URL", "sqs://us-east-1/standard")
    ran = run(cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "is not the name of a FIFO queue" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_it_runs_on_postgres(folder: Path, pg_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    separator = "&" if "?" in pg_url else "?"
    monkeypatch.setenv("DEJQ_URL", f"{pg_url}{separator}schema=example_{os.getpid()}")
    ran = run(cwd=folder)
    assert ran.returncode == 0, ran.stderr
    assert "· postgres ·" in ran.stdout


def test_it_runs_on_redis(
    folder: Path, redis_url: str, redis_queue: str, redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = redis_client()
    separator = "&" if "?" in redis_url else "?"
    monkeypatch.setenv("DEJQ_URL", f"{redis_url}{separator}queue={redis_queue}")
    ran = run(cwd=folder)
    assert ran.returncode == 0, ran.stderr
    assert "· redis ·" in ran.stdout
    assert watcher.stats().finished == 12


def test_the_environment_names_the_store_and_an_argument_goes_before_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls: list[str] = []

    def note(url: str, folder: Path) -> bool:
        urls.append(url)
        return True

    monkeypatch.setattr(example, "run", note)
    monkeypatch.setenv("DEJQ_URL", "redis://elsewhere")
    example.main(None, str(folder))
    example.main("mem", str(folder))
    monkeypatch.delenv("DEJQ_URL")
    example.main(None, str(folder))
    assert urls == ["redis://elsewhere", "memory://", "memory://"]


def test_a_folder_that_is_none_is_code_2(tmp_path: Path) -> None:
    ran = run("mem", "nowhere", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "there is no folder nowhere" in ran.stderr


def test_where_there_is_nothing_to_index_it_indexes_dejq_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert example.find_folder() == Path(dejq.__file__).parent


def test_only_text_of_the_project_itself_is_indexed(folder: Path) -> None:
    found = [str(path.relative_to(folder)) for path in example.find_files(folder)]
    assert found == ["README.md", "app.py", "src/lib.rs"]


@pytest.mark.parametrize(
    ("suffix", "text", "symbols"),
    [
        (".py", "class A:\n  async def b(): ...\n  def c(): ...\n# def no\nindef = 1", 3),
        (".rs", "pub struct S;\nfn a() {}\npub(crate) async fn b() {}\nunsafe fn c() {}\n// fn no()\nlet fn_ = 1;", 4),
        (".md", "# a\n###### b\n####### no\n#no\n", 2),
        (".go", "func main() {\ntype T struct\n", 2),
        (".ts", "export interface A {}\nexport async function b() {}\n", 2),
        (".sql", "CREATE TABLE t ();\ncreate index i;\n-- create no", 2),
    ],
)
def test_symbols_are_counted(suffix: str, text: str, symbols: int) -> None:
    assert len(example.SYMBOLS[suffix].findall(text)) == symbols


def test_a_file_that_is_gone_cancels_its_chain_and_is_not_counted_as_in_order(tmp_path: Path) -> None:
    database = example.create_database(tmp_path)
    file = tmp_path / "a.md"
    file.write_text("# here\n")
    with example.connect("memory://") as client:
        for path in (file, tmp_path / "gone.md"):
            body = example.File(str(path), database)
            client.enqueue(*(dejq.PendingJob(type, body) for type in example.INDEX), on_failure="cancel")
        testing.drain(client)
        assert (client.stats().finished, client.stats().failed, client.stats().cancelled) == (3, 1, 2)
    with closing(sqlite3.connect(database)) as results:
        assert example.count_in_order(results) == 1
    assert not example.summarize(database, tmp_path, expected=2)


def test_steps_that_overlap_or_swap_are_not_in_order(tmp_path: Path) -> None:
    database = example.create_database(tmp_path)
    read, count, report = example.INDEX
    chains = {
        "good": [(read, 1, 2), (count, 2, 3), (report, 5, 6)],
        "overlap": [(read, 1, 3), (count, 2, 4), (report, 5, 6)],
        "swapped": [(count, 1, 2), (read, 3, 4), (report, 5, 6)],
        "short": [(read, 1, 2), (count, 3, 4)],
        "twice": [(read, 1, 2), (read, 3, 4), (count, 5, 6), (report, 7, 8)],
    }
    with closing(sqlite3.connect(database)) as results, results:
        for path, steps in chains.items():
            for type, began, ended in steps:
                results.execute("INSERT INTO steps VALUES ('id', ?, ?, 1, ?, ?, NULL)", (type, path, began, ended))
        assert example.count_in_order(results) == 1
