"""``dejq worker`` with several processes, limits, reload and HTTP: what is replaced, what stops, and what is said."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

import dejq
from dejq import cli

if TYPE_CHECKING:
    from python.conftest import Until
    from python.redis_store import RedisClient

pytest_plugins = ["python.redis_store"]

SECONDS = 60.0
CANARY = "hunter2"
PROGRAM = Path(__file__).parent / "programs" / "crew.py"
(BROKEN_LINE,) = (
    number for number, line in enumerate(PROGRAM.read_text().split("\n"), 1) if "raise RuntimeError(broken" in line
)


class Crew:
    """A worker process with those below it, and what they say on stderr."""

    def __init__(self, folder: Path, until: Until, args: tuple[str, ...], environment: dict[str, str]) -> None:
        self._log, self._folder, self._until = folder / "stderr", folder, until
        with self._log.open("ab") as err:
            self.popen = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "dejq", "worker", "crew:client", *args],
                cwd=folder,
                env=os.environ | {"DEJQ_URL": "memory://", "PYTHONDONTWRITEBYTECODE": "1"} | environment,
                stderr=err,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        self.process = psutil.Process(self.popen.pid)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def says(self, text: str, times: int = 1) -> None:
        self._until(lambda: self.said.count(text) >= times or self.popen.poll() is not None)
        assert self.said.count(text) >= times, self.said

    @property
    def children(self) -> list[psutil.Process]:
        return self.process.children()

    def ran(self, name: str) -> list[int]:
        """Pids of the processes that ran jobs of this type."""
        file = self._folder / "ran"
        lines = file.read_text().split("\n") if file.exists() else []
        return [int(pid) for pid, type, _ in (line.split() for line in lines if line.count(" ") == 2) if type == name]

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def send_to_all(self, number: signal.Signals) -> None:
        """To the process group, as a terminal does it."""
        os.killpg(self.popen.pid, number)

    def end(self) -> int:
        out, _ = self.popen.communicate(timeout=SECONDS)
        assert out == b"", "data on stdout"
        assert CANARY not in self.said
        return self.popen.returncode

    def get(self, path: str) -> tuple[int, str]:
        self.says("/metrics\n")
        (base,) = set(re.findall(r"^metrics   (http://\S+)/metrics$", self.said, re.M))
        try:
            with urllib.request.urlopen(base + path, timeout=SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        code, text = self.get("/metrics")
        assert code == 200
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(
            sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()
        )


class StartCrew(Protocol):
    """Starts ``dejq worker crew:client`` in a folder of the test's own."""

    def __call__(self, *args: str, **environment: str) -> Crew: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(PROGRAM, tmp_path)
    return tmp_path


@pytest.fixture
def start(folder: Path, until: Until) -> Iterator[StartCrew]:
    crews: list[Crew] = []

    def start_crew(*args: str, **environment: str) -> Crew:
        crews.append(Crew(folder, until, args, environment))
        return crews[-1]

    yield start_crew
    for crew in crews:
        # Its children end by themselves when it is gone, but not in time for the next test.
        left = [*crew.children, crew.process] if crew.popen.poll() is None else []
        for process in left:
            process.kill()
        crew.popen.communicate()


def gone(*processes: psutil.Process) -> Callable[[], bool]:
    return lambda: not any(process.is_running() and process.status() != "zombie" for process in processes)


# ---- starting and stopping -------------------------------------------------------------------------------


def test_processes_are_interpreters_of_their_own_below_one_that_says_what_works_where(start: StartCrew) -> None:
    crew = start("--processes", "2", "-w", "3")
    crew.says("ready     2 processes waiting for jobs; Ctrl-C to stop\n")
    assert len(crew.children) == 2
    assert all("-Werror" in child.cmdline() for child in crew.children), "with the flags of the interpreter"
    assert crew.said.splitlines() == [
        f"dejq {dejq.__version__} · memory · 3 workers · heartbeat 0.5 s",
        "handlers  quick  hold  grasp  grow",
        "ready     2 processes waiting for jobs; Ctrl-C to stop",
    ]
    crew.send(signal.SIGTERM)
    assert crew.end() == 0
    assert crew.said.splitlines()[-2:] == [
        "stopping  2 processes, up to 25 s (Ctrl-C again to stop now)",
        "stopped   0 done, 0 given back; 0 in all",
    ]


