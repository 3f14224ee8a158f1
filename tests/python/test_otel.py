"""OpenTelemetry: spans of enqueues and of runs, what they say, and how they hang together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import dejq
from dejq import Client, Discard, Job, PendingJob, Retry
from dejq.contrib import otel

if TYPE_CHECKING:
    from python.conftest import Ended, NewClient, RunAll


class Spans:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def traced(client: Client, spans: Spans) -> Client:
    otel.instrument(client, tracer_provider=spans.provider)
    return client


def noop(job: Job) -> None: ...


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def id_of(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def parent_of(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def test_a_run_is_the_child_of_its_enqueue_and_linked_to_it(traced: Client, spans: Spans, run_all: RunAll) -> None:
    traced.register_handler("email:v1", noop)
    tracer = spans.provider.get_tracer("test")
    with tracer.start_as_current_span("request"):
        (id,) = traced.enqueue(PendingJob("email:v1"))
    run_all(traced)
    request, sent, run = spans.one("request"), spans.one("enqueue email:v1"), spans.one("process email:v1")
    assert (parent_of(sent), parent_of(run)) == (id_of(request), id_of(sent))
    assert [(link.context.trace_id, link.context.span_id) for link in run.links] == [id_of(sent)]
    assert (sent.kind, run.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert (sent.status.status_code, run.status.status_code) == (StatusCode.UNSET, StatusCode.UNSET)
    assert attributes(sent) == {
        "messaging.system": "dejq",
        "messaging.operation.name": "enqueue",
        "messaging.operation.type": "send",
        "messaging.destination.name": "email:v1",
    }
    assert attributes(run) == {
        "messaging.system": "dejq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "email:v1",
        "messaging.message.id": id,
        "messaging.message.conversation_id": id,
        "dejq.job.attempt": 1,
        "dejq.job.position": 1,
        "dejq.job.chain_length": 1,
    }


def test_the_jobs_of_a_call_share_its_span(traced: Client, spans: Spans, run_all: RunAll) -> None:
    traced.register_handler("a", noop)
    traced.register_handler("b", noop)
    first, _ = traced.enqueue(PendingJob("a"), PendingJob("b"))
    run_all(traced)
    sent = spans.one("enqueue")
    assert attributes(sent)["messaging.batch.message_count"] == 2
    assert "messaging.destination.name" not in attributes(sent)
    for name, position in (("process a", 1), ("process b", 2)):
        run = spans.one(name)
        assert parent_of(run) == id_of(sent)
        assert attributes(run)["messaging.message.conversation_id"] == first
        assert attributes(run)["dejq.job.position"] == position


def test_a_job_that_was_enqueued_without_a_trace_begins_one(
    new_client: NewClient, spans: Spans, run_all: RunAll
) -> None:
    client = new_client()
    client.register_handler("t", noop)
    client.enqueue(PendingJob("t"))
    otel.instrument(client, tracer_provider=spans.provider)
    run_all(client)
    run = spans.one("process t")
    assert (parent_of(run), list(run.links)) == (None, [])


@pytest.mark.parametrize("is_async", [False, True])
def test_what_the_handler_makes_is_below_its_span(
    is_async: bool, traced: Client, spans: Spans, run_all: RunAll
) -> None:
    tracer = spans.provider.get_tracer("test")
    seen: list[object] = []

    def handler(job: Job) -> None:
        with tracer.start_as_current_span("query"):
            seen.append(baggage.get_baggage("tenant"))

    async def coroutine(job: Job) -> None:
        with tracer.start_as_current_span("query"):
            await asyncio.sleep(0)
            seen.append(baggage.get_baggage("tenant"))

    traced.register_handler("t", coroutine if is_async else handler)
    token = context.attach(baggage.set_baggage("tenant", "a"))
    try:
        traced.enqueue(PendingJob("t"))
    finally:
        context.detach(token)
    run_all(traced)
    assert parent_of(spans.one("query")) == id_of(spans.one("process t"))
    assert seen == ["a"]


@pytest.mark.parametrize("error", [OSError("no route"), Discard("no use"), SystemExit(3)], ids=repr)
def test_what_a_handler_raises_is_recorded_once_for_each_attempt(
    error: BaseException, new_client: NewClient, spans: Spans, run_all: RunAll
) -> None:
    client = new_client(max_attempts=2, backoff=dejq.Backoff(0.001))
    otel.instrument(client, tracer_provider=spans.provider)

    def fail(job: Job) -> None:
        raise error

    client.register_handler("t", fail)
    client.enqueue(PendingJob("t"))
    run_all(client)
    runs = spans.named("process t")
    assert [attributes(run)["dejq.job.attempt"] for run in runs] == ([1] if isinstance(error, Discard) else [1, 2])
    for run in runs:
        kind = type(error)
        assert attributes(run)["error.type"] == f"{kind.__module__}.{kind.__qualname__}"
        assert (run.status.status_code, run.status.description) == (StatusCode.ERROR, f"{kind.__name__}: {error}")
        (event,) = run.events
        assert event.name == "exception"


def test_a_retry_that_was_asked_for_is_no_error(traced: Client, spans: Spans, run_all: RunAll) -> None:
    def busy(job: Job) -> None:
        if job.attempt == 1:
            raise Retry(after=0.001)

    traced.register_handler("t", busy, max_attempts=2)
    traced.enqueue(PendingJob("t"))
    run_all(traced)
    runs = spans.named("process t")
    assert [(run.status.status_code, len(run.events)) for run in runs] == [(StatusCode.UNSET, 0)] * 2


def test_a_timeout_is_recorded(traced: Client, spans: Spans, ended: Ended) -> None:
    async def stuck(job: Job) -> None:
        await asyncio.Event().wait()

    traced.register_handler("t", stuck, timeout=0.01)
    (id,) = traced.enqueue(PendingJob("t"))
    traced.dequeue_loop()
    ended(traced, id)
    assert attributes(spans.one("process t"))["error.type"] == "asyncio.exceptions.CancelledError"


def test_an_enqueue_that_is_refused_is_an_error(traced: Client, spans: Spans) -> None:
    with pytest.raises(dejq.BodyError):
        traced.enqueue(PendingJob("t", float("nan")))
    assert attributes(spans.one("enqueue t"))["error.type"] == "dejq.errors.BodyError"


def test_a_trace_never_takes_the_room_that_a_job_needs_for_its_own_headers(traced: Client, spans: Spans) -> None:
    with_baggage = context.attach(baggage.set_baggage("large", "x" * 4000))
    try:
        ids = [traced.enqueue(PendingJob("t", headers={"own": "y" * size}))[0] for size in (1000, 6000, 8189)]
    finally:
        context.detach(with_baggage)
    assert [sorted(traced.get_job(id).headers) for id in ids] == [
        ["baggage", "own", "traceparent"],
        ["own", "traceparent"],
        ["own"],
    ]


def test_without_a_provider_the_global_one_is_asked(client: Client, run_all: RunAll) -> None:
    """Which does nothing, as long as nobody has set it up."""
    otel.instrument(client)
    seen: list[bool] = []
    client.register_handler("t", lambda job: seen.append(trace.get_current_span().is_recording()))
    (id,) = client.enqueue(PendingJob("t"))
    run_all(client)
    assert seen == [False]
    assert client.get_job(id).headers == {}
