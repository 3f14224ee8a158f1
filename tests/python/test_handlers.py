"""Handlers: how they are called, what they may raise and do, and that the worker lives on; also chains.

A ``type: ignore`` or ``noqa`` here marks a handler that is unannotated, or wrong, on purpose.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import contextvars
import functools
import sys
import threading
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict

import pytest

import dejq
from dejq import Backoff, Client, ConfigError, Discard, Job, PendingJob, Retry, testing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nowhere import Missing  # type: ignore[import-not-found]

    from python.conftest import Ended, NewClient, RunAll, Until

seen: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


def note(*what: object) -> None:
    """Called by handlers, with what they got."""
    seen.append(what)


class Person(TypedDict):
    name: str


BODY = {"name": "Ada"}

# ---- what a handler may look like ------------------------------------------------------------------------


def takes_job(job: Job) -> None:
    note(job.body)


def takes_body(body: Person) -> None:
    note(body)


def takes_body_by_another_name(person: Person) -> None:
    note(person)


def takes_job_and_body(job: Job, body: Person) -> None:
    note(job.type, body)


def takes_body_and_job(body: Person, job: Job) -> None:
    note(job.type, body)


def takes_job_by_another_name(j: Job, b: dict[str, str]) -> None:
    note(j.type, b)


def takes_any_body(body: Any) -> None:
    note(body)


def takes_job_in_quotes(it: "dejq.Job") -> None:  # noqa: UP037
    note(it.body)


def takes_positional_only(job: Job, body: Person, /) -> None:
    note(job.type, body)


def takes_defaults(job: Job, times: int = 3, *, loud: bool = False) -> None:
    note(job.body, times, loud)


def takes_whatever(*args):  # type: ignore[no-untyped-def]
    note(*(argument.body for argument in args))


def takes_whatever_by_name(job: Job, **options: Any) -> None:
    note(job.body, options)


def plain_job(job):  # type: ignore[no-untyped-def]
    note(job.body)


def plain_body(body):  # type: ignore[no-untyped-def]
    note(body)


def plain_other_name(it):  # type: ignore[no-untyped-def]
    note(it.body)


def plain_job_and_body(job, body):  # type: ignore[no-untyped-def]
    note(job.type, body)


def plain_body_and_job(body, job):  # type: ignore[no-untyped-def]
    note(job.type, body)


def plain_two_other_names(it, data):  # type: ignore[no-untyped-def]
    note(it.type, data)


class Service:
    def method(self, job: Job) -> None:
        note(job.body)

    async def async_method(self, body: Person) -> None:
        note(body)

    @classmethod
    def class_method(cls, job: Job) -> None:
        note(job.body)

    @staticmethod
    def static_method(body: Person) -> None:
        note(body)


class CallableObject:
    def __call__(self, job: Job, body: Person) -> None:
        note(job.type, body)


class AsyncCallableObject:
    async def __call__(self, body: Person) -> None:
        await asyncio.sleep(0)
        note(body)


class Made:
    def __init__(self, body: Person) -> None:
        note(body)


def with_context(prefix: str, job: Job) -> None:
    note(prefix, job.body)


async def async_with_context(prefix: str, body: Person) -> None:
    note(prefix, body)


def logged(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> None:
        function(*args)

    return wrapper


@logged
def wrapped(job: Job, body: Person) -> None:
    note(job.type, body)


async def async_takes_job(job: Job) -> None:
    await asyncio.sleep(0)
    note(job.body)


async def async_takes_job_and_body(job: Job, body: Person) -> None:
    note(job.type, body)


GOOD: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
    "(job: Job)": (takes_job, (BODY,)),
    "(body: T)": (takes_body, (BODY,)),
    "(person: T)": (takes_body_by_another_name, (BODY,)),
    "(job: Job, body: T)": (takes_job_and_body, ("t", BODY)),
    "(body: T, job: Job)": (takes_body_and_job, ("t", BODY)),
    "(j: Job, b: dict)": (takes_job_by_another_name, ("t", BODY)),
    "(body: Any)": (takes_any_body, (BODY,)),
    "(it: 'dejq.Job')": (takes_job_in_quotes, (BODY,)),
    "(job: Job, body: T, /)": (takes_positional_only, ("t", BODY)),
    "(job: Job, times=3, *, loud=False)": (takes_defaults, (BODY, 3, False)),
    "(*args)": (takes_whatever, (BODY,)),
    "(job: Job, **options)": (takes_whatever_by_name, (BODY, {})),
    "(job)": (plain_job, (BODY,)),
    "(body)": (plain_body, (BODY,)),
    "(it)": (plain_other_name, (BODY,)),
    "(job, body)": (plain_job_and_body, ("t", BODY)),
    "(body, job)": (plain_body_and_job, ("t", BODY)),
    "(it, data)": (plain_two_other_names, ("t", BODY)),
    "a lambda": (lambda job: note(job.body), (BODY,)),
    "a method": (Service().method, (BODY,)),
    "a class method": (Service.class_method, (BODY,)),
    "a static method": (Service.static_method, (BODY,)),
    "an async method": (Service().async_method, (BODY,)),
    "a callable object": (CallableObject(), ("t", BODY)),
    "an async callable object": (AsyncCallableObject(), (BODY,)),
    "a class": (Made, (BODY,)),
    "a partial": (functools.partial(with_context, "p"), ("p", BODY)),
    "a partial of a partial": (functools.partial(functools.partial(with_context), "p"), ("p", BODY)),
    "an async partial": (functools.partial(async_with_context, "p"), ("p", BODY)),
    "a partial of a method": (functools.partial(Service().method), (BODY,)),
    "a partial of a callable object": (functools.partial(CallableObject()), ("t", BODY)),
    "a partial of an async callable object": (functools.partial(AsyncCallableObject()), (BODY,)),
    "a wrapped function": (wrapped, ("t", BODY)),
    "async (job: Job)": (async_takes_job, (BODY,)),
    "async (job: Job, body: T)": (async_takes_job_and_body, ("t", BODY)),
}


@pytest.mark.parametrize(("handler", "expected"), GOOD.values(), ids=GOOD)
def test_a_handler_gets_what_it_asks_for(
    handler: Callable[..., object], expected: tuple[object, ...], client: Client, run_all: RunAll
) -> None:
    client.register_handler("t", handler)
    (id,) = client.enqueue(PendingJob("t", BODY))
    run_all(client)
    assert client.get_job(id).error is None
    assert seen == [expected]


def test_a_builtin_gets_the_job(client: Client, run_all: RunAll) -> None:
    jobs: list[Job] = []
    client.register_handler("t", jobs.append)
    (id,) = client.enqueue(PendingJob("t"))
    run_all(client)
    assert [job.id for job in jobs] == [id]


def test_a_builtin_whose_signature_cannot_be_read_gets_the_job(client: Client) -> None:
    client.register_handler("t", type)
    (id,) = client.enqueue(PendingJob("t"))
    testing.drain(client)
    assert client.get_job(id).state == "finished"


# ---- what it may not look like ---------------------------------------------------------------------------


def needs_nothing() -> None:
    pass


def has_only_defaults(job: Job | None = None) -> None:
    pass


def needs_three(a: Job, b: Person, c: int) -> None:
    pass


def needs_a_keyword(job: Job, *, loud: bool) -> None:
    pass


def takes_two_bodies(a: Person, b: int) -> None:
    pass


def takes_two_jobs(a: Job, b: Job) -> None:
    pass


def is_a_generator(job: Job) -> Iterator[int]:
    yield 1


async def is_an_async_generator(job: Job) -> AsyncIterator[int]:
    yield 1


def has_an_unresolvable_annotation(body: Missing) -> None:
    pass


def has_an_annotation_of_type_checking_only(body: Sequence[int]) -> None:
    pass


def has_a_misspelt_annotation(job: dejq.Jobb) -> None:  # type: ignore[name-defined]
    pass


def has_a_senseless_annotation(job: "not an expression") -> None:  # type: ignore[valid-type]  # noqa: F722
    pass


def takes_what_no_body_can_be(body: bytes) -> None:
    pass


class NotCallable:
    pass


BAD: dict[str, tuple[Any, str]] = {
    "nothing": (
        needs_nothing,
        "needs 0 arguments; a handler takes (job: Job), (body: YourType) or (job: Job, body: Y",
    ),
    "only defaults": (has_only_defaults, "needs 0 arguments"),
    "only keywords": (lambda **options: None, "needs 0 arguments"),
    "three arguments": (needs_three, "needs 3 arguments"),
    "a keyword": (needs_a_keyword, "needs the keyword 'loud', which nobody passes; give it a default"),
    "two bodies": (
        takes_two_bodies,
        "takes two bodies, and a job has one; use one dataclass with all fields",
    ),
    "two jobs": (takes_two_jobs, "takes the job twice"),
    "a generator": (
        is_a_generator,
        "is a generator, whose code would never run; use return instead of yield",
    ),
    "an async generator": (is_an_async_generator, "is a generator, whose code would never run"),
    "an unknown name": (
        has_an_unresolvable_annotation,
        "has an annotation that cannot be resolved (name 'Missing' is not defined); import it at module",
    ),
    "a name for type checkers only": (
        has_an_annotation_of_type_checking_only,
        "name 'Sequence' is not defined",
    ),
    "a misspelt name": (has_a_misspelt_annotation, "module 'dejq' has no attribute 'Jobb'"),
    "no expression": (has_a_senseless_annotation, "has an annotation that cannot be resolved"),
    "an unsupported type": (takes_what_no_body_can_be, "cannot decode a body to bytes"),
    "no callable": (NotCallable(), "the handler for 't' must be a function, not NotCallable"),
    "a string": ("handler", "must be a function, not str"),
    "none": (None, "must be a function, not NoneType"),
    "an awaitable": (asyncio.Event(), "must be a function, not Event"),
}


@pytest.mark.parametrize(("handler", "text"), BAD.values(), ids=BAD)
def test_a_handler_that_cannot_be_called_is_refused_when_it_is_registered(
    handler: Any, text: str, client: Client
) -> None:
    with pytest.raises(ConfigError) as caught:
        client.register_handler("t", handler)
    assert caught.value.code == "DEJQ-E100"
    assert text in str(caught.value)
    assert client.types == []


def test_a_refusal_names_the_handler_and_where_it_is_written(client: Client) -> None:
    with pytest.raises(ConfigError) as caught:
        client.register_handler("t", needs_nothing)
    line = needs_nothing.__code__.co_firstlineno
    assert f"the handler needs_nothing ({__file__}:{line}) for 't' needs 0 arguments" in str(caught.value)


def test_a_second_handler_of_a_type_is_refused_with_a_way_out(client: Client) -> None:
    client.register_handler("t", takes_job)
    with pytest.raises(ConfigError) as caught:
        client.register_handler("t", takes_body)
    assert 'job type "t" has a handler already; a type names exactly one handler' in str(caught.value)
    assert '"t:v2"' in str(caught.value)
    client.enqueue(PendingJob("t", BODY))
    testing.drain(client)
    assert seen == [(BODY,)]


def test_one_function_may_handle_several_types(client: Client) -> None:
    client.register_handler("a", takes_job_and_body)
    client.register_handler("b", takes_job_and_body)
    client.enqueue(PendingJob("a", BODY), PendingJob("b", BODY))
    testing.drain(client)
    assert seen == [("a", BODY), ("b", BODY)]
    assert client.types == ["a", "b"]


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no attempts": ({"max_attempts": 0}, "max_attempts=0 must be a whole number from 1 to 4294967295"),
    "far too many attempts": ({"max_attempts": 2**70}, "must be a whole number from 1 to 4294967295"),
    "a negative timeout": (
        {"timeout": -1},
        "timeout=-1 must be seconds (a number) or a timedelta, neither negative",
    ),
    "an endless timeout": ({"timeout": float("inf")}, "timeout=inf must be seconds"),
    "a timeout beyond all clocks": ({"timeout": 1e300}, "timeout=1e+300 must be seconds"),
    "no time at all": ({"timeout": 0}, "timeout=0 would fail every attempt; leave it out to have no limit"),
    "a timeout as a word": ({"timeout": "1"}, "timeout='1' must be seconds"),
}


@pytest.mark.parametrize(("options", "text"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_of_a_handler_are_refused(options: dict[str, Any], text: str, client: Client) -> None:
    with pytest.raises(ConfigError) as caught:
        client.register_handler("t", takes_job, **options)
    assert text in str(caught.value)
    assert client.types == []


@pytest.mark.parametrize("type", ["", "a b", "x" * 129, "ä"], ids=["empty", "space", "long", "umlaut"])
def test_a_bad_type_of_a_handler_is_refused(type: str, client: Client) -> None:
    with pytest.raises(ConfigError, match="a type names its handler and travels through stores"):
        client.register_handler(type, takes_job)


# ---- the decorator ---------------------------------------------------------------------------------------


def test_a_decorated_function_stays_callable_and_makes_jobs(client: Client) -> None:
    @client.handler("greet", max_attempts=2)
    def greet(body: Person) -> str:
        """Greets."""
        return f"hello {body['name']}"

    assert greet(Person(name="Ada")) == "hello Ada"
    assert (greet.__doc__, getattr(greet, "__name__", "")) == ("Greets.", "greet")
    job = greet.job(BODY, delay=5, max_attempts=7, unique="k", headers={"a": "b"})
    assert isinstance(job, PendingJob)
    assert (job.type, job.body, job.delay, job.max_attempts) == ("greet", BODY, timedelta(seconds=5), 7)
    assert (job.unique, job.headers) == ("k", {"a": "b"})
    assert greet.job().body is None


def test_a_decorated_coroutine_function_stays_one(client: Client, run_all: RunAll) -> None:
    @client.handler("t")
    async def handler(body: Person) -> str:
        note(body)
        return "result"

    assert asyncio.run(handler(Person(name="Bob"))) == "result"
    client.enqueue(handler.job(BODY))
    run_all(client)
    assert seen == [({"name": "Bob"},), (BODY,)]


def test_a_bad_option_of_job_is_a_type_error(client: Client) -> None:
    handled: Any = client.handler("t")(takes_job_and_body)
    with pytest.raises(TypeError):
        handled.job(BODY, dealy=5)


@pytest.mark.parametrize("function", [[].append, Service().method], ids=["builtin", "method"])
def test_what_takes_no_attributes_cannot_be_decorated(function: Any, client: Client) -> None:
    with pytest.raises(ConfigError) as caught:
        client.handler("t")(function)
    assert "takes no attributes; use client.register_handler(type, function) and PendingJob" in str(caught.value)
    assert client.types == []


# ---- results ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [None, 0, False, "text", NotImplemented, object(), [1]], ids=repr)
def test_a_result_is_ignored(result: object, client: Client, run_all: RunAll) -> None:
    async def async_handler(job: Job) -> object:
        return result

    client.register_handler("sync", lambda job: result)
    client.register_handler("async", async_handler)
    ids = client.enqueue(PendingJob("sync"), PendingJob("async"))
    run_all(client)
    assert [client.get_job(id).state for id in ids] == ["finished", "finished"]


class OwnAwaitable:
    def __await__(self) -> Iterator[None]:
        yield


AWAITABLES: dict[str, Callable[[Job], object]] = {
    "a coroutine": lambda job: async_takes_job(job),
    "an awaitable": lambda job: OwnAwaitable(),
}


@pytest.mark.parametrize("handler", AWAITABLES.values(), ids=AWAITABLES)
def test_a_plain_handler_that_returns_an_awaitable_fails_with_what_to_do(
    handler: Callable[[Job], object], client: Client, run_all: RunAll
) -> None:
    client.register_handler("t", handler)
    (id,) = client.enqueue(PendingJob("t"))
    run_all(client)
    info = client.get_job(id)
    assert info.state == "failed"
    assert info.error == (
        "TypeError: the handler returned an awaitable, which a plain handler must not; "
        "register the async def function itself"
    )
    assert seen == []


# ---- what a handler may raise ----------------------------------------------------------------------------


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class EndsTheProgramError(Exception):
    def __str__(self) -> str:
        raise SystemExit(5)


class TextIsNoTextError(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class OwnBaseError(BaseException):
    pass


def recurse(number: int) -> int:
    return recurse(number + 1) + 1


def raise_with_notes() -> NoReturn:
    error = ValueError("first")
    if sys.version_info >= (3, 11):
        error.add_note("a note")
    else:
        error.args = ("first, and a note",)
    raise error


def raise_with_cause() -> NoReturn:
    try:
        raise KeyError("the cause")
    except KeyError as error:
        raise ValueError("the effect") from error


def raise_this(error: BaseException) -> Callable[[], NoReturn]:
    def raises() -> NoReturn:
        raise error

    return raises


def raise_group() -> NoReturn:
    group: Any = getattr(builtins, "BaseExceptionGroup", None)
    if group is None:
        raise ValueError("two at once: ValueError: one, SystemExit: other")
    raise group("two at once", [ValueError("one"), SystemExit("other")])


# The exception, then what the error begins with, and what the traceback contains.
RAISED: dict[str, tuple[Callable[[], object], str, str]] = {
    "an exception": (lambda: 1 // 0, "ZeroDivisionError: ", "1 // 0"),
    "an exception without a text": (raise_this(ValueError()), "ValueError", "ValueError"),
    "SystemExit": (lambda: sys.exit(3), "SystemExit: 3", "SystemExit: 3"),
    "KeyboardInterrupt": (raise_this(KeyboardInterrupt()), "KeyboardInterrupt", "KeyboardInterrupt"),
    "GeneratorExit": (raise_this(GeneratorExit()), "GeneratorExit", "GeneratorExit"),
    "CancelledError": (
        raise_this(asyncio.CancelledError()),
        "asyncio.exceptions.CancelledError",
        "CancelledError",
    ),
    "StopIteration": (raise_this(StopIteration(5)), "", "StopIteration"),
    "a BaseException of one's own": (
        raise_this(OwnBaseError("own")),
        f"{__name__}.OwnBaseError: own",
        "OwnBaseError",
    ),
    "endless recursion": (
        lambda: recurse(0),
        "RecursionError: maximum recursion depth",
        "recurse(number + 1)",
    ),
    "an exception whose text raises": (
        raise_this(UnprintableError()),
        f"{__name__}.UnprintableError: (its text could not be read)",
        "raise error",
    ),
    "an exception whose text ends the program": (
        raise_this(EndsTheProgramError()),
        f"{__name__}.EndsTheProgramError: (its text could not be read)",
        "",
    ),
    "an exception whose text is none": (
        raise_this(TextIsNoTextError()),
        f"{__name__}.TextIsNoTextError: (its text could not be read)",
        "raise error",
    ),
    "an exception with a lone surrogate": (
        raise_this(ValueError("\udc80")),
        "ValueError: \\udc80",
        "\\udc80",
    ),
    "an exception with a nul": (raise_this(ValueError("a\0b")), "ValueError: a\0b", "a\0b"),
    "an exception with notes": (raise_with_notes, "ValueError: first", "a note"),
    "an exception with a cause": (raise_with_cause, "ValueError: the effect", "KeyError: 'the cause'"),
    "a group of exceptions": (raise_group, "", "SystemExit: other"),
    "an exception group's members": (raise_group, "", "ValueError: one"),
    "an exception of dejq": (
        raise_this(dejq.WrongState("own text")),
        "dejq.errors.WrongState: DEJQ-E121 own",
        "own text",
    ),
}


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("raises", "error", "trace"), RAISED.values(), ids=RAISED)
def test_whatever_a_handler_raises_fails_the_attempt_and_the_next_job_runs(
    raises: Callable[[], object],
    error: str,
    trace: str,
    is_async: bool,
    new_client: NewClient,
    run_all: RunAll,
) -> None:
    def sync_handler(job: Job) -> None:
        raises()

    async def async_handler(job: Job) -> None:
        await asyncio.sleep(0)
        raises()

    async def async_takes(job: Job) -> None:
        note(job.body)

    client = new_client(workers=1, async_workers=1)
    client.register_handler("bad", async_handler if is_async else sync_handler)
    client.register_handler("good", async_takes if is_async else takes_job)
    (bad,) = client.enqueue(PendingJob("bad"))
    (good,) = client.enqueue(PendingJob("good", 1))
    run_all(client)
    info = client.get_job(bad)
    assert info.state == "failed"
    assert info.error is not None
    assert info.error.startswith(error)
    assert info.traceback is not None
    assert trace in info.traceback
    assert client.get_job(good).state == "finished"
    assert seen == [(1,)]


def test_an_exception_of_a_megabyte_is_cut_in_the_middle(client: Client, run_all: RunAll) -> None:
    client.register_handler("t", lambda job: raise_this(ValueError("begin " + "x" * 1_000_000 + " end"))())
    (id,) = client.enqueue(PendingJob("t"))
    run_all(client)
    info = client.get_job(id)
    assert info.error is not None
    assert info.error.startswith("ValueError: begin xxx")
    assert info.error.endswith("xxx end")
    assert "characters cut" in info.error
    assert len(info.error) < 5_000
    assert info.traceback is not None
    assert len(info.traceback) < 70_000


def test_the_traceback_shows_the_handlers_own_line(client: Client, run_all: RunAll) -> None:
    def handler(job: Job) -> None:
        raise LookupError("here")  # this very line

    client.register_handler("t", handler)
    (id,) = client.enqueue(PendingJob("t"))
    run_all(client)
    trace = client.get_job(id).traceback
    assert trace is not None
    assert trace.startswith("Traceback (most recent call last):\n")
    assert f'File "{__file__}", line ' in trace
    assert "# this very line" in trace


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), OwnBaseError("x")], ids=lambda e: type(e).__name__
)
def test_a_task_of_an_async_handler_may_raise_what_would_end_a_loop(
    error: BaseException, new_client: NewClient, ended: Ended
) -> None:
    """asyncio lets SystemExit and KeyboardInterrupt of any task out of the loop; the worker's must go on."""

    async def child() -> None:
        raise error

    async def handler(job: Job) -> None:
        if job.body:
            await asyncio.gather(asyncio.create_task(child()))

    client = new_client(async_workers=1)
    client.register_handler("t", handler)
    bad, good = client.enqueue_many([PendingJob("t", True), PendingJob("t", False)])
    client.dequeue_loop()
    assert ended(client, bad).state == "failed"
    assert ended(client, good).state == "finished"


