"""The screen of ``dejq top``: by textual's own pilot, and on a terminal."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from textual.pilot import Pilot

import dejq
import servers
from dejq import PendingJob, testing
from dejq.cli.screen import Table, Top
from python.commands import CANARY, SECONDS, command
from python.terminal import Terminal

if TYPE_CHECKING:
    from python.conftest import NewClient
    from python.postgres import PgClient
    from python.redis_store import RedisClient

pytest_plugins = ["python.command_line", "python.postgres", "python.redis_store"]
pytestmark = pytest.mark.usefixtures("folder")

# Only the tests look: no screen does by itself.
NEVER = 3600.0
FOOTER = "1 types 2 running 3 failed 4 ready / filter p pause q quit"


class Screen:
    """A screen of some size, and what stands on it."""

    def __init__(self, app: Top, pilot: Pilot[None]) -> None:
        self.app, self._pilot = app, pilot

    @property
    def shown(self) -> list[str]:
        strips = self.app.screen._compositor.render_strips()
        return [strip.text.rstrip() for strip in strips]

    @property
    def text(self) -> str:
        return "\n".join(self.shown)

    async def press(self, *keys: str) -> None:
        await self._pilot.press(*keys)
        await self.settle()

    async def settle(self) -> None:
        """Until nothing is under way, nor are columns that have not got their widths."""
        await self._pilot.pause()
        while self.app.workers._workers or any(
            table._require_update_dimensions or table._updated_cells for table in self.app.query(Table)
        ):
            await self.app.workers.wait_for_complete()
            await self._pilot.pause()
        await self._pilot.pause()

    async def wait_for(self, text: str) -> None:
        end = time.monotonic() + SECONDS
        while text not in self.text:
            assert time.monotonic() < end, f"{text!r} did not come:\n{self.text}"
            await self.settle()


def watch(
    client: dejq.Client,
    steps: Callable[[Screen], Awaitable[None]],
    *,
    size: tuple[int, int] = (80, 24),
    is_read_only: bool = False,
    interval: float = NEVER,
) -> None:
    """Shows a screen on a client while `steps` are taken."""

    async def run() -> None:
        app = Top(client, interval=interval, is_read_only=is_read_only)
        async with app.run_test(size=size, notifications=True) as pilot:
            screen = Screen(app, pilot)
            await screen.settle()
            await steps(screen)

    asyncio.run(run())


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("dejq")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@pytest.fixture(params=["new_client", "pg_client", "redis_client"])
def client(request: pytest.FixtureRequest) -> dejq.Client:
    """With a failed job, one that is ready, one that is scheduled, and one that is blocked."""
    make: NewClient | PgClient | RedisClient = request.getfixturevalue(request.param)
    made = make()
    fill(made)
    return made


def fill(client: dejq.Client) -> None:
    def fail(job: dejq.Job) -> None:
        raise ValueError(f"no picture at redis://:{CANARY}@db [bold]\x1b[2J")

    client.register_handler("thumbnail:v1", fail)
    client.enqueue(PendingJob("thumbnail:v1", {"to": "secret"}, headers={"trace": "7"}))
    testing.drain(client)
    client.enqueue(PendingJob("email:v1", "secret"), PendingJob("email:v1"))
    client.enqueue(PendingJob("email:v1", delay=3600))


# ---- what it shows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_types_with_their_counts(client: dejq.Client, width: int) -> None:
    async def steps(screen: Screen) -> None:
        await screen.press("space")
        head, counts, curves, *table = screen.shown
        assert head.startswith(f" dejq top  {client.store} (from the call)  ● every 3600 s  ")
        assert "Waiting 3  Running 0  Failed 1  Done 0/min  Oldest " in counts
        assert curves.startswith(" done/min ")
        assert table[0].split() == ["TYPE", "READY", "SCHED", "BLOCKED", "RUN", "DONE/MIN", "FAILED", "OLDEST"]
        assert table[1].split()[:7] == ["email:v1", "1", "1", "1", "0", "0", "0"]
        assert table[2].split()[:7] == ["thumbnail:v1", "0", "0", "0", "0", "0", "1"]
        assert " ".join(screen.shown[-1].split()) == FOOTER
        assert all(len(line) <= width for line in screen.shown)

    watch(client, steps, size=(width, 24))


def test_rates_are_of_what_ended_between_looks(new_client: NewClient) -> None:
    client = new_client()
    client.register_handler("good", lambda job: None)
    client.enqueue_many(PendingJob("good") for _ in range(6))

    async def steps(screen: Screen) -> None:
        assert "Done –/min" in screen.text
        testing.drain(client)
        await screen.press("space")
        # Six of them in the moment between two looks.
        (rate,) = [line.split()[5] for line in screen.shown if line.startswith(" good ")]
        assert float(rate.replace(",", "")) > 60
        assert f"Done {rate}/min" in screen.text

    watch(client, steps)


@pytest.mark.parametrize("width", [80, 120])
def test_failed_jobs_and_all_about_one_of_them(client: dejq.Client, width: int) -> None:
    (failed,) = client.list_jobs(state="failed")

    async def steps(screen: Screen) -> None:
        await screen.press("3")
        head, line = screen.shown[3:5]
        assert head.split() == ["ID", "TYPE", "ENDED", "CHAIN", "ERROR"]
        assert line.split()[:2] == [failed.id, "thumbnail:v1"]
        assert "⏎ inspect" in screen.shown[-1]
        assert "r requeue" in screen.shown[-1]
        assert all(len(line) <= width for line in screen.shown)
        await screen.press("enter")
        assert "state      failed, attempt 1" in screen.text
        assert "headers    trace=7" in screen.text
        assert "secret" not in screen.text
        await screen.press("b")
        await screen.press("end")
        assert '"to": "secret"' in screen.text
        assert CANARY not in screen.text
        assert "\x1b" not in screen.text
        await screen.press("escape")
        assert failed.id in screen.text

    watch(client, steps, size=(width, 40))


def test_what_a_handler_raised_is_shown_as_text(client: dejq.Client) -> None:
    async def steps(screen: Screen) -> None:
        await screen.press("3")
        assert "ValueError: no picture at redis://:***@db [bold]\\x1b[2J" in screen.text

    watch(client, steps, size=(200, 24))


def test_running_jobs(new_client: NewClient, until: Callable[[Callable[[], object]], None]) -> None:
    client, told = new_client(workers=1, heartbeat=0.2), threading.Event()

    def work(job: dejq.Job) -> None:
        if job.position == 1:
            until(lambda: job.cancelled)
            told.set()

    client.register_handler("slow", work)
    ids = client.enqueue(PendingJob("slow"), PendingJob("slow"))
    client.dequeue_loop()
    until(lambda: client.get_job(ids[0]).state == "running")

    async def steps(screen: Screen) -> None:
        await screen.press("2")
        assert screen.shown[3].split() == ["ID", "TYPE", "FOR", "BEAT", "ATTEMPT", "CHAIN"]
        assert screen.shown[4].split()[:2] == [ids[0], "slow"]
        assert screen.shown[4].split()[-2:] == ["1", "1/2"]
        await screen.press("c", "y")

    watch(client, steps)
    assert told.wait(SECONDS)


def test_an_empty_queue_says_what_to_type(new_client: NewClient) -> None:
    async def steps(screen: Screen) -> None:
        assert "no jobs yet; to enqueue one: dejq enqueue TYPE JSON" in screen.text
        await screen.press("3")
        assert "no jobs are failed" in screen.text

    watch(new_client(), steps)


def test_a_store_that_can_only_count_shows_its_counts_and_says_why_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in servers.EMULATOR_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    queue = f"dejq-test-{uuid4().hex}.fifo"
    with servers.sqs() as server, dejq.connect(servers.queue_url(server.url, queue)) as client:
        client.migrate()
        client.enqueue(PendingJob("good"))

        async def steps(screen: Screen) -> None:
            assert "Waiting 1  Running 0  Failed 0  Done –/min  Oldest –  Workers –" in screen.text
            assert "this store tells no types apart" in screen.text
            await screen.press("3")
            assert "DEJQ-E130" in screen.text
            assert "ERROR" not in screen.text

        watch(client, steps)


def test_the_screen_on_the_page_is_as_it_is(new_client: NewClient) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    (drawn,) = re.findall(r"^```text\n( dejq top .*?)^```$", page, re.MULTILINE | re.DOTALL)
    client = new_client()
    fill(client)

    async def steps(screen: Screen) -> None:
        # One line apart, the rates are known.
        await screen.press("space", "space")
        shown = [line for line in screen.shown if line]
        assert [at_any_time(line) for line in shown] == [at_any_time(line) for line in drawn.splitlines() if line]

    watch(client, steps)


def at_any_time(line: str) -> str:
    """Without what another day would change: times, and how far apart the looks are."""
    return re.sub(r" +(\d+ (ms|s)|\d\d:\d\d:\d\d)\b", " …", line)


@pytest.mark.parametrize(
    ("width", "name"), [(80, "of_a_type_with_a_rathe…"), (120, "of_a_type_with_a_rather_long_name:v1")]
)
def test_the_name_of_a_type_leaves_room_for_its_counts(new_client: NewClient, width: int, name: str) -> None:
    client = new_client()
    client.enqueue(PendingJob("of_a_type_with_a_rather_long_name:v1"))

    async def steps(screen: Screen) -> None:
        line = screen.shown[4].split()
        assert line[:2] == [name, "1"]
        assert len(line) == 9  # "3 ms" are two
        await screen.press("4")
        assert f" {name[:20]}" in screen.shown[4]

    watch(client, steps, size=(width, 24))


def test_a_look_that_comes_after_the_end_is_no_error(new_client: NewClient) -> None:
    async def steps(screen: Screen) -> None:
        await screen.app.query("*").remove()
        await screen.press("space")

    watch(new_client(), steps)


# ---- keys ------------------------------------------------------------------------------------------------


def test_requeue_asks_first(client: dejq.Client) -> None:
    (failed,) = client.list_jobs(state="failed")

    async def steps(screen: Screen) -> None:
        await screen.press("3", "r")
        await screen.wait_for(f"requeue thumbnail:v1 {failed.id}?  (y/n)")
        await screen.press("n")
        assert client.get_job(failed.id).state == "failed"
        await screen.press("r")
        await screen.wait_for("(y/n)")
        await screen.press("y")
        assert client.get_job(failed.id).state == "ready"
        await screen.wait_for("no jobs are failed")

    watch(client, steps)


def test_cancel_of_a_job_that_is_gone_says_why_it_cannot_be(new_client: NewClient) -> None:
    client = new_client()
    (id,) = client.enqueue(PendingJob("good"))

    async def steps(screen: Screen) -> None:
        await screen.press("4")
        client.finish_job(id)
        await screen.press("c")
        await screen.wait_for("(y/n)")
        await screen.press("y")
        await screen.wait_for("DEJQ-E121")

    watch(client, steps, size=(120, 24))


def test_read_only_has_no_keys_that_change_something(client: dejq.Client) -> None:
    async def steps(screen: Screen) -> None:
        await screen.press("3", "r", "y")
        assert "(y/n)" not in screen.text
        assert "requeue" not in screen.shown[-1]
        assert "read-only" in screen.shown[0]

    watch(client, steps, is_read_only=True)
    assert client.stats().failed == 1


def test_a_filter_is_a_part_of_the_name_of_a_type(client: dejq.Client) -> None:
    async def steps(screen: Screen) -> None:
        await screen.press("slash", *"thumb")
        await screen.wait_for("thumb\n")
        await screen.press("enter", "space")
        assert "thumbnail:v1" in screen.text
        assert "email:v1" not in screen.text
        await screen.press("4", "space")
        assert "no type here has 'thumb' in its name" in screen.text
        await screen.press("escape", "space")
        assert screen.text.count("email:v1") == 1

    watch(client, steps)


def test_a_paused_screen_looks_only_when_asked(new_client: NewClient) -> None:
    client = new_client()

    async def steps(screen: Screen) -> None:
        await screen.press("p")
        assert "‖ paused" in screen.shown[0]
        client.enqueue(PendingJob("late"))
        before = screen.app._rates._seen[-1][0]
        screen.app._look_again()
        await screen.settle()
        assert screen.app._rates._seen[-1][0] == before
        assert "late" not in screen.text
        await screen.press("space")
        assert "late" in screen.text

    watch(client, steps)


def test_it_looks_again_by_itself(new_client: NewClient) -> None:
    client = new_client()

    async def steps(screen: Screen) -> None:
        client.enqueue(PendingJob("late"))
        await screen.wait_for("late")

    watch(client, steps, interval=0.1)


def test_a_slow_store_is_left_alone_for_longer(new_client: NewClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client = new_client()

    async def steps(screen: Screen) -> None:
        monkeypatch.setattr("dejq.cli.screen._REST", 1e9)
        await screen.press("space")
        client.enqueue(PendingJob("late"))
        screen.app._look_again()
        await screen.settle()
        assert "late" not in screen.text

    watch(client, steps)


def test_a_store_that_goes_away_and_comes_back(new_client: NewClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client = new_client()
    client.enqueue(PendingJob("good"))

    async def steps(screen: Screen) -> None:
        with monkeypatch.context() as broken:

            def stats(_: dejq.Client) -> dejq.Stats:
                raise dejq.BackendUnavailable(f"nobody answers at redis://:{CANARY}@db")

            broken.setattr(dejq.Client, "stats", stats)
            await screen.press("space")
            assert "✗ no answer" in screen.shown[0]
            assert "DEJQ-E200 nobody answers at redis://:***@db" in screen.text
            assert CANARY not in screen.text
            # What was known last stays.
            assert "good" in screen.text
        await screen.press("space")
        assert "● every" in screen.shown[0]
        assert "DEJQ-E200" not in screen.text

    watch(client, steps)


def test_an_error_of_one_look_takes_nothing_off_the_screen(
    client: dejq.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    (failed,) = client.list_jobs(state="failed")

    async def steps(screen: Screen) -> None:
        await screen.press("3")
        with monkeypatch.context() as broken:

            def list_jobs(*_: object, **__: object) -> list[dejq.JobInfo]:
                raise dejq.BackendUnavailable("nobody answers")

            broken.setattr(dejq.Client, "list_jobs", list_jobs)
            await screen.press("space")
            assert "DEJQ-E200 nobody answers" in screen.text
            assert failed.id in screen.text
        await screen.press("space")
        assert "DEJQ-E200" not in screen.text

    watch(client, steps)


# ---- on a terminal ---------------------------------------------------------------------------------------

LIVE = """
import dejq

