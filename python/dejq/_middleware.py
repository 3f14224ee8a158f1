"""Code around each handler call and each enqueue: context managers, nested in the order they were registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeAlias

from dejq._native import Job, PendingJob
from dejq.errors import ConfigError
from dejq.handlers import Handler, Signature

Middleware: TypeAlias = Callable[[Job], AbstractContextManager[object] | AbstractAsyncContextManager[object]]
"""Makes the context manager in which a job runs; see `Client.middleware`."""

EnqueueMiddleware: TypeAlias = Callable[[Sequence[PendingJob[Any]]], AbstractContextManager[Mapping[str, str] | None]]
"""Makes the context manager in which jobs are enqueued; see `Client.enqueue_middleware`."""

_Chains: TypeAlias = Iterable[PendingJob[Any] | Sequence[PendingJob[Any]]]


def check(middleware: Any, takes: str) -> None:
    """Refuses what is known not to make context managers.

    Raises:
        ConfigError: It is no function, or a generator or coroutine function without a decorator of `contextlib`.
    """
    if not callable(middleware):
        raise ConfigError(f"middleware must be a function, not {type(middleware).__name__}; {_form(takes)}")
    for is_kind, kind, decorator in (
        (inspect.isgeneratorfunction, "a generator function", "contextmanager"),
        (inspect.isasyncgenfunction, "an async generator function", "asynccontextmanager"),
    ):
        if is_kind(middleware):
            raise ConfigError(f"the middleware {_name(middleware)} is {kind}; put @contextlib.{decorator} above it")
    if inspect.iscoroutinefunction(middleware):
        raise ConfigError(f"the middleware {_name(middleware)} is a coroutine function; {_form(takes)}")


def check_fits(middleware: Middleware, job_type: str, signature: Signature) -> None:
    """Refuses a middleware that only a coroutine could enter, around a plain handler.

    Raises:
        ConfigError: It is one.
    """
    # Made by `contextlib.asynccontextmanager`; of others it shows only when they are called.
    if not signature.is_async and inspect.isasyncgenfunction(inspect.unwrap(middleware)):
        raise _must_be_awaited(middleware, job_type)


def enclose(handler: Handler, signature: Signature, middleware: Sequence[Middleware]) -> Callable[[Job], object]:
    """A handler that takes the job alone and runs within the middleware, the first one outermost."""
    call = _taking_the_job(handler, signature)
    for one in reversed(middleware):
        call = _around_coroutine(call, one) if signature.is_async else _around(call, one)
    return call


def _taking_the_job(handler: Handler, signature: Signature) -> Callable[[Job], Any]:
    """The body is decoded in here, where the middleware sees that it does not fit."""
    wants, to = signature.wants, signature.body_type
    if wants == [True]:
        return handler

    def body(job: Job) -> Any:
        return job.body if to is Any else job.decode(to)

    if wants == [False]:
        return lambda job: handler(body(job))
    if wants == [True, False]:
        return lambda job: handler(job, body(job))
    return lambda job: handler(body(job), job)


def _around(call: Callable[[Job], object], middleware: Middleware) -> Callable[[Job], object]:
    def enclosed(job: Job) -> object:
        context: Any = middleware(job)
        if not hasattr(context, "__enter__"):
            raise _cannot_enter(middleware, context, job.type)
        with context:
            return call(job)

    return enclosed


def _around_coroutine(call: Callable[[Job], Any], middleware: Middleware) -> Callable[[Job], object]:
    async def enclosed(job: Job) -> object:
        context: Any = middleware(job)
        if hasattr(context, "__aenter__"):
            async with context:
                return await call(job)
        if not hasattr(context, "__enter__"):
            raise _cannot_enter(middleware, context, job.type)
        with context:
            return await call(job)

    return enclosed


@contextmanager
def sending(middleware: Sequence[EnqueueMiddleware], chains: _Chains) -> Iterator[Any]:
    """Enters the middleware of an enqueue; yields the chains with the headers that it adds.

    The jobs of one chain are given as they are, those of several as in `Client.enqueue_many`.
    """
    chains = [
        [*chain] if isinstance(chain, Iterable) and not isinstance(chain, PendingJob) else chain for chain in chains
    ]
    refused: BaseException | None = None
    with ExitStack() as stack:
        for one in middleware:
            jobs = _flat(chains)
            if not all(isinstance(job, PendingJob) for job in jobs):
                break  # the engine says better what is wrong with them
            if headers := stack.enter_context(one(jobs)):
                chains = [
                    _with(chain, headers) if isinstance(chain, PendingJob) else [_with(job, headers) for job in chain]
                    for chain in chains
                ]
        try:
            yield tuple(chains)
        except BaseException as error:
            refused = error
            raise
    if refused is not None:
        # Swallowed on its way out; without ids to return, the caller would believe that the jobs are stored.
        raise refused


def _flat(chains: Sequence[Any]) -> list[PendingJob[Any]]:
    return [job for chain in chains for job in (chain if isinstance(chain, list) else [chain])]


def _with(job: PendingJob[Any], headers: Mapping[str, str]) -> PendingJob[Any]:
    """The job with more headers; its own ones stay as they are."""
    return PendingJob(
        job.type,
        job.body,
        delay=job.delay,
        max_attempts=job.max_attempts,
        unique=job.unique,
        headers={**headers, **job.headers},
    )


def _cannot_enter(middleware: Middleware, made: object, job_type: str) -> ConfigError:
    if hasattr(made, "__aenter__"):
        return _must_be_awaited(middleware, job_type)
    return ConfigError(f"the middleware {_name(middleware)} made a {type(made).__name__}; {_form('the job')}")


def _must_be_awaited(middleware: Middleware, job_type: str) -> ConfigError:
    return ConfigError(
        f"the middleware {_name(middleware)} has to be awaited, which the handler of {job_type!r}, a plain function, "
        "cannot do; make it a @contextlib.contextmanager, which serves def and async def, or a class that has "
        "__enter__ and __aenter__"
    )


def _form(takes: str) -> str:
    return f"write a function that takes {takes}, with @contextlib.contextmanager above it"


def _name(middleware: Any) -> str:
    return str(getattr(middleware, "__qualname__", type(middleware).__name__))
