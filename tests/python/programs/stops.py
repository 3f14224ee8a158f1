"""Stops at every moment and from everywhere."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import dejq
from dejq import Client, ClientStopped, Job, PendingJob, StopReport
from python.programs.scenario import counted, ended, hold, main, put, say, until, works

NOTHING = StopReport(finished=0, given_back=0, abandoned=0, forced=False)


def noop(job: Job) -> None:
    pass


def ready(**options: Any) -> Client:
    client = dejq.memory(**options)
    client.register_handler("job", noop)
    return client


def dejq_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("dejq-exec", "dejq-loop"))]


# ---- when


def before_start() -> None:
    client = ready()
    assert client.stop() == NOTHING
    for refused in (client.dequeue_loop, client.run, lambda: put(client)):
        try:
            refused()
        except ClientStopped:
            continue
        raise AssertionError("it was not refused")
    assert client.stats().enqueued_jobs == 0
    assert not dejq_threads()


def twice() -> None:
    client = ready()
    client.dequeue_loop()
    ended(client, put(client))
    first = client.stop()
    assert not dejq_threads()
    assert client.stop() == first
    assert client.stop(timeout=0) == first
    assert client.stats().workers == 0


def during_start() -> None:
    """Of a start and a stop at the same time, either may win; no thread is left, and no job is lost."""
    started = 0
    for _ in range(150):
        client = ready(workers=4)
        put(client)
        both = threading.Barrier(2)
        stopper = threading.Thread(target=lambda client=client, both=both: (both.wait(), client.stop()))
        stopper.start()
        both.wait()
        try:
            client.dequeue_loop()
            started += 1
        except ClientStopped:
            pass
        stopper.join()
        client.stop()
        assert not dejq_threads()
        stats = client.stats()
        assert (stats.ready or 0) + (stats.finished or 0) == 1, stats
    assert started


def from_two_threads() -> None:
    client = ready(workers=2)
    id, leave = hold(client)
    reports: list[StopReport] = []
    stoppers = [threading.Thread(target=lambda: reports.append(client.stop())) for _ in range(2)]
    for stopper in stoppers:
        stopper.start()
    until(lambda: not client._native.is_running)
    assert not reports
    leave.set()
    for stopper in stoppers:
        stopper.join()
    assert reports == [StopReport(finished=1, given_back=0, abandoned=0, forced=False)] * 2
    assert client.get_job(id).state == "finished"


def the_nearest_deadline_counts() -> None:
    client = ready(workers=1, heartbeat=0.05)
    _, leave = hold(client)
    reports: list[StopReport] = []
    patient = threading.Thread(target=lambda: reports.append(client.stop()))
    patient.start()
    until(lambda: not client._native.is_running)
    reports.append(client.stop(timeout=0))
    patient.join()
    assert reports == [StopReport(finished=0, given_back=0, abandoned=1, forced=True)] * 2
    leave.set()


# ---- from where


def from_a_handler() -> None:
    _from_a_handler("plain")


def from_a_coroutine() -> None:
    _from_a_handler("stop")
    _from_a_handler("astop")


def _from_a_handler(how: str) -> None:
    client = ready(name=how, workers=1)
    answers: list[StopReport] = []

    def plain(job: Job) -> None:
        answers.append(client.stop())
        answers.append(asyncio.run(client.astop()))

    async def stop(job: Job) -> None:
        answers.append(client.stop())

    async def astop(job: Job) -> None:
        answers.append(await client.astop())

    client.register_handler("stop", {"plain": plain, "stop": stop, "astop": astop}[how])
    client.enqueue_many([PendingJob("stop"), *[PendingJob("job")] * 100])
    client.dequeue_loop()
    # The whole stop happens, although nobody waits for it.
    until(lambda: client.stats().workers == 0)
    until(lambda: not dejq_threads())
    assert set(answers) == {NOTHING}
    report = client.stop()
    assert (report.abandoned, report.forced) == (0, False)
    stats = client.stats()
    assert not stats.running
    assert stats.by_type["stop"].finished == 1
    # What was not started is another worker's at once.
    other = ready(name=how)
    other.dequeue_loop()
    until(lambda: other.stats().finished == 101)
    other.stop()


def from_a_handler_with_a_timeout() -> None:
    """The deadline that a handler gives holds for the others too."""
    client = ready(workers=2)
    entered, leave, told = threading.Event(), threading.Event(), threading.Event()

    def stuck(job: Job) -> None:
        entered.set()
        until(lambda: job.cancelled)
        told.set()
        leave.wait()

    def stopper(job: Job) -> None:
        entered.wait()
        client.stop(timeout=0.05)

    client.register_handler("stuck", stuck)
    client.register_handler("stopper", stopper)
    put(client, "stuck")
    put(client, "stopper")
    client.dequeue_loop()
    assert told.wait(10)
    report = client.stop()
    assert (report.abandoned, report.forced) == (1, True)
    leave.set()


def from_the_first_job() -> None:
    """A handler that runs while threads are still being started is known as one."""
    for _ in range(20):
        client = dejq.memory(workers=64)
        client.register_handler("stop", lambda job, client=client: client.stop())
        put(client, "stop")
        client.dequeue_loop()
        assert client.stop().abandoned == 0
        assert client.stats().finished == 1


def run_ends_by_a_stop() -> None:
    """Of a handler, and of another thread."""
    client = dejq.memory()
    client.register_handler("stop", lambda job: client.stop())
    put(client, "stop")
    client.run()
    assert client.stats().finished == 1
    other = ready()
    entered = threading.Event()
    other.register_handler("enter", lambda job: entered.set())
    put(other, "enter")
    stopper = threading.Thread(target=lambda: (entered.wait(), other.stop()))
    stopper.start()
    other.run()
    stopper.join()
    draining = dejq.memory(workers=1)
    draining.register_handler("stop", lambda job: draining.stop())
    put(draining, "stop")
    draining.enqueue(PendingJob("stop", delay=3600))
    draining.run(drain=True)


# ---- with a timeout


def timeout_and_a_stuck_handler() -> None:
    """Numbers of the report; and the jobs of those left behind go to another worker when their leases run out."""
    client = ready(name="stuck", workers=2, heartbeat=0.1)
    entered, leave, left = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)
    attempts: list[int] = []

    def stuck(job: Job) -> None:
        attempts.append(job.attempt)
        entered.release()
        leave.wait()
        left.release()

    def polite(job: Job) -> None:
        entered.release()
        until(lambda: job.cancelled)
        raise RuntimeError("told to return")

    client.register_handler("stuck", stuck)
    client.register_handler("polite", polite)
    client.dequeue_loop()
    stuck_id, polite_id = put(client, "stuck"), put(client, "polite")
    entered.acquire()
    entered.acquire()
    waiting_id = put(client)
    began = time.monotonic()
    report = client.stop(timeout=0.3)
    took = time.monotonic() - began
    # `polite` is cut short, `job` was never started.
    assert report.forced
    assert report.abandoned == 1
    assert report.finished == 0
    assert 0.3 <= took < 5, took
    assert client.get_job(stuck_id).state == "running"
    assert client.get_job(polite_id).state == "ready"
    assert client.get_job(waiting_id).state == "ready"
    leave.set()
    left.acquire()
    # It has returned after all, but for nobody.
    other = ready(name="stuck", heartbeat=0.1)
    other.register_handler("stuck", stuck)
    other.register_handler("polite", noop)
    other.dequeue_loop()
    for id in (stuck_id, polite_id, waiting_id):
        assert ended(other, id).state == "finished"
    assert counted(other)["rescued"] == 1
    assert attempts == [1, 1], attempts
    assert client.stop() == report
    other.stop()


def timeout_and_coroutines() -> None:
    """Those that take their cancellation are given back; one that does not is left behind, and goes on."""
    client = ready(name="coroutines", heartbeat=0.1)
    entered, done = threading.Semaphore(0), threading.Event()
    cleaned: list[str] = []

    async def polite(job: Job) -> None:
        entered.release()
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned.append("polite")

    async def stubborn(job: Job) -> None:
        entered.release()
        for _ in range(150):
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                cleaned.append("stubborn")
        done.set()

    client.register_handler("polite", polite)
    client.register_handler("stubborn", stubborn)
    client.dequeue_loop()
    polite_id, stubborn_id = put(client, "polite"), put(client, "stubborn")
    entered.acquire()
    entered.acquire()
    report = client.stop(timeout=0)
    assert report == StopReport(finished=0, given_back=1, abandoned=1, forced=True), report
    assert sorted(cleaned) == ["polite", "stubborn"]
    assert client.get_job(polite_id).state == "ready"
    assert client.get_job(stubborn_id).state == "running"
    assert done.wait(10)
    until(lambda: not dejq_threads())


def queued_jobs_are_given_back() -> None:
    """And a second client, which waits on the same queue, runs them; each runs once, in the order of the queue."""
    runs: list[str] = []
    entered, leave = threading.Event(), threading.Event()
    first, second = dejq.memory("line", workers=1), dejq.memory("line", workers=1)

    def block(job: Job) -> None:
        runs.append(job.id)
        if len(runs) == 50:  # fast until then, so that many are fetched ahead
            entered.set()
            leave.wait()

    first.register_handler("job", block)
    second.register_handler("job", lambda job: runs.append(job.id))
    ids = first.enqueue_many([PendingJob("job") for _ in range(3_000)])
    first.dequeue_loop()
    entered.wait()
    until(lambda: first.stats().finished == 49)
    held = first.stats().running
    second.dequeue_loop()
    stopper = threading.Thread(target=first.stop)
    stopper.start()
    # While the handler of the first still runs.
    until(lambda: len(runs) == 3_000)
    assert first.get_job(ids[49]).state == "running"
    leave.set()
    stopper.join()
    report = first.stop()
    second.stop()
    assert held is not None
    assert report.given_back == held - 1, (report, held)
    assert held > 1
    assert sorted(runs) == ids
    assert first.stats().finished == 3_000


# ---- Ctrl-C, contexts, and starts that fail


def ctrl_c_during_stop() -> None:
    """It gets through, the stop goes on, and a second call waits for the rest of it."""
    client = ready(workers=1)
    id, leave = hold(client)
    waiting = put(client)

    def press() -> None:
        until(lambda: not client._native.is_running)
        os.kill(os.getpid(), signal.SIGINT)

    impatient = threading.Thread(target=press)
    impatient.start()
    began = time.monotonic()
    try:
        client.stop()
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("Ctrl-C did not get through")
    assert time.monotonic() - began < 5
    impatient.join()
    assert client.stats().running == 1
    assert client.get_job(waiting).state == "ready"
    leave.set()
    assert client.stop() == StopReport(finished=1, given_back=0, abandoned=0, forced=False)
    assert client.get_job(id).state == "finished"
    assert not dejq_threads()
    works(dejq.memory())


def context_with_an_exception() -> None:
    client = ready(workers=1)
    entered, leave = threading.Event(), threading.Event()

    def slow(job: Job) -> None:
        entered.set()
        leave.wait()

    def leave_later() -> None:
        until(lambda: not client._native.is_running)
        leave.set()

    client.register_handler("slow", slow)
    id = ""
    try:
        with client:
            client.dequeue_loop()
            id = put(client, "slow")
            entered.wait()
            threading.Thread(target=leave_later).start()
            raise ValueError("of the block")
    except ValueError as error:
        assert str(error) == "of the block"
    else:
        raise AssertionError("the exception was swallowed")
    assert client.get_job(id).state == "finished"
    assert not dejq_threads()


def async_context() -> None:
    async def enter() -> None:
        async with client:
            client.dequeue_loop()
            ids.append((await client.aenqueue(PendingJob("job")))[0])
            raise ValueError("of the block")

    ids: list[str] = []
    client = ready()
    try:
        asyncio.run(enter())
    except ValueError as error:
        assert str(error) == "of the block"
    assert client.get_job(ids[0]).state in ("ready", "finished")
    assert client.stats().workers == 0
    assert not dejq_threads()


def threads_that_cannot_start() -> None:
    """The start fails as a whole, and the jobs are another client's at once."""
    start = threading.Thread.start
    allowed = 3

    def start_few(thread: threading.Thread) -> None:
        nonlocal allowed
        if thread.name.startswith("dejq-exec"):
            allowed -= 1
            if allowed < 0:
                raise RuntimeError("can't start new thread")
        start(thread)

    client = ready(name="few", workers=8)
    client.enqueue_many([PendingJob("job") for _ in range(100)])
    threading.Thread.start = start_few  # type: ignore[assignment, method-assign]  # put back below
    try:
        client.dequeue_loop()
    except RuntimeError as error:
        assert str(error) == "can't start new thread"
    else:
        raise AssertionError("it started")
    threading.Thread.start = start  # type: ignore[method-assign]  # as it was
    assert not dejq_threads()
    assert client.stats().running == 0
    client.stop()
    other = ready(name="few")
    other.dequeue_loop()
    until(lambda: other.stats().finished == 100)
    other.stop()


