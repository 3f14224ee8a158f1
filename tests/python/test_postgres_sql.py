"""The functions of the Postgres schema, as sessions that get in each other's way and people with any driver call them."""

from __future__ import annotations

import itertools
import json
import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import errors, sql

import dejq
from python.conftest import SECONDS, Until

pytest_plugins = ["python.postgres"]

Row = tuple[Any, ...]

FINISHED, FAILED, CANCELLED, RETRY, CUT_SHORT, NEVER_STARTED = range(6)
LEASE = 60.0
# So long ago that every lease of then is over.
LONG = "interval '1 hour'"

# What has to be true of a schema whenever nobody is in the middle of something. Each statement finds what is wrong.
INVARIANTS = {
    "a chain with open jobs has one that is active, and it is the first of them": """
        SELECT chain_id, array_agg((position, hold, token) ORDER BY position) FROM dejq.job WHERE chain_id IS NOT NULL
        GROUP BY chain_id HAVING count(*) FILTER (WHERE hold <> 1) <> 1
            OR min(position) FILTER (WHERE hold <> 1) <> min(position)""",
    "a job alone is never blocked": "SELECT id FROM dejq.job WHERE chain_id IS NULL AND hold = 1",
    "who runs has a token and a worker, and has been started": """
        SELECT id FROM dejq.job WHERE (token IS NULL) <> (worker_id IS NULL)
            OR token IS NOT NULL AND (hold <> 0 OR attempt < 1 OR started_at IS NULL)""",
    "who runs has a worker whose silence would be noticed": """
        SELECT j.id FROM dejq.job j WHERE j.token IS NOT NULL AND NOT EXISTS (SELECT FROM dejq.worker w WHERE w.id = j.worker_id)""",
    "who is scheduled has a time": "SELECT id FROM dejq.job WHERE hold = 2 AND due_at IS NULL",
    "a job is in one place": "SELECT id FROM (SELECT id FROM dejq.job UNION ALL SELECT id FROM dejq.done) a GROUP BY id HAVING count(*) > 1",
    "chains are whole": """
        SELECT chain_id, count(*) FROM (
            SELECT chain_id, position, length FROM dejq.job UNION ALL SELECT chain_id, position, length FROM dejq.done) a
        WHERE chain_id IS NOT NULL GROUP BY chain_id
        HAVING count(*) <> max(length) OR count(DISTINCT position) <> max(length)""",
    "what was counted is what ended": """
        SELECT * FROM (SELECT type, outcome, sum(jobs) AS jobs FROM (
                SELECT type, outcome, jobs FROM dejq.total
                UNION ALL SELECT u.* FROM dejq.tally t CROSS JOIN LATERAL unnest(t.types, t.outcomes, t.jobs) u) a
            GROUP BY type, outcome) counted
        FULL JOIN (SELECT type, outcome, count(*) AS jobs FROM dejq.done GROUP BY type, outcome) ended USING (type, outcome)
        WHERE coalesce(counted.jobs, 0) <> coalesce(ended.jobs, 0)""",
}


