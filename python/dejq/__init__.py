"""dejq: a very simple job queue for Python with a Rust engine.

A job is a type and a JSON body. Handlers are registered per type. Several jobs in one ``enqueue`` are a chain.

    client = dejq.connect("memory://")

    @client.handler("greet")
    def greet(job: dejq.Job) -> None:
        print("hello", job.body)

    client.enqueue(greet.job("world"))
    client.run(drain=True)
"""

import os as _os
import warnings as _warnings

from dejq._logging import set_verbosity
from dejq._middleware import EnqueueMiddleware, Middleware
from dejq._native import Job, PendingJob, __version__
from dejq.backoff import Backoff
from dejq.client import Client, connect, memory, postgres, redis, sqs
from dejq.errors import (
    BackendUnavailable,
    BodyError,
    BodyTooLarge,
    ChainBroken,
    ClientStopped,
    ConfigError,
    DejqError,
    Discard,
    ForkedProcess,
    NotSupported,
    OutcomeUnknown,
    Retry,
    SchemaMissing,
    SchemaOutdated,
    UnknownJob,
    WrongState,
)
from dejq.handlers import Handler, HandlerFunction
from dejq.info import Bill, Finding, JobInfo, MigrationReport, Stats, StopReport, Totals, TypeStats

__all__ = [
    "BackendUnavailable",
    "Backoff",
    "Bill",
    "BodyError",
    "BodyTooLarge",
    "ChainBroken",
    "Client",
    "ClientStopped",
    "ConfigError",
    "DejqError",
    "Discard",
    "EnqueueMiddleware",
    "Finding",
    "ForkedProcess",
    "Handler",
    "HandlerFunction",
    "Job",
    "JobInfo",
    "Middleware",
    "MigrationReport",
    "NotSupported",
    "OutcomeUnknown",
    "PendingJob",
    "Retry",
    "SchemaMissing",
    "SchemaOutdated",
    "Stats",
    "StopReport",
    "Totals",
    "TypeStats",
    "UnknownJob",
    "WrongState",
    "__version__",
    "connect",
    "memory",
    "postgres",
    "redis",
    "set_verbosity",
    "sqs",
]

if _verbosity := _os.environ.get("DEJQ_VERBOSITY"):
    try:
        set_verbosity(int(_verbosity))
    except ValueError:  # ConfigError is one
        _warnings.warn(f"DEJQ_VERBOSITY={_verbosity!r} is ignored: it must be 0, 1, 2 or 3", stacklevel=1)
