"""The client: one queue, to enqueue jobs and to work them."""

from __future__ import annotations

import atexit
import inspect
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from dejq import _logging, _middleware, _native, _signals, _threads, _transactions
from dejq._middleware import EnqueueMiddleware, Middleware
from dejq._settings import as_options, find_url, seconds
from dejq.backoff import Backoff
from dejq.errors import ConfigError
from dejq.handlers import Handler, HandlerFunction, P, R, Signature, read_signature
from dejq.info import Finding, JobInfo, MigrationReport, State, Stats, StopReport

if TYPE_CHECKING:
    from dejq._answers import Answers

OnFailure = Literal["continue", "cancel"]
_Self = TypeVar("_Self", bound="Client")
_T = TypeVar("_T")
_M = TypeVar("_M", bound=Middleware)
_E = TypeVar("_E", bound=EnqueueMiddleware)

# What running handlers get when the interpreter goes down and nobody has called stop().
_EXIT_SECONDS = 0.7
# How often a draining worker looks whether it is done.
_DRAIN_SECONDS = 0.02
# The same where each look is paid for, and how many of them what is there may stay out of reach.
_PAID_DRAIN_SECONDS = 1.0
_PAID_DRAIN_LOOKS = 5


class Client:
    """One queue: enqueue jobs, and work them.

    Made by `connect`, `memory`, `postgres` or `redis`. May be used from any thread. A context manager: leaving it is
    `stop`.

    Args:
        url: Names the store: ``memory://`` (a queue of its own), ``memory://name`` (shared by the clients of
            this process), ``postgresql://…`` (a database; docs/postgres.md) or ``redis://…`` (Redis or Valkey;
            docs/redis.md). ``None``: the environment's ``DEJQ_URL``, then ``url`` under ``[tool.dejq]`` in
            pyproject.toml. Options may stand in its query.
        backoff: How long to wait between attempts; for handlers that do not say.
        **options: Override those in the URL. ``workers`` (plain handlers at once; default: the CPUs),
            ``async_workers`` (``async def`` handlers at once; 100), ``heartbeat`` (seconds between beats; 5;
            a lease lasts three), ``max_beats`` (beats after which a running job is stuck and cancelled; no
            limit), ``max_attempts`` (runs of a job whose handler fails; 1: no redelivery), ``max_rescues``
            (lost leases after which a job fails; 3), ``max_body`` (bytes; 1 MiB).
            Memory: ``keep_finished`` (finished jobs kept for inspection; 1,000), ``inline`` (run handlers inside
            ``enqueue``).
            Postgres: ``schema`` ("dejq"), ``keep_finished`` (false drops finished jobs at once; true), ``retention``
            (seconds that finished jobs are kept; for ever), ``listen`` (wait by LISTEN, not only by polling; true), and
            those of libpq, such as ``sslmode``.
            Redis: ``queue`` ("dejq"), ``durability`` ("memory", "aof" or "replicas"), ``keep_finished`` and
            ``keep_failed`` (finished, and failed or cancelled jobs kept; 1,000 and 10,000), and more in docs/redis.md.

    Raises:
        ConfigError: The URL or an option is wrong.
    """

    def __init__(self, url: str | None = None, *, backoff: Backoff | None = None, **options: Any) -> None:
        url, self.url_source = find_url(url)
        parts = None if backoff is None else backoff._parts()
        self._native = _native.Client(url, as_options(options), parts)
        self._handlers: dict[str, tuple[Handler, Signature]] = {}
        self._middleware: list[Middleware] = []
        self._enqueue_middleware: list[EnqueueMiddleware] = []
        self._threads: list[threading.Thread] = []
        self._answers: Answers | None = None  # for the loop that asked last
        # Ends `run`. Signal handlers write to it, which no Event or Condition is made for.
        self._stop_asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._max_jobs: int | None = None  # of `dejq worker`
        self._inline = 1 if self._native.is_inline else 0
        self.store, self.workers, self.async_workers, self.heartbeat, self._in_process = self._native.settings()

    def __repr__(self) -> str:
        """Names the store, never its URL, which may hold a password."""
        return f"<dejq.Client {self.store}>"

    # ---- handlers --------------------------------------------------------------------------------------

    def register_handler(
        self,
        type: str,
        handler: Handler,
        *,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
        timeout: float | timedelta | None = None,
    ) -> None:
        """Registers the function that runs the jobs of a type.

        Args:
            type: 1 to 128 of ``A-Z a-z 0-9 _ . : / -``.
            handler: Takes ``(job: Job)``, ``(body: T)`` or ``(job: Job, body: T)``; ``T`` is a built-in, a
                dataclass, a TypedDict, a msgspec.Struct or a pydantic model. ``def`` runs on one of the worker's
                threads, ``async def`` on its event loop. Returning is success, whatever the result; raising
                is failure.
            max_attempts: Runs of a job whose handler fails; default: the client's.
            backoff: Waits between the attempts; default: the client's.
            timeout: Longest run time of one attempt, in seconds or as a timedelta. After it ``job.cancelled``
                is true, a coroutine is cancelled, and the attempt counts as failed once the handler returns.

        Raises:
            ConfigError: The type is not one, has a handler already, or the handler cannot be called this way;
                or the worker has started.
            ClientStopped: The client was stopped.
        """
        signature = read_signature(type, handler)
        limit = seconds(timeout, "timeout")
        if limit == 0:
            raise ConfigError("timeout=0 would fail every attempt; leave it out to have no limit")
        for middleware in self._middleware:
            _middleware.check_fits(middleware, type, signature)
        called, wants, decoder = handler, signature.wants, signature.decoder
        if self._middleware:
            called, wants, decoder = _middleware.enclose(handler, signature, self._middleware), [True], None
        self._native.register(
            type,
            called,
            wants,
            decoder,
            signature.is_async,
            max_attempts,
            None if backoff is None else backoff._parts(),
            limit,
        )
        self._handlers[type] = handler, signature

    def handler(
        self,
        type: str,
        *,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
        timeout: float | timedelta | None = None,
    ) -> Callable[[Callable[P, R]], HandlerFunction[P, R]]:
        """Decorates a function as the handler of a type; see `register_handler` for the arguments.

        The function stays what it was and gains ``function.job(body, **options)``, which makes a `PendingJob`.
        """

        def job(body: Any = None, **options: Any) -> _native.PendingJob[Any]:
            return _native.PendingJob(type, body, **options)

        def decorate(function: Callable[P, R]) -> HandlerFunction[P, R]:
            if not hasattr(function, "__dict__") or inspect.ismethod(function):
                raise ConfigError(
                    f"@client.handler({type!r}) adds .job to a function, and {function!r} takes no attributes; "
                    "use client.register_handler(type, function) and PendingJob(type, body)"
                )
            self.register_handler(
                type, cast(Handler, function), max_attempts=max_attempts, backoff=backoff, timeout=timeout
            )
            handled = cast(HandlerFunction[P, R], function)
            handled.job = job  # type: ignore[method-assign]  # a plain function takes attributes
            return handled

        return decorate

    def middleware(self, middleware: _M) -> _M:
        """Registers code that runs around each handler call of this client: a worker's, inline, and in tests.

        The first one registered is the outermost. Handlers that were registered before run within it as well; a
        function that is called directly does not.

        Args:
            middleware: Called with the `Job`, returns the context manager in which the body is decoded and the
                handler runs: write it with ``@contextlib.contextmanager``. What the handler raises, `Retry`,
                `Discard` and the cancellation of a coroutine among it, comes out of the ``yield``; what the context
                manager raises counts as the handler's. An asynchronous one serves ``async def`` handlers only; one
                that can be entered both ways is entered asynchronously there.

        Returns:
            The function, so that this can stand above it as a decorator.

        Raises:
            ConfigError: It makes no context manager, or one that a plain handler cannot enter; or the worker has
                started.
            ClientStopped: The client was stopped.
        """
        _middleware.check(middleware, "the job")
        for type, (_, signature) in self._handlers.items():
            _middleware.check_fits(middleware, type, signature)
        all: list[Middleware] = [*self._middleware, middleware]
        for type, (handler, signature) in self._handlers.items():
            self._native.enclose(type, _middleware.enclose(handler, signature, all))
        self._middleware = all
        return middleware

    def enqueue_middleware(self, middleware: _E) -> _E:
        """Registers code that runs around each enqueue of this client, and may add headers to its jobs.

        The first one registered is the outermost. Jobs that others enqueue (SQL, the command line) do not pass it.

        Args:
            middleware: Called with the list of the jobs of one call, returns the context manager in which they are
                stored: write it with ``@contextlib.contextmanager``. Yield the headers that all of them are to
                get, or nothing; a header that a job has already stays. What ``enqueue`` raises comes out of the
                ``yield``, and reaches the caller even when it is caught there.

        Returns:
            The function, so that this can stand above it as a decorator.

        Raises:
            ConfigError: It makes no context manager.
        """
        _middleware.check(middleware, "the list of jobs")
        self._enqueue_middleware.append(middleware)
        return middleware

    @property
    def types(self) -> list[str]:
        """The types that have handlers."""
        return self._native.types()

    # ---- enqueue ---------------------------------------------------------------------------------------

    def enqueue(
        self,
        *jobs: _native.PendingJob[Any],
        on_failure: OnFailure = "continue",
        connection: object | None = None,
    ) -> list[str]:
        """Stores jobs; several in one call are a chain, each started only after the one before it is final.

        Args:
            *jobs: At least one. Bodies are encoded now; what happens to the objects later does not matter.
            on_failure: What becomes of the rest of a chain when a job in it fails for good: ``"continue"``
                (it runs all the same) or ``"cancel"``.
            connection: The caller's own connection to the database of the queue, to enqueue within its
                transaction: workers see the jobs when it commits, and after a rollback there were none. With
                autocommit that is at once. A connection (or cursor) of psycopg or psycopg2, a Connection or
                Session of SQLAlchemy, or ``django.db.connection``; for asyncpg and the asynchronous ones see
                `aenqueue`. What the driver raises comes out as it is. PostgreSQL only.

        Returns:
            The ids, in the order of the jobs. For a job with ``unique=`` whose key is taken: the id of the job
            that holds it, and nothing is stored.

        Raises:
            BodyError: A body is not JSON; the text has the path.
            BodyTooLarge: A body is larger than the store takes.
            BackendUnavailable: The store does not answer; nothing was stored.
            OutcomeUnknown: The store's answer was lost.
            ConfigError: No job was given, or a unique job in a chain; or ``connection`` is none that dejq knows, or
                has to be awaited.
            NotSupported: ``connection=`` on a store without transactions.
            ClientStopped: The client was stopped.
            ForkedProcess: The client comes from a parent process.
        """
        if connection is None and not self._enqueue_middleware:
            ids = self._native.enqueue(jobs, _cancels_rest(on_failure))
        else:
            ids = self._enqueue(jobs, on_failure, connection)
        if self._inline and connection is None:
            self._native.run_inline(_threads.run_coroutine)
        return ids

    def _enqueue(
        self, jobs: tuple[_native.PendingJob[Any], ...], on_failure: OnFailure, connection: object | None
    ) -> list[str]:
        with self._sending(jobs) as jobs:
            if connection is None:
                return self._native.enqueue(jobs, _cancels_rest(on_failure))
            statement = self._native.enqueue_statement(jobs, _cancels_rest(on_failure))
            return _transactions.enqueue(connection, *statement)

    async def aenqueue(
        self,
        *jobs: _native.PendingJob[Any],
        on_failure: OnFailure = "continue",
        connection: object | None = None,
    ) -> list[str]:
        """`enqueue` for coroutines: does not block the event loop while the store answers.

        Args:
            *jobs: As for `enqueue`.
            on_failure: As for `enqueue`.
            connection: As for `enqueue`, and also one of asyncpg (from a pool, too), psycopg's AsyncConnection or
                SQLAlchemy's AsyncConnection or AsyncSession. One that blocks is used in a thread; Django's is
                refused, for it belongs to the thread that began the transaction.
        """
        if connection is None:
            if self._inline:
                return await _in_thread(self.enqueue, *jobs, on_failure=on_failure)
            if self._in_process:
                return self.enqueue(*jobs, on_failure=on_failure)
            if not self._enqueue_middleware:
                return await self._ask_enqueue(jobs, on_failure)
        with self._sending(jobs) as jobs:
            if connection is None:
                return await self._ask_enqueue(jobs, on_failure)
            statement = self._native.enqueue_statement(jobs, _cancels_rest(on_failure))
            return await _transactions.aenqueue(connection, *statement)

    async def _ask_enqueue(self, jobs: tuple[_native.PendingJob[Any], ...], on_failure: OnFailure) -> list[str]:
        answers = self._answers
        if answers is None or not answers.are_for_running_loop():
            # Imported where a loop runs already: asyncio is half of the import time of the rest.
            from dejq import _answers

            answers = self._answers = _answers.of_running_loop()
        return await answers.to(self._native.ask_enqueue(jobs, _cancels_rest(on_failure), answers.native))

    def enqueue_many(
        self,
        chains: Iterable[_native.PendingJob[Any] | Sequence[_native.PendingJob[Any]]],
        *,
        on_failure: OnFailure = "continue",
    ) -> list[str]:
        """Stores many independent jobs, and chains (each a sequence), in one call: all of them or none.

        Returns and raises as `enqueue`; the ids of all jobs come in one list.
        """
        with self._sending(chains) as chains:
            ids = self._native.enqueue_many(chains, _cancels_rest(on_failure))
        if self._inline:
            self._native.run_inline(_threads.run_coroutine)
        return ids

    def _sending(self, chains: Any) -> AbstractContextManager[Any]:
        if not self._enqueue_middleware:
            return nullcontext(chains)
        return _middleware.sending(self._enqueue_middleware, chains)

    # ---- work ------------------------------------------------------------------------------------------

    def dequeue_loop(self, workers: int | None = None) -> None:
        """Starts to take and run jobs, in the background, and returns.

        Args:
            workers: Plain handlers at once; default: the client's.

        Raises:
            ConfigError: No handlers are registered, or the client is inline.
            WrongState: It has been started already.
            ClientStopped: The client was stopped.
        """
        lanes = self._native.start(workers, self._max_jobs)
        _started.add(self)
        try:
            _logging.start()
            # Known before the first one runs: a handler may ask for a stop at once.
            self._threads = _threads.make(*lanes)
            for thread in self._threads:
                thread.start()
        except BaseException:
            # With fewer threads than asked for, or none, nobody would run what the worker takes.
            self.stop(0.0)
            raise

    def run(self, *, drain: bool = False) -> None:
        """Works until a signal (SIGTERM, or Ctrl-C) or a `stop` comes, then stops gracefully: for a main program.

        A second signal cuts the waiting short: handlers are told to return, and what they leave is given back.

        Args:
            drain: End by itself when no job is ready or running.

        Raises:
            ConfigError: As `dequeue_loop`.
        """
        with _signals.stopping(self._stop_asked, lambda: self._native.hurry(0.0)):
            self.dequeue_loop()
            try:
                self._wait_for_stop(drain)
            finally:
                self.stop()

    def _wait_for_stop(self, drain: bool) -> None:
        pause, claimed, looks = _DRAIN_SECONDS, -1, 0
        while True:
            try:
                self._stop_asked.get(timeout=pause if drain else None)
            except queue.Empty:
                if not self._native.is_idle:
                    continue
                stats = self.stats()
                if stats.bill is None:
                    if self._is_drained(stats):
                        return
                    continue
                # A store that is paid by the call tells no types apart, but its polls bring at once what there is: with
                # nothing brought since the last look, what is left is hidden, or behind something hidden.
                pause, before, claimed = _PAID_DRAIN_SECONDS, claimed, self._native.counted().get("claimed", 0)
                looks = looks + 1 if claimed == before else 0
                if looks and (not stats.ready or looks >= _PAID_DRAIN_LOOKS):
                    return
            else:
                return

    def stop(self, timeout: float | timedelta | None = None) -> StopReport:
        """Stops gracefully: takes no new job, gives unstarted ones back, lets every started handler finish.

        The client then takes no more jobs, but still answers `stats`, `get_job` and the like. Safe before
        `dequeue_loop`, twice, and from several threads; called by a handler, it only asks for the stop.

        Args:
            timeout: Seconds to wait for running handlers; default: for ever. After it ``job.cancelled`` is
                true and coroutines are cancelled; those that do not return soon are left behind, and their
                jobs go to other workers when their leases run out.

        Returns:
            What was done.
        """
        within = seconds(timeout, "timeout")
        self._stop_asked.put(None)
        if self._is_own_thread():
            self._native.request_stop(within)
            return StopReport(finished=0, given_back=0, abandoned=0, forced=False)
        report = self._native.stop(within)
        for thread in self._threads:
            if thread.is_alive():  # and not one that could not be started, or not yet
                thread.join(0.05 if report.abandoned else None)
        if not report.abandoned:
            _started.discard(self)
        _logging.flush()
        return report

    async def astop(self, timeout: float | timedelta | None = None) -> StopReport:
        """`stop` for coroutines."""
        if self._is_own_thread():
            return self.stop(timeout)
        return await _in_thread(self.stop, timeout)

    def _is_own_thread(self) -> bool:
        """Is it a handler that calls, which a stop would wait for?"""
        return threading.current_thread() in self._threads

    def _is_drained(self, stats: Stats) -> bool:
        of_types = (counts for name, counts in stats.by_type.items() if name in self.types)
        return all(not counts.ready and not counts.running for counts in of_types)

    def _stop_at_exit(self) -> None:
        """The interpreter goes down: a short stop, so that acknowledgements are stored and handlers unwind."""
        report = self._native.stop(_EXIT_SECONDS)
        if report.abandoned:
            _threads.interrupt(self._threads)

    # ---- what is in the store --------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Counts what is in the store, at a cost that does not grow with the backlog."""
        return self._native.stats()

    async def astats(self) -> Stats:
        """`stats` for coroutines."""
        return self.stats() if self._in_process else await _in_thread(self.stats)

    def metrics(self) -> str:
        """Counters, histograms and gauges of this client and its worker, in the text format of Prometheus.

        What ``dejq worker --http`` serves (docs/metrics.md), for those who serve it themselves, with the content type
        ``text/plain; version=0.0.4``. Needs no interpreter while it waits for the store, which is asked for its counts
        every five seconds at most (SQS: every minute), however often this is called.
        """
        return self._native.metrics()

    def get_job(self, id: str) -> JobInfo:
        """Looks up one job.

        Raises:
            UnknownJob: There is none, or it was deleted.
            NotSupported: The store cannot look up jobs.
        """
        return self._native.get_job(id)

    def list_jobs(
        self,
        *,
        state: State | None = None,
        type: str | None = None,
        older_than: float | timedelta | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[JobInfo]:
        """Lists jobs that fulfil all conditions, sorted by id, which is the order of enqueueing.

        Args:
            state: Only this state.
            type: Only this type.
            older_than: Only jobs enqueued longer ago (seconds or a timedelta).
            limit: Most results.
            after: Only ids after this one: the last id of the page before.

        Raises:
            ConfigError: There is no such state, or a number is out of range.
            NotSupported: The store cannot list jobs.
        """
        return self._native.list_jobs(state, type, older_than, limit, after)

    def unresponsive_jobs(self, older_than: float | timedelta) -> list[JobInfo]:
        """Lists running jobs that had no beat for that long. Workers rescue them by themselves."""
        return self._native.unresponsive_jobs(older_than)

    def finish_job(self, id: str) -> None:
        """Declares a job finished; the next one of its chain runs. A running handler is told to return.

        Raises:
            UnknownJob: There is none.
            WrongState: It is final already.
        """
        self._native.finish_job(id)

    def requeue_job(self, id: str) -> None:
        """Runs a job again that failed, was cancelled, is scheduled or was lost; its attempts count anew.

        Raises:
            UnknownJob: There is none.
            WrongState: It is finished or waits already, a later job of its chain has started, or another job
                holds its unique key.
        """
        self._native.requeue_job(id)

    def cancel_job(self, id: str) -> None:
        """Cancels a job. A running one is told to return by its worker's next beat.

        Raises:
            UnknownJob: There is none.
            WrongState: It is final already.
        """
        self._native.cancel_job(id)

    def delete_finished(self, older_than: float | timedelta, *, batch: int = 1000) -> int:
        """Deletes jobs that became final longer ago, about `batch` at a time; returns how many.

        Call it again until it returns 0. Postgres deletes a whole day at once where it can, which may be more.
        Final are finished, failed and cancelled jobs.
        """
        return self._native.delete_finished(older_than, batch)

    def vacuum(self) -> None:
        """Gives back space that deleted jobs took."""
        self._native.vacuum()

    def migrate(self) -> MigrationReport:
        """Creates or upgrades what the store needs: a schema, or the queues of SQS. Nothing to do elsewhere."""
        return self._native.migrate()

    def create_queue(self, *, dlq: bool | str = True, max_receives: int = 5) -> MigrationReport:
        """Creates the queue of this client, with settings that suit jobs, if it is missing. SQS only.

        A queue that is there is left as it is. Needs ``sqs:CreateQueue``; ``dejq migrate`` does the same with the
        defaults.

        Args:
            dlq: Where jobs go that failed for good: ``True`` for a queue named after this one (``jobs.fifo`` has
                ``jobs-dlq.fifo``), the name of another FIFO queue, or ``False``: they are deleted.
            max_receives: A job that was handed out so often goes there instead of being handed out again.

        Raises:
            ConfigError: `dlq` or `max_receives` cannot be used, or AWS does not allow it.
            NotSupported: The store has no queues of its own.
        """
        name = dlq if isinstance(dlq, str) else None
        return self._native.create_queue(bool(dlq), name, max_receives)

    def check(self) -> list[Finding]:
        """Looks for what would go wrong later: what ``dejq doctor`` prints."""
        findings = [Finding(level="ok", name="url", text=f"{self.store} (from {self.url_source})")]
        if self.store == "memory":
            findings.append(
                Finding(
                    level="warn",
                    name="durability",
                    text="jobs are kept in this process and are lost when it ends",
                    fix="fine for tests and development; name a durable store for production",
                )
            )
        findings += self._native.check()
        if types := self.types:
            findings.append(Finding(level="ok", name="handlers", text=", ".join(types)))
        return findings

    def audit(self, *, repair: bool = False) -> list[Finding]:
        """Looks at each job for what contradicts the rest of the queue: what ``dejq doctor --audit`` prints.

        On Redis only, where a queue is several keys, which an eviction, a deleted key, half a restored dump or a hand
        that slipped may set apart. Workers may go on meanwhile. A million jobs take about fifteen seconds, in parts of
        some milliseconds.

        Args:
            repair: Sets right what can be; what was set right is looked at once more. Such findings are warnings.

        Returns:
            One finding for each kind of contradiction, with the first ids; one of level ``ok`` when there is none.
            Empty for a store that needs no audit.
        """
        return self._native.audit(repair)

    # ---- context managers ------------------------------------------------------------------------------

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self: _Self) -> _Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.astop()