class Session:
    """One connection. What it starts may have to wait for what another has not committed."""

    def __init__(self, url: str, schema: str) -> None:
        # Far more than any lock takes here; only a bug makes somebody wait for so long.
        self.connection = psycopg.connect(url, autocommit=True, options=f"-c lock_timeout={SECONDS:.0f}s")
        self.pid = self.connection.info.backend_pid
        self.schema = sql.Identifier(schema).as_string()
        self.notices: list[str] = []
        self.connection.add_notice_handler(lambda notice: self.notices.append(notice.message_primary or ""))
        self.thread = ThreadPoolExecutor(1)

    def rows(self, text: str, *values: object) -> list[Row]:
        # Not a literal, but nothing in it comes from outside.
        cursor = self.connection.execute(text.replace("dejq.", f"{self.schema}.").encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    def value(self, text: str, *values: object) -> Any:
        rows = self.rows(text, *values)
        assert len(rows) == 1
        return rows[0][0]

    def column(self, text: str, *values: object) -> list[Any]:
        return [row[0] for row in self.rows(text, *values)]

    def start(self, call: Callable[..., Any], *values: Any, **options: Any) -> Future[Any]:
        """Does it in another thread, where it may wait for a lock."""
        return self.thread.submit(call, *values, **options)

    def begin(self) -> None:
        self.rows("BEGIN")

    def commit(self) -> None:
        self.rows("COMMIT")

    def rollback(self) -> None:
        self.rows("ROLLBACK")

    def close(self) -> None:
        self.connection.close()
        self.thread.shutdown()

    # ---- the functions, by the names of the glossary

    def chain(self, *types: str, on_failure: str = "continue") -> list[str]:
        return self.ids("SELECT dejq.enqueue_chain(%s, %s::json[], %s)", list(types), ["null"] * len(types), on_failure)

    def enqueue(self, type: str = "a", **options: object) -> str:
        named = "".join(f", {sql.Identifier(name).as_string()} => %s" for name in options)
        return str(self.value(f"SELECT dejq.enqueue(%s{named})", type, *options.values()))

    def ids(self, text: str, *values: object) -> list[str]:
        return [str(id) for id in self.value(text, *values)]

    def claim(self, worker: uuid.UUID, *types: str, most: int = 100, token: int = 1) -> list[str]:
        chosen = list(types) or ["a"]
        # As the worker asks: of many types not everything of each.
        quota = most if len(chosen) <= 8 else max(2 * most // len(chosen), 1)
        rows = self.rows(
            "SELECT id FROM dejq.claim(%s, 'test', %s, %s, %s, %s::bigint[], %s::integer[], %s, 0)"
            " WHERE id IS NOT NULL ORDER BY seq",
            worker, LEASE, token, chosen, [0] * len(chosen), [quota] * len(chosen), most,
        )  # fmt: skip
        return [str(id) for (id,) in rows]

    def settle(
        self,
        jobs: Sequence[str],
        *,
        token: int = 1,
        outcome: int = FINISHED,
        heir: uuid.UUID | None = None,
        types: Sequence[str] = (),
        heir_token: int | None = None,
    ) -> tuple[list[int], list[str]]:
        """The places whose lease was lost, and the jobs that were released."""
        rows = self.rows(
            "SELECT lost, id FROM dejq.settle(%s::uuid[], %s::bigint[], %s::smallint[], %s::json[], true, %s, %s::text[], %s)",
            list(jobs), [token] * len(jobs), [outcome] * len(jobs), [None] * len(jobs), heir, list(types), heir_token,
        )  # fmt: skip
        return list(rows[0][0] or ()), [str(id) for (_, id) in rows[1:]]

    def put_back(self, jobs: Sequence[str], kind: int, *, token: int = 1, delay: float = 0) -> list[int]:
        """The places whose lease was lost."""
        lost = self.value(
            "SELECT lost FROM dejq.put_back(%s::uuid[], %s::bigint[], %s::smallint[], %s::float8[], %s::json[])",
            list(jobs), [token] * len(jobs), [kind] * len(jobs), [delay] * len(jobs), [None] * len(jobs),
        )  # fmt: skip
        return list(lost or ())

    def beat(self, worker: uuid.UUID, jobs: Sequence[str] = (), *, token: int = 1) -> list[tuple[int, bool]]:
        return [
            (place, is_cancel)
            for place, is_cancel in self.rows(
                "SELECT place, is_cancel FROM dejq.beat(%s, 'test', %s, %s::uuid[], %s::bigint[])",
                worker, LEASE, list(jobs), [token] * len(jobs),
            )
        ]  # fmt: skip

    def rescue(self, most: int = 3) -> Row:
        """How many were requeued, how many failed, and how many workers were lost."""
        return self.rows("SELECT requeued, failed, workers FROM dejq.rescue(%s)", most)[0]

    def finish_attempt(self, job: str, token: int = 1) -> None:
        self.rows("SELECT dejq.finish_attempt(%s, %s)", job, token)

    def finish(self, job: str) -> None:
        self.rows("SELECT dejq.finish(%s)", job)

    def cancel(self, job: str) -> None:
        self.rows("SELECT dejq.cancel(%s)", job)

    def requeue(self, job: str) -> None:
        self.rows("SELECT dejq.requeue(%s)", job)

    def leave(self, worker: uuid.UUID) -> None:
        self.rows("SELECT dejq.leave(%s)", worker)

    def state(self, job: str) -> str:
        return str(self.value("SELECT state FROM dejq.jobs WHERE id = %s", job))

    def states(self, jobs: Sequence[str]) -> list[str]:
        return [self.state(job) for job in jobs]


@dataclass
class Queue:
    """A schema of its own, and sessions that use it."""

    url: str
    schema: str
    until: Until
    sessions: list[Session] = field(default_factory=list[Session])

    def __post_init__(self) -> None:
        self.look = Session(self.url, self.schema)  # in which nothing else goes on

    def session(self) -> Session:
        self.sessions.append(Session(self.url, self.schema))
        return self.sessions[-1]

    def await_blocked(self, session: Session, waiting: Future[Any]) -> None:
        """Waits until what this session does waits for another one."""

        def is_blocked() -> bool:
            if waiting.done():
                waiting.result()
                pytest.fail("it should have waited for the other session, and did not")
            return bool(self.look.value("SELECT cardinality(pg_blocking_pids(%s)) > 0", session.pid))

        self.until(is_blocked)

    def make_old(self) -> None:
        """All workers have been silent for long, and what they run was started before."""
        self.look.rows(f"UPDATE dejq.worker SET last_beat = last_beat - {LONG}")
        self.look.rows(f"UPDATE dejq.job SET started_at = started_at - {LONG} WHERE token IS NOT NULL")

    def end_sessions(self) -> None:
        for session in self.sessions:
            # Also one that a failed test has left waiting.
            self.look.rows("SELECT pg_terminate_backend(%s)", session.pid)
            session.close()
        self.sessions.clear()

    def drain(self) -> list[str]:
        """Runs everything that is open, whoever had it, to the end; returns the ids in the order of their starts."""
        self.look.rows("SELECT dejq.promote()")
        self.make_old()
        self.look.rescue(1000)
        started: list[str] = []
        types = self.look.column("SELECT DISTINCT type FROM dejq.job")
        worker = uuid.uuid4()
        while types and (jobs := self.look.claim(worker, *types, token=99)):
            started += jobs
            assert self.look.settle(jobs, token=99)[0] == []
        assert self.look.rows("SELECT id, hold, token FROM dejq.job") == []
        return started

    def check(self) -> None:
        for what, statement in INVARIANTS.items():
            assert not self.look.rows(statement), what


def migrate(url: str, schema: str) -> list[str]:
    with dejq.connect(url, schema=schema) as client:
        return list(client.migrate().applied)


@contextmanager
def new_queue(url: str, schema: str, until: Until) -> Iterator[Queue]:
    migrate(url, schema)
    queue = Queue(url, schema, until)
    try:
        yield queue
    finally:
        queue.end_sessions()
        queue.look.rows(f"DROP SCHEMA {queue.look.schema} CASCADE")
        queue.look.close()


@pytest.fixture
def queue(pg_url: str, until: Until) -> Iterator[Queue]:
    with new_queue(pg_url, f"sql_{uuid.uuid4().hex[:12]}", until) as queue:
        yield queue
        queue.end_sessions()
        queue.check()
        queue.drain()
        queue.check()


@pytest.fixture
def one(queue: Queue) -> Session:
    return queue.session()


@pytest.fixture
def other(queue: Queue) -> Session:
    return queue.session()


# ---- two sessions, step by step -----------------------------------------------------------------------------------

ANNA, BEN = uuid.UUID(int=1), uuid.UUID(int=2)


def test_what_claims_pass_over_is_the_first_ready_job_before_a_mark(queue: Queue, one: Session) -> None:
    jobs = [one.enqueue(type) for type in ("a", "a", "a", "b", "a")]
    later = one.chain("a", "a")
    seq: dict[str, int] = dict(one.rows("SELECT id::text, seq FROM dejq.job"))

    def passed_over(**marks: int) -> dict[str, int]:
        types = list(marks)
        return dict(one.rows("SELECT type, seq FROM dejq.passed_over(%s, %s::bigint[])", types, list(marks.values())))

    assert passed_over(a=seq[later[1]], b=seq[jobs[3]] - 1, c=10**9) == {"a": seq[jobs[0]]}
    assert one.claim(ANNA, "a", most=2) == jobs[:2]
    assert passed_over(a=seq[jobs[1]]) == {}
    assert passed_over(a=seq[jobs[4]], b=seq[jobs[3]]) == {"a": seq[jobs[2]], "b": seq[jobs[3]]}


def test_a_claim_passes_over_what_another_one_is_taking(queue: Queue, one: Session, other: Session) -> None:
    jobs = [one.enqueue("a") for _ in range(6)]
    one.begin()
    assert one.claim(ANNA, "a", most=2) == jobs[:2]
    assert other.claim(BEN, "a", most=2, token=2) == jobs[2:4]
    one.rollback()
    assert other.claim(BEN, "a", token=3) == [*jobs[:2], *jobs[4:]]


def test_claims_of_several_types_take_the_oldest_of_each(queue: Queue, one: Session, other: Session) -> None:
    jobs = [one.enqueue("ab"[n % 2]) for n in range(10)]
    one.begin()
    assert one.claim(ANNA, "a", "b", most=3) == jobs[:3]
    # The oldest three are two of a and one of b; of each the next ones that are free.
    assert other.claim(BEN, "b", "a", most=3, token=2) == [jobs[3], jobs[4], jobs[6]]
    one.commit()
    assert other.claim(BEN, "a", "b", most=3, token=3) == [jobs[5], jobs[7], jobs[8]]


def test_a_beat_that_is_under_way_saves_its_worker(queue: Queue, one: Session, other: Session) -> None:
    job = one.enqueue()
    one.claim(ANNA)
    queue.make_old()
    one.begin()
    assert one.beat(ANNA, [job]) == []
    assert other.rescue() == (0, 0, 0)
    one.commit()
    assert other.rescue() == (0, 0, 0)
    assert one.settle([job]) == ([], [])


def test_a_beat_that_comes_during_a_rescue_is_told(queue: Queue, one: Session, other: Session) -> None:
    job = one.enqueue()
    one.claim(ANNA)
    queue.make_old()
    one.begin()
    assert one.rescue() == (1, 0, 1)
    beat = other.start(other.beat, ANNA, [job])
    queue.await_blocked(other, beat)
    one.commit()
    # Its row was deleted, and it has one again: it lives.
    beat.result()
    assert other.beat(ANNA, [job]) == [(1, False)]
    assert other.settle([job]) == ([1], [])


def test_a_claim_that_is_under_way_saves_its_worker(queue: Queue, one: Session, other: Session) -> None:
    first = one.enqueue()
    one.claim(ANNA)
    second = one.enqueue()
    queue.make_old()
    one.begin()
    assert one.claim(ANNA, token=2) == [second]
    assert other.rescue() == (0, 0, 0)
    one.commit()
    assert other.rescue() == (1, 0, 1)
    assert one.settle([first, second], token=2) == ([1], [])


def test_a_claim_during_the_rescue_of_its_worker_waits_and_takes_as_a_new_one(
    queue: Queue, one: Session, other: Session
) -> None:
    first = one.enqueue()
    one.claim(ANNA)
    queue.make_old()
    second = one.enqueue()
    one.begin()
    assert one.rescue() == (1, 0, 1)
    claim = other.start(other.claim, ANNA, token=2)
    queue.await_blocked(other, claim)
    one.commit()
    assert claim.result() == [first, second]
    assert one.rescue() == (0, 0, 0)
    assert other.settle([first, second], token=2) == ([], [])


def test_a_settle_that_is_under_way_wins_over_the_rescue(queue: Queue, one: Session, other: Session) -> None:
    chain, alone = one.chain("a", "b"), one.enqueue()
    one.claim(ANNA)
    queue.make_old()
    one.begin()
    assert one.settle(chain[:1]) == ([], chain[1:])
    # The rescue does not wait for it, and takes what is left.
    assert other.rescue() == (1, 0, 1)
    one.commit()
    assert one.states([*chain, alone]) == ["finished", "ready", "ready"]
    assert other.rescue() == (0, 0, 1)
    assert other.rescue() == (0, 0, 0)


def test_a_settle_during_a_rescue_is_told_that_its_lease_is_lost(queue: Queue, one: Session, other: Session) -> None:
    chain = one.chain("a", "b")
    one.claim(ANNA)
    queue.make_old()
    one.begin()
    assert one.rescue() == (1, 0, 1)
    settle = other.start(other.settle, chain[:1])
    queue.await_blocked(other, settle)
    one.commit()
    assert settle.result() == ([1], [])
    assert one.states(chain) == ["ready", "blocked"]


def test_a_rescue_and_a_settle_that_hands_on_to_the_same_worker_never_lock_each_other_up(
    queue: Queue, one: Session, other: Session
) -> None:
    chain = one.chain("a", "a")
    one.claim(ANNA)
    queue.make_old()
    one.begin()
    assert one.rescue() == (1, 0, 1)
    settle = other.start(other.settle, chain[:1], heir=ANNA, types=["a"], heir_token=2)
    queue.await_blocked(other, settle)
    one.commit()
    assert settle.result() == ([1], [])


def test_a_settle_waits_for_the_rescue_of_its_worker_before_it_holds_any_job(
    queue: Queue, one: Session, other: Session
) -> None:
    chain = one.chain("a", "a")
    one.claim(ANNA)
    one.begin()
    # As a rescue does first.
    one.rows("SELECT FROM dejq.worker FOR UPDATE")
    settle = other.start(other.settle, chain[:1], heir=ANNA, types=["a"], heir_token=2)
    queue.await_blocked(other, settle)
    assert one.column("SELECT id::text FROM dejq.job WHERE id = %s FOR UPDATE NOWAIT", chain[0]) == chain[:1]
    one.commit()
    assert settle.result() == ([], chain[1:])
    assert one.states(chain) == ["finished", "running"]


def test_no_job_is_handed_to_a_worker_that_was_taken_for_dead(queue: Queue, one: Session) -> None:
    chain = one.chain("a", "a")
    one.claim(ANNA)
    one.rows("DELETE FROM dejq.worker")
    assert one.settle(chain[:1], heir=ANNA, types=["a"], heir_token=2) == ([], chain[1:])
    assert one.states(chain) == ["finished", "ready"]


def test_of_two_rescues_one_does_it(queue: Queue, one: Session, other: Session) -> None:
    jobs = [one.enqueue() for _ in range(3)]
    one.claim(ANNA)
    queue.make_old()
    one.begin()
    assert one.rescue() == (3, 0, 1)
    assert other.rescue() == (0, 0, 0)
    one.commit()
    assert other.rescue() == (0, 0, 0)
    assert other.column("SELECT DISTINCT rescues FROM dejq.jobs WHERE id = ANY (%s::uuid[])", jobs) == [1]


def test_a_worker_that_leaves_while_a_claim_of_it_is_under_way_stays_known(
    queue: Queue, one: Session, other: Session
) -> None:
    job = one.enqueue()
    one.beat(ANNA)
    one.begin()
    assert one.claim(ANNA) == [job]
    leave = other.start(other.leave, ANNA)
    queue.await_blocked(other, leave)
    one.commit()
    leave.result()
    # Nobody got the answer to that claim; the job is rescued all the same.
    queue.make_old()
    assert other.rescue() == (1, 0, 1)
    assert other.state(job) == "ready"


@pytest.mark.parametrize("is_late", [False, True])
def test_cancelling_the_next_job_of_a_chain_while_the_one_before_it_ends(
    queue: Queue, one: Session, other: Session, is_late: bool
) -> None:
    chain = one.chain("a", "a", "a")
    one.claim(ANNA)
    first, second = (other, one) if is_late else (one, other)
    first.begin()
    if is_late:
        first.cancel(chain[1])
        waiting = second.start(second.settle, chain[:1], heir=ANNA, types=["a"], heir_token=2)
    else:
        first.settle(chain[:1], heir=ANNA, types=["a"], heir_token=2)
        waiting = second.start(second.cancel, chain[1])
    queue.await_blocked(second, waiting)
    first.commit()
    waiting.result()
    if is_late:
        assert one.states(chain) == ["finished", "cancelled", "running"]
    else:
        # It was running by then, and its worker is asked.
        assert one.states(chain) == ["finished", "running", "blocked"]
        assert one.beat(ANNA, [chain[1]], token=2) == [(1, True)]


@pytest.mark.parametrize("is_late", [False, True])
def test_finishing_the_next_job_of_a_chain_while_the_one_before_it_ends(
    queue: Queue, one: Session, other: Session, is_late: bool
) -> None:
    chain = one.chain("a", "a", "a")
    one.claim(ANNA)
    first, second = (other, one) if is_late else (one, other)
    calls = (lambda s: s.finish(chain[1]), lambda s: s.settle(chain[:1]))
    first.begin()
    calls[not is_late](first)
    waiting = second.start(calls[is_late], second)
    queue.await_blocked(second, waiting)
    first.commit()
    waiting.result()
    assert one.states(chain) == ["finished", "finished", "ready"]


@pytest.mark.parametrize("on_failure", ["continue", "cancel"])
def test_a_job_that_fails_while_its_successor_is_cancelled(
    queue: Queue, one: Session, other: Session, on_failure: str
) -> None:
    chain = one.chain("a", "a", "a", on_failure=on_failure)
    one.claim(ANNA)
    other.begin()
    other.cancel(chain[1])
    settle = one.start(one.settle, chain[:1], outcome=FAILED)
    queue.await_blocked(one, settle)
    other.commit()
    last = "ready" if on_failure == "continue" else "cancelled"
    assert settle.result() == ([], [chain[2]] if on_failure == "continue" else [])
    assert one.states(chain) == ["failed", "cancelled", last]


def test_ending_a_running_job_by_hand_and_by_its_worker_passes_the_chain_on_once(
    queue: Queue, one: Session, other: Session
) -> None:
    chain = one.chain("a", "a", "a")
    one.claim(ANNA)
    one.begin()
    one.settle(chain[:1])
    finish = other.start(other.finish, chain[0])
    queue.await_blocked(other, finish)
    one.commit()
    with pytest.raises(psycopg.Error, match=f"cannot finish job {chain[0]}, it is finished already"):
        finish.result()
    assert one.states(chain) == ["finished", "ready", "blocked"]


@pytest.mark.parametrize("is_late", [False, True])
def test_requeueing_a_job_while_the_one_after_it_is_claimed(
    queue: Queue, one: Session, other: Session, is_late: bool
) -> None:
    chain = one.chain("a", "b", "b")
    one.claim(ANNA)
    one.settle(chain[:1], outcome=FAILED)
    one.begin()
    if is_late:
        one.requeue(chain[0])
        assert other.claim(BEN, "b", token=2) == []
        one.commit()
        assert one.states(chain) == ["ready", "blocked", "blocked"]
    else:
        assert one.claim(ANNA, "b", token=2) == chain[1:2]
        requeue = other.start(other.requeue, chain[0])
        queue.await_blocked(other, requeue)
        one.commit()
        with pytest.raises(psycopg.Error, match=f"job {chain[1]} after it in its chain has started"):
            requeue.result()
        assert one.states(chain) == ["failed", "running", "blocked"]


def test_requeueing_a_job_while_the_one_after_it_ends(queue: Queue, one: Session, other: Session) -> None:
    chain = one.chain("a", "a", "a")
    one.claim(ANNA)
    one.settle(chain[:1], outcome=FAILED)
    one.claim(ANNA)
    one.begin()
    assert one.settle([chain[1]]) == ([], chain[2:])
    requeue = other.start(other.requeue, chain[0])
    queue.await_blocked(other, requeue)
    one.commit()
    with pytest.raises(psycopg.Error, match=f"job {chain[1]} after it in its chain has started"):
        requeue.result()


def test_requeueing_a_job_at_the_moment_it_fails(queue: Queue, one: Session, other: Session) -> None:
    chain = one.chain("a", "a", "a", on_failure="cancel")
    one.claim(ANNA)
    one.begin()
    one.settle(chain[:1], outcome=FAILED)
    requeue = other.start(other.requeue, chain[0])
    queue.await_blocked(other, requeue)
    one.commit()
    requeue.result()
    assert one.states(chain) == ["ready", "blocked", "blocked"]


def test_of_two_who_requeue_a_job_one_is_refused(queue: Queue, one: Session, other: Session) -> None:
    job = one.enqueue()
    one.claim(ANNA)
    one.settle([job], outcome=FAILED)
    one.begin()
    one.requeue(job)
    requeue = other.start(other.requeue, job)
    queue.await_blocked(other, requeue)
    one.commit()
    with pytest.raises(psycopg.Error, match=f"job {job} cannot be requeued, it is ready; it will run by itself"):
        requeue.result()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3), 2)))
