"""OpenTelemetry: traces that lead from the code that enqueues a job to the code that runs it.

Needs ``pip install "dejq[otel]"``, which brings the API. Where spans go is set up with the SDK, as usual.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, TracerProvider

from dejq import Client, Job, PendingJob, Retry, __version__

# The messaging conventions are not stable yet; this is the version whose names stand below.
_SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
_SYSTEM = {"messaging.system": "dejq"}
# Bytes of all headers of a job, as the engine counts them.
_MOST_HEADER_BYTES = 8 * 1024


def instrument(client: Client, *, tracer_provider: TracerProvider | None = None) -> None:
    """Makes a span of each enqueue and each run of a job, the second one child of the first and linked to it.

    The context of the trace travels in the headers of the jobs, in the form that OpenTelemetry is set up for
    (``traceparent``, ``baggage``). What a handler raises is recorded and makes its span an error; `Retry` does not,
    for it is a request. A worker needs it as well as the programs that enqueue.

    Args:
        client: Call it once for each, before its worker starts.
        tracer_provider: Default: the global one.

    Raises:
        ConfigError: The worker has started.
    """
    tracer = trace.get_tracer("dejq", __version__, tracer_provider, _SCHEMA_URL)

    @contextmanager
    def enqueueing(jobs: Sequence[PendingJob[Any]]) -> Iterator[Mapping[str, str]]:
        attributes: dict[str, str | int] = {
            **_SYSTEM,
            "messaging.operation.name": "enqueue",
            "messaging.operation.type": "send",
        }
        types = {job.type for job in jobs}
        name = "enqueue"
        if len(types) == 1:
            (attributes["messaging.destination.name"],) = types
            name = f"enqueue {attributes['messaging.destination.name']}"
        if len(jobs) > 1:
            attributes["messaging.batch.message_count"] = len(jobs)
        with _span(tracer, name, SpanKind.PRODUCER, attributes):
            yield _trace_headers(jobs)

    @contextmanager
    def processing(job: Job) -> Iterator[None]:
        sender = propagate.extract(job.headers)
        creation = trace.get_current_span(sender).get_span_context()
        attributes: dict[str, str | int] = {
            **_SYSTEM,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": job.type,
            "messaging.message.id": job.id,
            "messaging.message.conversation_id": job.chain_id,
            "dejq.job.attempt": job.attempt,
            "dejq.job.position": job.position,
            "dejq.job.chain_length": job.chain_length,
        }
        links = [Link(creation)] if creation.is_valid else []
        # The whole context, so that baggage is there for the handler.
        token = context.attach(sender)
        try:
            with _span(tracer, f"process {job.type}", SpanKind.CONSUMER, attributes, links):
                yield
        finally:
            context.detach(token)

    client.middleware(processing)
    client.enqueue_middleware(enqueueing)


@contextmanager
def _span(
    tracer: trace.Tracer,
    name: str,
    kind: SpanKind,
    attributes: Mapping[str, str | int],
    links: Sequence[Link] = (),
) -> Iterator[None]:
    with tracer.start_as_current_span(
        name, kind=kind, attributes=attributes, links=links, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield
        except Retry:
            raise
        except BaseException as error:  # a handler's timeout is a CancelledError, which is no Exception
            span.record_exception(error)
            span.set_attribute("error.type", f"{type(error).__module__}.{type(error).__qualname__}")
            span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
            raise


def _trace_headers(jobs: Sequence[PendingJob[Any]]) -> Mapping[str, str]:
    """What fits beside the headers that the jobs have: a trace is no reason to refuse a job."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    room = _MOST_HEADER_BYTES - max((_size(job.headers) for job in jobs), default=0)
    if _size(headers) > room:
        # Baggage is what may be large.
        headers = {name: value for name, value in headers.items() if name == "traceparent"}
    return headers if _size(headers) <= room else {}


def _size(headers: Mapping[str, str]) -> int:
    return sum(len(name.encode()) + len(value.encode()) for name, value in headers.items())