def test_a_thousand_handlers_that_raise_anything_leave_the_worker_whole(new_client: NewClient, work: RunAll) -> None:
    errors = [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, OwnBaseError]

    def handler(job: Job) -> None:
        raise errors[job.body % len(errors)](job.body)

    async def async_handler(job: Job) -> None:
        handler(job)

    client = new_client(workers=2)
    client.register_handler("sync", handler)
    client.register_handler("async", async_handler)
    client.register_handler("good", takes_job)
    client.enqueue_many([PendingJob(("sync", "async")[number % 2], number) for number in range(1000)])
    client.enqueue(PendingJob("good", 1))
    work(client)
    assert client.stats().failed == 1000
    assert seen == [(1,)]


def test_a_result_whose_attributes_raise_is_ignored(client: Client, run_all: RunAll) -> None:
    class Hostile:
        def __getattr__(self, name: str) -> NoReturn:
            raise SystemExit(name)

    client.register_handler("t", lambda job: Hostile())
    (id,) = client.enqueue(PendingJob("t"))
    run_all(client)
    assert client.get_job(id).state == "finished"


# ---- retries ---------------------------------------------------------------------------------------------

AT_ONCE = Backoff(0, jitter=0)


def fail(job: Job) -> None:
    note(job.attempt)
    raise OSError("not yet")


