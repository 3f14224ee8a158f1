"""``dejq worker``: runs the handlers of an application, in this process or in several."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Protocol

import dejq
from dejq import _signals
from dejq.cli import child, talk
from dejq.cli.app import load
from dejq.cli.flags import APP, Flag, log_format, loudness, patience, switch, verb, whole
from dejq.cli.limits import Limits
from dejq.cli.talk import FAILED, OK, CommandError, close, count, exit_code, say
from dejq.logs import JsonFormatter, TextFormatter

# Kubernetes kills after 30 s; five of them are for what comes before and after.
_SHUTDOWN_SECONDS = 25.0
# What a second signal is answered with.
HURRY = "stopping  now: running jobs are told to return and given back"


def _size(text: str) -> int:
    """Bytes."""
    units = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]?)(?:i?b)?", text.lower())
    if found is None or (size := int(float(found[1]) * units[found[2]])) < 1:
        raise ValueError("must be bytes, or a number with a unit: 512M, 2G")
    return size


def _address(text: str) -> str:
    """``HOST:PORT``."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError("must be HOST:PORT, for example 127.0.0.1:9600, or 0.0.0.0:9600 for all networks")
    return text


@verb(
    "dejq worker app:client -w 8 --processes 4 --http 127.0.0.1:9600",
    APP,
    Flag(("-w", "--workers"), "plain handlers at once, in each process; default: the client's", whole, in_project=True,
         more={"metavar": "N"}),
    Flag(("--processes",), "so many processes below a supervisor, which starts a new one for each that dies", whole,
         in_project=True, more={"metavar": "N"}),
    Flag(("--type",), "only jobs of this type; may be repeated", default=(),
         more={"action": "append", "metavar": "TYPE"}),
    switch("--drain", "end when no job is ready or running"),
    switch("--reload", "start anew when a Python file below this folder changes; for development"),
    Flag(("--max-jobs",), "a process stops after so many jobs, and is replaced if it has a supervisor", whole,
         in_project=True, more={"metavar": "N"}),
    Flag(("--max-memory",), "the same when it holds so much memory: bytes, or 512M, 2G", _size, in_project=True,
         more={"metavar": "SIZE"}),
    Flag(("--shutdown-timeout",), "how long a stop waits for running jobs; default 25; or forever", patience,
         default=_SHUTDOWN_SECONDS, in_project=True, more={"metavar": "S"}),
    Flag(("--http",), "serve /metrics, /healthz and /readyz there", _address, in_project=True,
         more={"metavar": "HOST:PORT"}),
    Flag(("-v", "--verbose"), "-v log jobs, -vv also the worker's insides, -vvv also beats", loudness,
         in_project=True, more={"action": "count", "dest": "verbosity"}),
    Flag(("--log-format",), "of log lines: text or json; default text", log_format, default="text", in_project=True,
         more={"metavar": "F"}),
)  # fmt: skip
def worker(given: argparse.Namespace) -> int:
    """Runs the handlers of APP until a signal comes.

    SIGTERM or Ctrl-C stops gracefully: no new jobs, and running ones go on to their end. A second one, or the
    end of --shutdown-timeout, gives them back at once; the exit code is 1 then.
    """
    if given.app is None:
        raise CommandError("worker needs APP, for example: dejq worker app:client")
    if given.log_format == "json":
        talk.speak_json()
    if supervisor := child.supervisor():
        return _work_below(supervisor, given)
    if given.processes is not None or given.reload:
        from dejq.cli.supervisor import supervise

        return supervise(given)
    return _work(given, _Terminal(given))


class _Audience(Protocol):
    """Who is told what a worker does, and who tells it to stop."""

    def loaded(self, client: dejq.Client) -> None:
        """The application was imported; nothing has started."""

    def signals(self, client: dejq.Client) -> AbstractContextManager[None]:
        """Within it, what asks for a stop is heard."""
        ...

    def ready(self, client: dejq.Client) -> None:
        """The worker waits for jobs."""

    def stopping(self, running: int, why: str | None) -> None:
        """It takes no more; so many jobs run. `why`: the limit that it has reached."""

    def stopped(self, report: dejq.StopReport, ended: int) -> None:
        """It has stopped, after so many jobs in all."""


def _work(given: argparse.Namespace, audience: _Audience, number: int | None = None) -> int:
    client = load(given.app)
    if given.type:
        _keep(client, given.type)
    _log_to_stderr(given.verbosity, given.log_format, number)
    limits = Limits(client, given.max_jobs, given.max_memory)
    audience.loaded(client)
    # What no waiting mends ends it here; a store that does not answer may come up yet.
    with suppress(dejq.BackendUnavailable):
        client.stats()
    with audience.signals(client):
        client.dequeue_loop(given.workers)
        limits.watch()
        audience.ready(client)
        limit = None if given.shutdown_timeout == float("inf") else given.shutdown_timeout
        try:
            client._wait_for_stop(given.drain)
        except dejq.DejqError:
            client.stop(limit)
            raise
        why = "the worker has given up, its log says why" if limits.has_given_up else limits.reached
        audience.stopping(_running(client), why)
        report = client.stop(limit)
    audience.stopped(report, _ended(client))
    if report.forced or report.abandoned or limits.has_given_up:
        return FAILED
    return child.REPLACE if limits.reached and number is not None else OK