def test_with_json_logs_everything_that_is_said_is_json_and_log_lines_name_their_process(start: StartCrew) -> None:
    crew = start("--processes", "2", "-v", "--log-format", "json", CREW_JOBS="quick")
    crew.says('"job_type": "quick"', times=2)
    crew.says("2 processes waiting for jobs")
    crew.send(signal.SIGTERM)
    assert crew.end() == 0
    said = [json.loads(line) for line in crew.said.splitlines()]
    assert {line["worker_process"] for line in said if line["logger"] == "dejq"} == {1, 2}
    talk = [line["message"] for line in said if line["logger"] == "dejq.worker"]
    assert talk[-1].endswith("2 in all"), talk


def test_a_stop_lets_running_jobs_finish_and_adds_up(start: StartCrew, folder: Path, until: Until) -> None:
    crew = start("--processes", "2", CREW_JOBS="hold")
    until(lambda: len(crew.ran("hold")) == 2)
    crew.send(signal.SIGTERM)
    crew.says("1 job running\n", times=2)
    assert {"stopping  process 1, 1 job running", "stopping  process 2, 1 job running"} <= set(crew.said.splitlines())
    (folder / "go").touch()
    assert crew.end() == 0
    assert crew.said.endswith("stopped   2 done, 0 given back; 2 in all\n")


def test_a_signal_to_the_whole_group_is_one_signal(start: StartCrew, folder: Path, until: Until) -> None:
    crew = start("--processes", "2", "--shutdown-timeout", "forever", CREW_JOBS="hold")
    until(lambda: len(crew.ran("hold")) == 2)
    for number in (signal.SIGTERM, signal.SIGINT):
        # The children get both, and both from the terminal; only what the supervisor says counts as the second.
        for child in crew.children:
            child.send_signal(number)
    crew.send_to_all(signal.SIGINT)
    crew.says("1 job running\n", times=2)
    assert "now" not in crew.said.replace("to stop now", "")
    (folder / "go").touch()
    assert crew.end() == 0
    assert crew.said.endswith("stopped   2 done, 0 given back; 2 in all\n")


def test_a_second_signal_means_now_for_all_processes(start: StartCrew, until: Until) -> None:
    crew = start("--processes", "2", "--shutdown-timeout", "forever", CREW_JOBS="hold")
    until(lambda: len(crew.ran("hold")) == 2)
    crew.send_to_all(signal.SIGINT)
    crew.says("1 job running\n", times=2)
    crew.send_to_all(signal.SIGINT)
    assert crew.end() == 1
    assert "stopping  now: running jobs are told to return and given back\n" in crew.said
    assert crew.said.endswith("stopped   0 done, 2 given back; 0 in all\n")


def test_a_process_that_does_not_end_in_time_is_killed(start: StartCrew, until: Until) -> None:
    crew = start("--processes", "1", "--shutdown-timeout", "10ms", CREW_JOBS="grasp", CREW_GRASPS="600")
    until(lambda: crew.ran("grasp"))
    crew.send(signal.SIGTERM)
    assert crew.end() == 1
    assert "killed    process 1, which did not end in time\n" in crew.said


def test_a_drain_ends_when_every_process_has_nothing_left(start: StartCrew) -> None:
    crew = start("--processes", "2", "--drain", CREW_JOBS="quick quick")
    assert crew.end() == 0
    assert len(crew.ran("quick")) == 4
    assert "; 4 in all\n" in crew.said


# ---- death ---------------------------------------------------------------------------------------------