@pytest.mark.parametrize(
    ("of_job", "of_handler", "of_client", "attempts"),
    [
        (None, None, None, 1),
        (None, None, 2, 2),
        (None, 3, 2, 3),
        (None, 1, 2, 1),
        (4, 3, 2, 4),
        (1, 3, 2, 1),
        (4, None, None, 4),
    ],
)
def test_the_limit_of_attempts_is_the_jobs_then_the_handlers_then_the_clients(
    of_job: int | None,
    of_handler: int | None,
    of_client: int | None,
    attempts: int,
    new_client: NewClient,
    run_all: RunAll,
) -> None:
    client = new_client(max_attempts=of_client, backoff=AT_ONCE)
    client.register_handler("t", fail, max_attempts=of_handler)
    (id,) = client.enqueue(PendingJob("t", max_attempts=of_job))
    run_all(client)
    assert seen == [(number,) for number in range(1, attempts + 1)]
    info = client.get_job(id)
    assert (info.state, info.attempt, info.max_attempts) == ("failed", attempts, of_job)
    assert info.error == "OSError: not yet"


def test_a_job_that_ends_well_after_a_retry_is_finished(client: Client, run_all: RunAll) -> None:
    def handler(job: Job) -> None:
        note(job.attempt, job.id)
        if job.attempt < 3:
            raise OSError

    client.register_handler("t", handler, max_attempts=5, backoff=AT_ONCE)
    (id,) = client.enqueue(PendingJob("t"))
    run_all(client)
    assert seen == [(1, id), (2, id), (3, id)]
    assert client.get_job(id).state == "finished"


