"""What happens to jobs in SQS when answers are lost, calls fail or are throttled, receipts expire, and workers die.

The rules of retries, leases and dead letters have their authority in the virtual clock of the Rust tests; here they
meet real sockets, and two emulators.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import dejq
import servers
import sqs_api
import sqs_faults
from dejq import BackendUnavailable, Backoff, Client, DejqError, Job, OutcomeUnknown, PendingJob
from python.conftest import SECONDS
from python.programs.harness import Program
from sqs_api import Sqs
from sqs_faults import INTERNAL, REQUEST_THROTTLED, THROTTLED, UNAVAILABLE, Proxy

if TYPE_CHECKING:
    from python.conftest import Until
    from python.sqs_store import MakeQueue, SqsClient

pytest_plugins = ["python.sqs_store"]

# A lease lasts three beats, and SQS counts it in whole seconds.
HEARTBEAT = 1.0
# For a lease that outlasts what a busy machine does to four workers that start and an emulator: an answer that is
# held up for longer than the lease is another reason for a second run.
CALM_HEARTBEAT = 2.0
FAULTS = pytest.mark.parametrize(
    "fault", [UNAVAILABLE, INTERNAL, THROTTLED, REQUEST_THROTTLED], ids=lambda fault: str(fault[1])
)


class Runs:
    """A handler that notes what it runs; one called held waits until it is let go or told that its lease is lost."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.told: list[Any] = []
        self.leave = threading.Event()
        self.held = threading.Semaphore(0)

    def of(self, client: Client, *types: str, **options: Any) -> Client:
        for type in types:
            client.register_handler(type, self.hold if type == "held" else self.note, **options)
        client.dequeue_loop()
        return client

    def note(self, job: Job) -> None:
        self.jobs.append(job)

    def hold(self, job: Job) -> None:
        self.jobs.append(job)
        self.held.release()
        while not self.leave.wait(0.002):
            if job.cancelled:
                self.told.append(job.body)
                return

    @property
    def bodies(self) -> list[Any]:
        return [job.body for job in self.jobs]


@pytest.fixture
def runs() -> Any:
    runs = Runs()
    yield runs
    runs.leave.set()


def of_jobs(request: sqs_faults.Request) -> bool:
    """Not the question for permissions with which a worker begins, and which names no receipt of a job."""
    entries = request.parameters.get("Entries") or []
    return not any(str(entry.get("ReceiptHandle")).startswith("dejq-") for entry in entries)


def jobs(count: int) -> list[PendingJob[Any]]:
    return [PendingJob("job", number) for number in range(count)]


# ---- calls that fail -----------------------------------------------------------------------------------------


@FAULTS
@pytest.mark.parametrize("action", ["SendMessageBatch", "ReceiveMessage", "DeleteMessageBatch"])
def test_calls_that_fail_are_repeated_and_nothing_runs_twice(
    make_queue: MakeQueue,
    sqs_client: SqsClient,
    proxy: Proxy,
    runs: Runs,
    emptied: Any,
    action: str,
    fault: tuple[int, str],
) -> None:
    queue, _ = make_queue()
    client = sqs_client(by=proxy.endpoint)
    came = proxy.answer(action, *fault, times=2, where=of_jobs)
    runs.of(client, "job")
    ids = client.enqueue(*jobs(12))
    emptied(queue)
    assert came.is_set()
    assert [job.id for job in runs.jobs] == ids


@FAULTS
def test_a_beat_that_fails_is_repeated_before_the_lease_ends(
    make_queue: MakeQueue,
    sqs_client: SqsClient,
    proxy: Proxy,
    runs: Runs,
    until: Until,
    emptied: Any,
    fault: tuple[int, str],
) -> None:
    queue, _ = make_queue(VisibilityTimeout=3)
    client = runs.of(sqs_client(by=proxy.endpoint, heartbeat=HEARTBEAT), "held")
    came = proxy.answer("ChangeMessageVisibilityBatch", *fault, where=of_jobs)
    client.enqueue(PendingJob("held", 0), PendingJob("held", 1))
    assert runs.held.acquire(timeout=SECONDS)
    assert came.wait(SECONDS)
    before = proxy.calls["ChangeMessageVisibilityBatch"]
    until(lambda: proxy.calls["ChangeMessageVisibilityBatch"] > before + 3)
    runs.leave.set()
    emptied(queue)
    assert runs.bodies == [0, 1]
    assert not runs.told