def connect(url: str | None = None, **options: Any) -> Client:
    """Makes a client of the store that a URL names; see `Client` for URLs and options."""
    return Client(url, **options)


def memory(name: str | None = None, *, inline: bool = False, **options: Any) -> Client:
    """Makes a client of a queue in this process, which is lost when the process ends.

    Args:
        name: Clients that give the same name share the queue; default: a queue of its own.
        inline: Run handlers inside ``enqueue``, which raises what they raise: for tests and development.
        **options: See `Client`.
    """
    return Client(f"memory://{name or ''}", inline=inline or None, **options)


def postgres(url: str, *, schema: str = "dejq", **options: Any) -> Client:
    """Makes a client of a queue in a PostgreSQL database (13 to 18).

    Args:
        url: As libpq takes it: ``postgresql://user:password@host:5432/database?sslmode=verify-full``. What it leaves
            out comes from the environment (``PGHOST``, ``PGPASSWORD``, ``PGPASSFILE``, …).
        schema: Where the tables are; made by ``dejq migrate`` or `Client.migrate`.
        **options: See `Client`.
    """
    return Client(url, schema=schema, **options)


def redis(url: str = "redis://localhost", *, queue: str = "dejq", **options: Any) -> Client:
    """Makes a client of a queue in Redis (6.2 to 8) or Valkey.

    Args:
        url: ``redis://user:password@host:6379/0``; ``rediss://`` for TLS, ``valkey://`` and ``valkeys://`` for the
            same, ``redis+unix:///path/to/socket``. With several hosts and ``?sentinel=NAME`` the hosts are sentinels.
        queue: Its keys begin with ``dejq:{queue}:``; any number of queues share a server.
        **options: See `Client`.
    """
    return Client(url, queue=queue, **options)


