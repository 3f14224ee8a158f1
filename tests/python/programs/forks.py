"""Forks at various moments. A child uses its parent's client, makes its own, and ends."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.context import BaseContext
from multiprocessing.queues import SimpleQueue
from typing import Any

import dejq
from dejq import Client, ForkedProcess, Job, PendingJob
from python.programs.scenario import ended, hold, log, main, put, until, works

# A child that takes longer hangs.
SECONDS = 10.0


def noop(job: Job) -> None:
    pass


def ready(**options: Any) -> Client:
    client = dejq.memory(**options)
    client.register_handler("job", noop)
    return client


def in_child(scenario: Callable[[], None], code: int = 0, leave: Callable[[int], None] = os._exit) -> None:
    """Forks, and asserts that the child got through the scenario and ended with this code."""
    pid = os.fork()
    if pid == 0:
        try:
            scenario()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(99)
        leave(code)
        return
    end = time.monotonic() + SECONDS
    while True:
        ended_pid, status = os.waitpid(pid, os.WNOHANG)
        if ended_pid:
            break
        if time.monotonic() > end:
            os.kill(pid, signal.SIGABRT)  # faulthandler shows where it hangs
            os.waitpid(pid, 0)
            raise AssertionError("the child hung")
        time.sleep(0.002)
    assert os.waitstatus_to_exitcode(status) == code, status


def refuses(client: Client) -> None:
    """Every method of a client of the parent refuses at once, with what to do."""
    id = "01890a5d-ac96-774b-bcce-b302099a8057"
    hour = timedelta(hours=1)
    uses: list[Callable[[], object]] = [
        lambda: client.enqueue(PendingJob("job")),
        lambda: client.enqueue_many([PendingJob("job")]),
        lambda: asyncio.run(client.aenqueue(PendingJob("job"))),
        lambda: client.register_handler("other", noop),
        client.dequeue_loop,
        client.run,
        client.stop,
        lambda: asyncio.run(client.astop()),
        client.stats,
        lambda: asyncio.run(client.astats()),
        lambda: client.get_job(id),
        client.list_jobs,
        lambda: client.unresponsive_jobs(hour),
        lambda: client.finish_job(id),
        lambda: client.requeue_job(id),
        lambda: client.cancel_job(id),
        lambda: client.delete_finished(hour),
        client.vacuum,
        client.migrate,
        client.check,
        lambda: client.types,
        client.__enter__().stop,
    ]
    for use in uses:
        began = time.monotonic()
        try:
            use()
        except ForkedProcess as error:
            assert "make the client in the child" in str(error), str(error)
        else:
            raise AssertionError("it was not refused")
        assert time.monotonic() - began < 2
    assert "memory" in repr(client)


def uses_and_works(client: Client) -> None:
    refuses(client)
    works(dejq.memory())


# ---- moments


def before_first_use() -> None:
    client = ready()
    in_child(lambda: uses_and_works(client))
    in_child(lambda: works(dejq.memory()))
    works(dejq.memory())
    works(client)


def after_an_enqueue() -> None:
    client = ready()
    id = put(client)
    in_child(lambda: uses_and_works(client))
    client.dequeue_loop()
    assert ended(client, id).state == "finished"
    client.stop()


def after_a_stop() -> None:
    client = ready()
    client.dequeue_loop()
    client.stop()
    in_child(lambda: uses_and_works(client))
    works(dejq.memory())


def with_a_running_worker() -> None:
    """Also a child of a child, and children whose ends run exit hooks."""
    client = ready(workers=2, heartbeat=0.1)
    id, leave = hold(client)
    in_child(lambda: uses_and_works(client))
    in_child(lambda: in_child(lambda: uses_and_works(client)))
    in_child(lambda: refuses(client), 7, leave=sys.exit)
    assert client._native.is_running
    assert ended(client, put(client)).state == "finished"
    assert client.get_job(id).state == "running"
    leave.set()
    assert client.stop().abandoned == 0
    assert client.get_job(id).state == "finished"
    assert client._native.counted()["rescued"] == 0


def a_child_that_just_ends() -> None:
    """Its exit hooks stop nothing and wait for nobody; its own worker they do stop."""
    client = ready()
    entered = threading.Semaphore(0)

    def busy(job: Job) -> None:
        entered.release()
        while not job.cancelled:
            time.sleep(0.001)

    client.register_handler("busy", busy)
    client.dequeue_loop()
    put(client, "busy")
    entered.acquire()

    def start_own() -> None:
        own = dejq.memory()
        own.register_handler("busy", busy)
        own.dequeue_loop()
        put(own, "busy")
        assert entered.acquire(timeout=5)

    in_child(lambda: None, 5, leave=sys.exit)
    in_child(start_own, 6, leave=sys.exit)
    assert client.stats().running == 1
    assert ended(client, put(client)).state == "finished"
    assert client.stop(timeout=0).abandoned == 0


def under_load() -> None:
    """Forks while every thread of the engine is at work, and writes its log."""
    dejq.set_verbosity(3)
    client = ready(workers=2, heartbeat=0.01)
    client.dequeue_loop()
    over = threading.Event()

    def produce() -> None:
        while not over.is_set():
            client.enqueue_many([PendingJob("job")] * 50)
            until(lambda: client.stats().enqueued_jobs < 1_000)

    producer = threading.Thread(target=produce)
    producer.start()
    until(lambda: client.stats().finished)

    def child() -> None:
        try:
            client.stats()
        except ForkedProcess:
            works(dejq.memory())
        else:
            raise AssertionError("it was not refused")

    for _ in range(20):
        in_child(child)
    over.set()
    producer.join()
    until(lambda: not client.stats().enqueued_jobs)
    client.stop()
    assert log.texts


def ids_differ() -> None:
    """Ids that parent and children make at the same times are different: an id names one job, everywhere."""
    put(ready())
    reader, writer = os.pipe()
    start = round(time.time() + 0.2, 3)

    def ids() -> str:
        """One in each of a hundred windows of 2 ms, the same ones in each process."""
        fresh = dejq.memory()
        made = []
        for number in range(100):
            time.sleep(max(0.0, start + 0.002 * number - time.time()))
            made.append(put(fresh))
        return "".join(f"{id}\n" for id in made)

    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            os.write(writer, ids().encode())  # less than a pipe holds
            os._exit(0)
        children.append(pid)
    os.close(writer)
    all_ids = ids().split()
    with os.fdopen(reader) as pipe:
        all_ids += pipe.read().split()
    for pid in children:
        os.waitpid(pid, 0)
    assert len(all_ids) == 400
    assert len(set(all_ids)) == 400, f"{400 - len(set(all_ids))} ids were given twice"


def named_queues_are_not_shared() -> None:
    """A memory queue belongs to its process: a child that names it gets an empty one, not a copy of its jobs."""
    client = ready(name="jobs")
    put(client)

    def child() -> None:
        own = dejq.memory("jobs")
        assert own.stats().enqueued_jobs == 0
        works(own)

    in_child(child)
    assert client.stats().enqueued_jobs == 1


# ---- from a handler


def a_handler_that_forks() -> None:
    """A child that returns from the handler is no second worker: it ends there. The parent finishes the job."""
    client = ready(workers=1)
    codes: list[int] = []

    def fork(job: Job) -> None:
        pid = os.fork()
        if pid == 0:
            refuses_in_handler(client)
            return
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes.append(os.waitstatus_to_exitcode(status))
                return
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def refuses_in_handler(client: Client) -> None:
        try:
            client.stop()
        except ForkedProcess:
            return
        os._exit(98)

    client.register_handler("fork", fork)
    client.dequeue_loop()
    assert ended(client, put(client, "fork")).state == "finished"
    assert codes == [0], codes
    assert ended(client, put(client)).state == "finished"
    client.stop()


# ---- multiprocessing


def mp_fork() -> None:
    _mp("fork")


def mp_spawn() -> None:
    _mp("spawn")


def mp_forkserver() -> None:
    _mp("forkserver")


inherited: Client | None = None


def _mp(method: str) -> None:
    global inherited
    client = inherited = ready(heartbeat=0.1)
    client.dequeue_loop()
    put(client)
    context: BaseContext = multiprocessing.get_context(method)
    answers: SimpleQueue[str] = context.SimpleQueue()
    process = context.Process(target=_mp_child, args=(answers,))  # type: ignore[attr-defined]  # typeshed has it per kind of context
    process.start()
    process.join(SECONDS)
    assert process.exitcode == 0, process.exitcode
    expected = "refused" if method == "fork" else "fresh"
    assert answers.get() == expected
    with context.Pool(2) as pool:
        assert pool.map(_mp_job, range(4), chunksize=1) == [0, 1, 2, 3]
    assert ended(client, put(client)).state == "finished"
    client.stop()


def _mp_child(answers: SimpleQueue[str]) -> None:
    if inherited is None:
        answers.put("fresh")
    else:
        refuses(inherited)
        answers.put("refused")
    works(dejq.memory())


def _mp_job(number: int) -> int:
    works(dejq.memory())
    return number


if __name__ == "__main__":
    main(globals())