def test_an_enqueue_that_sqs_never_takes_is_refused_and_nothing_was_stored(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy
) -> None:
    queue, _ = make_queue()
    client = sqs_client(by=proxy.endpoint)
    proxy.answer("SendMessageBatch", *UNAVAILABLE, times=10_000)
    with pytest.raises(BackendUnavailable):
        client.enqueue(*jobs(2))
    assert sqs.waiting(queue) == (0, 0)


def test_a_server_that_is_gone_is_told_and_waited_for(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, emptied: Any
) -> None:
    queue, _ = make_queue()
    worker = runs.of(sqs_client(by=proxy.endpoint), "job")
    worker.enqueue(PendingJob("job", 0))
    emptied(queue)
    proxy.refuse(True)
    proxy.cut()
    with pytest.raises(BackendUnavailable):
        worker.enqueue(PendingJob("job", "never"))
    proxy.refuse(False)
    worker.enqueue(PendingJob("job", 1))
    emptied(queue)
    assert runs.bodies == [0, 1]


# ---- answers that are lost -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lose_reply", "lose_request"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_enqueue_whose_answer_is_lost_stores_its_chain_once_and_in_order(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, emptied: Any, nth: int, how: str
) -> None:
    queue, _ = make_queue()
    client = sqs_client(by=proxy.endpoint)
    lost = getattr(proxy, how)("SendMessageBatch", nth=nth)
    ids = client.enqueue(*jobs(25))
    assert lost.is_set()
    assert proxy.calls["SendMessageBatch"] == 4
    sent = [[each["MessageDeduplicationId"] for each in call["Entries"]] for call in proxy.of("SendMessageBatch")]
    assert sent[nth - 1] == sent[nth]
    runs.of(client, "job")
    emptied(queue)
    assert [job.id for job in runs.jobs] == ids


def test_an_enqueue_whose_answers_are_all_lost_has_an_unknown_outcome_and_may_be_repeated(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy
) -> None:
    queue, _ = make_queue()
    client = sqs_client(by=proxy.endpoint)
    proxy.lose_reply("SendMessageBatch", times=10_000)
    with pytest.raises(OutcomeUnknown) as caught:
        client.enqueue(PendingJob("job", 0))
    assert len(caught.value.ids) == 1
    (message,) = sqs.receive(queue, wait=5)
    assert sqs_api.text_attributes(message)["job_id"] == caught.value.ids[0]


def test_a_receive_whose_answer_is_lost_is_repeated_under_its_own_name(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, emptied: Any, is_like_aws: bool
) -> None:
    """An emulator that knows attempts gives the messages once more; with another they come when their leases end."""
    queue, _ = make_queue(VisibilityTimeout=600)
    client = sqs_client(by=proxy.endpoint, heartbeat=60 if is_like_aws else HEARTBEAT)
    client.enqueue(*jobs(3))
    lost = proxy.lose_reply("ReceiveMessage")
    runs.of(client, "job")
    emptied(queue)
    assert lost.is_set()
    assert runs.bodies == [0, 1, 2]
    attempts = [call.get("ReceiveRequestAttemptId") for call in proxy.of("ReceiveMessage")]
    assert attempts[0]
    assert attempts[0] == attempts[1]
    assert attempts[1] != attempts[2]


def test_a_receive_that_was_throttled_is_repeated_under_another_name(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, emptied: Any
) -> None:
    """AWS says "not valid anymore" of the name of a throttled one."""
    queue, _ = make_queue()
    client = sqs_client(by=proxy.endpoint)
    client.enqueue(*jobs(1))
    proxy.answer("ReceiveMessage", *THROTTLED)
    runs.of(client, "job")
    emptied(queue)
    attempts = [call["ReceiveRequestAttemptId"] for call in proxy.of("ReceiveMessage")]
    assert attempts[0] != attempts[1]


