"""How the command line looks: piped and on terminals of two widths, with rich and without."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dejq.cli.looks import Column, layout
from python.commands import CANARY, Ran, Run, command
from python.terminal import Terminal

pytest_plugins = ["python.command_line"]
pytestmark = pytest.mark.usefixtures("folder")

# Jobs in several states, one of which has failed with a long text.
SHOP = f"""
import logging

import dejq
from dejq import testing

logging.getLogger("dejq").setLevel(logging.CRITICAL)
client = dejq.memory()


@client.handler("thumbnail:of_a_type_with_a_rather_long_name:v1")
def fail(job: dejq.Job) -> None:
    raise ValueError("no picture at redis://:{CANARY}@db \\x1b[2J, " + "and more " * 20)


@client.handler("email:v1")
def send(job: dejq.Job) -> None: ...


client.enqueue(send.job(), fail.job())
testing.drain(client)
client.enqueue(send.job(), send.job())
"""


def without(*modules: str) -> list[str]:
    """The command in an interpreter that does not find these modules."""
    hide = "; ".join(f"sys.modules[{module!r}] = None" for module in modules)
    return [sys.executable, "-c", f"import sys; {hide}; from dejq.cli import main; sys.exit(main())"]


PLAIN = without("rich", "shtab", "textual", "watchfiles")
PRETTY = command()


@pytest.fixture
def shop(folder: Path) -> None:
    (folder / "shop.py").write_text(SHOP)


def show(base: list[str], *args: str, columns: int, code: int = 0, **environment: str) -> Terminal:
    """The terminal after the command has ended."""
    with Terminal([*base, *args], columns, environment=environment) as terminal:
        assert terminal.wait_for_end() == code, terminal.shown
    return terminal


# ---- on a terminal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("base", [PLAIN, PRETTY], ids=["plain", "rich"])
def test_a_job_takes_one_line_whatever_it_failed_with(shop: None, base: list[str], columns: int) -> None:
    head, *lines = show(base, "list", "--app", "shop:client", columns=columns).shown
    assert head.split()[:5] == ["ID", "STATE", "TYPE", "AGE", "CHAIN"]
    assert [line.split()[1] for line in lines] == ["finished", "failed", "ready", "blocked"]
    assert lines[1].endswith("…")
    assert len(lines[1]) == columns
    # What is needed to type the next command is whole.
    assert {len(line.split()[0]) for line in lines} == {36}
    assert {line.index(line.split()[1]) for line in lines} == {head.index("STATE")}


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("base", [PLAIN, PRETTY], ids=["plain", "rich"])
def test_stats_fit(shop: None, base: list[str], columns: int) -> None:
    head, *lines = show(base, "stats", "--app", "shop:client", columns=columns).shown
    assert len(lines) == 3
    assert all(len(line) <= columns for line in [head, *lines])
    assert head.split()[-1] == "OLDEST"
    assert ("SCHEDULED" in head) == (columns == 120)
    assert {"READY", "BLOCKED", "FINISHED", "FAILED"} <= set(head.split())
    assert ("thumbnail:of_a_type_with_a_rather_long_name:v1" in lines[1]) == (columns == 120)
    assert lines[2] == "2 types · 0 workers · 2 waiting to run"


def test_colours_come_with_rich_and_go_with_no_color(shop: None) -> None:
    args = ("list", "--app", "shop:client")
    pretty = show(PRETTY, *args, columns=120)
    assert pretty.colours(" failed ") == {"red", "default"}
    assert pretty.colours(" finished ") == {"green", "default"}
    plain = show(PLAIN, *args, columns=120)
    dull = show(PRETTY, *args, columns=120, NO_COLOR="1")
    for terminal in (plain, dull):
        assert terminal.colours(" failed ") == {"default"}
        assert [line.split()[1:3] for line in terminal.shown] == [line.split()[1:3] for line in pretty.shown]
    assert b"\x1b" not in plain.seen


def test_what_a_handler_raised_cannot_clear_the_screen(shop: None) -> None:
    for base in (PLAIN, PRETTY):
        terminal = show(base, "list", "--app", "shop:client", columns=200)
        assert "no picture at redis://:***@db \\x1b[2J, and more" in terminal.shown[2]
        assert b"\x1b[2J" not in terminal.seen
        assert CANARY.encode() not in terminal.seen


@pytest.mark.parametrize("base", [PLAIN, PRETTY], ids=["plain", "rich"])
def test_what_the_doctor_says_is_wrapped_and_never_cut(shop: None, base: list[str]) -> None:
    shown = show(base, "doctor", "shop:client", columns=60).shown
    place = shown.index(" " * 19 + "fix: fine for tests and development; name")
    assert shown[place + 1] == " " * 19 + "a durable store for production"
    assert all(len(line) <= 60 and "…" not in line for line in shown)


def test_the_levels_of_the_doctor_are_in_colours(shop: None) -> None:
    shown = show(PRETTY, "doctor", "shop:client", columns=80)
    assert shown.colours("warn ") == {"brown"}
    assert shown.colours("ok ") == {"green"}


def test_the_help_of_every_verb_fits(folder: Path) -> None:
    from dejq.cli import VERBS

    for verb in ("requeue", "worker", "doctor", "bench"):
        assert verb in VERBS
        terminal = show(PLAIN, verb, "--help", columns=80)
        assert all(len(line) <= 80 for line in terminal.shown)
        assert "example:" in terminal.shown


# ---- asking ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ("y", 0, "requeued 1 job"),
        ("yes", 0, "requeued 1 job"),
        ("n", 1, "nothing was done"),
        ("", 1, "nothing was done"),
    ],
)
def test_who_names_jobs_by_a_filter_is_asked(shop: None, answer: str, code: int, said: str) -> None:
    args = ("requeue", "--state", "failed", "--app", "shop:client")
    with Terminal([*PLAIN, *args], columns=80) as terminal:
        terminal.wait_for("requeue 1 job? [y/N]")
        terminal.press(f"{answer}\r")
        assert terminal.wait_for_end() == code
    assert terminal.shown[-1] == said


def test_nobody_is_asked_about_no_jobs(shop: None) -> None:
    args = ("requeue", "--state", "failed", "--type", "email:v1", "--app", "shop:client")
    assert show(PLAIN, *args, columns=80).shown == ["requeued 0 jobs"]


@pytest.mark.parametrize("base", [PLAIN, PRETTY], ids=["plain", "rich"])
def test_progress_is_shown_and_leaves_nothing_behind(shop: None, base: list[str]) -> None:
    terminal = show(base, "cancel", "--type", "email:v1", "--yes", "--app", "shop:client", columns=80)
    assert terminal.shown == ["cancelled 2 jobs"]
    assert b"2 of 2" in terminal.seen or b"2/2" in terminal.seen


# ---- piped, and without extras ---------------------------------------------------------------------------


def test_what_is_piped_is_whole_and_plain(shop: None, run_process: Run) -> None:
    ran = run_process("list", "--app", "shop:client")
    assert ran.code == 0
    assert "\x1b" not in ran.text
    assert "…" not in ran.text
    assert "and more and more " * 5 in ran.out
    assert CANARY not in ran.text


def test_top_says_what_it_needs(shop: None, run: Run) -> None:
    assert run("top", "--app", "shop:client") == Ran(
        2, "", "dejq: top needs a terminal; to write it down there is: dejq stats --watch 2\n"
    )
    terminal = show(PLAIN, "top", "--app", "shop:client", columns=80, code=2)
    assert terminal.shown == ['dejq: top needs textual: pip install "dejq[top]"']


def test_completion_says_what_it_needs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert run("completion", "bash") == Ran(2, "", 'dejq: completion needs shtab: pip install "dejq[cli]"\n')


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completion_knows_every_verb_and_flag(run: Run, shell: str) -> None:
    from dejq.cli import VERBS

    ran = run("completion", shell)
    assert (ran.code, ran.err) == (0, "")
    for verb in VERBS.values():
        assert verb.name in ran.out
        for flag in verb.flags:
            for name in flag.names:
                if name.startswith("--"):
                    assert name.lstrip("-") in ran.out


# ---- the layout ------------------------------------------------------------------------------------------

COLUMNS = [Column("TYPE", gives_way=True), Column("N", is_number=True), Column("SPARE", is_number=True, is_spare=True)]


def lines(rows: list[list[str]], width: int | None) -> list[str]:
    return ["".join(parts).rstrip() for parts in layout(COLUMNS, rows, width)]


def test_columns_are_as_wide_as_they_need_to_be() -> None:
    assert lines([["a", "1", "0"], ["long_name", "1,000", "0"]], None) == [
        "TYPE           N  SPARE",
        "a              1      0",
        "long_name  1,000      0",
    ]


def test_what_gives_way_does_when_it_must() -> None:
    rows = [["a_very_long_name_of_a_type", "1", "0"]]
    assert lines(rows, 36) == ["TYPE                        N  SPARE", "a_very_long_name_of_a_type  1      0"]
    # First the column that says nothing, then the names, and at last the line.
    assert lines(rows, 29) == ["TYPE                        N", "a_very_long_name_of_a_type  1"]
    assert lines(rows, 20) == ["TYPE               N", "a_very_long_name…  1"]
    assert lines(rows, 13) == ["TYPE", "a_very_long…"]
    assert lines([["a_very_long_name_of_a_type", "1", "7"]], 22) == ["TYPE          N  SPARE", "a_very_long…  1      7"]