def test_requeueing_two_jobs_of_one_chain_at_once_leaves_it_in_order(
    queue: Queue, one: Session, other: Session, order: tuple[int, int]
) -> None:
    chain = one.chain("a", "a", "a")
    for job in reversed(chain):
        one.cancel(job)
    one.begin()
    one.requeue(chain[order[0]])
    requeue = other.start(other.requeue, chain[order[1]])
    queue.await_blocked(other, requeue)
    one.commit()
    requeue.result()
    queue.check()
    assert queue.drain() == [chain[n] for n in sorted(order)]


def test_a_chain_is_not_forgotten_when_its_head_is_requeued_and_run_while_the_next_job_is_cancelled(
    queue: Queue, one: Session, other: Session
) -> None:
    third = queue.session()
    chain = one.chain("a", "a", "a")
    one.cancel(chain[0])
    one.begin()
    one.requeue(chain[0])
    other.begin()
    cancel = other.start(other.cancel, chain[1])
    queue.await_blocked(other, cancel)
    one.commit()
    cancel.result()
    # The cancellation is not committed yet.
    assert third.claim(ANNA, most=1) in ([], chain[:1])
    settle = third.start(third.settle, chain[:1])
    queue.until(lambda: settle.done() or third.pid in one.column("SELECT pid FROM pg_locks WHERE NOT granted"))
    other.commit()
    settle.result()
    queue.check()
    assert [job for job in queue.drain() if job != chain[0]] == chain[2:]


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("delay", [0.0, 3600.0])
def test_cancelling_a_job_while_it_is_put_back_for_another_attempt(
    queue: Queue, one: Session, other: Session, is_late: bool, delay: float
) -> None:
    chain = one.chain("a", "a")
    one.claim(ANNA)
    first, second = (other, one) if is_late else (one, other)
    first.begin()
    if is_late:
        first.cancel(chain[0])
        waiting = second.start(second.put_back, chain[:1], RETRY, delay=delay)
    else:
        first.put_back(chain[:1], RETRY, delay=delay)
        waiting = second.start(second.cancel, chain[0])
    queue.await_blocked(second, waiting)
    first.commit()
    waiting.result()
    assert one.states(chain) == ["cancelled", "ready"]


def test_a_claim_passes_over_a_job_that_is_being_cancelled(queue: Queue, one: Session, other: Session) -> None:
    jobs = [one.enqueue() for _ in range(2)]
    one.begin()
    one.cancel(jobs[0])
    assert other.claim(BEN) == jobs[1:]
    one.commit()
    assert other.state(jobs[0]) == "cancelled"


def test_cancelling_a_job_that_is_being_claimed_asks_its_worker(queue: Queue, one: Session, other: Session) -> None:
    job = one.enqueue()
    one.begin()
    one.claim(ANNA)
    cancel = other.start(other.cancel, job)
    queue.await_blocked(other, cancel)
    one.commit()
    cancel.result()
    assert one.beat(ANNA, [job]) == [(1, True)]
    assert one.put_back([job], CUT_SHORT) == []
    assert one.state(job) == "cancelled"


# ---- unique keys


@pytest.mark.parametrize("commits", [True, False])
def test_of_two_who_enqueue_a_unique_job_the_second_waits_to_know(
    queue: Queue, one: Session, other: Session, commits: bool
) -> None:
    one.begin()
    first = one.enqueue(unique="k")
    waiting = other.start(other.enqueue, unique="k")
    queue.await_blocked(other, waiting)
    one.rows("COMMIT" if commits else "ROLLBACK")
    second = waiting.result()
    assert (second == first) is commits
    assert queue.look.column("SELECT id::text FROM dejq.jobs") == [second]


@pytest.mark.parametrize("commits", [True, False])
def test_a_unique_job_that_is_enqueued_while_the_holder_of_its_key_ends(
    queue: Queue, one: Session, other: Session, commits: bool
) -> None:
    first = one.enqueue(unique="k")
    one.claim(ANNA)
    one.begin()
    one.settle([first])
    waiting = other.start(other.enqueue, unique="k")
    queue.await_blocked(other, waiting)
    one.rows("COMMIT" if commits else "ROLLBACK")
    assert (waiting.result() == first) is not commits


def test_keys_that_two_take_in_opposite_order_are_a_deadlock_that_the_server_ends(
    queue: Queue, one: Session, other: Session
) -> None:
    one.begin()
    other.begin()
    firsts = [one.enqueue(unique="k"), other.enqueue(unique="l")]
    waiting = one.start(one.enqueue, unique="l")
    queue.await_blocked(one, waiting)
    with pytest.raises(errors.DeadlockDetected):
        other.enqueue(unique="k")
        waiting.result()
    other.rollback()
    assert waiting.exception() or waiting.result() != firsts[1]
    one.rollback()
    assert [one.enqueue(unique=key) != first for key, first in zip("kl", firsts, strict=True)] == [True, True]


# ---- finishing in the handler's own transaction


def test_nobody_waits_for_a_transaction_that_has_finished_its_job(queue: Queue, one: Session, other: Session) -> None:
    chain, (alone, waiting) = one.chain("a", "a"), (one.enqueue(), one.enqueue())
    assert one.claim(ANNA, most=2) == [chain[0], alone]
    queue.make_old()
    one.begin()
    one.finish_attempt(chain[0])
    assert other.claim(BEN, token=2) == [waiting]
    # The other job of its worker, whose lease is over too, is rescued.
    assert other.rescue() == (1, 0, 1)
    assert other.beat(ANNA, [chain[0], alone]) == [(2, False)]
    assert other.settle([waiting], token=2, heir=BEN, types=["a"], heir_token=3) == ([], [])
    assert other.claim(BEN, token=4) == [alone]
    assert other.settle([alone], token=4) == ([], [])
    other.cancel(other.enqueue())
    other.rows("SELECT * FROM dejq.stats()")
    other.rows("SELECT dejq.delete_finished('1 day')")
    other.leave(ANNA)
    one.commit()
    assert one.states(chain) == ["finished", "ready"]


