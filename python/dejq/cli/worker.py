"""``dejq worker``: runs the handlers of an application."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import suppress

import dejq
from dejq._secrets import scrub
from dejq.cli.app import load
from dejq.cli.flags import APP, Flag, log_format, loudness, patience, switch, verb, whole
from dejq.cli.talk import FAILED, OK, CommandError, count
from dejq.client import _signals
from dejq.logs import JsonFormatter, TextFormatter

# Kubernetes kills after 30 s; five of them are for what comes before and after.
_SHUTDOWN_SECONDS = 25.0


@verb(
    "dejq worker app:client -w 8 -v",
    APP,
    Flag(("-w", "--workers"), "plain handlers at once; default: the client's", whole, in_project=True,
         more={"metavar": "N"}),
    switch("--drain", "end when no job is ready or running"),
    Flag(("--shutdown-timeout",), "how long a stop waits for running jobs; default 25; or forever", patience,
         default=_SHUTDOWN_SECONDS, in_project=True, more={"metavar": "S"}),
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
    client = load(given.app)
    _log_to_stderr(given.verbosity, given.log_format)
    line = _as_json if given.log_format == "json" else scrub

    def say(text: str) -> None:
        print(line(text), file=sys.stderr, flush=True)

    say(
        f"dejq {dejq.__version__} · {client.store} · {count(given.workers or client.workers, 'worker')} "
        f"· heartbeat {client.heartbeat:g} s"
    )
    say(f"handlers  {'  '.join(client.types)}")
    # What no waiting mends ends it here; a store that does not answer may come up yet.
    with suppress(dejq.BackendUnavailable):
        client.stats()

    def hurry() -> None:
        # A signal handler: print() may be in the middle of a line.
        os.write(
            sys.stderr.fileno(), f"{line('stopping  now: running jobs are told to return and given back')}\n".encode()
        )
        client._native.hurry(0.0)

    with _signals(client._stop_asked, hurry):
        client.dequeue_loop(given.workers)
        whose = " of this process, which alone has this memory" if client._in_process else ""
        say(f"ready     waiting for jobs{whose}; Ctrl-C to stop")
        limit = None if given.shutdown_timeout == float("inf") else given.shutdown_timeout
        try:
            client._wait_for_stop(given.drain)
        except dejq.DejqError:
            client.stop(limit)
            raise
        running = _running(client)
        patience = "" if limit is None else f", up to {limit:g} s"
        say(
            f"stopping  {count(running, 'job')} running{patience} (Ctrl-C again to stop now)" if running else "stopping"
        )
        report = client.stop(limit)
    left = f", {report.abandoned} left running" if report.abandoned else ""
    say(f"stopped   {report.finished} done, {report.given_back} given back{left}; {_ended(client):,} in all")
    return FAILED if report.forced or report.abandoned else OK


def _running(client: dejq.Client) -> int:
    """Handlers of this worker that have started and whose end is not stored."""
    return client._native.counted()["started"] - _ended(client)


def _ended(client: dejq.Client) -> int:
    counted = client._native.counted()
    return sum(counted[end] for end in ("finished", "failed", "retried", "cancelled", "lost"))


def _as_json(text: str) -> str:
    """Talk in the form of the log lines around it."""
    said = {"name": "dejq.worker", "levelname": "INFO", "msg": " ".join(text.split())}
    return JsonFormatter().format(logging.makeLogRecord(said))


def _log_to_stderr(verbosity: int | None, form: str) -> None:
    """Unless the application has set up logging itself."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler])
    if verbosity is not None:
        dejq.set_verbosity(min(verbosity, 3))
