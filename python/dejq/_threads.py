"""The Python threads of a worker: N for plain handlers, one event loop for ``async def`` ones.

They are Python's own (so that debuggers, profilers and thread-locals work as usual) and daemons (so that a
handler that never returns does not keep the process alive); `Client.stop` and the exit hook join them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any

from dejq import _native

# asyncio is half of the import time of dejq, and a program without `async def` handlers never needs it.
if TYPE_CHECKING:
    import asyncio

# What handlers and their tasks get to unwind in when everything else has ended.
_UNWIND_SECONDS = 0.2
_LOOP_NAME = "dejq-loop"


def make(sync: _native.SyncLane | None, looped: _native.AsyncLane | None) -> list[threading.Thread]:
    """Makes the threads of these lanes, to be started by the caller."""
    threads: list[threading.Thread] = []
    if sync is not None:
        threads += [
            threading.Thread(target=sync.run, name=f"dejq-exec-{number}", daemon=True) for number in range(sync.slots)
        ]
    if looped is not None:
        # Made here, where an error is the caller's.
        threads.append(threading.Thread(target=_run_loop, args=(looped, _new_loop()), name=_LOOP_NAME, daemon=True))
    return threads


def interrupt(threads: list[threading.Thread]) -> None:
    """Raises `SystemExit` in plain handlers that still run, and gives them a moment to unwind.

    Only for the end of the process, so that ``finally`` and ``with`` still do their work. What does not return
    from C code in time never runs again. Coroutines have been cancelled already; in the loop that runs them the
    exception could hit anything.
    """
    import ctypes

    alive = [thread for thread in threads if thread.is_alive() and thread.name != _LOOP_NAME]
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


def _run_loop(lane: _native.AsyncLane, loop: asyncio.AbstractEventLoop) -> None:
    import asyncio

    asyncio.set_event_loop(loop)
    serving = loop.create_task(_Serving(lane, loop).until_over())
    serving.add_done_callback(lambda _: loop.stop())
    try:
        while not serving.done():
            try:
                # Not `run_until_complete`, which raises when a handler stops the loop.
                loop.run_forever()
            except (KeyboardInterrupt, SystemExit):
                # asyncio passes these on through the loop when a task of a handler's own raises them; the
                # handler that waits for the task gets them too.
                continue
        serving.result()
        loop.run_until_complete(_cancel_the_rest())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _cancel_the_rest() -> None:
    """Tasks that handlers have left behind."""
    import asyncio

    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    if rest:
        await asyncio.wait(rest, timeout=_UNWIND_SECONDS)


class _Serving:
    """Runs the tasks of a lane on the current loop, as many at once as it has slots."""

    def __init__(self, lane: _native.AsyncLane, loop: asyncio.AbstractEventLoop) -> None:
        import asyncio

        self._lane = lane
        self._loop = loop
        self._current_task = asyncio.current_task
        self._cancelled_error = asyncio.CancelledError
        self._spawn = _spawner(loop)
        self._over: asyncio.Future[None] = loop.create_future()
        self._slots = lane.slots
        # `None` until its first step: a task cancelled before that never runs, and would not report its end.
        self._running: dict[_native.AsyncTask, asyncio.Task[None] | None] = {}
        self._told: set[_native.AsyncTask] = set()
        self._cancels = 0
        self._is_filling = False

    async def until_over(self) -> None:
        """Returns when the worker has stopped and no handler is left."""
        import asyncio

        self._loop.add_reader(self._lane.fileno(), self._look)
        self._look()
        while not self._over.done():
            try:
                await asyncio.shield(self._over)
            except asyncio.CancelledError:
                # Of a handler that cancels whatever runs in its loop. This goes on until the worker has stopped.
                continue
        self._loop.remove_reader(self._lane.fileno())
        # What was told to return and did not, goes on as it would on a thread of its own, though for nobody.
        while left := [task for task in self._running.values() if task is not None]:
            await asyncio.wait(left)

    async def _run(self, item: _native.AsyncTask) -> None:
        self._running[item] = self._current_task()
        try:
            if item.cancelled:
                raise self._cancelled_error
            await item.start()
        except BaseException as error:
            item.ended(error)
        else:
            item.ended()
        finally:
            self._running.pop(item, None)
            self._told.discard(item)
            self._fill()

    def _fill(self) -> None:
        # A coroutine that never waits ends within `spawn`, and comes here again from there.
        if self._is_filling:
            return
        self._is_filling = True
        try:
            taken = self._lane.take(self._slots - len(self._running))
            for item in taken:
                self._running[item] = None
                self._spawn(self._run(item))
        finally:
            self._is_filling = False
        if not self._running:
            self._lane.idle()
        if taken and len(self._running) < self._slots:
            # Some have ended within `spawn`. The rest of the loop has its turn before the next round.
            self._loop.call_soon(self._fill)

    def _look(self) -> None:
        self._lane.woken()
        self._fill()
        if self._lane.cancels != self._cancels:
            self._cancels = self._lane.cancels
            for item, task in self._running.items():
                if task is not None and item.cancelled and item not in self._told:
                    self._told.add(item)
                    task.cancel()
        if self._lane.is_over and not self._over.done():
            self._over.set_result(None)


def _spawner(loop: asyncio.AbstractEventLoop) -> Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]:
    """Starts a task in an empty context: the current one may be that of the job that has just ended."""
    if sys.version_info >= (3, 12):
        import asyncio

        # A coroutine that never waits needs no turn of the loop.
        return lambda coroutine: asyncio.Task(coroutine, loop=loop, context=Context(), eager_start=True)
    return lambda coroutine: Context().run(loop.create_task, coroutine)
