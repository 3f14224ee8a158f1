"""What can go wrong, one class for each thing that a caller may want to tell apart.

Texts say what happened, where, why it matters and what to do next. They start with a stable code that
``docs/errors.md`` explains, and never contain a password or a body.
"""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar


class DejqError(Exception):
    """The base of all errors of dejq."""

    code: ClassVar[str] = "DEJQ-E000"

    def __str__(self) -> str:
        return f"{self.code} {super().__str__()}"


class ConfigError(DejqError, ValueError):
    """An option, URL, job type or handler is wrong. Trying again does not help; the text says what to write."""

    code = "DEJQ-E100"


class BodyError(DejqError, ValueError):
    """A body is not JSON, or does not fit the type that a handler asks for."""

    code = "DEJQ-E110"


class BodyTooLarge(BodyError):
    """A body has more bytes than the store takes.

    Attributes:
        size: Bytes of the body as JSON.
        limit: Most bytes that the store takes.
    """

    code = "DEJQ-E111"
    size: int
    limit: int


class ChainBroken(DejqError):
    """A call was stored in part: SQS took some of its jobs, and could not take the rest in time or in order.

    It takes up to 10 jobs and 1 MiB in one call; longer chains and `enqueue_many` go in parts, and it may refuse single
    messages of a call.

    Attributes:
        sent: Ids of the jobs that are in the queue and will run.
        unsent: Ids of the others. Of those in the last part the answer may have been lost; the text says so.
    """

    code = "DEJQ-E112"
    sent: list[str]
    unsent: list[str]


class UnknownJob(DejqError, LookupError):
    """No job has this id."""

    code = "DEJQ-E120"


class WrongState(DejqError):
    """The job or the client is not in a state that allows the operation."""

    code = "DEJQ-E121"


class NotSupported(DejqError):
    """This store cannot do it; the text says why."""

    code = "DEJQ-E130"


class BackendUnavailable(DejqError, ConnectionError):
    """The store cannot be reached or cannot answer just now. Trying again may help; nothing was stored."""

    code = "DEJQ-E200"


class OutcomeUnknown(DejqError):
    """The store may or may not have taken the jobs: its answer was lost.

    Attributes:
        ids: Ids of the jobs of the call, to look them up or to enqueue them again.
    """

    code = "DEJQ-E201"
    ids: list[str]


class SchemaMissing(DejqError):
    """The store has not been set up; run ``dejq migrate``."""

    code = "DEJQ-E210"


class SchemaOutdated(DejqError):
    """The store was set up for an older version; run ``dejq migrate``."""

    code = "DEJQ-E211"


class ClientStopped(DejqError):
    """The client was stopped; make a new one."""

    code = "DEJQ-E300"


class ForkedProcess(DejqError, RuntimeError):
    """The client was made before a fork and is used in the child; make it in the child."""

    code = "DEJQ-E301"


class Retry(Exception):
    """Raised by a handler: run this job again.

    A limit of attempts that was set (on the job, the handler or the client) holds for this too; the default of
    one attempt does not.

    Args:
        after: Seconds until then; ``None`` leaves it to the backoff.
        reason: Kept with the job.
    """

    def __init__(self, after: float | timedelta | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.after = after
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """For copies and pickles: the arguments are not those of the base class."""
        return type(self), (self.after, self.reason), vars(self)


class Discard(Exception):
    """Raised by a handler: this job fails now and is not tried again, whatever attempts are left.

    Args:
        reason: Kept with the job.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
