"""The command line: exit codes, streams, signals, where settings come from, and that no password comes out."""

from __future__ import annotations

import doctest
import inspect
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

import dejq
from dejq import cli, testing
from dejq._secrets import scrub
from dejq.cli.flags import fill_in, make_parser, seconds
from dejq.cli.talk import visible
from python.commands import APP, CANARY, SECONDS, Ran, Run, command

pytest_plugins = ["python.command_line", "python.postgres"]
pytestmark = pytest.mark.usefixtures("folder")

VERBS = (
    "worker", "migrate", "stats", "top", "list", "inspect", "enqueue", "requeue", "cancel", "finish", "cleanup",
    "doctor", "bench", "example", "completion",
)  # fmt: skip

# One job runs as soon as the worker does. It leaves a file when it starts, and waits for another.
BUSY = """
import pathlib
import time

import dejq

client = dejq.connect("memory://", workers=1)


@client.handler("busy:v1")
def work(job: dejq.Job) -> None:
    pathlib.Path("started").touch()
    while not pathlib.Path("go").exists():
        if job.cancelled and not {is_stubborn}:
            raise RuntimeError("told to return")
        time.sleep(0.005)


client.enqueue(work.job(), work.job())
"""


def jobs_of(module: str = "app") -> list[dejq.JobInfo]:
    client: dejq.Client = sys.modules[module].client
    return client.list_jobs()


def write_project(folder: Path, text: str) -> None:
    (folder / "pyproject.toml").write_text(f"[tool.dejq]\n{text}\n")


# ---- the command as such ---------------------------------------------------------------------------------


def test_without_a_verb_it_says_how_it_is_used(run_process: Run) -> None:
    ran = run_process()
    assert (ran.code, ran.out) == (2, "")
    assert "usage: dejq" in ran.err


def test_help_names_every_verb(run_process: Run) -> None:
    ran = run_process("--help")
    assert (ran.code, ran.err) == (0, "")
    assert tuple(cli.VERBS) == VERBS
    for verb in VERBS:
        assert f"\n    {verb} " in ran.out


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_has_an_example_and_the_places_of_its_settings(run: Run, verb: str) -> None:
    ran = run(verb, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"example:\n  dejq {verb}" in ran.out
    assert "environment:" in ran.out or verb in ("example", "completion")


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_of_a_verb_parses(verb: str) -> None:
    words = shlex.split(cli.VERBS[verb].example)
    assert make_parser(cli.VERBS.values()).parse_args(words[1:]).verb == verb


def test_help_imports_nothing_that_it_does_not_need() -> None:
    code = "import sys; from dejq.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True)
    loaded = set(ran.stderr.split())
    assert "dejq.cli" in loaded
    assert not loaded & {
        "asyncio", "ctypes", "dejq.cli.screen", "dejq.example", "dejq.testing", "rich", "shtab", "sqlite3",
        "subprocess", "textual", "tomllib",
    }  # fmt: skip


def test_the_script_is_the_same_as_the_module(run_process: Run) -> None:
    script = Path(sys.executable).with_name("dejq")
    ran = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=SECONDS, check=True)
    assert ran.stdout == run_process("--version").out == f"dejq {dejq.__version__}\n"


@pytest.mark.parametrize(
    "args",
    [
        ["wroker"],
        ["stats", "--jsno"],
        ["stats", "--js"],
        ["worker", "-w", "0"],
        ["stats", "--watch", "soon"],
        ["stats", "--watch", "99999d"],
        ["stats", "--watch", "0"],
    ],
)
def test_wrong_usage_is_code_2_and_said_on_stderr(run: Run, args: list[str]) -> None:
    ran = run(*args)
    assert (ran.code, ran.out) == (2, "")
    assert "error: " in ran.err


CODES = {
    dejq.DejqError: 1,
    dejq.ConfigError: 2,
    dejq.BodyError: 2,
    dejq.BodyTooLarge: 2,
    dejq.ChainBroken: 1,
    dejq.UnknownJob: 1,
    dejq.WrongState: 1,
    dejq.NotSupported: 1,
    dejq.BackendUnavailable: 3,
    dejq.OutcomeUnknown: 1,
    dejq.SchemaMissing: 4,
    dejq.SchemaOutdated: 4,
    dejq.ClientStopped: 1,
    dejq.ForkedProcess: 1,
}


def test_every_error_of_dejq_has_its_exit_code() -> None:
    errors = {kind for kind in vars(dejq).values() if inspect.isclass(kind) and issubclass(kind, dejq.DejqError)}
    assert set(CODES) == errors


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: str(kind.__name__))
def test_an_error_is_one_message_and_its_exit_code(run: Run, folder: Path, kind: type[dejq.DejqError]) -> None:
    (folder / "down.py").write_text(
        f"import dejq\n\ndef make():\n    raise dejq.{kind.__name__}('the store is not as it should be')\n"
    )
    ran = run("stats", "--app", "down:make")
    assert (ran.code, ran.out) == (CODES[kind], "")
    assert ran.err == f"dejq: down:make made no client: {kind.code} the store is not as it should be (down.py:4)\n"


def test_an_error_of_the_store_itself_is_one_message_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stats(client: dejq.Client) -> dejq.Stats:
        raise dejq.BackendUnavailable("nobody answers at localhost:5432")

    monkeypatch.setattr(dejq.Client, "stats", stats)
    assert run("stats", "--url", "memory://") == Ran(3, "", "dejq: DEJQ-E200 nobody answers at localhost:5432\n")