def due_in(client: Client, id: str) -> float:
    """Seconds that a scheduled job waits, from the start of its last attempt, which was short."""
    info = client.get_job(id)
    assert info.state == "scheduled"
    assert info.due_at is not None
    assert info.started_at is not None
    return (info.due_at - info.started_at).total_seconds()


@pytest.mark.parametrize(
    ("of_handler", "of_client", "seconds"),
    [
        (None, None, (0.8, 1.2)),
        (None, Backoff(100, jitter=0), (100, 100)),
        (Backoff(500, jitter=0), Backoff(100, jitter=0), (500, 500)),
        (Backoff(1000, maximum=300, jitter=0), None, (300, 300)),
        (Backoff(1000, jitter=0.5), None, (500, 1500)),
    ],
    ids=["default", "client", "handler", "maximum", "jitter"],
)
def test_the_wait_is_by_the_handlers_backoff_then_the_clients(
    of_handler: Backoff | None, of_client: Backoff | None, seconds: tuple[float, float], new_client: NewClient
) -> None:
    client = new_client(max_attempts=9, backoff=of_client)
    client.register_handler("t", fail, backoff=of_handler)
    (id,) = client.enqueue(PendingJob("t"))
    testing.drain(client)
    least, most = seconds
    assert least <= due_in(client, id) <= most + 20