def test_jobs_go_on_when_processes_are_killed(
    start: StartCrew, until: Until, redis_url: str, redis_queue: str, redis_client: RedisClient
) -> None:
    client = redis_client(heartbeat=0.5)
    crew = start("--processes", "4", DEJQ_URL=f"{redis_url}?queue={redis_queue}")
    crew.says("ready     4 processes")
    first = {child.pid for child in crew.children}
    ids = client.enqueue_many(dejq.PendingJob("quick") for _ in range(200))
    victims = crew.children[:3]
    for victim in victims:
        victim.kill()
    until(lambda: crew.said.count(" again\n") == 3)
    assert crew.said.count("killed by SIGKILL; a new one starts in 0.5 s\n") == 3
    assert len(crew.children) == 4
    assert len(first & {child.pid for child in crew.children}) == 1
    until(lambda: all(client.get_job(id).state == "finished" for id in ids))
    crew.send(signal.SIGTERM)
    assert crew.end() == 0


def test_processes_stop_gracefully_when_their_supervisor_is_killed(
    start: StartCrew, folder: Path, until: Until
) -> None:
    crew = start("--processes", "2", CREW_JOBS="hold")
    until(lambda: len(crew.ran("hold")) == 2)
    crew.says("ready     2 processes")
    children = crew.children
    crew.popen.kill()
    crew.popen.wait()
    (folder / "go").touch()
    until(gone(*children))
    # The jobs have ended as they should: none was told to return.
    assert "told to return" not in crew.said


def test_processes_that_wait_stop_when_their_supervisor_is_killed(start: StartCrew, until: Until) -> None:
    crew = start("--processes", "2")
    crew.says("ready     2 processes")
    children = crew.children
    crew.popen.kill()
    until(gone(*children))
    assert crew.said.count("its supervisor is gone\n") == 2


def test_an_application_that_cannot_be_imported_ends_all_at_once_with_its_code(start: StartCrew, folder: Path) -> None:
    (folder / "broken").write_text(f"no redis://me:{CANARY}@host")
    crew = start("--processes", "3")
    assert crew.end() == 1
    assert crew.said == f"dejq: crew cannot be imported: RuntimeError: no redis://me:***@host (crew.py:{BROKEN_LINE})\n"


def test_a_process_that_dies_while_it_starts_is_not_started_again_and_again(start: StartCrew) -> None:
    crew = start("--processes", "2", CREW_DIES="9")
    assert crew.end() == 1
    (said,) = crew.said.splitlines()
    assert re.fullmatch("dejq: process [12] ended before it was ready: killed by SIGKILL", said)


def test_an_application_that_breaks_later_is_tried_again_and_said_once(
    start: StartCrew, folder: Path, until: Until
) -> None:
    crew = start("--processes", "2")
    crew.says("ready     2 processes")
    (folder / "broken").write_text("half a deployment")
    for child in crew.children:
        child.kill()
    crew.says(f"RuntimeError: half a deployment (crew.py:{BROKEN_LINE}); a new one starts in 1 s\n")
    until(lambda: len(crew.children) == 0)
    (folder / "broken").unlink()
    crew.says(" again\n", times=2)
    assert crew.said.count("half a deployment") == 1
    crew.send(signal.SIGTERM)
    assert crew.end() == 0


def test_a_process_that_is_stopped_by_a_signal_is_replaced(start: StartCrew) -> None:
    crew = start("--processes", "2")
    crew.says("ready     2 processes")
    crew.children[0].terminate()
    crew.says(" again\n")
    assert "died      process 1: it was told to stop; a new one starts in 0.5 s\n" in crew.said
    crew.send(signal.SIGTERM)
    assert crew.end() == 0


def test_memory_is_refused_for_several_processes(start: StartCrew, folder: Path) -> None:
    text = (folder / "crew.py").read_text()
    (folder / "crew.py").write_text(text.replace("client._in_process = False\n", ""))
    crew = start("--processes", "2")
    assert crew.end() == 2
    assert crew.said == (
        "dejq: memory lives in one process, so 2 processes would have queues of their own; name another store, or "
        "leave out --processes\n"
    )


# ---- limits --------------------------------------------------------------------------------------------


