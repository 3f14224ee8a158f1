"""What handlers do to the threads that run them, and what they find there."""

from __future__ import annotations

import asyncio
import contextvars
import faulthandler
import logging
import sys
import tempfile
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import dejq
from dejq import Client, Job, PendingJob
from python.programs.scenario import ended, log, main, put, until

WORKERS = 4


def noop(job: Job) -> None:
    pass


# ---- what handlers raise


def raise_anything() -> None:
    """Whatever comes out of a handler fails the attempt, with its traceback, and the worker goes on."""
    for error in (
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        StopIteration(),
        RecursionError(),
        MemoryError(),
        BaseException("anything"),
    ):
        _fails_with(error, type(error).__name__)


def raise_a_panic() -> None:
    """The exception that stands for a Rust panic, of this or of another extension."""
    _fails_with(panic_exception()("of some extension"), "PanicException")


def panic_exception() -> type[BaseException]:
    """Each extension made with PyO3 has its own class, and no name leads to it. It exists once an error was handled."""
    (client := dejq.memory()).register_handler("job", noop)
    try:
        client.register_handler("job", noop)
    except dejq.ConfigError:
        pass
    found = [error for error in BaseException.__subclasses__() if error.__name__ == "PanicException"]
    assert found, BaseException.__subclasses__()
    return found[0]


def _fails_with(error: BaseException, name: str) -> None:
    """On a thread, and in a coroutine."""
    client = dejq.memory(workers=1)

    def plain(job: Job) -> None:
        raise error

    async def coroutine(job: Job) -> None:
        await asyncio.sleep(0)
        raise error

    client.register_handler("plain", plain)
    client.register_handler("coroutine", coroutine)
    client.register_handler("job", noop)
    client.dequeue_loop()
    for type_ in ("plain", "coroutine"):
        job = ended(client, put(client, type_))
        # A coroutine turns this one into another, which has it as its cause.
        assert job.state == "failed", (type_, error, job.state)
        assert name in (job.traceback or ""), (type_, error, job.traceback)
        assert f"in {type_}\n" in (job.traceback or ""), job.traceback
        assert "raise error" in (job.traceback or ""), job.traceback
    _still_works(client)


def _still_works(client: Client) -> None:
    assert ended(client, put(client)).state == "finished"
    names = {thread.name for thread in threading.enumerate()}
    assert "dejq-exec-0" in names, names
    assert client.stop().abandoned == 0


def panic_below_a_handler() -> None:
    """A Rust panic that unwinds the engine itself, in an enqueue of a handler."""
    import dataclasses

    panic = panic_exception()

    @dataclasses.dataclass
    class Explosive:
        x: int = 1

        def __getattribute__(self, name: str) -> Any:
            if name == "x":
                raise panic("of a property")  # which PyO3 turns into the panic that it stands for
            return super().__getattribute__(name)

    client = dejq.memory(workers=1)

    def handler(job: Job) -> None:
        client.enqueue(PendingJob("job", Explosive()))

    async def coroutine(job: Job) -> None:
        handler(job)

    client.register_handler("handler", handler)
    client.register_handler("coroutine", coroutine)
    client.register_handler("job", noop)
    client.dequeue_loop()
    for type_ in ("handler", "coroutine"):
        job = ended(client, put(client, type_))
        assert job.state == "failed"
        assert (job.error or "").endswith("PanicException: of a property"), job.error
        assert "client.enqueue(" in (job.traceback or ""), job.traceback
    assert client.stats().enqueued_jobs == 0
    _still_works(client)