def test_the_waits_grow_by_the_factor(client: Client, ended: Ended) -> None:
    starts: list[float] = []

    def handler(job: Job) -> None:
        starts.append(time.monotonic())
        raise OSError

    client.register_handler("t", handler, max_attempts=4, backoff=Backoff(0.01, factor=3, jitter=0))
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    ended(client, id)
    waits = [after - before for before, after in pairwise(starts)]
    assert all(wait >= least for wait, least in zip(waits, (0.01, 0.03, 0.09), strict=True))


@pytest.mark.parametrize(
    ("after", "seconds"), [(1000, 1000), (timedelta(hours=1), 3600), (0.5, 0.5), (None, 77)], ids=str
)
def test_retry_waits_as_long_as_it_asks_for_or_by_the_backoff(
    after: float | timedelta | None, seconds: float, client: Client
) -> None:
    def handler(job: Job) -> None:
        raise Retry(after, "because")

    client.register_handler("t", handler, backoff=Backoff(77, jitter=0))
    (id,) = client.enqueue(PendingJob("t"))
    testing.drain(client)
    assert seconds <= due_in(client, id) <= seconds + 20
    assert client.get_job(id).error == "dejq.errors.Retry: because"


@pytest.mark.parametrize(
    "after", [-1, float("nan"), "soon", 1e300, object()], ids=["negative", "nan", "word", "huge", "object"]
)
def test_retry_after_a_time_that_is_none_waits_by_the_backoff(after: Any, client: Client) -> None:
    client.register_handler("t", lambda job: raise_this(Retry(after))(), backoff=Backoff(77, jitter=0))
    (id,) = client.enqueue(PendingJob("t"))
    testing.drain(client)
    assert 77 <= due_in(client, id) <= 97


def test_retry_is_granted_by_the_default_limit_and_a_limit_that_was_set_holds(client: Client, run_all: RunAll) -> None:
    def handler(job: Job) -> None:
        note(job.type, job.attempt)
        if job.type == "limited" or job.attempt < 4:
            raise Retry(0)

    client.register_handler("unlimited", handler)
    client.register_handler("limited", handler, max_attempts=2)
    unlimited, limited = client.enqueue(PendingJob("unlimited"), PendingJob("limited"))
    run_all(client)
    assert client.get_job(unlimited).state == "finished"
    assert client.get_job(limited).state == "failed"
    assert seen == [
        ("unlimited", 1),
        ("unlimited", 2),
        ("unlimited", 3),
        ("unlimited", 4),
        ("limited", 1),
        ("limited", 2),
    ]


def test_discard_fails_at_once_whatever_attempts_are_left(client: Client, run_all: RunAll) -> None:
    def handler(job: Job) -> None:
        note(job.attempt)
        raise Discard("no use")

    client.register_handler("t", handler, max_attempts=9, backoff=AT_ONCE)
    (id,) = client.enqueue(PendingJob("t"))
    run_all(client)
    assert seen == [(1,)]
    info = client.get_job(id)
    assert (info.state, info.error) == ("failed", "dejq.errors.Discard: no use")


def test_subclasses_of_retry_and_discard_count_as_such(client: Client, run_all: RunAll) -> None:
    class Later(Retry):
        pass

    class Never(Discard):
        pass

    def handler(job: Job) -> None:
        note(job.attempt)
        raise Later(0) if job.attempt == 1 else Never

    client.register_handler("t", handler, max_attempts=9)
    client.enqueue(PendingJob("t"))
    run_all(client)
    assert seen == [(1,), (2,)]


# ---- time limits and cancelling --------------------------------------------------------------------------


def test_a_timeout_cancels_a_coroutine_and_fails_the_attempt(client: Client, ended: Ended) -> None:
    async def handler(job: Job) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            note("cancelled", job.cancelled)
            raise

    client.register_handler("t", handler, timeout=0.02)
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    info = ended(client, id)
    assert info.state == "failed"
    assert info.error == "timeout: ran for longer than its timeout of 20ms"
    assert seen == [("cancelled", True)]


