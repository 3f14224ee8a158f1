"""The store's answers to coroutines: futures that the engine completes, with no thread waiting for each."""

from __future__ import annotations

import asyncio
import weakref

from dejq import _native


class Answers:
    """The questions that coroutines of one event loop have asked."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.native = _native.Answers()
        self._loop = weakref.ref(loop)
        self._waiting: dict[int, asyncio.Future[list[str]]] = {}
        loop.add_reader(self.native.fileno(), self._read)

    def are_for_running_loop(self) -> bool:
        """Is it the loop of these that runs the caller?"""
        return self._loop() is asyncio.get_running_loop()

    def to(self, question: int) -> asyncio.Future[list[str]]:
        """What comes as the answer to a question that has just been asked."""
        answer: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._waiting[question] = answer
        return answer

    def _read(self) -> None:
        for question, given in self.native.take():
            answer = self._waiting.pop(question)
            if answer.done():  # whoever waited was cancelled
                continue
            if isinstance(given, list):
                answer.set_result(given)
            else:
                answer.set_exception(given)


_by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Answers] = weakref.WeakKeyDictionary()


def of_running_loop() -> Answers:
    """The answers for the loop that runs the caller."""
    loop = asyncio.get_running_loop()
    if loop not in _by_loop:
        _by_loop[loop] = Answers(loop)
    return _by_loop[loop]