def recurse() -> None:
    """Endless recursion, plain and through C code; at a higher limit only plain, where CPython itself is safe."""

    def endless(number: int) -> int:
        return endless(number + 1) + 1

    def through_c(items: list[Any]) -> list[Any]:
        return sorted(items, key=lambda item: through_c(items))

    class Text:
        def __repr__(self) -> str:
            return f"{[self]!r}"

    client = dejq.memory(workers=1)
    client.register_handler("plain", lambda job: endless(0))
    client.register_handler("through_c", lambda job: through_c([1]))
    client.register_handler("text", lambda job: repr(Text()))
    client.register_handler("job", noop)
    client.dequeue_loop()
    default = sys.getrecursionlimit()
    for limit, type_ in ((default, "plain"), (default, "through_c"), (default, "text"), (5_000, "plain")):
        sys.setrecursionlimit(limit)
        job = ended(client, put(client, type_))
        assert job.state == "failed"
        assert (job.error or "").startswith("RecursionError"), job.error
        assert type_ == "text" or f"in {'endless' if type_ == 'plain' else type_}\n" in (job.traceback or "")
    _still_works(client)


def meddle_with_the_loop() -> None:
    """A coroutine that stops its loop, or cancels all that runs in it, does not take the worker along."""
    client = dejq.memory()

    async def stop_loop(job: Job) -> None:
        asyncio.get_running_loop().stop()

    async def cancel_all(job: Job) -> None:
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def leave_tasks(job: Job) -> None:
        tasks.append(asyncio.create_task(asyncio.sleep(3600)))

    tasks: list[asyncio.Task[None]] = []

    async def coroutine(job: Job) -> None:
        await asyncio.sleep(0)

    client.register_handler("stop_loop", stop_loop)
    client.register_handler("cancel_all", cancel_all)
    client.register_handler("leave_tasks", leave_tasks)
    client.register_handler("coroutine", coroutine)
    client.dequeue_loop()
    for type_ in ("stop_loop", "cancel_all", "leave_tasks") * 3:
        assert ended(client, put(client, type_)).state == "finished", type_
        assert ended(client, put(client, "coroutine")).state == "finished", type_
    assert client.stop().abandoned == 0


# ---- what handlers find


def names() -> None:
    """Threads carry names that tell what they are for, in Python and in the system."""
    dejq.set_verbosity(1)
    client = dejq.memory(workers=WORKERS)

    async def coroutine(job: Job) -> None:
        seen.append(threading.current_thread().name)

    seen: list[str] = []
    client.register_handler("coroutine", coroutine)
    together = threading.Barrier(WORKERS)

    def plain(job: Job) -> None:
        together.wait(10)
        seen.append(threading.current_thread().name)

    client.register_handler("plain", plain)
    client.dequeue_loop()
    client.enqueue_many([PendingJob("plain")] * WORKERS + [PendingJob("coroutine")])
    until(lambda: client.stats().finished == WORKERS + 1)
    assert sorted(seen) == [*[f"dejq-exec-{number}" for number in range(WORKERS)], "dejq-loop"], seen
    alive = {thread.name: thread.daemon for thread in threading.enumerate()}
    assert alive["dejq-log"]
    assert all(daemon for name, daemon in alive.items() if name.startswith("dejq"))
    assert "dejq-io" in system_names()
    client.stop()
    left = {thread.name for thread in threading.enumerate() if thread.name.startswith("dejq")}
    assert left == {"dejq-log"}, left


