"""The verbs that look at jobs and step in, on every store that can; and what those say that cannot."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest

import dejq
import servers
from dejq import PendingJob, testing
from dejq.cli import operate
from dejq.cli.operate import Operation
from python.commands import CANARY, Ran, Run

if TYPE_CHECKING:
    from python.postgres import PgClient
    from python.redis_store import RedisClient

pytest_plugins = ["python.command_line", "python.postgres", "python.redis_store"]
pytestmark = pytest.mark.usefixtures("folder")

NOBODY = "01890a5d-ac96-774b-bcce-b302099a8057"
SECRET = f"cannot connect to redis://:{CANARY}@db \x1b[31m"


@dataclass
class Store:
    """A store, and commands on it."""

    url: str
    client: dejq.Client
    run: Run

    def __call__(self, *args: str) -> Ran:
        return self.run(*args, "--url", self.url)


@pytest.fixture(params=["memory", "postgres", "redis"])
def store(request: pytest.FixtureRequest, run: Run) -> Iterator[Store]:
    """Handlers: `good`, and `bad`, which fails."""
    if request.param == "memory":
        url = f"memory://{uuid4().hex}"
        client = dejq.connect(url)
    elif request.param == "postgres":
        make_pg: PgClient = request.getfixturevalue("pg_client")
        client = make_pg()
        url = f"{request.getfixturevalue('pg_url')}?schema={request.getfixturevalue('pg_schema')}"
    else:
        make_redis: RedisClient = request.getfixturevalue("redis_client")
        client = make_redis()
        url = f"{request.getfixturevalue('redis_url')}?queue={request.getfixturevalue('redis_queue')}"

    def fail(job: dejq.Job) -> None:
        raise ValueError(SECRET)

    client.register_handler("good", lambda job: None)
    client.register_handler("bad", fail)
    yield Store(url, client, run)
    client.stop()


def states(on: Store) -> list[str]:
    return [job.state for job in on.client.list_jobs()]


# ---- list ------------------------------------------------------------------------------------------------


def test_list_has_a_line_for_each_job_in_the_order_of_enqueueing(store: Store) -> None:
    ids = store.client.enqueue(PendingJob("bad", "secret"), PendingJob("good"))
    ids += store.client.enqueue(PendingJob("other", delay=60))
    testing.drain(store.client)
    ran = store("list")
    assert (ran.code, ran.err) == (0, "")
    head, *lines = ran.out.splitlines()
    assert head.split() == ["ID", "STATE", "TYPE", "AGE", "CHAIN", "ERROR"]
    assert [line.split()[:3] for line in lines] == [
        [ids[0], "failed", "bad"],
        [ids[1], "finished", "good"],
        [ids[2], "scheduled", "other"],
    ]
    assert "1/2  ValueError: cannot connect to redis://:***@db \\x1b[31m" in lines[0]
    assert "secret" not in ran.out


@pytest.mark.parametrize(
    ("args", "places"),
    [
        (["--state", "failed"], [0]),
        (["--type", "good"], [1, 2]),
        (["--type", "good", "--state", "scheduled"], [2]),
        (["--limit", "2"], [0, 1]),
        (["--older-than", "1h"], []),
        (["--older-than", "0"], [0, 1, 2]),
    ],
)
def test_the_filters_of_list(store: Store, args: list[str], places: list[int]) -> None:
    ids = store.client.enqueue(PendingJob("bad"), PendingJob("good"))
    ids += store.client.enqueue(PendingJob("good", delay=60))
    testing.drain(store.client)
    ran = store("list", *args, "--json")
    assert [job["id"] for job in json.loads(ran.out)] == [ids[place] for place in places]
    assert ran.err == {
        0: "no job fits\n",
        2: f"2 jobs; there may be more: --after {ids[1]}\n" if "--limit" in args else "",
    }.get(len(places), "")


def test_the_next_page_of_a_list_goes_on_behind_the_last_one(store: Store) -> None:
    ids = store.client.enqueue(*(PendingJob("good") for _ in range(5)))
    seen: list[str] = []
    after: list[str] = []
    while page := json.loads(store("list", "--limit", "2", "--json", *after).out):
        seen += [job["id"] for job in page]
        after = ["--after", page[-1]["id"]]
    assert seen == ids


def test_a_listed_job_as_json_has_all_but_its_body(store: Store) -> None:
    store.client.enqueue(PendingJob("bad", {"to": "secret"}, headers={"trace": "7", "token": CANARY}))
    testing.drain(store.client)
    ran = store("list", "--json")
    (job,) = json.loads(ran.out)
    names = set(dejq.JobInfo.__dataclass_fields__) - {"raw_body"} | {"body_bytes"}
    assert set(job) == names
    assert (job["type"], job["state"], job["attempt"], job["headers"]) == (
        "bad",
        "failed",
        1,
        {"trace": "7", "token": "***"},
    )
    assert job["body_bytes"] == len('{"to":"secret"}')
    assert job["error"] == "ValueError: cannot connect to redis://:***@db \x1b[31m"
    assert job["finished_at"].endswith("+00:00")
    assert "secret" not in ran.out
    assert CANARY not in ran.out


def test_without_jobs_there_is_no_table(store: Store) -> None:
    assert store("list") == Ran(0, "", "there are no jobs\n")
    assert store("list", "--json") == Ran(0, "[]\n", "there are no jobs\n")


# ---- inspect ---------------------------------------------------------------------------------------------


def test_inspect_says_all_about_a_job_but_its_body(store: Store) -> None:
    ids = store.client.enqueue(
        PendingJob("bad", "secret", headers={"trace": "7", "token": CANARY}), PendingJob("good", delay=60)
    )
    testing.drain(store.client)
    ran = store("inspect", ids[0])
    assert (ran.code, ran.err) == (0, "")
    said = dict(line.split(maxsplit=1) for line in ran.out.splitlines() if not line.startswith(" "))
    assert said["job"] == f"bad  {ids[0]}"
    assert said["state"] == "failed, attempt 1"
    assert said["chain"] == f"1/2  failed     {ids[0]}  bad"
    assert f"2/2  scheduled  {ids[1]}  good" in ran.out
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, .* ago", said["enqueued"])
    assert " ago" in said["ended"]
    assert {"trace=7", "token=***"} <= set(ran.out.split())
    assert said["body"] == "8 bytes of JSON"
    assert said["error"] == "Traceback (most recent call last):"
    assert "ValueError: cannot connect to redis://:***@db \\x1b[31m" in ran.out
    assert said["next"] == f"dejq requeue {ids[0]}"
    assert "secret" not in ran.out
    assert CANARY not in ran.out


def test_inspect_of_a_job_that_waits_says_until_when_and_how_to_cancel_it(store: Store) -> None:
    (id,) = store.client.enqueue(PendingJob("good", delay=7200, max_attempts=3))
    ran = store("inspect", id)
    assert re.search(r"^due  .* UTC, in (120 min|2 h)$", ran.out, re.MULTILINE)
    assert "state      scheduled\n" in ran.out
    assert "chain" not in ran.out
    assert f"next       dejq cancel {id}\n" in ran.out


def test_a_body_is_shown_as_it_is_when_asked_for(store: Store) -> None:
    body = {"url": f"redis://:{CANARY}@db", "text": "✓ \x1b[31m"}
    (id,) = store.client.enqueue(PendingJob("good", body))
    ran = store("inspect", id, "--show-body")
    assert json.loads(ran.out[ran.out.index("{") :].replace("\\x1b", "\\u001b")) == body
    assert "\x1b" not in ran.out
    assert json.loads(store("inspect", id, "--show-body", "--json").out)["body"] == body
    assert "body" not in json.loads(store("inspect", id, "--json").out)


def test_inspect_as_json_has_the_chain(store: Store) -> None:
    store.client.enqueue(*(PendingJob("noise") for _ in range(3)))
    ids = store.client.enqueue(*(PendingJob("good") for _ in range(250)))
    store.client.enqueue(PendingJob("noise"))
    found = json.loads(store("inspect", ids[100], "--json").out)
    assert (found["id"], found["position"], found["chain_length"]) == (ids[100], 101, 250)
    assert [step["id"] for step in found["chain"]] == ids
    assert [step["position"] for step in found["chain"]] == list(range(1, 251))


def test_a_chain_that_was_deleted_in_part_says_so(store: Store) -> None:
    ids = store.client.enqueue(PendingJob("good"), PendingJob("good"), PendingJob("good", delay=60))
    testing.drain(store.client)
    assert store.client.delete_finished(0) == 2
    ran = store("inspect", ids[2])
    assert f"chain      3/3  scheduled  {ids[2]}  good\n" in ran.out
    assert "           2 more were deleted, or are not found among jobs enqueued at the same time\n" in ran.out


def test_a_chain_of_plain_sql_is_found_too(pg_client: PgClient, pg_url: str, pg_schema: str, run: Run) -> None:
    pg_client()
    with psycopg.connect(pg_url) as connection:
        statement = f"SELECT \"{pg_schema}\".enqueue_chain(ARRAY['a', 'b', 'c'], ARRAY['1', '2', '3']::json[])"
        (ids,) = connection.execute(statement.encode()).fetchone() or ([],)
    ran = run("inspect", str(ids[1]), "--json", "--url", f"{pg_url}?schema={pg_schema}")
    assert [step["id"] for step in json.loads(ran.out)["chain"]] == [str(id) for id in ids]


def test_a_job_that_is_not_there_is_code_1(store: Store) -> None:
    ran = store("inspect", NOBODY)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"dejq: DEJQ-E120 there is no job {NOBODY}")


def test_what_is_no_id_at_all_is_said_to_be_none(store: Store) -> None:
    ran = store("inspect", "email")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("dejq: DEJQ-E120 ")
    assert "email" in ran.err


# ---- requeue, cancel, finish -----------------------------------------------------------------------------


def test_requeue_runs_a_failed_job_again(store: Store) -> None:
    (id,) = store.client.enqueue(PendingJob("bad"))
    testing.drain(store.client)
    assert store("requeue", id) == Ran(0, "", "requeued 1 job\n")
    assert states(store) == ["ready"]


def test_cancel_and_finish_end_jobs(store: Store) -> None:
    ids = store.client.enqueue(PendingJob("good"), PendingJob("good"), PendingJob("good"))
    assert store("cancel", ids[1]) == Ran(0, "", "cancelled 1 job\n")
    assert store("finish", ids[0], ids[0]) == Ran(0, "", "finished 1 job\n")
    assert states(store) == ["finished", "cancelled", "ready"]


@pytest.mark.parametrize("verb", ["requeue", "cancel", "finish"])
def test_of_several_ids_those_that_cannot_be_are_named_and_the_others_done(store: Store, verb: str) -> None:
    first, second = (store.client.enqueue(PendingJob("bad"))[0] for _ in range(2))
    if verb == "requeue":
        testing.drain(store.client)
    ran = store(verb, first, NOBODY, second)
    assert (ran.code, ran.out) == (1, "")
    assert f"dejq: DEJQ-E120 there is no job {NOBODY}" in ran.err
    assert ran.err.splitlines()[-1] == f"{DONE[verb]} 2 jobs"
    ran = store(verb, first)
    assert ran.code == 1
    assert ran.err.startswith("dejq: DEJQ-E121 ")
    found = json.loads(store(verb, first, "--json").out)
    assert (found[DONE[verb]], list(found["refused"])) == (0, [first])


DONE = {"requeue": "requeued", "cancel": "cancelled", "finish": "finished"}


@pytest.mark.parametrize(
    ("args", "after"),
    [
        (["requeue", "--state", "failed"], ["ready", "ready", "cancelled", "ready", "scheduled"]),
        (["requeue", "--type", "bad"], ["ready", "ready", "ready", "ready", "scheduled"]),
        (["requeue", "--state", "scheduled"], ["failed", "failed", "cancelled", "ready", "ready"]),
        (["requeue", "--state", "failed", "--limit", "1"], ["ready", "failed", "cancelled", "ready", "scheduled"]),
        (["cancel", "--type", "good"], ["failed", "failed", "cancelled", "cancelled", "cancelled"]),
        (["cancel", "--type", "good", "--limit", "1"], ["failed", "failed", "cancelled", "cancelled", "scheduled"]),
        (["cancel", "--state", "ready"], ["failed", "failed", "cancelled", "cancelled", "scheduled"]),
        (["finish", "--older-than", "0"], ["failed", "failed", "cancelled", "finished", "finished"]),
        (["cancel", "--older-than", "1h"], ["failed", "failed", "cancelled", "ready", "scheduled"]),
    ],
)
def test_a_filter_says_which_jobs_are_meant(store: Store, args: list[str], after: list[str]) -> None:
    for _ in range(2):
        store.client.enqueue(PendingJob("bad"))
    testing.drain(store.client)
    (id,) = store.client.enqueue(PendingJob("bad"))
    store.client.cancel_job(id)
    store.client.enqueue(PendingJob("good"))
    store.client.enqueue(PendingJob("good", delay=60))
    before = states(store)
    changed = sum(one != two for one, two in zip(before, after, strict=True))
    jobs = "1 job" if changed == 1 else f"{changed} jobs"
    assert store(*args, "--dry-run") == Ran(0, "", f"would {args[0]} {jobs}; nothing was done\n")
    assert json.loads(store(*args, "--dry-run", "--json").out)["would_be"] == changed
    if changed:
        ran = store(*args)
        assert (ran.code, ran.out) == (2, "")
        assert f"{args[0]} {jobs}? Nobody is there to answer; repeat it with --yes" in ran.err
    assert states(store) == before
    assert store(*args, "--yes") == Ran(0, "", f"{DONE[args[0]]} {jobs}\n")
    assert states(store) == after


def test_more_than_a_page_of_jobs_is_worked_through(store: Store) -> None:
    store.client.enqueue_many(PendingJob("good") for _ in range(1100))
    assert json.loads(store("cancel", "--type", "good", "--yes", "--json").out) == {"cancelled": 1100, "refused": {}}
    assert store.client.stats().cancelled == 1100


@pytest.mark.parametrize("verb", ["cancel", "finish"])
def test_a_chain_is_ended_from_its_end_so_that_nothing_in_it_starts_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    operation: Operation = getattr(operate, verb.upper())
    seen: list[str] = []

    def note(client: dejq.Client, id: str) -> None:
        seen.append(id)
        operation.method(client, id)

    monkeypatch.setattr(operate, verb.upper(), replace(operation, method=note))
    ids = store.client.enqueue(*(PendingJob("good") for _ in range(3)))
    assert store(verb, "--type", "good", "--yes").code == 0
    assert seen == ids[::-1]
    assert states(store) == [DONE[verb]] * 3


def test_jobs_that_move_on_while_a_filter_is_worked_through_are_counted_apart(store: Store) -> None:
    # The second one is cancelled with the first, and comes back with it.
    store.client.enqueue(PendingJob("bad"), PendingJob("good"), on_failure="cancel")
    testing.drain(store.client)
    ran = store("requeue", "--older-than", "0", "--yes")
    assert ran.code == 0
    assert ran.err.startswith("requeued 1 job; 1 could not be, the first one because: DEJQ-E121 job ")
    assert states(store) == ["ready", "blocked"]


@pytest.mark.parametrize("verb", ["requeue", "cancel", "finish"])
def test_ids_or_a_filter_but_not_both_and_not_neither(store: Store, verb: str) -> None:
    for args in ([], [NOBODY, "--state", "running"]):
        ran = store(verb, *args)
        assert (ran.code, ran.out) == (2, "")
        assert f"{verb} takes the ids of jobs or a filter, " in ran.err


def test_a_state_that_a_verb_cannot_work_on_is_wrong_usage(run: Run) -> None:
    for args in (["cancel", "--state", "failed"], ["requeue", "--state", "finished"], ["list", "--state", "lost"]):
        ran = run(*args, "--url", "memory://")
        assert (ran.code, ran.out) == (2, "")
        assert "invalid choice" in ran.err


def test_a_dry_run_by_id_looks_at_the_job(store: Store) -> None:
    (id,) = store.client.enqueue(PendingJob("good"))
    assert store("cancel", id, "--dry-run") == Ran(0, "", "would cancel 1 job; nothing was done\n")
    ran = store("requeue", id, NOBODY, "--dry-run")
    assert ran.code == 0
    assert f"would not requeue {id}: it is ready\n" in ran.err
    assert f"would not requeue {NOBODY}: DEJQ-E120 there is no job" in ran.err
    assert ran.err.endswith("would requeue 0 jobs; nothing was done\n")
    assert states(store) == ["ready"]


def test_what_was_done_before_the_store_went_away_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    client = dejq.memory("gone")
    ids = client.enqueue(*(PendingJob("good") for _ in range(3)))
    real = client.cancel_job
    done: list[str] = []

    def cancel(_: dejq.Client, id: str) -> None:
        if done:
            raise dejq.BackendUnavailable("nobody answers")
        done.append(id)
        real(id)

    monkeypatch.setattr(operate, "CANCEL", replace(operate.CANCEL, method=cancel))
    ran = run("cancel", *ids, "--url", "memory://gone")
    assert ran == Ran(3, "", "cancelled 1 job\ndejq: DEJQ-E200 nobody answers\n")


# ---- cleanup ---------------------------------------------------------------------------------------------


def test_cleanup_deletes_what_ended_before_that(store: Store) -> None:
    store.client.enqueue(PendingJob("bad"), PendingJob("good"), PendingJob("good", delay=60))
    testing.drain(store.client)
    assert store("cleanup", "--older-than", "1h", "--dry-run").err == "would delete 0 jobs; nothing was done\n"
    assert store("cleanup", "--older-than", "1h").err == "deleted 0 jobs\n"
    assert store("cleanup", "--older-than", "0", "--dry-run") == Ran(0, "", "would delete 2 jobs; nothing was done\n")
    assert json.loads(store("cleanup", "--older-than", "0", "--dry-run", "--json").out) == {"deleted": 0, "would_be": 2}
    assert states(store) == ["failed", "finished", "scheduled"]
    assert store("cleanup", "--older-than", "0", "--batch", "1") == Ran(0, "", "deleted 2 jobs\n")
    assert states(store) == ["scheduled"]
    assert json.loads(store("cleanup", "--older-than", "0", "--json").out) == {"deleted": 0}


def test_a_dry_run_of_cleanup_counts_from_the_end_of_a_job_not_from_its_enqueue(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = dejq.memory()
    (id,) = client.enqueue(PendingJob("good"))
    client.finish_job(id)
    job = client.get_job(id)
    assert job.finished_at is not None
    ended = [replace(job, finished_at=job.finished_at - timedelta(hours=hours)) for hours in (0, 1, 3)]
    pages = {"finished": ended}
    monkeypatch.setattr(dejq.Client, "list_jobs", lambda client, *, state, **_: pages.get(state, []))
    ran = run("cleanup", "--older-than", "2h", "--dry-run", "--url", "memory://")
    assert ran == Ran(0, "", "would delete 1 job; nothing was done\n")


def test_cleanup_needs_to_know_what_is_old(run: Run) -> None:
    ran = run("cleanup", "--url", "memory://")
    assert (ran.code, ran.out) == (2, "")
    assert "dejq cleanup --older-than 7d" in ran.err


# ---- what a store cannot do ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sqs_url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, servers.sqs() as server:
        for name, value in servers.EMULATOR_CREDENTIALS.items():
            patch.setenv(name, value)
        url = servers.queue_url(server.url, f"dejq-test-{uuid4().hex}.fifo")
        with dejq.connect(url) as client:
            client.migrate()
        yield url


@pytest.mark.parametrize(
    "args",
    [
        ["list"],
        ["list", "--json"],
        ["inspect", NOBODY],
        ["requeue", NOBODY],
        ["requeue", "--state", "failed", "--dry-run"],
        ["cancel", "--type", "a", "--yes"],
        ["finish", NOBODY],
        ["cleanup", "--older-than", "7d"],
        ["cleanup", "--older-than", "7d", "--dry-run"],
    ],
    ids=" ".join,
)
def test_a_store_that_can_only_count_says_so_in_one_line(run: Run, sqs_url: str, args: list[str]) -> None:
    ran = run(*args, "--url", sqs_url)
    assert ran.code == 1
    assert ran.out == ""
    assert re.fullmatch(r"dejq: DEJQ-E130 .*\bsqs\b.*\n", ran.err), ran.err


def test_a_store_that_can_only_count_counts(run: Run, sqs_url: str) -> None:
    with dejq.connect(sqs_url) as client:
        client.enqueue(PendingJob("good"))
    ran = run("stats", "--url", sqs_url)
    assert ran.code == 0
    assert "(all)" in ran.out
