"""The example: an index of the files below a folder, made by jobs. ``python -m dejq example`` runs it.

What a program with dejq consists of, in the order of this file:

1. bodies      what a job is told: a dataclass, kept as JSON
2. handlers    functions that do it: ``def`` or ``async def``
3. a client    knows the store and the handlers; another URL is another store, and nothing else changes
4. `run`       enqueues jobs, works them, and stops gracefully
5. the rest    finds files, keeps results, prints the summary: what every program has anyway

Each file is a chain of three jobs, which run one after the other, whatever worker runs them. Jobs share no
data: what one finds out goes to the application's own database, here a small SQLite file, where the next one
finds it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, pairwise
from pathlib import Path

import dejq

# ---- 1. bodies -------------------------------------------------------------------------------------------


@dataclass
class File:
    """A file to index. The database is named too: any process that can open it may run the job."""

    path: str
    database: str


@dataclass
class Work:
    """A job that takes some time.

    Attributes:
        seconds: How long.
        database: Where to note that it ran.
    """

    seconds: float
    database: str


# ---- 2. handlers -----------------------------------------------------------------------------------------
# Returning is success. Raising is failure: the job is tried again if it may be, and fails for good if not.


async def read(job: dejq.Job, body: File) -> None:
    """First of a chain: notes the size and the hash of a file. On the event loop, so it must not block."""
    with step(job, body.database, body.path) as database:
        content = await asyncio.to_thread(Path(body.path).read_bytes)
        database.execute(
            # A job may run twice (at least once is the promise), so what it does must be repeatable.
            "INSERT OR REPLACE INTO files (path, bytes, hash) VALUES (?, ?, ?)",
            (body.path, len(content), hashlib.sha256(content).hexdigest()),
        )


def count(job: dejq.Job, body: File) -> None:
    """Second of a chain: counts lines, words and symbols. Work for the CPU, so on a thread."""
    with step(job, body.database, body.path) as database:
        text = Path(body.path).read_text(encoding="utf-8", errors="replace")
        symbols = len(SYMBOLS[Path(body.path).suffix].findall(text))
        database.execute(
            "UPDATE files SET lines = ?, words = ?, symbols = ? WHERE path = ?",
            (text.count("\n"), len(text.split()), symbols, body.path),
        )


def report(job: dejq.Job, body: File) -> None:
    """Last of a chain: makes a line of what the jobs before it have found."""
    with step(job, body.database, body.path) as database:
        lines, symbols = database.execute("SELECT lines, symbols FROM files WHERE path = ?", (body.path,)).fetchone()
        line = f"{symbols:>5,} symbols {lines:>7,} lines  {body.path}"
        database.execute("UPDATE files SET report = ? WHERE path = ?", (line, body.path))


slow_job_runs = threading.Event()


def work_slowly(job: dejq.Job, body: Work) -> None:
    """Runs for longer than its lease lasts. Nothing has to be done about that: beats renew it."""
    slow_job_runs.set()
    with step(job, body.database):
        end = time.monotonic() + body.seconds
        while time.monotonic() < end and not job.cancelled:
            time.sleep(0.01)


async def fail_once(job: dejq.Job, body: Work) -> None:
    """Fails at the first attempt, as things outside of us do, and succeeds at the second."""
    with step(job, body.database):
        await asyncio.sleep(body.seconds)
        if job.attempt == 1:
            raise ConnectionError("the weather service did not answer")


# ---- 3. the client ---------------------------------------------------------------------------------------


def connect(url: str) -> dejq.Client:
    """A client with all handlers: of a program of your own, this is what ``dejq worker`` is given."""
    # A lease lasts three beats. Half a second is short, so that there is something to see here.
    client = dejq.connect(url, heartbeat=0.25)
    client.register_handler("index:read", read)
    client.register_handler("index:count", count)
    client.register_handler("index:report", report)
    client.register_handler("example:slow", work_slowly)
    client.register_handler("example:flaky", fail_once, max_attempts=3, backoff=dejq.Backoff(initial=0.5))
    return client


# ---- 4. enqueue, work, stop ------------------------------------------------------------------------------


def run(url: str, folder: Path) -> bool:
    """Indexes the files below a folder and prints what happened; true if everything went well."""
    with tempfile.TemporaryDirectory(prefix="dejq-example-") as temporary, connect(url) as client:
        print(f"dejq {dejq.__version__} · {client.store} · workers: {client.workers}")
        print(f"folder     {folder}")
        client.migrate()  # makes what the store needs; once, and in real life by `dejq migrate`
        database = create_database(Path(temporary))
        files = [File(str(path), database) for path in islice(find_files(folder), MOST_FILES)]

        began = time.perf_counter()
        # Each list is a chain. If one of its jobs fails for good, the rest of it is cancelled.
        client.enqueue_many(([dejq.PendingJob(type, file) for type in INDEX] for file in files), on_failure="cancel")
        (slow,) = client.enqueue(dejq.PendingJob("example:slow", Work(2.0, database)))
        client.enqueue(dejq.PendingJob("example:flaky", Work(0.1, database)))
        took = (time.perf_counter() - began) * 1000
        print(f"enqueued   {len(files):,} chains of 3 jobs, a slow job and a failing one, in {took:.1f} ms")

        client.dequeue_loop()  # in the background, until stop()
        beats: set[datetime | None] = set()
        while left := jobs_left(client):
            progress(f"{left:,} jobs left")
            with suppress(dejq.NotSupported):  # SQS cannot look into its queue
                job = client.get_job(slow)
                if job.last_beat_at != job.started_at:
                    beats.add(job.last_beat_at)
            time.sleep(0.02)
        progress("")

        # One more, which still runs when the stop comes.
        slow_job_runs.clear()
        client.enqueue(dejq.PendingJob("example:slow", Work(0.3, database)))
        slow_job_runs.wait()
        stopped = client.stop()

        is_complete = summarize(database, folder, expected=len(files))
        seen = f"{len(beats)}, " if beats else ""
        print(f"beats      {seen}one every {client.heartbeat} s, kept the lease of the slow job")
        print(f"stop       {stopped.finished} running job finished first, {stopped.given_back} given back")
        return is_complete and not stopped.forced


INDEX = ("index:read", "index:count", "index:report")


def jobs_left(client: dejq.Client) -> int:
    """Jobs of this program that are not final. Other programs may use the same store."""
    stats = client.stats()
    counts = [counts for type, counts in stats.by_type.items() if type in client.types] if stats.by_type else [stats]
    return sum((of.ready or 0) + (of.scheduled or 0) + (of.blocked or 0) + (of.running or 0) for of in counts)


# ---- 5. the rest -----------------------------------------------------------------------------------------

MOST_FILES = 1_000
MOST_BYTES = 1_000_000
SKIPPED = {"target", "node_modules", "__pycache__", "venv", "build", "dist", "site-packages"}
SYMBOLS = {
    ".py": re.compile(r"^\s*(?:async\s+)?(?:def|class)\s+\w", re.MULTILINE),
    ".rs": re.compile(
        r"^\s*(?:pub(?:\([^)]*\))?\s+)?(?:(?:async|const|unsafe)\s+)*(?:fn|struct|enum|trait|macro_rules!)\s+\w",
        re.MULTILINE,
    ),
    ".go": re.compile(r"^(?:func|type)\s", re.MULTILINE),
    ".js": re.compile(r"^\s*(?:export\s+)?(?:async\s+)?(?:function|class)\s", re.MULTILINE),
    ".ts": re.compile(r"^\s*(?:export\s+)?(?:async\s+)?(?:function|class|interface|type)\s", re.MULTILINE),
    ".sql": re.compile(r"^\s*create\s", re.MULTILINE | re.IGNORECASE),
    ".md": re.compile(r"^#{1,6}\s", re.MULTILINE),
}


def find_files(folder: Path) -> Iterator[Path]:
    """Markdown and source files below a folder, sorted; nothing hidden, built, huge or binary."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in SKIPPED or path.is_symlink():
            continue
        if path.is_dir():
            # A virtual environment may have any name.
            if not (path / "pyvenv.cfg").exists() and os.access(path, os.R_OK | os.X_OK):
                yield from find_files(path)
        elif path.suffix in SYMBOLS and path.is_file() and is_text(path):
            yield path