def test_a_timeout_is_seen_by_a_plain_handler_and_fails_the_attempt_once_it_returns(
    client: Client, ended: Ended, until: Until
) -> None:
    def handler(job: Job) -> None:
        until(lambda: job.cancelled)
        note("saw it")

    client.register_handler("t", handler, timeout=timedelta(milliseconds=20))
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    info = ended(client, id)
    assert (info.state, info.error) == ("failed", "timeout: ran for longer than its timeout of 20ms")
    assert seen == [("saw it",)]


def test_a_coroutine_that_ignores_its_timeout_fails_all_the_same(client: Client, ended: Ended) -> None:
    async def handler(job: Job) -> None:
        while not job.cancelled:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.001)

    client.register_handler("t", handler, timeout=0.02)
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    assert ended(client, id).state == "failed"


def test_a_timeout_counts_as_an_attempt_and_is_retried(client: Client, ended: Ended) -> None:
    async def handler(job: Job) -> None:
        note(job.attempt)
        if job.attempt == 1:
            await asyncio.sleep(3600)

    client.register_handler("t", handler, timeout=0.02, max_attempts=2, backoff=AT_ONCE)
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    assert ended(client, id).state == "finished"
    assert seen == [(1,), (2,)]


def test_a_timeout_of_one_handler_leaves_the_others_alone(client: Client, ended: Ended, event: threading.Event) -> None:
    async def quick(job: Job) -> None:
        await asyncio.sleep(3600)

    async def slow(job: Job) -> None:
        await asyncio.get_running_loop().run_in_executor(None, event.wait)
        note(job.cancelled)

    client.register_handler("quick", quick, timeout=0.02)
    client.register_handler("slow", slow)
    (slow_id,) = client.enqueue(PendingJob("slow"))
    (quick_id,) = client.enqueue(PendingJob("quick"))
    client.dequeue_loop()
    assert ended(client, quick_id).state == "failed"
    event.set()
    assert ended(client, slow_id).state == "finished"
    assert seen == [(False,)]


# ---- contexts --------------------------------------------------------------------------------------------

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_what_one_job_sets_in_its_context_does_not_reach_the_next(
    is_async: bool, new_client: NewClient, run_all: RunAll
) -> None:
    def handler(job: Job) -> None:
        note(variable.get())
        variable.set(job.id)

    async def async_handler(job: Job) -> None:
        handler(job)
        await asyncio.sleep(0)
        note(variable.get() == job.id)

    client = new_client(workers=1, async_workers=2)
    client.register_handler("t", async_handler if is_async else handler)
    variable.set("the caller's")
    client.enqueue(*[PendingJob("t") for _ in range(30)])
    client.enqueue_many([PendingJob("t") for _ in range(30)])
    run_all(client)
    assert [what for what in seen if what != (True,)] == [("unset",)] * 60
    assert variable.get() == "the caller's"


def test_a_token_of_another_context_is_refused_as_usual(client: Client, run_all: RunAll) -> None:
    tokens: list[contextvars.Token[str]] = []

    def handler(job: Job) -> None:
        if tokens:
            variable.reset(tokens[0])
        tokens.append(variable.set("x"))

    client.register_handler("t", handler)
    first, second = client.enqueue(PendingJob("t"), PendingJob("t"))
    run_all(client)
    assert client.get_job(first).state == "finished"
    assert (client.get_job(second).error or "").startswith("ValueError: ")


def test_a_handler_may_run_code_in_a_copied_context(client: Client, run_all: RunAll) -> None:
    def handler(job: Job) -> None:
        variable.set("outer")
        contextvars.copy_context().run(variable.set, "inner")
        note(variable.get())

    client.register_handler("t", handler)
    client.enqueue(PendingJob("t"))
    run_all(client)
    assert seen == [("outer",)]


# ---- what a handler may do -------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_handler_may_enqueue_and_ask_for_stats(is_async: bool, client: Client, run_all: RunAll) -> None:
    def handler(job: Job) -> None:
        stats = client.stats()
        note(job.body, (stats.running or 0) >= 1, client.get_job(job.id).state)
        if job.body:
            client.enqueue(PendingJob("t", job.body - 1))

    async def async_handler(job: Job) -> None:
        stats = await client.astats()
        note(job.body, (stats.running or 0) >= 1, client.get_job(job.id).state)
        if job.body:
            await client.aenqueue(PendingJob("t", job.body - 1))

    client.register_handler("t", async_handler if is_async else handler)
    client.enqueue(PendingJob("t", 2))
    run_all(client)
    assert sorted(seen, reverse=True) == [(body, True, "running") for body in (2, 1, 0)]


@pytest.mark.parametrize(
    "is_started_late", [False, True], ids=["enqueued after the start", "enqueued before the start"]
)
@pytest.mark.parametrize("how", ["sync stop", "async stop", "async astop", "leaving the context"])
def test_a_handler_may_call_stop_which_asks_for_it_and_returns(
    how: str, is_started_late: bool, new_client: NewClient, ended: Ended
) -> None:
    client = new_client(workers=2)

    def sync_stop(job: Job) -> None:
        note(client.stop())

    async def async_stop(job: Job) -> None:
        note(client.stop())

    async def async_astop(job: Job) -> None:
        note(await client.astop())

    async def leave(job: Job) -> None:
        async with client:
            pass
        note(dejq.StopReport(finished=0, given_back=0, abandoned=0, forced=False))

    handlers: dict[str, Callable[[Job], Awaitable[None] | None]] = {
        "sync stop": sync_stop,
        "async stop": async_stop,
        "async astop": async_astop,
        "leaving the context": leave,
    }
    client.register_handler("t", handlers[how])
    client.register_handler("other", takes_job)
    if is_started_late:
        (id,) = client.enqueue(PendingJob("t"))
        client.dequeue_loop()
    else:
        client.dequeue_loop()
        (id,) = client.enqueue(PendingJob("t"))
    assert ended(client, id).state == "finished"
    assert seen == [(dejq.StopReport(finished=0, given_back=0, abandoned=0, forced=False),)]
    with pytest.raises(dejq.ClientStopped):
        client.enqueue(PendingJob("other"))


