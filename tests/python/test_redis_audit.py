"""The audit of a queue in Redis: it finds where keys contradict each other, sets that right, and finds nothing else.
And what doctor says of the server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import redis

import dejq
import servers
from dejq import Finding, Job, PendingJob, testing
from dejq.cli import main
from python.conftest import SECONDS

if TYPE_CHECKING:
    from python.conftest import NewClient, Until
    from python.redis_store import RedisClient

pytest_plugins = ["python.redis_store"]

HOUR = 3600.0
# More than one call of an audit looks at.
MANY = 1_300


class Queue:
    """A queue with a job in every state, and a way to its keys. A worker holds the job "running" until `leave` is set;
    jobs of the type "job" wait for `run_the_rest`."""

    def __init__(self, make: RedisClient, server: Any, name: str) -> None:
        self.client, self.rest, self.server, self.prefix = make(workers=2), make(workers=1), server, f"dejq:{{{name}}}:"
        self.ids: dict[str, str] = {}
        self.ran: list[str] = []
        self.started, self.leave = threading.Event(), threading.Event()
        self.rest.register_handler("job", lambda job: self.ran.append(job.body))

    def fill(self, until: Until) -> None:
        def hold(job: Job) -> None:
            self.started.set()
            assert self.leave.wait(SECONDS)

        def fail(job: Job) -> None:
            raise ValueError("each time")

        self.client.register_handler("held", hold)
        self.client.register_handler("fails", fail, max_attempts=1)
        self.client.register_handler("works", lambda job: None)
        self.client.dequeue_loop()
        for name, type in (("finished", "works"), ("failed", "fails")):
            self.put(name, type)
            until(partial(self.is_in, name, name))
        self.put("running", "held")
        assert self.started.wait(SECONDS)
        self.put("fresh")
        self.put("second")
        self.put("scheduled", delay=HOUR)
        self.put("unique", unique="key")
        self.put("cancelled")
        self.client.cancel_job(self.ids["cancelled"])
        # Ready, and not for the first time.
        self.put("back", delay=HOUR)
        self.client.cancel_job(self.ids["back"])
        self.client.requeue_job(self.ids["back"])
        chain = ("first", "blocked", "last")
        self.ids |= zip(chain, self.client.enqueue(*(PendingJob("job", name) for name in chain)), strict=True)

    def put(self, name: str, type: str = "job", **options: Any) -> None:
        [self.ids[name]] = self.client.enqueue(PendingJob(type, name, **options))

    def state(self, name: str) -> str:
        return self.client.get_job(self.ids[name]).state

    def is_in(self, name: str, state: str) -> bool:
        return self.state(name) == state

    def run_the_rest(self) -> list[str]:
        """The bodies of what ran, delayed or not."""
        testing.drain(self.rest, scheduled=True)
        return sorted(self.ran)

    def id(self, name: str) -> bytes:
        return UUID(self.ids[name]).bytes

    def key(self, name: str) -> str:
        return self.prefix + name

    @property
    def run(self) -> str:
        """The key with what the worker has."""
        [worker] = self.server.hkeys(self.key("worker"))
        return self.key(f"run:{worker.decode()}")

    def frame(self, name: str) -> bytes:
        return self.server.hget(self.key("job"), self.id(name)) or b""

    def ticket(self, name: str) -> bytes:
        return int(self.frame(name).lstrip(b"!").split(b" ")[0]).to_bytes(7, "big") + self.id(name)

    def drop(self, key: str, name: str) -> None:
        assert self.server.hdel(self.key(key), self.id(name)) == 1

    def drop_key(self, key: str) -> None:
        assert self.server.delete(self.key(key)) == 1

    def dump(self) -> dict[bytes, Any]:
        """All there is, but for what a beat changes."""
        changing = (b":awake", b":workers")
        keys = [key for key in self.server.scan_iter(match=f"{self.prefix}*") if not key.endswith(changing)]
        return {key: self.server.dump(key) for key in keys}


@pytest.fixture
def queue(redis_client: RedisClient, redis_server: redis.Redis, redis_queue: str, until: Until) -> Iterator[Queue]:
    queue = Queue(redis_client, redis_server, redis_queue)
    queue.fill(until)
    yield queue
    queue.leave.set()


WAITING = ["back", "blocked", "first", "fresh", "last", "scheduled", "second", "unique"]


def texts(findings: list[Finding]) -> list[str]:
    return [f"{finding.level}: {finding.text}" for finding in findings]


def test_a_queue_with_a_job_in_every_state_has_no_contradiction(queue: Queue) -> None:
    before = queue.dump()
    for findings in (queue.client.audit(), queue.client.audit(repair=True)):
        assert texts(findings) == ["ok: 12 jobs, each of them counted, and in one place only"]
        assert [(finding.name, finding.fix) for finding in findings] == [("books", None)]
    assert queue.dump() == before
    assert queue.run_the_rest() == WAITING
    queue.client.delete_finished(0)
    assert {finding.level for finding in queue.client.audit()} == {"ok"}


# ---- what is found, and set right ----------------------------------------------------------------------------


def lose_the_line(queue: Queue) -> None:
    queue.drop_key("fresh:job")


def lose_a_ticket(queue: Queue) -> None:
    assert queue.server.lrem(queue.key("fresh:job"), 1, queue.ticket("second")) == 1


def lose_who_came_back(queue: Queue) -> None:
    queue.drop_key("back:job")


def lose_what_is_due(queue: Queue) -> None:
    queue.drop_key("due")


def lose_the_state_of_one_that_is_due(queue: Queue) -> None:
    queue.drop("state", "scheduled")


def lose_the_state_of_one_that_came_back(queue: Queue) -> None:
    queue.drop("state", "back")


def lose_the_state_of_a_blocked_job(queue: Queue) -> None:
    queue.drop("state", "blocked")


def lose_all_states(queue: Queue) -> None:
    queue.drop_key("state")


def put_a_finished_job_in_line(queue: Queue) -> None:
    queue.server.rpush(queue.key("fresh:works"), queue.ticket("finished"))


def put_a_running_job_in_line(queue: Queue) -> None:
    queue.server.rpush(queue.key("fresh:held"), queue.ticket("running"))


def give_a_running_job_a_state(queue: Queue) -> None:
    state = b"ready 0 - held 0 0 0 " + queue.frame("running").split(b" ")[0]
    queue.server.hset(queue.key("state"), queue.id("running"), state)
    queue.server.zadd(queue.key("back:held"), {queue.id("running"): 1})


def give_a_finished_job_a_worker(queue: Queue) -> None:
    record = queue.server.hget(queue.run, queue.id("running"))
    queue.server.hset(queue.run, queue.id("finished"), record)


def give_a_job_two_workers(queue: Queue) -> None:
    record = queue.server.hget(queue.run, queue.id("running")) or b""
    token, flags, type, _, *rest = record.split(b" ")
    queue.server.hset(queue.key("worker"), "another", "15000000 host:1")
    queue.server.zadd(queue.key("workers"), {"another": 9e15})
    queue.server.hset(queue.key("run:another"), queue.id("running"), b" ".join([token, flags, type, b"1", *rest]))


def leave_the_chain_blocked(queue: Queue) -> None:
    """As if the script that ended the first job had stopped half-way."""
    place = queue.frame("first").split(b" ")[0]
    queue.server.hset(queue.key("state"), queue.id("first"), b"finished 1 -c job 1 1 0 " + place)
    queue.server.rpush(queue.key("finished"), queue.id("first") + b"c")
    queue.server.hset(queue.key("job"), queue.id("first"), b"!" + queue.frame("first"))
    queue.server.incr(queue.key("void"))


def delete_the_first_of_a_chain(queue: Queue) -> None:
    queue.drop("job", "first")


def delete_a_scheduled_job(queue: Queue) -> None:
    queue.drop("job", "scheduled")


def delete_a_failed_job(queue: Queue) -> None:
    queue.drop("job", "failed")


def delete_a_unique_job(queue: Queue) -> None:
    queue.drop("job", "unique")


def delete_a_finished_job(queue: Queue) -> None:
    queue.drop("job", "finished")


def lose_the_unique_keys(queue: Queue) -> None:
    queue.drop_key("unique")


def count_void_tickets_wrong(queue: Queue) -> None:
    queue.server.incr(queue.key("void"))


def lose_who_finished(queue: Queue) -> None:
    queue.drop_key("finished")


def lose_who_failed(queue: Queue) -> None:
    queue.drop_key("failed")


def keep_a_waiting_job_among_the_finished(queue: Queue) -> None:
    queue.server.rpush(queue.key("finished"), queue.id("blocked"), b"short")


def keep_a_running_job_among_the_failed_and_the_due(queue: Queue) -> None:
    queue.server.zadd(queue.key("failed"), {queue.id("running"): 1})
    queue.server.zadd(queue.key("due"), {queue.id("running"): 9e15})
    queue.server.zadd(queue.key("back:job"), {queue.id("blocked"): 1})


def count_a_chain_wrong(queue: Queue) -> None:
    [(chain, text)] = queue.server.hgetall(queue.key("chain")).items()
    queue.server.hset(queue.key("chain"), chain, b"7" + text[1:])


def put_a_short_ticket_in_line(queue: Queue) -> None:
    queue.server.lpush(queue.key("fresh:job"), b"short")


def lose_the_counts(queue: Queue) -> None:
    """All but those of what ended, which nothing else knows."""
    for name in queue.server.hkeys(queue.key("count")):
        if not name.startswith((b"finished", b"failed", b"cancelled")):
            queue.server.hdel(queue.key("count"), name)


def miscount(queue: Queue) -> None:
    queue.server.hincrby(queue.key("count"), "ready job", 3)
    queue.server.hincrby(queue.key("count"), "blocked other", 1)


NOWHERE = "jobs in no line, which never run"
TWICE = "jobs in two places, which may run twice"
LEFTOVER = "entries without a job"
STUCK = "jobs that wait for one before them in their chain, where all of those are final"
HELD = "unique keys that no job holds which waits or runs, so that enqueue stores nothing"
NOT_HELD = "jobs that do not hold their unique key, so that it may be enqueued again"
CHAIN = "chains with a wrong number of jobs that are kept"
UNKEPT = "final jobs that are not among those of which the oldest are forgotten, so that they stay for ever"
COUNTED = "counted as"
# What is done to the queue, what is said about it, and what runs after the repair.
CASES: list[tuple[Callable[[Queue], None], list[str], list[str]]] = [
    (lose_the_line, [f"{NOWHERE}: 4 ("], WAITING),
    (lose_a_ticket, [f"{NOWHERE}: 1 ("], WAITING),
    (lose_who_came_back, [f"{NOWHERE}: 1 ("], WAITING),
    (lose_what_is_due, [f"{NOWHERE}: 1 ("], WAITING),
    (lose_the_state_of_one_that_is_due, [f"{NOWHERE}: 1 ("], WAITING),
    (lose_the_state_of_one_that_came_back, [f"{NOWHERE}: 1 ("], WAITING),
    (lose_the_state_of_a_blocked_job, [f"{NOWHERE}: 1 ("], WAITING),
    # scheduled, back, blocked, last; finished, failed and cancelled, which do not run again
    (lose_all_states, [f"{NOWHERE}: 7 ("], WAITING),
    (put_a_finished_job_in_line, [f"{TWICE}: 1 ("], WAITING),
    (put_a_running_job_in_line, [f"{TWICE}: 1 ("], WAITING),
    (give_a_running_job_a_state, [f"{TWICE}: 1 ("], WAITING),
    (give_a_finished_job_a_worker, [f"{TWICE}: 1 ("], WAITING),
    (give_a_job_two_workers, [f"{TWICE}: 1 ("], WAITING),
    (leave_the_chain_blocked, [f"{STUCK}: 1 ("], [name for name in WAITING if name != "first"]),
    (
        delete_the_first_of_a_chain,
        [f"{STUCK}: 1 (", f"{CHAIN}: 1 ("],
        [name for name in WAITING if name != "first"],
    ),
    (delete_a_scheduled_job, [f"{LEFTOVER}: 1 ("], [name for name in WAITING if name != "scheduled"]),
    (delete_a_failed_job, [f"{LEFTOVER}: 2 ("], WAITING),
    (delete_a_finished_job, [f"{LEFTOVER}: 1 ("], WAITING),
    (
        delete_a_unique_job,
        [f"{HELD}: 1 (job key)"],
        [name for name in WAITING if name != "unique"],
    ),
    (lose_the_unique_keys, [f"{NOT_HELD}: 1 ("], WAITING),
    (count_void_tickets_wrong, ["2 entries of lines are counted as void, and there are 1"], WAITING),
    (lose_who_finished, [f"{UNKEPT}: 1 ("], WAITING),
    (lose_who_failed, [f"{UNKEPT}: 2 ("], WAITING),
    (keep_a_waiting_job_among_the_finished, [f"{LEFTOVER}: 2 ("], WAITING),
    (keep_a_running_job_among_the_failed_and_the_due, [f"{LEFTOVER}: 3 ("], WAITING),
    (count_a_chain_wrong, [f"{CHAIN}: 1 ("], WAITING),
    (put_a_short_ticket_in_line, [f"{LEFTOVER}: 1 ("], WAITING),
    (lose_the_counts, ["0 are counted as ready job, and there are 5"], WAITING),
    (
        miscount,
        ["8 are counted as ready job, and there are 5", "1 are counted as blocked other, and there are 0"],
        WAITING,
    ),
]


@pytest.mark.parametrize(("happens", "said", "runs"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_what_contradicts_itself_is_found_and_set_right(
    queue: Queue, happens: Callable[[Queue], None], said: list[str], runs: list[str]
) -> None:
    happens(queue)
    before = queue.dump()
    found = queue.client.audit()
    # Other counts may be off as well; they are a finding of their own.
    assert all(any(text in finding.text for finding in found) for text in said), found
    assert {finding.level for finding in found} == {"error"}
    assert all(finding.fix and "dejq doctor --repair" in finding.fix for finding in found), found
    assert len([finding for finding in found if COUNTED not in finding.text]) == len(
        [text for text in said if COUNTED not in text]
    ), found
    assert queue.dump() == before, "it was asked to look only"

    repaired = queue.client.audit(repair=True)
    assert {finding.level for finding in repaired} == {"warn"}, repaired
    assert all(finding.text.endswith("; repaired") for finding in repaired)
    assert {finding.level for finding in queue.client.audit()} == {"ok"}
    assert [finding.level for finding in queue.client.check() if finding.name == "books"] == ["ok"]

    queue.leave.set()
    assert queue.run_the_rest() == runs
    assert queue.client.stop().abandoned == 0
    stats = queue.client.stats()
    assert (stats.ready, stats.scheduled, stats.blocked, stats.running) == (0, 0, 0, 0)
    assert {finding.level for finding in queue.client.audit()} == {"ok"}


def test_a_key_that_the_wrong_job_holds_is_given_to_the_right_one(queue: Queue) -> None:
    queue.server.hset(queue.key("unique"), "job key", queue.id("fresh"))
    assert [finding.text.split(": ")[0] for finding in queue.client.audit()] == [
        HELD,
        "jobs with a unique key that another job holds",
    ]
    assert {finding.level for finding in queue.client.audit(repair=True)} == {"warn"}
    assert queue.client.enqueue(PendingJob("job", unique="key")) == [queue.ids["unique"]]


def test_a_final_job_whose_state_was_lost_does_not_get_its_key_back(queue: Queue, until: Until) -> None:
    queue.put("again", "works", unique="of its own")
    until(partial(queue.is_in, "again", "finished"))
    queue.drop_key("state")
    queue.client.audit(repair=True)
    assert queue.state("again") == "finished"
    assert {finding.level for finding in queue.client.audit()} == {"ok"}
    assert queue.client.enqueue(PendingJob("works", unique="of its own")) != [queue.ids["again"]]


def test_a_job_whose_state_was_lost_keeps_its_time(queue: Queue) -> None:
    due = queue.client.get_job(queue.ids["scheduled"]).due_at
    queue.drop("state", "scheduled")
    queue.client.audit(repair=True)
    assert queue.client.get_job(queue.ids["scheduled"]).due_at == due


def test_jobs_of_a_line_that_was_lost_start_in_their_order(
    redis_client: RedisClient, redis_server: Any, redis_queue: str
) -> None:
    client, ran = redis_client(workers=1), list[int]()
    client.register_handler("job", lambda job: ran.append(job.body))
    client.enqueue_many([PendingJob("job", number) for number in range(MANY)])
    line = f"dejq:{{{redis_queue}}}:fresh:job"
    for entry in redis_server.lrange(line, 0, -1)[::7]:
        redis_server.lrem(line, 1, entry)
    lost = len(range(0, MANY, 7))
    [found] = client.audit()
    assert found.text.startswith(f"{NOWHERE}: {lost} (")
    [repaired] = client.audit(repair=True)
    assert repaired.level == "warn"
    testing.drain(client)
    assert ran == list(range(MANY))


def test_a_lost_worker_that_is_on_no_list_any_more_is_rescued(queue: Queue, until: Until) -> None:
    """Nothing beats for it, and nobody would look for it."""
    record = queue.server.hget(queue.run, queue.id("running"))
    queue.leave.set()
    until(lambda: queue.state("running") == "finished")
    queue.put("lost", "lost")
    queue.server.delete(queue.key("fresh:lost"))
    lost = record.replace(b" held ", b" lost ").split(b" ")
    queue.server.hset(queue.key("run:gone"), queue.id("lost"), b" ".join([*lost[:3], b"1", *lost[4:]]))
    queue.server.hset(queue.key("worker"), "gone", "1000000 host:1")
    found = [finding.text for finding in queue.client.audit()]
    assert any(
        text.startswith("workers with jobs that are not on the list of workers") and "(gone)" in text for text in found
    )
    queue.client.audit(repair=True)
    queue.rest.register_handler("lost", lambda job: queue.ran.append(job.body))
    queue.rest.dequeue_loop()
    until(lambda: "lost" in queue.ran)


@pytest.mark.parametrize("repair", [False, True])
def test_what_no_rule_can_set_right_is_told_and_left_alone(queue: Queue, repair: bool) -> None:
    queue.drop_key("chain")
    queue.put("twin", unique="another")
    queue.server.hdel(queue.key("unique"), "job another")
    queue.server.hset(queue.key("job"), queue.id("twin"), queue.frame("twin").replace(b'"another"', b'"key"'))
    queue.server.hset(queue.key("job"), "garbage", "garbage")
    queue.server.hset(queue.key("state"), queue.id("second"), "nonsense\x1b[31m")
    found = {finding.text.split(": ")[0]: finding for finding in queue.client.audit(repair=repair)}
    assert found["jobs that wait for one before them in a chain of which nothing is known any more"].level == "error"
    assert found["jobs with a unique key that another job holds"].level == "error"
    unreadable = found["entries that dejq did not write"]
    assert unreadable.level == "error"
    assert unreadable.fix == "docs/redis.md says what should be there; delete or mend them by hand"
    assert ": 2 (" in unreadable.text
    assert "\x1b" not in unreadable.text


@pytest.mark.parametrize(
    "key",
    [
        *("job", "state", "fresh:job", "back:job", "due", "run", "workers", "worker", "unique", "failure", "finished"),
        *("failed", "count", "total", "place", "void", "awake", "meta"),
    ],
)
def test_whichever_key_is_lost_the_queue_is_whole_after_a_repair(queue: Queue, key: str, until: Until) -> None:
    queue.server.delete(queue.run if key == "run" else queue.key(key))
    queue.client.audit(repair=True)
    if key != "run":
        assert {finding.level for finding in queue.client.audit()} == {"ok"}
        assert [finding.level for finding in queue.client.check() if finding.name == "books"] == ["ok"]
    queue.leave.set()
    ran = queue.run_the_rest()
    assert ran == ([] if key == "job" else WAITING)
    until(lambda: key == "job" or queue.is_in("running", "finished"))
    if key == "run":
        # The job was taken again at once, so that counts could not be compared.
        queue.client.audit(repair=True)
    assert {finding.level for finding in queue.client.audit()} == {"ok"}
    stats = queue.client.stats()
    assert (stats.running, stats.enqueued_jobs) == (0, 0)


def test_only_the_first_are_named(queue: Queue) -> None:
    lose_the_line(queue)
    [text] = [finding.text for finding in queue.client.audit() if NOWHERE in finding.text]
    assert text.count("-7") + text.count("-4") >= 3
    assert text.endswith(", …)")


# ---- while the queue is at work ------------------------------------------------------------------------------


@pytest.mark.parametrize("repair", [False, True])
def test_nothing_is_found_in_a_queue_at_work(redis_client: RedisClient, repair: bool, until: Until) -> None:
    """With jobs in all states on the move, in more parts than one."""
    client, ran, over = redis_client(workers=4, keep_finished=MANY), list[int](), threading.Event()

    def handler(job: Job) -> None:
        if job.body % 10 == 0 and job.attempt == 1:
            raise dejq.Retry(after=0.01 * (job.body % 3))
        ran.append(job.body)

    client.register_handler("job", handler, max_attempts=2)
    client.register_handler("other", handler, max_attempts=2)
    number = 0

    def enqueue() -> None:
        nonlocal number
        while not over.is_set():
            jobs = [PendingJob("job" if n % 2 else "other", number + n) for n in range(60)]
            client.enqueue_many(jobs[:40])
            client.enqueue(*jobs[40:50])
            client.enqueue(PendingJob("job", number + 50, unique=f"key{number // 51 % 3}", delay=0.01))
            number += 51
            until(lambda: over.is_set() or client.stats().enqueued_jobs < 4 * MANY)

    client.enqueue_many([PendingJob("waits", n) for n in range(2 * MANY)])
    client.dequeue_loop()
    thread = threading.Thread(target=enqueue)
    thread.start()
    try:
        for _ in range(10):
            found = client.audit(repair=repair)
            assert texts(found)[0].startswith("ok: "), found
    finally:
        over.set()
        thread.join()
    until(lambda: client.stats().enqueued_jobs == 2 * MANY and not client.stats().running)
    assert len(set(ran)) == len(ran)
    assert client.stop().abandoned == 0


def test_an_empty_queue_and_other_stores_have_nothing_to_find(redis_client: RedisClient, new_client: NewClient) -> None:
    assert texts(redis_client().audit(repair=True)) == ["ok: 0 jobs, each of them counted, and in one place only"]
    assert new_client().audit() == new_client().audit(repair=True) == []


# ---- the command line ----------------------------------------------------------------------------------------


def test_doctor_sees_that_sums_do_not_fit_and_looks_closer_if_told_to(
    queue: Queue, redis_url: str, redis_queue: str, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"{redis_url}?queue={redis_queue}"

    def doctor(*flags: str) -> tuple[int, list[tuple[str, str, str | None]]]:
        code = main(["doctor", "--json", *flags, "--url", address])
        found = json.loads(capsys.readouterr().out)
        return code, [(each["level"], each["text"], each["fix"]) for each in found if each["name"] == "books"]

    assert doctor() == (0, [("ok", "12 jobs, as many as are counted", None)])
    lose_a_ticket(queue)
    code, [(level, text, fix)] = doctor()
    assert (code, level) == (1, "error")
    assert text == "5 are counted as ready, and there are 4; 12 jobs are stored, and 11 stand somewhere"
    assert fix == "`dejq doctor --audit` looks at each job, and --repair sets it right"
    code, found = doctor("--audit")
    assert (code, len(found)) == (1, 2)
    assert queue.ids["second"] in found[1][1]
    code, found = doctor("--repair")
    assert (code, [level for level, _, _ in found]) == (0, ["warn", "ok"])
    assert doctor("--audit")[0] == 0


# ---- what doctor says of the server --------------------------------------------------------------------------


def check(url: str, **options: Any) -> dict[str, tuple[str, str]]:
    with dejq.connect(url, **options) as client:
        return {finding.name: (finding.level, finding.text) for finding in client.check()}


def test_doctor_looks_at_the_server() -> None:
    with servers.redis(own=True, durable=True) as server:
        found = check(server.url)
        assert list(found) == ["url", "connection", "server", "books"]
        assert {level for level, _ in found.values()} == {"ok"}
        assert found["connection"][1] == urlsplit(server.url).netloc
        assert found["server"][1].startswith(("Valkey ", "Redis "))
        with redis.Redis.from_url(server.url) as asked:
            asked.config_set("maxmemory", int(asked.info("memory")["used_memory"] * 1.1))
            level, text = check(server.url)["memory"]
            assert (level, text.partition(" % ")[2]) == (
                "warn",
                "of maxmemory are in use; a full server refuses every enqueue",
            )
            asked.config_set("maxmemory", "100mb")
            asked.config_set("maxmemory-policy", "allkeys-lru")
            found = check(server.url, allow_eviction=True)
            assert found["memory"] == ("warn", "maxmemory-policy is allkeys-lru: a full server throws jobs away")


def test_doctor_says_what_a_server_without_an_append_only_file_loses() -> None:
    with servers.redis(own=True) as server:
        level, text = check(server.url)["durability"]
        assert (level, "loses what came after its last snapshot" in text) == ("warn", True)
        assert "as safe as the replicas" in check(server.url, durability="replicas")["durability"][1]


def test_doctor_says_that_snapshots_fail(until: Until) -> None:
    with servers.redis(own=True) as server, redis.Redis.from_url(server.url) as asked:
        assert server.folder
        (server.folder / "dump.rdb").mkdir()
        asked.bgsave()
        until(lambda: asked.info("persistence")["rdb_last_bgsave_status"] == "err")
        assert check(server.url)["durability"] == ("error", "the last snapshot failed")


def test_doctor_says_what_it_may_not_look_at(redis_url: str, redis_queue: str, redis_client: RedisClient) -> None:
    redis_client()
    with redis.Redis.from_url(redis_url) as asked:
        asked.acl_setuser("blind", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-info"])
        try:
            url = redis_url.replace("redis://", "redis://blind:secret@")
            level, text = check(url, queue=redis_queue)["server"]
            assert (level, "may not ask for INFO" in text) == ("warn", True)
        finally:
            asked.acl_deluser("blind")
