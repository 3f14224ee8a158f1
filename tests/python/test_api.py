"""Clients, options and enqueue: what works, and that bad input is refused with what to type instead.

A ``type: ignore`` here marks input that is wrong on purpose, as a program without a type checker gives it.
"""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

import dejq
from dejq import (
    Backoff,
    Client,
    ClientStopped,
    ConfigError,
    DejqError,
    Job,
    NotSupported,
    PendingJob,
    UnknownJob,
    WrongState,
    testing,
)

if TYPE_CHECKING:
    from python.conftest import Ended, NewClient, RunAll, Until

odd: Any = object()
UNKNOWN = "01890a5d-ac96-774b-bcce-b302099a8057"


def noop(job: Job) -> None:
    pass


# ---- where a client comes from ---------------------------------------------------------------------------


def test_memory_and_connect_make_the_same_client() -> None:
    for client in (dejq.memory(), dejq.connect("memory://"), Client("memory://")):
        assert isinstance(client, Client)
        assert client.store == "memory"
        assert client.enqueue(PendingJob("t"))


def test_clients_without_a_name_have_queues_of_their_own() -> None:
    one, other = dejq.memory(), dejq.memory()
    one.enqueue(PendingJob("t"))
    assert (one.stats().enqueued_jobs, other.stats().enqueued_jobs) == (1, 0)


def test_clients_of_one_name_share_a_queue() -> None:
    one, other = dejq.memory("shared"), dejq.connect("memory://shared")
    (id,) = one.enqueue(PendingJob("t", "from one"))
    assert other.get_job(id).body == "from one"


def test_a_named_queue_is_gone_when_its_last_client_is() -> None:
    client = dejq.memory("short-lived")
    client.enqueue(PendingJob("t"))
    del client
    gc.collect()
    assert dejq.memory("short-lived").stats().enqueued_jobs == 0


def test_options_may_stand_in_the_url_and_those_of_the_call_win() -> None:
    client = dejq.connect("memory://?workers=7&heartbeat=0.5&async_workers=9", workers=3)
    assert (client.workers, client.heartbeat, client.async_workers) == (3, 0.5, 9)


def test_a_duration_may_be_a_timedelta_and_none_is_not_given() -> None:
    client = dejq.memory(heartbeat=timedelta(milliseconds=1500), max_beats=None)
    assert client.heartbeat == 1.5


def test_the_defaults_are_those_of_the_docs() -> None:
    client = dejq.memory()
    assert client.heartbeat == 5.0
    assert client.workers >= 1
    assert client.async_workers == 100


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without settings, and none in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEJQ_URL", raising=False)
    return tmp_path