def test_a_delete_whose_answer_is_lost_is_repeated_and_nothing_runs_twice(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, emptied: Any
) -> None:
    queue, _ = make_queue()
    client = sqs_client(by=proxy.endpoint)
    client.enqueue(*jobs(3))
    lost = proxy.lose_reply("DeleteMessageBatch", where=of_jobs)
    runs.of(client, "job")
    emptied(queue)
    assert lost.is_set()
    assert runs.bodies == [0, 1, 2]


def test_connections_that_are_cut_again_and_again_cost_nothing(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, until: Until, emptied: Any
) -> None:
    queue, _ = make_queue()
    # An emulator goes on with a poll that nobody waits for any more, and keeps what it takes from others for a lease.
    worker = runs.of(sqs_client(by=proxy.endpoint, workers=4, heartbeat=HEARTBEAT, wait_time=1), "job")
    ids: list[str] = []
    for _ in range(10):
        ids += [id for _ in range(4) for id in worker.enqueue(*jobs(5))]
        ran = len(runs.jobs)
        until(lambda ran=ran: len(runs.jobs) > ran)  # type: ignore[misc]  # mypy knows no defaults of a lambda
        proxy.cut()
    emptied(queue)
    assert {job.id for job in runs.jobs} == set(ids)
    order: dict[str, list[int]] = defaultdict(list)
    for job in runs.jobs:
        order[job.chain_id].append(job.position)
    # A lost acknowledgement is a reason for a second run, but never behind the next job.
    assert all(each == sorted(each) and set(each) == {1, 2, 3, 4, 5} for each in order.values())


# ---- chains that break ---------------------------------------------------------------------------------------


def test_the_end_of_a_batch_that_sqs_refused_is_sent_again(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, emptied: Any
) -> None:
    queue, _ = make_queue()
    client = sqs_client(by=proxy.endpoint)
    proxy.refuse_entries("SendMessageBatch", lambda place, _: place >= 6, "InternalError")
    client.enqueue(*jobs(15))
    runs.of(client, "job")
    emptied(queue)
    assert runs.bodies == list(range(15))


def test_a_hole_in_a_chain_is_told_with_what_was_sent_and_what_was_not(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy
) -> None:
    queue, _ = make_queue()
    client = sqs_client(by=proxy.endpoint)
    proxy.refuse_entries("SendMessageBatch", lambda place, _: place == 4, "InternalError", nth=2)
    with pytest.raises(dejq.ChainBroken) as caught:
        client.enqueue(*jobs(30))
    error = caught.value
    assert isinstance(error, DejqError)
    # To send the fifth of the second batch now would be to run it behind those that came after it.
    assert proxy.calls["SendMessageBatch"] == 2
    assert len(error.sent) == 19
    assert len(error.unsent) == 11
    assert sum(sqs.waiting(queue)) == 19
    assert error.unsent[0] in str(error) or "11" in str(error)


def test_a_single_job_that_sqs_refused_is_sent_again(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy
) -> None:
    queue, _ = make_queue()
    proxy.refuse_entries("SendMessageBatch", lambda place, _: place in (0, 3), "InternalError")
    sqs_client(by=proxy.endpoint).enqueue_many(jobs(6))
    assert sum(sqs.waiting(queue)) == 6


# ---- leases that are lost ------------------------------------------------------------------------------------


def test_a_job_whose_receipt_has_expired_runs_again_and_its_dependants_wait_for_it(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, emptied: Any
) -> None:
    queue, _ = make_queue()
    client = sqs_client(by=proxy.endpoint, heartbeat=HEARTBEAT, workers=4)
    proxy.refuse_entries(
        "DeleteMessageBatch", lambda place, _: place == 0, "InvalidParameterValue", sender=True, where=of_jobs
    )
    runs.of(client, "job")
    client.enqueue(*jobs(3))
    emptied(queue)
    assert runs.bodies == [0, 0, 1, 2]
    assert runs.jobs[1].attempt == 2


def test_a_handler_is_told_when_a_beat_says_that_its_receipt_has_expired(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, until: Until, emptied: Any
) -> None:
    queue, _ = make_queue()
    client = runs.of(sqs_client(by=proxy.endpoint, heartbeat=HEARTBEAT), "held")
    client.enqueue(PendingJob("held", "held"))
    assert runs.held.acquire(timeout=SECONDS)
    proxy.refuse_entries("ChangeMessageVisibilityBatch", lambda *_: True, "InvalidParameterValue", sender=True)
    until(lambda: runs.told == ["held"])
    runs.leave.set()
    emptied(queue)
    assert runs.bodies == ["held", "held"]