def test_max_jobs_ends_a_single_process_with_0(start: StartCrew) -> None:
    crew = start("--max-jobs", "3", CREW_JOBS="quick " * 10)
    assert crew.end() == 0
    assert len(crew.ran("quick")) == 3
    assert "stopping  3 jobs run (--max-jobs)" in crew.said


def test_max_jobs_has_a_process_replaced(start: StartCrew, until: Until) -> None:
    crew = start("--processes", "1", "--max-jobs", "2", "--http", "127.0.0.1:0", CREW_JOBS="quick " * 3)
    until(lambda: len(crew.ran("quick")) >= 6)
    pids = crew.ran("quick")
    assert all(pids.count(pid) == 2 for pid in pids[:4])
    assert "stopping  process 1: 2 jobs run (--max-jobs)" in crew.said
    assert "died" not in crew.said
    crew.says(" again\n", times=2)
    assert crew.metric("dejq_process_restarts_total") >= 2
    assert crew.metric("dejq_jobs_finished_total", type="quick") >= 4, "what the first processes did is not forgotten"
    crew.send(signal.SIGTERM)
    assert crew.end() == 0


def test_max_memory_has_a_process_replaced(start: StartCrew, until: Until) -> None:
    crew = start("--processes", "1", "--max-memory", "120M", CREW_JOBS="grow grow")
    crew.says(" of memory are in use (--max-memory 120 MiB)")
    crew.says(" again\n")
    assert len(set(crew.ran("grow"))) >= 1
    crew.send(signal.SIGTERM)
    assert crew.end() == 0


def test_max_memory_that_is_used_up_before_the_first_job_is_wrong_usage(start: StartCrew) -> None:
    crew = start("--max-memory", "1M")
    assert crew.end() == 2
    assert re.fullmatch(
        r"dejq: --max-memory 1 MiB is less than the \d+ MiB that the process needs before its first job; give more\n",
        crew.said,
    )


def test_only_jobs_of_the_named_types_run(start: StartCrew, until: Until) -> None:
    crew = start("--type", "quick", "--type", "grow", "--drain", CREW_JOBS="hold quick grow")
    assert crew.end() == 0
    assert (len(crew.ran("quick")), len(crew.ran("grow")), len(crew.ran("hold"))) == (1, 1, 0)
    assert "handlers  quick  grow\n" in crew.said


def test_a_type_without_a_handler_is_wrong_usage(start: StartCrew) -> None:
    crew = start("--type", "quik")
    assert crew.end() == 2
    assert crew.said == (
        "dejq: --type 'quik' has no handler, so nothing would run; did you mean 'quick'?; the handlers here are for "
        "quick, hold, grasp, grow\n"
    )


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--processes", "0"], "must be a whole number of at least 1"),
        (["--max-memory", "lots"], "must be bytes, or a number with a unit: 512M, 2G"),
        (["--http", "9600"], "must be HOST:PORT, for example 127.0.0.1:9600"),
        (["--http", "host:99999"], "must be HOST:PORT"),
    ],
)
def test_a_flag_that_cannot_be_read_says_what_it_must_be(
    args: list[str], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["worker", "crew:client", *args])
    assert end.value.code == 2
    assert why in capfd.readouterr().err


# ---- reload --------------------------------------------------------------------------------------------


def test_a_changed_file_has_processes_replaced_gracefully(start: StartCrew, folder: Path, until: Until) -> None:
    crew = start("--reload", CREW_JOBS="hold")
    until(lambda: len(crew.ran("hold")) == 1)
    crew.says("ready     1 process waiting for jobs")
    program = (folder / "crew.py").read_text()
    (folder / "crew.py").write_text(program.replace('@client.handler("grow")', '@client.handler("grown")'))
    crew.says("reloading crew.py\n")
    crew.says("stopping  process 1, 1 job running\n")
    (folder / "go").touch()
    crew.says(" again\n")
    crew.send(signal.SIGTERM)
    assert crew.end() == 0
    assert "1 done" in crew.said


