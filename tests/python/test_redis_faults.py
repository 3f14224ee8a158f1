"""What happens to jobs in Redis when answers are lost, servers and workers die, memory is full and keys go wrong."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import signal
import socket
import sysconfig
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

import debian
import dejq
import fault_proxy
import servers
from dejq import BackendUnavailable, Client, ConfigError, DejqError, Job, JobInfo, OutcomeUnknown, PendingJob
from fault_proxy import Proxy
from python.conftest import SECONDS, Ended, Log, Until
from python.programs.harness import Program
from servers import Server

# A lease lasts three beats. The calm one outlasts everything that a busy machine does to a restart.
HEARTBEAT = 0.5
CALM_HEARTBEAT = 3.0
# More than one command of Redis, or one call of unpack() in Lua, takes.
MANY = 9_000
# A job that has ended is forgotten beyond so many, and a repeated enqueue would not know it any more.
KEEP_ALL = 1_000_000

SCRIPTS = Path(__file__).parents[2] / "src/backend/redis/lua"


@dataclass
class Queue:
    """A queue in a server, and the clients of it, which are stopped after the test."""

    url: str
    through_proxy: str
    name: str
    redis: redis.Redis
    clients: list[Client] = field(default_factory=list[Client])
    # Whoever takes keys away or puts others there gets what does not add up.
    is_whole: bool = True

    def client(self, url: str | None = None, **options: Any) -> Client:
        chosen = {"queue": self.name, "heartbeat": HEARTBEAT, "workers": 2, "keep_finished": KEEP_ALL, **options}
        self.clients.append(dejq.connect(url or self.url, **chosen))
        return self.clients[-1]

    def address(self, **options: Any) -> str:
        """For a worker in a process of its own."""
        chosen = {"queue": self.name, "heartbeat": HEARTBEAT, "keep_finished": KEEP_ALL, **options}
        return f"{self.url}?{'&'.join(f'{key}={value}' for key, value in chosen.items())}"

    def ask(self, *words: str | bytes | float) -> Any:
        """What the server answers to a command."""
        execute: Callable[..., Any] = self.redis.execute_command
        return execute(*words)

    def key(self, name: str) -> str:
        return f"dejq:{{{self.name}}}:{name}"

    def keys(self) -> list[str]:
        """Without what all of them begin with."""
        return sorted(key.decode().partition("}:")[2] for key in self.ask("KEYS", self.key("*")))

    def info(self, section: str) -> dict[str, Any]:
        found: Any = self.redis.info(section)
        return dict(found)

    def hash(self, name: str) -> dict[bytes, bytes]:
        return dict(self.redis.hgetall(self.key(name)))  # type: ignore[arg-type]  # its stubs say that it may be awaited

    def states(self) -> dict[str, str]:
        """All jobs that are kept; see `places`."""
        return {uuid_of(id): states[0] for id, states in self.places().items()}

    def places(self) -> dict[bytes, list[str]]:
        """For each place in which a job is, the state that it stands for; keys.rs of the store says what is where."""
        jobs, records, places = self.hash("job"), self.hash("state"), defaultdict[bytes, list[str]](list)
        void = 0
        for key in self.keys():
            kind = key.partition(":")[0]
            if kind == "fresh":
                for ticket in self.ask("LRANGE", self.key(key), 0, -1):
                    number = int.from_bytes(ticket[:7], "big")
                    if jobs.get(ticket[7:], b"").startswith(b"%d " % number):
                        places[ticket[7:]].append("ready")
                    else:
                        void += 1
            elif kind == "run":
                for id in self.hash(key):
                    places[id].append("running")
            elif kind in ("back", "due"):
                for id in self.ask("ZRANGE", self.key(key), 0, -1):
                    places[id].append("ready" if kind == "back" else "scheduled")
            elif kind == "finished":
                for entry in self.ask("LRANGE", self.key(key), 0, -1):
                    places[entry[:16]].append("finished")
            elif kind == "failed":
                for id in self.ask("ZRANGE", self.key(key), 0, -1):
                    places[id].append(records[id].split()[0].decode())
        for id, record in records.items():
            state = record.split()[0].decode()
            if state == "blocked":
                places[id].append(state)
            assert places[id] == [state]
        assert void == int(self.ask("GET", self.key("void")) or 0)
        return places

    def audit(self) -> None:
        """Each job is in exactly one place, and what is counted is what is there."""
        jobs, places = self.hash("job"), self.places()
        assert places.keys() == jobs.keys()
        assert not [states for states in places.values() if len(states) != 1]
        there = Counter(f"{places[id][0]} {frame.split(None, 2)[1].decode()}" for id, frame in jobs.items())
        counts = {name.decode(): int(number) for name, number in self.hash("count").items()}
        assert not [name for name, number in counts.items() if number < 0]
        for name in counts.keys() | there.keys():
            # What has ended is counted also when it is not kept.
            is_final = name.split()[0] in ("finished", "failed", "cancelled")
            assert counts.get(name, 0) == there[name] or (is_final and counts[name] > there[name]), name
        assert int(self.hash("total").get(b"jobs", 0)) == sum(counts.values())
        for chain in self.hash("chain").values():
            left, members = int(chain.split()[0]), chain.partition(b":")[2]
            assert left == sum(members[at : at + 16] in jobs for at in range(0, len(members), 16))
        assert self.hash("failure").keys() <= jobs.keys()
        final = ("finished", "failed", "cancelled")
        assert not [id for id in self.hash("unique").values() if places[id][0] in final]

    def stop(self) -> None:
        for client in self.clients:
            report = client.stop(timeout=SECONDS)
            assert not report.abandoned
            assert not report.forced


class Runs:
    """Handlers that note the ids that they run, and one that is held until it is let go."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.held: list[str] = []
        self.cancelled: list[str] = []
        self.leave = threading.Event()
        self.heeds = True  # do held handlers return when they are told to?

    def of(self, client: Client, *types: str, **options: Any) -> Client:
        """Starts a worker of these types; those that are called held wait for `leave`."""
        for type in types:
            client.register_handler(type, self.hold if type == "held" else self.note, **options)
        client.dequeue_loop()
        return client

    def note(self, job: Job) -> None:
        self.ids.append(job.id)

    def hold(self, job: Job) -> None:
        self.held.append(job.id)
        while not self.leave.wait(0.002):
            if job.cancelled and job.id not in self.cancelled:
                self.cancelled.append(job.id)
            if job.cancelled and self.heeds:
                break
        self.ids.append(job.id)

    @property
    def twice(self) -> list[str]:
        """What ran more than once."""
        return [id for id, times in Counter(self.ids).items() if times > 1]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One that the test may kill and change; it is told how to begin by indirect parameters."""
    with servers.redis(own=True, **getattr(request, "param", {})) as server:
        yield server


def lasting(*durable: str) -> pytest.MarkDecorator:
    """For servers that keep their data so."""
    return pytest.mark.parametrize("server", [{"durable": each} for each in durable], indirect=True, ids=durable)


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxy_to(server) as proxy:
        yield proxy


@contextmanager
def proxy_to(server: Server) -> Iterator[Proxy]:
    parts = urlsplit(server.url)
    assert parts.hostname
    assert parts.port
    with fault_proxy.proxy(parts.hostname, parts.port) as proxy:
        yield proxy


_numbers = itertools.count(1)


@pytest.fixture
def queue(server: Server, proxy: Proxy) -> Iterator[Queue]:
    with redis.Redis.from_url(server.url) as connection:
        queue = Queue(server.url, proxy.in_front_of(server.url), f"q{next(_numbers)}", connection)
        yield queue
        proxy.black_hole(False)
        proxy.refuse(False)
        queue.stop()
        if queue.is_whole:
            queue.audit()


@pytest.fixture
def bystander(queue: Queue) -> Iterator[Client]:
    """A worker of another queue in the same server."""
    client = dejq.connect(queue.url, queue="bystander", heartbeat=HEARTBEAT, workers=1)
    Runs().of(client, "job")
    yield client
    client.stop(timeout=SECONDS)


@pytest.fixture
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.leave.set()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def jobs(count: int, type: str = "job") -> list[PendingJob[Any]]:
    return [PendingJob(type, number) for number in range(count)]


def counted(client: Client) -> dict[str, int]:
    return client._native.counted()


def has_finished(client: Client, count: int) -> bool:
    return counted(client)["finished"] >= count


def goes_on_beating(client: Client, until: Until) -> None:
    """Waits for so many beats that others would have rescued what they may."""
    beats = counted(client)["beats"]
    until(lambda: counted(client)["beats"] > beats + 4)


def is_idle(client: Client) -> bool:
    stats = client.stats()
    return not stats.enqueued_jobs and not stats.running


def uuid_of(id: bytes) -> str:
    text = id.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def script(name: str) -> bytes:
    """The hash of a script of the store, which stands in each call of it; script.rs says what it is made of."""
    parts = {"push": ["push"]}.get(name, ["base", name])
    if name in ("claim", "settle", "rescue", "operate"):
        parts.insert(1, "state")
    text = "\n".join((SCRIPTS / f"{part}.lua").read_text() for part in parts)
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode()


class Calls:
    """Is a script called? Only when the server knows it, and nothing before `armed`."""

    def __init__(self, name: str, queue: Queue, armed: bool = True) -> None:
        self.armed = armed
        self._hash = script(name)
        self._queue = queue

    def __call__(self, sent: bytes) -> bool:
        return self.armed and self._hash in sent and self._queue.ask("SCRIPT", "EXISTS", self._hash)[0]


def noticed(queue: Queue, proxy: Proxy, name: str) -> threading.Event:
    """Is set when the script is called through the proxy the next time."""
    seen = threading.Event()
    calls = Calls(name, queue)

    def look(sent: bytes) -> bool:
        if calls(sent):
            seen.set()
        return False

    proxy.drop_replies_of(look)
    return seen


# ---- an answer is lost


def enqueue_one(client: Client) -> list[str]:
    return client.enqueue(PendingJob("job"))


def enqueue_chain(client: Client) -> list[str]:
    return client.enqueue(*jobs(3))


def enqueue_unique(client: Client) -> list[str]:
    return client.enqueue(PendingJob("job", unique="one"))


def enqueue_delayed(client: Client) -> list[str]:
    return client.enqueue(PendingJob("job", delay=0.01))


def enqueue_bulk(client: Client) -> list[str]:
    return client.enqueue_many(jobs(500))


def enqueue_mixed(client: Client) -> list[str]:
    return client.enqueue_many([*jobs(3), jobs(250), jobs(2)])


def enqueue_failing(client: Client) -> list[str]:
    return client.enqueue(PendingJob("job", "fails"))


ENQUEUES: dict[str, Callable[[Client], list[str]]] = {
    "one": enqueue_one,
    "chain": enqueue_chain,
    "unique": enqueue_unique,
    "delayed": enqueue_delayed,
    "bulk": enqueue_bulk,
}


@pytest.mark.parametrize("kind", ENQUEUES)
def test_an_enqueue_whose_answer_is_lost_is_stored_once_and_returns(
    queue: Queue, proxy: Proxy, runs: Runs, until: Until, kind: str
) -> None:
    client = queue.client(queue.through_proxy)
    enqueue_one(client)
    warm = client.enqueue(PendingJob("job", unique="warm"))
    if kind == "bulk":
        # The transaction's own answer, behind those to its commands.
        lost = proxy.drop_replies_of(b"EXEC\r\n", b"\r\n*")
    else:
        lost = proxy.drop_replies_of(Calls("push" if kind == "one" else "enqueue", queue))
    ids = ENQUEUES[kind](client)
    assert lost.is_set()
    assert len(queue.states()) == len(ids) + 2
    assert set(ids) | set(warm) <= queue.states().keys()
    assert client.stats().totals
    runs.of(client, "job")
    until(lambda: counted(client)["finished"] == len(ids) + 2)
    assert not runs.twice


def test_enqueues_that_shared_a_call_whose_answer_is_lost_are_stored_once_each(
    queue: Queue, proxy: Proxy, pool: ThreadPoolExecutor, until: Until
) -> None:
    client = queue.client(queue.through_proxy)
    enqueue_chain(client)
    enqueues = Calls("enqueue", queue, armed=False)
    lost = proxy.drop_replies_of(enqueues)
    # While the first one waits for the answer, the rest comes together.
    proxy.black_hole(True)
    first = pool.submit(enqueue_chain, client)
    rest = [pool.submit(enqueue_chain, client) for _ in range(4)]
    until(lambda: all(future.running() for future in (first, *rest)))
    enqueues.armed = True
    proxy.black_hole(False)
    ids = [id for future in (first, *rest) for id in future.result()]
    assert lost.is_set()
    assert len(set(ids)) == 15
    assert set(ids) <= queue.states().keys()
    assert len(queue.states()) == 18


def test_an_enqueue_whose_outcome_stays_unknown_says_so_with_ids_that_are_all_stored_or_none(
    queue: Queue, server: Server, proxy: Proxy, pool: ThreadPoolExecutor, until: Until
) -> None:
    def enqueue(client: Client) -> list[str]:
        with pytest.raises(OutcomeUnknown, match="look for the ids") as caught:
            enqueue_chain(client)
        return list(caught.value.ids)

    with proxy_to(server) as before:
        stored, sent = queue.client(queue.through_proxy), queue.client(before.in_front_of(server.url))
        for client in (stored, sent):
            enqueue_chain(client)
        lost = proxy.drop_replies_of(Calls("enqueue", queue))
        # One is stored and only its answer lost, the other never gets through.
        proxy.refuse(True)
        before.refuse(True)
        before.black_hole(True)
        unknown = [pool.submit(enqueue, stored), pool.submit(enqueue, sent)]
        until(lost.is_set)
        before.cut()
        before.black_hole(False)
        in_store, nowhere = (future.result() for future in unknown)
        proxy.refuse(False)
        before.refuse(False)
        states = queue.states()
        assert len(in_store) == len(nowhere) == 3
        assert set(in_store) <= states.keys()
        assert not set(nowhere) & states.keys()
        # Who looks and enqueues again has each job once, and the clients are as good as new.
        assert len(enqueue_chain(stored)) == len(enqueue_chain(sent)) == 3
        assert len(queue.states()) == 6 + 3 + 6


def test_an_enqueue_into_a_black_hole_ends_when_its_patience_does(
    queue: Queue, proxy: Proxy, pool: ThreadPoolExecutor
) -> None:
    client = queue.client(queue.through_proxy)
    enqueue_one(client)
    proxy.black_hole(True)
    try:
        with pytest.raises(OutcomeUnknown) as caught:
            pool.submit(enqueue_one, client).result(timeout=SECONDS)
        assert len(caught.value.ids) == 1
    finally:
        proxy.black_hole(False)
    assert len(enqueue_one(client)) == 1


def test_jobs_of_a_claim_whose_answer_is_lost_come_back_and_run_once(
    queue: Queue, proxy: Proxy, runs: Runs, until: Until, ended: Ended
) -> None:
    client = queue.client()
    runs.of(queue.client(), "other")
    ended(client, client.enqueue(PendingJob("other"))[0])
    ids = client.enqueue_many(jobs(20))
    lost = proxy.drop_replies_of(Calls("claim", queue))
    worker = runs.of(queue.client(queue.through_proxy), "job")
    infos = [ended(client, id) for id in ids]
    assert lost.is_set()
    assert sorted(runs.ids[1:]) == sorted(ids)
    assert {(info.state, info.attempt, info.rescues) for info in infos} == {("finished", 1, 0)}
    until(lambda: counted(worker)["finished"] == 20)
    assert counted(worker)["lost"] == counted(worker)["rescued"] == 0


@pytest.mark.parametrize("keep_finished", [KEEP_ALL, 0], ids=["kept", "not_kept"])
def test_a_finish_whose_answer_is_lost_counts_once_and_the_chain_goes_on(
    queue: Queue, proxy: Proxy, runs: Runs, until: Until, ended: Ended, log: Log, keep_finished: int
) -> None:
    worker = runs.of(queue.client(queue.through_proxy, keep_finished=keep_finished), "job", "held")
    # The first settle makes the script known; the next one answers with the job that is handed on.
    queue.client().enqueue(PendingJob("job"))
    until(lambda: counted(worker)["finished"] == 1)
    lost = proxy.drop_replies_of(Calls("settle", queue))
    ids = queue.client().enqueue(*jobs(3))
    until(lambda: counted(worker)["finished"] + counted(worker)["lost"] == 4)
    assert lost.is_set()
    assert runs.ids[1:] == ids
    assert counted(worker)["lost"] == counted(worker)["rescued"] == 0
    assert "another worker" not in log.text
    stats = queue.client().stats()
    assert (stats.finished, stats.enqueued_jobs, stats.running) == (4, 0, 0)
    assert stats.totals
    assert (stats.totals.attempts, stats.totals.rescues) == (4, 0)


@pytest.mark.parametrize(("error", "state"), [(ValueError, "failed"), (dejq.Discard, "failed"), (None, "finished")])
def test_an_end_whose_answer_is_lost_is_stored_once_whichever_it_is(
    queue: Queue,
    proxy: Proxy,
    until: Until,
    ended: Ended,
    log: Log,
    error: type[Exception] | None,
    state: str,
) -> None:
    worker = queue.client(queue.through_proxy)
    seen: list[str] = []

    @worker.handler("job")
    def end(job: Job) -> None:
        seen.append(job.id)
        if error:
            raise error("as it should")

    worker.dequeue_loop()
    (first,) = enqueue_one(worker)
    ended(worker, first)
    until(lambda: counted(worker)[state] == 1)
    lost = proxy.drop_replies_of(Calls("settle", queue))
    (second,) = enqueue_one(queue.client())
    until(lambda: counted(worker)[state] == 2)
    assert lost.is_set()
    assert worker.get_job(second).state == state
    assert seen == [first, second]
    assert counted(worker)["lost"] == 0
    assert "another worker" not in log.text
    stats = worker.stats()
    assert stats.totals
    assert stats.totals.attempts == 2


def test_a_retry_whose_answer_is_lost_counts_once_and_is_not_called_lost(
    queue: Queue, proxy: Proxy, until: Until, ended: Ended, log: Log
) -> None:
    worker = queue.client(queue.through_proxy)
    attempts: list[int] = []

    @worker.handler("job", max_attempts=2, backoff=dejq.Backoff(initial=0.01))
    def fail_once(job: Job) -> None:
        attempts.append(job.attempt)
        if job.attempt == 1 and job.body is None:
            raise ValueError("the first attempt")

    worker.dequeue_loop()
    worker.enqueue(PendingJob("job", "ends well"))
    until(lambda: counted(worker)["finished"] == 1)
    lost = proxy.drop_replies_of(Calls("settle", queue))
    (id,) = enqueue_one(queue.client())
    assert ended(queue.client(), id).state == "finished"
    until(lambda: counted(worker)["finished"] == 2)
    assert lost.is_set()
    assert attempts == [1, 1, 2]
    assert counted(worker)["lost"] == 0
    assert counted(worker)["retried"] == 1
    assert "another worker" not in log.text
    stats = worker.stats()
    assert stats.totals
    assert (stats.totals.retries, stats.totals.failures, stats.totals.attempts) == (1, 1, 3)


# ---- the server goes and comes back


class Enqueuer:
    """Enqueues on a thread until it is stopped, as a program that repeats what it was told has failed."""

    def __init__(self, client: Client, *kinds: Callable[[int], Sequence[PendingJob[Any]]]) -> None:
        self.client = client
        self.kinds = kinds or (chain_of_two,)
        self.confirmed: list[str] = []
        self.unknown: list[str] = []
        self.errors: list[DejqError] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        for number, kind in enumerate(itertools.cycle(self.kinds)):
            if self.over.wait(0.01):
                return
            wanted = kind(number)
            is_chain = kind is chain_of_two
            try:
                self.confirmed += self.client.enqueue(*wanted) if is_chain else self.client.enqueue_many(wanted)
            except OutcomeUnknown as error:
                self.unknown += error.ids
            except BackendUnavailable as error:
                self.errors.append(error)

    def goes_on(self, until: Until, by: int = 20) -> None:
        """Waits until more has been confirmed than now."""
        seen = len(self.confirmed)
        until(lambda: len(self.confirmed) > seen + by)

    def __enter__(self) -> Enqueuer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def chain_of_two(_: int) -> list[PendingJob[Any]]:
    return jobs(2)


def single(number: int) -> list[PendingJob[Any]]:
    return [PendingJob("job", number)]


def unique(number: int) -> list[PendingJob[Any]]:
    return [PendingJob("job", number, unique=f"u{number}")]


def delayed(number: int) -> list[PendingJob[Any]]:
    return [PendingJob("job", number, delay=0.05)]


def bulk(_: int) -> list[PendingJob[Any]]:
    return jobs(250)


ALL_KINDS = (chain_of_two, single, unique, delayed, bulk)


def all_is_done(queue: Queue, runs: Runs, workers: Sequence[Client], until: Until, *enqueuers: Enqueuer) -> None:
    """Waits for the end; each confirmed job ran once, no other but those of unknown outcome, and all are counted."""
    client = queue.client()

    until(lambda: is_idle(client))
    confirmed = {id for enqueuer in enqueuers for id in enqueuer.confirmed}
    unknown = {id for enqueuer in enqueuers for id in enqueuer.unknown}
    assert confirmed <= set(runs.ids)
    assert set(runs.ids) - confirmed <= unknown
    assert not runs.twice
    until(lambda: sum(counted(worker)["finished"] for worker in workers) == len(runs.ids))
    assert sum(counted(worker)["lost"] + counted(worker)["rescued"] for worker in workers) == 0
    stats = client.stats()
    assert stats.finished == len(runs.ids)
    assert stats.totals
    assert (stats.totals.jobs, stats.totals.attempts, stats.totals.failures) == (len(runs.ids), len(runs.ids), 0)
    assert set(queue.states()) == set(runs.ids)
    while client.delete_finished(0):
        pass
    assert not queue.states()
    assert set(queue.keys()) <= {"awake", "count", "meta", "place", "total", "void", "worker", "workers", "wake:job"}


@lasting("always")
def test_a_server_that_is_killed_again_and_again_loses_nothing_and_runs_nothing_twice(
    queue: Queue, server: Server, runs: Runs, until: Until
) -> None:
    worker = queue.client(heartbeat=CALM_HEARTBEAT)
    worker.register_handler("held", runs.hold)
    runs.of(worker, "job")
    first = Enqueuer(queue.client(), single)
    first.confirmed += worker.enqueue(PendingJob("held"))
    until(lambda: runs.held)
    with first, Enqueuer(queue.client(), *ALL_KINDS) as second:
        for _ in range(5):
            first.goes_on(until)
            second.goes_on(until, by=300)
            server.kill()
            server.restart()
        first.goes_on(until)
        second.goes_on(until, by=300)
    runs.leave.set()
    all_is_done(queue, runs, [worker], until, first, second)
    assert len(runs.held) == 1
    assert not runs.cancelled


@lasting("everysec")
def test_a_server_that_is_killed_while_its_disk_is_slow_loses_at_most_what_it_had_not_written(
    queue: Queue, server: Server, runs: Runs, until: Until
) -> None:
    worker = runs.of(queue.client(heartbeat=CALM_HEARTBEAT), "job")
    written, ended = set[str](), set[str]()
    with Enqueuer(queue.client(), single) as first, Enqueuer(queue.client(), *ALL_KINDS) as second:
        for _ in range(5):
            first.goes_on(until)
            second.goes_on(until, by=300)
            written.update(first.confirmed, second.confirmed)
            ended.update(uuid_of(entry[:16]) for entry in queue.ask("LRANGE", queue.key("finished"), 0, -1))
            is_written(queue, until)
            server.kill()
            server.restart()
        first.goes_on(until)
    until(lambda: is_idle(worker))
    assert written <= set(runs.ids)
    assert len(ended) > 300
    assert not ended & set(runs.twice)


def is_written(queue: Queue, until: Until) -> None:
    """Waits until the file has what was answered before, which everysec holds back for as long as a sync takes."""
    until(lambda: queue.info("persistence")["aof_buffer_length"] == 0)


@pytest.mark.parametrize(
    "server", [{"durable": "everysec", "settings": {"key-load-delay": "200"}}], indirect=True, ids=["slow"]
)
def test_a_server_that_still_loads_is_waited_for(
    queue: Queue, server: Server, runs: Runs, until: Until, log: Log, pool: ThreadPoolExecutor
) -> None:
    client = queue.client(heartbeat=CALM_HEARTBEAT)
    ids = [id for _ in range(1000) for id in client.enqueue(PendingJob("later"))]
    worker = runs.of(queue.client(heartbeat=CALM_HEARTBEAT), "job")
    is_written(queue, until)
    server.kill()
    restarts = pool.submit(server.restart)
    until(lambda: "LOADING" in log.text or restarts.done())
    assert "LOADING" in log.text
    (id,) = enqueue_one(client)
    restarts.result()
    until(lambda: runs.ids == [id])
    runs.of(queue.client(workers=1), "later")
    until(lambda: len(runs.ids) == 1001)
    assert runs.ids == [id, *ids]
    assert counted(worker)["lost"] == 0


@lasting("everysec")
def test_after_an_outage_longer_than_a_lease_workers_let_each_other_beat_before_they_rescue(
    queue: Queue, server: Server, proxy: Proxy, runs: Runs, until: Until, ended: Ended
) -> None:
    runs.heeds = False
    holder = runs.of(queue.client(queue.through_proxy), "held")
    (id,) = holder.enqueue(PendingJob("held"))
    until(lambda: runs.held == [id])
    others = [runs.of(queue.client(), "held") for _ in range(4)]
    until(lambda: all(counted(other)["beats"] for other in others))
    is_written(queue, until)
    server.kill()
    until(lambda: runs.cancelled)
    server.restart()
    goes_on_beating(holder, until)
    runs.leave.set()
    assert ended(others[0], id).state == "finished"
    assert ended(others[0], id).rescues == 0
    assert runs.ids == [id]


@contextmanager
def again_and_again(action: Callable[[], object], until: Until, times: int, pause: float) -> Iterator[None]:
    """Does something so many times while the block runs; it may fail."""
    over, done = threading.Event(), itertools.count(1)
    count = 0

    def repeat() -> None:
        nonlocal count
        while not over.wait(pause):
            with suppress(redis.RedisError):
                action()
            count = next(done)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
        until(lambda: count >= times)
    finally:
        over.set()
        thread.join()


def test_connections_that_are_killed_all_the_time_cost_no_job_and_run_none_twice(
    queue: Queue, runs: Runs, until: Until
) -> None:
    workers = [runs.of(queue.client(heartbeat=CALM_HEARTBEAT), "job") for _ in range(2)]
    with ExitStack() as stack:
        enqueuers = [stack.enter_context(Enqueuer(queue.client(), *ALL_KINDS)) for _ in range(2)]
        for enqueuer in enqueuers:
            enqueuer.goes_on(until)

        def kill() -> int:
            return int(queue.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))

        with again_and_again(kill, until, times=100, pause=0.03):
            pass
        for enqueuer in enqueuers:
            enqueuer.goes_on(until, by=300)
    all_is_done(queue, runs, workers, until, *enqueuers)


def test_connections_that_break_while_chains_fail_and_retry_leave_no_count_wrong(queue: Queue, until: Until) -> None:
    attempts: Counter[str] = Counter()

    def fail_once(job: Job) -> None:
        attempts[job.id] += 1
        if job.body["fails"] >= job.attempt:
            raise ValueError("as it should")

    workers = [queue.client(heartbeat=CALM_HEARTBEAT) for _ in range(2)]
    for worker in workers:
        worker.register_handler("job", fail_once, max_attempts=2, backoff=dejq.Backoff(initial=0.01))
        worker.dequeue_loop()
    client = queue.client()
    chains = [[PendingJob("job", {"fails": number % 3}) for number in range(each, each + 3)] for each in range(60)]

    def kill() -> int:
        return int(queue.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))

    with again_and_again(kill, until, times=40, pause=0.05):
        ids = [
            client.enqueue(*chain, on_failure="cancel" if each % 2 else "continue") for each, chain in enumerate(chains)
        ]
    until(lambda: is_idle(client))
    states = queue.states()
    runs, failures, retries = 0, 0, 0
    for each, chain in enumerate(chains):
        is_over = False
        for id, job in zip(ids[each], chain, strict=True):
            fails = job.body["fails"]
            state = "cancelled" if is_over else "failed" if fails == 2 else "finished"
            assert states[id] == state
            expected = 0 if is_over else min(fails + 1, 2)
            assert attempts[id] == expected
            runs, failures, retries = runs + expected, failures + min(fails, expected), retries + (expected == 2)
            is_over |= each % 2 == 1 and state == "failed"
    stats = client.stats()
    assert stats.totals
    assert (stats.totals.attempts, stats.totals.failures, stats.totals.retries) == (runs, failures, retries)
    assert stats.totals.jobs == 180


# ---- the server is busy with something else


def test_a_server_that_sleeps_for_longer_than_a_lease_makes_nobody_rescue(
    queue: Queue, runs: Runs, until: Until, ended: Ended
) -> None:
    runs.heeds = False
    holder = runs.of(queue.client(), "held")
    (id,) = holder.enqueue(PendingJob("held"))
    until(lambda: runs.held == [id])
    others = [runs.of(queue.client(), "held", "job") for _ in range(3)]
    with Enqueuer(queue.client()) as enqueuer:
        for _ in range(2):
            until(lambda: all(counted(other)["beats"] for other in others))
            queue.ask("DEBUG", "SLEEP", 5 * HEARTBEAT)
            goes_on_beating(holder, until)
        enqueuer.goes_on(until)
    runs.leave.set()
    assert ended(holder, id).rescues == 0
    enqueuer.confirmed.append(id)
    all_is_done(queue, runs, [holder, *others], until, enqueuer)
    assert runs.held == [id]


def test_a_script_of_somebody_else_that_never_ends_is_named_and_waited_for(
    queue: Queue, runs: Runs, until: Until, ended: Ended, log: Log, pool: ThreadPoolExecutor
) -> None:
    runs.heeds = False
    queue.ask("CONFIG", "SET", "lua-time-limit", 20)
    worker = runs.of(queue.client(), "held", "job")
    thief = Runs()
    thief.of(queue.client(), "held")
    (held,) = worker.enqueue(PendingJob("held"))
    until(lambda: runs.held or thief.held)
    runs.held += thief.held
    client = queue.client()
    enqueue_one(client)
    host, port = servers.HOST, urlsplit(queue.url).port
    with socket.create_connection((host, port)) as somebody:
        somebody.sendall(b'EVAL "while true do end" 0\r\n')
        until(lambda: "BUSY" in log.text)
        with pytest.raises(BackendUnavailable, match=r"enqueueing failed: BUSY .*SCRIPT KILL"):
            enqueue_one(client)
        waits = pool.submit(enqueue_chain, client)
        queue.ask("SCRIPT", "KILL")
    ids = waits.result()
    runs.leave.set()
    thief.leave.set()
    assert [ended(client, id).state for id in ids] == ["finished"] * 3
    info = ended(client, held)
    assert (info.state, info.rescues) == ("finished", 0)
    assert runs.held == [held]


def test_scripts_that_are_forgotten_all_the_time_are_sent_again(queue: Queue, runs: Runs, until: Until) -> None:
    workers = [runs.of(queue.client(heartbeat=CALM_HEARTBEAT), "job") for _ in range(2)]
    with Enqueuer(queue.client(), *ALL_KINDS) as enqueuer:
        with again_and_again(lambda: queue.ask("SCRIPT", "FLUSH"), until, times=300, pause=0.002):
            enqueuer.goes_on(until)
        enqueuer.goes_on(until)
    assert not enqueuer.unknown
    assert not enqueuer.errors
    all_is_done(queue, runs, workers, until, enqueuer)


# ---- the server does not take writes


def refused(client: Client) -> str:
    with pytest.raises(BackendUnavailable) as caught:
        enqueue_one(client)
    return str(caught.value)


def test_a_server_whose_memory_is_full_takes_no_job_and_lets_workers_empty_the_queue(
    queue: Queue, tmp_path: Path, runs: Runs, until: Until, ended: Ended
) -> None:
    client = queue.client()
    worker = queue.client(workers=4)

    def fail_once(job: Job) -> None:
        if job.attempt == 1:
            raise ValueError("the first attempt")
        runs.note(job)

    with worker_process(queue, tmp_path, "held") as program:
        (lost,) = client.enqueue(PendingJob("held"))
        assert program.line() == f"started {lost}"
        worker.register_handler("held", runs.hold)
        chain = client.enqueue(PendingJob("held"), *jobs(2))
        # The program has one slot.
        runs.of(worker, "job")
        until(lambda: runs.held == chain[:1])
        waiting = client.enqueue_many(jobs(300, "later"))
        waiting += client.enqueue(PendingJob("fails"))
        waiting += client.enqueue(PendingJob("later", delay=0.1))
        waiting += client.enqueue(PendingJob("later", unique="later"))
        cancelled = client.enqueue(PendingJob("later"), PendingJob("job"), on_failure="cancel")

        queue.ask("CONFIG", "SET", "maxmemory", 1)
        content = {name: queue.hash(name) for name in ("job", "state", "chain", "unique", "count", "total")}
        for each in (client, queue.client()):
            for enqueue in (*ENQUEUES.values(), enqueue_mixed):
                with pytest.raises(BackendUnavailable, match=r"enqueueing failed: .*no memory left.*maxmemory"):
                    enqueue(each)
        now = {name: queue.hash(name) for name in content}
        scheduled = (b"scheduled later", b"ready later")
        for hashes in (content, now):  # its time may have come meanwhile
            hashes["state"] = {id: text for id, text in hashes["state"].items() if b" later " not in text}
            hashes["count"] = {name: number for name, number in hashes["count"].items() if name not in scheduled}
        assert now == content

        queue.ask("SCRIPT", "FLUSH")
        client.cancel_job(cancelled[0])
        program.signal(signal.SIGKILL)
        program.wait()
    goes_on_beating(worker, until)
    assert not runs.cancelled
    other = queue.client()
    other.register_handler("fails", fail_once, max_attempts=2, backoff=dejq.Backoff(initial=0.01))
    runs.of(other, "later")
    until(lambda: lost in runs.held)
    runs.leave.set()
    infos = {id: ended(client, id) for id in (lost, *chain, *waiting)}
    assert {info.state for info in infos.values()} == {"finished"}
    assert {id for id, info in infos.items() if info.rescues} == {lost}
    assert [client.get_job(id).state for id in cancelled] == ["cancelled"] * 2
    assert sorted(runs.ids) == sorted(infos)

    queue.ask("CONFIG", "SET", "maxmemory", 0)
    ids = [id for enqueue in ENQUEUES.values() for id in enqueue(client)]
    assert {ended(client, id).state for id in ids} == {"finished"}
    assert not runs.twice


def test_enqueues_at_the_edge_of_memory_are_stored_whole_or_not_at_all(queue: Queue) -> None:
    text = "x" * 1000
    kinds: list[tuple[int, Callable[[Client], list[str]]]] = [
        (300, lambda client: client.enqueue_many([PendingJob("job", text)] * 300)),
        (30, lambda client: client.enqueue_many([PendingJob("job", text)] * 30)),
        (50, lambda client: client.enqueue(*[PendingJob("job", text)] * 50)),
        (40, lambda client: client.enqueue_many([PendingJob("job", text, delay=100)] * 40)),
    ]
    clients = [queue.client() for _ in range(4)]
    for client in clients:
        enqueue_bulk(client)
    stored = set(queue.states())
    for number in range(40):
        used = int(queue.info("memory")["used_memory"])
        queue.ask("CONFIG", "SET", "maxmemory", used + 20_000 * number)
        count, enqueue = kinds[number % 4]
        for client in clients:
            try:
                ids = enqueue(client)
            except BackendUnavailable as error:
                assert "maxmemory" in str(error)
                assert set(queue.states()) == stored
            else:
                assert len(ids) == count
                stored |= set(ids)
                assert set(queue.states()) == stored
    queue.ask("CONFIG", "SET", "maxmemory", 0)


@pytest.mark.parametrize("server", [{"settings": {"save": "3600 1000000"}}], indirect=True, ids=["snapshots"])
def test_a_server_that_cannot_write_its_snapshots_is_named_and_waited_for(
    queue: Queue, server: Server, runs: Runs, until: Until, ended: Ended, log: Log, pool: ThreadPoolExecutor
) -> None:
    runs.heeds = False
    assert server.folder
    in_the_way = server.folder / "dump.rdb"

    def snapshot() -> str:
        queue.ask("BGSAVE")
        until(lambda: queue.info("persistence")["rdb_bgsave_in_progress"] == 0)
        return str(queue.info("persistence")["rdb_last_bgsave_status"])

    worker = runs.of(queue.client(), "held", "job")
    (held,) = worker.enqueue(PendingJob("held"))
    until(lambda: runs.held == [held])
    thief = Runs()
    thief.of(queue.client(), "held")
    in_the_way.mkdir()
    assert snapshot() == "err"
    until(lambda: "MISCONF" in log.text and runs.cancelled)
    text = refused(queue.client())
    assert "MISCONF" in text
    assert "snapshot" in text or "RDB" in text
    waits = pool.submit(enqueue_chain, queue.client())
    in_the_way.rmdir()
    assert snapshot() == "ok"
    ids = waits.result()
    goes_on_beating(worker, until)
    runs.leave.set()
    infos = [ended(worker, id) for id in (held, *ids)]
    assert {(info.state, info.rescues) for info in infos} == {("finished", 0)}
    assert runs.held == [held]
    assert not thief.held


def test_a_primary_that_becomes_a_replica_is_named_and_waited_for(
    queue: Queue, runs: Runs, until: Until, ended: Ended, log: Log, pool: ThreadPoolExecutor
) -> None:
    runs.heeds = False
    worker = runs.of(queue.client(), "held", "job")
    (held,) = worker.enqueue(PendingJob("held"))
    until(lambda: runs.held == [held])
    thief = Runs()
    thief.of(queue.client(), "held")
    client = queue.client()
    enqueue_one(client)
    # It keeps what it has, for nobody is there.
    queue.ask("REPLICAOF", servers.HOST, 1)
    until(lambda: "is a replica and only reads" in log.text and runs.cancelled)
    text = refused(client)
    assert "is a replica and only reads" in text
    assert "name the primary in the URL" in text
    waits = pool.submit(enqueue_chain, client)
    queue.ask("REPLICAOF", "NO", "ONE")
    ids = waits.result()
    goes_on_beating(worker, until)
    runs.leave.set()
    infos = [ended(worker, id) for id in (held, *ids)]
    assert {(info.state, info.rescues) for info in infos} == {("finished", 0)}
    assert runs.held == [held]
    assert not thief.held


# ---- keys go away, or are somebody else's


def stays_calm(queue: Queue, bystander: Client, until: Until) -> None:
    """Whatever is wrong with the queue, in two seconds the server is asked little."""
    queue.ask("CONFIG", "RESETSTAT")
    beats = counted(bystander)["beats"]
    until(lambda: counted(bystander)["beats"] > beats + 4)
    stats = queue.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}
    assert sum(calls[name] for name in calls.keys() & {"evalsha", "blpop", "info", "hello"}) < 150, calls


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB"])
def test_a_queue_that_is_emptied_under_its_workers_is_told_of_and_goes_on(
    queue: Queue, bystander: Client, runs: Runs, until: Until, ended: Ended, log: Log, command: str
) -> None:
    worker = runs.of(queue.client(), "held", "job")
    client = queue.client()
    held = client.enqueue(PendingJob("held"), PendingJob("job"))
    until(lambda: runs.held == held[:1])
    client.enqueue_many(jobs(300, "later"))
    queue.ask(command)
    until(lambda: runs.cancelled == held[:1])
    until(lambda: counted(worker)["lost"] == 1)
    assert f'"{queue.name}" in Redis was emptied by somebody else' in log.text
    stays_calm(queue, bystander, until)
    stats = client.stats()
    assert (stats.enqueued_jobs, stats.running, stats.finished) == (0, 0, 0)
    runs.leave.set()
    ids = [id for enqueue in ENQUEUES.values() for id in enqueue(client)]
    ids += client.enqueue(PendingJob("held"), PendingJob("job"))
    assert {ended(client, id).state for id in ids} == {"finished"}
    assert sorted(runs.ids) == sorted([held[0], *ids])
    until(lambda: counted(worker)["finished"] == len(ids))
    totals = client.stats().totals
    assert totals
    assert totals.jobs == totals.attempts == len(ids)


def test_a_queue_that_is_emptied_all_the_time_never_counts_below_nothing(
    queue: Queue, runs: Runs, until: Until
) -> None:
    workers = [runs.of(queue.client(), "job") for _ in range(2)]
    with Enqueuer(queue.client(), *ALL_KINDS) as enqueuer:
        with again_and_again(lambda: queue.ask("FLUSHALL"), until, times=40, pause=0.05):
            enqueuer.goes_on(until)
        enqueuer.goes_on(until)
    client = queue.client()
    until(lambda: is_idle(client))
    assert not enqueuer.errors
    assert not runs.twice
    for worker in workers:
        worker.stop()


# Each key of a queue, and whether an enqueue of any kind, or a worker, must stumble over what is not of its type.
ALL_KEYS = {
    "job": "enqueue",
    "state": "enqueue",
    "fresh:job": "enqueue",
    "back:job": "worker",
    "due": "enqueue",
    "workers": "worker",
    "worker": "worker",
    "run": "worker",
    "chain": "enqueue",
    "unique": "enqueue",
    "failure": "worker",
    "finished": "worker",
    "failed": "worker",
    "count": "enqueue",
    "total": "enqueue",
    "wake:job": "enqueue",
    "place": "enqueue",
    "void": "worker",
    "awake": "worker",
    "meta": "worker",
}


def real_key(queue: Queue, name: str) -> str:
    """That of the worker which has jobs, when it is about those."""
    if name == "run":
        (worker,) = workers_of(queue)
        return queue.key(f"run:{worker}")
    return queue.key(name)


def workers_of(queue: Queue) -> list[str]:
    return [worker.decode() for worker in queue.ask("ZRANGE", queue.key("workers"), 0, -1)]


@pytest.mark.parametrize("name", ALL_KEYS)
def test_a_key_of_another_type_is_told_of_and_harms_no_other_queue(
    queue: Queue, bystander: Client, runs: Runs, until: Until, ended: Ended, log: Log, name: str
) -> None:
    queue.is_whole = False
    runs.leave.set()
    worker = queue.client(heartbeat=0.2)

    def end(job: Job) -> None:
        runs.note(job)
        if job.body == "fails":
            raise ValueError("as it should")

    worker.register_handler("job", end)
    worker.dequeue_loop()
    client = queue.client()
    (first,) = enqueue_one(client)
    assert ended(client, first).state == "finished"
    until(lambda: workers_of(queue))
    key = real_key(queue, name)
    is_text = name in ("place", "void", "awake")
    queue.ask("DEL", key)
    queue.ask("RPUSH" if is_text else "SET", key, "somebody else's")

    # Whoever meets it says what to do.
    told = "a key of this queue holds something else than dejq put there"
    errors: list[DejqError] = []
    for enqueue in (*ENQUEUES.values(), enqueue_failing):
        try:
            enqueue(client)
        except ConfigError as error:
            errors.append(error)
    assert not [error for error in errors if told not in str(error) or "docs/redis.md lists the keys" not in str(error)]
    if ALL_KEYS[name] == "enqueue":
        assert errors
    else:
        # A worker that begins meets more than one that is there.
        runs.of(queue.client(), "job")
        until(lambda: told in log.text)
        assert "docs/redis.md lists the keys" in log.text

    stays_calm(queue, bystander, until)
    (id,) = enqueue_one(bystander)
    assert ended(bystander, id).state == "finished"

    # What it broke is lost, and what comes after it is not.
    queue.ask("DEL", key)
    others = [each for kind, each in ENQUEUES.items() if kind != "unique"]
    last = [id for enqueue in others for id in enqueue(client)]
    until(lambda: set(last) <= set(runs.ids))
    assert not set(last) & set(runs.twice)


REMOVED = [*ALL_KEYS, "job of one that runs", "job of one that waits", "job of one in a chain"]


@pytest.mark.parametrize("name", REMOVED)
def test_a_key_that_is_removed_by_hand_costs_what_it_held_and_nothing_else(
    queue: Queue, bystander: Client, until: Until, log: Log, name: str
) -> None:
    queue.is_whole = False
    client = queue.client()
    worker = queue.client(workers=3)
    leave = threading.Event()
    ran: list[tuple[str, Any]] = []
    cancelled = client.enqueue(PendingJob("job", "cancelled"))[0]
    client.cancel_job(cancelled)  # its ticket is void

    def run(job: Job) -> None:
        ran.append((job.id, job.body))
        if job.type == "held":
            leave.wait(SECONDS)
        if job.type == "fails":
            raise ValueError("as it should")

    bodies: dict[str, Any] = {}

    def enqueue(*pending: PendingJob[Any], **options: Any) -> list[str]:
        ids = client.enqueue(*pending, **options)
        bodies.update(zip(ids, (job.body for job in pending), strict=True))
        return ids

    for type in ("held", "fails"):
        worker.register_handler(type, run, max_attempts=2, backoff=dejq.Backoff(initial=0.2))
    worker.dequeue_loop()
    failed = enqueue(PendingJob("fails", "failed"))[0]
    until(lambda: client.get_job(failed).state == "failed")
    for cancels in ("cancel", "continue"):
        enqueue(PendingJob("held", "h"), PendingJob("job", "h2"), PendingJob("fails", "h3"), on_failure=cancels)
    running = enqueue(PendingJob("held", "h4", unique="h"))[0]
    until(lambda: client.stats().running == 3)
    waiting = enqueue(PendingJob("job", "w1"), PendingJob("job", "w2"))[0]
    enqueue(PendingJob("fails", "f1"), PendingJob("job", "f2"), on_failure="cancel")
    enqueue(PendingJob("job", "d", delay=0.3, unique="d"))
    operated = enqueue(PendingJob("job", "o"), PendingJob("job", "o2"))
    client.cancel_job(operated[0])
    client.requeue_job(operated[0])
    known = {cancelled, *bodies}

    if name.startswith("job of"):
        id = {"job of one that runs": running, "job of one that waits": waiting}.get(name, operated[1])
        queue.ask("HDEL", queue.key("job"), bytes.fromhex(id.replace("-", "")))
    else:
        queue.ask("DEL", real_key(queue, name))
    leave.set()
    others = [queue.client() for _ in range(2)]
    for other in others:
        for type in ("job", "held", "fails"):
            other.register_handler(type, run, max_attempts=2, backoff=dejq.Backoff(initial=0.05))
        other.dequeue_loop()
    types = ("job", "held", "job")
    new = [id for number in range(5) for id in enqueue(*(PendingJob(type, number) for type in types))]
    new += enqueue(PendingJob("fails", "new"), PendingJob("job", "after it"))
    until(lambda: set(new) <= {id for id, _ in ran})
    stays_calm(queue, bystander, until)
    # Nothing else ran than what was enqueued, nor more often than it may.
    assert cancelled not in {id for id, _ in ran}
    assert not [id for id, body in ran if bodies[id] != body]
    times = Counter(id for id, _ in ran)
    assert not [id for id in known if times[id] > 4]
    assert not [id for id in new if times[id] > 2]
    assert "attempt to" not in log.text
    assert "bad argument" not in log.text
    assert "user_script" not in log.text
    client.stats()
    for info in client.list_jobs(limit=1000):
        for operate in (client.finish_job, client.requeue_job, client.cancel_job):
            with suppress(dejq.UnknownJob, dejq.WrongState):
                operate(info.id)
    while client.delete_finished(0):
        pass


# ---- workers die


@contextmanager
def worker_process(queue: Queue, folder: Path, *types: str, **options: Any) -> Iterator[Program]:
    with Program("pg_worker", "work", queue.address(**options), str(folder), *types) as program:
        assert program.line().startswith("clock ")
        yield program


def is_beyond_its_lease(info: JobInfo) -> bool:
    """Has the job run for longer than it could without a beat?"""
    assert info.started_at
    assert info.last_beat_at
    return info.last_beat_at - info.started_at > timedelta(seconds=4 * HEARTBEAT)


def test_jobs_of_killed_workers_run_elsewhere_and_their_chains_go_on_where_they_were(
    queue: Queue, tmp_path: Path, runs: Runs, ended: Ended
) -> None:
    client = queue.client()
    with ExitStack() as stack:
        programs = [stack.enter_context(worker_process(queue, tmp_path, "held")) for _ in range(2)]
        chains = [client.enqueue(*(PendingJob(type) for type in ("held", "held", "job", "held"))) for _ in programs]
        waiting = client.enqueue_many(jobs(20))
        started = {program.line().removeprefix("started ") for program in programs}
        assert started == {chain[0] for chain in chains}
        # The first job of each has ended before the second one is cut short.
        for program in programs:
            for chain in chains:
                (tmp_path / chain[0]).touch()
            assert program.line().startswith("returned ")
        second = {program.line().removeprefix("started ") for program in programs}
        assert second == {chain[1] for chain in chains}
        for program in programs:
            program.signal(signal.SIGKILL)
            assert program.wait().code == -signal.SIGKILL
    runs.leave.set()
    worker = runs.of(queue.client(), "held", "job")
    for chain in chains:
        infos = [ended(client, id) for id in chain]
        assert [(info.state, info.attempt, info.rescues) for info in infos] == [
            ("finished", 1, 0),
            ("finished", 1, 1),
            ("finished", 1, 0),
            ("finished", 1, 0),
        ]
        assert [id for id in runs.ids if id in chain] == chain[1:]
    assert {ended(client, id).rescues for id in waiting} == {0}
    assert not runs.twice
    assert counted(worker)["rescued"] == 2
    stats = client.stats()
    assert stats.totals
    assert (stats.finished, stats.totals.jobs, stats.totals.rescues) == (28, 28, 2)


def test_a_worker_that_was_stopped_for_longer_than_a_lease_is_refused_when_it_goes_on(
    queue: Queue, tmp_path: Path, runs: Runs, ended: Ended
) -> None:
    client = queue.client()
    with worker_process(queue, tmp_path, "held") as program:
        ids = client.enqueue(PendingJob("held"), PendingJob("job"))
        assert program.line() == f"started {ids[0]}"
        program.signal(signal.SIGSTOP)
        runs.leave.set()
        other = runs.of(queue.client(), "held", "job")
        assert [ended(client, id).state for id in ids] == ["finished", "finished"]
        before = client.get_job(ids[0])
        other.stop()
        (tmp_path / ids[0]).touch()
        program.signal(signal.SIGCONT)
        assert program.line().endswith(ids[0])
        # It is a worker again like any other.
        (last,) = client.enqueue(PendingJob("held"))
        assert program.line() == f"started {last}"
        (tmp_path / last).touch()
        assert program.line() == f"returned {last}"
        ended(client, last)
        program.signal(signal.SIGTERM)
        counts = json.loads(program.line())
        assert program.line() == "passed"
        program.wait().passed()
    assert (counts["finished"], counts["lost"]) == (1, 1)
    assert client.get_job(ids[0]) == before
    assert runs.ids == ids
    assert client.stats().finished == 3


def test_sigterm_lets_the_running_job_finish_and_gives_the_rest_back(
    queue: Queue, tmp_path: Path, runs: Runs, until: Until, ended: Ended
) -> None:
    client = queue.client()
    with worker_process(queue, tmp_path, "held") as program:
        first, second = (client.enqueue(PendingJob("held"))[0] for _ in range(2))
        assert program.line() == f"started {first}"
        program.signal(signal.SIGTERM)
        runs.leave.set()
        runs.of(queue.client(), "held")
        assert ended(client, second).rescues == 0
        # Far beyond its lease: a worker that stops still beats.
        until(lambda: is_beyond_its_lease(client.get_job(first)))
        (tmp_path / first).touch()
        assert program.line() == f"returned {first}"
        counts = json.loads(program.line())
        program.wait().passed()
    info = client.get_job(first)
    assert (info.state, info.attempt, info.rescues) == ("finished", 1, 0)
    assert (counts["finished"], counts["lost"]) == (1, 0)
    assert runs.ids == [second]
    # Nothing of it is left.
    assert len(workers_of(queue)) == 1


def test_a_job_that_kills_its_worker_four_times_fails_as_worker_lost_and_its_chain_goes_on(
    queue: Queue, tmp_path: Path, runs: Runs, ended: Ended
) -> None:
    with ExitStack() as stack:
        programs = [stack.enter_context(worker_process(queue, tmp_path, "deadly", heartbeat=0.2)) for _ in range(5)]
        rescuer = runs.of(queue.client(heartbeat=0.2), "job")
        ids = rescuer.enqueue(PendingJob("deadly"), PendingJob("job"))
        assert ended(rescuer, ids[1]).state == "finished"
        info = rescuer.get_job(ids[0])
        assert (info.state, info.rescues) == ("failed", 3)
        assert info.error
        assert "worker lost" in info.error
        assert sum(program.process.poll() == -signal.SIGKILL for program in programs) == 4
        stats = rescuer.stats()
        assert stats.totals
        assert (stats.failed, stats.finished, stats.totals.rescues, stats.totals.failures) == (1, 1, 3, 1)


# ---- nothing comes through, and nobody says so


def test_a_worker_in_a_black_hole_loses_its_job_to_another_and_is_told(
    queue: Queue, proxy: Proxy, until: Until, ended: Ended
) -> None:
    client = queue.client()
    first, second = Runs(), Runs()
    worker = first.of(queue.client(queue.through_proxy), "held", "job")
    (id,) = client.enqueue(PendingJob("held"))
    until(lambda: first.held == [id])
    proxy.black_hole(True)
    second.leave.set()
    other = second.of(queue.client(), "held")
    info = ended(client, id)
    assert (info.state, info.attempt, info.rescues) == ("finished", 1, 1)
    assert second.ids == [id]
    until(lambda: first.cancelled == [id])
    other.stop()
    proxy.black_hole(False)
    until(lambda: counted(worker)["lost"] == 1)
    assert client.get_job(id) == info
    # It goes on as if nothing had been.
    first.leave.set()
    ids = client.enqueue(PendingJob("held"), PendingJob("job"))
    assert [ended(client, id).rescues for id in ids] == [0, 0]
    assert first.ids == [id, *ids]


def test_a_beat_whose_connection_is_dead_without_a_word_does_not_cost_the_lease(
    queue: Queue, proxy: Proxy, runs: Runs, until: Until, ended: Ended
) -> None:
    runs.heeds = False
    worker = runs.of(queue.client(queue.through_proxy, heartbeat=CALM_HEARTBEAT), "held")
    (id,) = queue.client().enqueue(PendingJob("held"))
    until(lambda: runs.held == [id])
    until(lambda: counted(worker)["beats"])
    thief = Runs()
    thief.of(queue.client(heartbeat=CALM_HEARTBEAT), "held")
    # Only this connection: no answer comes on it any more.
    beats = counted(worker)["beats"]
    calls = Calls("extend", queue)
    seen = threading.Event()

    def is_beat(sent: bytes) -> bool:
        if calls(sent):
            seen.set()
        return seen.is_set()

    proxy.drop_replies_of(is_beat, b"never")
    until(seen.is_set)
    until(lambda: counted(worker)["beats"] > beats + 1)
    runs.leave.set()
    thief.leave.set()
    info = ended(queue.client(), id)
    assert (info.state, info.rescues) == ("finished", 0)
    assert not runs.cancelled
    assert not thief.held


@contextmanager
def writes_held_up(queue: Queue) -> Iterator[Callable[[], int]]:
    """Scripts wait while the block runs; it is told how many do."""

    def waiting() -> int:
        clients: Any = queue.redis.client_list()
        return sum(each["cmd"] == "evalsha" and "b" in each["flags"] for each in clients)

    queue.ask("CLIENT", "PAUSE", 100_000, "WRITE")
    yield waiting
    queue.ask("CLIENT", "UNPAUSE")


def test_a_claim_whose_answer_comes_after_its_lease_starts_nothing(
    queue: Queue, proxy: Proxy, until: Until, ended: Ended, pool: ThreadPoolExecutor
) -> None:
    client = queue.client()
    first, second = Runs(), Runs()
    worker = first.of(queue.client(queue.through_proxy), "job", "held")
    ended(client, enqueue_one(client)[0])
    claimed: list[str] = []

    def is_claimed() -> bool:
        claim = noticed(queue, proxy, "claim")
        with writes_held_up(queue) as waiting:
            before = waiting()
            enqueued = pool.submit(enqueue_one, client)
            until(lambda: waiting() > before)
            # One that was on its way before is held up itself, and then there is no other.
            claim.wait(3)
            proxy.black_hole(True)
        claimed[:] = enqueued.result()
        until(lambda: not waiting())
        if client.get_job(claimed[0]).state == "running":
            return True
        # It was a claim from before.
        proxy.black_hole(False)
        ended(client, claimed[0])
        return False

    until(is_claimed)
    started = list(first.ids)
    second.of(queue.client(), "job")
    assert ended(client, claimed[0]).rescues == 1
    proxy.black_hole(False)
    first.leave.set()
    (last,) = client.enqueue(PendingJob("held"))
    assert ended(client, last).state == "finished"
    assert second.ids == claimed
    assert first.ids == [*started, last]
    assert counted(worker)["started"] == len(first.ids)


def test_a_job_of_a_chain_that_is_handed_on_after_its_lease_is_not_started(
    queue: Queue, proxy: Proxy, until: Until, ended: Ended
) -> None:
    client = queue.client()
    first, second = Runs(), Runs()
    worker = first.of(queue.client(queue.through_proxy, workers=1), "held", "job", "last")
    started = enqueue_one(client)
    ended(client, started[0])
    ids = client.enqueue(PendingJob("held"), PendingJob("job"))
    until(lambda: first.held == [ids[0]])
    with writes_held_up(queue):
        settle = noticed(queue, proxy, "settle")
        first.leave.set()
        until(settle.is_set)
        proxy.black_hole(True)
    until(lambda: client.get_job(ids[1]).state == "running")
    second.of(queue.client(), "job")
    assert ended(client, ids[1]).rescues == 1
    proxy.black_hole(False)
    (last,) = client.enqueue(PendingJob("last"))
    assert ended(client, last).state == "finished"
    assert second.ids == [ids[1]]
    assert first.ids == [*started, ids[0], last]
    assert counted(worker)["started"] == 3


# ---- very many at once


def test_twenty_thousand_plain_jobs_of_one_call_run_in_their_order(queue: Queue, runs: Runs, until: Until) -> None:
    client = queue.client(workers=1)
    ids = client.enqueue_many(jobs(20_000))
    assert len(set(ids)) == 20_000
    runs.of(client, "job")
    until(lambda: counted(client)["finished"] == 20_000)
    assert runs.ids == ids
    deleted = 0
    while some := client.delete_finished(0, batch=20_000):
        deleted += some
    assert deleted == 20_000
    assert not queue.hash("job")


def test_a_chain_of_thousands_runs_in_its_order(queue: Queue, runs: Runs, until: Until) -> None:
    client = queue.client()
    ids = client.enqueue(*jobs(MANY))
    runs.of(client, "job")
    for part in range(1000, MANY + 1, 1000):
        until(partial(has_finished, client, part))
    until(lambda: client.stats().finished == MANY)
    assert runs.ids == ids
    totals = client.stats().totals
    assert totals
    assert (totals.jobs, totals.chains) == (MANY, 1)
    while client.delete_finished(0):
        pass
    assert not queue.hash("job")
    assert not queue.hash("chain")


def test_thousands_of_unique_jobs_of_one_call_are_stored_once(queue: Queue, runs: Runs, until: Until) -> None:
    client = queue.client(workers=1)
    wanted = [PendingJob("job", number, unique=f"u{number}") for number in range(MANY)]
    ids = client.enqueue_many(wanted)
    assert client.enqueue_many(wanted) == ids
    again = [PendingJob("job", number, unique=f"u{number}") for number in range(MANY)]
    assert client.enqueue_many(again) == ids
    assert len(queue.hash("unique")) == MANY
    runs.of(client, "job")
    until(lambda: counted(client)["finished"] == MANY)
    assert runs.ids == ids
    assert not queue.hash("unique")


def test_thousands_of_jobs_that_are_due_at_once_run_in_their_order(queue: Queue, runs: Runs, until: Until) -> None:
    client = queue.client(workers=1)
    ids = client.enqueue_many([PendingJob("job", number, delay=0.5) for number in range(MANY)])
    runs.of(client, "job")
    until(lambda: counted(client)["finished"] == MANY)
    assert sorted(runs.ids) == sorted(ids)
    assert runs.ids == ids


def test_thousands_of_jobs_in_one_hand_are_kept_by_beats_and_rescued_when_these_end(
    queue: Queue, proxy: Proxy, runs: Runs, until: Until
) -> None:
    client = queue.client()
    holder = queue.client(queue.through_proxy, async_workers=MANY, heartbeat=CALM_HEARTBEAT)
    held: list[str] = []

    async def hold(job: Job) -> None:
        held.append(job.id)
        await asyncio.Event().wait()  # until it is cancelled

    holder.register_handler("job", hold)
    holder.dequeue_loop()
    ids = client.enqueue_many(jobs(MANY))
    until(lambda: len(held) == MANY)
    extended = counted(holder)["extended"]
    until(lambda: counted(holder)["extended"] >= extended + 2 * MANY)
    assert client.stats().running == MANY
    proxy.refuse(True)
    proxy.cut()
    worker = runs.of(queue.client(workers=1), "job")
    until(lambda: counted(worker)["finished"] == MANY)
    proxy.refuse(False)
    # Those whose end was sent when the connection broke may have been given back, as far as it knows.
    until(lambda: counted(holder)["lost"] + counted(holder)["given_back"] == MANY)
    assert held == ids
    assert runs.ids == ids
    stats = client.stats()
    assert stats.totals
    assert (stats.finished, stats.totals.rescues) == (MANY, MANY)


def test_a_failed_job_of_a_chain_of_thousands_is_requeued_with_all_that_it_cancelled(
    queue: Queue, until: Until, ended: Ended
) -> None:
    client = queue.client(keep_failed=KEEP_ALL)
    fails = threading.Event()
    fails.set()
    seen: list[int] = []

    @client.handler("job")
    def run(job: Job) -> None:
        seen.append(job.position)
        if fails.is_set() and job.position == 3:
            raise ValueError("as it should")

    ids = client.enqueue(*jobs(MANY), on_failure="cancel")
    client.dequeue_loop()
    assert ended(client, ids[-1]).state == "cancelled"
    stats = client.stats()
    assert (stats.finished, stats.failed, stats.cancelled) == (2, 1, MANY - 3)
    fails.clear()
    client.requeue_job(ids[2])
    until(lambda: len(seen) > 100)
    client.stop(timeout=SECONDS)
    assert seen == [1, 2, 3, *range(3, len(seen))]
    other = queue.client(keep_failed=KEEP_ALL)
    stats = other.stats()
    assert (stats.failed, stats.cancelled, stats.running) == (0, 0, 0)
    assert stats.finished == len(seen) - 1
    assert stats.enqueued_jobs == MANY - len(seen) + 1
    # An operator's end cancels thousands as well.
    other.cancel_job(ids[len(seen) - 1])
    assert other.stats().enqueued_jobs == 0


# ---- clocks


@pytest.mark.parametrize("day", ["+1d", "-1d"], ids=["ahead", "behind"])
def test_a_clock_that_is_a_day_off_changes_neither_order_nor_delays_nor_leases(
    queue: Queue,
    tmp_path: Path,
    runs: Runs,
    until: Until,
    ended: Ended,
    monkeypatch: pytest.MonkeyPatch,
    day: str,
) -> None:
    library = f"usr/lib/{sysconfig.get_config_var('MULTIARCH')}/faketime/libfaketime.so.1"
    faketime = debian.unpacked("faketime", packages=["libfaketime"], needs=[library]) / library
    client = queue.client(workers=1)
    skewed = {"LD_PRELOAD": str(faketime), "FAKETIME": day, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with monkeypatch.context() as patch:
        for name, value in skewed.items():
            patch.setenv(name, value)
        program = Program("pg_worker", "work", queue.address(), str(tmp_path), "relay", "held")
    with program:
        clock = float(program.line().removeprefix("clock "))
        assert abs(clock - time.time()) > 80_000
        # Jobs of one type, from here and from there by turns.
        for number in range(0, 6, 2):
            client.enqueue(PendingJob("job", number))
            there = PendingJob("relay", {"type": "job", "body": number + 1, "delay": None})
            ended(client, client.enqueue(there)[0])
        late = PendingJob("relay", {"type": "late", "body": None, "delay": 0.4})
        ended(client, client.enqueue(late)[0])
        bodies: list[int] = []
        client.register_handler("job", lambda job: bodies.append(job.body))
        client.register_handler("held", runs.note)
        client.register_handler("late", runs.note)
        client.dequeue_loop()
        infos = [ended(client, info.id) for info in client.list_jobs(type="job")]
        assert len(infos) == 6
        assert bodies == [0, 1, 2, 3, 4, 5]
        (info,) = client.list_jobs(type="late")
        info = ended(client, info.id)
        assert info.started_at
        assert timedelta(seconds=0.4) <= info.started_at - info.enqueued_at < timedelta(seconds=SECONDS)
        # Its lease is renewed, and not taken for one of yesterday or tomorrow.
        client.stop()
        watcher = queue.client()
        (id,) = watcher.enqueue(PendingJob("held"))
        assert program.line() == f"started {id}"
        runs.of(watcher, "held")
        until(lambda: is_beyond_its_lease(watcher.get_job(id)))
        (tmp_path / id).touch()
        assert program.line() == f"returned {id}"
        assert ended(watcher, id).rescues == 0
        assert id not in runs.ids