def test_a_worker_that_was_paused_for_longer_than_its_lease_changes_nothing(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, sqs_url: str, sqs_queue: str, tmp_path: Path, emptied: Any,
    runs: Runs, until: Until,
) -> None:  # fmt: skip
    queue, _ = make_queue()
    url = f"{servers.queue_url(sqs_url, sqs_queue)}&heartbeat={HEARTBEAT}"
    notes, go = tmp_path / "notes", tmp_path / "go"
    with Program("sqs_worker", "gone", url, str(notes), str(go), seconds=60) as paused:
        (id,) = sqs_client().enqueue(PendingJob("job", 0))
        assert paused.line() == f"started {id}"
        paused.signal(signal.SIGSTOP)
        other = sqs_client(heartbeat=HEARTBEAT)
        hold = runs.hold
        other.register_handler("job", hold)
        other.dequeue_loop()
        assert runs.held.acquire(timeout=SECONDS)
        paused.signal(signal.SIGCONT)
        go.touch()
        assert paused.line() == f"cancelled {id}"
        # It did not take the job from who has it now.
        assert sqs.waiting(queue) == (0, 1)
        runs.leave.set()
        emptied(queue)
        paused.signal(signal.SIGTERM)
        paused.wait()
    assert not runs.told


def test_a_handler_that_holds_the_interpreter_keeps_its_lease(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, sqs_url: str, sqs_queue: str, tmp_path: Path, emptied: Any
) -> None:
    queue, _ = make_queue()
    url = f"{servers.queue_url(sqs_url, sqs_queue)}&heartbeat={HEARTBEAT}"
    with Program("pg_worker", "work", url, str(tmp_path), "gil", seconds=60) as program:
        assert program.line().startswith("clock")
        (id,) = sqs_client().enqueue(PendingJob("gil", 6))
        assert program.line() == f"started {id}"
        assert program.line() == f"returned {id}"
        emptied(queue)
        program.signal(signal.SIGTERM)
        counts = program.wait()
    assert '"finished": 1' in counts.out


# ---- workers that die ----------------------------------------------------------------------------------------


def test_a_job_whose_worker_dies_runs_again_elsewhere_before_its_dependants(
    make_queue: MakeQueue, sqs_client: SqsClient, sqs_url: str, sqs_queue: str, tmp_path: Path, runs: Runs, emptied: Any
) -> None:
    queue, _ = make_queue()
    url = f"{servers.queue_url(sqs_url, sqs_queue)}&heartbeat={HEARTBEAT}"
    with Program("pg_worker", "work", url, str(tmp_path), "deadly", seconds=60) as program:
        client = sqs_client(heartbeat=HEARTBEAT)
        client.enqueue(PendingJob("deadly", "deadly"), *jobs(2))
        program.process.wait()
    runs.of(client, "deadly", "job")
    emptied(queue)
    assert runs.bodies == ["deadly", 0, 1]
    assert runs.jobs[0].attempt == 2


@pytest.mark.timeout(300)
def test_a_hundred_groups_on_four_workers_that_are_killed_lose_nothing_and_keep_their_order(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, sqs_url: str, sqs_queue: str, tmp_path: Path
) -> None:
    """Order per group, nothing lost, and a reason for every second run."""
    queue, dead = make_queue(receives=100)
    url = f"{servers.queue_url(sqs_url, sqs_queue)}&heartbeat={CALM_HEARTBEAT}"
    notes = tmp_path / "notes"
    length, groups = 6, 100
    client = sqs_client()
    chains = [client.enqueue(*[PendingJob("job", 0.01)] * length) for _ in range(groups)]
    total = groups * length

    def ended() -> int:
        return len({tuple(line.split()[1:3]) for line in lines() if line.startswith("end")})

    def lines() -> list[str]:
        return notes.read_text().splitlines() if notes.exists() else []

    killed: set[str] = set()
    with ExitStack() as stack:

        def start() -> Program:
            return stack.enter_context(Program("sqs_worker", "work", url, str(notes), "8", seconds=250))

        workers = [start() for _ in range(4)]
        for worker in workers:
            assert worker.line() == "ready"
        for number in range(8):
            wait_for(lambda goal=total * (number + 1) // 10: ended() >= goal)
            victim = workers.pop(0)
            killed.add(str(victim.process.pid))
            victim.signal(signal.SIGKILL)
            victim.process.wait()
            workers.append(start())
        wait_for(lambda: ended() == total and sqs.waiting(queue) == (0, 0))
        for worker in workers:
            worker.signal(signal.SIGTERM)
        for worker in workers:
            worker.wait()
    explain(lines(), killed, {chain[0]: length for chain in chains})
    assert sqs.waiting(dead) == (0, 0)


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.02)


