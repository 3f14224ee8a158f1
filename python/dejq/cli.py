"""The command line: ``dejq``, or ``python -m dejq``.

A verb is a function with `_verb` above it, which gives its example and its flags; nothing else has to change
to add one. Data goes to stdout, talk to stderr, and both pass `_scrub`, so that no password is printed. What
costs time to import is imported where it is used: ``dejq --help`` must be quick.
"""

from __future__ import annotations

import argparse
import logging
import operator
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

import dejq
from dejq._settings import project_settings
from dejq.client import _signals

OK, FAILED, USAGE, NO_CONNECTION, NO_SCHEMA = range(5)
_INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended

# Kubernetes kills after 30 s; five of them are for what comes before and after.
_SHUTDOWN_SECONDS = 25.0


class CommandError(Exception):
    """The command cannot be done; its text is the whole message.

    Args:
        text: What is wrong and what to type instead.
        code: The exit code.
    """

    def __init__(self, text: str, code: int = USAGE) -> None:
        super().__init__(text)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments; default: the program's own.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 3 the store cannot be reached, 4 it is not set up or
        too old.

    Raises:
        SystemExit: After ``--help`` and ``--version``, and for arguments that do not parse.
    """
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="backslashreplace")  # a dash is no reason to fail on a terminal of another age
    given = _parser().parse_args(argv)
    try:
        verb = _verbs[given.verb]
        _fill_in(given, verb.flags)
        return verb.run(given)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough (`dejq stats | head`). Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (CommandError, dejq.DejqError) as error:
        _say(f"dejq: {error}")
        return _exit_code(error)
    except Exception:
        import traceback

        _say(f"dejq: this is a bug in dejq, please report it\n{traceback.format_exc()}")
        return FAILED


def _exit_code(error: BaseException) -> int:
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, (dejq.ConfigError, dejq.BodyError)):
        return USAGE
    if isinstance(error, dejq.BackendUnavailable):
        return NO_CONNECTION
    if isinstance(error, (dejq.SchemaMissing, dejq.SchemaOutdated)):
        return NO_SCHEMA
    return FAILED


# ---- what is printed -------------------------------------------------------------------------------------

_SECRETS = (
    # user:password@ in a URL, up to the last @ of the word: a password may contain one.
    (re.compile(r"(://[^/?#\s:@]*):\S+@"), r"\1:***@"),
    (re.compile(r"\b(password|passwd|pwd|secret|token)=[^&\s'\"]+", re.IGNORECASE), r"\1=***"),
)


def _scrub(text: str) -> str:
    """The text without passwords."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _say(text: str) -> None:
    """Talk: for people, on stderr."""
    print(_scrub(text), file=sys.stderr, flush=True)


def _show(text: str) -> None:
    """Data: for people and programs, on stdout."""
    print(_scrub(text), flush=True)


def _show_json(value: object) -> None:
    import json

    _show(json.dumps(value))


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    )


def _span(length: timedelta | None) -> str:
    """A length of time as people say it."""
    if length is None:
        return "–"
    seconds = length.total_seconds()
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


