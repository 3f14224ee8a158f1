"""Coroutines: the async methods of a client, its use within a running loop, and the loop of its worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import pytest

import dejq
from dejq import Client, ClientStopped, Job, PendingJob, StopReport, _native, _threads

if TYPE_CHECKING:
    from python.conftest import Ended, NewClient, Until

THREADS = 16
JOBS = 100


@pytest.fixture(params=["uvloop", "asyncio"])
def loop_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With uvloop, and as if it were not installed."""
    if request.param == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)
    return str(request.param)


async def async_noop(job: Job) -> None:
    pass


# ---- the methods -----------------------------------------------------------------------------------------


def test_the_async_methods_do_what_the_others_do(client: Client) -> None:
    async def main() -> None:
        (id,) = await client.aenqueue(PendingJob("t", 1))
        chain = await client.aenqueue(PendingJob("t", 2), PendingJob("t", 3), on_failure="cancel")
        assert [client.get_job(one).body for one in (id, *chain)] == [1, 2, 3]
        assert (await client.astats()).enqueued_jobs == client.stats().enqueued_jobs == 3
        assert await client.astop(timeout=5) == StopReport(finished=0, given_back=0, abandoned=0, forced=False)
        with pytest.raises(ClientStopped):
            await client.aenqueue(PendingJob("t"))

    asyncio.run(main())


def test_leaving_the_async_context_stops_the_client() -> None:
    async def main() -> Client:
        async with dejq.memory() as client:
            await client.aenqueue(PendingJob("t"))
        return client

    client = asyncio.run(main())
    with pytest.raises(ClientStopped):
        client.enqueue(PendingJob("t"))


def test_an_exception_in_the_async_context_comes_out() -> None:
    async def main() -> None:
        async with dejq.memory():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


REFUSED: dict[str, tuple[Callable[[Client], Awaitable[object]], type[Exception]]] = {
    "no job": (lambda client: client.aenqueue(), dejq.ConfigError),
    "a bad body": (lambda client: client.aenqueue(PendingJob("t", {1: 2})), dejq.BodyError),
    "a connection": (lambda client: client.aenqueue(PendingJob("t"), connection=object()), dejq.NotSupported),
    "a bad timeout": (lambda client: client.astop(timeout=-1), dejq.ConfigError),
}


@pytest.mark.parametrize(("call", "error"), REFUSED.values(), ids=REFUSED)
def test_the_async_methods_refuse_what_the_others_refuse(
    call: Callable[[Client], Awaitable[object]], error: type[Exception], client: Client
) -> None:
    async def main() -> None:
        with pytest.raises(error):
            await call(client)

    asyncio.run(main())
    assert client.stats().enqueued_jobs == 0


def test_a_worker_may_be_started_used_and_stopped_within_a_running_loop(loop_kind: str, new_client: NewClient) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        async def handler(job: Job) -> None:
            assert asyncio.get_running_loop() is not loop
            loop.call_soon_threadsafe(done.set)

        async with new_client() as client:
            client.register_handler("t", handler)
            client.dequeue_loop()
            await client.aenqueue(PendingJob("t"))
            await asyncio.wait_for(done.wait(), 20)
        assert client.stats().finished == 1

    asyncio.run(main())


def test_a_blocking_stop_within_a_running_loop_does_not_deadlock(new_client: NewClient) -> None:
    async def main() -> None:
        client = new_client()
        client.register_handler("t", async_noop)
        client.enqueue(PendingJob("t"))
        client.dequeue_loop()
        client.stop()

    asyncio.run(main())


def test_while_astop_waits_the_callers_loop_goes_on(new_client: NewClient) -> None:
    async def main() -> None:
        release = threading.Event()
        started = threading.Event()

        def handler(job: Job) -> None:
            started.set()
            release.wait(20)

        client = new_client(workers=1)
        client.register_handler("t", handler)
        client.enqueue(PendingJob("t"))
        client.dequeue_loop()
        await asyncio.to_thread(started.wait, 20)
        stopping = asyncio.create_task(client.astop())
        while client._native.is_running:
            await asyncio.sleep(0.001)
        assert not stopping.done()
        release.set()
        report = await asyncio.wait_for(stopping, 20)
        assert (report.finished, report.abandoned) == (1, 0)

    asyncio.run(main())


