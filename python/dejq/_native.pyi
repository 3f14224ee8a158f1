import builtins
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import GenericAlias
from typing import Any, Generic, TypeAlias, TypeVar, final, overload

from typing_extensions import Self, disjoint_base

from dejq.info import Finding, JobInfo, MigrationReport, Stats, StopReport

__all__ = [
    "Answers",
    "AsyncLane",
    "AsyncTask",
    "Client",
    "Job",
    "PendingJob",
    "Reporter",
    "SyncLane",
    "Team",
    "__version__",
    "after_fork_in_child",
    "read_log",
    "set_verbosity",
    "shutdown",
    "wait_log",
]

__version__: str

_B_co = TypeVar("_B_co", covariant=True, default=Any)
_T = TypeVar("_T")

# (initial seconds, factor, maximum seconds, jitter)
_Backoff: TypeAlias = tuple[float, float, float, float]
# (verbosity, message, (id, type, id of the chain, attempt) of the job it is about, seconds since the epoch)
_Line: TypeAlias = tuple[int, str, tuple[str, str, str, int] | None, float]

@disjoint_base
class PendingJob(Generic[_B_co]):
    """A job that has been described but not enqueued.

    Args:
        type: Finds the handler; 1 to 128 of ``A-Z a-z 0-9 _ . : / -``.
        body: Anything that JSON can say, a dataclass, a msgspec.Struct or a pydantic model; encoded by ``enqueue``.
        delay: Seconds, or a timedelta, that the job waits after it could run: after the enqueue or, later in a
            chain, after the end of the job before it.
        max_attempts: Runs of the job if its handler fails; default: the handler's, then the client's.
        unique: While a job of this type with this key (1 to 256 bytes) is not final, ``enqueue`` stores nothing
            and returns that job's id. Single jobs only.
        headers: Strings that travel with the job; 8 KiB at most.

    Raises:
        ConfigError: A value is out of its range.
    """

    def __new__(
        cls,
        type: str,
        body: _B_co | None = None,
        *,
        delay: float | timedelta | None = None,
        max_attempts: int | None = None,
        unique: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Self: ...
    @property
    def type(self) -> str: ...
    @property
    def body(self) -> _B_co: ...
    @property
    def delay(self) -> timedelta | None: ...
    @property
    def max_attempts(self) -> int | None: ...
    @property
    def unique(self) -> str | None: ...
    @property
    def headers(self) -> dict[str, str]: ...
    @classmethod
    def __class_getitem__(cls, item: object) -> GenericAlias: ...

@final
class Job:
    """A job as its handler receives it. Everything is built when it is first asked for."""

    @property
    def id(self) -> str:
        """A UUIDv7 as text; greater than the ids enqueued before by the same process."""

    @property
    def type(self) -> str: ...
    @property
    def attempt(self) -> int:
        """1 on the first run; grows with each retry."""

    @property
    def enqueued_at(self) -> datetime:
        """Aware, in UTC, by the millisecond."""

    @property
    def chain_id(self) -> str:
        """The id of the first job of its chain."""

    @property
    def position(self) -> int:
        """Its place in the chain, from 1."""

    @property
    def chain_length(self) -> int: ...
    @property
    def headers(self) -> dict[str, str]: ...
    @property
    def cancelled(self) -> bool:
        """Return soon: the lease is lost, the time is up, an operator or a stop asks for it."""

    @property
    def body(self) -> Any:
        """The decoded body; the same object at each call.

        Raises:
            BodyError: Somebody else put something into the store that is not JSON.
        """

    @overload
    def decode(self, to: None = None) -> Any: ...
    @overload
    def decode(self, to: builtins.type[_T]) -> _T:
        """The body as a dataclass, TypedDict, msgspec.Struct, pydantic model or built-in type.

        Raises:
            BodyError: It does not fit; the text has the path, never the value.
            ConfigError: dejq cannot decode to that type.
        """

    def finish(self, *, connection: object) -> None:
        """Finishes the job within the handler's own transaction: its effects and its end, or neither. PostgreSQL only.

        Call it last, commit, and return. When the transaction has committed, the job is finished, exactly once, and
        the next one of its chain runs. When it was rolled back, the attempt has failed as "not committed" and is
        retried if attempts are left. When the handler raises, the transaction not committed, it fails as ever.
        With a connection in autocommit the job is finished at once, whatever the handler still does.

        Args:
            connection: As for ``Client.enqueue``, to the database of this client.

        Raises:
            WrongState: The lease is over: the job has ended or another worker has it. Let it out, so that the
                transaction is rolled back.
            ConfigError: It is no connection that dejq knows, or needs ``afinish``.
            NotSupported: This store has no transactions.
            Exception: What the driver raises, for example about a transaction that is aborted already.
        """

    def afinish(self, *, connection: object) -> Coroutine[Any, Any, None]:
        """`finish` for coroutines, with connections that have to be awaited; one that blocks is used in a thread.

        Raises:
            ConfigError: Also for Django's, which belongs to the thread that began the transaction.
        """

    def _finish_statement(self) -> tuple[str, list[str]]: ...
    def _finishes_itself(self) -> None: ...

@final
class Client:
    def __new__(cls, url: str, options: Mapping[str, str], backoff: _Backoff | None = None) -> Client: ...
    def settings(self) -> tuple[str, int, int, float, bool]: ...
    def enqueue(self, jobs: tuple[PendingJob[Any], ...], cancel_rest: bool) -> list[str]: ...
    def enqueue_statement(self, jobs: tuple[PendingJob[Any], ...], cancel_rest: bool) -> tuple[str, list[str]]: ...
    def ask_enqueue(self, jobs: tuple[PendingJob[Any], ...], cancel_rest: bool, answers: Answers) -> int: ...
    def migration_script(self) -> str: ...
    def enqueue_many(
        self, chains: Iterable[PendingJob[Any] | Sequence[PendingJob[Any]]], cancel_rest: bool
    ) -> list[str]: ...
    def register(
        self,
        type: str,
        callable: Callable[..., object],
        wants: list[bool],
        decoder: Callable[[bytes], Any] | None,
        is_async: bool,
        max_attempts: int | None,
        backoff: _Backoff | None,
        timeout: float | None,
    ) -> None: ...
    def enclose(self, type: str, callable: Callable[[Job], object]) -> None: ...
    def types(self) -> list[str]: ...
    def keep_handlers(self, types: Sequence[str]) -> None: ...
    def start(self, workers: int | None, max_jobs: int | None) -> tuple[SyncLane | None, AsyncLane | None]: ...
    def drain(self, run_coroutine: Callable[[Coroutine[Any, Any, object]], None], scheduled: bool) -> int: ...
    def run_inline(self, run_coroutine: Callable[[Coroutine[Any, Any, object]], None]) -> int: ...
    @property
    def is_inline(self) -> bool: ...
    @property
    def is_running(self) -> bool: ...
    @property
    def is_idle(self) -> bool: ...
    @property
    def is_spent(self) -> bool: ...
    @property
    def is_stopped(self) -> bool: ...
    def wait_until_stopping(self, timeout: float | None) -> bool: ...
    def metrics(self) -> str: ...
    def serve(self, address: str) -> str: ...
    def report(self, socket: int) -> Reporter: ...
    def request_stop(self, timeout: float | None) -> None: ...
    def hurry(self, timeout: float) -> None: ...
    def stop(self, timeout: float | None) -> StopReport: ...
    def stats(self) -> Stats: ...
    def counted(self) -> dict[str, int]: ...
    def get_job(self, id: str) -> JobInfo: ...
    def list_jobs(
        self,
        state: str | None,
        type: str | None,
        older_than: float | timedelta | None,
        limit: int,
        after: str | None,
    ) -> list[JobInfo]: ...
    def unresponsive_jobs(self, older_than: float | timedelta) -> list[JobInfo]: ...
    def finish_job(self, id: str) -> None: ...
    def requeue_job(self, id: str) -> None: ...
    def cancel_job(self, id: str) -> None: ...
    def delete_finished(self, older_than: float | timedelta, batch: int) -> int: ...
    def vacuum(self) -> None: ...
    def migrate(self) -> MigrationReport: ...
    def create_queue(self, has_dlq: bool, dlq: str | None, max_receives: int) -> MigrationReport: ...
    def check(self) -> list[Finding]: ...
    def audit(self, repair: bool) -> list[Finding]: ...

@final
class SyncLane:
    @property
    def slots(self) -> int: ...
    def run(self) -> None: ...

@final
class AsyncLane:
    def fileno(self) -> int: ...
    @property
    def slots(self) -> int: ...
    def woken(self) -> None: ...
    def take(self, most: int) -> list[AsyncTask]: ...
    def idle(self) -> None: ...
    @property
    def cancels(self) -> int: ...
    @property
    def is_over(self) -> bool: ...

@final
class AsyncTask:
    def start(self) -> Coroutine[Any, Any, object]: ...
    def ended(self, error: BaseException | None = None) -> None: ...
    @property
    def cancelled(self) -> bool: ...

@final
class Answers:
    def __new__(cls) -> Answers: ...
    def fileno(self) -> int: ...
    def take(self) -> list[tuple[int, list[str] | BaseException]]: ...

@final
class Team:
    def __new__(cls) -> Team: ...
    def add(self, number: int, socket: int) -> None: ...
    def remove(self, number: int) -> None: ...
    def restarted(self) -> None: ...
    def serve(self, address: str) -> str: ...

@final
class Reporter:
    def finish(self) -> None: ...

def set_verbosity(verbosity: int) -> None: ...
def wait_log(wait: float) -> None: ...
def read_log() -> tuple[list[_Line], int]: ...
def after_fork_in_child() -> None: ...
def shutdown() -> None: ...