def test_handlers_run_on_threads_of_their_own_that_know_thread_locals(new_client: NewClient, work: RunAll) -> None:
    local = threading.local()

    def handler(job: Job) -> None:
        local.count = getattr(local, "count", 0) + 1
        note(threading.current_thread().name, local.count)

    client = new_client(workers=1)
    client.register_handler("t", handler)
    client.enqueue(*[PendingJob("t") for _ in range(3)])
    work(client)
    assert seen == [("dejq-exec-0", 1), ("dejq-exec-0", 2), ("dejq-exec-0", 3)]


def test_async_handlers_share_one_loop_and_run_at_once(new_client: NewClient, ended: Ended) -> None:
    loops: set[asyncio.AbstractEventLoop] = set()
    arrived: list[asyncio.Event] = []

    async def handler(job: Job) -> None:
        loops.add(asyncio.get_running_loop())
        mine = asyncio.Event()
        arrived.append(mine)
        if len(arrived) == 50:
            for other in arrived:
                other.set()
        await mine.wait()
        note(threading.current_thread().name)

    client = new_client(workers=1, async_workers=50)
    client.register_handler("t", handler)
    ids = client.enqueue_many([PendingJob("t") for _ in range(50)])
    client.dequeue_loop()
    for id in ids:
        assert ended(client, id).state == "finished"
    assert len(loops) == 1
    assert set(seen) == {("dejq-loop",)}


def test_no_more_async_handlers_run_at_once_than_async_workers(new_client: NewClient, work: RunAll) -> None:
    running = 0
    most = 0

    async def handler(job: Job) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1

    client = new_client(async_workers=3)
    client.register_handler("t", handler)
    client.enqueue_many([PendingJob("t") for _ in range(200)])
    work(client)
    assert most == 3
    assert client.stats().finished == 200


# ---- order -----------------------------------------------------------------------------------------------


def test_jobs_of_one_type_start_in_the_order_they_were_enqueued(new_client: NewClient, run_all: RunAll) -> None:
    client = new_client(workers=1)
    client.register_handler("t", takes_job)
    for number in range(0, 300, 3):
        client.enqueue(PendingJob("t", number))
        client.enqueue_many([PendingJob("t", number + 1), [PendingJob("t", number + 2)]])
    run_all(client)
    assert seen == [(number,) for number in range(300)]


def test_jobs_of_several_types_start_oldest_first(new_client: NewClient, run_all: RunAll) -> None:
    client = new_client(workers=1)
    for type in ("a", "b", "c"):
        client.register_handler(type, takes_job)
    client.enqueue_many([PendingJob("abc"[number % 3], number) for number in range(60)])
    run_all(client)
    assert seen == [(number,) for number in range(60)]


# ---- chains ----------------------------------------------------------------------------------------------


def step(job: Job) -> None:
    note(job.body)
    if job.body == "bad":
        raise ValueError("bad")


async def async_step(job: Job) -> None:
    await asyncio.sleep(0)
    step(job)


@pytest.fixture
def stepper(client: Client) -> Client:
    client.register_handler("sync", step)
    client.register_handler("async", async_step)
    return client


def states(client: Client, ids: list[str]) -> list[str]:
    return [client.get_job(id).state for id in ids]


@pytest.mark.parametrize("length", [2, 3, 11, 200])
@pytest.mark.parametrize("pattern", [("sync",), ("async",), ("sync", "async")], ids="-".join)
def test_a_chain_runs_in_order_whatever_runs_its_handlers(
    pattern: tuple[str, ...], length: int, stepper: Client, run_all: RunAll
) -> None:
    chain = [PendingJob(pattern[place % len(pattern)], place) for place in range(length)]
    ids = stepper.enqueue(*chain)
    run_all(stepper)
    assert seen == [(place,) for place in range(length)]
    assert set(states(stepper, ids)) == {"finished"}


def test_a_chain_of_a_thousand_runs_in_order(stepper: Client, work: RunAll) -> None:
    stepper.enqueue(*[PendingJob("sync", place) for place in range(1000)])
    work(stepper)
    assert seen == [(place,) for place in range(1000)]


def test_only_the_first_job_of_a_chain_is_ready(stepper: Client) -> None:
    ids = stepper.enqueue(PendingJob("sync"), PendingJob("async"), PendingJob("sync"))
    assert states(stepper, ids) == ["ready", "blocked", "blocked"]


def test_a_job_knows_its_chain(client: Client, run_all: RunAll) -> None:
    client.register_handler("t", lambda job: note(job.chain_id, job.position, job.chain_length, job.id))
    ids = client.enqueue(PendingJob("t"), PendingJob("t"), PendingJob("t"))
    run_all(client)
    assert seen == [(ids[0], place, 3, id) for place, id in enumerate(ids, 1)]
    infos = [client.get_job(id) for id in ids]
    assert [(info.chain_id, info.position, info.chain_length) for info in infos] == [(ids[0], p, 3) for p in (1, 2, 3)]


def test_chains_do_not_wait_for_each_other(new_client: NewClient, ended: Ended, event: threading.Event) -> None:
    client = new_client(workers=2)
    client.register_handler("wait", lambda job: event.wait(20))
    client.register_handler("t", takes_job)
    blocked = client.enqueue(PendingJob("wait"), PendingJob("t", "after"))
    free = client.enqueue(PendingJob("t", 1), PendingJob("t", 2))
    client.dequeue_loop()
    ended(client, free[-1])
    assert states(client, blocked) == ["running", "blocked"]
    event.set()
    ended(client, blocked[-1])
    assert seen == [(1,), (2,), ("after",)]


@pytest.mark.parametrize("type", ["sync", "async"])
def test_when_a_job_fails_the_rest_of_its_chain_runs_all_the_same(type: str, stepper: Client, run_all: RunAll) -> None:
    ids = stepper.enqueue(PendingJob(type, "bad"), PendingJob(type, 2), PendingJob(type, "bad"), PendingJob("sync", 4))
    run_all(stepper)
    assert seen == [("bad",), (2,), ("bad",), (4,)]
    assert states(stepper, ids) == ["failed", "finished", "failed", "finished"]


