-- breaking: no
-- Where the jobs are. `dejq.` stands for the schema that was asked for. docs/postgres.md reads these tables to an operator.

CREATE SEQUENCE dejq.place;

-- One row for each start of a worker; a beat updates this row and nothing else, whatever the number of jobs.
CREATE TABLE dejq.worker (
    id uuid NOT NULL PRIMARY KEY,
    name text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_beat timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease interval NOT NULL,
    -- It waits for a notification until then, and whoever enqueues sends one.
    listens_until timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Jobs that are not final. A final one leaves in the statement that ends it, so this table is as large as the backlog.
CREATE TABLE dejq.job (
    id uuid NOT NULL PRIMARY KEY,
    -- Its place in line, by the server's order: no client's clock has a say.
    seq bigint NOT NULL DEFAULT nextval('dejq.place'),
    enqueued_at timestamptz NOT NULL DEFAULT statement_timestamp(),
    -- What a claim changes stands together and in no index: the update stays in its page and is logged as these bytes.
    token bigint,
    started_at timestamptz,
    worker_id uuid,
    attempt integer NOT NULL DEFAULT 0,
    -- 0 nothing holds it up (ready; running, if it has a token), 1 blocked by the job before it, 2 scheduled for due_at.
    hold smallint NOT NULL DEFAULT 0,
    rescues smallint NOT NULL DEFAULT 0,
    cancel boolean NOT NULL DEFAULT false,
    -- A worker had it in an attempt that `attempt` no longer counts.
    has_run boolean NOT NULL DEFAULT false,
    cancel_rest boolean NOT NULL DEFAULT false,
    max_attempts integer,
    -- NULL for a job that is alone.
    chain_id uuid,
    position integer,
    length integer,
    due_at timestamptz,
    delay interval,
    type text NOT NULL,
    unique_key text,
    headers json,
    failure json,
    -- json keeps the text as it is, `\u0000` included, which jsonb refuses.
    body json NOT NULL
) WITH (
    -- Room in each page for what claims write: with 70, twice as many bytes are logged (docs/postgres.md).
    fillfactor = 50,
    -- The table turns over many times an hour: fractions of its size mean nothing here.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX job_open ON dejq.job (type, seq) WHERE hold = 0;
CREATE INDEX job_due ON dejq.job (due_at) WHERE hold = 2;
CREATE INDEX job_chain ON dejq.job (chain_id, position) WHERE chain_id IS NOT NULL;
CREATE UNIQUE INDEX job_unique ON dejq.job (type, unique_key) WHERE unique_key IS NOT NULL;

-- Final jobs: appended to, never updated. A ring of 16 days, so that old ones go by TRUNCATE.
CREATE TABLE dejq.done (
    id uuid NOT NULL,
    enqueued_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    token bigint,
    started_at timestamptz,
    attempt integer NOT NULL,
    slot smallint NOT NULL,
    -- 0 finished, 1 failed, 2 cancelled.
    outcome smallint NOT NULL,
    rescues smallint NOT NULL,
    has_run boolean NOT NULL,
    cancel_rest boolean NOT NULL,
    max_attempts integer,
    chain_id uuid,
    position integer,
    length integer,
    -- The job before it in its chain whose end cancelled it.
    cancelled_with uuid,
    delay interval,
    type text NOT NULL,
    unique_key text,
    headers json,
    failure json,
    body json NOT NULL
) PARTITION BY LIST (slot);
DO $$
BEGIN
    FOR slot IN 0..15 LOOP
        EXECUTE format('CREATE TABLE dejq.done_%s PARTITION OF dejq.done FOR VALUES IN (%s)', to_char(slot, 'FM00'), slot);
    END LOOP;
END $$;
CREATE INDEX done_id ON dejq.done (id);
CREATE INDEX done_chain ON dejq.done (chain_id, position) WHERE chain_id IS NOT NULL;
CREATE INDEX done_bad ON dejq.done (id) WHERE outcome <> 0;
CREATE INDEX done_when ON dejq.done USING brin (finished_at) WITH (pages_per_range = 32);

-- How many jobs ended how, since the schema was made: sums, and what was not added to them yet (one row per batch, so
-- that no two workers wait for each other).
CREATE TABLE dejq.total (
    type text NOT NULL,
    outcome smallint NOT NULL,
    jobs bigint NOT NULL,
    PRIMARY KEY (type, outcome)
) WITH (fillfactor = 70);
CREATE TABLE dejq.tally (
    types text[] NOT NULL,
    outcomes smallint[] NOT NULL,
    jobs integer[] NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- All jobs, in the words of the documentation.
CREATE VIEW dejq.jobs AS
SELECT id, type,
    CASE WHEN token IS NOT NULL THEN 'running' WHEN hold = 1 THEN 'blocked' WHEN hold = 2 AND due_at > statement_timestamp() THEN 'scheduled'
        ELSE 'ready' END AS state,
    attempt, max_attempts, rescues::integer AS rescues, enqueued_at,
    CASE WHEN hold = 2 AND due_at > statement_timestamp() THEN due_at END AS due_at, started_at,
    CASE WHEN token IS NOT NULL THEN greatest(started_at, (SELECT w.last_beat FROM dejq.worker w WHERE w.id = worker_id)) END AS last_beat_at,
    NULL::timestamptz AS finished_at, worker_id, chain_id, position, length, unique_key, headers, failure, body
FROM dejq.job
UNION ALL
SELECT id, type, CASE outcome WHEN 0 THEN 'finished' WHEN 1 THEN 'failed' ELSE 'cancelled' END,
    attempt, max_attempts, rescues::integer, enqueued_at, NULL, started_at, NULL, finished_at,
    NULL, chain_id, position, length, unique_key, headers, failure, body
FROM dejq.done;