# ---- the worker's loop -----------------------------------------------------------------------------------


def test_async_handlers_run_on_either_loop(loop_kind: str, client: Client, ended: Ended) -> None:
    seen = []

    async def handler(job: Job) -> None:
        await asyncio.sleep(0.001)
        seen.append((type(asyncio.get_running_loop()).__module__.partition(".")[0], job.body))

    client.register_handler("t", handler)
    ids = client.enqueue_many([PendingJob("t", number) for number in range(50)])
    client.dequeue_loop()
    for id in ids:
        assert ended(client, id).state == "finished"
    assert {kind for kind, _ in seen} == {loop_kind}
    assert sorted(number for _, number in seen) == list(range(50))


def test_an_async_handler_may_use_threads_and_tasks(loop_kind: str, client: Client, ended: Ended) -> None:
    seen = []

    async def child(number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def handler(job: Job) -> None:
        seen.append(await asyncio.to_thread(sum, [1, 2]))
        seen.append(sum(await asyncio.gather(*(child(number) for number in range(4)))))
        async with asyncio.timeout(20) if sys.version_info >= (3, 11) else contextlib.nullcontext():
            seen.append(await child(7))

    client.register_handler("t", handler)
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    assert ended(client, id).state == "finished"
    assert seen == [3, 6, 7]


def test_a_plain_handler_may_run_a_loop_of_its_own(client: Client, ended: Ended) -> None:
    seen = []

    async def main() -> int:
        await asyncio.sleep(0)
        return 5

    client.register_handler("t", lambda job: seen.append(asyncio.run(main())))
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    assert ended(client, id).state == "finished"
    assert seen == [5]


def test_stop_waits_for_running_coroutines(loop_kind: str, new_client: NewClient, until: Until) -> None:
    finished = []
    gates: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def handler(job: Job) -> None:
        gate = asyncio.Event()
        gates.append((asyncio.get_running_loop(), gate))
        await gate.wait()
        finished.append(job.cancelled)

    client = new_client()
    client.register_handler("t", handler)
    client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    until(lambda: gates)
    reports: list[StopReport] = []
    stopping = threading.Thread(target=lambda: reports.append(client.stop()))
    stopping.start()
    until(lambda: not client._native.is_running)
    loop, gate = gates[0]
    loop.call_soon_threadsafe(gate.set)
    stopping.join()
    assert finished == [False]
    assert reports == [StopReport(finished=1, given_back=0, abandoned=0, forced=False)]


def test_stop_with_a_timeout_cancels_coroutines_and_gives_their_jobs_back(loop_kind: str, until: Until) -> None:
    seen: list[str | bool] = []

    async def handler(job: Job) -> None:
        seen.append("started")
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(job.cancelled)

    client = dejq.memory()
    client.register_handler("t", handler)
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    until(lambda: seen)
    assert client.stop(timeout=0) == StopReport(finished=0, given_back=1, abandoned=0, forced=True)
    assert seen == ["started", True]
    assert (client.get_job(id).state, client.get_job(id).attempt) == ("ready", 0)


def test_a_coroutine_that_finishes_although_it_is_cancelled_counts_as_finished(until: Until) -> None:
    started = []

    async def handler(job: Job) -> None:
        started.append(job)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    client = dejq.memory()
    client.register_handler("t", handler)
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    until(lambda: started)
    assert client.stop(timeout=0) == StopReport(finished=1, given_back=0, abandoned=0, forced=True)
    assert client.get_job(id).state == "finished"


def test_what_handlers_leave_on_the_loop_is_cancelled_when_the_worker_stops(
    loop_kind: str, new_client: NewClient, ended: Ended
) -> None:
    seen = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            seen.append("generator closed")

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("task cancelled")

    kept: list[Any] = []

    async def handler(job: Job) -> None:
        kept.append(asyncio.create_task(background()))
        generator = numbers()
        kept.append(generator)
        await anext(generator)
        await asyncio.sleep(0)

    client = new_client()
    client.register_handler("t", handler)
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    assert ended(client, id).state == "finished"
    assert seen == []
    client.stop()
    assert seen == ["task cancelled", "generator closed"]


class StubTask:
    """An `AsyncTask` whose job has been cancelled between its claim and its first step."""

    def __init__(self) -> None:
        self.cancelled = True
        self.is_started = False
        self.ends: list[BaseException | None] = []

    async def start(self) -> None:
        self.is_started = True

    def ended(self, error: BaseException | None = None) -> None:
        self.ends.append(error)


class StubLane:
    """An `AsyncLane` that hands these tasks out once."""

    def __init__(self, tasks: list[StubTask]) -> None:
        self.slots = 10
        self.cancels = 1
        self.tasks = tasks
        self.waiting = list(tasks)
        self.looks = 0
        self.is_over = False
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def fileno(self) -> int:
        return self.reader

    def woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.reader, 1)

    def take(self, most: int) -> list[StubTask]:
        self.looks += 1
        taken, self.waiting = self.waiting[:most], self.waiting[most:]
        return taken

    def idle(self) -> None:
        pass