class _Terminal:
    """The only process of a worker tells people, and they send it signals."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given

    def loaded(self, client: dejq.Client) -> None:
        for line in banner(client.store, self._given.workers or client.workers, client.heartbeat, client.types):
            say(line)
        if self._given.http is not None:
            say(f"metrics   http://{client._native.serve(self._given.http)}/metrics")

    def signals(self, client: dejq.Client) -> AbstractContextManager[None]:
        def hurry() -> None:
            # A signal handler: print() may be in the middle of a line.
            os.write(sys.stderr.fileno(), f"{talk.worded(HURRY)}\n".encode())
            client._native.hurry(0.0)

        return _signals.stopping(client._stop_asked, hurry)

    def ready(self, client: dejq.Client) -> None:
        whose = " of this process, which alone has this memory" if client._in_process else ""
        say(f"ready     waiting for jobs{whose}; Ctrl-C to stop")

    def stopping(self, running: int, why: str | None) -> None:
        because = "" if why is None else f"  {why}"
        jobs = f"  {count(running, 'job')} running{up_to(self._given)} (Ctrl-C again to stop now)" if running else ""
        say(f"stopping{because}{jobs}")

    def stopped(self, report: dejq.StopReport, ended: int) -> None:
        say(summary(report.finished, report.given_back, report.abandoned, ended))


class _Child:
    """One of several processes tells its supervisor, which tells people."""

    def __init__(self, supervisor: child.Supervisor, given: argparse.Namespace) -> None:
        self._supervisor = supervisor
        self._given = given
        self._finish: Callable[[], None] = lambda: None

    def loaded(self, client: dejq.Client) -> None:
        if client._in_process and (self._given.processes or 1) > 1:
            raise CommandError(
                f"{client.store} lives in one process, so {self._given.processes} processes would have queues of their "
                "own; name another store, or leave out --processes"
            )
        if self._supervisor.metrics is not None:
            self._finish = client._native.report(self._supervisor.metrics).finish

    def signals(self, client: dejq.Client) -> AbstractContextManager[None]:
        client._stop_asked = self._supervisor.asked
        return nullcontext()

    def ready(self, client: dejq.Client) -> None:
        self._supervisor.when_in_a_hurry(lambda: client._native.hurry(0.0))
        workers = self._given.workers or client.workers
        self._supervisor.tell("ready", banner=banner(client.store, workers, client.heartbeat, client.types))

    def stopping(self, running: int, why: str | None) -> None:
        if self._supervisor.is_gone:
            say(f"stopping  process {self._supervisor.number}: its supervisor is gone")
        self._supervisor.tell("stopping", running=running, why=why)

    def stopped(self, report: dejq.StopReport, ended: int) -> None:
        self._finish()
        left = {"finished": report.finished, "given_back": report.given_back, "abandoned": report.abandoned}
        self._supervisor.tell("stopped", **left, ended=ended)


def _work_below(supervisor: child.Supervisor, given: argparse.Namespace) -> int:
    try:
        return _work(given, _Child(supervisor, given), supervisor.number)
    except (CommandError, dejq.DejqError) as error:
        # The supervisor says it, once for all its processes.
        supervisor.tell("failed", why=str(error))
        return exit_code(error)


def banner(store: str, workers: int, heartbeat: float, types: list[str]) -> list[str]:
    """What a worker says first."""
    return [
        f"dejq {dejq.__version__} · {store} · {count(workers, 'worker')} · heartbeat {heartbeat:g} s",
        f"handlers  {'  '.join(types)}",
    ]


def up_to(given: argparse.Namespace) -> str:
    """How long a stop waits."""
    return "" if given.shutdown_timeout == float("inf") else f", up to {given.shutdown_timeout:g} s"


def summary(finished: int, given_back: int, abandoned: int, ended: int) -> str:
    """What a worker says last."""
    left = f", {abandoned} left running" if abandoned else ""
    return f"stopped   {finished} done, {given_back} given back{left}; {ended:,} in all"


def _keep(client: dejq.Client, types: list[str]) -> None:
    there = client.types
    for name in types:
        if name not in there:
            known = f"the handlers here are for {', '.join(there)}" if there else "there are no handlers"
            raise CommandError(f"--type {name!r} has no handler, so nothing would run{close(name, there)}; {known}")
    client._native.keep_handlers(types)


def _running(client: dejq.Client) -> int:
    """Handlers of this worker that have started and whose end is not stored."""
    return client._native.counted()["started"] - _ended(client)


def _ended(client: dejq.Client) -> int:
    counted = client._native.counted()
    return sum(counted[end] for end in ("finished", "failed", "retried", "cancelled", "lost"))


def _log_to_stderr(verbosity: int | None, form: str, number: int | None) -> None:
    """Unless the application has set up logging itself. `number` tells one of several processes from the others."""
    handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(JsonFormatter() if number is None else JsonFormatter(worker_process=number))
    else:
        handler.setFormatter(TextFormatter("" if number is None else f"[{number}] "))
    logging.basicConfig(handlers=[handler])
    if verbosity is not None:
        dejq.set_verbosity(min(verbosity, 3))
