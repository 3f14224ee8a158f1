"""PostgreSQL: schema and claim variants of the job queue, side by side on one real server.

    python3 -m venv lab && lab/bin/pip install -r tests/requirements-servers.txt
    lab/bin/pip install "psycopg[binary]"
    lab/bin/python benches/postgres_variants.py [--rounds 3] [--jobs 100000] [--batches 100,500,1000]
                                                [--only H,F] [--parts extra,raw,plans,drain,held]

It took 12 minutes on two busy cores. DEJQ_TEST_SERVERS=system takes the system's PostgreSQL
instead of the wheel's. It prints Markdown tables and writes
benches/results/2026-11-24-postgres-variants.json (--json). It compares lines of one run; it never judges.

How it is measured
  - fsync and synchronous_commit are on. max_wal_size is 8 GB and shared_buffers 512 MB. A CHECKPOINT precedes each fill
    and therefore each drain, so none runs within one; because the pages are younger than it, WAL holds no full-page
    images, which is what a queue sees whose jobs live shorter than checkpoint_timeout. The variant `fpi` has its
    CHECKPOINT between fill and drain and shows the other end.
  - A drain is two connections in two threads: one claims, one settles, joined by a queue of two batches. They talk to
    libpq by binary prepared statements and leave rows unconverted, so the client costs little.
  - Autovacuum leaves the tables of a drain alone; in the held-snapshot test it runs every 10 seconds.
  - Rounds are interleaved: every variant once, then every variant again. Medians. On a busy machine trust WAL, commits,
    HOT and the CPU time of the two backends (/proc, 10 ms) more than jobs/s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import secrets
import select
import statistics
import struct
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from servers import Server, postgres  # noqa: E402  (found by the line above)

RESULT: Final = ROOT / "benches" / "results" / "2026-11-24-postgres-variants.json"
BODY: Final = json.dumps({"n": 1_234_567, "s": "x" * 97})  # 120 bytes
WORKER: Final = uuid.UUID("0198c0de-0000-7000-8000-000000000001")
TYPE: Final = "mail"
BASE_FILLFACTOR: Final = 50
UUID_OID, INT8_OID, INT4_OID, INT2_OID, TEXT_OID = 2950, 20, 23, 21, 25
CLAIM_OIDS: Final = (TEXT_OID, UUID_OID, INT4_OID, INT8_OID, INT8_OID)  # type, worker, limit, token, mark

# --- schema and statements ---------------------------------------------------------------------------------------

JOB_COLUMNS: Final = """
  id uuid NOT NULL, seq bigint NOT NULL DEFAULT nextval('job_seq'),
  enqueued_at timestamptz NOT NULL DEFAULT statement_timestamp(),
  started_at timestamptz, worker_id uuid, token bigint, attempt int NOT NULL DEFAULT 0,
  rescues smallint NOT NULL DEFAULT 0, hold smallint NOT NULL DEFAULT 0,
  cancel boolean NOT NULL DEFAULT false, has_run boolean NOT NULL DEFAULT false,
  cancel_rest boolean NOT NULL DEFAULT false,
  position int NOT NULL DEFAULT 0, length int NOT NULL DEFAULT 1, max_attempts int NOT NULL DEFAULT 1,
  due_at timestamptz, delay interval, chain_id uuid, type text NOT NULL, unique_key text,
  headers json, failure json, body json NOT NULL"""

JOB_INDEXES: Final = """
CREATE INDEX job_open ON job (type, seq) WHERE hold = 0;
CREATE INDEX job_due ON job (due_at) WHERE hold = 2;
CREATE INDEX job_chain ON job (chain_id, position) WHERE chain_id IS NOT NULL;
CREATE UNIQUE INDEX job_unique ON job (type, unique_key) WHERE unique_key IS NOT NULL;"""

MOVED: Final = (
    "id, seq, enqueued_at, started_at, worker_id, token, attempt, rescues, hold, cancel, has_run, cancel_rest, "
    "position, length, max_attempts, due_at, delay, chain_id, type, unique_key, headers, failure, body"
)
RETURNED: Final = (
    "j.id, j.seq, j.token, j.attempt, j.rescues, j.cancel, j.has_run, j.cancel_rest, j.position, j.length, "
    "j.max_attempts, j.enqueued_at, j.chain_id, j.type, j.headers, j.body"
)
RETURNED_TYPES: Final = (
    "id uuid, seq int8, token int8, attempt int, rescues int2, cancel bool, has_run bool, cancel_rest bool, "
    '"position" int, length int, max_attempts int, enqueued_at timestamptz, chain_id uuid, type text, '
    "headers json, body json"
)
SLOT: Final = "(extract(epoch FROM statement_timestamp())::bigint / 86400 % 16)::int2"


@dataclass(frozen=True)
class Variant:
    """What differs from the base: H with the mark, plain SQL, a plain `done` and one tally row per batch."""

    key: str
    what: str
    fillfactor: int = BASE_FILLFACTOR
    mark: bool = True
    non_hot: bool = False
    by_ctid: bool = False
    by_join: bool = False
    functions: bool = False
    function_set: str = ""
    serialised: bool = False
    worker_lock: bool = False
    ring: bool = False
    tally: bool = True
    fused: int = 0  # connections that settle and claim in one transaction
    late_checkpoint: bool = False
    plan_mode: str = "auto"
    raw: bool = False
    any_settle: bool = False  # settle by id = ANY and a hashed subplan instead of a join

    @property
    def id_oid(self) -> int:
        return INT8_OID if self.raw else UUID_OID

    def tables(self, *, autovacuum: bool = False) -> str:
        quiet = "autovacuum_enabled = false"
        lively = (
            "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, "
            "autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000, "
            "autovacuum_vacuum_cost_delay = 0"
        )
        options = lively if autovacuum else quiet
        drop = "DROP TABLE IF EXISTS job, done, tally, worker, raw_done CASCADE; DROP SEQUENCE IF EXISTS job_seq;"
        if self.raw:
            return f"""{drop}
            CREATE TABLE job (id bigint PRIMARY KEY, type text NOT NULL, claimed boolean NOT NULL DEFAULT false,
                              body json NOT NULL) WITH (fillfactor = {self.fillfactor}, {quiet});
            CREATE TABLE done (id bigint NOT NULL, type text NOT NULL, body json NOT NULL) WITH ({quiet});"""
        done = f"({JOB_COLUMNS.replace(chr(34), '')}, outcome smallint NOT NULL, finished_at timestamptz NOT NULL"
        if self.ring:
            done += ", slot smallint NOT NULL) PARTITION BY LIST (slot);" + "".join(
                f"CREATE TABLE done_{i} PARTITION OF done FOR VALUES IN ({i}) WITH ({quiet});" for i in range(16)
            )
        else:
            done += f") WITH ({quiet});"
        return f"""{drop}
        CREATE SEQUENCE job_seq;
        CREATE TABLE job ({JOB_COLUMNS}, PRIMARY KEY (id)) WITH (fillfactor = {self.fillfactor}, {options});
        {JOB_INDEXES}
        CREATE TABLE done {done}
        ALTER TABLE done ALTER seq DROP DEFAULT;
        CREATE INDEX done_id ON done (id);
        CREATE INDEX done_when ON done USING brin (finished_at);
        CREATE INDEX done_failed ON done (id) WHERE outcome <> 0;
        CREATE TABLE tally (types text[] NOT NULL, outcomes smallint[] NOT NULL, counts int[] NOT NULL) WITH ({quiet});
        CREATE TABLE worker (id uuid PRIMARY KEY, last_beat timestamptz NOT NULL DEFAULT clock_timestamp());
        INSERT INTO worker (id) VALUES ('{WORKER}');
        {self._functions() if self.functions else ""}"""

    def fill(self) -> str:
        if self.raw:
            return "INSERT INTO job (id, type, body) SELECT i, type, body FROM source ORDER BY i"
        return "INSERT INTO job (id, type, body) SELECT id, type, body FROM source ORDER BY i"

    def claim(self) -> str:
        if self.functions:
            return "SELECT * FROM claim_jobs($1, $2, $3, $5)"
        if self.raw:
            return """WITH c AS MATERIALIZED (SELECT id FROM job WHERE NOT claimed AND id > $5 ORDER BY id LIMIT $3
                                              FOR NO KEY UPDATE SKIP LOCKED)
                UPDATE job j SET claimed = true WHERE j.id = ANY (ARRAY(SELECT id FROM c))
                RETURNING j.id, j.id, 1::int8, j.type, j.body"""
        return self._claim({":type": "$1", ":worker": "$2", ":n": "$3", ":token": "$4", ":mark": "$5"})

    def settle(self) -> str:
        if self.functions:
            return "SELECT settle_jobs($1, $2, $3)"
        if self.raw:
            return """WITH d AS (DELETE FROM job WHERE id = ANY ($1) RETURNING id, type, body),
                           i AS (INSERT INTO done SELECT id, type, body FROM d)
                      SELECT array_agg(id) FROM d"""
        return self._settle({":ids": "$1", ":tokens": "$2", ":outcomes": "$3"})

    def _claim(self, names: dict[str, str]) -> str:
        row, of = ("ctid", "tid") if self.by_ctid else ("id", "uuid")
        lock = "" if self.serialised else "FOR NO KEY UPDATE SKIP LOCKED"
        head = f"""SELECT {row} FROM job WHERE hold = 0 AND type = :type AND token IS NULL
                   {"AND seq > :mark" if self.mark else ""} ORDER BY seq LIMIT :n {lock}"""
        changes = f"""token = :token, worker_id = :worker, started_at = statement_timestamp(),
                      attempt = j.attempt + 1{", hold = 3" if self.non_hot else ""}"""
        if self.by_join:
            sql = f"""WITH c AS MATERIALIZED ({head}) UPDATE job j SET {changes} FROM c WHERE j.id = c.id
                      RETURNING {RETURNED}"""
        elif self.serialised:
            sql = f"UPDATE job j SET {changes} WHERE j.{row} = ANY (ARRAY({head})::{of}[]) RETURNING {RETURNED}"
        else:
            sql = f"""WITH c AS MATERIALIZED ({head}) UPDATE job j SET {changes}
                      WHERE j.{row} = ANY (ARRAY(SELECT {row} FROM c)::{of}[]) RETURNING {RETURNED}"""
        return _named(sql, names)

    def _settle(self, names: dict[str, str], into: str = "") -> str:
        slot, slot_value = (", slot", f", {SLOT}") if self.ring else ("", "")
        tally = """, t AS (INSERT INTO tally (types, outcomes, counts)
              SELECT array_agg(type), array_agg(outcome), array_agg(n)
              FROM (SELECT type, outcome, count(*)::int AS n FROM d GROUP BY type, outcome) g HAVING count(*) > 0)"""
        if self.any_settle:
            rows = """d AS (DELETE FROM job j WHERE j.id = ANY (:ids) AND ((j.id, j.token) IN (
                            SELECT g.id, g.token FROM unnest(:ids, :tokens) AS g(id, token))) IS TRUE RETURNING j.*),
             e AS MATERIALIZED (SELECT d.*, f.outcome FROM d JOIN unnest(:ids, :outcomes) AS f(id, outcome)
                                ON f.id = d.id)"""
            tally = tally.replace("FROM d", "FROM e")
            return _named(
                f"""WITH {rows},
             i AS (INSERT INTO done ({MOVED}, outcome, finished_at)
                   SELECT {MOVED}, outcome, statement_timestamp() FROM e){tally}
             SELECT array_agg(id) {into} FROM e""",
                names,
            )
        sql = f"""WITH d AS (DELETE FROM job j USING unnest(:ids, :tokens, :outcomes) AS f(id, token, outcome)
                        WHERE j.id = f.id AND j.token = f.token RETURNING j.*, f.outcome),
             i AS (INSERT INTO done ({MOVED}, outcome, finished_at{slot})
                   SELECT {MOVED}, outcome, statement_timestamp(){slot_value} FROM d){tally if self.tally else ""}
             SELECT array_agg(id) {into} FROM d"""
        return _named(sql, names)

    def _functions(self) -> str:
        claim = self._claim(
            {":type": "p_type", ":worker": "p_worker", ":n": "p_n", ":token": "new_token", ":mark": "p_mark"}
        )
        settle = self._settle({":ids": "p_ids", ":tokens": "p_tokens", ":outcomes": "p_outcomes"}, "INTO acked")
        before = ""
        if self.serialised:
            before += "PERFORM pg_advisory_xact_lock(4711);"
        if self.worker_lock:
            before += """PERFORM FROM worker w WHERE w.id = p_worker FOR KEY SHARE;
                         IF NOT FOUND THEN RAISE EXCEPTION 'evicted'; END IF;"""
        return f"""
        CREATE OR REPLACE FUNCTION claim_jobs(p_type text, p_worker uuid, p_n int, p_mark int8)
        RETURNS TABLE ({RETURNED_TYPES}) LANGUAGE plpgsql {self.function_set} AS $fn$
        #variable_conflict use_column
        DECLARE new_token int8 := (random() * 9e18)::int8;
        BEGIN
          {before}
          RETURN QUERY {claim};
        END $fn$;
        CREATE OR REPLACE FUNCTION settle_jobs(p_ids uuid[], p_tokens int8[], p_outcomes int2[]) RETURNS uuid[]
        LANGUAGE plpgsql {self.function_set} AS $fn$
        #variable_conflict use_column
        DECLARE acked uuid[];
        BEGIN
          {settle};
          RETURN acked;
        END $fn$;"""


def _named(sql: str, names: dict[str, str]) -> str:
    for name in sorted(names, key=len, reverse=True):
        sql = sql.replace(name, names[name])
    return sql


SAFE_SET: Final = "SET enable_seqscan = off SET enable_nestloop = off"
CUSTOM_SET: Final = "SET plan_cache_mode = force_custom_plan"
VARIANTS: Final = (
    Variant("B70", "draft: claim changes a column of an index predicate, fillfactor 70", non_hot=True, fillfactor=70),
    Variant("B", "the same, fillfactor 50", non_hot=True),
    Variant("H100", "H, fillfactor 100", fillfactor=100),
    Variant("H85", "H, fillfactor 85", fillfactor=85),
    Variant("H70", "H, fillfactor 70", fillfactor=70),
    Variant("H", "H, fillfactor 50, mark, SQL, tally: base of all below"),
    Variant("H-L", "without the low-water mark", mark=False),
    Variant("A", "plpgsql, serialised by an advisory lock, no row locks", functions=True, serialised=True),
    Variant("T", "claim by ctid", by_ctid=True),
    Variant("P1", "settle + claim in one transaction, 1 connection", fused=1),
    Variant("P2", "settle + claim in one transaction, 2 connections", fused=2),
    Variant("F", "plpgsql functions", functions=True),
    Variant("F+W", "functions, worker row FOR KEY SHARE in claim", functions=True, worker_lock=True),
    Variant("R", "done: LIST ring of 16", ring=True),
    Variant("N", "no tally row", tally=False),
    Variant("raw", "ceiling: bare table and archive, fillfactor 50", raw=True),
)
EXTRAS: Final = (
    Variant("H40", "H, fillfactor 40", fillfactor=40),
    Variant("fpi", "H, checkpoint between fill and drain", late_checkpoint=True),
    Variant("H/gen", "H, force_generic_plan", plan_mode="force_generic_plan"),
    Variant("H/cus", "H, force_custom_plan", plan_mode="force_custom_plan"),
    Variant("F/cus", f"F {CUSTOM_SET}", functions=True, function_set=CUSTOM_SET),
    Variant("F/set", "F SET enable_seqscan = off", functions=True, function_set="SET enable_seqscan = off"),
    Variant("S", f"F {SAFE_SET}; settle by = ANY", functions=True, any_settle=True, function_set=SAFE_SET),
)
BASE: Final = Variant("H", "base")


# --- the client: binary, prepared, nothing converted -----------------------------------------------------------------


def array(oid: int, values: Sequence[bytes]) -> bytes:
    """The binary form of a one-dimensional array without NULLs."""
    head = struct.pack("!iiiii", 1, 0, oid, len(values), 1)
    width = struct.pack("!i", len(values[0])) if values and len({*map(len, values)}) == 1 else None
    if width:
        return head + width + width.join(values)
    return head + b"".join(struct.pack("!i", len(value)) + value for value in values)


class Session:
    """A connection with the statements of a variant."""

    def __init__(self, url: str, variant: Variant, settings: Sequence[str] = ()) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self.pg = self.connection.pgconn
        self.variant = variant
        self.statements = 0
        self.connection.execute(f"SET plan_cache_mode = {variant.plan_mode}".encode())
        for setting in settings:
            self.connection.execute(setting.encode())
        self.prepare("claim", variant.claim(), CLAIM_OIDS)
        # The numbers of uuid[], bigint[] and smallint[].
        self.prepare("settle", variant.settle(), (1016 if variant.raw else 2951, 1016, 1005))

    def prepare(self, name: str, sql: str, oids: Sequence[int]) -> None:
        check(self.pg.prepare(name.encode(), sql.encode(), oids), ExecStatus.COMMAND_OK)

    def execute(self, name: str, params: Sequence[bytes]) -> PGresult:
        self.statements += 1
        result = self.pg.exec_prepared(name.encode(), params, [1] * len(params), 1)
        return check(result, ExecStatus.TUPLES_OK)

    def claim(self, batch: int, mark: bytes) -> Claimed:
        return Claimed.of(self.execute("claim", claim_params(batch, mark)))

    def settle(self, claimed: Claimed) -> int:
        return acked(self.execute("settle", settle_params(self.variant, claimed)))

    def settle_and_claim(self, done: Claimed | None, batch: int, mark: bytes) -> tuple[int, Claimed]:
        """Two statements before one Sync: one implicit transaction and one round trip."""
        self.statements += 1
        self.pg.enter_pipeline_mode()
        if done:
            params = settle_params(self.variant, done)
            self.pg.send_query_prepared(b"settle", params, [1] * len(params), 1)
        params = claim_params(batch, mark)
        self.pg.send_query_prepared(b"claim", params, [1] * len(params), 1)
        self.pg.pipeline_sync()
        settled = acked(self._next()) if done else 0
        claimed = Claimed.of(self._next())
        assert self._result() is not None  # the Sync's own
        self.pg.exit_pipeline_mode()
        return settled, claimed

    def _next(self) -> PGresult:
        result = self._result()
        assert result is not None
        check(result, ExecStatus.TUPLES_OK)
        assert self._result() is None
        return result

    def _result(self) -> PGresult | None:
        while self.pg.flush() == 1:
            select.select([self.pg.socket], [self.pg.socket], [])
            self.pg.consume_input()
        while self.pg.is_busy():
            select.select([self.pg.socket], [], [])  # without the GIL, unlike get_result
            self.pg.consume_input()
        return self.pg.get_result()

    def cpu(self) -> float:
        """Seconds that the backend has computed (Linux)."""
        fields = Path(f"/proc/{self.pg.backend_pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wal(self) -> int:
        return int(self.one("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))

    def one(self, sql: str) -> Any:
        row = self.connection.execute(sql.encode()).fetchone()
        return row[0] if row else None

    def flush_statistics(self) -> None:
        if self.connection.info.server_version >= 150000:
            self.one("SELECT pg_stat_force_next_flush()")
            self.one("SELECT 1")
        else:
            time.sleep(1)

    def close(self) -> None:
        self.connection.close()


@dataclass(frozen=True)
class Claimed:
    ids: list[bytes]
    token: bytes
    highest: bytes

    @classmethod
    def of(cls, result: PGresult) -> Claimed:
        rows = range(result.ntuples)
        ids = [result.get_value(row, 0) or b"" for row in rows]
        # Big-endian and positive: the largest bytes are the largest number.
        highest = max((result.get_value(row, 1) or b"" for row in rows), default=b"")
        return cls(ids, (result.get_value(0, 2) or b"") if ids else b"", highest)


ZERO: Final = bytes(8)


def claim_params(batch: int, mark: bytes) -> tuple[bytes, ...]:
    token = struct.pack("!q", secrets.randbits(62))
    return TYPE.encode(), WORKER.bytes, struct.pack("!i", batch), token, mark


def settle_params(variant: Variant, claimed: Claimed) -> tuple[bytes, ...]:
    count = len(claimed.ids)
    tokens, outcomes = array(INT8_OID, [claimed.token] * count), array(INT2_OID, [bytes(2)] * count)
    return array(variant.id_oid, claimed.ids), tokens, outcomes


def acked(result: PGresult) -> int:
    value = result.get_value(0, 0)
    return int(struct.unpack_from("!i", value, 12)[0]) if value else 0


def check(result: PGresult, wanted: ExecStatus) -> PGresult:
    if result.status != wanted:
        raise RuntimeError(f"{ExecStatus(result.status).name}: {(result.error_message or b'').decode()}")
    return result


# --- a drain ---------------------------------------------------------------------------------------------------------


def drain_piped(claimer: Session, settler: Session, batch: int, limit: float = 1e9) -> int:
    """One connection claims, the other settles; how many were settled."""
    batches: queue.Queue[Claimed | None] = queue.Queue(2)
    end = time.monotonic() + limit

    def claim() -> None:
        mark = ZERO
        try:
            while time.monotonic() < end:
                claimed = claimer.claim(batch, mark)
                if claimed.ids:
                    mark = max(mark, claimed.highest)
                    batches.put(claimed)
                elif mark == ZERO:
                    break
                else:
                    mark = ZERO  # a last look from the head
        finally:
            batches.put(None)

    def settle() -> int:
        settled = 0
        try:
            while claimed := batches.get():
                settled += settler.settle(claimed)
        except RuntimeError:
            while batches.get():  # lets the claimer come to its end
                pass
            raise
        return settled

    with ThreadPoolExecutor(2) as threads:
        settling = threads.submit(settle)
        threads.submit(claim).result()
        return settling.result()


def drain_fused(session: Session, batch: int) -> int:
    settled, mark, held = 0, ZERO, None
    while True:
        count, claimed = session.settle_and_claim(held, batch, mark)
        settled, held = settled + count, claimed if claimed.ids else None
        if held:
            mark = max(mark, claimed.highest)
        elif mark == ZERO:
            return settled
        else:
            mark = ZERO


Figures = dict[str, float]


def prepare_tables(control: psycopg.Connection, variant: Variant) -> None:
    control.execute(variant.tables().encode())
    if not variant.late_checkpoint:
        control.execute("CHECKPOINT")
    control.execute(variant.fill().encode())
    control.execute("VACUUM ANALYZE job")
    if variant.late_checkpoint:
        control.execute("CHECKPOINT")


def measure(url: str, variant: Variant, batch: int, jobs: int) -> Figures:
    with psycopg.connect(url, autocommit=True) as control:
        prepare_tables(control, variant)
        sessions = [Session(url, variant) for _ in range(variant.fused or 2)]
        before, cpu = sessions[0].wal(), [session.cpu() for session in sessions]
        begin = time.perf_counter()
        if variant.fused:
            with ThreadPoolExecutor(variant.fused) as threads:
                settled = sum(threads.map(drain_fused, sessions, [batch] * variant.fused))
        else:
            settled = drain_piped(sessions[0], sessions[1], batch)
        seconds = time.perf_counter() - begin
        written = float(sessions[0].wal() - before)
        used = [session.cpu() - start for session, start in zip(sessions, cpu, strict=True)]
        assert settled == jobs, f"{variant.key}: {settled} of {jobs} were settled"
        for session in sessions:
            session.flush_statistics()
        hot = sessions[0].one("SELECT n_tup_hot_upd / nullif(n_tup_upd, 0)::float8 FROM pg_stat_user_tables "
                              "WHERE relname = 'job'")  # fmt: skip
        sizes = (
            "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relname ~ '^{}(_[0-9]+)?$'"
        )
        figures = {
            "jobs_per_second": jobs / seconds,
            "wal_bytes_per_job": written / jobs,
            "commits_per_job": sum(session.statements for session in sessions) / jobs,
            "hot_share": float(hot or 0),
            "cpu_claim_us": (used[0] if not variant.fused else sum(used)) / jobs * 1e6,
            "cpu_settle_us": (used[1] if not variant.fused else 0.0) / jobs * 1e6,
            "job_bytes": float(sessions[0].one(sizes.format("job"))),
            "done_bytes": float(sessions[0].one(sizes.format("done"))),
        }
        for session in sessions:
            session.close()
    return figures


def matrix(url: str, variants: Sequence[Variant], batches: Sequence[int], jobs: int, rounds: int) -> dict[str, Any]:
    runs: dict[tuple[str, int], list[Figures]] = {}
    measure(url, BASE, batches[-1], jobs)  # warms the files of the WAL, and the machine
    for _ in range(rounds):
        for batch in batches:
            for variant in variants:
                runs.setdefault((variant.key, batch), []).append(measure(url, variant, batch, jobs))
    result: dict[str, Any] = {}
    for variant in variants:
        entry: dict[str, Any] = {"what": variant.what}
        for batch in batches:
            each = runs[variant.key, batch]
            medians = {name: statistics.median(run[name] for run in each) for name in each[0]}
            entry[str(batch)] = medians | {"runs": [round(run["jobs_per_second"]) for run in each]}
        result[variant.key] = entry
    return result


def print_matrix(result: dict[str, Any], batches: Sequence[int]) -> None:
    last = str(batches[-1])
    columns = " | ".join(f"jobs/s, {batch}" for batch in batches)
    cpu = " / ".join(map(str, batches))
    print(f"\n| | variant | {columns} | backend µs/job, {cpu} | claim + settle µs, {last} | WAL B/job, {cpu} "
          f"| commits/job, {last} | HOT | job, done MB after |")  # fmt: skip
    print("|---|---|" + "---:|" * (len(batches) + 6))
    for key, entry in result.items():
        each = [entry[str(batch)] for batch in batches]
        end = each[-1]
        speeds = " | ".join(f"{run['jobs_per_second']:,.0f}" for run in each)
        cpus = " / ".join(f"{run['cpu_claim_us'] + run['cpu_settle_us']:.1f}" for run in each)
        wals = " / ".join(f"{run['wal_bytes_per_job']:.0f}" for run in each)
        print(f"| {key} | {entry['what']} | {speeds} | {cpus} | {end['cpu_claim_us']:.1f} + {end['cpu_settle_us']:.1f} "
              f"| {wals} | {end['commits_per_job']:.4f} | {end['hot_share']:.0%} "
              f"| {end['job_bytes'] / 1e6:.0f}, {end['done_bytes'] / 1e6:.0f} |")  # fmt: skip
    print(flush=True)


# --- raw inserts -----------------------------------------------------------------------------------------------------

INSERT: Final = """INSERT INTO job (id, hold, position, length, max_attempts, type, body)
SELECT u.id, u.hold, u.position, u.length, u.max_attempts, u.type, u.body::json
FROM unnest($1::uuid[], $2::int2[], $3::int4[], $4::int4[], $5::int4[], $6::text[], $7::text[])
     AS u(id, hold, position, length, max_attempts, type, body)"""
INSERT_OIDS: Final = (2951, 1005, 1007, 1007, 1007, 1009, 1009)


def insert_params(ids: Sequence[bytes]) -> tuple[bytes, ...]:
    n = len(ids)
    zero, one = struct.pack("!i", 0), struct.pack("!i", 1)
    return (
        array(UUID_OID, ids),
        array(INT2_OID, [bytes(2)] * n),
        array(INT4_OID, [zero] * n),
        array(INT4_OID, [one] * n),
        array(INT4_OID, [one] * n),
        array(TEXT_OID, [TYPE.encode()] * n),
        array(TEXT_OID, [BODY.encode()] * n),
    )


def inserts(url: str, jobs: int, rounds: int) -> dict[str, Any]:
    """INSERT … SELECT unnest by 1000, and one binary COPY, into the real table with all its indexes."""
    runs: dict[str, list[Figures]] = {}
    for _ in range(rounds):
        for kind in ("INSERT unnest by 1000", "COPY binary, one"):
            with psycopg.connect(url, autocommit=True) as control:
                control.execute(BASE.tables().encode())
                control.execute("CHECKPOINT")
                session = Session(url, BASE)
                act = _insert(session, jobs) if kind.startswith("INSERT") else _copy(session, control, jobs)
                before, cpu, begin = session.wal(), session.cpu(), time.perf_counter()
                act()
                seconds = time.perf_counter() - begin
                run = {
                    "jobs_per_second": jobs / seconds,
                    "wal_bytes_per_job": float(session.wal() - before) / jobs,
                    "cpu_us": (session.cpu() - cpu) / jobs * 1e6,
                }
                assert session.one("SELECT count(*) FROM job") == jobs
                runs.setdefault(kind, []).append(run)
                session.close()
    return {kind: {name: statistics.median(run[name] for run in each) for name in each[0]}
            for kind, each in runs.items()}  # fmt: skip


def _insert(session: Session, jobs: int) -> Callable[[], None]:
    session.prepare("insert", INSERT, INSERT_OIDS)
    ids = [time_ordered(i) for i in range(jobs)]
    batches = [insert_params(ids[i : i + 1000]) for i in range(0, jobs, 1000)]

    def act() -> None:
        for params in batches:
            result = session.pg.exec_prepared(b"insert", params, [1] * len(params), 1)
            check(result, ExecStatus.COMMAND_OK)

    return act


def _copy(session: Session, control: psycopg.Connection, jobs: int) -> Callable[[], None]:
    rows = f"SELECT id, 0::int2, 0, 1, 1, type, body FROM source ORDER BY i LIMIT {jobs}"
    with control.cursor() as cursor, cursor.copy(f"COPY ({rows}) TO STDOUT (FORMAT binary)".encode()) as out:
        data = b"".join(out)

    def act() -> None:
        into = b"COPY job (id, hold, position, length, max_attempts, type, body) FROM STDIN (FORMAT binary)"
        with session.connection.cursor() as cursor, cursor.copy(into) as copy:
            for start in range(0, len(data), 1 << 18):
                copy.write(data[start : start + (1 << 18)])

    return act


def time_ordered(i: int) -> bytes:
    """A UUID of version 7 whose order is that of i."""
    random = os.urandom(8)
    return struct.pack("!Q", 0x019AB000_0000 + (i >> 12))[2:] + struct.pack("!H", 0x7000 | i & 0xFFF) + random


# --- plans ---------------------------------------------------------------------------------------------------


def plan_of(session: Session, name: str, batch: int) -> str:
    """The scans and joins of the plan that the session would use now."""
    if name == "claim":
        values = f"'{TYPE}', '{WORKER}', {batch}, 1, 0"
    else:
        ids = "','".join(str(uuid.UUID(bytes=time_ordered(i))) for i in range(batch))
        values = f"ARRAY['{ids}']::uuid[], array_fill(1::int8, ARRAY[{batch}]), array_fill(0::int2, ARRAY[{batch}])"
    rows = session.connection.execute(f"EXPLAIN (COSTS OFF) EXECUTE {name}({values})".encode()).fetchall()
    words = ("Scan", "Join", "Nested", "Sort")
    lines = [row[0].strip().removeprefix("-> ").strip() for row in rows]
    return "; ".join(line for line in lines if any(word in line for word in words) and ":" not in line)


COLD: Final[Sequence[tuple[str, Variant, bool]]] = (
    ("plain SQL, never analysed", BASE, False),
    ("plain SQL, vacuumed while empty", BASE, True),
    ("plain SQL, force_custom_plan, vacuumed while empty", Variant("", "", plan_mode="force_custom_plan"), True),
    ("functions, never analysed", Variant("", "", functions=True), False),
    ("functions, vacuumed while empty", Variant("", "", functions=True), True),
    ("F SET enable_seqscan = off, never analysed",
     Variant("", "", functions=True, function_set="SET enable_seqscan = off"), False),
    ("F SET enable_seqscan = off, vacuumed while empty",
     Variant("", "", functions=True, function_set="SET enable_seqscan = off"), True),
    (f"F {CUSTOM_SET}, never analysed", Variant("", "", functions=True, function_set=CUSTOM_SET), False),
    (f"F {CUSTOM_SET}, vacuumed while empty", Variant("", "", functions=True, function_set=CUSTOM_SET), True),
    ("S, never analysed", Variant("", "", functions=True, any_settle=True, function_set=SAFE_SET), False),
    ("S, vacuumed while empty", Variant("", "", functions=True, any_settle=True, function_set=SAFE_SET), True),
)  # fmt: skip


def cold_starts(url: str, seconds: float = 3) -> dict[str, Any]:
    """Statements prepared and run on an empty table; then it is filled without ANALYZE and drained by 1000.

    A statement that takes longer than 5 s ends its case: fewer than 200 jobs/s.
    """
    result: dict[str, Any] = {}
    for name, variant, vacuumed in COLD:
        with psycopg.connect(url, autocommit=True) as control:
            control.execute(variant.tables().encode())
            if vacuumed:
                control.execute("VACUUM ANALYZE job")
            control.execute("CHECKPOINT")
            sessions = [Session(url, variant, ("SET statement_timeout = '5s'",)) for _ in range(2)]
            for _ in range(8):  # the sixth execution may take the generic plan
                sessions[0].claim(1000, ZERO)
                sessions[1].settle(Claimed([time_ordered(i) for i in range(1000)], bytes(8), ZERO))
            control.execute(variant.fill().encode())
            entry: dict[str, Any] = {}
            if not variant.functions:
                entry |= {"claim": plan_of(sessions[0], "claim", 1000), "settle": plan_of(sessions[1], "settle", 1000)}
            begin = time.perf_counter()
            try:
                settled = drain_piped(sessions[0], sessions[1], 1000, seconds)
                entry["jobs_per_second"] = settled / (time.perf_counter() - begin)
            except RuntimeError:  # the timeout
                entry["jobs_per_second"] = None
            result[name] = entry
            for session in sessions:
                session.close()
    return result


def filled_plans(url: str) -> dict[str, Any]:
    """The plans on a full, analysed table, custom and generic."""
    result: dict[str, Any] = {}
    with psycopg.connect(url, autocommit=True) as control:
        prepare_tables(control, BASE)
        for mode in ("force_custom_plan", "force_generic_plan"):
            for variant in (BASE, Variant("T", "", by_ctid=True), Variant("J", "", by_join=True)):
                session = Session(url, variant, (f"SET plan_cache_mode = {mode}",))
                result[f"{variant.key} {mode} claim"] = plan_of(session, "claim", 1000)
                if variant is BASE:
                    result[f"{variant.key} {mode} settle"] = plan_of(session, "settle", 1000)
                session.close()
    return result


# --- under a held snapshot -------------------------------------------------------------------------------------------


class Held:
    """A producer keeps about 5,000 jobs waiting, by 1000; claim and settle by 500."""

    def __init__(self, url: str, *, mark: bool, seconds: float, window: float = 5) -> None:
        self.mark, self.seconds, self.window = mark, seconds, window
        with psycopg.connect(url, autocommit=True) as control:
            control.execute(BASE.tables(autovacuum=True).encode())
            control.execute("CHECKPOINT")
        self.claimer, self.settler, self.producer = [Session(url, BASE) for _ in range(3)]
        self.producer.prepare("insert", INSERT, INSERT_OIDS)
        self.batches: queue.Queue[Claimed | None] = queue.Queue(2)
        self.produced = self.claimed = 0
        self.settled = [0] * int(seconds // window)
        self.claims: list[list[float]] = [[] for _ in self.settled]
        self.scans: list[float] = []

    def run(self) -> dict[str, Any]:
        self.begin = time.perf_counter()
        self.end = self.begin + self.seconds
        with ThreadPoolExecutor(3) as threads:
            for running in [threads.submit(work) for work in (self.produce, self.claim, self.settle)]:
                running.result()
        for session in (self.claimer, self.settler, self.producer):
            session.close()
        return {
            "jobs_per_second": [round(count / self.window) for count in self.settled],
            "claim_ms": [round(1000 * statistics.median(each), 2) if each else None for each in self.claims],
            "full_scans": len(self.scans),
            "last_full_scan_ms": round(1000 * self.scans[-1], 2),
        }

    def produce(self) -> None:
        while time.perf_counter() < self.end:
            if self.produced - self.claimed > 5000:
                time.sleep(0.002)
                continue
            params = insert_params([time_ordered(self.produced + i) for i in range(1000)])
            result = self.producer.pg.exec_prepared(b"insert", params, [1] * len(params), 1)
            check(result, ExecStatus.COMMAND_OK)
            self.produced += 1000

    def claim(self) -> None:
        at, last_end, last_scan = ZERO, self.begin, 0.0
        while (now := time.perf_counter()) < self.end:
            full = not self.mark or last_scan < 0.05 * (now - last_end)
            claimed = self.claimer.claim(500, ZERO if full else at)
            after = time.perf_counter()
            self.claims[self._window(now)].append(after - now)
            if full:
                last_end, last_scan = after, after - now
                self.scans.append(last_scan)
            if claimed.ids:
                at = max(at, claimed.highest)
                self.claimed += len(claimed.ids)
                self.batches.put(claimed)
            else:
                time.sleep(0.002)
        self.batches.put(None)

    def settle(self) -> None:
        while claimed := self.batches.get():
            self.settled[self._window(time.perf_counter())] += self.settler.settle(claimed)

    def _window(self, now: float) -> int:
        return min(int((now - self.begin) // self.window), len(self.settled) - 1)


def held_snapshot(url: str, *, held: bool, mark: bool, seconds: float) -> dict[str, Any]:
    race = Held(url, mark=mark, seconds=seconds)
    with psycopg.connect(url) as holder:
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        if held:
            holder.execute("SELECT count(*) FROM job")  # takes the snapshot, and keeps it
        return race.run()


# --- the command -----------------------------------------------------------------------------------------------------


def configure(server: Server) -> None:
    settings = {
        "max_wal_size": "8GB",
        "min_wal_size": "2GB",
        "checkpoint_timeout": "30min",
        "shared_buffers": "512MB",
        "autovacuum_naptime": "10s",
    }
    if server.source == "url":
        return
    with psycopg.connect(server.url, autocommit=True) as control:
        for name, value in settings.items():
            control.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
    server.restart()


def make_source(url: str, jobs: int) -> None:
    with psycopg.connect(url, autocommit=True) as control, control.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS source; CREATE TABLE source (i bigint, id uuid, type text, body json)")
        with cursor.copy("COPY source FROM STDIN") as copy:
            for i in range(jobs):
                copy.write_row((i + 1, uuid.UUID(bytes=time_ordered(i)), TYPE, BODY))
        cursor.execute("VACUUM ANALYZE source")
        for name in ("fsync", "synchronous_commit", "shared_buffers", "max_wal_size"):
            row = cursor.execute(f"SHOW {name}".encode()).fetchone()
            print(name, row and row[0], end="; ")
        print(flush=True)


def drains(url: str, options: argparse.Namespace) -> Any:
    chosen = [v for v in (*VARIANTS, *EXTRAS) if v.key in options.only] if options.only else VARIANTS
    result = matrix(url, chosen, options.batches, options.jobs, options.rounds)
    print_matrix(result, options.batches)
    return result


def extras(url: str, options: argparse.Namespace) -> Any:
    batches = options.batches[-1:]
    result = matrix(url, (BASE, *EXTRAS), batches, options.jobs, options.rounds)
    print_matrix(result, batches)
    return result


def raw_inserts(url: str, options: argparse.Namespace) -> Any:
    result = inserts(url, options.jobs, options.rounds)
    print("| insert | jobs/s | backend µs/job | WAL B/job |\n|---|---:|---:|---:|")
    for name, entry in result.items():
        wal, cpu = entry["wal_bytes_per_job"], entry["cpu_us"]
        print(f"| {name} | {entry['jobs_per_second']:,.0f} | {cpu:.1f} | {wal:.0f} |")
    return result


def plans(url: str, options: argparse.Namespace) -> Any:
    filled = filled_plans(url)
    for name, plan in filled.items():
        print(f"- {name}: {plan}")
    cold = cold_starts(url)
    print("\n| prepared while empty | jobs/s by 1000 | claim | settle |\n|---|---:|---|---|")
    for name, entry in cold.items():
        speed = entry["jobs_per_second"]
        shown = f"{speed:,.0f}" if speed else "< 200"
        print(f"| {name} | {shown} | {entry.get('claim', '')} | {entry.get('settle', '')} |")
    return {"filled": filled, "cold": cold}


def snapshots(url: str, options: argparse.Namespace) -> Any:
    print("| held snapshot | mark | jobs/s per 5 s | claim ms, median per 5 s | full scans | last, ms |")
    print("|---|---|---|---|---:|---:|")
    result: dict[str, Any] = {}
    for held, mark, seconds in ((True, False, 40), (True, True, 40), (False, False, 20), (False, True, 20)):
        entry = held_snapshot(url, held=held, mark=mark, seconds=seconds)
        result[f"held={held} mark={mark}"] = entry
        speeds, claims = (" ".join(map(str, entry[name])) for name in ("jobs_per_second", "claim_ms"))
        scans = f"{entry['full_scans']} | {entry['last_full_scan_ms']}"
        print(f"| {held} | {mark} | {speeds} | {claims} | {scans} |", flush=True)
    return result


PARTS: Final[dict[str, Callable[[str, argparse.Namespace], Any]]] = {
    "extra": extras,
    "raw": raw_inserts,
    "plans": plans,
    "drain": drains,
    "held": snapshots,
}


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--batches", type=_numbers, default=[100, 500, 1000])
    parser.add_argument("--only", type=_words, default=[], help="variants of the drain, by their keys")
    parser.add_argument("--parts", type=_words, default=[*PARTS])
    parser.add_argument("--json", type=Path, default=RESULT)
    options = parser.parse_args()
    begin = time.monotonic()
    with postgres(durable=True) as server:
        configure(server)
        result: dict[str, Any] = {
            "date": "2026-11-24",
            "server": f"{server.version} ({server.source})",
            "machine": f"{os.cpu_count()} cores, {platform.platform()}",
            "load": os.getloadavg(),
            "jobs": options.jobs,
            "rounds": options.rounds,
            "base_fillfactor": BASE_FILLFACTOR,
        }
        print(f"{server.version} ({server.source}), {result['machine']}, load {os.getloadavg()}", flush=True)
        make_source(server.url, options.jobs)
        for part in options.parts:
            result[part] = PARTS[part](server.url, options)
            result["seconds"] = round(time.monotonic() - begin)
            print(f"({part}: until {result['seconds']} s, load {os.getloadavg()[0]:.1f})\n", flush=True)
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['seconds']} s; written to {options.json}")


if __name__ == "__main__":
    main()