def test_a_reload_that_fails_waits_for_the_next_change(start: StartCrew, folder: Path, until: Until) -> None:
    (folder / "broken").write_text("not yet")
    crew = start("--reload")
    crew.says(
        f"failed    crew cannot be imported: RuntimeError: not yet (crew.py:{BROKEN_LINE}); waiting for a change\n"
    )
    (folder / "broken").unlink()
    (folder / "other.py").touch()
    crew.says("ready     1 process waiting for jobs")
    crew.send(signal.SIGINT)
    assert crew.end() == 0


def test_reload_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    assert cli.main(["worker", "crew:client", "--reload"]) == 2
    assert capfd.readouterr().err == (
        "dejq: --reload needs watchfiles, which is not installed: pip install 'dejq[cli]'\n"
    )


# ---- HTTP ----------------------------------------------------------------------------------------------


def test_metrics_and_probes_answer_while_a_handler_holds_the_interpreter(start: StartCrew, until: Until) -> None:
    crew = start("--http", "127.0.0.1:0", CREW_JOBS="grasp", CREW_GRASPS="600")
    until(lambda: crew.ran("grasp"))
    assert crew.get("/healthz") == (200, "ok\n")
    assert crew.get("/readyz") == (200, "ready\n")
    assert crew.metric("dejq_slots_in_use", handler="def") == 1
    assert crew.metric("dejq_jobs", type="grasp", state="running") == 1


def test_metrics_of_processes_add_up_while_handlers_hold_their_interpreters(start: StartCrew, until: Until) -> None:
    crew = start("--processes", "2", "--http", "127.0.0.1:0", CREW_JOBS="grasp", CREW_GRASPS="600")
    until(lambda: len(crew.ran("grasp")) == 2)
    assert crew.metric("dejq_ready_processes") == 2
    assert crew.metric("dejq_slots", handler="def") == 4
    assert crew.metric("dejq_slots_in_use", handler="def") == 2
    assert crew.metric("dejq_jobs_started_total", type="grasp") == 2


def test_counters_do_not_go_backwards_when_a_process_is_killed(start: StartCrew, until: Until) -> None:
    crew = start("--processes", "2", "--http", "127.0.0.1:0", CREW_JOBS="quick " * 5)
    until(lambda: crew.metric("dejq_jobs_finished_total", type="quick") == 10)
    crew.children[0].kill()
    seen = [crew.metric("dejq_jobs_finished_total", type="quick")]
    while " again\n" not in crew.said:
        seen.append(crew.metric("dejq_jobs_finished_total", type="quick"))
    until(lambda: crew.metric("dejq_jobs_finished_total", type="quick") == 15)
    assert seen == sorted(seen)
    assert seen[0] >= 10


def test_a_worker_that_stops_is_not_ready_any_more(start: StartCrew, folder: Path, until: Until) -> None:
    crew = start("--http", "127.0.0.1:0", CREW_JOBS="hold")
    until(lambda: crew.ran("hold"))
    crew.says("ready     ")
    crew.send(signal.SIGTERM)
    crew.says("stopping  1 job running")
    until(lambda: crew.get("/readyz")[0] == 503)
    assert crew.get("/healthz")[0] == 200
    (folder / "go").touch()
    assert crew.end() == 0


def test_a_port_that_is_taken_is_wrong_usage(start: StartCrew) -> None:
    crew = start("--http", "127.0.0.1:0")
    crew.says("ready     ")
    (port,) = re.findall(r"http://(\S+)/metrics", crew.said)
    for more in ([], ["--processes", "2"]):
        other = start("--http", port, *more)
        assert other.end() == 2
        assert f"dejq: DEJQ-E100 metrics cannot be served at {port}: " in other.said


def test_no_password_comes_out_of_metrics(
    redis_url: str, start: StartCrew, redis_queue: str, redis_client: RedisClient
) -> None:
    redis_client()
    url = redis_url.replace("://", f"://default:{CANARY}@") if "@" not in redis_url else redis_url
    crew = start("--processes", "2", "--http", "127.0.0.1:0", DEJQ_URL=f"{url}?queue={redis_queue}")
    crew.says("ready     2 processes", times=0)
    assert CANARY not in crew.get("/metrics")[1] + crew.get("/readyz")[1] + crew.said
