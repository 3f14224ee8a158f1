"""What a handler asks for, read from its signature when it is registered."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, ParamSpec, Protocol, TypeAlias, TypeVar

from dejq._native import Job, PendingJob
from dejq.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

Handler: TypeAlias = Callable[..., object] | Callable[..., Awaitable[object]]
"""``(job: Job)``, ``(body: T)`` or ``(job: Job, body: T)``; ``def`` or ``async def``. A result is ignored."""


class HandlerFunction(Protocol, Generic[P, R]):
    """A decorated handler: the function as it was, with `job` beside it."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function itself, for example in a unit test."""
        ...

    def job(
        self,
        body: Any = None,
        *,
        delay: float | timedelta | None = None,
        max_attempts: int | None = None,
        unique: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> PendingJob[Any]:
        """Makes a `PendingJob` of the type that this handler is registered for."""
        ...


@dataclass(frozen=True, slots=True)
class Signature:
    """What a handler takes.

    Attributes:
        wants: For each argument, in order: the job (true) or the body (false).
        decoder: Makes the body from JSON text; ``None`` for plain objects.
        body_type: What it makes; `Any` for plain objects.
        is_async: Is it a coroutine function?
    """

    wants: list[bool]
    decoder: Callable[[bytes], Any] | None
    body_type: Any
    is_async: bool


def read_signature(job_type: str, handler: Handler) -> Signature:
    """Reads what a handler asks for.

    Raises:
        ConfigError: It cannot be called with a job, a body, or both.
    """
    if not callable(handler):
        raise ConfigError(f"the handler for {job_type!r} must be a function, not {type(handler).__name__}")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise _wrong(job_type, handler, "is a generator, whose code would never run; use return instead of yield")
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except (TypeError, ValueError):
        # Some callables written in C have no signature to read.
        return Signature([True], None, Any, False)
    takes = [_classify(job_type, handler, parameter) for parameter in _positional(job_type, handler, parameters)]
    if [want for want, _ in takes].count(True) > 1:
        raise _wrong(job_type, handler, "takes the job twice")
    if [want for want, _ in takes].count(False) > 1:
        raise _wrong(job_type, handler, "takes two bodies, and a job has one; use one dataclass with all fields")
    bodies = [to for want, to in takes if not want and to is not Any]
    decoder = None
    if bodies:
        # Only programs with typed bodies need it.
        from dejq import _typed

        decoder = _typed.decoder(job_type, bodies[0])
    return Signature([want for want, _ in takes], decoder, bodies[0] if bodies else Any, _is_async(handler))


def _positional(
    job_type: str, handler: Handler, parameters: list[inspect.Parameter]
) -> list[tuple[inspect.Parameter, int, int]]:
    """The parameters to pass, each with its place and their number."""
    needed = [parameter for parameter in parameters if parameter.default is parameter.empty]
    keyword_only = [parameter.name for parameter in needed if parameter.kind is parameter.KEYWORD_ONLY]
    if keyword_only:
        raise _wrong(
            job_type,
            handler,
            f"needs the keyword {keyword_only[0]!r}, which nobody passes; give it a default",
        )
    passed = [
        parameter
        for parameter in needed
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if not passed:
        passed = [parameter for parameter in parameters if parameter.kind is parameter.VAR_POSITIONAL]
    if not 1 <= len(passed) <= 2:
        raise _wrong(job_type, handler, f"needs {len(passed)} arguments")
    return [(parameter, place, len(passed)) for place, parameter in enumerate(passed)]


def _classify(job_type: str, handler: Handler, passed: tuple[inspect.Parameter, int, int]) -> tuple[bool, Any]:
    """Job (true) or body (false), and the body's type."""
    parameter, place, count = passed
    annotation = _annotation(job_type, handler, parameter)
    if annotation is Job:
        return True, None
    if annotation is not parameter.empty:
        return False, annotation
    if parameter.name == "body":
        return False, Any
    # Without annotations: (job), or (job, body).
    is_job = parameter.name == "job" or place < count - 1 or count == 1
    return is_job, Any


def _annotation(job_type: str, handler: Handler, parameter: inspect.Parameter) -> Any:
    function: Any = inspect.unwrap(_without_partial(handler))
    if inspect.isclass(function):
        function = function.__init__
    elif not inspect.isroutine(function):
        function = type(function).__call__
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # whatever the evaluation of an annotation raises
        raise _wrong(
            job_type,
            handler,
            f"has an annotation that cannot be resolved ({error}); import it at module level",
        ) from error
    return hints.get(parameter.name, parameter.empty)


def _without_partial(handler: Any) -> Any:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler


def _is_async(handler: Handler) -> bool:
    called = _without_partial(handler)
    return inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(type(called).__call__)


def _wrong(job_type: str, handler: Any, why: str) -> ConfigError:
    name = getattr(handler, "__qualname__", type(handler).__name__)
    code = getattr(inspect.unwrap(handler), "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return ConfigError(
        f"the handler {name}{where} for {job_type!r} {why}; a handler takes (job: Job), (body: YourType) or "
        "(job: Job, body: YourType)"
    )
