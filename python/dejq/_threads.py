"""The Python threads of a worker: N for plain handlers, one event loop for ``async def`` ones.

They are Python's own (so that debuggers, profilers and thread-locals work as usual) and daemons (so that a
handler that never returns does not keep the process alive); `Client.stop` and the exit hook join them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from dejq import _native

# asyncio is half of the import time of dejq, and a program without `async def` handlers never needs it.
if TYPE_CHECKING:
    import asyncio

# What handlers get to unwind in when the interpreter goes down around them.
_UNWIND_SECONDS = 0.2


def start(sync: _native.SyncLane | None, looped: _native.AsyncLane | None) -> list[threading.Thread]:
    """Starts the threads of these lanes."""
    threads: list[threading.Thread] = []
    if sync is not None:
        threads += [
            threading.Thread(target=sync.run, name=f"dejq-exec-{number}", daemon=True) for number in range(sync.slots)
        ]
    if looped is not None:
        threads.append(threading.Thread(target=_run_loop, args=(looped,), name="dejq-loop", daemon=True))
    for thread in threads:
        thread.start()
    return threads


def interrupt(threads: list[threading.Thread]) -> None:
    """Raises `SystemExit` in threads that still run Python code, and gives them a moment to unwind.

    Only for the end of the process: a thread that came back from a C call while the interpreter is being torn
    down would be ended by force, through frames of the engine that do not allow it.
    """
    import ctypes

    alive = [thread for thread in threads if thread.is_alive()]
    for thread in alive:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    for thread in alive:
        thread.join(_UNWIND_SECONDS / len(alive))


def run_coroutine(coroutine: Coroutine[Any, Any, object]) -> None:
    """Runs a coroutine to its end, on a loop and a thread of its own: the calling thread may have a loop already."""
    import asyncio

    raised: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(coroutine)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="dejq-inline")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def _new_loop() -> asyncio.AbstractEventLoop:
    import asyncio

    try:
        import uvloop
    except ImportError:
        # A selector loop on every platform: the engine wakes it through a socket.
        return asyncio.SelectorEventLoop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _run_loop(lane: _native.AsyncLane) -> None:
    import asyncio

    loop = _new_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_serve(lane))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _serve(lane: _native.AsyncLane) -> None:
    import asyncio

    loop = asyncio.get_running_loop()
    spawn = _spawner(loop)
    over = loop.create_future()
    running: dict[_native.AsyncTask, asyncio.Task[None]] = {}
    told: set[_native.AsyncTask] = set()
    cancels = 0

    async def run(item: _native.AsyncTask) -> None:
        try:
            await item.start()
        except BaseException as error:
            item.ended(error)
        else:
            item.ended()
        finally:
            running.pop(item, None)
            told.discard(item)
            if not running:
                lane.idle()

    def look() -> None:
        nonlocal cancels
        for item in lane.take():
            task = spawn(run(item))
            if not task.done():
                running[item] = task
        if lane.cancels != cancels:
            cancels = lane.cancels
            for item, task in running.items():
                if item.cancelled and item not in told:
                    told.add(item)
                    task.cancel()
        if lane.is_over and not over.done():
            over.set_result(None)

    loop.add_reader(lane.fileno(), look)
    look()
    try:
        await over
    finally:
        loop.remove_reader(lane.fileno())


def _spawner(loop: asyncio.AbstractEventLoop) -> Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]:
    if sys.version_info >= (3, 12):
        import asyncio

        # A coroutine that never waits needs no turn of the loop.
        return lambda coroutine: asyncio.Task(coroutine, loop=loop, eager_start=True)
    return loop.create_task
