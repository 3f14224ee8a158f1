"""What the SQS store has for its users: the wire, jobs and chains, dead letters, leases, the start, statistics."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

import dejq
import servers
import sqs_api
from dejq import Backoff, Client, ConfigError, DejqError, Discard, Job, NotSupported, PendingJob, Retry
from python.conftest import SECONDS
from sqs_api import Json, Sqs, bodies, entry

if TYPE_CHECKING:
    from python.conftest import Log, Until
    from python.sqs_store import MakeQueue, SqsClient
    from sqs_faults import Proxy

pytest_plugins = ["python.sqs_store"]

# A lease lasts three beats. SQS counts visibility in whole seconds.
HEARTBEAT = 1.0
# The least that SQS can wait between two attempts.
AT_ONCE = Backoff(0.01)
MIB = 1024 * 1024


class Runs:
    """Handlers that note what they run; one called held waits until it is let go."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.leave = threading.Event()
        self.held = threading.Semaphore(0)

    def of(self, client: Client, *types: str, **options: Any) -> Client:
        """Starts a worker of these types; what is called bad fails, each time."""
        kinds = {"held": self.hold, "bad": self.fail}
        for type in types:
            client.register_handler(type, kinds.get(type, self.note), **options)
        client.dequeue_loop()
        return client

    def note(self, job: Job) -> None:
        self.jobs.append(job)

    def fail(self, job: Job) -> None:
        self.jobs.append(job)
        raise ValueError("as it should")

    def hold(self, job: Job) -> None:
        self.jobs.append(job)
        self.held.release()
        while not self.leave.wait(0.002) and not job.cancelled:
            pass

    @property
    def bodies(self) -> list[Any]:
        return [job.body for job in self.jobs]

    @property
    def ids(self) -> list[str]:
        return [job.id for job in self.jobs]


@pytest.fixture
def runs() -> Any:
    runs = Runs()
    yield runs
    runs.leave.set()


def jobs(count: int, type: str = "job") -> list[PendingJob[Any]]:
    return [PendingJob(type, number) for number in range(count)]


def letters(sqs: Sqs, dead: str, count: int) -> list[Json]:
    """So many dead letters; they come when somebody tries to receive them once more."""
    found: list[Json] = []
    end = time.monotonic() + SECONDS
    while len(found) < count and time.monotonic() < end:
        found += sqs.receive(dead, wait=1)
    return found


# ---- the wire ------------------------------------------------------------------------------------------------


def test_a_job_is_a_message_that_the_original_could_read(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient
) -> None:
    queue, _ = make_queue()
    (single,) = sqs_client().enqueue(PendingJob("email:v1", {"to": "ada@example.org"}))
    (message,) = sqs.receive(queue, wait=5)
    attributes = sqs_api.text_attributes(message)
    assert json.loads(message["Body"]) == {"to": "ada@example.org"}
    assert (attributes["job_type"], attributes["job_id"], attributes["in_group"]) == ("email:v1", single, "1")
    assert message["Attributes"]["MessageDeduplicationId"] == single
    assert len(attributes) <= 10


def test_a_chain_is_a_group_and_a_single_job_a_group_of_its_own(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient
) -> None:
    queue, _ = make_queue()
    client = sqs_client()
    chain = client.enqueue(*jobs(3))
    first, second = client.enqueue_many(jobs(2))
    found: list[Json] = []
    while len(found) < 5:
        found += sqs.receive(queue, wait=5)
    groups = {sqs_api.text_attributes(each)["job_id"]: each["Attributes"]["MessageGroupId"] for each in found}
    assert len({groups[id] for id in chain}) == 1
    assert len({groups[chain[0]], groups[first], groups[second]}) == 3
    of_chain = [sqs_api.text_attributes(each) for each in found if sqs_api.text_attributes(each)["job_id"] in chain]
    assert [each["job_id"] for each in of_chain] == chain
    assert {each["in_group"] for each in of_chain} == {"3"}


def test_a_chain_of_fifty_goes_by_tens_one_after_the_other(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy
) -> None:
    make_queue()
    chain = sqs_client(by=proxy.endpoint).enqueue(*jobs(50))
    sent = [[each["MessageDeduplicationId"] for each in call["Entries"]] for call in proxy.of("SendMessageBatch")]
    assert [len(batch) for batch in sent] == [10] * 5
    assert [id for batch in sent for id in batch] == chain


