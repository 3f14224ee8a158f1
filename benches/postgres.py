"""What the Postgres store can do on this machine: server and one worker process on the same cores.

    python benches/postgres.py                         everything, about ten minutes
    python benches/postgres.py drain idle              some of it
    python benches/postgres.py --json FILE …           keep the figures

A server of its own is started by tests/servers.py, with fsync and synchronous_commit on; finished jobs are kept.
Beside each rate stands the ceiling of the same server in the same run, by pgbench and COPY. It prints and never
judges; the machine's noise is in every line, so believe the ratios.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

import dejq

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import servers
import store
from store import BODY, JOB, RUNS, Figures

FEED = 5_000


class Bench(store.Bench):
    """One schema of one server."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.sql = psycopg.connect(url, autocommit=True)

    def fresh(self) -> None:
        self.sql.execute("DROP SCHEMA IF EXISTS dejq CASCADE")
        self.client().migrate()

    def filled(self) -> None:
        self.sql.execute("VACUUM ANALYZE")
        self.sql.execute("CHECKPOINT")

    def value(self, query: str) -> Any:
        row = self.sql.execute(query.encode()).fetchone()
        assert row
        return row[0]

    @contextmanager
    def counted(self, jobs: int) -> Iterator[Figures]:
        """Commits and bytes of WAL per job of what happens within."""
        figures: Figures = {}
        commits = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        wal, before = self.value("SELECT pg_current_wal_insert_lsn()"), self.value(commits)
        yield figures
        written = self.value(f"SELECT pg_current_wal_insert_lsn() - '{wal}'::pg_lsn")
        time.sleep(1.5)  # backends report their commits about once a second
        figures["commits per job"] = round((self.value(commits) - before) / jobs, 4)
        figures["WAL bytes per job"] = round(float(written) / jobs)


# ---- ceilings ------------------------------------------------------------------------------------------------

RAW = """
CREATE SCHEMA IF NOT EXISTS raw;
DROP TABLE IF EXISTS raw.job, raw.done;
CREATE TABLE raw.job (id bigint PRIMARY KEY, type text NOT NULL, token bigint, body json NOT NULL) WITH (fillfactor = {fillfactor});
CREATE INDEX ON raw.job (type, id);
CREATE TABLE raw.done (id bigint, type text, finished_at timestamptz, body json);
CREATE INDEX ON raw.done (id);
"""
CLAIM = """
\\set token random(1, 1000000000000)
WITH mine AS MATERIALIZED (
    SELECT {row} FROM raw.job WHERE type = 'a' AND token IS NULL ORDER BY id LIMIT {batch} FOR NO KEY UPDATE SKIP LOCKED),
taken AS (UPDATE raw.job SET token = :token WHERE {row} = ANY (ARRAY(SELECT {row} FROM mine)) RETURNING id, body)
SELECT json_agg(body) AS bodies, array_agg(id) AS ids FROM taken
\\gset
WITH gone AS (DELETE FROM raw.job WHERE id = ANY (':ids'::bigint[]) AND token = :token RETURNING *)
INSERT INTO raw.done SELECT id, type, now(), body FROM gone;
"""


def raw_drain(bench: Bench, batch: int, jobs: int, *, tuned: bool) -> float:
    """Claim and archive by hand, on two connections: the least that a queue with history must do. `tuned` has what our
    own tables have: room in each page for what a claim writes, and claims by place."""
    bench.sql.execute(RAW.format(fillfactor=50 if tuned else 100).encode())
    bench.sql.execute(
        "INSERT INTO raw.job SELECT n, 'a', NULL, %s::json FROM generate_series(1, %s) n", (json.dumps(BODY), jobs)
    )
    bench.sql.execute("VACUUM ANALYZE")
    bench.sql.execute("CHECKPOINT")
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(CLAIM.format(batch=batch, row="ctid" if tuned else "id"))
        script.flush()
        turns = jobs // batch // 2
        program = [
            _program("pgbench"),
            "-n",
            "-M",
            "simple",
            "-c",
            "2",
            "-j",
            "1",
            "-t",
            str(turns),
            "-f",
            script.name,
            bench.url,
        ]
        start = time.perf_counter()
        subprocess.run(program, check=True, capture_output=True)
        took = time.perf_counter() - start
    return turns * 2 * batch / took