def descriptors_that_run_out() -> None:
    """As above, when the loop of the coroutine handlers gets no sockets, whichever of them is the first to fail."""
    import resource

    async def coroutine(job: Job) -> None:
        pass

    works(dejq.memory())  # what is only opened once is open
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    failures = 0
    for spare in range(20):
        client = ready(name="descriptors")
        client.register_handler("coroutine", coroutine)
        id = put(client)
        taken = _take_descriptors()
        for _ in range(spare):
            os.close(taken.pop())
        try:
            client.dequeue_loop()
        except OSError:
            failures += 1
        else:
            client.stop()
            break
        finally:
            for descriptor in taken:
                os.close(descriptor)
        assert not dejq_threads()
        other = ready(name="descriptors")
        other.dequeue_loop()
        assert ended(other, id).state == "finished"
        other.stop()
    assert failures > 2, failures


def _take_descriptors() -> list[int]:
    taken = []
    try:
        while True:
            taken.append(os.dup(2))
    except OSError:
        return taken


# ---- enqueues against a stop


def enqueue_against_stop() -> None:
    """Every enqueue gets ids or `ClientStopped`; what has an id is finished or waits in the store."""
    sys.setswitchinterval(0.0002)  # 16 threads want the interpreter; the 17th shall not wait long for it
    for _ in range(5):
        _enqueue_against_stop()