@pytest.mark.parametrize("type", ["sync", "async"])
def test_on_failure_cancel_cancels_the_rest_of_the_chain(type: str, stepper: Client, run_all: RunAll) -> None:
    ids = stepper.enqueue(
        PendingJob(type, 1),
        PendingJob(type, "bad"),
        PendingJob(type, 3),
        PendingJob("sync", 4),
        on_failure="cancel",
    )
    run_all(stepper)
    assert seen == [(1,), ("bad",)]
    assert states(stepper, ids) == ["finished", "failed", "cancelled", "cancelled"]
    assert stepper.get_job(ids[3]).error == f"chain cancelled: job {ids[1]} before it did not finish"


def test_on_failure_of_enqueue_many_holds_for_each_chain(stepper: Client, run_all: RunAll) -> None:
    ids = stepper.enqueue_many(
        [
            [PendingJob("sync", "bad"), PendingJob("sync", 2)],
            PendingJob("sync", 3),
            [PendingJob("sync", 4), PendingJob("sync", 5)],
        ],
        on_failure="cancel",
    )
    run_all(stepper)
    assert states(stepper, ids) == ["failed", "cancelled", "finished", "finished", "finished"]
    assert set(seen) == {("bad",), (3,), (4,), (5,)}


def test_a_retry_keeps_the_rest_of_the_chain_waiting(client: Client, run_all: RunAll) -> None:
    def flaky(job: Job) -> None:
        note(job.position, job.attempt)
        if job.position == 2 and job.attempt < 3:
            raise OSError

    client.register_handler("t", flaky, max_attempts=3, backoff=AT_ONCE)
    client.enqueue(*[PendingJob("t") for _ in range(3)], on_failure="cancel")
    run_all(client)
    assert seen == [(1, 1), (2, 1), (2, 2), (2, 3), (3, 1)]


def test_a_delay_later_in_a_chain_counts_from_the_end_of_the_job_before(stepper: Client) -> None:
    ids = stepper.enqueue(PendingJob("sync", 1), PendingJob("sync", 2, delay=3600), PendingJob("sync", 3))
    assert states(stepper, ids) == ["ready", "blocked", "blocked"]
    testing.drain(stepper)
    assert states(stepper, ids) == ["finished", "scheduled", "blocked"]
    before, waiting = stepper.get_job(ids[0]), stepper.get_job(ids[1])
    assert before.finished_at is not None
    assert waiting.due_at is not None
    assert 3599 < (waiting.due_at - before.finished_at).total_seconds() < 3620
    testing.drain(stepper, scheduled=True)
    assert seen == [(1,), (2,), (3,)]


def test_a_delayed_job_runs_when_it_is_due_and_not_before(stepper: Client, ended: Ended) -> None:
    (id,) = stepper.enqueue(PendingJob("sync", delay=0.05))
    assert states(stepper, [id]) == ["scheduled"]
    stepper.dequeue_loop()
    info = ended(stepper, id)
    assert info.finished_at is not None
    assert info.finished_at - info.enqueued_at >= timedelta(milliseconds=49)


def test_a_delayed_job_does_not_hold_up_those_behind_it(stepper: Client) -> None:
    stepper.enqueue(PendingJob("sync", "later", delay=3600))
    stepper.enqueue(PendingJob("sync", "now"))
    testing.drain(stepper)
    assert seen == [("now",)]


# ---- unique jobs -----------------------------------------------------------------------------------------


def test_while_a_unique_job_waits_another_is_not_stored_and_its_id_comes_back(stepper: Client) -> None:
    (first,) = stepper.enqueue(PendingJob("sync", 1, unique="k"))
    (again,) = stepper.enqueue(PendingJob("sync", 2, unique="k"))
    assert again == first
    assert stepper.enqueue_many([PendingJob("sync", 3, unique="k"), PendingJob("sync", 4, unique="k")]) == [first] * 2
    testing.drain(stepper)
    assert seen == [(1,)]


def test_a_key_is_free_again_once_its_job_is_final(stepper: Client, run_all: RunAll) -> None:
    ids = []
    for body in (1, "bad", 3):
        ids += stepper.enqueue(PendingJob("sync", body, unique="k"))
        testing.drain(stepper)
    (cancelled,) = stepper.enqueue(PendingJob("sync", "never", unique="k"))
    stepper.cancel_job(cancelled)
    ids += stepper.enqueue(PendingJob("sync", 5, unique="k"))
    run_all(stepper)
    assert len({*ids, cancelled}) == 5
    assert seen == [(1,), ("bad",), (3,), (5,)]


def test_a_key_is_held_while_its_job_runs(client: Client, run_all: RunAll) -> None:
    def handler(job: Job) -> None:
        note(client.enqueue(PendingJob("t", unique="k")) == [job.id])

    client.register_handler("t", handler)
    client.enqueue(PendingJob("t", unique="k"))
    run_all(client)
    assert seen == [(True,)]


def test_keys_of_different_types_and_different_keys_do_not_meet(stepper: Client) -> None:
    ids = stepper.enqueue_many(
        [
            PendingJob("sync", unique="k"),
            PendingJob("async", unique="k"),
            PendingJob("sync", unique="l"),
            PendingJob("sync"),
        ]
    )
    assert len(set(ids)) == 4


def test_a_key_is_held_through_a_retry(client: Client) -> None:
    client.register_handler("t", fail, max_attempts=2)
    (first,) = client.enqueue(PendingJob("t", unique="k"))
    testing.drain(client)
    assert client.get_job(first).state == "scheduled"
    assert client.enqueue(PendingJob("t", unique="k")) == [first]


def test_modules_of_handlers_may_be_made_at_run_time(client: Client, run_all: RunAll) -> None:
    """As notebooks and exec do; annotations are looked up in the function's own globals."""
    module = types.ModuleType("made")
    source = "from dejq import Job\ndef handler(it: 'Job') -> None:\n    note(it.type)\n"
    module.__dict__["note"] = note
    exec(source, module.__dict__)
    client.register_handler("t", module.handler)
    client.enqueue(PendingJob("t"))
    run_all(client)
    assert seen == [("t",)]