def raw_copy(bench: Bench, jobs: int) -> float:
    """COPY of ready-made rows into the table of jobs itself."""
    bench.fresh()
    data = f"bench0\t{json.dumps(BODY)}\n"
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        for n in range(jobs):
            file.write(f"{n:08x}-0000-7000-8000-000000000000\t{data}")
        file.flush()
        command = f"\\copy dejq.job (id, type, body) FROM '{file.name}'"
        start = time.perf_counter()
        subprocess.run([_program("psql"), "-q", "-c", command, bench.url], check=True)
        return jobs / (time.perf_counter() - start)


def _program(name: str) -> str:
    return shutil.which(name) or f"/usr/lib/postgresql/15/bin/{name}"


# ---- figures -------------------------------------------------------------------------------------------------


def drain(bench: Bench) -> None:
    jobs = 200_000
    rates, plain, tuned, costs = [], [], [], []
    for _ in range(RUNS):
        plain.append(max(raw_drain(bench, batch, jobs, tuned=False) for batch in (100, 500, 1000)))
        tuned.append(max(raw_drain(bench, batch, jobs, tuned=True) for batch in (100, 500, 1000)))
        bench.fresh()
        bench.fill(jobs)
        with bench.counted(jobs) as cost:
            rates.append(bench.drain(jobs))
        costs.append(cost)
    rate = statistics.median(rates)
    bench.show("drain, jobs/s", rate)
    for name, ceilings in (("plain", plain), ("tuned", tuned)):
        ceiling = statistics.median(ceilings)
        bench.show(f"claim and archive by hand, {name}, jobs/s", ceiling, f"the drain has {rate / ceiling:.2f} of it")
    for name, value in costs[-1].items():
        bench.show(f"drain, {name}", value)


def enqueue(bench: Bench) -> None:
    jobs = 200_000
    rates, ceilings = [], []
    for _ in range(RUNS):
        ceilings.append(raw_copy(bench, jobs))
        rates.append(store.bulk(bench, jobs))
    rate, ceiling = statistics.median(rates), statistics.median(ceilings)
    bench.show("enqueue_many, jobs/s", rate, f"{rate / ceiling:.2f} of psql's COPY ({ceiling:,.0f})")
    bench.fresh()
    bench.show("64 threads, single enqueues/s", store.median(lambda: store.threads(bench, 64, 500)))
    bench.show("64 asyncio tasks, single enqueues/s", store.median(lambda: store.tasks(bench, 64, 500)))
    bench.show("1 thread, single enqueues/s", store.median(lambda: store.threads(bench, 1, 1000)))


def history(bench: Bench) -> None:
    """The rate with five million finished jobs beside that without."""
    jobs = 200_000
    bench.fresh()
    bench.fill(jobs)
    empty = bench.drain(jobs)
    bench.sql.execute(
        """INSERT INTO dejq.done (id, enqueued_at, finished_at, attempt, slot, outcome, rescues, has_run, cancel_rest, type, body)
        SELECT dejq.uuid7(), now(), now(), 1, n %% 16, 0, 0, false, false, 'bench0', %s::json FROM generate_series(1, 5000000) n""",
        (json.dumps(BODY),),
    )
    bench.sql.execute("VACUUM ANALYZE dejq.done")
    bench.fill(jobs)
    full = bench.drain(jobs)
    bench.fresh()
    bench.fill(jobs)
    empty = (empty + bench.drain(jobs)) / 2
    bench.show("5,000,000 finished jobs, jobs/s", full, f"{full / empty:.2f} of an empty store's ({empty:,.0f})")