def test_a_transaction_that_is_rolled_back_has_not_finished_its_job(queue: Queue, one: Session, other: Session) -> None:
    chain = one.chain("a", "a")
    one.claim(ANNA)
    one.begin()
    one.finish_attempt(chain[0])
    one.rollback()
    assert one.states(chain) == ["running", "blocked"]
    assert one.settle(chain[:1]) == ([], chain[1:])


def test_a_worker_settles_after_its_handler_finished_the_job_itself(queue: Queue, one: Session, other: Session) -> None:
    chain = one.chain("a", "a", "a")
    one.claim(ANNA)
    one.begin()
    one.finish_attempt(chain[0])
    settle = other.start(other.settle, chain[:1])
    queue.await_blocked(other, settle)
    one.commit()
    assert settle.result() == ([1], [])
    assert one.states(chain) == ["finished", "ready", "blocked"]


def test_a_lost_lease_finishes_nothing_in_a_transaction(queue: Queue, one: Session) -> None:
    job = one.enqueue()
    one.claim(ANNA)
    with pytest.raises(psycopg.Error, match=f"the lease of job {job}") as raised:
        one.finish_attempt(job, token=2)
    assert raised.value.sqlstate == "DQ003"
    assert one.state(job) == "running"


# ---- plans --------------------------------------------------------------------------------------------------------
#
# Inside a function a statement is planned once and the plan is kept, so that one which was made while the table was empty is
# used when it is full. What is asserted is how many rows each node of a plan has looked at, as the server counted them.

FULL = 100_000
BATCH = 200