def test_single_jobs_share_batches_of_ten(make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy) -> None:
    make_queue()
    ids = sqs_client(by=proxy.endpoint).enqueue_many(jobs(95))
    assert len(set(ids)) == 95
    assert proxy.calls["SendMessageBatch"] == 10


def test_a_batch_has_a_mebibyte_at_most(make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy) -> None:
    make_queue()
    big = [PendingJob("job", "x" * 600_000) for _ in range(3)]
    client = sqs_client(by=proxy.endpoint)
    client.enqueue_many(big)
    client.enqueue(*big)
    assert proxy.calls["SendMessageBatch"] == 6


@pytest.mark.parametrize(
    "body", ["x" * MIB, "x" * (MIB - 10), "\0" * (MIB // 6)], ids=["body", "attributes", "escapes"]
)
def test_what_is_too_large_with_its_attributes_is_refused_before_it_is_sent(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, body: str
) -> None:
    make_queue()
    client = sqs_client(by=proxy.endpoint)
    with pytest.raises(dejq.BodyTooLarge, match="bytes") as caught:
        client.enqueue(PendingJob("job"), PendingJob("job", body))
    assert caught.value.size > caught.value.limit
    assert MIB - 1024 <= caught.value.limit <= MIB
    assert proxy.calls["SendMessageBatch"] == 0


@pytest.mark.parametrize(
    "text",
    ["\0", "".join(map(chr, range(0x20))), "\x7f\x85", "\ufffe\uffff", "\U0001fffe\U0010ffff", "\r\n\t", "<&>\"'"],
    ids=ascii,
)
def test_any_character_comes_back_in_a_body_and_its_keys(
    make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, emptied: Any, text: str
) -> None:
    queue, _ = make_queue()
    client = runs.of(sqs_client(), "job")
    client.enqueue(PendingJob("job", {"text": text, text: 1}))
    emptied(queue)
    assert runs.bodies == [{"text": text, text: 1}]


@pytest.mark.parametrize("text", ["caf\u00e9 \U0001f600", "\x01", "\ufffe"], ids=ascii)
def test_any_character_comes_back_in_headers_or_is_refused_before_it_is_sent(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, emptied: Any, text: str
) -> None:
    queue, _ = make_queue()
    client = runs.of(sqs_client(by=proxy.endpoint), "job")
    try:
        client.enqueue(PendingJob("job", headers={"tenant": text}))
    except ConfigError as error:
        assert "XML" in str(error) or "character" in str(error)
        assert proxy.calls["SendMessageBatch"] == 0
        return
    emptied(queue)
    assert [dict(job.headers) for job in runs.jobs] == [{"tenant": text}]


# ---- messages of the original --------------------------------------------------------------------------------


def go_message(group: str, place: str, type: str, body: str, in_group: int, job_id: str | None = None) -> Json:
    """As the Go library sends them: random texts of 22 letters and digits as ids, and strings as attributes."""
    attributes = {"job_type": type, "in_group": str(in_group)}
    if job_id:
        attributes["job_id"] = job_id
    return entry(place, group=group, body=body, dedup=place, attributes=attributes)


@pytest.mark.parametrize("job_id", [None, "0f8fad5b-d9cb-469f-a165-70867728950e"], ids=["no id", "id"])
def test_a_job_of_the_original_runs_here(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, emptied: Any, job_id: str | None
) -> None:
    queue, _ = make_queue()
    body = '{"str":"First \\u003cjob\\u003e"}'  # encoding/json escapes what HTML would
    group, place = "3cXkPq7RzT1vWn5bYd8GhJ", "1aBcDeFgHiJkLmNoPqRsTu"
    answer = sqs.send(queue, [go_message(group, place, "test_job", body, 1, job_id)])
    runs.of(sqs_client(), "test_job")
    emptied(queue)
    (job,) = runs.jobs
    assert (job.type, job.body, job.attempt) == ("test_job", {"str": "First <job>"}, 1)
    assert (job.position, job.chain_length) == (1, 1)
    assert job.id == (job_id or answer["Successful"][0]["MessageId"])
    UUID(job.id)


def test_dependent_jobs_of_the_original_run_in_order(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, emptied: Any
) -> None:
    queue, _ = make_queue()
    group = "0zYxWvUtSrQpOnMlKjIhGf"
    places = [f"{number}aBcDeFgHiJkLmNoPqRsT" for number in range(6)]
    sqs.send(queue, [go_message(group, place, "test_job", str(n), 6) for n, place in enumerate(places)])
    runs.of(sqs_client(workers=4), "test_job")
    emptied(queue)
    assert runs.bodies == [0, 1, 2, 3, 4, 5]
    assert {job.chain_length for job in runs.jobs} == {6}


@pytest.mark.parametrize("body", ["null", "[]", "1e3"])
def test_any_json_of_the_original_is_a_body(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, emptied: Any, body: str
) -> None:
    queue, _ = make_queue()
    sqs.send(queue, [go_message("g", "p", "test_job", body, 1)])
    runs.of(sqs_client(), "test_job")
    emptied(queue)
    assert runs.bodies == [json.loads(body)]


# ---- running -------------------------------------------------------------------------------------------------


def test_a_job_knows_what_it_is(make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, emptied: Any) -> None:
    queue, _ = make_queue()
    client = runs.of(sqs_client(), "job")
    before = datetime.now(timezone.utc)
    ids = client.enqueue(PendingJob("job", 0, headers={"tenant": "7"}), PendingJob("job", 1))
    emptied(queue)
    first, second = runs.jobs
    assert [first.id, second.id] == ids
    assert (first.attempt, first.position, first.chain_length, dict(first.headers)) == (1, 1, 2, {"tenant": "7"})
    assert (second.position, second.chain_length, dict(second.headers)) == (2, 2, {})
    assert first.chain_id == second.chain_id
    assert abs(first.enqueued_at - before) < timedelta(seconds=SECONDS)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_chain_of_fifty_runs_in_order(
    make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, emptied: Any, workers: int
) -> None:
    queue, _ = make_queue()
    client = runs.of(sqs_client(workers=workers), "job")
    ids = client.enqueue(*jobs(50))
    emptied(queue)
    assert runs.bodies == list(range(50))
    assert runs.ids == ids


def test_chains_run_beside_each_other_and_the_jobs_of_each_in_turn(
    make_queue: MakeQueue, sqs_client: SqsClient, emptied: Any
) -> None:
    queue, _ = make_queue()
    client, running, most, order = sqs_client(workers=4), Counter[str](), 0, dict[str, list[int]]()
    lock, together = threading.Lock(), threading.Barrier(2)

    def handle(job: Job) -> None:
        nonlocal most
        with lock:
            running[job.chain_id] += 1
            assert running[job.chain_id] == 1
            most = max(most, running.total())
            order.setdefault(job.chain_id, []).append(job.body)
        if job.body == 0 and len(order) <= 2:
            together.wait(SECONDS)  # two of them really are at once
        with lock:
            running[job.chain_id] -= 1

    client.register_handler("job", handle)
    client.enqueue_many([jobs(5) for _ in range(8)])
    client.dequeue_loop()
    emptied(queue)
    assert list(order.values()) == [[0, 1, 2, 3, 4]] * 8
    assert most >= 2


def test_coroutines_run_chains_too(make_queue: MakeQueue, sqs_client: SqsClient, emptied: Any) -> None:
    queue, _ = make_queue()
    client, ran = sqs_client(), list[int]()

    async def handle(job: Job) -> None:
        ran.append(job.body)

    client.register_handler("job", handle)
    client.enqueue(*jobs(12))
    client.dequeue_loop()
    emptied(queue)
    assert ran == list(range(12))


def test_a_job_of_an_unknown_type_is_given_back_logged_once_and_run_by_who_knows_it(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, log: Log, until: Until, emptied: Any
) -> None:
    queue, _ = make_queue()
    client = runs.of(sqs_client(), "known")
    client.enqueue_many([*jobs(3, "unknown"), PendingJob("known", "k")])
    until(lambda: "unknown" in log.text and runs.bodies == ["k"] and sum(sqs.waiting(queue)) == 3)
    client.stop()
    assert sum("unknown" in text for text in log.texts) == 1
    assert "register_handler" in log.text or "handler" in log.text
    runs.of(sqs_client(), "unknown")
    emptied(queue)
    assert sorted(runs.bodies[1:]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("attributes", "body"),
    [({}, "{}"), ({"job_type": "job", "in_group": "1"}, "{not json"), ({"job_type": "a type", "in_group": "1"}, "1")],
    ids=["no type", "no json", "no such type"],
)
def test_a_message_that_is_no_job_is_never_deleted(
    sqs: Sqs,
    make_queue: MakeQueue,
    sqs_client: SqsClient,
    runs: Runs,
    log: Log,
    until: Until,
    attributes: dict[str, str],
    body: str,
) -> None:
    _, dead = make_queue(receives=1)
    queue = sqs.url(dead.rpartition("/")[2].replace("-dlq", ""))
    sqs.send(queue, [entry("poison", group="g", body=body, attributes=attributes)])
    client = runs.of(sqs_client(heartbeat=HEARTBEAT, backoff=AT_ONCE), "job")
    until(lambda: sqs.waiting(dead)[0] == 1)
    assert not runs.jobs
    (letter,) = letters(sqs, dead, 1)
    assert letter["Body"] == body
    client.stop()
    assert sum(letter["MessageId"] in text for text in log.texts) == 1
    assert body not in log.text or body == "1"


# ---- failures ------------------------------------------------------------------------------------------------


def test_a_failed_job_is_tried_again_before_its_dependants(
    make_queue: MakeQueue, sqs_client: SqsClient, emptied: Any
) -> None:
    queue, _ = make_queue(receives=5)
    client, ran = sqs_client(backoff=AT_ONCE), list[tuple[int, int]]()

    def flaky(job: Job) -> None:
        ran.append((job.body, job.attempt))
        if job.body == 0 and job.attempt < 3:
            raise ValueError("not yet")

    client.register_handler("job", flaky)
    client.enqueue(*jobs(3))
    client.dequeue_loop()
    emptied(queue)
    assert [body for body, _ in ran] == [0, 0, 0, 1, 2]
    assert [attempt for body, attempt in ran if body == 0] == [1, 2, 3]


@pytest.mark.parametrize("receives", [1, 3])
def test_a_job_that_fails_for_good_is_a_dead_letter_and_its_dependants_run(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, until: Until, emptied: Any, receives: int
) -> None:
    queue, dead = make_queue(receives=receives)
    client = runs.of(sqs_client(backoff=AT_ONCE), "bad", "job")
    bad, *_ = client.enqueue(PendingJob("bad", "bad"), *jobs(4))
    until(lambda: sqs.waiting(dead)[0] == 1)
    emptied(queue)
    assert runs.bodies == ["bad"] * receives + [0, 1, 2, 3]
    assert [sqs_api.text_attributes(each)["job_id"] for each in letters(sqs, dead, 1)] == [bad]


def test_a_job_in_the_middle_that_fails_for_good_takes_nobody_with_it(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, until: Until, emptied: Any
) -> None:
    queue, dead = make_queue(receives=2)
    client = runs.of(sqs_client(backoff=AT_ONCE), "bad", "job")
    client.enqueue(
        PendingJob("job", 0), PendingJob("bad", "x"), PendingJob("job", 1), PendingJob("bad", "y"), PendingJob("job", 2)
    )
    until(lambda: sqs.waiting(dead)[0] == 2)
    emptied(queue)
    # A dependant whose receives were used up with the one before it would be a letter that never ran.
    assert [body for body in runs.bodies if body not in ("x", "y")] == [0, 1, 2]
    assert sorted(bodies(letters(sqs, dead, 2))) == ['"x"', '"y"']
    assert {"x", "y"} <= set(runs.bodies)


def test_without_a_redrive_policy_max_attempts_ends_a_job_and_its_dependants_run(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, emptied: Any
) -> None:
    queue, _ = make_queue(receives=0)
    client = runs.of(sqs_client(backoff=AT_ONCE, max_attempts=2), "bad", "job")
    client.enqueue(PendingJob("bad", "bad"), *jobs(2))
    emptied(queue)
    assert runs.bodies == ["bad", "bad", 0, 1]


def test_a_failure_cancels_the_rest_of_a_chain_that_asked_for_it(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, until: Until, emptied: Any
) -> None:
    queue, dead = make_queue(receives=1)
    client = runs.of(sqs_client(backoff=AT_ONCE), "bad", "job")
    client.enqueue(PendingJob("job", 0), PendingJob("bad", "bad"), *jobs(3)[1:], on_failure="cancel")
    client.enqueue(PendingJob("job", "other"))
    until(lambda: sqs.waiting(dead)[0] >= 1)
    emptied(queue)
    assert sorted(runs.bodies, key=str) == [0, "bad", "other"]
    assert sum(sqs.waiting(dead)) == 1


def test_discard_ends_a_job_at_once_and_its_dependants_run(
    make_queue: MakeQueue, sqs_client: SqsClient, emptied: Any
) -> None:
    queue, _ = make_queue(receives=5)
    client, ran = sqs_client(backoff=AT_ONCE), list[int]()

    def discard(job: Job) -> None:
        ran.append(job.body)
        if job.body == 0:
            raise Discard("of no use")

    client.register_handler("job", discard)
    client.enqueue(*jobs(2))
    client.dequeue_loop()
    emptied(queue)
    assert ran == [0, 1]


def test_a_retry_comes_when_the_handler_says_so(make_queue: MakeQueue, sqs_client: SqsClient, emptied: Any) -> None:
    queue, _ = make_queue()
    client, at = sqs_client(), list[float]()

    def later(job: Job) -> None:
        at.append(time.monotonic())
        if job.attempt == 1:
            raise Retry(after=2)

    client.register_handler("job", later, max_attempts=3)
    client.enqueue(PendingJob("job"))
    client.dequeue_loop()
    emptied(queue)
    assert len(at) == 2
    assert at[1] - at[0] >= 1.9


# ---- delays --------------------------------------------------------------------------------------------------


def test_a_delayed_job_starts_after_its_delay_and_its_dependants_after_it(
    make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, emptied: Any
) -> None:
    queue, _ = make_queue()
    client, at = sqs_client(), dict[int, float]()
    client.register_handler("job", lambda job: at.__setitem__(job.body, time.time()))
    client.dequeue_loop()
    began = time.time()
    client.enqueue(PendingJob("job", 0, delay=2), PendingJob("job", 1))
    client.enqueue(PendingJob("job", 2))
    emptied(queue)
    assert at[0] - began >= 1.9
    assert at[1] >= at[0]
    assert at[2] < at[0]


def test_a_delay_beyond_twelve_hours_is_refused_with_the_reason(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy
) -> None:
    make_queue()
    with pytest.raises(DejqError, match="12 h"):
        sqs_client(by=proxy.endpoint).enqueue(PendingJob("job", delay=timedelta(hours=13)))
    assert proxy.calls["SendMessageBatch"] == 0


# ---- leases --------------------------------------------------------------------------------------------------


def beats(client: Client) -> int:
    return client._native.counted()["beats"]


def test_a_job_and_those_that_wait_behind_it_keep_their_leases_while_it_runs(
    make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, until: Until, emptied: Any
) -> None:
    queue, _ = make_queue(VisibilityTimeout=3)
    client = runs.of(sqs_client(heartbeat=HEARTBEAT, workers=2), "held", "job")
    client.enqueue(PendingJob("held", "held"), *jobs(5))
    assert runs.held.acquire(timeout=SECONDS)
    until(lambda: beats(client) > 5)  # more than one lease
    runs.leave.set()
    emptied(queue)
    assert runs.bodies == ["held", 0, 1, 2, 3, 4]
    # Nothing was received a second time.
    assert {job.attempt for job in runs.jobs} == {1}


def test_a_stop_gives_back_what_has_not_started_for_others_to_run_at_once(
    make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, emptied: Any
) -> None:
    queue, _ = make_queue(VisibilityTimeout=600)
    client = runs.of(sqs_client(workers=1, heartbeat=60), "held", "job")
    client.enqueue(PendingJob("held", "held"), *jobs(4))
    assert runs.held.acquire(timeout=SECONDS)
    stopping = threading.Thread(target=client.stop)
    stopping.start()
    runs.leave.set()
    stopping.join(SECONDS)
    assert not stopping.is_alive()
    assert runs.bodies[0] == "held"
    # Leases last minutes: it could not wait for them.
    runs.of(sqs_client(), "held", "job")
    emptied(queue)
    assert runs.bodies == ["held", 0, 1, 2, 3]


def test_a_stop_does_not_wait_for_a_long_poll(
    make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, proxy: Proxy, until: Until
) -> None:
    make_queue()
    client = runs.of(sqs_client(by=proxy.endpoint, wait_time=20), "job")
    until(lambda: proxy.calls["ReceiveMessage"] >= 1)
    began = time.monotonic()
    client.stop()
    assert time.monotonic() - began < 10


def test_what_the_last_poll_of_a_stopped_worker_took_is_not_held_back(
    make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, proxy: Proxy, emptied: Any, is_like_aws: bool
) -> None:
    """An emulator that knows attempts gives the messages once more; with another they come when their leases end."""
    queue, _ = make_queue(VisibilityTimeout=600)
    client = sqs_client(by=proxy.endpoint, heartbeat=60 if is_like_aws else HEARTBEAT)
    client.enqueue(*jobs(3))
    held = proxy.hold("ReceiveMessage")
    runs.of(client, "job")
    assert held.arrived.wait(SECONDS)
    stopping = threading.Thread(target=client.stop)
    stopping.start()
    held.let_go()
    stopping.join(SECONDS)
    assert not stopping.is_alive()
    runs.of(sqs_client(), "job")
    emptied(queue)
    assert runs.bodies == [0, 1, 2]


# ---- the start -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["name", "url", "arn"])
def test_a_queue_is_named_by_name_url_or_arn(
    sqs: Sqs, make_queue: MakeQueue, sqs_url: str, sqs_queue: str, place: str
) -> None:
    queue, _ = make_queue()
    chosen = {"name": sqs_queue, "url": queue, "arn": sqs.attributes(queue)["QueueArn"]}[place]
    with dejq.sqs(chosen, region="us-east-1", endpoint=servers.endpoint(sqs_url)) as client:
        client.enqueue(PendingJob("job"))
    assert sqs.waiting(queue)[0] == 1


def test_a_standard_queue_is_refused_by_its_name(sqs: Sqs, sqs_url: str, sqs_queue: str) -> None:
    name = sqs_queue.removesuffix(".fifo")
    sqs.create(name)
    with pytest.raises(ConfigError, match=r"\.fifo"), dejq.connect(servers.queue_url(sqs_url, name)) as client:
        client.enqueue(PendingJob("job"))


def test_a_missing_queue_is_told_with_what_to_type(sqs_client: SqsClient, sqs_queue: str) -> None:
    client = sqs_client()
    with pytest.raises(DejqError, match="dejq migrate") as caught:
        client.enqueue(PendingJob("job"))
    assert sqs_queue in str(caught.value)
    with pytest.raises(DejqError, match="dejq migrate"):
        client.stats()


def test_migrate_creates_queue_and_dead_letters_and_then_has_nothing_to_do(
    sqs: Sqs, sqs_client: SqsClient, sqs_queue: str, runs: Runs, emptied: Any
) -> None:
    client = sqs_client()
    report = client.migrate()
    assert any(sqs_queue in step for step in report.applied)
    found = sqs.attributes(sqs.url(sqs_queue))
    assert found["FifoQueue"] == "true"
    policy = json.loads(found["RedrivePolicy"])
    dead = policy["deadLetterTargetArn"].rpartition(":")[2]
    assert dead.endswith(".fifo")
    assert sqs.attributes(sqs.url(dead))["FifoQueue"] == "true"
    assert int(policy["maxReceiveCount"]) >= 3
    assert client.migrate().applied == ()
    assert [finding for finding in client.check() if finding.level == "error"] == []
    runs.of(client, "job")
    client.enqueue(*jobs(2))
    emptied(sqs.url(sqs_queue))
    assert runs.bodies == [0, 1]


def test_migrate_leaves_a_queue_that_somebody_has_set_up(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient
) -> None:
    queue, _ = make_queue(receives=7, VisibilityTimeout=120)
    before = sqs.attributes(queue)
    sqs_client().migrate()
    after = sqs.attributes(queue)
    assert after["VisibilityTimeout"] == "120"
    assert json.loads(after["RedrivePolicy"]) == json.loads(before["RedrivePolicy"])


def test_twenty_that_migrate_at_once_make_one_queue(sqs: Sqs, sqs_client: SqsClient, sqs_queue: str) -> None:
    clients = [sqs_client() for _ in range(20)]
    wrong: list[BaseException] = []

    def migrate(client: Client) -> None:
        try:
            client.migrate()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=migrate, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(sqs.names(sqs_queue.removesuffix(".fifo"))) == 2


def findings(client: Client) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in client.check():
        found.setdefault(finding.level, []).append(f"{finding.name}: {finding.text} {finding.fix or ''}")
    return found


def test_a_good_queue_has_nothing_to_be_told(make_queue: MakeQueue, sqs_client: SqsClient) -> None:
    make_queue(receives=5)
    found = findings(sqs_client())
    assert "error" not in found
    assert found["ok"]


def test_a_queue_without_dead_letters_is_told(make_queue: MakeQueue, sqs_client: SqsClient) -> None:
    make_queue(receives=0)
    warnings = " ".join(findings(sqs_client())["warn"])
    assert "redrive" in warnings.lower() or "dead" in warnings.lower()


def test_dead_letters_after_the_first_receive_are_told(make_queue: MakeQueue, sqs_client: SqsClient) -> None:
    make_queue(receives=1)
    assert "maxReceiveCount" in " ".join(findings(sqs_client())["warn"])


def test_dead_letters_that_go_to_a_standard_queue_are_told_and_no_job_is_taken(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, sqs_queue: str, runs: Runs, log: Log, until: Until
) -> None:
    queue, _ = make_queue(receives=0)
    target = sqs.attributes(sqs.create(f"{sqs_queue.removesuffix('.fifo')}-dead"))["QueueArn"]
    sqs.set(queue, RedrivePolicy=json.dumps({"deadLetterTargetArn": target, "maxReceiveCount": 5}))
    client = sqs_client()
    assert "FIFO" in " ".join(findings(client)["error"])
    client.enqueue(*jobs(1))
    runs.of(client, "job")
    until(lambda: "RedrivePolicy" in log.text)
    assert not runs.jobs
    assert sqs.waiting(queue) == (1, 0)


@pytest.mark.parametrize(("dlq", "names"), [(True, 2), (False, 1), ("own", 2)])
def test_create_queue_takes_the_dead_letter_queue_that_it_is_told(
    sqs: Sqs, sqs_client: SqsClient, sqs_queue: str, dlq: bool | str, names: int
) -> None:
    base = sqs_queue.removesuffix(".fifo")
    wanted = f"{base}-own.fifo" if dlq == "own" else dlq
    report = sqs_client().create_queue(dlq=wanted, max_receives=7)
    assert len(report.applied) == len(sqs.names(base)) == names
    policy = json.loads(sqs.attributes(sqs.url(sqs_queue)).get("RedrivePolicy", "{}"))
    if dlq:
        assert int(policy["maxReceiveCount"]) == 7
        assert policy["deadLetterTargetArn"].endswith(f"{base}-{'own' if dlq == 'own' else 'dlq'}.fifo")
    else:
        assert policy == {}


@pytest.mark.parametrize("wrong", [{"dlq": "standard"}, {"max_receives": 0}])
def test_create_queue_refuses_what_cannot_be(sqs: Sqs, sqs_client: SqsClient, sqs_queue: str, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        sqs_client().create_queue(**wrong)
    assert sqs.names(sqs_queue.removesuffix(".fifo")) == []


def test_permissions_that_are_missing_are_told_with_their_names(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy
) -> None:
    make_queue()
    client = sqs_client(by=proxy.endpoint)
    client.stats()
    proxy.answer("SendMessageBatch", 403, "AccessDeniedException", times=100)
    with pytest.raises(ConfigError, match="sqs:SendMessage"):
        client.enqueue(PendingJob("job"))


# ---- statistics ----------------------------------------------------------------------------------------------


def test_stats_tell_what_waits_and_what_runs(
    make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, until: Until
) -> None:
    make_queue()
    client = sqs_client(workers=2)
    client.enqueue_many(jobs(5))
    until(lambda: client.stats().enqueued_jobs == 5)
    stats = client.stats()
    assert (stats.ready, stats.running) == (5, 0)
    assert (stats.finished, stats.blocked) == (None, None)
    client.enqueue(PendingJob("held"))
    runs.of(client, "held", "job")
    assert runs.held.acquire(timeout=SECONDS)
    until(lambda: client.stats().enqueued_jobs == 0 and client.stats().running == 1)


def test_stats_count_the_dead_letters(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, runs: Runs, until: Until
) -> None:
    make_queue(receives=5)
    client = sqs_client()

    def discard(job: Job) -> None:
        raise Discard("of no use")

    client.register_handler("bad", discard)
    client.enqueue_many(jobs(3, "bad"))
    client.dequeue_loop()
    until(lambda: client.stats().failed == 3)


def test_stats_have_the_calls_of_this_client_by_kind_and_for_each_job(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, emptied: Any
) -> None:
    queue, _ = make_queue()
    client = sqs_client(by=proxy.endpoint)
    client.enqueue_many(jobs(40))
    runs.of(client, "job")
    emptied(queue)
    client.stop()
    bill = client.stats().bill
    assert bill is not None
    assert dict(bill.calls) == dict(proxy.calls)
    assert (bill.total, bill.enqueued, bill.ended) == (proxy.calls.total(), 40, 40)
    assert bill.per_job == pytest.approx(bill.total / 40)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get_job("0f8fad5b-d9cb-469f-a165-70867728950e"),
        lambda client: client.list_jobs(),
        lambda client: client.finish_job("0f8fad5b-d9cb-469f-a165-70867728950e"),
        lambda client: client.requeue_job("0f8fad5b-d9cb-469f-a165-70867728950e"),
        lambda client: client.cancel_job("0f8fad5b-d9cb-469f-a165-70867728950e"),
        lambda client: client.unresponsive_jobs(timedelta(minutes=1)),
        lambda client: client.delete_finished(timedelta(days=1)),
        lambda client: client.enqueue(PendingJob("job"), connection=object()),
    ],
    ids=["get", "list", "finish", "requeue", "cancel", "unresponsive", "delete", "transaction"],
)
def test_what_sqs_cannot_do_is_told_with_the_reason(make_queue: MakeQueue, sqs_client: SqsClient, call: Any) -> None:
    make_queue()
    with pytest.raises(NotSupported, match=r"(?i)sqs"):
        call(sqs_client())


# ---- the bill ------------------------------------------------------------------------------------------------


def test_a_hundred_single_jobs_cost_no_more_than_35_calls(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, emptied: Any
) -> None:
    queue, _ = make_queue()
    client = sqs_client(by=proxy.endpoint, workers=4)
    client.enqueue_many(jobs(500))
    before = proxy.calls.total()
    runs.of(client, "job")
    emptied(queue)
    client.stop()
    assert len(runs.jobs) == 500
    # Two polls may come back with less, and the last ones with nothing.
    assert (proxy.calls["SendMessageBatch"], before) >= (50, 50)
    assert proxy.calls.total() <= 0.35 * 500 + 4


def test_chains_of_ten_cost_no_more_than_4_calls_each(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, emptied: Any, is_like_aws: bool
) -> None:
    """ElasticMQ never mixes groups in one answer, so fewer chains are in hand, and fewer ends go together."""
    queue, _ = make_queue()
    client = sqs_client(by=proxy.endpoint, workers=4)
    client.enqueue_many([jobs(10) for _ in range(100)])
    runs.of(client, "job")
    emptied(queue)
    client.stop()
    assert len(runs.jobs) == 1000
    assert proxy.calls.total() <= (0.6 if is_like_aws else 0.4) * 1000 + 4


def test_an_idle_worker_polls_and_does_nothing_else(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, until: Until
) -> None:
    make_queue()
    runs.of(sqs_client(by=proxy.endpoint, wait_time=1, pollers=1, heartbeat=HEARTBEAT), "job")
    until(lambda: proxy.calls["ReceiveMessage"] >= 1)
    before = proxy.calls.copy()
    until(lambda: proxy.calls["ReceiveMessage"] >= before["ReceiveMessage"] + 3)
    assert set(proxy.calls - before) == {"ReceiveMessage"}
    assert {call["WaitTimeSeconds"] for call in proxy.of("ReceiveMessage")} == {1}