def sqs(
    queue: str,
    *,
    region: str | None = None,
    endpoint: str | None = None,
    profile: str | None = None,
    **options: Any,
) -> Client:
    """Makes a client of a FIFO queue of AWS SQS.

    Credentials come from where all tools of AWS look for them: environment, profile, role of the machine.

    Args:
        queue: Its name, URL or ARN; the name ends in ``.fifo``.
        region: Default: that of the ARN, then ``AWS_REGION`` or the profile.
        endpoint: URL of something that speaks like SQS: an emulator, a VPC endpoint.
        profile: A section of ``~/.aws/config``.
        **options: ``wait_time`` (whole seconds that one poll waits, 0 to 20, default 20), ``batch_size`` (messages of
            one call, 1 to 10, default 10), ``pollers`` (polls at the same time, default 1);
            for the others see `Client`.
    """
    return Client(f"sqs://{region or ''}", queue=queue, endpoint=endpoint, profile=profile, **options)


def _cancels_rest(on_failure: OnFailure) -> bool:
    if on_failure == "continue":
        return False
    if on_failure == "cancel":
        return True
    raise ConfigError(f'on_failure={on_failure!r} must be "continue" or "cancel"')


async def _in_thread(function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    # As above.
    from asyncio import to_thread

    return await to_thread(function, *args, **kwargs)


# ---- the end of the process ------------------------------------------------------------------------------

# Workers run until they are stopped, whether somebody still knows their client or not, so it stays known here.
_started: set[Client] = set()


def _at_exit() -> None:
    started = list(_started)
    for client in started:
        client._native.request_stop(_EXIT_SECONDS)
    for client in started:
        client._stop_at_exit()
    _native.shutdown()
    _logging.flush()


def _after_fork_in_child() -> None:
    # The child has none of the threads; what was made before the fork is the parent's.
    _native.after_fork_in_child()
    _started.clear()
    _logging.after_fork_in_child()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