client = dejq.connect("memory://")
client.enqueue(dejq.PendingJob("email:v1"), dejq.PendingJob("report:v1"))
"""


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal(folder: Path, columns: int) -> None:
    (folder / "live.py").write_text(LIVE)
    with Terminal(command("top", "--app", "live:client", "--interval", "0.5"), columns) as terminal:
        terminal.wait_for("report:v1")
        terminal.wait_for("q quit")
        shown = terminal.shown
        assert shown[0].startswith(" dejq top  memory (from the call)  ● every 0.5 s  ")
        assert shown[3].split()[:4] == ["TYPE", "READY", "SCHED", "BLOCKED"]
        assert " ".join(shown[-1].split()) == FOOTER
        terminal.press("4")
        terminal.wait_for("⏎ inspect")
        terminal.press("q")
        assert terminal.wait_for_end() == 0
    # The screen that was there before is back.
    assert b"\x1b[?1049l" in terminal.seen


SLOW = f"""{LIVE}
import pathlib, time

stats = client.stats


def slow():
    if pathlib.Path("seen").exists():
        pathlib.Path("looking").touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.005)
    return stats()


client.stats = slow
"""


def test_who_quits_while_the_store_is_slow_gets_the_terminal_back(
    folder: Path, until: Callable[[Callable[[], object]], None]
) -> None:
    (folder / "slow.py").write_text(SLOW)
    with Terminal(command("top", "--app", "slow:client", "--interval", "0.1"), 80) as terminal:
        terminal.wait_for("report:v1")
        terminal.wait_for("q quit")
        (folder / "seen").touch()
        until((folder / "looking").exists)
        terminal.press("q")
        terminal.wait_until(lambda: b"\x1b[?1049l" in terminal.seen)
        (folder / "go").touch()
        assert terminal.wait_for_end() == 0
    assert b"Traceback" not in terminal.seen


def test_a_bug_of_ours_gives_the_terminal_back_and_is_code_1(folder: Path) -> None:
    (folder / "wrong.py").write_text(
        f"{LIVE}\nlooks = [client.stats, client.stats]\nclient.stats = lambda: looks.pop()()\n"
    )
    with Terminal(command("top", "--app", "wrong:client", "--interval", "0.1"), 80) as terminal:
        assert terminal.wait_for_end() == 1
    assert b"\x1b[?1049l" in terminal.seen
    assert b"pop from empty list" in terminal.seen


def test_without_a_store_no_screen_is_taken(folder: Path) -> None:
    with Terminal(command("top", "--url", f"redis://:{CANARY}@127.0.0.1:1"), 80) as terminal:
        assert terminal.wait_for_end() == 3
    assert terminal.shown[0].startswith("dejq: DEJQ-E200 ")
    assert b"\x1b[?1049h" not in terminal.seen
    assert CANARY.encode() not in terminal.seen