def _enqueue_against_stop() -> None:
    client = ready(workers=2, keep_finished=1_000_000)
    acknowledged: list[list[str]] = [[] for _ in range(16)]
    errors: list[BaseException] = []
    go = threading.Barrier(17)

    def produce(ids: list[str]) -> None:
        go.wait()
        try:
            while True:
                ids += client.enqueue(PendingJob("job"), PendingJob("job"))
        except BaseException as error:
            errors.append(error)

    producers = [threading.Thread(target=produce, args=(ids,)) for ids in acknowledged]
    for producer in producers:
        producer.start()
    client.dequeue_loop()
    go.wait()
    until(lambda: client.stats().finished)
    client.stop()
    for producer in producers:
        producer.join()
    assert [type(error) for error in errors] == [ClientStopped] * 16, errors
    states = {id: client.get_job(id).state for ids in acknowledged for id in ids}
    assert len(states) == sum(map(len, acknowledged))
    assert set(states.values()) <= {"finished", "ready", "blocked"}, set(states.values())
    stats = client.stats()
    assert (stats.finished or 0) + stats.enqueued_jobs == len(states)


# ---- signals


def signal_at_every_line() -> None:
    """A signal, and a second one right behind it, at every step of Python code that `run` takes, ends it.

    What a signal handler interrupts may hold a lock; then it must not want that lock itself.
    """
    fired = True
    moments = 0
    while fired:
        moments += 1
        fired = _run_with_a_signal_at(moments)
    # From the installation of the handlers to the end of the stop.
    assert moments > 40, moments