# ---- flags and verbs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flag:
    """A flag or an argument. When the command line leaves it out, the environment counts, then the project.

    Attributes:
        names: As typed: ``("-w", "--workers")``; of an argument: ``("TYPE",)``.
        help: For ``--help``.
        read: Makes the value from text; raises `ValueError` with what it must be.
        default: When it is given nowhere.
        in_environment: Does ``DEJQ_<NAME>`` count?
        in_project: Does the key under ``[tool.dejq]`` in pyproject.toml count?
        more: Further arguments of `argparse.ArgumentParser.add_argument`.
    """

    names: tuple[str, ...]
    help: str
    read: Callable[[str], Any] = str
    default: Any = None
    in_environment: bool = True
    in_project: bool = False
    more: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        """Its name in `argparse.Namespace` and in the project's file."""
        name = (self.more or {}).get("dest", self.names[-1])
        return str(name).lstrip("-").replace("-", "_").lower()

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"DEJQ_{self.key.upper()}"

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Tells argparse. Defaults are filled in later: they have more than one place."""
        more: dict[str, Any] = {"help": self.help.replace("%", "%%"), "default": None, **(self.more or {})}
        if more.get("action") not in ("store_true", "count"):
            more["type"] = self._read
        if self.names[0].startswith("-"):
            parser.add_argument(*self.names, **more)
        else:
            parser.add_argument(self.key, metavar=self.names[0], **more)

    def _read(self, text: str) -> Any:
        try:
            return self.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} {error}") from None

    def from_text(self, text: str, source: str) -> Any:
        """The value, given in another place than the command line.

        Raises:
            CommandError: It cannot be read; the text names the place.
        """
        try:
            value = self.read(text)
        except ValueError as error:
            raise CommandError(f"{source} is {text!r}, and {error}") from None
        return [value] if (self.more or {}).get("action") == "append" else value


_Run = Callable[[argparse.Namespace], int]


@dataclass(frozen=True)
class _Verb:
    run: _Run
    example: str
    flags: tuple[Flag, ...]


_verbs: dict[str, _Verb] = {}


def _verb(example: str, *flags: Flag) -> Callable[[_Run], _Run]:
    """Makes a verb of a function: its name is the verb's, the first line of its docstring the help."""

    def decorate(run: _Run) -> _Run:
        _verbs[run.__name__] = _Verb(run, example, flags)
        return run

    return decorate


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(_scrub(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dejq",
        allow_abbrev=False,
        description="A very simple job queue. `dejq VERB --help` explains a verb.",
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage, 3 no connection to the store, 4 run migrate",
    )
    parser.add_argument("--version", action="version", version=f"dejq {dejq.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in _verbs.items():
        what, _, more = (verb.run.__doc__ or "").partition("\n")
        one = verbs.add_parser(
            name,
            help=what,
            description="\n".join([what, *(line.removeprefix("    ") for line in more.rstrip().split("\n"))]),
            epilog="\n".join(["example:", f"  {verb.example}", "", *_places(verb.flags)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for flag in verb.flags:
            flag.add_to(one)
    return parser


def _places(flags: Iterable[Flag]) -> Iterable[str]:
    """The other places where flags may stand, for the end of ``--help``."""
    places = {
        "environment:": [flag.variable for flag in flags if flag.in_environment],
        "under [tool.dejq] in pyproject.toml:": [flag.key for flag in flags if flag.in_project],
    }
    for title, names in places.items():
        if names:
            yield title
        for first in range(0, len(names), 4):
            yield "  " + "  ".join(names[first : first + 4])


def _fill_in(given: argparse.Namespace, flags: Iterable[Flag]) -> None:
    """Fills in what the command line left out.

    `given.source` gets the place that each value comes from, after its rank: 0 the command line, 1 the
    environment, 2 the project.
    """
    project = project_settings() if any(flag.in_project for flag in flags) else {}
    source: dict[str, tuple[int, str]] = {}
    for flag in flags:
        key = flag.key
        if getattr(given, key) is not None:
            source[key] = (0, flag.names[-1])
        elif flag.in_environment and (text := os.environ.get(flag.variable)):
            source[key] = (1, flag.variable)
            setattr(given, key, flag.from_text(text, flag.variable))
        elif flag.in_project and key in project:
            place = "[tool.dejq] in pyproject.toml"
            source[key] = (2, place)
            setattr(given, key, flag.from_text(str(project[key]), f"{key} under {place}"))
        else:
            setattr(given, key, flag.default)
    given.source = source


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("must be a whole number of at least 1")
    return int(text)


def _verbosity(text: str) -> int:
    if text not in ("0", "1", "2", "3"):
        raise ValueError("must be 0, 1, 2 or 3")
    return int(text)


def _truth(text: str) -> bool:
    if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError("must be 1 or 0")
    return text.lower() in ("1", "true", "yes", "on")


def _seconds(text: str) -> float:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s|m|h|d)?", text)
    if found is None:
        raise ValueError("must be seconds, or a number with a unit: 250ms, 90s, 10m, 2h, 7d")
    seconds = float(found[1]) * units[found[2] or "s"]
    if seconds > 36_525 * 86_400:
        raise ValueError("must be at most 100 years")
    return seconds


def _pause(text: str) -> float:
    if (seconds := _seconds(text)) < 0.1:
        raise ValueError("must be at least 0.1")
    return seconds


def _patience(text: str) -> float:
    return float("inf") if text == "forever" else _seconds(text)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError("must be KEY=VALUE")
    return key, value


def _switch(name: str, help: str) -> Flag:
    return Flag((name,), help, read=_truth, default=False, more={"action": "store_true"})


_APP_HELP = "module:attribute of the client, or of a function that makes it"
_APP = Flag(("APP",), _APP_HELP, in_project=True, more={"nargs": "?"})
_URL = Flag(("--url",), "the store, for example redis://localhost", in_project=True, more={"metavar": "URL"})
# Of verbs that need a store, wherever it is named.
_STORE = (
    _URL,
    Flag(("--app",), f"instead of a URL: {_APP_HELP}", in_project=True, more={"metavar": "APP"}),
)
_JSON = _switch("--json", "print JSON")
_DRY_RUN = _switch("--dry-run", "only say what would be done")


# ---- clients ---------------------------------------------------------------------------------------------


def _client(given: argparse.Namespace, *, first: str = "url") -> dejq.Client:
    """The client that is named by the command line, else by the environment, else by the project.

    Args:
        given: With ``url`` and ``app``.
        first: Which of the two counts when both stand in the same place.
    """
    named = [(given.source[key][0], key != first, key) for key in ("url", "app") if key in given.source]
    if named and min(named)[-1] == "app":
        return load(given.app)
    client = dejq.connect(given.url)  # says what to do when there is none
    client.url_source = given.source["url"][1]
    return client


def load(app: str) -> dejq.Client:
    """The client that ``module:attribute`` names. The current folder is searched first.

    Raises:
        CommandError: There is no such module or attribute, it cannot be imported, or it is no client.
    """
    module_name, _, path = app.partition(":")
    if not module_name or not path or "/" in module_name or module_name.endswith(".py"):
        name = re.sub(r"\W+", ".", module_name.removesuffix(".py")).strip(".") or "app"
        raise CommandError(f"APP is module:attribute, and {app!r} is not; for example {name}:{path or 'client'}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = operator.attrgetter(path)(_import(module_name))
    except AttributeError as error:
        raise CommandError(f"there is no {error.name!r} in {module_name}{_meant(str(error.name), error.obj)}") from None
    if callable(found) and not isinstance(found, dejq.Client):
        found = _call(app, found)
    if not isinstance(found, dejq.Client):
        raise CommandError(
            f"{app} is of type {type(found).__name__}; it must be a dejq.Client or a function that makes one"
        )
    return found


def _import(name: str) -> Any:
    import importlib
    import pkgutil

    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            raise _broken(f"{name} cannot be imported", error) from error
        parent = sys.modules.get(missing.rpartition(".")[0])
        folders = [str(Path.cwd())] if parent is None else getattr(parent, "__path__", [])
        there = [module.name for module in pkgutil.iter_modules(folders)]
        meant = _close(missing.rpartition(".")[2], there)
        raise CommandError(f"there is no module {missing!r} in {Path.cwd()} or on Python's path{meant}") from None


def _call(app: str, factory: Callable[[], object]) -> object:
    try:
        return factory()
    except Exception as error:
        trace = error.__traceback__
        if isinstance(error, TypeError) and trace is not None and trace.tb_next is None:
            raise CommandError(
                f"{app} is neither a dejq.Client nor a function that makes one without arguments ({error})"
            ) from None
        raise _broken(f"{app} made no client", error) from error


def _broken(what: str, error: BaseException) -> CommandError:
    """The application's own code raised: says where, without the traceback."""
    import traceback

    own = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<frozen", own)) and "importlib" not in frame.filename
    ]
    where = f" ({os.path.relpath(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    why = str(error) if isinstance(error, dejq.DejqError) else f"{type(error).__name__}: {error}"
    return CommandError(f"{what}: {why}{where}", _exit_code(error))


def _meant(word: str, found: object) -> str:
    names = [name for name in dir(found) if not name.startswith("_")]
    clients = [name for name in names if isinstance(getattr(found, name, None), dejq.Client)]
    return _close(word, clients) or _close(word, names) or (f"; it has {clients[0]!r}" if clients else "")


def _close(word: str, there: Sequence[str], likeness: float = 0.6) -> str:
    import difflib

    close = difflib.get_close_matches(word, there, n=1, cutoff=likeness)
    return f"; did you mean {close[0]!r}?" if close else ""


# ---- worker ----------------------------------------------------------------------------------------------


@_verb(
    "dejq worker app:client -w 8 -v",
    _APP,
    Flag(("-w", "--workers"), "plain handlers at once; default: the client's", _whole, in_project=True,
         more={"metavar": "N"}),
    _switch("--drain", "end when no job is ready or running"),
    Flag(("--shutdown-timeout",), "how long a stop waits for running jobs; default 25; or forever", _patience,
         default=_SHUTDOWN_SECONDS, in_project=True, more={"metavar": "S"}),
    Flag(("-v", "--verbose"), "-v log jobs, -vv also the worker's insides, -vvv also beats", _verbosity,
         in_project=True, more={"action": "count", "dest": "verbosity"}),
)  # fmt: skip
def worker(given: argparse.Namespace) -> int:
    """Runs the handlers of APP until a signal comes.

    SIGTERM or Ctrl-C stops gracefully: no new jobs, and running ones go on to their end. A second one, or the
    end of --shutdown-timeout, gives them back at once; the exit code is 1 then.
    """
    if given.app is None:
        raise CommandError("worker needs APP, for example: dejq worker app:client")
    client = load(given.app)
    _log_to_stderr(given.verbosity)
    _say(
        f"dejq {dejq.__version__} · {client.store} · {_count(given.workers or client.workers, 'worker')} "
        f"· heartbeat {client.heartbeat:g} s"
    )
    _say(f"handlers  {'  '.join(client.types)}")

    def hurry() -> None:
        # A signal handler: print() may be in the middle of a line.
        os.write(sys.stderr.fileno(), b"stopping  now: running jobs are told to return and given back\n")
        client._native.hurry(0.0)

    with _signals(client._stop_asked, hurry):
        client.dequeue_loop(given.workers)
        whose = " of this process, which alone has this memory" if client._in_process else ""
        _say(f"ready     waiting for jobs{whose}; Ctrl-C to stop")
        client._wait_for_stop(given.drain)
        limit = None if given.shutdown_timeout == float("inf") else given.shutdown_timeout
        running = _running(client)
        patience = "" if limit is None else f", up to {limit:g} s"
        _say(
            f"stopping  {_count(running, 'job')} running{patience} (Ctrl-C again to stop now)"
            if running
            else "stopping"
        )
        report = client.stop(limit)
    left = f", {report.abandoned} left running" if report.abandoned else ""
    _say(f"stopped   {report.finished} done, {report.given_back} given back{left}; {_ended(client):,} in all")
    return FAILED if report.forced or report.abandoned else OK


def _running(client: dejq.Client) -> int:
    """Handlers of this worker that have started and whose end is not stored."""
    return client._native.counted()["started"] - _ended(client)


def _ended(client: dejq.Client) -> int:
    counted = client._native.counted()
    return sum(counted[end] for end in ("finished", "failed", "retried", "cancelled", "lost"))


class _ScrubbedFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _scrub(super().format(record))


def _log_to_stderr(verbosity: int | None) -> None:
    """Unless the application has set up logging itself."""
    handler = logging.StreamHandler()
    handler.setFormatter(_ScrubbedFormatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
    if verbosity is not None:
        dejq.set_verbosity(min(verbosity, 3))


# ---- the store -------------------------------------------------------------------------------------------


@_verb(
    "dejq migrate --url postgresql://localhost/app",
    Flag(("WHAT",), "status: is there something to do?  sql: show it", in_environment=False,
         more={"nargs": "?", "choices": ("status", "sql")}),
    *_STORE,
    _DRY_RUN,
)  # fmt: skip
def migrate(given: argparse.Namespace) -> int:
    """Creates or upgrades what the store needs."""
    client = _client(given)
    if given.what is None and not given.dry_run:
        applied = client.migrate().applied
        for step in applied:
            _show(step)
        if not applied:
            _say(f"nothing to do: {client.store} is up to date")
        return OK
    findings = [finding for finding in client.check() if finding.name == "schema"]
    for finding in findings:
        _show(f"{finding.level:<5} {finding.text}")
    if not findings:
        _say(f"nothing to do: {client.store} needs no schema")
    return NO_SCHEMA if any(finding.level == "error" for finding in findings) else OK


_STATES = ("ready", "scheduled", "blocked", "running", "finished", "failed", "cancelled")


@_verb(
    "dejq stats --watch 2",
    *_STORE,
    Flag(("--watch",), "again every S seconds, until Ctrl-C", _pause, more={"metavar": "S"}),
    _JSON,
)
def stats(given: argparse.Namespace) -> int:
    """Prints how many jobs there are, by type and state."""
    client = _client(given)
    try:
        while True:
            found = client.stats()
            if given.json:
                _show_json(_stats_as_json(found))
            else:
                _show(("\x1b[H\x1b[2J" if given.watch and sys.stdout.isatty() else "") + _stats_as_table(found))
            if not given.watch:
                return OK
            time.sleep(given.watch)
    except KeyboardInterrupt:
        if given.watch:
            return OK
        raise


def _stats_as_json(found: dejq.Stats) -> dict[str, Any]:
    return {
        "enqueued_jobs": found.enqueued_jobs,
        "workers": found.workers,
        **_counts(found),
        "by_type": {name: _counts(found.by_type[name]) for name in sorted(found.by_type)},
    }


def _counts(found: dejq.TypeStats) -> dict[str, Any]:
    oldest = found.oldest_ready
    return {
        **{state: getattr(found, state) for state in _STATES},
        "oldest_ready_s": None if oldest is None else oldest.total_seconds(),
    }


def _stats_as_table(found: dejq.Stats) -> str:
    rows = [["TYPE", *(state.upper() for state in _STATES), "OLDEST"]]
    for name in sorted(found.by_type):
        of_type = found.by_type[name]
        counts = [getattr(of_type, state) for state in _STATES]
        rows.append([name, *("–" if count is None else f"{count:,}" for count in counts), _span(of_type.oldest_ready)])
    workers = [] if found.workers is None else [_count(found.workers, "worker")]
    last = [_count(len(found.by_type), "type"), *workers, f"{found.enqueued_jobs:,} waiting to run"]
    return f"{_table(rows)}\n{' · '.join(last)}"


@_verb(
    "dejq enqueue email:v1 '{\"to\": \"ada@example.org\"}' --then report:v1 '{\"to\": \"ada@example.org\"}'",
    Flag(("TYPE",), "the job's type", in_environment=False),
    Flag(("BODY",), "its body: JSON, @FILE, or - for standard input; default null", in_environment=False,
         more={"nargs": "?"}),
    Flag(("--then",), "the next job of the chain; may be repeated", default=(), in_environment=False,
         more={"nargs": "+", "action": "append", "metavar": ("TYPE", "BODY")}),
    Flag(("--on-failure",), "when a job of the chain fails: continue (default) or cancel the rest",
         default="continue", more={"choices": ("continue", "cancel")}),
    Flag(("--delay",), "how long the first job waits: seconds, or 250ms, 10m, 2h, 7d", _seconds,
         more={"metavar": "S"}),
    Flag(("--unique",), "nothing is stored while a job of this type with this key is not final",
         more={"metavar": "KEY"}),
    Flag(("--max-attempts",), "runs of each job whose handler fails", _whole, more={"metavar": "N"}),
    Flag(("--header",), "travels with each job; may be repeated", _pair, default=(),
         more={"action": "append", "metavar": "KEY=VALUE"}),
    *_STORE,
    _JSON,
    _DRY_RUN,
)  # fmt: skip
def enqueue(given: argparse.Namespace) -> int:
    """Stores a job, or a chain of jobs, and prints the ids."""
    steps = [[given.type] if given.body is None else [given.type, given.body], *given.then]
    if long := next((step for step in steps if len(step) > 2), None):
        raise CommandError(f"--then takes a type and a body, and here come {len(long)} words; quote the JSON: '…'")
    headers = dict(given.header)
    jobs = [
        dejq.PendingJob(
            step[0],
            _body(*step),
            delay=None if place else given.delay,
            unique=None if place else given.unique,
            max_attempts=given.max_attempts,
            headers=headers,
        )
        for place, step in enumerate(steps)
    ]
    client = _client(given)
    if given.dry_run:
        dejq.memory().enqueue(*jobs, on_failure=given.on_failure)  # refuses what no store takes
        _say(f"would enqueue on {client.store}: {' → '.join(job.type for job in jobs)}")
        return OK
    if client._in_process:
        raise CommandError(
            f"{client.store} lives in one process, so the job would be gone when this command ends; name "
            "another store with --url or DEJQ_URL, or check the job with --dry-run"
        )
    ids = client.enqueue(*jobs, on_failure=given.on_failure)
    if given.json:
        _show_json({"ids": ids})
    else:
        _show("\n".join(ids))
    return OK


def _body(job_type: str, text: str = "null") -> Any:
    import json

    place = "the body"
    try:
        if text == "-":
            place = "standard input"
            text = sys.stdin.read()
        elif text.startswith("@"):
            place = text[1:]
            text = Path(place).read_text(encoding="utf-8")
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{place} of {job_type!r}" if place == "the body" else f"{place}, for {job_type!r},"
        raise CommandError(f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except OSError as error:
        raise CommandError(f"{place} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise CommandError(f"{place} of {job_type!r} is not JSON: {error}") from None


@_verb("dejq doctor app:client", _APP, _URL, _JSON)
def doctor(given: argparse.Namespace) -> int:
    """Looks for what is wrong, or will be.

    The exit code is 1 if there is an error, or the one of what made it impossible to look further.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    findings = [dejq.Finding(level="ok", name="dejq", text=f"{dejq.__version__}, Python {version}, {sys.platform}")]
    findings += _misspelt()
    code = OK
    try:
        client = _client(given, first="app")
        findings += client.check()
    except (CommandError, dejq.DejqError) as error:
        code = _exit_code(error)
        findings.append(dejq.Finding(level="error", name="client", text=str(error)))
    if given.json:
        _show_json([asdict(finding) for finding in findings])
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            _show(f"{finding.level:<5}  {finding.name:<{width}}  {finding.text}")
            if finding.fix:
                _show(f"{'':<5}  {'':<{width}}  fix: {finding.fix}")
    return code or (FAILED if any(finding.level == "error" for finding in findings) else OK)


def _misspelt() -> list[dejq.Finding]:
    """Names in the environment and in the project that are nearly ones that count."""
    flags = [flag for verb in _verbs.values() for flag in verb.flags]
    variables = {name for name in os.environ if name.startswith("DEJQ_")}
    # All variables begin alike, which makes them look closer than they are.
    places = (
        ("environment", variables, {flag.variable for flag in flags if flag.in_environment}, 0.8),
        ("pyproject", set(project_settings()), {flag.key for flag in flags if flag.in_project}, 0.6),
    )
    return [
        dejq.Finding(level="warn", name=place, text=f"{name} means nothing{meant}")
        for place, names, known, likeness in places
        for name in sorted(names - known)
        if (meant := _close(name, sorted(known), likeness))
    ]


# ---- bench and example -----------------------------------------------------------------------------------

_BENCH_TYPE = "bench:noop"
_BENCH_BATCH = 1_000
_BENCH_CHAIN = 100
_BENCH_PINGS = 500
_BENCH_LOOK_SECONDS = 0.001
# About 120 bytes of JSON, as jobs of the field have.
_BENCH_BODY = {
    "user_id": 123_456,
    "email": "ada@example.org",
    "template": "welcome",
    "tags": ["a", "b"],
    "note": "x" * 24,
}


@_verb(
    "dejq bench memory:// -n 50000",
    Flag(
        ("URL",),
        "the store; default memory://",
        in_environment=False,
        default="memory://",
        more={"nargs": "?"},
    ),
    Flag(("-n", "--jobs"), "jobs per line; default 50,000", _whole, default=50_000, more={"metavar": "N"}),
    _JSON,
)
def bench(given: argparse.Namespace) -> int:
    """Measures a store on this machine: enqueue, drain, chain, idle latency.

    The jobs are of the type bench:noop and do nothing. DEJQ_URL does not count here, so that nobody measures a
    production store by accident.
    """
    figures: list[dict[str, Any]] = []
    for measure in (_measure_drain, _measure_async, _measure_chain, _measure_latency):
        _progress(f"measuring {measure.__name__.removeprefix('_measure_')} …")
        for figure in measure(given.url, given.jobs):
            figures.append(figure)
            if not given.json:
                _progress("")
                _show(_figure_as_line(**figure))
    _progress("")
    if given.json:
        store = dejq.connect(given.url).store
        _show_json({"dejq": dejq.__version__, "store": store, "cpus": os.cpu_count(), "figures": figures})
    return OK


def _progress(text: str) -> None:
    """A line on the terminal that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{_scrub(text)}", end="", file=sys.stderr, flush=True)


_Figures = Iterator[dict[str, Any]]


def _noop(job: dejq.Job) -> None:
    pass


async def _async_noop(job: dejq.Job) -> None:
    pass


def _measure_drain(url: str, jobs: int) -> _Figures:
    with _bench_client(url, _noop) as client:
        single = max(1, jobs // 10)
        began = time.perf_counter()
        for _ in range(single):
            client.enqueue(_bench_job())
        yield _rate("enqueue", "one in a call", single, began)
        yield from _fill(client, jobs - single)
        yield _drained("drain", "def handler", client, jobs)


def _measure_async(url: str, jobs: int) -> _Figures:
    with _bench_client(url, _async_noop) as client:
        list(_fill(client, jobs))
        yield _drained("drain async", "async def handler", client, jobs)


def _measure_chain(url: str, jobs: int) -> _Figures:
    length = min(jobs, _BENCH_CHAIN)
    with _bench_client(url, _noop) as client:
        client.enqueue(*(_bench_job() for _ in range(length)))
        yield _drained("chain", "each after the one before it", client, length)


def _measure_latency(url: str, jobs: int) -> _Figures:
    started: SimpleQueue[float] = SimpleQueue()

    def note(_: dejq.Job) -> None:
        started.put(time.perf_counter())

    took: list[float] = []
    with _bench_client(url, note) as client:
        client.dequeue_loop()
        for _ in range(min(jobs, _BENCH_PINGS)):
            began = time.perf_counter()
            client.enqueue(_bench_job())
            took.append((started.get() - began) * 1000)
            # So that the worker has nothing to do again.
            time.sleep(_BENCH_LOOK_SECONDS)
    took.sort()
    yield {
        "name": "idle latency", "what": "enqueue call to handler start", "jobs": len(took),
        "p50_ms": round(took[len(took) // 2], 3), "p99_ms": round(took[len(took) * 99 // 100], 3),
    }  # fmt: skip


def _bench_client(url: str, handler: dejq.Handler) -> dejq.Client:
    client = dejq.connect(url)
    client.register_handler(_BENCH_TYPE, handler)
    return client


def _bench_job() -> dejq.PendingJob[Any]:
    return dejq.PendingJob(_BENCH_TYPE, _BENCH_BODY)


def _fill(client: dejq.Client, jobs: int) -> _Figures:
    began = time.perf_counter()
    for first in range(0, jobs, _BENCH_BATCH):
        client.enqueue_many(_bench_job() for _ in range(min(_BENCH_BATCH, jobs - first)))
    if jobs:
        yield _rate("enqueue many", f"{_BENCH_BATCH:,} in a call", jobs, began)


def _drained(name: str, what: str, client: dejq.Client, jobs: int) -> dict[str, Any]:
    """Starts the worker; the time ends when the store has the end of every job."""
    began = time.perf_counter()
    client.dequeue_loop()
    while client._native.counted()["finished"] < jobs:
        time.sleep(_BENCH_LOOK_SECONDS)
    return _rate(name, what, jobs, began)


def _rate(name: str, what: str, jobs: int, began: float) -> dict[str, Any]:
    seconds = time.perf_counter() - began
    return {
        "name": name,
        "what": what,
        "jobs": jobs,
        "seconds": round(seconds, 4),
        "per_s": round(jobs / seconds),
    }


def _figure_as_line(name: str, what: str, jobs: int, **figures: float) -> str:
    if "per_s" in figures:
        value = f"{figures['per_s']:>9,} jobs/s"
    else:
        value = f"p50 {figures['p50_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms"
    return f"{name:<13} {value:<28} {jobs:>7,} jobs, {what}"


@_verb(
    "dejq example mem",
    Flag(("STORE",), "mem (default), pg, redis or sqs, on this machine; DEJQ_URL names another one",
         in_environment=False, more={"nargs": "?", "choices": ("mem", "pg", "redis", "sqs")}),
    Flag(("FOLDER",), "what to index; default: the project of the current folder", in_environment=False,
         more={"nargs": "?"}),
)  # fmt: skip
def example(given: argparse.Namespace) -> int:
    """Shows jobs at work: indexes the files below FOLDER, with chains, a slow job and a retry.

    The program is short and made to be read: python/dejq/example.py.
    """
    from dejq.example import main as run_example

    return run_example(given.store, given.folder)