def system_names() -> set[str]:
    from pathlib import Path

    return {file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")}


def thread_locals() -> None:
    """A thread-local of a handler is there for the next job of its thread; a context variable is not."""
    client = dejq.memory(workers=WORKERS)
    local = threading.local()
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    counts: dict[str, list[int]] = {}
    together = threading.Barrier(WORKERS)

    def handler(job: Job) -> None:
        assert variable.get() == "unset"
        variable.set(job.id)
        together.wait(10)
        local.count = getattr(local, "count", 0) + 1
        counts.setdefault(threading.current_thread().name, []).append(local.count)

    client.register_handler("job", handler)
    client.dequeue_loop()
    client.enqueue_many([PendingJob("job") for _ in range(5 * WORKERS)])
    until(lambda: client.stats().finished == 5 * WORKERS)
    client.stop()
    assert counts == {f"dejq-exec-{number}": [1, 2, 3, 4, 5] for number in range(WORKERS)}, counts


def tools() -> None:
    """Tracers and profilers that were set before see the handlers, and faulthandler knows their frames."""
    client = dejq.memory(workers=1)
    traced: set[str] = set()
    profiled: set[str] = set()

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        traced.add(frame.f_code.co_name)
        return trace

    def profile(frame: FrameType, event: str, arg: object) -> None:
        profiled.add(frame.f_code.co_name)

    entered, leave = threading.Event(), threading.Event()

    def traced_handler(job: Job) -> None:
        entered.set()
        leave.wait()

    async def traced_coroutine(job: Job) -> None:
        await asyncio.sleep(0)

    client.register_handler("plain", traced_handler)
    client.register_handler("coroutine", traced_coroutine)
    threading.settrace(trace)
    threading.setprofile(profile)
    client.dequeue_loop()
    put(client, "plain")
    put(client, "coroutine")
    entered.wait()
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        dump = file.read().decode()
    assert "in traced_handler" in dump, dump
    leave.set()
    until(lambda: client.stats().finished == 2)
    threading.settrace(None)
    threading.setprofile(None)
    client.stop()
    assert {"traced_handler", "traced_coroutine"} <= traced
    assert {"traced_handler", "traced_coroutine"} <= profiled


def side_by_side() -> None:
    """As many handlers run at once as there are slots, of either flavour, and no more."""
    client = dejq.memory(workers=WORKERS, async_workers=10)
    most = {"plain": 0, "coroutine": 0}
    running = {"plain": 0, "coroutine": 0}
    lock = threading.Lock()

    def enter(type_: str, by: int) -> None:
        with lock:
            running[type_] += by
            most[type_] = max(most[type_], running[type_])

    # Each goes on when all slots are taken, and not before.
    together = threading.Barrier(WORKERS)
    waiting: list[asyncio.Future[None]] = []

    def plain(job: Job) -> None:
        enter("plain", 1)
        together.wait(10)
        enter("plain", -1)

    async def coroutine(job: Job) -> None:
        enter("coroutine", 1)
        waiting.append(asyncio.get_running_loop().create_future())
        if len(waiting) == 10:
            for future in waiting:
                future.set_result(None)
            await waiting.pop()
            waiting.clear()
        else:
            await waiting[-1]
        enter("coroutine", -1)

    client.register_handler("plain", plain)
    client.register_handler("coroutine", coroutine)
    client.enqueue_many([PendingJob("plain")] * 5 * WORKERS + [PendingJob("coroutine")] * 50)
    client.dequeue_loop()
    until(lambda: client.stats().finished == 5 * WORKERS + 50)
    client.stop()
    assert most == {"plain": WORKERS, "coroutine": 10}, most


# ---- clients and logging side by side


def two_clients() -> None:
    """One is stopped while both are busy; the other goes on, and starts what comes."""
    clients = [dejq.memory(workers=2, heartbeat=0.05) for _ in range(2)]
    entered, leave = threading.Semaphore(0), threading.Event()

    def slow(job: Job) -> None:
        entered.release()
        leave.wait()

    async def coroutine(job: Job) -> None:
        await asyncio.sleep(0)

    for client in clients:
        client.register_handler("slow", slow)
        client.register_handler("coroutine", coroutine)
        client.register_handler("job", noop)
        client.dequeue_loop()
        put(client, "slow")
    entered.acquire()
    entered.acquire()
    stopped, other = clients
    assert stopped.stop(timeout=0).abandoned == 1
    beats = other._native.counted()["beats"]
    for type_ in ("job", "coroutine"):
        assert ended(other, put(other, type_)).state == "finished"
    until(lambda: other._native.counted()["beats"] > beats + 2)
    assert other.stats().running == 1
    leave.set()
    until(lambda: other.stats().finished == 3)
    assert other.stop().abandoned == 0


def log_everything() -> None:
    """Full verbosity, from every thread at once, into handlers of `logging` that are slow, enqueue, or raise."""
    dejq.set_verbosity(3)
    client = dejq.memory(workers=WORKERS, heartbeat=0.01, keep_finished=100_000)
    errors: list[str] = []

    class Enqueues(logging.Handler):
        """Of the kind that ships logs; each line of it makes a job, whose lines it leaves alone."""

        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "job_type", None) == "plain" and len(errors) < 100:
                errors.append(record.getMessage())
                client.enqueue(PendingJob("job"))
                client.stats()

    logger = logging.getLogger("dejq")
    logger.addHandler(Enqueues())

    def plain(job: Job) -> None:
        logger.info("a line of a handler")
        if job.position % 10 == 0:
            raise ValueError("a failure")

    async def coroutine(job: Job) -> None:
        logger.info("a line of a coroutine")
        await asyncio.sleep(0)

    client.register_handler("plain", plain)
    client.register_handler("coroutine", coroutine)
    client.register_handler("job", noop)
    client.dequeue_loop()

    def produce() -> None:
        for _ in range(20):
            client.enqueue(*[PendingJob("plain")] * 20, *[PendingJob("coroutine")] * 5)
            logger.info("a line of a producer")

    producers = [threading.Thread(target=produce) for _ in range(4)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    total = 4 * 20 * 25
    until(lambda: (counts := client.stats()).enqueued_jobs == counts.running == 0)
    client.stop()
    stats = client.stats()
    assert (stats.finished or 0) + (stats.failed or 0) == total + len(errors)
    assert stats.failed == 4 * 20 * 2
    assert len(errors) == 100
    text = "\n".join(log.texts)
    for part in ("beat:", "stop 5/5", "dequeue plain", "a line of a handler"):
        assert part in text, part


def log_is_complete_after_a_stop() -> None:
    """What happens up to the end of a stop has been emitted when it returns, by its thread or by the log's."""

    def fail(job: Job) -> None:
        entered.release()
        leave.wait()
        raise ValueError("a failure")

    entered, leave = threading.Semaphore(0), threading.Event()
    for number in range(1, 501):
        client = dejq.memory(workers=1)
        client.register_handler("fail", fail)
        client.dequeue_loop()
        put(client, "fail")
        entered.acquire()
        # It fails, and so writes, when the stop is about to end.
        threading.Timer(0.002, leave.set).start()
        client.stop()
        leave.clear()
        assert len(log.texts) == number, f"line {number} is missing"


def log_while_signals_come() -> None:
    """A signal handler that stops the client, and so flushes its log, while the main thread does just that."""
    import os
    import signal

    dejq.set_verbosity(3)
    client = dejq.memory(workers=1)
    client.register_handler("job", noop)
    nested: list[bool] = []

    def stop(number: int, frame: FrameType | None) -> None:
        client.stop()
        nested.append(True)

    class Signals(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if threading.current_thread() is threading.main_thread() and not nested:
                os.kill(os.getpid(), signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, stop)
    client.dequeue_loop()
    put(client)
    logging.getLogger("dejq").addHandler(Signals())
    while not nested:
        put(dejq.memory())
        client.stop()


# ---- interpreters


def subinterpreter() -> None:
    """A second interpreter in the process gets a clear error, and the first one goes on."""
    outcome = _in_subinterpreter()(
        "try:\n"
        "    import dejq\n"
        "except ImportError as error:\n"
        "    assert 'subinterpreter' in str(error), error\n"
        "else:\n"
        "    client = dejq.memory()\n"
        "    client.enqueue(dejq.PendingJob('job'))\n"
    )
    assert outcome is None, outcome
    client = dejq.memory(workers=1)
    client.register_handler("job", noop)
    client.dequeue_loop()
    _still_works(client)


def _in_subinterpreter() -> Callable[[str], object]:
    if sys.version_info >= (3, 13):
        import _interpreters

        def run(code: str) -> object:
            id = _interpreters.create()
            try:
                return _interpreters.exec(id, code)
            finally:
                _interpreters.destroy(id)

        return run
    import _xxsubinterpreters  # type: ignore[import-not-found]  # in no stub

    def run_old(code: str) -> object:
        id = _xxsubinterpreters.create()
        try:
            return _xxsubinterpreters.run_string(id, code)
        finally:
            _xxsubinterpreters.destroy(id)

    return run_old


if __name__ == "__main__":
    main(globals())