def test_the_url_may_come_from_the_environment(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJQ_URL", "memory://from-environment")
    client = dejq.connect()
    assert client.url_source == "DEJQ_URL"
    client.enqueue(PendingJob("t"))
    assert dejq.memory("from-environment").stats().enqueued_jobs == 1


def test_a_url_of_the_call_wins_over_the_environment(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJQ_URL", "nonsense")
    assert dejq.connect("memory://").url_source == "the call"


def test_the_url_may_come_from_a_pyproject_toml_above(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (elsewhere / "pyproject.toml").write_text('[tool.dejq]\nurl = "memory://from-project"\n')
    (elsewhere / "inner").mkdir()
    monkeypatch.chdir(elsewhere / "inner")
    assert dejq.connect().url_source == "[tool.dejq] in pyproject.toml"


def test_a_pyproject_toml_that_is_not_toml_is_named(elsewhere: Path) -> None:
    (elsewhere / "pyproject.toml").write_text("[tool.dejq\n")
    with pytest.raises(ConfigError, match=r"pyproject\.toml cannot be read as TOML"):
        dejq.connect()


def test_settings_that_nothing_can_read_are_not_passed_over(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for parser in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, parser, None)  # makes its import fail, as on a bare Python 3.10
    (elsewhere / "pyproject.toml").write_text('[tool.dejq]\nurl = "memory://"\n')
    with pytest.raises(ConfigError, match="pip install tomli"):
        dejq.connect()


def test_a_pyproject_toml_without_settings_for_dejq_needs_no_parser(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for parser in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, parser, None)
    (elsewhere / "pyproject.toml").write_text("[tool.other]\n")
    with pytest.raises(ConfigError, match="no store is named"):
        dejq.connect()


def test_without_any_url_the_three_ways_to_give_one_are_told(elsewhere: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        dejq.connect()
    for way in ('connect("memory://")', "DEJQ_URL", "[tool.dejq]"):
        assert way in str(caught.value)


BAD_SETTINGS: dict[str, tuple[Callable[[], object], str]] = {
    "an unknown scheme": (
        lambda: dejq.connect("mysql://user:hunter2@host/db"),
        'there is no store with the scheme "mysql"; this build of dejq knows memory://',
    ),
    "no scheme": (lambda: dejq.connect("memory"), 'a URL like memory:// and this one has no "://"'),
    "an empty url": (lambda: dejq.connect(""), 'this one has no "://"'),
    "an unknown option": (lambda: dejq.memory(hartbeat=1), 'no option "hartbeat"; did you mean "heartbeat"?'),
    "an unknown option in the url": (
        lambda: dejq.connect("memory://?wrokers=2"),
        'no option "wrokers"; did you mean "workers"? Options here: async_workers, heartbeat, inline',
    ),
    "an option like no other": (
        lambda: dejq.memory(password="hunter2"),
        'there is no option "password" Options',
    ),
    "no workers": (lambda: dejq.memory(workers=0), 'option workers="0" must be a whole number of at least 1'),
    "words for workers": (
        lambda: dejq.memory(workers="many"),
        'option workers="many" must be a whole number',
    ),
    "half a worker": (lambda: dejq.memory(workers=1.5), 'option workers="1.5" must be a whole number'),
    "a list of workers": (
        lambda: dejq.memory(workers=[1]),
        "option workers= cannot be a list; give a number",
    ),
    "too many workers": (lambda: dejq.memory(workers=10_001), "workers=10001 is more threads than a process"),
    "no async workers": (lambda: dejq.memory(async_workers=0), 'async_workers="0" must be a whole number'),
    "no heartbeat": (
        lambda: dejq.memory(heartbeat=0),
        'heartbeat="0" must be a number of seconds of at least 0.01',
    ),
    "a negative heartbeat": (
        lambda: dejq.memory(heartbeat=timedelta(seconds=-1)),
        'heartbeat="-1.0" must be a number',
    ),
    "a heartbeat of nan": (lambda: dejq.memory(heartbeat=float("nan")), 'heartbeat="nan" must be a number'),
    "no beats": (lambda: dejq.memory(max_beats=0), 'max_beats="0" must be a whole number of at least 1'),
    "no attempts": (
        lambda: dejq.memory(max_attempts=0),
        'max_attempts="0" must be a whole number of at least 1',
    ),
    "negative rescues": (
        lambda: dejq.memory(max_rescues=-1),
        'max_rescues="-1" must be a whole number of at least 0',
    ),
    "no body": (lambda: dejq.memory(max_body=0), 'max_body="0" must be a whole number of at least 1'),
    "perhaps inline": (lambda: dejq.connect("memory://?inline=maybe"), 'inline="maybe" must be true or false'),
    "a negative backoff": (lambda: Backoff(-1), "Backoff(initial=-1) must be a finite number at least 0"),
    "a shrinking backoff": (
        lambda: Backoff(factor=0.5),
        "Backoff(factor=0.5) must be a finite number at least 1",
    ),
    "an endless backoff": (
        lambda: Backoff(maximum=float("inf")),
        "Backoff(maximum=inf) must be a finite number",
    ),
    "too much jitter": (
        lambda: Backoff(jitter=1.5),
        "Backoff(jitter=1.5) must be a finite number from 0 to 1",
    ),
}


@pytest.mark.parametrize(("make", "text"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_a_bad_setting_is_refused_with_what_it_must_be(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.code == "DEJQ-E100"
    assert text in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "redis", "rediss", "valkey", "sqs"])
def test_a_url_that_cannot_be_opened_is_never_shown(scheme: str) -> None:
    with pytest.raises((DejqError, ConnectionError)) as caught:
        dejq.connect(f"{scheme}://user:hunter2@127.0.0.1:1/db?nonsense=1").stats()
    assert "hunter2" not in str(caught.value)


# ---- pending jobs ----------------------------------------------------------------------------------------


def test_a_pending_job_shows_what_it_was_made_of() -> None:
    job = PendingJob("email:v1", {"to": 1}, delay=1.5, max_attempts=3, unique="k", headers={"tenant": "a"})
    assert (job.type, job.body, job.max_attempts, job.unique) == ("email:v1", {"to": 1}, 3, "k")
    assert job.delay == timedelta(seconds=1.5)
    assert job.headers == {"tenant": "a"}


def test_a_pending_job_without_options_has_none() -> None:
    job: PendingJob[Any] = PendingJob("t")
    assert (job.body, job.delay, job.max_attempts, job.unique, job.headers) == (None, None, None, None, {})


def test_the_headers_of_a_pending_job_are_a_copy() -> None:
    given = {"a": "1"}
    job = PendingJob("t", headers=given)
    given["a"] = "2"
    job.headers["a"] = "3"
    assert job.headers == {"a": "1"}


def test_the_repr_of_a_pending_job_hides_its_body() -> None:
    assert repr(PendingJob("t", "hunter2", headers={"token": "hunter2"})) == 'PendingJob("t")'


def test_a_pending_job_is_generic_and_may_be_subclassed() -> None:
    class Email(PendingJob[str]):
        def __new__(cls, to: str) -> Email:
            return super().__new__(cls, "email", to)

    client = dejq.memory()
    (id,) = client.enqueue(Email("ada"))
    assert (client.get_job(id).type, client.get_job(id).body) == ("email", "ada")
    assert PendingJob[int]("t", 1).body == 1


def test_a_pending_job_cannot_be_changed() -> None:
    job: Any = PendingJob("t")
    with pytest.raises(AttributeError):
        job.type = "u"


@pytest.mark.parametrize("delay", [0, 0.25, 3600, timedelta(days=36_500)], ids=str)
def test_a_delay_may_be_seconds_or_a_timedelta(delay: float | timedelta) -> None:
    given = delay if isinstance(delay, timedelta) else timedelta(seconds=delay)
    assert PendingJob("t", delay=delay).delay == (given or None)


@pytest.mark.parametrize("type", ["a", "A-Z.a_z:0/9", "x" * 128])
def test_a_type_of_the_allowed_characters_is_taken(type: str) -> None:
    assert PendingJob(type).type == type


BAD_JOBS: dict[str, tuple[Callable[[], object], str]] = {
    "an empty type": (lambda: PendingJob(""), 'job type "" is empty; a type names its handler'),
    "a type of 129 bytes": (lambda: PendingJob("x" * 129), "has 129 bytes, 128 is the most"),
    "a space in a type": (lambda: PendingJob("a b"), "job type \"a b\" has ' ' at byte 1"),
    "a newline in a type": (lambda: PendingJob("a\nb"), "job type \"a\\nb\" has '\\n' at byte 1"),
    "an umlaut in a type": (lambda: PendingJob("größe"), "has 'ö' at byte 2"),
    "a quote in a type": (lambda: PendingJob("a'b"), "has '\\'' at byte 1"),
    "a semicolon in a type": (lambda: PendingJob("a;b"), "has ';' at byte 1"),
    "a brace in a type": (lambda: PendingJob("{a}"), "has '{' at byte 0"),
    "a star in a type": (lambda: PendingJob("a*"), "has '*' at byte 1"),
    "a nul in a type": (lambda: PendingJob("a\0"), "has '\\0' at byte 1"),
    "a lone surrogate in a type": (lambda: PendingJob("a\ud800"), "at byte 1"),
    "a type ends with what to use": (
        lambda: PendingJob("ä"),
        "use 1 to 128 of A-Z a-z 0-9 _ . : / - (for example",
    ),
    "a negative delay": (
        lambda: PendingJob("t", delay=-1),
        "delay=-1 must be seconds (a number) or a timedelta",
    ),
    "a negative timedelta": (
        lambda: PendingJob("t", delay=timedelta(seconds=-1)),
        "delay=datetime.timedelta(days=-1, seconds=86399) must be seconds",
    ),
    "a delay of nan": (lambda: PendingJob("t", delay=float("nan")), "delay=nan must be seconds"),
    "an endless delay": (lambda: PendingJob("t", delay=float("inf")), "delay=inf must be seconds"),
    "a delay beyond all dates": (lambda: PendingJob("t", delay=1e15), "endless (100 years at most)"),
    "a delay as a word": (lambda: PendingJob("t", delay="1"), "delay='1' must be seconds"),  # type: ignore[arg-type]
    "no attempts": (
        lambda: PendingJob("t", max_attempts=0),
        "max_attempts=0 must be a whole number from 1 to",
    ),
    "negative attempts": (lambda: PendingJob("t", max_attempts=-1), "max_attempts=-1 must be a whole number"),
    "far too many attempts": (
        lambda: PendingJob("t", max_attempts=2**70),
        "must be a whole number from 1 to 4294967295",
    ),
    "attempts as a word": (
        lambda: PendingJob("t", max_attempts="3"),  # type: ignore[arg-type]
        "max_attempts='3' must be a whole number",
    ),
    "an empty key": (lambda: PendingJob("t", unique=""), "unique= is empty; leave it out"),
    "a key of 257 bytes": (
        lambda: PendingJob("t", unique="x" * 257),
        "has 257 bytes, 256 is the most; use a hash",
    ),
    "a lone surrogate in a key": (lambda: PendingJob("t", unique="\ud800"), "unique= has a lone surrogate"),
    "a header that is no string": (
        lambda: PendingJob("t", headers={"a": 1}),  # type: ignore[dict-item]
        "headers= must map strings to strings",
    ),
    "a lone surrogate in a header": (
        lambda: PendingJob("t", headers={"a": "\ud800"}),
        "without lone surrogates",
    ),
    "headers of 8,193 bytes": (
        lambda: PendingJob("t", headers={"ab": "x" * 8191}),
        "headers= have 8193 bytes, 8192 is the most; put data into the body",
    ),
}


@pytest.mark.parametrize(("make", "text"), BAD_JOBS.values(), ids=BAD_JOBS)
def test_a_bad_pending_job_is_refused_where_it_is_made(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.code == "DEJQ-E100"
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [lambda: PendingJob(odd), lambda: PendingJob("t", headers=odd), lambda: PendingJob("t", unique=odd)],
    ids=["type", "headers", "unique"],
)
def test_an_argument_of_a_wrong_type_is_a_type_error(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError):
        make()


def test_the_largest_headers_and_keys_are_taken(client: Client) -> None:
    (id,) = client.enqueue(PendingJob("t", unique="x" * 256, headers={"ab": "x" * 8190}))
    assert client.get_job(id).headers == {"ab": "x" * 8190}


def test_a_bad_value_is_shown_in_part_when_it_is_long() -> None:
    with pytest.raises(ConfigError) as caught:
        PendingJob("t", delay="x" * 10_000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300


# ---- enqueue ---------------------------------------------------------------------------------------------


def test_enqueue_returns_the_ids_in_the_order_given(client: Client) -> None:
    ids = client.enqueue(PendingJob("t", 1), PendingJob("u", 2), PendingJob("t", 3))
    assert [client.get_job(id).body for id in ids] == [1, 2, 3]


def test_enqueue_many_returns_the_ids_of_jobs_and_chains_in_one_list(client: Client) -> None:
    ids = client.enqueue_many([PendingJob("t", 1), [PendingJob("t", 2), PendingJob("t", 3)], (PendingJob("t", 4),)])
    assert [client.get_job(id).body for id in ids] == [1, 2, 3, 4]


def test_enqueue_many_takes_any_iterable_and_an_empty_one_stores_nothing(client: Client) -> None:
    assert len(client.enqueue_many(PendingJob("t", number) for number in range(3))) == 3
    assert client.enqueue_many([]) == []
    assert client.stats().enqueued_jobs == 3


def test_ids_are_uuids_of_version_7_that_grow(client: Client) -> None:
    ids = client.enqueue_many([PendingJob("t") for _ in range(100)])
    ids += [id for _ in range(100) for id in client.enqueue(PendingJob("t"))]
    assert {UUID(id).version for id in ids} == {7}
    assert ids == sorted(ids)


def test_options_of_the_job_reach_the_handler(client: Client, run_all: RunAll) -> None:
    seen: list[Job] = []
    client.register_handler("t", seen.append)
    before = datetime.now(timezone.utc)
    (id,) = client.enqueue(PendingJob("t", {"a": 1}, headers={"tenant": "x"}))
    run_all(client)
    (job,) = seen
    assert (job.id, job.type, job.body, job.headers, job.attempt) == (id, "t", {"a": 1}, {"tenant": "x"}, 1)
    assert (job.chain_id, job.position, job.chain_length, job.cancelled) == (id, 1, 1, False)
    assert job.enqueued_at.utcoffset() == timedelta(0)
    assert abs(job.enqueued_at - before) < timedelta(seconds=20)


def test_the_repr_of_a_job_has_its_id_and_hides_its_body(client: Client) -> None:
    seen: list[Job] = []
    client.register_handler("t", seen.append)
    (id,) = client.enqueue(PendingJob("t", "hunter2", headers={"token": "hunter2"}))
    testing.drain(client)
    assert repr(seen[0]) == f'<Job "t" {id} attempt 1>'


def test_a_job_cannot_be_made_or_changed_by_hand(client: Client) -> None:
    made: Any = Job
    with pytest.raises(TypeError):
        made()
    seen: list[Any] = []
    client.register_handler("t", seen.append)
    client.enqueue(PendingJob("t"))
    testing.drain(client)
    with pytest.raises(AttributeError):
        seen[0].attempt = 5
    seen[0].headers["a"] = "b"
    assert seen[0].headers == {}


def test_the_repr_of_a_client_names_the_store_and_never_the_url() -> None:
    assert repr(dejq.connect("memory://hunter2?workers=2")) == "<dejq.Client memory>"


def stopped_client() -> Client:
    client = dejq.memory()
    client.stop()
    return client


def raising() -> Iterator[PendingJob[int]]:
    yield PendingJob("t", 1)
    raise ZeroDivisionError


BAD_CALLS: dict[str, tuple[Callable[[Client], object], type[Exception], str | None, str]] = {
    "no job": (
        lambda client: client.enqueue(),
        ConfigError,
        "DEJQ-E100",
        "enqueue() was given no job; pass at least one PendingJob",
    ),
    "a string as a job": (
        lambda client: client.enqueue(PendingJob("t"), "x"),  # type: ignore[arg-type]
        TypeError,
        None,
        'a PendingJob is expected, not str; write PendingJob("type", body), or use the .job(body) of a',
    ),
    "a list of jobs": (
        lambda client: client.enqueue([PendingJob("t")]),  # type: ignore[arg-type]
        TypeError,
        None,
        "a PendingJob is expected, not list",
    ),
    "an empty chain": (
        lambda client: client.enqueue_many([PendingJob("t"), []]),
        ConfigError,
        "DEJQ-E100",
        "was given no job",
    ),
    "a string in a chain": (
        lambda client: client.enqueue_many([PendingJob("t"), [PendingJob("t"), "x"]]),  # type: ignore[list-item]
        TypeError,
        None,
        "a PendingJob is expected, not str",
    ),
    "a number among chains": (
        lambda client: client.enqueue_many([PendingJob("t"), 5]),  # type: ignore[list-item]
        TypeError,
        None,
        "a PendingJob is expected, not int",
    ),
    "an iterable that raises": (lambda client: client.enqueue_many(raising()), ZeroDivisionError, None, ""),
    "a unique job in a chain": (
        lambda client: client.enqueue(PendingJob("t"), PendingJob("t", unique="k")),
        ConfigError,
        "DEJQ-E100",
        "unique= works for single jobs only, and this job is part of a chain: a chain must be stored whole",
    ),
    "a unique job in one of many chains": (
        lambda client: client.enqueue_many([PendingJob("t"), [PendingJob("t", unique="k"), PendingJob("t")]]),
        ConfigError,
        "DEJQ-E100",
        "unique= works for single jobs only",
    ),
    "a bad on_failure": (
        lambda client: client.enqueue(PendingJob("t"), on_failure="stop"),  # type: ignore[arg-type]
        ConfigError,
        "DEJQ-E100",
        'on_failure=\'stop\' must be "continue" or "cancel"',
    ),
    "a bad on_failure for many": (
        lambda client: client.enqueue_many([PendingJob("t")], on_failure="stop"),  # type: ignore[arg-type]
        ConfigError,
        "DEJQ-E100",
        "on_failure='stop' must be",
    ),
    "a connection": (
        lambda client: client.enqueue(PendingJob("t"), connection=odd),
        NotSupported,
        "DEJQ-E130",
        "enqueue(connection=…) is not possible on memory: it has no transactions to join; leave it out, and",
    ),
}


@pytest.mark.parametrize(("call", "error", "code", "text"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_bad_enqueue_is_refused_and_nothing_is_stored(
    call: Callable[[Client], object], error: type[Exception], code: str | None, text: str, client: Client
) -> None:
    client.enqueue(PendingJob("t", "there already"))
    before = client.stats()
    with pytest.raises(error) as caught:
        call(client)
    assert text in str(caught.value)
    assert getattr(caught.value, "code", None) == code
    after = client.stats()
    assert (after.enqueued_jobs, after.by_type.keys()) == (1, before.by_type.keys())


def test_a_refused_unique_job_does_not_take_its_key(client: Client) -> None:
    with pytest.raises(dejq.BodyError):
        client.enqueue(PendingJob("t", float("nan"), unique="k"))
    (id,) = client.enqueue(PendingJob("t", 1, unique="k"))
    assert client.get_job(id).body == 1


# ---- the life of a client --------------------------------------------------------------------------------


def test_leaving_the_context_stops_the_client() -> None:
    with dejq.memory() as client:
        assert client.enqueue(PendingJob("t"))
    with pytest.raises(ClientStopped):
        client.enqueue(PendingJob("t"))


def test_an_exception_in_the_context_comes_out_and_stops_the_client() -> None:
    with pytest.raises(ZeroDivisionError), dejq.memory() as client:
        raise ZeroDivisionError
    with pytest.raises(ClientStopped):
        client.enqueue(PendingJob("t"))


AFTER_STOP: dict[str, Callable[[Client], object]] = {
    "enqueue": lambda client: client.enqueue(PendingJob("t")),
    "enqueue_many": lambda client: client.enqueue_many([PendingJob("t")]),
    "register_handler": lambda client: client.register_handler("t", noop),
    "dequeue_loop": lambda client: client.dequeue_loop(),
    "run": lambda client: client.run(),
}


@pytest.mark.parametrize("call", AFTER_STOP.values(), ids=AFTER_STOP)
def test_a_stopped_client_takes_no_jobs_and_no_handlers(call: Callable[[Client], object]) -> None:
    client = stopped_client()
    with pytest.raises(ClientStopped) as caught:
        call(client)
    assert caught.value.code == "DEJQ-E300"
    assert "this client was stopped and takes no jobs and no handlers any more; make a new client" in str(caught.value)
    assert client.stats().enqueued_jobs == 0


def test_a_stopped_client_still_answers_questions(client: Client) -> None:
    (id,) = client.enqueue(PendingJob("t"))
    client.stop()
    assert client.stats().enqueued_jobs == 1
    assert client.get_job(id).state == "ready"
    assert [job.id for job in client.list_jobs()] == [id]
    client.cancel_job(id)
    assert client.delete_finished(0) == 1


def test_stop_may_be_called_before_the_loop_twice_and_from_several_threads(new_client: NewClient) -> None:
    assert new_client().stop() == dejq.StopReport(finished=0, given_back=0, abandoned=0, forced=False)
    client = new_client()
    client.register_handler("t", noop)
    client.dequeue_loop()
    threads = [threading.Thread(target=client.stop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.stop() == client.stop()


def test_stop_ends_all_threads_of_the_worker(new_client: NewClient) -> None:
    async def async_noop(job: Job) -> None:
        pass

    client = new_client(workers=3)
    client.register_handler("sync", noop)
    client.register_handler("async", async_noop)
    client.dequeue_loop()
    threads = list(client._threads)
    assert sorted(thread.name for thread in threads) == [
        "dejq-exec-0",
        "dejq-exec-1",
        "dejq-exec-2",
        "dejq-loop",
    ]
    assert all(thread.daemon for thread in threads)
    client.stop()
    assert not any(thread.is_alive() for thread in threads)


def test_stop_gives_jobs_that_have_not_started_back(
    new_client: NewClient, event: threading.Event, until: Until
) -> None:
    client = new_client(workers=1)
    started = threading.Event()

    def handler(job: Job) -> None:
        started.set()
        event.wait()

    client.register_handler("t", handler)
    client.enqueue_many([PendingJob("t") for _ in range(5)])
    client.dequeue_loop()
    assert started.wait(10)
    stopping = threading.Thread(target=client.stop)
    stopping.start()
    until(lambda: not client._native.is_running)
    event.set()
    stopping.join()
    assert (client.stats().finished, client.stats().ready, client.stats().running) == (1, 4, 0)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), timedelta(seconds=-1), 1e300, "1"], ids=str)
def test_a_bad_timeout_of_stop_is_refused_and_nothing_is_stopped(timeout: Any, client: Client) -> None:
    with pytest.raises(ConfigError) as caught:
        client.stop(timeout)
    assert "must be seconds (a number) or a timedelta, neither negative nor endless" in str(caught.value)
    client.enqueue(PendingJob("t"))


def test_a_client_that_nobody_stopped_may_be_forgotten() -> None:
    client = dejq.memory()
    client.enqueue(PendingJob("t"))
    gone = weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None


# ---- dequeue_loop and run --------------------------------------------------------------------------------


def test_dequeue_loop_without_handlers_is_refused_and_may_be_tried_again(client: Client) -> None:
    with pytest.raises(ConfigError) as caught:
        client.dequeue_loop()
    assert "no handlers are registered, so there is nothing that dequeue_loop() could run; register" in str(
        caught.value
    )
    client.register_handler("t", noop)
    client.dequeue_loop()


def test_a_second_dequeue_loop_is_refused(client: Client) -> None:
    client.register_handler("t", noop)
    client.dequeue_loop()
    with pytest.raises(WrongState) as caught:
        client.dequeue_loop()
    assert caught.value.code == "DEJQ-E121"
    assert "dequeue_loop() has been started already; one call runs all handlers" in str(caught.value)


def test_dequeue_loop_of_an_inline_client_is_refused(new_client: NewClient) -> None:
    client = new_client(inline=True)
    client.register_handler("t", noop)
    with pytest.raises(ConfigError) as caught:
        client.dequeue_loop()
    assert "leave out inline=true to have real workers" in str(caught.value)


@pytest.mark.parametrize("workers", [0, -1, 2**40, 1.5, "2"], ids=str)
def test_a_bad_number_of_workers_is_refused_and_nothing_is_started(workers: Any, client: Client) -> None:
    client.register_handler("t", noop)
    with pytest.raises(ConfigError, match=r"workers=.* must be a whole number from 1 to"):
        client.dequeue_loop(workers)
    client.dequeue_loop(workers=1)


def test_more_workers_than_a_process_should_have_are_refused(client: Client) -> None:
    client.register_handler("t", noop)
    with pytest.raises(ConfigError, match="workers=10001 is more threads than a process should have"):
        client.dequeue_loop(10_001)
    client.dequeue_loop(workers=1)


def test_a_handler_after_the_start_is_refused(client: Client) -> None:
    client.register_handler("t", noop)
    client.dequeue_loop()
    with pytest.raises(ConfigError) as caught:
        client.register_handler("u", noop)
    assert 'the handler for "u" comes too late: dequeue_loop() has started; register all handlers before it' in str(
        caught.value
    )


def test_the_number_of_workers_is_how_many_handlers_run_at_once(new_client: NewClient, ended: Ended) -> None:
    client = new_client(workers=1)
    together = threading.Barrier(3)
    client.register_handler("t", lambda job: together.wait(20))
    ids = client.enqueue_many([PendingJob("t") for _ in range(3)])
    client.dequeue_loop(workers=3)
    assert [ended(client, id).state for id in ids] == ["finished"] * 3


def test_a_worker_takes_only_the_types_it_has_handlers_for(client: Client, ended: Ended) -> None:
    client.register_handler("mine", noop)
    (other,) = client.enqueue(PendingJob("other"))
    (mine,) = client.enqueue(PendingJob("mine"))
    client.dequeue_loop()
    assert ended(client, mine).state == "finished"
    assert client.get_job(other).state == "ready"
    assert client.types == ["mine"]


def test_two_clients_of_one_queue_take_what_each_has_handlers_for(new_client: NewClient, ended: Ended) -> None:
    seen = []
    one, other = new_client(name="two"), new_client(name="two")
    one.register_handler("one", lambda job: seen.append("one"))
    other.register_handler("other", lambda job: seen.append("other"))
    one.dequeue_loop()
    other.dequeue_loop()
    ids = one.enqueue(PendingJob("one"), PendingJob("other"), PendingJob("one"))
    ended(one, ids[-1])
    assert seen == ["one", "other", "one"]


def test_run_with_drain_ends_when_nothing_is_left(client: Client) -> None:
    seen = []
    client.register_handler("t", lambda job: seen.append(job.body))
    client.enqueue_many([PendingJob("t", number) for number in range(20)])
    client.enqueue(PendingJob("nobody"))
    client.run(drain=True)
    assert sorted(seen) == list(range(20))
    with pytest.raises(ClientStopped):
        client.enqueue(PendingJob("t"))


def test_run_ends_when_a_handler_calls_stop(client: Client) -> None:
    client.register_handler("t", lambda job: client.stop())
    running = threading.Thread(target=client.run)
    running.start()
    client.enqueue(PendingJob("t"))
    running.join(20)
    assert not running.is_alive()
    assert client.stats().finished == 1


def test_run_ends_when_another_thread_calls_stop(client: Client, until: Until) -> None:
    client.register_handler("t", noop)
    running = threading.Thread(target=client.run)
    running.start()
    until(lambda: client._native.is_running)
    client.stop()
    running.join(20)
    assert not running.is_alive()


# ---- looking up ------------------------------------------------------------------------------------------

BY_ID: dict[str, Callable[[Client, str], object]] = {
    "get_job": lambda client, what: client.get_job(what),
    "finish_job": lambda client, what: client.finish_job(what),
    "requeue_job": lambda client, what: client.requeue_job(what),
    "cancel_job": lambda client, what: client.cancel_job(what),
}


@pytest.mark.parametrize("call", BY_ID.values(), ids=BY_ID)
def test_an_unknown_id_is_told_so(call: Callable[[Client, str], object], client: Client) -> None:
    with pytest.raises(UnknownJob) as caught:
        call(client, UNKNOWN)
    assert caught.value.code == "DEJQ-E120"
    assert f"there is no job {UNKNOWN}; it was never enqueued here, or finished long ago" in str(caught.value)


@pytest.mark.parametrize("call", BY_ID.values(), ids=BY_ID)
def test_what_is_no_id_is_told_what_ids_look_like(call: Callable[[Client, str], object], client: Client) -> None:
    with pytest.raises(UnknownJob) as caught:
        call(client, "junk")
    assert '"junk" is not a job id; ids are UUIDs, as `enqueue` returns them' in str(caught.value)