def work_of(plan: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """How many rows each node produced or threw away."""
    loops = plan.get("Actual Loops", 0)
    removed = sum(count for key, count in plan.items() if key.startswith("Rows Removed by"))
    rows = plan.get("Actual Rows", 0) + removed
    name = f"{plan['Node Type']} {plan.get('Index Name') or plan.get('Relation Name') or plan.get('CTE Name') or ''}"
    yield round(loops * max(rows, 1)), name
    for child in plan.get("Plans", ()):
        yield from work_of(child)


class Explained(Session):
    """A session that explains what the statements inside of functions do, and whose plans are generic."""

    def __init__(self, url: str, schema: str) -> None:
        super().__init__(url, schema)
        self.plans: list[dict[str, Any]] = []
        self.connection.add_notice_handler(self.note)
        self.rows("LOAD 'auto_explain'")
        settings = {
            "log_min_duration": "0",
            "log_nested_statements": "on",
            "log_analyze": "on",
            "log_timing": "off",
            "log_format": "json",
            "log_level": "notice",
        }
        for name, value in settings.items():
            self.rows(f"SET auto_explain.{name} = {value}")
        self.rows("SET plan_cache_mode = force_generic_plan")

    def note(self, notice: errors.Diagnostic) -> None:
        _, found, plan = (notice.message_primary or "").partition("plan:\n")
        if found:
            self.plans.append(json.loads(plan))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Fails when a statement looks at more rows than a multiple of `BATCH`."""
        self.plans.clear()
        yield
        assert self.plans
        for plan in list(self.plans):
            for rows, node in work_of(plan["Plan"]):
                assert rows <= 10 * BATCH, f"{node} looked at {rows} rows, in {json.dumps(plan, indent=1)}"


def fill(session: Session) -> None:
    """Puts many jobs of every kind into the table, but not into what the planner knows of it."""
    share = FULL // 10
    session.rows(
        f"INSERT INTO dejq.job (id, type, body) SELECT gen_random_uuid(), 'a', '1' FROM generate_series(1, {share} * 4)"
    )
    session.rows(
        f"INSERT INTO dejq.job (id, type, body) SELECT gen_random_uuid(), 't' || n % 50, '1' FROM generate_series(1, {share} * 2) n"
    )
    session.rows(
        f"""INSERT INTO dejq.job (id, type, body, hold, due_at)
            SELECT gen_random_uuid(), 'a', '1', 2, now() + n * interval '1 day' FROM generate_series(1, {share}) n"""
    )
    session.rows(
        f"""INSERT INTO dejq.job (id, type, body, hold, chain_id, position, length, cancel_rest)
            SELECT gen_random_uuid(), 'c', '1', (position > 1)::integer, chain, position, 3, true
            FROM (SELECT gen_random_uuid() AS chain FROM generate_series(1, {share}) n) c CROSS JOIN generate_series(1, 3) position"""
    )
    session.rows(
        f"""INSERT INTO dejq.done (id, enqueued_at, finished_at, attempt, slot, outcome, rescues, has_run, cancel_rest, type, body)
            SELECT gen_random_uuid(), now(), now(), 1, n % 16, (n % 20 = 0)::integer, 0, false, false, 'a', '1'
            FROM generate_series(1, {FULL}) n"""
    )


Act = Callable[[Explained, int], None]
ACTS: dict[str, Act] = {}


def act(call: Act) -> Act:
    """Something that is done with so many jobs, of which a part is watched."""
    ACTS[call.__name__] = call
    return call


@act
def claim_one_type(session: Explained, jobs: int) -> None:
    with session.watched():
        assert session.claim(ANNA, "a", most=jobs)


@act
def claim_many_types(session: Explained, jobs: int) -> None:
    with session.watched():
        assert session.claim(ANNA, *(f"t{n}" for n in range(50)), most=jobs)


@act
def claim_nothing(session: Explained, jobs: int) -> None:
    with session.watched():
        assert not session.claim(ANNA, "unknown")


@act
def claim_what_is_due(session: Explained, jobs: int) -> None:
    session.rows(
        f"""UPDATE dejq.job SET due_at = now() - {LONG}
            WHERE id = ANY (ARRAY(SELECT id FROM dejq.job WHERE hold = 2 ORDER BY due_at LIMIT %s))""",
        jobs,
    )
    with session.watched():
        assert session.claim(ANNA, "a", most=1)


@act
def settle_single_jobs(session: Explained, jobs: int) -> None:
    taken = session.claim(ANNA, "a", most=jobs, token=2)
    with session.watched():
        assert session.settle(taken, token=2) == ([], [])


@act
def settle_what_is_lost(session: Explained, jobs: int) -> None:
    taken = session.claim(ANNA, "a", most=jobs, token=3)
    with session.watched():
        assert len(session.settle(taken, token=4)[0]) == len(taken)


@act
def settle_and_hand_on(session: Explained, jobs: int) -> None:
    taken = session.claim(ANNA, "c", most=jobs, token=5)
    with session.watched():
        lost, released = session.settle(taken, token=5, heir=ANNA, types=["c"], heir_token=6)
    assert (lost, len(released)) == ([], len(taken))


@act
def settle_and_release(session: Explained, jobs: int) -> None:
    taken = session.claim(ANNA, "c", most=jobs, token=7)
    with session.watched():
        lost, released = session.settle(taken, token=7)
    assert (lost, len(released)) == ([], len(taken))


@act
def settle_and_cancel_the_rest(session: Explained, jobs: int) -> None:
    taken = session.claim(ANNA, "c", most=jobs, token=8)
    with session.watched():
        assert session.settle(taken, token=8, outcome=FAILED) == ([], [])


@act
def put_back_jobs(session: Explained, jobs: int) -> None:
    taken = session.claim(ANNA, "a", most=jobs, token=9)
    with session.watched():
        assert session.put_back(taken, RETRY, token=9) == []


@act
def beat_for_jobs(session: Explained, jobs: int) -> None:
    taken = session.claim(ANNA, "a", most=jobs, token=10)
    with session.watched():
        assert session.beat(ANNA, taken, token=10) == []


@act
def finish_in_a_transaction(session: Explained, jobs: int) -> None:
    (job,) = session.claim(ANNA, "a", most=1, token=11)
    with session.watched():
        session.finish_attempt(job, token=11)


@act
def enqueue_new_jobs(session: Explained, jobs: int) -> None:
    new = json.dumps([{"type": "a", "body": "1"}] * jobs)
    with session.watched():
        assert len(session.ids("SELECT dejq.enqueue_jobs(%s)", new)) == jobs


@act
def enqueue_known_jobs(session: Explained, jobs: int) -> None:
    ids = session.column("SELECT id::text FROM dejq.job LIMIT %s", jobs)
    ids[1::2] = session.column("SELECT id::text FROM dejq.done LIMIT %s", len(ids[1::2]))
    known = json.dumps([{"id": id, "type": "a", "body": "1"} for id in ids])
    with session.watched():
        assert session.ids("SELECT dejq.enqueue_jobs(%s)", known) == ids


@act
def enqueue_unique_jobs_whose_keys_are_held(session: Explained, jobs: int) -> None:
    new = json.dumps([{"type": "a", "body": "1", "unique": f"key {n}"} for n in range(jobs)])
    ids = session.ids("SELECT dejq.enqueue_jobs(%s)", new)
    with session.watched():
        assert session.ids("SELECT dejq.enqueue_jobs(%s)", new) == ids


@act
def step_in(session: Explained, jobs: int) -> None:
    chain = session.chain("x", "x", "x")
    with session.watched():
        session.finish(chain[0])
        session.cancel(chain[1])
        session.requeue(chain[1])
        session.cancel(session.enqueue("x"))
        session.finish(session.enqueue("x"))
        with pytest.raises(psycopg.Error, match="already"):
            session.cancel(chain[0])


@act
def look_at_a_job(session: Explained, jobs: int) -> None:
    (job,) = session.claim(ANNA, "a", most=1, token=12)
    with session.watched():
        session.rows("SELECT * FROM dejq.jobs WHERE id = %s", job)


@pytest.fixture(scope="module", params=["never analysed", "vacuumed while empty", "analysed"])
def full(request: pytest.FixtureRequest, pg_url: str) -> Iterator[Explained]:
    """A full table, with plans that were made when there was next to nothing in it, or that know all about it."""
    schema = f"full_{uuid.uuid4().hex[:12]}"
    migrate(pg_url, schema)
    session = Explained(pg_url, schema)
    tables = session.column(
        "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r'", schema
    )
    for table in tables:
        # When it comes is a matter of luck.
        session.rows(f"ALTER TABLE dejq.{table} SET (autovacuum_enabled = off)")
    if request.param == "vacuumed while empty":
        session.rows("VACUUM dejq.job, dejq.done, dejq.worker, dejq.tally, dejq.total")
    if request.param == "analysed":
        fill(session)
        session.rows("VACUUM ANALYZE dejq.job, dejq.done, dejq.worker, dejq.tally, dejq.total")
    else:
        for type in ["a", "t1", "c", *"aaaaaaaaaa", "c", "c"]:
            if type == "c":
                session.rows("SELECT dejq.enqueue_chain('{c,c,c}', '{1,1,1}', 'cancel')")
            else:
                session.enqueue(type)
        session.enqueue("a", delay="1 day")
        for call in ACTS.values():
            call(session, 1)
        fill(session)
    yield session
    session.rows(f"DROP SCHEMA {session.schema} CASCADE")
    session.close()


@pytest.mark.parametrize("name", ACTS)
def test_no_statement_looks_at_more_than_it_needs(full: Explained, name: str) -> None:
    ACTS[name](full, BATCH)


# ---- forgetting what has ended ------------------------------------------------------------------------------------


def end_jobs(session: Session, days_ago: int, jobs: int = 3) -> list[str]:
    """Jobs that ended so many days ago."""
    return session.column(
        """INSERT INTO dejq.done (id, enqueued_at, finished_at, attempt, slot, outcome, rescues, has_run, cancel_rest, type, body)
            SELECT dejq.uuid7(), t, t, 1, extract(epoch FROM t)::bigint / 86400 %% 16, 0, 0, false, false, 'a', '1'
            FROM (SELECT now() - make_interval(days => %s) AS t) t, generate_series(1, %s)
            RETURNING id::text""",
        days_ago, jobs,
    )  # fmt: skip


def table_of(session: Session, job: str) -> str:
    return str(session.value("SELECT tableoid::regclass::text FROM dejq.done WHERE id = %s", job))


def delete_finished(session: Session, older_than: str = "7 days", batch: int = 1000) -> int:
    return int(session.value("SELECT dejq.delete_finished(%s::interval, %s)", older_than, batch))


@pytest.fixture
def history(pg_url: str, until: Until) -> Iterator[Session]:
    """A schema whose jobs have all ended, of which no other test expects anything."""
    with new_queue(pg_url, f"history_{uuid.uuid4().hex[:12]}", until) as queue:
        yield queue.look


def test_whole_days_are_forgotten_at_once_and_the_oldest_first(history: Session) -> None:
    days = {days_ago: end_jobs(history, days_ago) for days_ago in (12, 1, 9, 10, 0)}
    storage = "SELECT pg_relation_filenode(%s)"
    tables = {days_ago: table_of(history, ids[0]) for days_ago, ids in days.items()}
    before = {days_ago: history.value(storage, table) for days_ago, table in tables.items()}
    # More than the batch: a day costs the same whatever its size.
    assert [delete_finished(history, batch=2) for _ in range(4)] == [3, 3, 3, 0]
    assert sorted(history.column("SELECT id::text FROM dejq.done")) == sorted(days[1] + days[0])
    # Their tables were emptied, and not row by row.
    emptied = {days_ago for days_ago, table in tables.items() if history.value(storage, table) != before[days_ago]}
    assert emptied == {9, 10, 12}


def test_of_a_day_with_newer_jobs_so_many_rows_are_forgotten_as_were_asked_for(history: Session) -> None:
    old = end_jobs(history, 16 + 5, jobs=5)
    new = end_jobs(history, 5, jobs=2)
    assert table_of(history, old[0]) == table_of(history, new[0])
    assert [delete_finished(history, batch=2) for _ in range(4)] == [2, 2, 1, 0]
    assert history.column("SELECT id::text FROM dejq.done ORDER BY id") == sorted(new)


@pytest.mark.parametrize("days_ago", [16, 15, 1, 0])
def test_the_days_into_which_jobs_end_are_never_emptied_at_once(history: Session, days_ago: int) -> None:
    end_jobs(history, days_ago, jobs=5)
    assert [delete_finished(history, "0", batch=3) for _ in range(3)] == [3, 2, 0]


def test_what_a_transaction_of_that_day_adds_is_never_lost(queue: Queue, one: Session, other: Session) -> None:
    old = end_jobs(one, 8, jobs=5)
    one.begin()
    late = end_jobs(one, 8 - 2 * 16, jobs=1)
    assert table_of(other, old[0]) == table_of(one, late[0])
    # It does not wait for it.
    assert [delete_finished(other, batch=3) for _ in range(3)] == [3, 2, 0]
    one.commit()
    assert other.column("SELECT id::text FROM dejq.done") == late
    assert delete_finished(other) == 0
    other.rows("DELETE FROM dejq.done")


def test_what_comes_while_a_day_is_looked_at_is_never_lost(queue: Queue, one: Session, other: Session) -> None:
    old = end_jobs(one, 8, jobs=5)
    # The look itself is made to wait; who looks again with the table in hand sees what has come meanwhile.
    table = table_of(one, old[0])
    one.begin()
    one.rows(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
    waiting = other.start(delete_finished, other)
    queue.await_blocked(other, waiting)
    late = end_jobs(one, 8 - 2 * 16, jobs=1)
    one.commit()
    assert waiting.result() == 5
    assert other.column("SELECT id::text FROM dejq.done") == late
    other.rows("DELETE FROM dejq.done")


def test_who_reads_keeps_a_day_from_being_emptied_and_is_not_kept_waiting(
    queue: Queue, one: Session, other: Session
) -> None:
    end_jobs(one, 8, jobs=5)
    one.begin()
    one.rows("SELECT count(*) FROM dejq.jobs")
    assert [delete_finished(other, batch=3) for _ in range(3)] == [3, 2, 0]
    one.commit()


def test_forgetting_and_settling_do_not_wait_for_each_other(queue: Queue, one: Session, other: Session) -> None:
    end_jobs(one, 8, jobs=5)
    job = one.enqueue()
    one.claim(ANNA)
    one.begin()
    assert delete_finished(one) == 5
    assert other.settle([job]) == ([], [])
    one.commit()
    assert one.column("SELECT id::text FROM dejq.done") == [job]


def test_forgetting_does_not_wait_for_a_transaction_that_has_finished_a_job(
    queue: Queue, one: Session, other: Session
) -> None:
    job = one.enqueue()
    one.claim(ANNA)
    end_jobs(one, 8, jobs=5)
    one.begin()
    one.finish_attempt(job)
    assert delete_finished(other) == 5
    assert delete_finished(other, "0") == 0
    one.commit()


def test_counts_of_what_was_forgotten_stay(queue: Queue, one: Session) -> None:
    job = one.enqueue()
    one.claim(ANNA)
    one.settle([job])
    assert delete_finished(one, "0") == 1
    assert one.rows("SELECT type, finished FROM dejq.stats()") == [("a", 1)]
    one.rows("TRUNCATE dejq.total, dejq.tally")


# ---- counting -----------------------------------------------------------------------------------------------------


def stats(session: Session, most: int = 200_000) -> dict[str, Row]:
    """By type: blocked, scheduled, ready, running, finished, failed, cancelled."""
    rows = session.rows(
        "SELECT type, blocked, scheduled, ready, running, finished, failed, cancelled FROM dejq.stats(%s)", most
    )
    return {row[0]: row[1:] for row in rows}


def test_every_state_is_counted(queue: Queue, one: Session) -> None:
    one.chain("a", "b", "b")
    one.enqueue("a", delay="1 day")
    one.enqueue("a", delay="1 microsecond")
    two = [one.enqueue("b") for _ in range(2)]
    assert stats(one) == {"a": (0, 1, 2, 0, 0, 0, 0), "b": (2, 0, 2, 0, 0, 0, 0)}
    one.claim(ANNA, "b")
    one.settle(two[:1], outcome=FAILED)
    one.claim(ANNA, "a", most=1)
    assert stats(one) == {"a": (0, 1, 1, 1, 0, 0, 0), "b": (2, 0, 0, 1, 0, 1, 0)}
    one.cancel(two[1])
    one.put_back(two[1:], CUT_SHORT)
    assert stats(one)["b"] == (2, 0, 0, 0, 0, 1, 1)
    one.requeue(two[0])
    assert stats(one)["b"] == (2, 0, 1, 0, 0, 0, 1)


def test_counts_are_exact_while_they_are_added_up(queue: Queue, one: Session, other: Session) -> None:
    jobs = [one.enqueue() for _ in range(5)]
    one.claim(ANNA)
    one.settle(jobs[:2])
    one.begin()
    one.settle(jobs[2:3], outcome=FAILED)
    assert stats(other) == {"a": (0, 0, 0, 3, 2, 0, 0)}
    other.begin()
    other.rows("SELECT dejq.fold()")
    assert stats(other) == {"a": (0, 0, 0, 3, 2, 0, 0)}
    # Nobody who settles or counts waits for it.
    one.settle(jobs[3:4])
    one.commit()
    assert stats(one) == {"a": (0, 0, 0, 1, 3, 1, 0)}
    another = one.start(one.rows, "SELECT dejq.fold()")
    queue.await_blocked(one, another)
    other.commit()
    another.result()
    assert stats(one) == stats(other) == {"a": (0, 0, 0, 1, 3, 1, 0)}
    assert one.rows("SELECT * FROM dejq.tally") == []
    one.requeue(jobs[2])
    assert stats(one) == {"a": (0, 0, 1, 1, 3, 0, 0)}
    one.rows("SELECT dejq.fold()")
    assert stats(one) == {"a": (0, 0, 1, 1, 3, 0, 0)}


def test_the_rescue_adds_the_counts_up(queue: Queue, one: Session) -> None:
    for _ in range(101):
        job = one.enqueue()
        one.claim(ANNA)
        one.settle([job])
    one.rescue()
    assert one.rows("SELECT * FROM dejq.tally") == []
    assert stats(one) == {"a": (0, 0, 0, 0, 101, 0, 0)}


def test_the_oldest_ready_job_is_the_first_in_line(queue: Queue, one: Session) -> None:
    first, second, _ = one.enqueue(), one.enqueue(), one.enqueue("b", delay="1 day")
    one.rows(f"UPDATE dejq.job SET enqueued_at = enqueued_at - {LONG} WHERE id = %s", first)
    one.rows(f"UPDATE dejq.job SET enqueued_at = enqueued_at - {LONG} / 2 WHERE id = %s", second)
    oldest = "SELECT extract(epoch FROM oldest_ready)::integer / 60 FROM dejq.stats() ORDER BY type"
    assert one.column(oldest) == [60, None]
    one.claim(ANNA, most=1)
    assert one.column(oldest) == [30, None]
    one.claim(ANNA)
    assert one.column(oldest) == [None, None]


def test_more_jobs_than_are_looked_at_are_estimated(queue: Queue, one: Session) -> None:
    # Its plan, and so the estimate, does not depend on when autovacuum comes.
    one.rows("ALTER TABLE dejq.job SET (autovacuum_enabled = off)")
    insert = "INSERT INTO dejq.job (id, type, body) SELECT dejq.uuid7(), 'ab'::text, '1' FROM generate_series(1, 6000)"
    one.rows(insert)
    assert stats(one, 6001) == {"ab": (0, 0, 6000, 0, 0, 0, 0)}
    one.rows("VACUUM ANALYZE dejq.job")
    assert stats(one, 1000)["ab"][2] == pytest.approx(6000, rel=0.05)
    # The planner looks at the size of the table, and need not have been told.
    one.rows(insert)
    assert stats(one, 1000)["ab"][2] == pytest.approx(12000, rel=0.1)
    one.rows("DELETE FROM dejq.job")
    assert stats(one, 1000) == {}


@act
def count(session: Explained, jobs: int) -> None:
    with session.watched():
        assert stats(session, BATCH)


# ---- what people with any driver call -----------------------------------------------------------------------------


def test_every_argument_of_enqueue_arrives(queue: Queue, one: Session) -> None:
    job = one.value(
        """SELECT dejq.enqueue('email:v1', '{"to": "ada@example.org"}', delay => '90 seconds', max_attempts => 3,
            "unique" => 'welcome/ada', headers => '{"trace": "t1"}')::text"""
    )
    looked_at = "type, body::text, max_attempts, unique_key, headers::text, state, extract(epoch FROM due_at - enqueued_at)::integer"
    assert one.rows(f"SELECT {looked_at}, chain_id, attempt, rescues FROM dejq.jobs WHERE id = %s", job) == [
        ("email:v1", '{"to": "ada@example.org"}', 3, "welcome/ada", '{"trace": "t1"}', "scheduled", 90, None, 0, 0)
    ]
    assert one.value("SELECT dejq.enqueue('email:v1', '1', \"unique\" => 'welcome/ada')::text") == job
    assert uuid.UUID(job).version == 7


@pytest.mark.parametrize("arguments", ["'a'", "'a', NULL", "'a', 'null'", "'a', NULL, NULL, NULL, NULL, NULL"])
def test_what_is_left_out_is_nothing(queue: Queue, one: Session, arguments: str) -> None:
    one.rows(f"SELECT dejq.enqueue({arguments})")
    expected = ("a", "null", "ready", None, None, None, None)
    assert one.rows("SELECT type, body::text, state, due_at, max_attempts, unique_key, headers FROM dejq.jobs") == [
        expected
    ]


def test_ids_are_in_the_order_in_which_they_were_made(queue: Queue, one: Session) -> None:
    ids = [one.enqueue() for _ in range(50)]
    assert sorted(ids) == ids
    assert len(set(ids)) == 50


def test_a_chain_comes_back_in_order(queue: Queue, one: Session) -> None:
    ids = one.ids("SELECT dejq.enqueue_chain('{a,b,c}', ARRAY['1', NULL, '{\"x\": 3}']::json[])")
    rows = one.rows(
        "SELECT id::text, type, body::text, state, chain_id::text, position, length FROM dejq.jobs ORDER BY position"
    )
    assert rows == [
        (ids[0], "a", "1", "ready", ids[0], 1, 3),
        (ids[1], "b", "null", "blocked", ids[0], 2, 3),
        (ids[2], "c", '{"x": 3}', "blocked", ids[0], 3, 3),
    ]
    (alone,) = one.ids("SELECT dejq.enqueue_chain('{a}', '{NULL}')")
    assert one.rows("SELECT chain_id, body::text FROM dejq.jobs WHERE id = %s", alone) == [(None, "null")]


BAD = {
    "dejq.enqueue('')": "'' is not a job type; a type is 1 to 128",
    "dejq.enqueue(NULL)": "NULL is not a job type",
    "dejq.enqueue('it''s')": "'it''s' is not a job type",
    "dejq.enqueue('\"a\"')": "is not a job type",
    "dejq.enqueue('a b')": "is not a job type",
    "dejq.enqueue(E'a\\n')": "is not a job type",
    "dejq.enqueue('Größe')": "'Größe' is not a job type",
    "dejq.enqueue(repeat('a', 129))": "is not a job type",
    "dejq.enqueue('a', max_attempts => 0)": "max_attempts must be at least 1",
    "dejq.enqueue('a', delay => '-1 second')": "delay must not be negative",
    "dejq.enqueue('a', \"unique\" => repeat('ü', 129))": '"unique" must have at most 256 bytes',
    "dejq.enqueue('a', headers => '[1]')": "headers must be an object of texts",
    "dejq.enqueue('a', headers => '{\"a\": 1}')": "headers must be an object of texts",
    "dejq.enqueue('a', headers => '\"a\"')": "headers must be an object of texts",
    "dejq.enqueue('a', '{')": "invalid input syntax for type json",
    "dejq.enqueue_chain('{}', '{}')": "equally many, and at least one",
    "dejq.enqueue_chain('{a,b}', '{1}')": "equally many, and at least one",
    "dejq.enqueue_chain(NULL, '{1}')": "equally many, and at least one",
    "dejq.enqueue_chain('{a,NULL}', '{1,2}')": "NULL is not a job type",
    "dejq.enqueue_chain('{a,b}', '{1,2}', 'stop')": "on_failure must be 'continue' or 'cancel', not 'stop'",
    "dejq.enqueue_chain('{a,b}', '{1,2}', NULL)": "on_failure must be 'continue' or 'cancel', not NULL",
    """dejq.enqueue_jobs('[{"type": "a", "body": "1", "unique": "k", "chain": "00000000-0000-7000-8000-000000000001",
        "position": 1, "length": 2}]')""": '"unique" works for single jobs only',
}