def test_a_bug_of_ours_says_that_it_is_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stats(client: dejq.Client) -> dejq.Stats:
        raise ZeroDivisionError(f"postgresql://app:{CANARY}@host/db")

    monkeypatch.setattr(dejq.Client, "stats", stats)
    ran = run("stats", "--url", "memory://")
    assert (ran.code, ran.out) == (1, "")
    assert "this is a bug in dejq, please report it\nTraceback" in ran.err
    assert "ZeroDivisionError: postgresql://app:***@host/db" in ran.err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    with subprocess.Popen(
        command("stats", "--url", "memory://", "--watch", "0.1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"TYPE")
        process.stdout.close()
        _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (1, b"")


def test_output_that_the_terminal_cannot_show_is_no_error(run_process: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert run_process("stats", "--url", "memory://").code == 0


# ---- where settings come from ----------------------------------------------------------------------------


def parse(*args: str) -> Any:
    given = make_parser(cli.VERBS.values()).parse_args(args)
    fill_in(given, cli.VERBS[given.verb].flags)
    return given


def test_the_command_line_goes_before_the_environment_and_that_before_the_project(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(folder, 'app = "three:client"\nworkers = 3\nshutdown_timeout = "3m"')
    monkeypatch.setenv("DEJQ_WORKERS", "2")
    monkeypatch.setenv("DEJQ_APP", "two:client")
    given = parse("worker", "one:client")
    assert (given.app, given.workers, given.shutdown_timeout) == ("one:client", 2, 180.0)
    given = parse("worker", "-w", "1")
    assert (given.app, given.workers, given.shutdown_timeout) == ("two:client", 1, 180.0)
    assert given.source == {
        "app": (1, "DEJQ_APP"),
        "workers": (0, "--workers"),
        "shutdown_timeout": (2, "[tool.dejq] in pyproject.toml"),
    }


def test_every_flag_has_a_variable_but_those_that_say_what_is_to_be_done() -> None:
    without = {flag.key for verb in cli.VERBS.values() for flag in verb.flags if not flag.in_environment}
    assert without == {
        "what", "type", "body", "then", "url", "store", "folder", "audit", "repair", "state", "older_than", "after",
        "id", "ids", "shell",
    }  # fmt: skip
    assert [flag.in_environment for flag in cli.VERBS["stats"].flags if flag.key == "url"] == [True]


def test_variables_are_read_as_the_flags_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJQ_DRAIN", "yes")
    monkeypatch.setenv("DEJQ_VERBOSITY", "2")
    monkeypatch.setenv("DEJQ_SHUTDOWN_TIMEOUT", "forever")
    monkeypatch.setenv("DEJQ_JSON", "0")
    monkeypatch.setenv("DEJQ_HEADER", "trace=7")
    monkeypatch.setenv("DEJQ_WORKERS", "")
    given = parse("worker")
    assert (given.drain, given.verbosity, given.shutdown_timeout, given.workers) == (True, 2, float("inf"), None)
    given = parse("enqueue", "email:v1")
    assert (given.json, given.header) == (False, [("trace", "7")])


@pytest.mark.parametrize(
    ("variable", "text"),
    [("DEJQ_WORKERS", "many"), ("DEJQ_DRAIN", "maybe"), ("DEJQ_VERBOSITY", "4"), ("DEJQ_SHUTDOWN_TIMEOUT", "-1")],
)
def test_a_variable_that_cannot_be_read_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setenv(variable, text)
    ran = run("worker", "app:client", "--drain") if variable != "DEJQ_DRAIN" else run("worker", "app:client")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"dejq: {variable} is {text!r}, and must be ")


def test_a_key_of_the_project_that_cannot_be_read_is_named(run: Run, folder: Path) -> None:
    write_project(folder, 'workers = "many"')
    ran = run("worker", "app:client")
    assert ran.code == 2
    assert "workers under [tool.dejq] in pyproject.toml is 'many', and must be a whole number" in ran.err


def test_a_project_file_that_is_no_toml_is_named(run: Run, folder: Path) -> None:
    write_project(folder, "url = memory")
    ran = run("stats")
    assert ran.code == 2
    assert "pyproject.toml cannot be read as TOML" in ran.err
    assert run("stats", "--help").code == 0


@pytest.mark.parametrize(
    ("text", "length"),
    [("0", 0), ("90", 90), ("1.5", 1.5), ("250ms", 0.25), ("2 s", 2), ("10m", 600), ("7d", 604_800)],
)
def test_a_length_of_time_may_have_a_unit(text: str, length: float) -> None:
    assert seconds(text) == length


def test_no_store_at_all_is_wrong_usage_and_says_what_to_write(run: Run) -> None:
    ran = run("stats")
    assert (ran.code, ran.out) == (2, "")
    assert "no store is named" in ran.err
    assert "DEJQ_URL" in ran.err


@pytest.mark.parametrize(
    ("args", "variables", "found"),
    [
        (["--url", "memory://"], {"DEJQ_APP": "app:client"}, ""),
        (["--app", "app:client"], {"DEJQ_URL": "memory://"}, "email:v1"),
        ([], {"DEJQ_APP": "app:client"}, "email:v1"),
        ([], {"DEJQ_APP": "app:client", "DEJQ_URL": "memory://"}, ""),
        (["--app", "app:client", "--url", "memory://"], {}, ""),
    ],
)
def test_a_store_is_named_by_url_or_app_and_the_nearer_place_counts(
    run: Run, monkeypatch: pytest.MonkeyPatch, args: list[str], variables: dict[str, str], found: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Path("app.py").write_text(f"{APP}\nclient.enqueue(send.job('Ada'))\n")
    ran = run("stats", "--json", *args)
    assert list(json.loads(ran.out)["by_type"]) == ([found] if found else [])


# ---- APP -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["app:client", "app:make"])
def test_an_app_is_a_client_or_makes_one(run_process: Run, app: str) -> None:
    ran = run_process("worker", app, "--drain")
    assert (ran.code, ran.out) == (0, "")
    assert "handlers  email:v1" in ran.err


def test_an_app_may_be_in_a_package_and_in_an_object(run: Run, folder: Path) -> None:
    package = folder / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "jobs.py").write_text(f"{APP}\nclass State:\n    queue = client\n")
    assert run("stats", "--app", "shop.jobs:State.queue").code == 0
    ran = run("stats", "--app", "shop.jbos:client")
    assert ran.code == 2
    assert "there is no module 'shop.jbos'" in ran.err
    assert "did you mean 'jobs'?" in ran.err


@pytest.mark.parametrize(
    ("app", "code", "text"),
    [
        ("app", 2, "APP is module:attribute, and 'app' is not; for example app:client"),
        ("app.py:client", 2, "for example app:client"),
        ("src/app.py", 2, "for example src.app:client"),
        (":client", 2, "APP is module:attribute"),
        ("appp:client", 2, "there is no module 'appp' in {here} or on Python's path; did you mean 'app'?"),
        ("nothing_like_it:client", 2, "there is no module 'nothing_like_it' in {here} or on Python's path\n"),
        ("app:cleint", 2, "there is no 'cleint' in app; did you mean 'client'?"),
        ("app:queue", 2, "there is no 'queue' in app; it has 'client'"),
        ("app:settings", 2, "app:settings is of type dict; it must be a dejq.Client or a function that makes one"),
        ("app:make_nothing", 2, "app:make_nothing is of type NoneType; it must be"),
        ("app:needs", 2, "app:needs is neither a dejq.Client nor a function that makes one without arguments"),
        ("app:stumble", 1, "app:stumble made no client: KeyError: 'settings' (app.py:25)"),
        ("broken:client", 1, "broken cannot be imported: ZeroDivisionError: division by zero (broken.py:3)"),
        ("lacking:client", 1, "lacking cannot be imported: ModuleNotFoundError: No module named 'missing_library'"),
        ("wrong:client", 1, "wrong cannot be imported: SyntaxError: "),
        ("ends:client", 1, "ends cannot be imported: SystemExit: 3 (ends.py:1)"),
        ("refused:client", 2, "refused cannot be imported: DEJQ-E100 there is no option"),
    ],
)
def test_an_app_that_cannot_be_loaded_says_where_and_what_was_meant(
    run: Run, folder: Path, app: str, code: int, text: str
) -> None:
    (folder / "broken.py").write_text("import dejq\n\nclient = 1 / 0\n")
    (folder / "lacking.py").write_text("import missing_library\n")
    (folder / "wrong.py").write_text("client = = 1\n")
    (folder / "ends.py").write_text("raise SystemExit(3)\n")
    (folder / "refused.py").write_text("import dejq\n\nclient = dejq.memory(wrokers=1)\n")
    ran = run("worker", app)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("dejq: ")
    assert text.format(here=folder) in ran.err
    assert "Traceback" not in ran.err


def test_an_error_of_dejq_while_an_app_is_loaded_names_the_line_of_the_app(run: Run, folder: Path) -> None:
    # `Backoff` raises in a file of dejq, and a neighbour may have a name that begins alike.
    (folder / "dejq_app.py").write_text("import dejq\n\nclient = dejq.memory(backoff=dejq.Backoff(-1))\n")
    assert run("worker", "dejq_app:client").err.endswith("(dejq_app.py:3)\n")


def test_the_worker_asks_for_an_app_when_none_is_named(run: Run) -> None:
    ran = run("worker")
    assert (ran.code, ran.out) == (2, "")
    assert "worker needs APP" in ran.err


# ---- worker ----------------------------------------------------------------------------------------------


class Worker:
    """A worker process, and what it says on stderr."""

    def __init__(self, folder: Path, args: Sequence[str], until: Callable[[Callable[[], object]], None]) -> None:
        self._log = folder / "stderr"
        self._until = until
        with self._log.open("wb") as err:
            self.process = subprocess.Popen(command("worker", *args), stderr=err, stdout=subprocess.PIPE)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_until_it_says(self, text: str) -> None:
        self._until(lambda: text in self.said or self.process.poll() is not None)
        assert text in self.said, self.said

    def end(self) -> int:
        out, _ = self.process.communicate(timeout=SECONDS)
        assert out == b"", "data on stdout"
        assert "Traceback" not in self.said.replace("RuntimeError: told to return\nTraceback", "")
        return self.process.returncode


class StartWorker(Protocol):
    def __call__(self, *args: str) -> Worker: ...


@pytest.fixture
def start_worker(folder: Path, until: Callable[[Callable[[], object]], None]) -> Iterator[StartWorker]:
    workers: list[Worker] = []

    def start(*args: str) -> Worker:
        workers.append(Worker(folder, args, until))
        return workers[-1]

    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.communicate()


@pytest.fixture
def start_busy(folder: Path, start_worker: StartWorker, until: Callable[[Callable[[], object]], None]) -> StartWorker:
    """Starts a worker and waits until its handler runs. The handler waits for the file `go`."""

    def start(*args: str) -> Worker:
        stubborn = "--stubborn" in args
        (folder / "busy.py").write_text(BUSY.format(is_stubborn=stubborn))
        worker = start_worker("busy:client", *(arg for arg in args if arg != "--stubborn"))
        until((folder / "started").exists)
        worker.wait_until_it_says("ready")
        return worker

    return start


SIGNALS = [signal.SIGTERM, signal.SIGINT]


def test_the_banner_says_what_works_where(start_worker: StartWorker) -> None:
    worker = start_worker("app:client", "-w", "3")
    worker.wait_until_it_says("ready")
    assert worker.said.splitlines() == [
        f"dejq {dejq.__version__} · memory · 3 workers · heartbeat 5 s",
        "handlers  email:v1",
        "ready     waiting for jobs; Ctrl-C to stop",
    ]


def test_the_banner_of_a_memory_worker_says_whose_jobs_it_gets(folder: Path, run_process: Run) -> None:
    (folder / "own.py").write_text(APP.replace("client._in_process = False\n", ""))
    assert "jobs of this process, which alone has this memory" in run_process("worker", "own:client", "--drain").err


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_an_idle_worker_with_0(start_worker: StartWorker, number: signal.Signals) -> None:
    worker = start_worker("app:client")
    worker.wait_until_it_says("ready")
    worker.process.send_signal(number)
    assert worker.end() == 0
    assert worker.said.splitlines()[-2:] == ["stopping", "stopped   0 done, 0 given back; 0 in all"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_lets_the_running_job_finish(folder: Path, start_busy: StartWorker, number: signal.Signals) -> None:
    worker = start_busy()
    worker.process.send_signal(number)
    worker.wait_until_it_says("stopping  1 job running, up to 25 s (Ctrl-C again to stop now)")
    assert worker.process.poll() is None
    (folder / "go").touch()
    assert worker.end() == 0
    assert "stopped   1 done, " in worker.said


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_gives_the_running_job_back_at_once(start_busy: StartWorker, number: signal.Signals) -> None:
    worker = start_busy("--shutdown-timeout", "forever")
    worker.process.send_signal(number)
    worker.wait_until_it_says("stopping  1 job running (Ctrl-C again to stop now)")
    worker.process.send_signal(number)
    assert worker.end() == 1
    assert "stopping  now: running jobs are told to return and given back\n" in worker.said
    assert "left running" not in worker.said


def test_a_second_signal_ends_the_worker_even_if_the_handler_does_not_return(start_busy: StartWorker) -> None:
    worker = start_busy("--stubborn")
    worker.process.send_signal(signal.SIGTERM)
    worker.wait_until_it_says("stopping  1 job running")
    worker.process.send_signal(signal.SIGINT)
    assert worker.end() == 1
    assert "stopped   0 done, 0 given back, 1 left running; 0 in all" in worker.said


def test_the_shutdown_timeout_ends_the_wait_and_is_code_1(start_busy: StartWorker) -> None:
    worker = start_busy("--shutdown-timeout", "50ms")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 1
    assert "stopping  1 job running, up to 0.05 s" in worker.said


def test_a_signal_before_the_worker_is_ready_is_not_lost(folder: Path, start_worker: StartWorker) -> None:
    (folder / "early.py").write_text(
        f"{APP}\nimport os, signal\n\n"
        "start = client.dequeue_loop\n"
        "def dequeue_loop(workers=None):\n    os.kill(os.getpid(), signal.SIGTERM)\n    start(workers)\n"
        "client.dequeue_loop = dequeue_loop\n"
    )
    assert start_worker("early:client").end() == 0


def test_a_handler_may_stop_the_worker_that_runs_it(folder: Path, start_worker: StartWorker) -> None:
    (folder / "self_ending.py").write_text(
        f"{APP}\n@client.handler('end')\ndef end(job: dejq.Job) -> None:\n    client.stop()\n\n"
        "client.enqueue(end.job())\n"
    )
    assert start_worker("self_ending:client").end() == 0


def test_drain_ends_by_itself_when_nothing_is_left(folder: Path, run_process: Run) -> None:
    (folder / "full.py").write_text(
        f"{APP}\nclient.enqueue(send.job('Ada'), send.job('Bob'))\nclient.enqueue(send.job('later', delay=3600))\n"
    )
    ran = run_process("worker", "full:client", "--drain")
    assert ran.code == 0
    assert ran.out == "sending Ada\nsending Bob\n"
    assert "; 2 in all" in ran.err


def test_a_worker_without_handlers_is_wrong_usage(folder: Path, run_process: Run) -> None:
    (folder / "bare.py").write_text("import dejq\n\nclient = dejq.memory()\n")
    ran = run_process("worker", "bare:client")
    assert (ran.code, ran.out) == (2, "")
    assert "no handlers are registered" in ran.err


def test_logging_goes_to_stderr_as_verbosely_as_asked(folder: Path, run_process: Run) -> None:
    (folder / "full.py").write_text(f"{APP}\nclient.enqueue(send.job('Ada'))\n")
    assert "dequeue" not in run_process("worker", "full:client", "--drain").err
    assert "  dequeue email:v1 [" in run_process("worker", "full:client", "--drain", "-v").err
    assert "stop 1/5" in run_process("worker", "full:client", "--drain", "-vv").err


def test_an_application_that_has_set_up_logging_keeps_it(folder: Path, run_process: Run) -> None:
    (folder / "logged.py").write_text(
        f"import logging\n\nlogging.basicConfig(format='mine: %(message)s')\n{APP}\nclient.enqueue(send.job('Ada'))\n"
    )
    assert "\nmine: dequeue email:v1" in run_process("worker", "logged:client", "--drain", "-v").err


# ---- stats -----------------------------------------------------------------------------------------------


def test_stats_are_a_table_by_type(run: Run) -> None:
    Path("app.py").write_text(
        f"{APP}\nclient.enqueue(send.job(), dejq.PendingJob('report:v1'))\nclient.enqueue(send.job(delay=60))\n"
    )
    ran = run("stats", "--app", "app:client")
    assert (ran.code, ran.err) == (0, "")
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[0][:4] == ["TYPE", "READY", "SCHEDULED", "BLOCKED"]
    assert lines[1][:8] == ["email:v1", "1", "1", "0", "0", "0", "0", "0"]
    assert lines[2] == ["report:v1", "0", "0", "1", "0", "0", "0", "0", "–"]
    assert ran.out.splitlines()[-1] == "2 types · 0 workers · 3 waiting to run"


def test_stats_as_json_have_a_key_for_every_field_of_stats(run: Run) -> None:
    Path("app.py").write_text(f"{APP}\nclient.enqueue(send.job())\n")
    ran = run("stats", "--app", "app:client", "--json")
    found = json.loads(ran.out)
    names = {name.replace("oldest_ready", "oldest_ready_s") for name in dejq.Stats.__dataclass_fields__}
    assert set(found) == names
    assert set(found["by_type"]["email:v1"]) == names - {"by_type", "enqueued_jobs", "workers", "totals", "bill"}
    assert (found["enqueued_jobs"], found["by_type"]["email:v1"]["ready"]) == (1, 1)
    assert found["oldest_ready_s"] >= 0


def test_watching_stats_ends_with_ctrl_c_as_a_success() -> None:
    with subprocess.Popen(
        command("stats", "--url", "memory://", "--watch", "0.1", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert json.loads(process.stdout.readline())["enqueued_jobs"] == 0
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, b"")


# ---- enqueue ---------------------------------------------------------------------------------------------


def test_enqueue_prints_the_ids_in_the_order_of_the_jobs(run: Run) -> None:
    ran = run(
        "enqueue", "email:v1", '{"to": "Ada"}', "--then", "report:v1", "[1, 2]", "--then", "end", "--app", "app:client"
    )
    assert (ran.code, ran.err) == (0, "")
    jobs = jobs_of()
    assert ran.out.split() == [job.id for job in jobs]
    assert [(job.type, job.body, job.position) for job in jobs] == [
        ("email:v1", {"to": "Ada"}, 1),
        ("report:v1", [1, 2], 2),
        ("end", None, 3),
    ]


def test_the_options_of_enqueue_reach_the_jobs(run: Run) -> None:
    ran = run(
        "enqueue", "email:v1", "1", "--then", "report:v1", "2", "--delay", "10m", "--max-attempts", "4",
        "--header", "trace=7", "--header", "of=me", "--json", "--app", "app:client",
    )  # fmt: skip
    first, second = jobs_of()
    assert json.loads(ran.out) == {"ids": [first.id, second.id]}
    assert (first.state, second.state) == ("scheduled", "blocked")
    assert first.due_at is not None
    assert (first.due_at - first.enqueued_at).total_seconds() == 600
    assert [job.max_attempts for job in (first, second)] == [4, 4]
    assert [dict(job.headers) for job in (first, second)] == [{"trace": "7", "of": "me"}] * 2


def test_a_unique_job_is_stored_once(run: Run) -> None:
    args = ("enqueue", "email:v1", "--unique", "welcome-7", "--app", "app:client")
    assert run(*args).out == run(*args).out
    assert len(jobs_of()) == 1


def test_on_failure_cancel_cancels_the_rest_of_the_chain(run: Run) -> None:
    run("enqueue", "fails", "--then", "email:v1", "--on-failure", "cancel", "--app", "app:client")
    client: dejq.Client = sys.modules["app"].client

    @client.handler("fails")
    def fail(job: dejq.Job) -> None:
        raise dejq.Discard

    testing.drain(client)
    assert [job.state for job in jobs_of()] == ["failed", "cancelled"]


def test_a_body_may_come_from_a_file_or_from_standard_input(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "body.json").write_text('{"from": "file ✓"}', encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"from": "stdin"}'))
    assert run("enqueue", "a", "@body.json", "--then", "b", "-", "--app", "app:client").code == 0
    assert [job.body for job in jobs_of()] == [{"from": "file ✓"}, {"from": "stdin"}]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["email:v1", '{"to": Ada}'], "the body of 'email:v1' is not JSON: Expecting value at line 1, column 8"),
        (
            ["a", "1", "--then", "b", "[1,\n2"],
            "the body of 'b' is not JSON: Expecting ',' delimiter at line 2, column 2",
        ),
        (["email:v1", ""], "the body of 'email:v1' is not JSON: Expecting value at line 1, column 1"),
        (["email:v1", "@bad.json"], "bad.json, for 'email:v1', is not JSON: Expecting value at line 3, column 1"),
        (["email:v1", "-"], "standard input, for 'email:v1', is not JSON"),
        (["email:v1", "@none.json"], "none.json cannot be read: No such file or directory"),
        (["email:v1", "@latin.json"], "latin.json of 'email:v1' is not JSON: 'utf-8' codec can't decode"),
        (["email:v1", "[" * 100_000], "the body of 'email:v1' is not JSON: maximum recursion depth"),
        (["email:v1", "NaN"], "DEJQ-E110"),
        (["email:v1", f'"{"x" * 1_100_000}"'], "DEJQ-E111"),
        (["email v1", "1"], "DEJQ-E100"),
        (["a", "--then", "b", "{to:", "Ada}"], "--then takes a type and a body, and here come 3 words; quote the JSON"),
        (["a", "--unique", "key", "--then", "b"], "DEJQ-E100"),
        (["a", "--header", "trace"], "'trace' must be KEY=VALUE"),
        (["a", "--delay", "soon"], "'soon' must be seconds, or a number with a unit"),
        (["a", "--max-attempts", "0"], "'0' must be a whole number of at least 1"),
        (["a", "--on-failure", "stop"], "invalid choice: 'stop'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_job_that_is_wrong_is_code_2_with_the_place(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], text: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    (folder / "bad.json").write_text('{"a":\n\n}')
    (folder / "latin.json").write_bytes(b'"\xe9"')
    for more in ([], ["--dry-run"]):
        ran = run("enqueue", *args, "--app", "app:client", *more)
        assert (ran.code, ran.out) == (2, "")
        assert text in ran.err
        assert "Traceback" not in ran.err
    if "app" in sys.modules:
        assert jobs_of() == []


def test_memory_is_refused_because_the_job_would_be_lost(run: Run) -> None:
    ran = run("enqueue", "email:v1", "{}", "--url", "memory://")
    assert (ran.code, ran.out) == (2, "")
    assert "the job would be gone when this command ends" in ran.err


def test_a_dry_run_stores_nothing_and_says_what_it_would(run: Run) -> None:
    ran = run("enqueue", "a", "--then", "b", "--dry-run", "--app", "app:client")
    assert ran == Ran(0, "", "would enqueue on memory: a → b\n")
    assert jobs_of() == []
    assert run("enqueue", "email:v1", "{}", "--url", "memory://", "--dry-run").code == 0


# ---- migrate and doctor ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "memory is up to date"),
        (["status"], "needs no schema"),
        (["sql"], "needs no schema"),
        (["--dry-run"], "needs no schema"),
    ],
)
def test_there_is_nothing_to_migrate_on_memory(run: Run, args: list[str], text: str) -> None:
    ran = run("migrate", "--url", "memory://", *args)
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.startswith("nothing to do: ")
    assert text in ran.err


def test_migrate_prints_its_steps_and_a_dry_run_takes_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = dejq.Finding(level="error", name="schema", text="version 1, and 2 is needed", fix="dejq migrate")
    monkeypatch.setattr(dejq.Client, "check", lambda client: [schema])
    monkeypatch.setattr(dejq.Client, "migrate", lambda client: pytest.fail("migrated"))
    assert run("migrate", "--url", "memory://", "--dry-run") == Ran(4, "error version 1, and 2 is needed\n", "")
    monkeypatch.setattr(dejq.Client, "migrate", lambda client: dejq.MigrationReport(applied=("002_unique.sql",)))
    assert run("migrate", "--url", "memory://") == Ran(0, "002_unique.sql\n", "")


def test_the_doctor_finds_memory_fit_for_development_only(run: Run) -> None:
    ran = run("doctor", "app:client")
    assert (ran.code, ran.err) == (0, "")
    lines = [line.split(maxsplit=2) for line in ran.out.splitlines()]
    assert [line[:2] for line in lines] == [
        ["ok", "dejq"],
        ["ok", "url"],
        ["warn", "durability"],
        ["fix:", "fine"],
        ["ok", "handlers"],
    ]


def test_the_doctor_says_where_the_url_comes_from(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "memory (from --url)" in run("doctor", "--url", "memory://").out
    monkeypatch.setenv("DEJQ_URL", "memory://")
    assert "memory (from DEJQ_URL)" in run("doctor").out
    monkeypatch.delenv("DEJQ_URL")
    write_project(folder, 'url = "memory://"')
    assert "memory (from [tool.dejq] in pyproject.toml)" in run("doctor").out


def test_the_doctor_as_json_is_a_list_of_findings(run: Run) -> None:
    found = json.loads(run("doctor", "app:client", "--json").out)
    assert [finding["name"] for finding in found] == ["dejq", "url", "durability", "handlers"]
    assert set(found[0]) == {"level", "name", "text", "fix"}


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["app:cleint"], 2, "did you mean 'client'?"),
        ([], 2, "no store is named"),
        (["--url", "sqs://us-east-1/q"], 2, '"q" is not the name of a FIFO queue'),
    ],
)
def test_what_keeps_the_doctor_from_looking_further_is_a_finding(
    run: Run, args: list[str], code: int, text: str
) -> None:
    ran = run("doctor", *args)
    assert (ran.code, ran.err) == (code, "")
    assert text in ran.out.splitlines()[-1]
    assert ran.out.splitlines()[-1].startswith("error  client")


def test_an_error_that_the_doctor_finds_is_code_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    eviction = dejq.Finding(level="error", name="eviction", text="jobs are evicted", fix="noeviction")
    monkeypatch.setattr(dejq.Client, "check", lambda client: [eviction])
    ran = run("doctor", "app:client")
    assert ran.code == 1
    assert "error  eviction  jobs are evicted\n" in ran.out


def test_the_doctor_sees_misspelt_settings(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJQ_WROKERS", "3")
    monkeypatch.setenv("DEJQ_TEST_PG_URL", "none of our business")
    write_project(folder, 'ulr = "memory://"')
    ran = run("doctor", "app:client")
    assert "warn   environment  DEJQ_WROKERS means nothing; did you mean 'DEJQ_WORKERS'?\n" in ran.out
    assert "warn   pyproject    ulr means nothing; did you mean 'url'?\n" in ran.out
    assert "TEST_PG" not in ran.out


# ---- a store with a server -----------------------------------------------------------------------------------


@pytest.fixture
def pg(pg_url: str, pg_schema: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Names a schema that is not there yet as the store, with a password in the URL; returns the schema."""
    parts = urlsplit(pg_url)
    place = parts.netloc.rpartition("@")[2]
    query = "&".join(filter(None, [parts.query, f"schema={pg_schema}"]))
    url = parts._replace(netloc=f"{parts.username or 'postgres'}:{parts.password or CANARY}@{place}", query=query)
    monkeypatch.setenv("DEJQ_URL", url.geturl())
    yield pg_schema
    with psycopg.connect(pg_url) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(pg_schema)))


# With the store of the environment, or of an application that takes it from there.
LOOKS_AT_THE_STORE = {
    "stats": ["stats"],
    "stats as JSON": ["stats", "--json"],
    "enqueue": ["enqueue", "email:v1", "{}"],
    "migrate status": ["migrate", "status"],
    "migrate sql": ["migrate", "sql"],
    "migrate as a dry run": ["migrate", "--dry-run"],
    "doctor": ["doctor"],
    "doctor of an APP": ["doctor", "app:client"],
}


@pytest.fixture
def store_of_app(folder: Path) -> None:
    (folder / "app.py").write_text(APP.replace('"memory://"', "None"))


@pytest.mark.parametrize("args", LOOKS_AT_THE_STORE.values(), ids=LOOKS_AT_THE_STORE)
def test_without_its_schema_the_code_is_4_and_the_text_says_migrate(
    run: Run, pg: str, store_of_app: None, args: list[str]
) -> None:
    for _ in range(2):  # the first one changed nothing
        ran = run(*args)
        assert ran.code == 4, ran
        if args != ["migrate", "sql"]:
            assert "dejq migrate" in ran.text
            assert f'"{pg}"' in ran.text
        assert CANARY not in ran.text


@pytest.mark.parametrize("args", LOOKS_AT_THE_STORE.values(), ids=LOOKS_AT_THE_STORE)
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("DELETE FROM {} WHERE version = (SELECT max(version) FROM {})", "dejq migrate"),
        ("INSERT INTO {} VALUES (1000, 'of the future', true)", "pip install -U dejq"),
    ],
    ids=["old", "new"],
)
def test_with_a_schema_of_another_version_the_code_is_4(
    run: Run, pg: str, pg_url: str, store_of_app: None, change: str, text: str, args: list[str]
) -> None:
    assert run("migrate").code == 0
    with psycopg.connect(pg_url) as connection:
        connection.execute(change.replace("{}", f"{pg}.migration").encode())
    ran = run(*args)
    assert ran.code == 4, ran
    assert args == ["migrate", "sql"] or text in ran.text
    assert CANARY not in ran.text


@pytest.mark.parametrize("args", [["migrate"], *LOOKS_AT_THE_STORE.values()], ids=["migrate", *LOOKS_AT_THE_STORE])
def test_without_a_connection_the_code_is_3(
    run: Run, store_of_app: None, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    monkeypatch.setenv("DEJQ_URL", f"postgresql://me:{CANARY}@127.0.0.1:1/jobs")
    ran = run(*args)
    assert ran.code == 3, ran
    assert 'cannot connect to 127.0.0.1:1/jobs as user "me"' in ran.text
    assert CANARY not in ran.text


def test_a_draining_worker_ends_with_these_codes_too(
    run_process: Run, pg: str, store_of_app: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run_process("worker", "app:client", "--drain")
    assert ran.code == 4, ran
    assert f'"{pg}"' in ran.err
    assert CANARY not in ran.text
    monkeypatch.setenv("DEJQ_URL", f"postgresql://me:{CANARY}@127.0.0.1:1/jobs")
    ran = run_process("worker", "app:client", "--drain")
    assert ran.code == 3, ran
    assert CANARY not in ran.text


def test_migrate_makes_the_schema_once(run: Run, pg: str) -> None:
    ran = run("migrate")
    assert (ran.code, ran.err) == (0, "")
    steps = ran.out.splitlines()
    assert steps[0] == f"001_create_tables in schema {pg}"
    assert run("migrate") == Ran(0, "", "nothing to do: postgres is up to date\n")
    assert run("migrate", "--json") == Ran(0, '{"applied": []}\n', "nothing to do: postgres is up to date\n")
    for args in (["status"], ["--dry-run"]):
        assert run("migrate", *args) == Ran(0, f'ok    "{pg}" is up to date\n', "")
    (found,) = json.loads(run("migrate", "status", "--json").out)
    assert (found["level"], found["name"]) == ("ok", "schema")


def test_what_one_process_enqueues_another_one_works(
    run: Run, run_process: Run, pg: str, store_of_app: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("migrate").code == 0
    assert run("enqueue", "email:v1", "1", "--dry-run") == Ran(0, "", "would enqueue on postgres: email:v1\n")
    ran = run("enqueue", "email:v1", "1", "--then", "email:v1", "2")
    assert (ran.code, ran.err, len(ran.out.split())) == (0, "", 2)
    found = json.loads(run("stats", "--json").out)
    assert (found["ready"], found["blocked"], found["finished"], found["workers"]) == (1, 1, 0, 0)
    ran = run_process("worker", "app:client", "--drain", "-vvv")
    assert (ran.code, ran.out) == (0, "sending 1\nsending 2\n")
    assert "2 in all" in ran.err
    assert CANARY not in ran.text
    found = json.loads(run("stats", "--json").out)
    assert (found["enqueued_jobs"], found["finished"], found["workers"]) == (0, 2, 0)
    ran = run("doctor", "app:client")
    assert ran.code == 0
    assert "postgres (from DEJQ_URL)" in ran.out
    assert CANARY not in ran.text


# ---- bench -----------------------------------------------------------------------------------------------

FIGURES = ["enqueue", "enqueue many", "drain", "drain async", "chain", "idle latency"]


def test_bench_prints_a_line_for_each_figure(run_process: Run) -> None:
    ran = run_process("bench", "-n", "200")
    assert (ran.code, ran.err) == (0, "")
    assert [line[:13].strip() for line in ran.out.splitlines()] == FIGURES


def test_bench_as_json_names_what_was_measured(run: Run) -> None:
    found = json.loads(run("bench", "-n", "200", "--json").out)
    assert (found["dejq"], found["store"]) == (dejq.__version__, "memory")
    assert [figure["name"] for figure in found["figures"]] == FIGURES
    assert all(figure.get("per_s", 1) > 0 for figure in found["figures"])
    assert set(found["figures"][-1]) == {"name", "what", "jobs", "p50_ms", "p99_ms"}


def test_bench_does_not_touch_the_store_of_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJQ_URL", "postgresql://127.0.0.1:1/db")
    assert run("bench", "-n", "10").code == 0
    assert run("bench", "postgresql://127.0.0.1:1/db", "-n", "10").code == 3


def test_a_drain_that_cannot_ask_the_store_leaves_no_worker_behind(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "app.py").write_text(APP.replace('"memory://"', "None"))
    monkeypatch.setenv("DEJQ_URL", "postgresql://127.0.0.1:1/db")
    assert run("worker", "app:client", "--drain").code == 3
    with pytest.raises(dejq.ClientStopped):
        sys.modules["app"].client.dequeue_loop()


# ---- no password comes out -------------------------------------------------------------------------------

SERVER = f"postgresql://app:{CANARY}@db.example.org/app?sslmode=require"
MEMORY = f"memory://app:{CANARY}@here"
ID = "01890a5d-ac96-774b-bcce-b302099a8057"
ARGS = {
    "worker": ["app:client", "--drain"],
    "inspect": [ID],
    "requeue": [ID],
    "cancel": ["--state", "ready", "--yes"],
    "finish": ["--type", "email:v1", "--dry-run"],
    "cleanup": ["--older-than", "7d"],
    "completion": ["bash"],
    "enqueue": ["email:v1", "{}"],
    "bench": ["-n", "10"],
    "example": ["mem", "."],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("url", [SERVER, MEMORY, f"nonsense://:{CANARY}@", f"memory://x?password={CANARY}&wrokers=1"])
@pytest.mark.parametrize("place", ["flag", "environment", "project"])
def test_a_password_in_the_url_is_never_printed(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, verb: str, url: str, place: str
) -> None:
    args = list(ARGS.get(verb, []))
    flags = {"bench": [url], "worker": [], "example": [], "completion": []}
    (folder / "app.py").write_text(APP.replace('"memory://"', "None"))
    if place == "flag":
        args += flags.get(verb, ["--url", url])
        monkeypatch.setenv("DEJQ_URL", url)
    elif place == "environment":
        monkeypatch.setenv("DEJQ_URL", url)
    else:
        write_project(folder, f'url = "{url}"')
    if verb == "example":
        args = []
        monkeypatch.setattr("dejq.example.run", lambda url, folder: dejq.connect(url).stats() is not None)
    if verb == "worker":
        (folder / "app.py").write_text(APP.replace('connect("memory://", ', "connect("))
    ran = run(verb, *args)
    assert CANARY not in ran.text
    assert "Traceback" not in ran.text


@pytest.mark.parametrize(
    "args",
    [
        [SERVER],
        ["worker", SERVER],
        ["worker", f"{SERVER}:client"],
        ["worker", "app:client", SERVER],
        ["worker", "app:client", "--workers", SERVER],
        ["stats", "--watch", SERVER],
        ["stats", "--app", "leaky:client"],
        ["worker", "leaky:client"],
        ["worker", "leaky_factory:make"],
        ["doctor", "leaky:client"],
        ["doctor", "leaky:client", "--json"],
        ["enqueue", SERVER, "{}", "--url", "memory://"],
        ["enqueue", "email:v1", SERVER],
        ["enqueue", "email:v1", f"@{SERVER}"],
        ["enqueue", "email:v1", "--header", SERVER],
        ["migrate", SERVER],
        ["example", SERVER],
        ["example", "mem", SERVER],
        ["bench", SERVER],
    ],
    ids=lambda args: " ".join(args).replace(SERVER, "URL"),
)
def test_a_password_at_a_wrong_place_is_not_repeated(run: Run, folder: Path, args: list[str]) -> None:
    (folder / "leaky.py").write_text(f"raise ValueError('cannot connect to {SERVER}')\n")
    (folder / "leaky_factory.py").write_text(f"def make():\n    raise OSError('password={CANARY} was refused')\n")
    ran = run(*args)
    assert ran.code in (1, 2, 3)
    assert CANARY not in ran.text
    assert "Traceback" not in ran.text


def test_a_password_in_a_variable_of_something_else_is_not_repeated(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJQ_WORKERS", SERVER)
    ran = run("worker", "app:client")
    assert (ran.code, ran.out) == (2, "")
    assert "DEJQ_WORKERS is 'postgresql://app:***@db.example.org/app" in ran.err


def test_a_password_in_what_a_handler_raises_is_not_logged(folder: Path, run_process: Run) -> None:
    (folder / "full.py").write_text(
        f"{APP}\nurl = {SERVER!r}\n@client.handler('fails')\ndef fail(job: dejq.Job) -> None:\n"
        "    raise OSError(url)\n\nclient.enqueue(fail.job())\n"
    )
    ran = run_process("worker", "full:client", "--drain", "-vvv")
    assert ran.code == 0
    assert "OSError: postgresql://app:***@db.example.org" in ran.err
    assert CANARY not in ran.text


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("redis://:pw@h:6379/0", "redis://:***@h:6379/0"),
        ("'postgresql://me:p@ss@h/d' failed", "'postgresql://me:***@h/d' failed"),
        ("postgresql://me@h/d", "postgresql://me@h/d"),
        ("redis://h:6379", "redis://h:6379"),
        ("user=me password=pw host=h", "user=me password=*** host=h"),
        ("?PASSWORD=pw&a=1", "?PASSWORD=***&a=1"),
        ("password='p w' host=h", "password=*** host=h"),
        ('password="p w" host=h', "password=*** host=h"),
        ("{'password': 'p w', 'host': 'h'}", "{'password': '***', 'host': 'h'}"),
        ("the password: check it, and the token", "the password: check it, and the token"),
        ("at 12:04:31 to ada@example.org", "at 12:04:31 to ada@example.org"),
    ],
)
def test_scrubbing_takes_passwords_and_nothing_else(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ✓ text\twith a tab\nand two lines", "plain ✓ text\twith a tab\nand two lines"),
        ("\x1b[2J\x07\r\x9b31m\x7f", "\\x1b[2J\\x07\\r\\x9b31m\\x7f"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
    ],
)
def test_what_would_move_the_cursor_or_turn_the_text_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_json_stays_json_whatever_the_password_looks_like(run: Run) -> None:
    header = 'password="a\\b c" redis://:p"w@h'
    Path("app.py").write_text(f"{APP}\nclient.enqueue(send.job('Ada', headers={{'h': {header!r}}}))\n")
    (job,) = json.loads(run("list", "--app", "app:client", "--json").out)
    assert job["headers"] == {"h": "password=*** redis://:***@h"}


# ---- docs/cli.md -----------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
SESSION = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def steps() -> Iterator[tuple[str, str]]:
    """Commands of the page, and what stands below each."""
    for session in SESSION.findall(PAGE):
        for step in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
            line, _, printed = step.partition("\n")
            yield line, printed


@pytest.fixture
def database(pg_url: str) -> Iterator[str]:
    """The URL of an empty database, for postgresql://localhost/app on the page."""
    name = f"docs_{uuid4().hex}"
    with psycopg.connect(pg_url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield urlsplit(pg_url)._replace(path=f"/{name}").geturl()
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_the_sessions_on_the_page_go_as_written(folder: Path, monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "80")
    verbs = {"top"}  # in test_cli_top.py
    for line, expected in steps():
        if file := re.fullmatch(r"cat (\w+\.py)", line):
            (folder / file[1]).write_text(expected)
        if setting := re.fullmatch(r"export (\w+)=(.*)", line):
            monkeypatch.setenv(setting[1], setting[2].replace("postgresql://localhost/app", database))
        ran = subprocess.run(
            line, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS, check=False
        )
        same = doctest.OutputChecker().check_output(expected, ran.stdout, doctest.ELLIPSIS)
        assert same, f"$ {line}\n{ran.stdout}\ninstead of\n{expected}"
        verbs |= {word for word in line.split() if word in VERBS}
    assert verbs == set(VERBS)


def test_the_stop_on_the_page_goes_as_written(folder: Path, start_busy: StartWorker) -> None:
    (said,) = re.findall(r"^```text\n\^C(stopping .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    worker = start_busy()
    worker.process.send_signal(signal.SIGINT)
    worker.wait_until_it_says("stopping  1 job running")
    (folder / "go").touch()
    assert worker.end() == 0
    # The job behind it may have been taken, and is given back then.
    shown = re.sub(r"\d given back", "0 given back", worker.said[worker.said.index("stopping") :])
    assert shown == said


# With brackets and the like it shows what may be typed.
COMMANDS = {
    command
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    for command in re.findall(r"`(dejq [a-z][^`\n]*)`", page.read_text(encoding="utf-8"))
    if not re.search(r"[\[\]|…]", command)
}


@pytest.mark.parametrize("line", sorted(COMMANDS))
def test_a_command_in_the_docs_can_be_typed(line: str) -> None:
    verb, *words = shlex.split(line)[1:]
    assert verb in VERBS
    if words:
        assert make_parser(cli.VERBS.values()).parse_args([verb, *words]).verb == verb


def test_what_the_readme_says_to_make_can_be_made() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"^\$ make (\w+)", text, re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    made = re.findall(r"^(\w+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(targets) <= set(made)


def test_the_page_has_every_flag_and_variable_and_no_other() -> None:
    flags = {name for verb in cli.VERBS.values() for flag in verb.flags for name in flag.names if name.startswith("-")}
    variables = {flag.variable for verb in cli.VERBS.values() for flag in verb.flags if flag.in_environment}
    prose = SESSION.sub("", PAGE)
    assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", prose)) - {"--help", "-vv", "-vvv", "-m"} == flags
    assert set(re.findall(r"DEJQ_[A-Z_]+", prose)) == variables
    keys = {flag.key for verb in cli.VERBS.values() for flag in verb.flags if flag.in_project}
    assert set(re.findall(r"^(\w+) = ", PAGE.split("[tool.dejq]\n")[1].split("```")[0], re.MULTILINE)) == keys