def is_text(path: Path) -> bool:
    """Is it small enough, and without zero bytes at its start?"""
    if path.stat().st_size > MOST_BYTES or not os.access(path, os.R_OK):
        return False
    with path.open("rb") as file:
        return b"\0" not in file.read(8_192)


def find_folder() -> Path:
    """The project around the current folder, or dejq's own files where there is nothing to index."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").exists() or (folder / ".git").exists():
            return folder
    return here if next(find_files(here), None) else Path(__file__).parent


def create_database(folder: Path) -> str:
    """Makes an empty database for results."""
    path = str(folder / "results.sqlite")
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            """
            PRAGMA journal_mode = WAL;
            CREATE TABLE files (
                path TEXT PRIMARY KEY, bytes INT, hash TEXT, lines INT, words INT, symbols INT, report TEXT
            );
            CREATE TABLE steps (
                job TEXT, type TEXT, path TEXT, attempt INT, began INT, ended INT, error TEXT
            );
            """
        )
    return path


@contextmanager
def step(job: dejq.Job, database: str, path: str = "") -> Generator[sqlite3.Connection]:
    """One run of a handler: its results are committed if it succeeds; that it ran is noted in any case."""
    began, error = time.monotonic_ns(), None
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        connection.execute("PRAGMA synchronous = OFF")  # the folder is a temporary one
        try:
            with connection:
                yield connection
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
            raise
        finally:
            with connection:
                connection.execute(
                    "INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (job.id, job.type, path, job.attempt, began, time.monotonic_ns(), error),
                )


def summarize(database: str, folder: Path, expected: int) -> bool:
    """Prints what the handlers have noted; true if all chains are complete and ran in order."""
    with closing(sqlite3.connect(database)) as results:
        files, size, lines, words, symbols = results.execute(
            "SELECT count(*), total(bytes), total(lines), total(words), total(symbols) FROM files"
        ).fetchone()
        print(
            f"files      {files:,} with {lines:,.0f} lines, {words:,.0f} words and {symbols:,.0f} symbols",
            end="",
        )
        print(f" in {size / 1000:,.0f} kB; most symbols:")
        for (line,) in results.execute("SELECT report FROM files ORDER BY symbols DESC, path LIMIT 5"):
            print(f"         {line.replace(str(folder) + os.sep, '')}")

        finished, runs = results.execute("SELECT count(*) - count(error), count(*) FROM steps").fetchone()
        print(f"jobs       {finished:,} finished, in {runs:,} runs")
        in_order = count_in_order(results)
        print(f"chains     {in_order:,} of {expected:,} complete and in order")
        for type, attempt, error in results.execute("SELECT type, attempt, error FROM steps WHERE error != ''"):
            print(f"retries    {type} was tried again: attempt {attempt} raised {error}")
        began, ended, indexed = results.execute(
            "SELECT min(began), max(ended), count(*) FROM steps WHERE path != ''"
        ).fetchone()
        if indexed:
            print(f"speed      {indexed / (ended - began) * 1e9:,.0f} jobs/s, including what the handlers do")
        return bool(in_order == expected)


def count_in_order(results: sqlite3.Connection) -> int:
    """Chains of which each job began after the one before it had ended."""
    chains: dict[str, list[tuple[str, int, int]]] = {}
    for path, *step in results.execute("SELECT path, type, began, ended FROM steps WHERE path != '' ORDER BY began"):
        chains.setdefault(path, []).append((step[0], step[1], step[2]))
    return sum(
        [type for type, _, _ in chain] == list(INDEX)
        and all(ended <= began for (_, _, ended), (_, began, _) in pairwise(chain))
        for chain in chains.values()
    )


# Ends a line of progress, on a terminal.
CLEAR = "\r\x1b[K" if sys.stderr.isatty() else ""


def progress(text: str) -> None:
    """On a terminal only: a line that the next one replaces."""
    if CLEAR:
        print(f"{CLEAR}{text}", end="", file=sys.stderr, flush=True)


class OneLine(logging.Formatter):
    """Log lines without their tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """The first line."""
        return f"{CLEAR}log        {record.getMessage().splitlines()[0]}"


URLS = {
    "mem": "memory://",
    "pg": "postgresql://localhost/dejq",
    "redis": "redis://localhost",
    "sqs": "sqs://us-east-1/dejq-example.fifo",
}


def main(store: str | None = None, folder: str | None = None) -> int:
    """Runs the example.

    Args:
        store: ``mem``, ``pg``, ``redis`` or ``sqs``, on this machine; default: what ``DEJQ_URL`` names, or
            memory.
        folder: What to index; default: the current project.

    Returns:
        The exit code: 0 if everything went well.

    Raises:
        dejq.ConfigError: There is no such store or folder.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    logging.basicConfig(handlers=[handler])
    url = URLS[store] if store else os.environ.get("DEJQ_URL") or URLS["mem"]
    where = Path(folder).expanduser().resolve() if folder else find_folder()
    if not where.is_dir():
        raise dejq.ConfigError(f"there is no folder {folder}")
    return 0 if run(url, where) else 1