@pytest.mark.parametrize("call", BAD)
def test_bad_input_is_refused_and_nothing_is_stored(queue: Queue, one: Session, call: str) -> None:
    with pytest.raises(psycopg.Error) as raised:
        one.rows(f"SELECT {call}")
    assert BAD[call] in str(raised.value)
    assert (raised.value.sqlstate or "").startswith("22")
    assert one.rows("SELECT * FROM dejq.job") == []


BODIES = [
    '"\\u0000"',
    '{"\\u0000": ["\\u0000\\u0000"]}',
    '{"b": 1, "a": 2, "b": 3}',
    " [1,\n\t2 ] ",
    '"\\ud83d\\ude00 😀 \\\\u0000 \\/ /"',
    "123456789012345678901234567890.000000000000000000000000000010e-400",
    '"%s $1 {} $$ \' \\" dejq.job"',
    "[" * 128 + "]" * 128,
    '"' + "ü" * 100_000 + '"',
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_body_is_kept_byte_for_byte(queue: Queue, one: Session, body: str) -> None:
    job = str(one.value("SELECT dejq.enqueue('a', %s::json, headers => %s::json)", body, '{"h": ' + '"\\u0000"}'))
    chain = one.ids("SELECT dejq.enqueue_chain('{a,a}', ARRAY[%s, %s]::json[])", body, body)
    text = "SELECT body::text FROM dejq.jobs WHERE id = ANY (%s::uuid[])"
    assert one.column(text, [job, *chain]) == [body] * 3
    # Also when they have ended, were requeued and have ended again.
    one.claim(ANNA)
    one.settle([job], outcome=FAILED)
    one.requeue(job)
    one.finish(job)
    one.finish(chain[0])
    assert one.column(text, [job, *chain]) == [body] * 3


def test_a_job_in_each_state_as_the_view_shows_it(queue: Queue, one: Session) -> None:
    look = "SELECT state, attempt, due_at IS NOT NULL, started_at IS NOT NULL, last_beat_at IS NOT NULL, finished_at IS NOT NULL, worker_id, failure->>'kind' FROM dejq.jobs WHERE id = %s"
    chain = one.chain("a", "a")
    later, due = one.enqueue("b", delay="1 day"), one.enqueue("b", delay="1 microsecond")
    assert one.rows(look, chain[0]) == [("ready", 0, False, False, False, False, None, None)]
    assert one.rows(look, chain[1]) == [("blocked", 0, False, False, False, False, None, None)]
    assert one.rows(look, later) == [("scheduled", 0, True, False, False, False, None, None)]
    assert one.rows(look, due) == [("ready", 0, False, False, False, False, None, None)]
    one.claim(ANNA)
    assert one.rows(look, chain[0]) == [("running", 1, False, True, True, False, ANNA, None)]
    one.put_back(chain[:1], RETRY, delay=60)
    assert one.rows(look, chain[0]) == [("scheduled", 1, True, True, False, False, None, None)]
    one.requeue(chain[0])
    assert one.rows(look, chain[0]) == [("ready", 0, False, False, False, False, None, None)]
    one.claim(ANNA)
    one.settle(chain[:1])
    assert one.rows(look, chain[0]) == [("finished", 1, False, True, False, True, None, None)]
    one.cancel(chain[1])
    assert one.rows(look, chain[1]) == [("cancelled", 0, False, False, False, True, None, "cancelled")]
    one.claim(ANNA, "b")
    one.settle([due], outcome=FAILED)
    assert one.rows(look, due) == [("failed", 1, False, True, False, True, None, None)]


@pytest.mark.parametrize("operation", ["finish", "cancel", "requeue"])
def test_what_is_unknown_or_ended_cannot_be_changed(queue: Queue, one: Session, operation: str) -> None:
    unknown = uuid.uuid4()
    with pytest.raises(psycopg.Error, match=f"there is no job {unknown}; it was never enqueued here") as raised:
        one.rows(f"SELECT dejq.{operation}(%s)", unknown)
    assert raised.value.sqlstate == "DQ001"
    job = one.enqueue()
    one.finish(job)
    with pytest.raises(psycopg.Error, match=f"cannot {operation} job {job}, it is finished already") as raised:
        one.rows(f"SELECT dejq.{operation}(%s)", job)
    assert raised.value.sqlstate == "DQ002"


def test_many_jobs_can_be_changed_in_one_transaction(queue: Queue, one: Session) -> None:
    many = 3000
    new = json.dumps([{"type": "a", "body": "1"}] * many)
    one.ids("SELECT dejq.enqueue_jobs(%s)", new)
    one.begin()
    one.rows("SELECT dejq.cancel(id) FROM dejq.job")
    one.rows("SELECT dejq.requeue(id) FROM dejq.jobs WHERE state = 'cancelled'")
    # The server has room for some thousand locks in all.
    assert one.value("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'") <= 1024
    one.commit()
    assert stats(one) == {"a": (0, 0, many, 0, 0, 0, 0)}


def test_unresponsive_are_those_who_run_without_a_beat(queue: Queue, one: Session) -> None:
    jobs = [one.enqueue() for _ in range(3)]
    one.claim(ANNA, most=1)
    queue.make_old()
    one.claim(BEN, most=1, token=2)
    find = "SELECT id::text, state FROM dejq.unresponsive(%s::interval)"
    assert one.rows(find, "30 minutes") == [(jobs[0], "running")]
    assert one.rows(find, "2 hours") == []
    assert one.rows(find, "0") == [(jobs[0], "running"), (jobs[1], "running")]
    one.beat(ANNA)
    assert one.rows(find, "30 minutes") == []


def test_promoting_makes_everything_that_is_scheduled_ready(queue: Queue, one: Session) -> None:
    job, retried = one.enqueue(delay="1 day"), one.enqueue()
    one.claim(ANNA)
    one.put_back([retried], RETRY, delay=60)
    assert one.value("SELECT dejq.promote()") == 2
    assert one.states([job, retried]) == ["ready", "ready"]
    assert one.value("SELECT dejq.promote()") == 0


# ---- notifications


def heard(session: Session) -> list[str]:
    """What it was told since it was asked last, in order: all that was sent before what it now sends to itself."""
    session.rows("SELECT pg_notify(channel, '?end') FROM pg_listening_channels() channel")
    payloads = (notification.payload for notification in session.connection.notifies(timeout=SECONDS))
    return list(itertools.takewhile(lambda payload: payload != "?end", payloads))


def wait_for_jobs(session: Session, worker: uuid.UUID = ANNA) -> None:
    """As a worker that finds nothing to do."""
    session.rows("SELECT * FROM dejq.claim(%s, 'test', %s, 1, '{nothing}', '{0}', '{1}', 1, %s)", worker, LEASE, LEASE)


def test_who_waits_is_told_of_what_becomes_ready_and_of_nothing_else(
    queue: Queue, one: Session, other: Session
) -> None:
    one.rows(f'LISTEN "dejq:{queue.schema}"')
    other.enqueue("unheard")
    assert heard(one) == []
    wait_for_jobs(other)
    chain = other.chain("a", "b", "c", on_failure="continue")
    assert heard(one) == ["a"]
    steps: list[tuple[Callable[[], object], list[str]]] = [
        (lambda: other.enqueue("a"), ["a"]),
        (lambda: other.finish(chain[0]), ["b"]),
        (lambda: other.cancel(chain[1]), ["c"]),
        (lambda: other.requeue(chain[1]), ["b"]),
        (lambda: other.cancel(chain[2]), []),
    ]
    for step, expected in steps:
        step()
        assert heard(one) == expected
    other.begin()
    other.enqueue("a")
    other.rollback()
    assert heard(one) == []
    other.ids(
        "SELECT dejq.enqueue_jobs((SELECT json_agg(json_build_object('type', 't' || n, 'body', '1')) FROM generate_series(1, 21) n))"
    )
    assert heard(one) == ["*"]


# ---- names of schemas


@pytest.mark.parametrize("name", ["order", "SELECT", "with space", "dash-ed", "Upper", "1", "public2_", "x" * 58])
def test_a_schema_may_have_any_plain_name(pg_url: str, until: Until, name: str) -> None:
    with new_queue(pg_url, name, until) as queue:
        one = queue.session()
        chain = one.chain("a", "a", on_failure="cancel")
        assert one.claim(ANNA) == chain[:1]
        one.put_back(chain[:1], RETRY, delay=60)
        one.rows("SELECT dejq.promote()")
        one.claim(ANNA)
        one.settle(chain[:1], outcome=FAILED)
        one.requeue(chain[0])
        assert queue.drain() == chain
        assert stats(one) == {"a": (0, 0, 0, 0, 2, 0, 0)}
        assert delete_finished(one, "0") == 2


@pytest.mark.parametrize(
    "name", ["", "it's", 'weird "name"', "Ünï", "a$$b", "100%", "pg_own", "a.b", "x" * 59, "a\x00"]
)
def test_a_schema_with_another_name_is_refused_before_anything_is_sent(name: str) -> None:
    with pytest.raises(dejq.ConfigError, match="cannot be the name of a schema"):
        dejq.connect("postgresql://nobody@localhost:1/nothing", schema=name)


def test_two_schemas_in_one_database_know_nothing_of_each_other(pg_url: str, until: Until) -> None:
    names = [f"two_{uuid.uuid4().hex[:12]}" for _ in range(2)]
    with new_queue(pg_url, names[0], until) as first, new_queue(pg_url, names[1], until) as second:
        here, there = first.session(), second.session()
        for queue, session in ((first, here), (second, there)):
            session.rows(f'LISTEN "dejq:{queue.schema}"')
        wait_for_jobs(first.look)
        jobs = [session.enqueue(unique="k") for session in (here, there)]
        # In the other nobody waits, and nobody is told.
        assert [heard(here), heard(there)] == [["a"], []]
        assert [session.column("SELECT id::text FROM dejq.jobs") for session in (here, there)] == [
            [job] for job in jobs
        ]
        here.begin()
        here.rescue()
        here.claim(ANNA)
        first.look.rows("SELECT 1")
        there.claim(ANNA)
        second.make_old()
        assert there.rescue() == (1, 0, 1)
        here.commit()
        assert here.states(jobs[:1]) == ["running"]
        with pytest.raises(psycopg.Error, match="there is no job"):
            here.cancel(jobs[1])


def test_twenty_migrations_at_once_are_as_one(pg_url: str, until: Until) -> None:
    schema = f"many_{uuid.uuid4().hex[:12]}"
    with ThreadPoolExecutor(20) as threads:
        reports = list(threads.map(lambda _: migrate(pg_url, schema), range(20)))
    # Each step was taken once.
    steps = sorted(step for report in reports for step in report)
    assert len(steps) == len(set(steps)) > 0
    assert migrate(pg_url, schema) == []
    alone = f"alone_{uuid.uuid4().hex[:12]}"
    with new_queue(pg_url, schema, until) as first, new_queue(pg_url, alone, until) as second:
        assert described(first) == described(second)
        assert first.look.rows("SELECT version, name, breaking FROM dejq.migration ORDER BY 1") == second.look.rows(
            "SELECT version, name, breaking FROM dejq.migration ORDER BY 1"
        )


def described(queue: Queue) -> list[Row]:
    """Everything in a schema, in words that do not name it."""
    rows = queue.look.rows(
        """SELECT 'column', c.relname, a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull,
                pg_get_expr(d.adbin, d.adrelid), c.reloptions::text
            FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
            LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE c.relnamespace = %s::regnamespace
            UNION ALL SELECT 'index', c.relname, pg_get_indexdef(c.oid), NULL, NULL FROM pg_class c
            WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('i', 'I')
            UNION ALL SELECT 'function', p.proname, pg_get_functiondef(p.oid), NULL, NULL FROM pg_proc p
            WHERE p.pronamespace = %s::regnamespace
            ORDER BY 1, 2, 3""",
        *[queue.schema] * 3,
    )
    return [tuple(text and text.replace(queue.schema, "dejq") for text in row) for row in rows]


# ---- least privilege ----------------------------------------------------------------------------------------------

ROLES = ("sender", "producer", "runner", "operator", "owner")


def grants() -> str:
    """What docs/postgres.md says."""
    page = (Path(__file__).parents[2] / "docs" / "postgres.md").read_text()
    section = page.partition("## Least privilege")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```sql\n(.*?)```", section, re.DOTALL)
    return str(block)


@dataclass
class Roles:
    """A schema that one role owns, and sessions and addresses of those who may do less with it."""

    url: str
    schema: str
    names: dict[str, str]
    sessions: list[Session] = field(default_factory=list[Session])

    def address(self, role: str) -> str:
        parts = urlsplit(self.url)
        return parts._replace(netloc=f"{self.names[role]}@{parts.hostname}:{parts.port}").geturl()

    def session(self, role: str) -> Session:
        self.sessions.append(Session(self.address(role), self.schema))
        return self.sessions[-1]

    def client(self, role: str, **options: Any) -> dejq.Client:
        return dejq.connect(self.address(role), schema=self.schema, **options)


@pytest.fixture(scope="module")
def roles(pg_url: str) -> Iterator[Roles]:
    mark = uuid.uuid4().hex[:12]
    roles = Roles(pg_url, f"least_{mark}", {role: f"{role}_{mark}" for role in ROLES})
    admin = Session(pg_url, roles.schema)
    for name in roles.names.values():
        admin.rows(f"CREATE ROLE {name} LOGIN")
    admin.rows(f"CREATE SCHEMA {roles.schema} AUTHORIZATION {roles.names['owner']}")
    migrate(roles.address("owner"), roles.schema)
    admin.rows(
        re.sub(rf"\b({'|'.join(ROLES)})\b", lambda found: roles.names[found[0]], grants()).replace(
            "SCHEMA dejq", f"SCHEMA {roles.schema}"
        )
    )
    yield roles
    for session in roles.sessions:
        session.close()
    for name in roles.names.values():
        admin.rows(f"DROP OWNED BY {name} CASCADE")
        admin.rows(f"DROP ROLE {name}")
    admin.close()


def test_a_sender_enqueues(roles: Roles) -> None:
    sender = roles.session("sender")
    arguments = "max_attempts => 2, headers => '{\"a\": \"b\"}', delay => '1 s'"
    job = sender.value(f"SELECT dejq.enqueue('sent', '1', \"unique\" => 'k', {arguments})")
    assert sender.value("SELECT dejq.enqueue('sent', \"unique\" => 'k')") == job
    assert len(sender.chain("sent", "sent", on_failure="cancel")) == 2
    known = json.dumps([{"id": str(job), "type": "sent", "body": "1"}])
    assert sender.ids("SELECT dejq.enqueue_jobs(%s)", known) == [str(job)]


def test_a_client_that_only_enqueues(roles: Roles) -> None:
    with roles.client("producer") as client:
        client.enqueue(dejq.PendingJob("sent", 1))
        client.enqueue(dejq.PendingJob("sent", 1), dejq.PendingJob("sent", 2))
        client.enqueue(dejq.PendingJob("sent", 1, unique="u", delay=1))
        client.enqueue(dejq.PendingJob("sent", 1, unique="u"))
        # So many go by COPY.
        assert len(client.enqueue_many(dejq.PendingJob("sent", n) for n in range(2000))) == 2000


def test_a_worker_works(roles: Roles, until: Until) -> None:
    runner = roles.session("runner")
    with roles.client("runner", workers=2) as client:
        ran: list[object] = []

        def fail(job: dejq.Job) -> None:
            if job.attempt == 1:
                raise dejq.Retry(after=0.01)
            raise dejq.Discard("no")

        client.register_handler("run", lambda job: ran.append(job.body))
        client.register_handler("fail", fail, max_attempts=2)
        client.dequeue_loop()
        client.enqueue(
            dejq.PendingJob("run", 1), dejq.PendingJob("fail", 2), dejq.PendingJob("run", 3), on_failure="continue"
        )
        client.enqueue(dejq.PendingJob("fail", 1), dejq.PendingJob("run", 4), on_failure="cancel")
        until(lambda: runner.value("SELECT count(*) FROM dejq.done WHERE type IN ('run', 'fail')") == 5)
        assert ran == [1, 3]
    # Lost, rescued, lost once too often; finished within a transaction; added up.
    job, other = runner.enqueue("run"), runner.enqueue("run")
    assert runner.claim(ANNA, "run") == [job, other]
    runner.rows(f"UPDATE dejq.worker SET last_beat = last_beat - {LONG}")
    runner.rows(f"UPDATE dejq.job SET started_at = started_at - {LONG} WHERE token IS NOT NULL")
    assert runner.rescue(1) == (2, 0, 1)
    assert runner.claim(ANNA, "run", token=2) == [job, other]
    runner.finish_attempt(other, token=2)
    runner.rows(f"UPDATE dejq.worker SET last_beat = last_beat - {LONG}")
    runner.rows(f"UPDATE dejq.job SET started_at = started_at - {LONG} WHERE token IS NOT NULL")
    assert runner.rescue(1) == (0, 1, 1)
    runner.rows("SELECT dejq.fold()")
    runner.beat(ANNA)
    runner.leave(ANNA)


def test_an_operator_steps_in(roles: Roles) -> None:
    operator = roles.session("operator")
    job = operator.enqueue("stepped")
    with roles.client("operator") as client:
        assert client.get_job(job).state == "ready"
        assert [info.id for info in client.list_jobs(type="stepped")] == [job]
        client.cancel_job(job)
        client.requeue_job(job)
        client.finish_job(job)
        assert client.stats().by_type["stepped"].finished == 1
        assert client.unresponsive_jobs(0) == []
        assert client.delete_finished(0) >= 1
    operator.enqueue("stepped", delay="1 day")
    assert operator.value("SELECT dejq.promote()") >= 1
    end_jobs(operator, 8)
    before = operator.column("SELECT pg_relation_filenode(%s)", table := table_of(operator, end_jobs(operator, 8)[0]))
    assert delete_finished(operator) == 6
    assert operator.column("SELECT pg_relation_filenode(%s)", table) != before


READS = (
    "SELECT body FROM dejq.job",
    "SELECT body FROM dejq.done",
    "SELECT * FROM dejq.jobs",
    "SELECT * FROM dejq.stats()",
)
CHANGES = (
    "UPDATE dejq.job SET body = '1'",
    "DELETE FROM dejq.job",
    "SELECT * FROM dejq.claim(gen_random_uuid(), 'x', 60, 1, '{sent}', '{0}', '{1}', 1)",
    "SELECT * FROM dejq.beat(gen_random_uuid(), 'x', 60, '{}', '{}')",
    "SELECT dejq.cancel(id) FROM dejq.job LIMIT 1",
    "SELECT dejq.finish(id) FROM dejq.job LIMIT 1",
    "SELECT dejq.promote()",
    "SELECT dejq.fold()",
)
FORGERIES = (
    "INSERT INTO dejq.job (id, type, body, token, worker_id) VALUES (gen_random_uuid(), 'a', '1', 1, gen_random_uuid())",
    "INSERT INTO dejq.job (id, type, body, attempt) VALUES (gen_random_uuid(), 'a', '1', 1)",
    "INSERT INTO dejq.job (id, type, body, seq) VALUES (gen_random_uuid(), 'a', '1', -1)",
)
HISTORY = (
    "UPDATE dejq.done SET outcome = 0",
    "DELETE FROM dejq.done",
    "SELECT dejq.requeue(id) FROM dejq.done WHERE outcome <> 0 LIMIT 1",
    "SELECT dejq.delete_finished('0')",
    "TRUNCATE dejq.done_00",
)
STRUCTURE = (
    "TRUNCATE dejq.job",
    "SELECT setval('dejq.place', 1)",
    "DROP TABLE dejq.tally",
    "ALTER TABLE dejq.job ADD COLUMN x integer",
    "CREATE TABLE dejq.mine (x integer)",
    "CREATE OR REPLACE FUNCTION dejq.promote() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'",
    "UPDATE dejq.total SET jobs = 0",
    "UPDATE dejq.migration SET version = 0",
)
DENIED = {
    "sender": (
        *READS,
        *CHANGES,
        *FORGERIES,
        *HISTORY,
        *STRUCTURE,
        "SELECT version FROM dejq.migration",
        "SELECT name FROM dejq.worker",
    ),
    "producer": (*READS, *CHANGES, *FORGERIES, *HISTORY, *STRUCTURE),
    "runner": (
        "SELECT * FROM dejq.jobs",
        *FORGERIES,
        *HISTORY,
        *(change for change in STRUCTURE if "total" not in change),
    ),
    "operator": ("DELETE FROM dejq.worker", "UPDATE dejq.done SET outcome = 0", "SELECT dejq.fold()", *STRUCTURE),
}


@pytest.fixture(scope="module")
def locked_out(roles: Roles) -> dict[str, Session]:
    """A session of each role, and something to get at."""
    admin = Session(roles.url, roles.schema)
    end_jobs(admin, 8)
    admin.rows("UPDATE dejq.done SET outcome = 1")
    admin.enqueue("sent")
    admin.close()
    return {role: roles.session(role) for role in DENIED}


@pytest.mark.parametrize(("role", "statement"), [(role, statement) for role in DENIED for statement in DENIED[role]])
def test_a_role_can_do_nothing_else(locked_out: dict[str, Session], role: str, statement: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        locked_out[role].rows(statement)


# ---- all of it at once --------------------------------------------------------------------------------------------


class Storm:
    """One of many who do whatever comes to their mind to the same few chains."""

    def __init__(self, queue: Queue, jobs: Sequence[str], seed: int) -> None:
        self.session = queue.session()
        self.jobs = jobs
        self.chance = random.Random(seed)
        self.worker = uuid.uuid4()
        self.tokens = itertools.count(seed * 1_000_000)
        self.held: list[tuple[str, int]] = []
        self.deadlocks = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            step = self.chance.choice(
                [self.work, self.work, self.work, self.end, self.end, self.end, self.step_in, self.watch]
            )
            try:
                step()
            except psycopg.Error as error:
                # Refused, or a deadlock: the whole transaction was rolled back. Nothing else may happen.
                if error.sqlstate not in ("DQ001", "DQ002", "DQ003", "40P01"):
                    raise
                self.deadlocks += error.sqlstate == "40P01"

    def work(self) -> None:
        token = next(self.tokens)
        self.held += [(job, token) for job in self.session.claim(self.worker, "a", "b", most=3, token=token)]

    def end(self) -> None:
        if not self.held:
            return
        job, token = self.held.pop(self.chance.randrange(len(self.held)))
        session, types = self.session, ["a"] if self.chance.random() < 0.5 else []
        heir = self.worker if types else None
        outcome = self.chance.choice([FINISHED, FINISHED, FAILED, CANCELLED, RETRY, CUT_SHORT, NEVER_STARTED, -1])
        if outcome == -1:
            session.finish_attempt(job, token)
        elif outcome >= RETRY:
            session.put_back([job], outcome, token=token, delay=self.chance.choice([0, 0, 60]))
        else:
            next_token = next(self.tokens)
            session.settle([job], token=token, outcome=outcome, heir=heir, types=types, heir_token=next_token)
            owned = session.column("SELECT id::text FROM dejq.job WHERE token = %s", next_token)
            self.held += [(next_job, next_token) for next_job in owned]

    def step_in(self) -> None:
        job = self.chance.choice(self.jobs)
        operation = self.chance.choice(
            [self.session.cancel, self.session.finish, self.session.requeue, self.session.requeue]
        )
        operation(job)

    def watch(self) -> None:
        choice = self.chance.randrange(6)
        if choice == 0:
            self.session.rows("SELECT dejq.promote()")
        elif choice == 1:
            self.session.rescue(1000)
        elif choice == 2:
            # It has been silent, and says goodbye while it may hold something.
            self.session.rows(f"UPDATE dejq.worker SET last_beat = last_beat - {LONG} WHERE id = %s", self.worker)
            self.session.rows(f"UPDATE dejq.job SET started_at = started_at - {LONG} WHERE worker_id = %s", self.worker)
            self.session.leave(self.worker)
        elif choice == 3:
            self.session.rows("SELECT dejq.fold()")
        else:
            gone = self.session.beat(self.worker, [job for job, _ in self.held])
            assert all(0 < place <= len(self.held) for place, _ in gone)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_many_do_at_once_no_job_is_lost_and_no_chain_stands_still(queue: Queue, seed: int) -> None:
    chains = [
        queue.look.chain(*"aba"[: 1 + n % 3], *"b" * (n % 2), on_failure="continue" if n % 3 else "cancel")
        for n in range(4)
    ]
    jobs = [job for chain in chains for job in chain]
    storms = [Storm(queue, jobs, seed * 10 + n + 1) for n in range(5)]
    with ThreadPoolExecutor(len(storms)) as threads:
        for done in [threads.submit(storm.run, 60) for storm in storms]:
            done.result()
    queue.check()
    assert sorted(queue.look.column("SELECT id::text FROM dejq.jobs")) == sorted(jobs)
    # Who steps in and who works lock in one order.
    assert sum(storm.deadlocks for storm in storms) == 0