def snapshot(bench: Bench) -> None:
    """The rate every 5 s while another session holds a snapshot for 60 s, beside 60 s without: long enough for a round of
    autovacuum in both."""
    bench.fresh()
    program = [sys.executable, __file__, "--feed", bench.url]
    rates: dict[str, list[float]] = {}
    for name, seconds in (("without", 60), ("held", 60)):
        bench.fresh()
        bench.fill(200_000)
        holder = psycopg.connect(bench.url)
        if name == "held":
            holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            holder.execute("SELECT count(*) FROM dejq.job")
        feed = subprocess.Popen(program, stdin=subprocess.PIPE, text=True)
        assert feed.stdin
        client = bench.client()
        client.register_handler("bench0", lambda job: None)
        client.dequeue_loop()
        rates[name], last, fed = [], 0, 200_000
        for _ in range(seconds // 5):
            end = time.perf_counter() + 5
            while time.perf_counter() < end:
                # Always about 100,000 wait; told here, because to ask the server would be the load.
                if fed - client._native.counted()["finished"] < 100_000:
                    fed += FEED
                    print("more", file=feed.stdin, flush=True)
                time.sleep(0.005)
            done = client._native.counted()["finished"]
            rates[name].append((done - last) / 5)
            last = done
        feed.terminate()
        feed.wait()
        client.stop()
        holder.close()
    normal, worst = statistics.mean(rates["without"]), min(rates["held"])
    shown = {name: " ".join(f"{rate / 1000:.0f}" for rate in of) for name, of in rates.items()}
    note = f"{worst / normal:.2f} of {normal:,.0f}; k/s held: {shown['held']}, without: {shown['without']}"
    bench.show("snapshot held for 60 s, worst 5 s, jobs/s", worst, note)


def feed(url: str) -> None:
    """Enqueues once for each line that it is told."""
    client = dejq.postgres(url)
    for _ in sys.stdin:
        client.enqueue_many([JOB] * FEED)


def idle(bench: Bench) -> None:
    """What a worker costs that has nothing to do."""
    bench.fresh()
    client = bench.client()
    client.register_handler("bench0", lambda job: None)
    client.dequeue_loop()
    time.sleep(3)
    commits = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    before, own, cpu = bench.value(commits), 0, time.process_time()
    time.sleep(30)
    used = time.process_time() - cpu
    own = 1
    bench.show("idle worker, commits/s", round((bench.value(commits) - before - own) / 30, 2))
    bench.show("idle worker, CPU %", round(used / 30 * 100, 2))
    client.stop()


def beats(bench: Bench) -> None:
    """One beat of a worker that holds 10,000 jobs, as the server sees it."""
    bench.fresh()
    bench.fill(10_000)
    bench.sql.execute(
        "UPDATE dejq.job SET token = 7, worker_id = '00000000-0000-7000-8000-000000000001', started_at = now(), attempt = 1"
    )
    query = """SELECT count(*) FROM dejq.beat('00000000-0000-7000-8000-000000000001', 'bench', 15,
        ARRAY(SELECT id FROM dejq.job), array_fill(7::bigint, ARRAY[10000]))"""
    bench.value(query)
    start = time.perf_counter()
    bench.value(query)
    bench.show("a beat for 10,000 running jobs, ms", round((time.perf_counter() - start) * 1000, 1), "one statement")


FIGURES: dict[str, Callable[[Bench], None]] = {
    "drain": drain,
    "enqueue": enqueue,
    "latency": store.latency,
    "idle": idle,
    "types": store.types,
    "backlog": lambda bench: store.backlog(bench, 1_000_000, 1_000_000),
    "history": history,
    "snapshot": snapshot,
    "beats": beats,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--feed"]:
        feed(sys.argv[2])
    else:
        server = servers.postgres(durable=True, own=True, settings={"max_wal_size": "8GB"})
        store.main(__doc__, FIGURES, server, lambda server: Bench(server.url))