def explain(lines: list[str], killed: set[str], lengths: dict[str, int]) -> None:
    """Each job ran; of each group in order; and ran again only when the worker that had it was killed."""
    starts: dict[str, list[int]] = defaultdict(list)
    by_job: dict[tuple[str, int], list[str]] = defaultdict(list)
    ended: Counter[tuple[str, int]] = Counter()
    for line in lines:
        what, chain, place, _, process = line.split()
        job = (chain, int(place))
        if what == "start":
            starts[chain].append(int(place))
            by_job[job].append(process)
        elif what == "end":
            ended[job] += 1
    assert starts.keys() == lengths.keys()
    for chain, places in starts.items():
        assert places == sorted(places), chain
        assert set(places) == set(range(1, lengths[chain] + 1))
    for job, processes in by_job.items():
        # All runs but the last one were in a worker that was killed amid it, or before SQS had heard of its end.
        assert set(processes[:-1]) <= killed, (job, processes)
        assert ended[job] >= 1


def test_workers_that_die_take_only_their_own_job_to_the_dead_letters(
    sqs: Sqs, make_queue: MakeQueue, sqs_client: SqsClient, sqs_url: str, sqs_queue: str, tmp_path: Path,
    runs: Runs, emptied: Any, is_like_aws: bool,
) -> None:  # fmt: skip
    """A job that kills its worker each time is a dead letter in the end; who waits behind it is not.

    ministack keeps a group together that was to come back one after the other, and counts all of it each time.
    """
    queue, dead = make_queue(receives=5)
    url = f"{servers.queue_url(sqs_url, sqs_queue)}&heartbeat={HEARTBEAT}"
    client = sqs_client(heartbeat=HEARTBEAT, backoff=Backoff(0.01))
    client.enqueue(PendingJob("deadly", "deadly"), *jobs(3))
    deaths = 0
    while not sqs.waiting(dead)[0]:
        with Program("pg_worker", "work", url, str(tmp_path), "deadly", seconds=60) as program:
            wait_for(lambda program=program: program.process.poll() is not None or sqs.waiting(dead)[0])
            deaths += program.process.poll() is not None
    assert deaths == 5
    runs.of(client, "job")
    emptied(queue)
    if is_like_aws:
        assert runs.bodies == [0, 1, 2]
        assert sqs.waiting(dead)[0] == 1
    else:
        assert len(runs.bodies) + sqs.waiting(dead)[0] == 4


# ---- throughput under faults -----------------------------------------------------------------------------------


def test_many_producers_and_faults_lose_nothing(
    make_queue: MakeQueue, sqs_client: SqsClient, proxy: Proxy, runs: Runs, emptied: Any
) -> None:
    queue, _ = make_queue()
    client = runs.of(sqs_client(by=proxy.endpoint, workers=4), "job")
    for action in ("SendMessageBatch", "ReceiveMessage", "DeleteMessageBatch"):
        for nth in (2, 5):
            proxy.answer(action, *sqs_faults.UNAVAILABLE, nth=nth)
            proxy.answer(action, *sqs_faults.THROTTLED, nth=nth + 1)
    proxy.lose_reply("SendMessageBatch", nth=8)
    proxy.lose_reply("DeleteMessageBatch", nth=8)
    with ThreadPoolExecutor(8) as pool:
        sent = [id for ids in pool.map(lambda _: client.enqueue(*jobs(3)), range(40)) for id in ids]
    emptied(queue)
    assert Counter(job.id for job in runs.jobs) == Counter(sent)
