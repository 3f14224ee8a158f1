"""Ends of the process without a `stop()`, each while something else is going on.

The last line on stdout, ``exiting``, is written right before the main program ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dejq
from dejq import Client, Job
from python.programs.scenario import put, say, until

entered = threading.Semaphore(0)
leaving = threading.Event()


class Lingering:
    """Makes the interpreter take its time while it goes down, which is when daemon threads are in danger."""

    def __init__(self, seconds: float) -> None:
        self.wait: Callable[[], None] = lambda sleep=time.sleep: sleep(seconds)  # type: ignore[misc]  # no type says it

    def __del__(self) -> None:
        self.wait()


def busy(handler: Any, workers: int = 1) -> Client:
    """A client whose handler has been entered, and that nobody stops."""
    client = dejq.memory(workers=workers)
    client.register_handler("job", handler)
    client.dequeue_loop()
    put(client)
    assert entered.acquire(timeout=10)
    return client


def linger() -> None:
    # In a module that is cleared last.
    sys.lingering = Lingering(0.3)  # type: ignore[attr-defined]  # no type says it


def exiting() -> None:
    leaving.set()
    say("exiting")


# ---- handlers


def idle() -> None:
    client = dejq.memory()
    client.register_handler("plain", lambda job: None)
    client.register_handler("coroutine", wait_in_coroutine)
    client.dequeue_loop()


def done() -> None:
    """Jobs that end right before are stored."""
    client = dejq.memory()
    client.register_handler("job", lambda job: None)
    client.dequeue_loop()
    for _ in range(100):
        put(client)


def sleep(seconds: float) -> Callable[[Job], None]:
    def handler(job: Job) -> None:
        entered.release()
        while True:
            time.sleep(seconds)

    return handler


def sleep_for_long() -> None:
    busy(sleep(60))


def sleep_for_moments() -> None:
    busy(sleep(0.001))


def sleep_for_moments_in_many_threads() -> None:
    busy(sleep(0.001), workers=8)


def sleep_for_moments_while_it_takes_long() -> None:
    linger()
    busy(sleep(0.001))


def sleep_for_less_than_it_takes() -> None:
    """Each sleep is too long for the interrupt to get through before, and too short to outlast the interpreter."""
    linger()
    busy(sleep(0.25))


def swallow_everything() -> None:
    linger()

    def handler(job: Job) -> None:
        entered.release()
        while True:
            try:
                time.sleep(0.001)
            except BaseException:
                pass

    busy(handler)


def compute() -> None:
    linger()

    def handler(job: Job) -> None:
        entered.release()
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass

    busy(handler)


def decode() -> None:
    """The danger is the same in code that only belongs to a handler."""
    linger()

    def stuck() -> None:
        entered.release()
        while True:
            try:
                time.sleep(0.001)
            except BaseException:
                pass

    @dataclass
    class Body:
        x: int

        def __post_init__(self) -> None:
            stuck()

    def handler(body: Any) -> None:
        raise AssertionError("its body is not decoded yet")

    handler.__annotations__["body"] = Body
    client = dejq.memory(workers=1)
    client.register_handler("job", handler)
    client.dequeue_loop()
    put(client, body={"x": 1})
    assert entered.acquire(timeout=10)


def finally_runs() -> None:
    """What a handler has to clean up, it can."""

    def handler(job: Job) -> None:
        try:
            sleep(0.001)(job)
        finally:
            say("cleaned up")

    busy(handler)


def c_code() -> None:
    def handler(job: Job) -> None:
        entered.release()
        ctypes.CDLL(None).sleep(60)

    busy(handler)


async def wait_in_coroutine(job: Job) -> None:
    entered.release()
    await asyncio.sleep(60)


def coroutine() -> None:
    busy(wait_in_coroutine)


def stubborn_coroutine() -> None:
    linger()

    async def handler(job: Job) -> None:
        entered.release()
        while True:
            try:
                await asyncio.sleep(0.001)
            except BaseException:
                pass

    busy(handler)


def blocking_coroutine() -> None:
    async def handler(job: Job) -> None:
        entered.release()
        time.sleep(60)

    busy(handler)


def many_clients() -> None:
    """They get their time together, not one after the other."""
    for _ in range(4):
        busy(sleep(0.001))


def forgotten_client() -> None:
    """Nobody refers to the client any more, but its worker still runs."""
    linger()
    busy(sleep(0.001))
    gc.collect()


def abandoned_by_a_stop() -> None:
    linger()
    client = busy(sleep(0.001))
    assert client.stop(timeout=0).abandoned == 1


def threads_of_the_user() -> None:
    """A thread that is no daemon is waited for by the interpreter, as without dejq, and may stop the client."""
    client = busy(wait_in_coroutine)

    def stop_later() -> None:
        leaving.wait()
        client.stop(timeout=0)

    threading.Thread(target=stop_later).start()


def busy_logging() -> None:
    """At full verbosity, with lines underway."""
    linger()
    dejq.set_verbosity(3)
    client = busy(sleep(0.001), workers=2)
    for _ in range(2_000):
        put(client, "other")


def failures_are_told() -> None:
    """The traceback of a job that failed right before is not lost."""
    client = dejq.memory(workers=1)

    def handler(job: Job) -> None:
        raise ValueError("the last words")

    client.register_handler("job", handler)
    client.dequeue_loop()
    id = put(client)
    until(lambda: client.get_job(id).state == "failed")


# ---- ways to end


def by_exception(what: str) -> None:
    globals()[what]()
    exiting()
    raise ValueError("of the main program")


def by_exit_code(what: str) -> None:
    globals()[what]()
    exiting()
    sys.exit(3)


def by_os_exit(what: str) -> None:
    globals()[what]()
    exiting()
    os._exit(4)


def by_ctrl_c(what: str) -> None:
    """For the parent, which sends the signal."""
    globals()[what]()
    exiting()
    time.sleep(60)


def by_end(what: str) -> None:
    globals()[what]()
    exiting()


if __name__ == "__main__":
    # Unlike in the other programs, what is logged goes to stderr: nothing, but in one scenario.
    _, how, scenario = sys.argv
    globals()[how](scenario)
