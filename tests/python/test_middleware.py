"""Middleware: code around handler calls and around enqueues."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

import dejq
from dejq import Client, ClientStopped, ConfigError, Discard, Job, NotSupported, PendingJob, Retry, testing

if TYPE_CHECKING:
    from python.conftest import Ended, NewClient, RunAll

pytest_plugins = ["python.postgres", "python.redis_store"]


@dataclass
class Point:
    x: int
    y: int


class Steps(list[str]):
    """What happened, in order."""

    def around(self, name: str) -> Callable[[Job], AbstractContextManager[None]]:
        @contextmanager
        def middleware(job: Job) -> Iterator[None]:
            self.append(f"{name} in")
            try:
                yield
            except BaseException as error:
                self.append(f"{name} sees {type(error).__name__}")
                raise
            finally:
                self.append(f"{name} out")

        return middleware


@pytest.fixture
def steps() -> Steps:
    return Steps()


# ---- what runs within it ------------------------------------------------------------------------------------


def plain(steps: Steps) -> dejq.Handler:
    def handler(job: Job) -> None:
        steps.append("handler")

    return handler


def coroutine(steps: Steps) -> dejq.Handler:
    async def handler(job: Job) -> None:
        await asyncio.sleep(0)
        steps.append("handler")

    return handler


@pytest.mark.parametrize("make", [plain, coroutine])
def test_the_first_one_registered_is_the_outermost_also_for_handlers_that_were_there_before(
    make: Callable[[Steps], dejq.Handler], client: Client, run_all: RunAll, steps: Steps
) -> None:
    client.register_handler("before", make(steps))
    client.middleware(steps.around("a"))
    client.register_handler("between", make(steps))
    client.middleware(steps.around("b"))
    client.register_handler("after", make(steps))
    for type in ("before", "between", "after"):
        steps.clear()
        client.enqueue(PendingJob(type))
        run_all(client)
        assert steps == ["a in", "b in", "handler", "b out", "a out"]


@pytest.mark.parametrize("make", [plain, coroutine])
def test_inline_runs_it_inside_enqueue(
    make: Callable[[Steps], dejq.Handler], new_client: NewClient, steps: Steps
) -> None:
    client = new_client(inline=True)
    client.register_handler("t", make(steps))
    client.middleware(steps.around("a"))
    client.enqueue(PendingJob("t"))
    assert steps == ["a in", "handler", "a out"]


def test_it_gets_the_job_of_the_handler(client: Client, run_all: RunAll) -> None:
    seen: list[Job] = []

    @client.middleware
    def spy(job: Job) -> AbstractContextManager[None]:
        seen.append(job)
        return nullcontext()

    client.register_handler("t", lambda job: seen.append(job))
    client.enqueue(PendingJob("t"))
    run_all(client)
    first, second = seen
    assert first is second


def takes_body(got: list[Any]) -> dejq.Handler:
    def handler(body: Point) -> None:
        got.append(body)

    return handler


def takes_both(got: list[Any]) -> dejq.Handler:
    def handler(job: Job, body: Point) -> None:
        got.append(body)

    return handler


def takes_them_the_other_way(got: list[Any]) -> dejq.Handler:
    async def handler(body: Point, job: Job) -> None:
        got.append(body)

    return handler


def takes_any_body(got: list[Any]) -> dejq.Handler:
    def handler(body) -> None:  # type: ignore[no-untyped-def]  # what a user may write
        got.append(Point(**body))

    return handler


@pytest.mark.parametrize("make", [takes_body, takes_both, takes_them_the_other_way, takes_any_body])
def test_every_kind_of_handler_gets_what_it_asks_for(
    make: Callable[[list[Any]], dejq.Handler], client: Client, run_all: RunAll, steps: Steps
) -> None:
    got: list[Any] = []
    client.middleware(steps.around("a"))
    client.register_handler("t", make(got))
    client.enqueue(PendingJob("t", {"x": 1, "y": 2}))
    run_all(client)
    assert got == [Point(1, 2)]
    assert steps == ["a in", "a out"]


def test_it_sees_a_body_that_does_not_fit(client: Client, run_all: RunAll, ended: Ended, steps: Steps) -> None:
    client.middleware(steps.around("a"))
    client.register_handler("t", takes_body([]))
    (id,) = client.enqueue(PendingJob("t", {"x": 1}))
    run_all(client)
    assert steps == ["a in", "a sees BodyError", "a out"]
    assert "'t' does not fit" in str(ended(client, id).error)


def test_a_context_variable_set_by_it_reaches_the_handler_and_no_other_job(client: Client, run_all: RunAll) -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    @contextmanager
    def with_tenant(job: Job) -> Iterator[None]:
        seen.append(tenant.get())
        tenant.set(job.headers["tenant"])  # and never reset
        yield

    def handler(job: Job) -> None:
        seen.append(tenant.get())

    async def coroutine(job: Job) -> None:
        await asyncio.sleep(0)
        seen.append(tenant.get())

    client.middleware(with_tenant)
    client.register_handler("def", handler)
    client.register_handler("async", coroutine)
    client.enqueue(*(PendingJob(type, headers={"tenant": f"{type}-{n}"}) for type in ("def", "async") for n in (1, 2)))
    run_all(client)
    assert seen == [word for type in ("def", "async") for n in (1, 2) for word in ("nobody", f"{type}-{n}")]


def test_an_asynchronous_one_is_awaited_around_a_coroutine(client: Client, run_all: RunAll, steps: Steps) -> None:
    @client.middleware
    @asynccontextmanager
    async def session(job: Job) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        steps.append("in")
        yield
        await asyncio.sleep(0)
        steps.append("out")

    client.register_handler("t", coroutine(steps))
    client.enqueue(PendingJob("t"))
    run_all(client)
    assert steps == ["in", "handler", "out"]


def test_one_that_can_be_entered_both_ways_suits_both_kinds_of_handlers(
    client: Client, run_all: RunAll, steps: Steps
) -> None:
    class Both:
        def __enter__(self) -> None:
            steps.append("enter")

        def __exit__(self, *raised: object) -> None:
            steps.append("exit")

        async def __aenter__(self) -> None:
            steps.append("aenter")

        async def __aexit__(self, *raised: object) -> None:
            steps.append("aexit")

    client.middleware(lambda job: Both())
    client.register_handler("def", plain(steps))
    client.register_handler("async", coroutine(steps))
    client.enqueue(PendingJob("def"), PendingJob("async"))
    run_all(client)
    assert steps == ["enter", "handler", "exit", "aenter", "handler", "aexit"]


def test_calling_the_function_itself_runs_none(client: Client, steps: Steps) -> None:
    client.middleware(steps.around("a"))

    @client.handler("t")
    def handler(body: int) -> int:
        return body + 1

    assert handler(1) == 2
    assert steps == []


# ---- how an attempt ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("raised", "state", "attempts"),
    [
        (OSError("no"), "failed", 2),
        (Discard("no"), "failed", 1),
        (Retry(after=0), "failed", 2),
        (SystemExit(1), "failed", 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_what_the_handler_raises_passes_through_and_means_the_same(
    raised: BaseException,
    state: str,
    attempts: int,
    is_async: bool,
    new_client: NewClient,
    run_all: RunAll,
    steps: Steps,
) -> None:
    def fail(job: Job) -> None:
        raise raised

    async def fail_later(job: Job) -> None:
        raise raised

    client = new_client(max_attempts=2, backoff=dejq.Backoff(0.001))
    client.middleware(steps.around("a"))
    client.register_handler("t", fail_later if is_async else fail)
    (id,) = client.enqueue(PendingJob("t"))
    run_all(client)
    job = client.get_job(id)
    assert (job.state, job.attempt) == (state, attempts)
    assert steps == ["a in", f"a sees {type(raised).__name__}", "a out"] * attempts


def test_what_it_raises_itself_is_the_handlers_too(client: Client, run_all: RunAll) -> None:
    ran: list[Job] = []

    @client.middleware
    @contextmanager
    def closed(job: Job) -> Iterator[None]:
        if job.headers.get("day") != "Monday":
            raise Discard("closed on Sundays")
        yield

    client.register_handler("t", ran.append)
    (id,) = client.enqueue(PendingJob("t"))
    run_all(client)
    job = client.get_job(id)
    assert (job.state, job.error, ran) == ("failed", "dejq.errors.Discard: closed on Sundays", [])


@pytest.mark.parametrize("is_async", [False, True])
def test_what_it_swallows_is_no_failure(is_async: bool, client: Client, run_all: RunAll) -> None:
    @client.middleware
    @contextmanager
    def forgiving(job: Job) -> Iterator[None]:
        try:
            yield
        except OSError:
            pass

    def fail(job: Job) -> None:
        raise OSError("no matter")

    async def fail_later(job: Job) -> None:
        raise OSError("no matter")

    client.register_handler("t", fail_later if is_async else fail)
    (id,) = client.enqueue(PendingJob("t"))
    run_all(client)
    assert client.get_job(id).state == "finished"


def test_inline_raises_what_it_raises(new_client: NewClient) -> None:
    client = new_client(inline=True)

    @client.middleware
    @contextmanager
    def broken(job: Job) -> Iterator[None]:
        if job.attempt:
            raise OSError("no database")
        yield

    client.register_handler("t", lambda job: None)
    with pytest.raises(OSError, match="no database"):
        client.enqueue(PendingJob("t"))


def test_a_timeout_cancels_the_coroutine_within_it(client: Client, ended: Ended, steps: Steps) -> None:
    async def stuck(job: Job) -> None:
        await asyncio.Event().wait()

    client.middleware(steps.around("a"))
    client.register_handler("t", stuck, timeout=0.01)
    (id,) = client.enqueue(PendingJob("t"))
    client.dequeue_loop()
    job = ended(client, id)
    assert (job.state, str(job.error).partition(":")[0]) == ("failed", "timeout")
    assert steps == ["a in", "a sees CancelledError", "a out"]


def test_a_plain_handler_that_returns_an_awaitable_still_fails(client: Client, run_all: RunAll, steps: Steps) -> None:
    async def forgotten() -> None: ...

    client.middleware(steps.around("a"))
    client.register_handler("t", lambda job: forgotten())
    (id,) = client.enqueue(PendingJob("t"))
    run_all(client)
    assert "must not; register the async def" in str(client.get_job(id).error)


# ---- what is refused -----------------------------------------------------------------------------------------


def generator(job: Job) -> Iterator[None]:
    yield


async def async_generator(job: Job) -> AsyncIterator[None]:
    yield


async def awaitable(job: Job) -> None: ...


@pytest.mark.parametrize("name", ["middleware", "enqueue_middleware"])
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (generator, "generator is a generator function; put @contextlib.contextmanager above it"),
        (
            async_generator,
            "async_generator is an async generator function; put @contextlib.asynccontextmanager above it",
        ),
        (awaitable, "awaitable is a coroutine function; write a function that takes the"),
        ("timing", "must be a function, not str; write a function that takes the"),
    ],
)
def test_what_makes_no_context_manager_is_refused_when_it_is_registered(
    name: str, wrong: Any, text: str, client: Client
) -> None:
    with pytest.raises(ConfigError) as refused:
        getattr(client, name)(wrong)
    assert text in str(refused.value)


@asynccontextmanager
async def asynchronous(job: Job) -> AsyncIterator[None]:
    yield


def test_an_asynchronous_one_is_refused_around_a_plain_handler(new_client: NewClient, steps: Steps) -> None:
    text = r"asynchronous has to be awaited, which the handler of 't', a plain function, cannot do; make it a @context"
    before, after = new_client(), new_client()
    before.middleware(asynchronous)
    with pytest.raises(ConfigError, match=text):
        before.register_handler("t", plain(steps))
    assert before.types == []
    after.register_handler("t", plain(steps))
    with pytest.raises(ConfigError, match=text):
        after.middleware(asynchronous)
    after.enqueue(PendingJob("t"))
    testing.drain(after)
    assert steps == ["handler"]


@pytest.mark.parametrize(
    ("made", "is_async", "text"),
    [
        (asynchronous, False, "has to be awaited, which the handler of 't', a plain function, cannot do"),
        (
            lambda job: 5,
            False,
            "made a int; write a function that takes the job, with @contextlib.contextmanager above",
        ),
        (lambda job: 5, True, "made a int; write a function that takes the job, with @contextlib.contextmanager above"),
    ],
)
def test_one_that_makes_something_else_fails_the_attempt_with_what_to_write(
    made: Any, is_async: bool, text: str, client: Client, run_all: RunAll, steps: Steps
) -> None:
    client.middleware(lambda job: made(job))
    client.register_handler("t", coroutine(steps) if is_async else plain(steps))
    (id,) = client.enqueue(PendingJob("t"))
    run_all(client)
    assert text in str(client.get_job(id).error)
    assert steps == []


def test_it_comes_too_late_for_a_worker_that_runs(client: Client, steps: Steps) -> None:
    client.register_handler("t", plain(steps))
    client.dequeue_loop()
    with pytest.raises(ConfigError, match=r"comes too late for the handler of \"t\": dequeue_loop\(\) has started"):
        client.middleware(steps.around("a"))
    client.stop()
    with pytest.raises(ClientStopped):
        client.middleware(steps.around("a"))


# ---- around enqueues -----------------------------------------------------------------------------------------


def adding(**headers: str) -> dejq.EnqueueMiddleware:
    @contextmanager
    def middleware(jobs: Sequence[PendingJob[Any]]) -> Iterator[Mapping[str, str]]:
        yield headers

    return middleware


def headers_of(client: Client, ids: list[str]) -> list[Mapping[str, str]]:
    return [client.get_job(id).headers for id in ids]


def test_it_adds_headers_to_the_jobs_of_every_kind_of_enqueue(client: Client) -> None:
    client.enqueue_middleware(adding(tenant="a"))
    chain = [PendingJob("t"), PendingJob("t", headers={"own": "1"})]
    ids = client.enqueue(*chain)
    ids += client.enqueue_many(job for job in (PendingJob("t"), chain))
    ids += asyncio.run(client.aenqueue(*chain))
    one, two = {"tenant": "a"}, {"tenant": "a", "own": "1"}
    assert headers_of(client, ids) == [one, two, one, one, two, one, two]
    assert [client.get_job(id).position for id in ids] == [1, 2, 1, 1, 2, 1, 2]


def test_a_header_that_a_job_has_stays_and_so_does_all_else(client: Client) -> None:
    client.enqueue_middleware(adding(tenant="a", trace="b"))
    job = PendingJob("t", {"x": 1}, delay=60, max_attempts=7, unique="k", headers={"tenant": "own"})
    (id,) = client.enqueue(job)
    (again,) = client.enqueue(job)
    stored = client.get_job(id)
    assert again == id
    assert stored.headers == {"tenant": "own", "trace": "b"}
    assert (stored.state, stored.body, stored.max_attempts) == ("scheduled", {"x": 1}, 7)
    assert job.headers == {"tenant": "own"}


def test_they_are_nested_see_the_jobs_and_what_is_raised(client: Client) -> None:
    seen: list[Any] = []

    def spying(name: str) -> dejq.EnqueueMiddleware:
        @contextmanager
        def middleware(jobs: Sequence[PendingJob[Any]]) -> Iterator[Mapping[str, str] | None]:
            seen.append([name, *((job.type, dict(job.headers)) for job in jobs)])
            try:
                yield {name: "1"} if name == "a" else None
            except dejq.BodyError:
                seen.append(f"{name} sees it")
                raise

        return middleware

    client.enqueue_middleware(spying("a"))
    client.enqueue_middleware(spying("b"))
    with pytest.raises(dejq.BodyError):
        client.enqueue_many([PendingJob("x"), [PendingJob("y"), PendingJob("z", float("nan"))]])
    assert seen == [
        ["a", ("x", {}), ("y", {}), ("z", {})],
        ["b", ("x", {"a": "1"}), ("y", {"a": "1"}), ("z", {"a": "1"})],
        "b sees it",
        "a sees it",
    ]


def test_an_enqueue_that_was_refused_is_never_swallowed(client: Client) -> None:
    @client.enqueue_middleware
    @contextmanager
    def forgiving(jobs: Sequence[PendingJob[Any]]) -> Iterator[None]:
        try:
            yield
        except dejq.BodyError:
            pass

    with pytest.raises(dejq.BodyError):
        client.enqueue(PendingJob("t", float("nan")))
    with pytest.raises(dejq.BodyError):
        client.enqueue_many([PendingJob("t", float("nan"))])


@pytest.mark.parametrize("with_middleware", [False, True])
def test_what_is_no_pending_job_is_refused_as_ever(with_middleware: bool, client: Client) -> None:
    if with_middleware:
        client.enqueue_middleware(adding(tenant="a"))
    wrong: Any
    for wrong in ("email", 5, None):
        with pytest.raises(TypeError, match="a PendingJob is expected, not"):
            client.enqueue(wrong)
        with pytest.raises(TypeError, match="a PendingJob is expected, not"):
            client.enqueue_many([PendingJob("t"), wrong])
    with pytest.raises(NotSupported):
        client.enqueue(PendingJob("t"), connection=object())
    with pytest.raises(ConfigError, match="no job"):
        client.enqueue()


def test_inline_handlers_run_after_it_has_been_left(new_client: NewClient) -> None:
    steps: list[str] = []

    @contextmanager
    def around(jobs: Sequence[PendingJob[Any]]) -> Iterator[None]:
        yield
        steps.append("enqueued")

    client = new_client(inline=True)
    client.enqueue_middleware(around)
    client.register_handler("t", lambda job: steps.append("ran"))
    client.enqueue(PendingJob("t"))
    asyncio.run(client.aenqueue(PendingJob("t")))
    assert steps == ["enqueued", "ran"] * 2


def test_a_slow_store_is_awaited_within_it(redis_client: Callable[..., Client]) -> None:
    seen: list[str] = []

    @contextmanager
    def around(jobs: Sequence[PendingJob[Any]]) -> Iterator[Mapping[str, str]]:
        seen.append(threading.current_thread().name)
        yield {"tenant": "a"}
        seen.append("stored")

    client = redis_client()
    client.enqueue_middleware(around)
    ids = asyncio.run(client.aenqueue(PendingJob("t")))
    assert seen == [threading.main_thread().name, "stored"]
    assert headers_of(client, ids) == [{"tenant": "a"}]


def test_jobs_in_the_callers_transaction_get_the_headers_too(pg_client: Callable[..., Client], pg_url: str) -> None:
    import psycopg

    client = pg_client()
    client.enqueue_middleware(adding(tenant="a"))
    with psycopg.connect(pg_url) as connection:
        ids = client.enqueue(PendingJob("t"), connection=connection)
    assert headers_of(client, ids) == [{"tenant": "a"}]


def test_inline_runs_nothing_for_jobs_that_are_not_committed_yet(pg_client: Callable[..., Client], pg_url: str) -> None:
    import psycopg

    client = pg_client()
    ran: list[Job] = []
    client.register_handler("t", ran.append)
    client.enqueue(PendingJob("t"))
    with testing.inline(client), psycopg.connect(pg_url) as connection:
        client.enqueue(PendingJob("t"), connection=connection)
        assert ran == []
