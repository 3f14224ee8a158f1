"""What dejq reports about jobs, stores and stops. ``None`` means that the store cannot tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

State = Literal["blocked", "scheduled", "ready", "running", "finished", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeStats:
    """Counts of the jobs of one type.

    Attributes:
        ready: Waiting for a worker.
        scheduled: Waiting for their time: a delay or a retry.
        blocked: Waiting for the job before them in their chain.
        running: Held by a worker.
        finished: Ended well, since the store was made.
        failed: Ended as failed, and not run again since.
        cancelled: Ended as cancelled, and not run again since.
        oldest_ready: Age, since its enqueue, of the oldest job that waits for a worker; ``None`` if none waits.
    """

    ready: int | None
    scheduled: int | None
    blocked: int | None
    running: int | None
    finished: int | None
    failed: int | None
    cancelled: int | None
    oldest_ready: timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums since the queue was made; an attempt is counted when its handler has ended.

    Attributes:
        jobs: Jobs enqueued.
        chains: Chains enqueued, which the original called messages; a single job is a chain of one.
        attempts: Handlers that returned or failed.
        failures: Attempts that failed, and jobs that failed because their workers were lost.
        retries: Failed attempts after which another one was granted.
        rescues: Jobs given to another worker because theirs was lost.
        duration: How long these attempts took together, from claim to end.
        mean: The same for one attempt; ``None`` before the first.
        p50: Half of the attempts took at most so long. Estimated from counts by powers of two.
        p95: The same for 95 of 100 attempts.
        p99: The same for 99 of 100 attempts.
    """

    jobs: int
    chains: int
    attempts: int
    failures: int
    retries: int
    rescues: int
    duration: timedelta
    mean: timedelta | None
    p50: timedelta | None
    p95: timedelta | None
    p99: timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Calls to a store that is paid by the call (SQS), since this client was made.

    Attributes:
        calls: How many of each kind, by the name that AWS has for it.
        total: All of them.
        enqueued: Jobs that this client has enqueued.
        ended: Jobs that have ended here.
        per_job: Calls for each job that was enqueued or has ended here, whichever are more; ``None`` before the first.
    """

    calls: Mapping[str, int]
    total: int
    enqueued: int
    ended: int
    per_job: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats(TypeStats):
    """Counts of all jobs of a store.

    Attributes:
        enqueued_jobs: Waiting to run: ready, scheduled and blocked together.
        by_type: The same counts for each type.
        workers: Workers that are alive.
        totals: Sums since the queue was made, where the store keeps them (Redis).
        bill: Calls to the store by this client, where they are paid for (SQS).
    """

    enqueued_jobs: int
    by_type: Mapping[str, TypeStats]
    workers: int | None
    totals: Totals | None = None
    bill: Bill | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopReport:
    """What a stop did.

    Attributes:
        finished: Jobs whose handlers ended during the stop.
        given_back: Jobs given back, unstarted or cut short, for other workers to run.
        abandoned: Handlers that had not returned when the stop ended. Their leases run out, then others get
            the jobs.
        forced: The timeout came before the last handler returned.
    """

    finished: int
    given_back: int
    abandoned: int
    forced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInfo:
    """A job as an operator sees it. Times are aware, in UTC.

    Attributes:
        attempt: Number of the last attempt that started; 0 before the first.
        max_attempts: As the job itself asked; ``None`` leaves it to the handler or the client.
        rescues: How often its lease ran out.
        raw_body: The body as JSON text; see `body`. Not part of ``repr``.
        due_at: When a scheduled job becomes ready.
        started_at: When the current attempt started.
        last_beat_at: When its lease was last renewed.
        finished_at: When it became final.
        error: Why the last attempt did not succeed, in one line. Not part of ``repr``.
        traceback: The same in full. Not part of ``repr``.
    """

    id: str
    type: str
    state: State
    attempt: int
    max_attempts: int | None
    rescues: int
    chain_id: str
    position: int
    chain_length: int
    headers: Mapping[str, str]
    raw_body: bytes = field(repr=False)
    enqueued_at: datetime
    due_at: datetime | None
    started_at: datetime | None
    last_beat_at: datetime | None
    finished_at: datetime | None
    error: str | None = field(repr=False)
    traceback: str | None = field(repr=False)

    @property
    def body(self) -> Any:
        """The body, decoded anew at each call."""
        import json

        return json.loads(self.raw_body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result of `Client.check` or `Client.audit`.

    Attributes:
        level: ``ok``, ``warn`` (works, at a risk or a cost) or ``error`` (will not work).
        name: What was looked at.
        text: What was found.
        fix: What to do about it.
    """

    level: Literal["ok", "warn", "error"]
    name: str
    text: str
    fix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationReport:
    """What `Client.migrate` did.

    Attributes:
        applied: The steps taken, in order; empty when there was nothing to do.
    """

    applied: tuple[str, ...]
