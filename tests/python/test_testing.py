"""`dejq.testing`, the inline mode and the pytest plugin: what users test their own code with."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import dejq
from dejq import Backoff, Client, Job, PendingJob, Retry, WrongState, testing

if TYPE_CHECKING:
    from python.conftest import NewClient

seen: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


@dataclass
class Point:
    x: int


def step(job: Job) -> None:
    seen.append(job.body)
    if job.body == "bad":
        raise ValueError("bad body")
    if job.body == "worse":
        raise KeyError("worse body")


async def async_step(job: Job) -> None:
    await asyncio.sleep(0)
    step(job)


def with_handlers(client: Client) -> Client:
    client.register_handler("t", step)
    client.register_handler("a", async_step)
    return client


@pytest.fixture
def stepper(client: Client) -> Client:
    return with_handlers(client)


def states(client: Client, ids: list[str]) -> list[str]:
    return [client.get_job(id).state for id in ids]


# ---- drain -----------------------------------------------------------------------------------------------


def test_drain_runs_what_is_ready_on_the_calling_thread_and_counts_the_calls(client: Client) -> None:
    client.register_handler("t", lambda job: seen.append(threading.current_thread()))
    client.enqueue_many([PendingJob("t"), [PendingJob("t"), PendingJob("t")]])
    assert testing.drain(client) == 3
    assert seen == [threading.current_thread()] * 3
    assert testing.drain(client) == 0


def test_drain_runs_what_handlers_enqueue(client: Client) -> None:
    def handler(job: Job) -> None:
        seen.append(job.body)
        if job.body:
            client.enqueue(PendingJob("t", job.body - 1))

    client.register_handler("t", handler)
    client.enqueue(PendingJob("t", 3))
    assert testing.drain(client) == 4
    assert seen == [3, 2, 1, 0]


def test_drain_stores_failures_and_raises_nothing(stepper: Client) -> None:
    ids = stepper.enqueue_many([PendingJob("t", "bad"), PendingJob("a", "worse"), PendingJob("t", 1)])
    assert testing.drain(stepper) == 3
    assert states(stepper, ids) == ["failed", "failed", "finished"]
    assert stepper.get_job(ids[0]).error == "ValueError: bad body"
    assert stepper.get_job(ids[1]).error == "KeyError: 'worse body'"


def test_drain_leaves_delayed_jobs_alone_unless_it_is_told(stepper: Client) -> None:
    (id,) = stepper.enqueue(PendingJob("t", 1, delay=3600))
    assert testing.drain(stepper) == 0
    assert states(stepper, [id]) == ["scheduled"]
    assert testing.drain(stepper, scheduled=True) == 1
    assert states(stepper, [id]) == ["finished"]


def test_drain_leaves_retries_alone_unless_it_is_told(client: Client) -> None:
    def handler(job: Job) -> None:
        seen.append(job.attempt)
        raise OSError

    client.register_handler("t", handler, max_attempts=3, backoff=Backoff(3600))
    (id,) = client.enqueue(PendingJob("t"))
    assert testing.drain(client) == 1
    assert states(client, [id]) == ["scheduled"]
    assert testing.drain(client, scheduled=True) == 2
    assert seen == [1, 2, 3]
    assert states(client, [id]) == ["failed"]


def test_drain_runs_async_handlers_also_within_a_running_loop(stepper: Client) -> None:
    async def main() -> None:
        stepper.enqueue(PendingJob("a", 1), PendingJob("t", 2), PendingJob("a", 3))
        assert testing.drain(stepper) == 3

    asyncio.run(main())
    assert seen == [1, 2, 3]


def test_drain_leaves_types_without_a_handler_alone(stepper: Client) -> None:
    (id,) = stepper.enqueue(PendingJob("unknown"))
    stepper.enqueue(PendingJob("t", 1))
    assert testing.drain(stepper) == 1
    assert states(stepper, [id]) == ["ready"]


def test_drain_beside_a_worker_is_refused(stepper: Client) -> None:
    stepper.dequeue_loop()
    with pytest.raises(WrongState) as caught:
        testing.drain(stepper)
    assert caught.value.code == "DEJQ-E121"
    assert "drain() runs jobs on the calling thread, but this client's worker runs already" in str(caught.value)


def test_drain_works_on_a_stopped_client(new_client: NewClient) -> None:
    client = with_handlers(new_client())
    client.enqueue(PendingJob("t", 1))
    client.stop()
    assert testing.drain(client) == 1


def test_a_handler_may_stop_the_client_that_is_drained(client: Client) -> None:
    client.register_handler("t", lambda job: seen.append(client.stop()))
    client.enqueue(PendingJob("t"), PendingJob("t"))
    assert testing.drain(client) == 2


# ---- inline ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory(inline=True)", "testing.inline"])
def inline(request: pytest.FixtureRequest, new_client: NewClient) -> Iterator[Client]:
    if request.param == "testing.inline":
        with testing.inline(with_handlers(new_client())) as client:
            yield client
    else:
        yield with_handlers(new_client(inline=True))


def test_inline_enqueue_runs_the_handler_before_it_returns(inline: Client) -> None:
    (id,) = inline.enqueue(PendingJob("t", 1))
    assert seen == [1]
    assert states(inline, [id]) == ["finished"]


def test_inline_enqueue_raises_what_the_handler_raises(inline: Client) -> None:
    with pytest.raises(ValueError, match="bad body") as caught:
        inline.enqueue(PendingJob("t", "bad"))
    assert caught.traceback[-1].name == "step"
    assert inline.stats().failed == 1


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), dejq.Discard("no")], ids=lambda e: type(e).__name__
)
def test_inline_enqueue_raises_exceptions_of_every_kind(error: BaseException, new_client: NewClient) -> None:
    def handler(job: Job) -> None:
        raise error

    client = new_client(inline=True)
    client.register_handler("t", handler)
    with pytest.raises(type(error)) as caught:
        client.enqueue(PendingJob("t"))
    assert caught.value is error


def test_inline_a_chain_goes_on_and_the_first_exception_comes_out_at_the_end(inline: Client) -> None:
    with pytest.raises(ValueError, match="bad body"):
        inline.enqueue(PendingJob("t", 1), PendingJob("t", "bad"), PendingJob("a", "worse"), PendingJob("t", 4))
    assert seen == [1, "bad", "worse", 4]
    assert (inline.stats().finished, inline.stats().failed) == (2, 2)


def test_inline_on_failure_cancel_cancels_the_rest(inline: Client) -> None:
    with pytest.raises(ValueError, match="bad body"):
        inline.enqueue(PendingJob("t", "bad"), PendingJob("t", 2), on_failure="cancel")
    assert seen == ["bad"]
    assert (inline.stats().failed, inline.stats().cancelled) == (1, 1)


def test_inline_enqueue_many_runs_all_and_raises_the_first(inline: Client) -> None:
    with pytest.raises(ValueError, match="bad body"):
        inline.enqueue_many([PendingJob("t", 1), PendingJob("t", "bad"), [PendingJob("t", 2), PendingJob("t", 3)]])
    assert sorted(seen, key=str) == [1, 2, 3, "bad"]


def test_inline_delays_are_not_waited_for(inline: Client) -> None:
    inline.enqueue(PendingJob("t", 1, delay=3600), PendingJob("t", 2, delay=3600))
    assert seen == [1, 2]


def test_inline_nothing_is_retried(new_client: NewClient) -> None:
    def handler(job: Job) -> None:
        seen.append(job.attempt)
        if job.body == "ask":
            raise Retry(0)
        raise OSError("once")

    client = new_client(inline=True, max_attempts=5, backoff=Backoff(0))
    client.register_handler("t", handler)
    with pytest.raises(OSError, match="once"):
        client.enqueue(PendingJob("t"))
    with pytest.raises(Retry):
        client.enqueue(PendingJob("t", "ask"))
    assert seen == [1, 1]
    assert client.stats().failed == 2


def test_inline_async_handlers_run_with_and_without_a_running_loop(inline: Client) -> None:
    async def main() -> None:
        inline.enqueue(PendingJob("a", 2))
        await inline.aenqueue(PendingJob("a", 3), PendingJob("t", 4))
        with pytest.raises(ValueError, match="bad body"):
            await inline.aenqueue(PendingJob("a", "bad"))

    inline.enqueue(PendingJob("a", 1))
    asyncio.run(main())
    assert seen == [1, 2, 3, 4, "bad"]


def test_inline_a_handler_may_enqueue(new_client: NewClient) -> None:
    client = new_client(inline=True)

    def handler(job: Job) -> None:
        seen.append(f"begin {job.body}")
        if job.body:
            client.enqueue(PendingJob("t", job.body - 1))
        seen.append(f"end {job.body}")

    client.register_handler("t", handler)
    client.enqueue(PendingJob("t", 2))
    assert seen == ["begin 2", "begin 1", "begin 0", "end 0", "end 1", "end 2"]


def test_inline_a_type_without_a_handler_waits(inline: Client) -> None:
    (id,) = inline.enqueue(PendingJob("unknown"))
    assert states(inline, [id]) == ["ready"]


def test_inline_a_bad_body_is_refused_before_anything_runs(inline: Client) -> None:
    with pytest.raises(dejq.BodyError):
        inline.enqueue(PendingJob("t", 1), PendingJob("t", {2}))
    assert seen == []


def test_outside_of_the_context_jobs_wait_again(stepper: Client) -> None:
    with testing.inline(stepper), testing.inline(stepper):
        stepper.enqueue(PendingJob("t", 1))
    stepper.enqueue(PendingJob("t", 2))
    assert seen == [1]
    with pytest.raises(ZeroDivisionError), testing.inline(stepper):
        raise ZeroDivisionError
    stepper.enqueue(PendingJob("t", 3))
    assert seen == [1]


def test_inline_beside_a_worker_is_refused(stepper: Client) -> None:
    stepper.dequeue_loop()
    with (
        pytest.raises(WrongState, match=r"inline\(\) runs jobs on the calling thread"),
        testing.inline(stepper),
    ):
        pass


# ---- every way goes through JSON -------------------------------------------------------------------------


def by_worker(client: Client) -> None:
    client.run(drain=True)


def by_drain(client: Client) -> None:
    testing.drain(client)


@pytest.mark.parametrize("run", [by_worker, by_drain, None], ids=["worker", "drain", "inline"])
def test_every_way_to_run_a_job_goes_through_json(run: Callable[[Client], None] | None, new_client: NewClient) -> None:
    client = new_client(inline=run is None)
    client.register_handler("t", step)
    body = {"tuple": (1, 2), "point": Point(3)}
    client.enqueue(PendingJob("t", body))
    if run:
        run(client)
    assert repr(seen) == "[{'tuple': [1, 2], 'point': {'x': 3}}]"
    assert seen[0] is not body


# ---- what was enqueued -----------------------------------------------------------------------------------


def test_enqueued_lists_what_waits_in_the_order_of_enqueueing(stepper: Client) -> None:
    stepper.enqueue(PendingJob("t", 0))
    testing.drain(stepper)
    ids = stepper.enqueue(PendingJob("t", 1), PendingJob("a", 2))
    ids += stepper.enqueue(PendingJob("t", 3, delay=60))
    assert [job.id for job in testing.enqueued(stepper)] == ids
    assert [job.body for job in testing.enqueued(stepper, "t")] == [1, 3]
    assert testing.enqueued(stepper, "unknown") == []


def test_enqueued_lists_more_than_a_page(client: Client) -> None:
    ids = client.enqueue_many([PendingJob("t", number) for number in range(2500)])
    assert [job.id for job in testing.enqueued(client)] == ids


def test_assert_enqueued_returns_what_it_found(client: Client) -> None:
    client.enqueue(PendingJob("t", {"to": "ada", "subject": "hi"}))
    client.enqueue(PendingJob("t", {"to": "bob"}))
    (found,) = testing.assert_enqueued(client, "t", {"to": "ada"})
    assert found.body["subject"] == "hi"
    assert len(testing.assert_enqueued(client, "t")) == 2
    assert len(testing.assert_enqueued(client, "t", count=2)) == 2


MATCHES: list[tuple[object, object, bool]] = [
    ({"a": 1, "b": 2}, {"a": 1}, True),
    ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, True),
    ({"a": 1}, {"a": 1, "b": 2}, False),
    ({"a": 1}, {"a": True}, False),
    ({"a": 1}, {}, True),
    ([1, 2], (1, 2), True),
    ([1, 2], [1], False),
    ({"x": 3}, Point(3), True),
    (None, None, True),
    ("a", "b", False),
]


@pytest.mark.parametrize(("enqueued", "expected", "matches"), MATCHES, ids=repr)
def test_bodies_are_compared_as_json_and_dicts_by_the_given_keys(
    enqueued: object, expected: object, matches: bool, client: Client
) -> None:
    client.enqueue(PendingJob("t", enqueued))
    if matches:
        testing.assert_enqueued(client, "t", expected)
        with pytest.raises(AssertionError):
            testing.refute_enqueued(client, "t", expected)
    else:
        testing.refute_enqueued(client, "t", expected)
        with pytest.raises(AssertionError):
            testing.assert_enqueued(client, "t", expected)


def test_the_text_of_assert_enqueued_lists_what_waits_instead(client: Client) -> None:
    client.enqueue(PendingJob("t", {"to": "bob"}), PendingJob("t", [1]))
    with pytest.raises(AssertionError) as caught:
        testing.assert_enqueued(client, "t", {"to": "ada"})
    assert str(caught.value) == (
        "expected at least one 't' job with body {'to': 'ada'}, found 0; waiting:"
        "\n  t ready {'to': 'bob'}\n  t blocked [1]"
    )


def test_the_text_lists_other_types_when_there_is_none_of_this_one(client: Client) -> None:
    client.enqueue(PendingJob("other", 1, delay=60))
    with pytest.raises(AssertionError) as caught:
        testing.assert_enqueued(client, "t", count=3)
    assert str(caught.value) == "expected 3 't' job, found 0; waiting:\n  other scheduled 1"


def test_the_text_says_when_nothing_waits(client: Client) -> None:
    with pytest.raises(AssertionError) as caught:
        testing.assert_enqueued(client, "t")
    assert str(caught.value) == "expected at least one 't' job, found 0; waiting: nothing"


def test_the_text_of_refute_enqueued_lists_what_it_found(client: Client) -> None:
    client.enqueue(PendingJob("t", 1))
    with pytest.raises(AssertionError) as caught:
        testing.refute_enqueued(client, "t")
    assert str(caught.value) == "expected 0 't' job, found 1; waiting:\n  t ready 1"


def test_jobs_that_have_run_are_not_enqueued_any_more(stepper: Client) -> None:
    stepper.enqueue(PendingJob("t", 1))
    testing.drain(stepper)
    testing.refute_enqueued(stepper, "t")


# ---- the pytest plugin -----------------------------------------------------------------------------------

TESTS = """
import pytest
from dejq import ClientStopped, PendingJob

clients = []

def test_the_fixture_is_a_fresh_client(dejq_client):
    dejq_client.enqueue(PendingJob("t"))
    assert dejq_client.stats().enqueued_jobs == 1
    clients.append(dejq_client)

def test_each_test_has_its_own_and_the_one_before_is_stopped(dejq_client):
    assert dejq_client.stats().enqueued_jobs == 0
    with pytest.raises(ClientStopped):
        clients[0].enqueue(PendingJob("t"))
"""


def test_the_pytest_plugin_is_active_at_once(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        ".",
    ]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 passed" in ran.stdout


def test_the_fixture_is_a_client_of_a_memory_queue(dejq_client: Client) -> None:
    assert dejq_client.store == "memory"
    with_handlers(dejq_client)
    dejq_client.enqueue(PendingJob("t", 1))
    testing.drain(dejq_client)
    assert seen == [1]