def _run_with_a_signal_at(moment: int) -> bool:
    client = ready(workers=1)
    steps = 0
    over = threading.Event()

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    def step(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal steps
        if "programs" not in frame.f_code.co_filename and signal.getsignal(signal.SIGTERM) is not ignore:
            steps += 1
            if steps in (moment, moment + 1):
                os.kill(os.getpid(), signal.SIGTERM)
        return step

    def no_more_steps() -> None:
        """Ends the last run, which waits before its step has come."""
        seen = 0
        while not over.wait(0.02):
            if seen and seen == steps:
                os.kill(os.getpid(), signal.SIGTERM)
            seen = steps

    signal.signal(signal.SIGTERM, ignore)
    last = threading.Thread(target=no_more_steps)
    last.start()
    sys.settrace(step)
    try:
        client.run()
    finally:
        sys.settrace(None)
        over.set()
    last.join()
    assert not dejq_threads()
    return steps > moment


def second_signal() -> None:
    """For the parent, which sends the signals."""
    client = ready(workers=1)
    never = threading.Event()

    def stuck(job: Job) -> None:
        say("stuck")
        until(lambda: not client._native.is_running)
        say("stopping")
        never.wait()

    client.register_handler("stuck", stuck)
    put(client, "stuck")
    client.run()
    stats = client.stats()
    assert stats.running == 1
    say("over")


if __name__ == "__main__":
    main(globals())