Serve = Callable[[StubLane, Callable[[], Awaitable[None]]], None]


@pytest.fixture
def serve(loop_kind: str) -> Serve:
    """Runs the worker's loop over a stub of a lane, beside a coroutine."""

    def run(lane: StubLane, beside: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            os.write(lane.writer, b"1")
            loop = asyncio.get_running_loop()
            serving = asyncio.create_task(_threads._Serving(cast(_native.AsyncLane, lane), loop).until_over())
            await beside()
            lane.is_over = True
            os.write(lane.writer, b"1")
            await serving

        loop = _threads._new_loop()
        try:
            loop.run_until_complete(main())
        finally:
            loop.close()
            os.close(lane.reader)
            os.close(lane.writer)

    return run


async def some_turns(until: Callable[[], bool] = lambda: False) -> None:
    """Gives the loop 200 turns, or as many as it takes."""
    for _ in range(200):
        if until():
            return
        await asyncio.sleep(0)


def test_a_task_that_is_cancelled_before_its_first_step_still_reports_its_end(serve: Serve) -> None:
    tasks = [StubTask() for _ in range(3)]
    serve(StubLane(tasks), lambda: some_turns(lambda: all(task.ends for task in tasks)))
    assert [[type(end) for end in task.ends] for task in tasks] == [[asyncio.CancelledError]] * 3
    assert not any(task.is_started for task in tasks)


def test_a_loop_without_anything_to_do_rests(serve: Serve) -> None:
    lane = StubLane([])
    serve(lane, some_turns)
    assert lane.looks <= 3


# ---- many at once ----------------------------------------------------------------------------------------


def test_jobs_of_sixteen_threads_and_a_loop_are_all_stored_and_keep_the_order_of_each(
    new_client: NewClient,
) -> None:
    client = new_client(workers=1)
    seen: dict[str, list[int]] = defaultdict(list)
    client.register_handler("t", lambda job: seen[job.body[0]].append(job.body[1]))
    start = threading.Barrier(THREADS + 1)

    def by_thread(name: str) -> None:
        start.wait()
        for number in range(JOBS):
            client.enqueue(PendingJob("t", [name, number]))

    async def by_task(name: str) -> None:
        for number in range(JOBS):
            await client.aenqueue(PendingJob("t", [name, number]))
            await asyncio.sleep(0)

    async def by_loop() -> None:
        start.wait()
        await asyncio.gather(*(by_task(f"task {number}") for number in range(4)))

    threads = [threading.Thread(target=by_thread, args=(f"thread {number}",)) for number in range(THREADS)]
    threads.append(threading.Thread(target=lambda: asyncio.run(by_loop())))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.run(drain=True)
    assert len(seen) == THREADS + 4
    assert all(numbers == list(range(JOBS)) for numbers in seen.values())


def test_the_order_of_each_thread_holds_while_the_worker_runs_already(new_client: NewClient, until: Until) -> None:
    client = new_client(workers=1)
    seen: dict[int, list[int]] = defaultdict(list)
    client.register_handler("t", lambda job: seen[job.body[0]].append(job.body[1]))
    client.dequeue_loop()

    def by_thread(thread: int) -> None:
        for number in range(0, JOBS, 2):
            client.enqueue_many([PendingJob("t", [thread, number]), PendingJob("t", [thread, number + 1])])

    threads = [threading.Thread(target=by_thread, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: client.stats().finished == THREADS * JOBS)
    assert all(numbers == list(range(JOBS)) for numbers in seen.values())
