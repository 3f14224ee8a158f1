-- breaking: no
-- Every change of a job's state, each one function: the same for the worker, for operators, and for any driver. Inside a
-- function each statement sees what was committed before it began, so what has to be locked first is locked first.
-- Chains are locked in the order of their jobs, the active one first; that is what keeps a chain from being passed on
-- twice, or never.
--
-- Plans are pinned, because one that was made while the table was empty stays cached when it has grown: jobs are found by an
-- array of ids or places in the table, which only an index or the place itself can answer, and what would walk through the
-- table instead is made expensive (`enable_seqscan`, `enable_nestloop`), which must not make the server compile anything (`jit`).

-- ---- enqueue ------------------------------------------------------------------------------------------------------

-- RFC 9562: 48 bits of milliseconds, the version, 12 bits of their fraction, the variant, 62 random bits.
CREATE FUNCTION dejq.uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT encode(substring(int8send(us / 1000) FROM 3 FOR 6)
        || int2send((28672 + (us % 1000) * 4096 / 1000)::int2)
        || substring(uuid_send(gen_random_uuid()) FROM 9 FOR 8), 'hex')::uuid
    FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us) t
$$;

-- Tells workers that wait about jobs of these types; without one that waits it does nothing. `alone`: nothing else is in
-- this transaction, so that its commit, under which Postgres holds a lock for all notifications, need not wait for the disk.
CREATE FUNCTION dejq.wake(types text[], alone boolean DEFAULT false) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    job_type text;
BEGIN
    IF NOT EXISTS (SELECT FROM dejq.worker w WHERE w.listens_until > clock_timestamp()) THEN
        RETURN;
    END IF;
    IF alone THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    IF cardinality(types) > 20 THEN
        PERFORM pg_notify('dejq:schema', '*');
        RETURN;
    END IF;
    FOREACH job_type IN ARRAY types LOOP
        PERFORM pg_notify('dejq:schema', job_type);
    END LOOP;
END $$;

-- Stores jobs, in order; returns their ids in that order, or for a unique job the id of the one that holds its key. Jobs
-- whose id is known already are left alone, so that a call may be repeated. `jobs` is an array of objects: type, body and, as
-- needed, id, delay (seconds), max_attempts, unique, headers, cancel_rest, chain (id), position, length. Body and headers are
-- JSON within a text, because Postgres reads no object that has a `\u0000` anywhere.
CREATE FUNCTION dejq.enqueue_jobs(jobs json) RETURNS uuid[] LANGUAGE plpgsql
SET enable_seqscan = off SET enable_nestloop = off SET jit = off AS $$
DECLARE
    new_ids uuid[];
    bad text;
    open_types text[];
    missing boolean[];
BEGIN
    -- What no worker could read, or what would never run, is refused here: nobody else would see it before it is claimed.
    SELECT c.why INTO bad FROM (
        SELECT e.n, CASE
            WHEN coalesce(j->>'type', '') !~ '^[A-Za-z0-9_.:/-]{1,128}$'
                THEN left(quote_nullable(j->>'type'), 60) || ' is not a job type; a type is 1 to 128 of A-Z a-z 0-9 _ . : / -'
            WHEN (j->>'max_attempts')::integer < 1 THEN 'max_attempts must be at least 1; leave it out for what the worker says'
            WHEN (j->>'delay')::float8 < 0 THEN 'delay must not be negative'
            WHEN octet_length(j->>'unique') > 256 THEN '"unique" must have at most 256 bytes; use a hash of it'
            WHEN j->>'unique' IS NOT NULL AND (j->>'length')::integer > 1
                THEN '"unique" works for single jobs only: a chain is stored whole or not at all'
            WHEN json_typeof((j->>'headers')::json) <> 'object' THEN 'headers must be an object of texts'
            -- No key with a NUL can be looked at here.
            WHEN strpos(j->>'headers', '\u0000') = 0 THEN (
                SELECT 'headers must be an object of texts' FROM json_each((j->>'headers')::json) h
                WHERE json_typeof(h.value) <> 'string' LIMIT 1)
        END AS why
        FROM json_array_elements(jobs) WITH ORDINALITY e(j, n)) c
    WHERE c.why IS NOT NULL ORDER BY c.n LIMIT 1;
    IF bad IS NOT NULL THEN
        RAISE EXCEPTION 'dejq: %', bad USING ERRCODE = '22023';
    END IF;
    new_ids := ARRAY(
        SELECT coalesce((j->>'id')::uuid, dejq.uuid7()) FROM json_array_elements(jobs) WITH ORDINALITY e(j, n) ORDER BY n);
    LOOP
        WITH new AS MATERIALIZED (
            SELECT e.n::integer AS n, new_ids[e.n] AS id, (j->>'chain')::uuid AS chain_id, j->>'type' AS type, (j->>'body')::json AS body,
                (j->>'position')::integer AS position, (j->>'length')::integer AS length,
                make_interval(secs => nullif((j->>'delay')::float8, 0)) AS delay, (j->>'max_attempts')::integer AS max_attempts,
                j->>'unique' AS unique_key, (j->>'headers')::json AS headers, coalesce((j->>'cancel_rest')::boolean, false) AS cancel_rest
            FROM json_array_elements(jobs) WITH ORDINALITY e(j, n)),
        -- A chain of which a job is known was stored by an earlier call, whole; what is missing of it was deleted since.
        known AS MATERIALIZED (
            SELECT coalesce(new.chain_id, new.id) AS id FROM new WHERE new.id IN (
                SELECT j.id FROM dejq.job j WHERE j.id = ANY (new_ids) UNION ALL SELECT d.id FROM dejq.done d WHERE d.id = ANY (new_ids))),
        stored AS (
            INSERT INTO dejq.job
                (id, chain_id, position, length, type, body, delay, hold, due_at, max_attempts, unique_key, headers, cancel_rest)
            SELECT new.id, new.chain_id, new.position, new.length, new.type, new.body, new.delay,
                CASE WHEN new.position > 1 THEN 1 WHEN new.delay IS NOT NULL THEN 2 ELSE 0 END,
                CASE WHEN new.position IS NULL OR new.position = 1 THEN statement_timestamp() + new.delay END,
                new.max_attempts, new.unique_key, new.headers, new.cancel_rest
            FROM new WHERE coalesce(new.chain_id, new.id) NOT IN (SELECT known.id FROM known) ORDER BY new.n
            ON CONFLICT DO NOTHING
            RETURNING job.id, job.type, job.hold)
        SELECT coalesce(array_agg(DISTINCT stored.type) FILTER (WHERE stored.hold IN (0, 2)), '{}'),
            array_agg(stored.id IS NULL AND new.unique_key IS NOT NULL AND new.id NOT IN (SELECT known.id FROM known) ORDER BY new.n)
        INTO open_types, missing FROM new LEFT JOIN stored ON stored.id = new.id;
        IF cardinality(open_types) > 0 THEN
            PERFORM dejq.wake(open_types);
        END IF;
        EXIT WHEN true = ANY (missing) IS NOT TRUE;
        -- Their keys are held. A holder that has ended meanwhile makes room: once more, then.
        SELECT array_agg(CASE WHEN missing[e.n] THEN holder.id ELSE new_ids[e.n] END ORDER BY e.n) INTO new_ids
        FROM json_array_elements(jobs) WITH ORDINALITY e(j, n)
        LEFT JOIN LATERAL (
            SELECT k.id FROM dejq.job k
            WHERE missing[e.n] AND k.type = e.j->>'type' AND k.unique_key = e.j->>'unique' OFFSET 0) holder ON true;
        EXIT WHEN array_position(new_ids, NULL) IS NULL;
        new_ids := ARRAY(
            SELECT coalesce(new_ids[e.n], (e.j->>'id')::uuid, dejq.uuid7())
            FROM json_array_elements(jobs) WITH ORDINALITY e(j, n) ORDER BY e.n);
    END LOOP;
    RETURN new_ids;
END $$;

-- Stores one job: for any driver, in the caller's own transaction, e.g. SELECT dejq.enqueue('email', '{"to": "a@b.c"}').
CREATE FUNCTION dejq.enqueue(type text, body json DEFAULT 'null', delay interval DEFAULT NULL, max_attempts integer DEFAULT NULL,
    "unique" text DEFAULT NULL, headers json DEFAULT NULL) RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT (dejq.enqueue_jobs(
        json_build_array(json_build_object('type', $1, 'body', coalesce($2, 'null')::text, 'delay', extract(epoch FROM $3),
            'max_attempts', $4, 'unique', $5, 'headers', $6::text))))[1]
$$;

-- Stores a chain: each job starts only after the one before it is final. `on_failure` is 'continue' or 'cancel'.
CREATE FUNCTION dejq.enqueue_chain(types text[], bodies json[], on_failure text DEFAULT 'continue') RETURNS uuid[]
LANGUAGE plpgsql AS $$
DECLARE
    ids uuid[];
BEGIN
    IF cardinality(types) IS DISTINCT FROM cardinality(bodies) OR coalesce(cardinality(types), 0) = 0 THEN
        RAISE EXCEPTION 'dejq: types and bodies must be equally many, and at least one' USING ERRCODE = '22023';
    END IF;
    IF on_failure IS NULL OR on_failure NOT IN ('continue', 'cancel') THEN
        RAISE EXCEPTION 'dejq: on_failure must be ''continue'' or ''cancel'', not %', quote_nullable(on_failure)
            USING ERRCODE = '22023';
    END IF;
    ids := ARRAY(SELECT dejq.uuid7() FROM generate_series(1, cardinality(types)));
    IF cardinality(types) = 1 THEN
        RETURN dejq.enqueue_jobs(json_build_array(json_build_object('id', ids[1], 'type', types[1], 'body', coalesce(bodies[1], 'null')::text)));
    END IF;
    RETURN dejq.enqueue_jobs((
        SELECT json_agg(json_build_object('id', ids[n], 'chain', ids[1], 'position', n, 'length', cardinality(types),
            'type', types[n], 'body', coalesce(bodies[n], 'null')::text, 'cancel_rest', on_failure = 'cancel') ORDER BY n)
        FROM generate_series(1, cardinality(types)) n));
END $$;

-- ---- what workers do ----------------------------------------------------------------------------------------------

-- ready → running: at most `most` jobs of these types, the oldest first, all with this token. `after` has, per type, a place
-- before which nothing ready is expected (0: none): entries of jobs long gone are not read again and again. `quota`: how many
-- places per type to look at. Jobs that have become due join the line first. When there is nothing, one row without an id
-- says when something will be due (seconds), and whether this worker is now known as waiting for the first time in a while.
CREATE FUNCTION dejq.claim(worker uuid, name text, lease float8, token bigint, types text[], after bigint[], quota integer[],
    most integer, listen_for float8 DEFAULT 0)
RETURNS TABLE (id uuid, type text, body json, headers json, attempt integer, max_attempts integer, enqueued_at timestamptz,
    chain_id uuid, "position" integer, length integer, seq bigint, due_in float8, is_new boolean)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    counts integer[] := quota;
    found_jobs integer;
    newly boolean := false;
BEGIN
    -- A worker that is taken for dead at this moment takes nothing.
    PERFORM FROM dejq.worker w WHERE w.id = claim.worker FOR KEY SHARE;
    IF NOT FOUND THEN
        INSERT INTO dejq.worker AS w (id, name, lease) VALUES (claim.worker, claim.name, make_interval(secs => claim.lease))
        ON CONFLICT ON CONSTRAINT worker_pkey DO UPDATE SET lease = excluded.lease;
    END IF;
    IF EXISTS (SELECT FROM dejq.job d WHERE d.hold = 2 AND d.due_at <= statement_timestamp()) THEN
        WITH due AS MATERIALIZED (
            SELECT d.ctid, d.due_at FROM dejq.job d WHERE d.hold = 2 AND d.due_at <= statement_timestamp() ORDER BY d.due_at LIMIT 1000
            FOR NO KEY UPDATE SKIP LOCKED),
        placed AS MATERIALIZED (SELECT o.ctid, nextval('dejq.place') AS seq FROM (SELECT due.ctid FROM due ORDER BY due.due_at) o)
        UPDATE dejq.job j SET hold = 0, seq = placed.seq FROM placed
        WHERE j.ctid = ANY (ARRAY(SELECT placed.ctid FROM placed)) AND j.ctid = placed.ctid;
    END IF;
    IF cardinality(types) > 1 THEN
        -- How many of each type belong to the oldest.
        SELECT array_agg(coalesce(h.jobs, 0) ORDER BY t.n) INTO counts
        FROM unnest(types) WITH ORDINALITY t(type, n)
        LEFT JOIN (
            SELECT o.n, count(*)::integer AS jobs FROM (
                SELECT t.n, x.seq FROM unnest(types, after, quota) WITH ORDINALITY t(type, after, quota, n)
                CROSS JOIN LATERAL (
                    SELECT j.seq FROM dejq.job j
                    WHERE j.hold = 0 AND j.type = t.type AND j.seq > t.after AND j.token IS NULL
                    ORDER BY j.seq LIMIT t.quota) x
                ORDER BY x.seq LIMIT most) o
            GROUP BY o.n) h ON h.n = t.n;
    END IF;
    RETURN QUERY
    WITH mine AS MATERIALIZED (
        SELECT x.ctid FROM unnest(types, after, counts) t(type, after, jobs)
        CROSS JOIN LATERAL (
            SELECT j.ctid FROM dejq.job j
            WHERE j.hold = 0 AND j.type = t.type AND j.seq > t.after AND j.token IS NULL
            ORDER BY j.seq LIMIT t.jobs FOR NO KEY UPDATE SKIP LOCKED) x
        WHERE t.jobs > 0)
    UPDATE dejq.job j SET token = claim.token, worker_id = claim.worker, started_at = statement_timestamp(), attempt = j.attempt + 1
    WHERE j.ctid = ANY (ARRAY(SELECT mine.ctid FROM mine))
    RETURNING j.id, j.type, j.body, j.headers, j.attempt, j.max_attempts, j.enqueued_at, j.chain_id, j.position, j.length, j.seq,
        NULL::float8, NULL::boolean;
    GET DIAGNOSTICS found_jobs = ROW_COUNT;
    IF found_jobs = 0 THEN
        IF listen_for > 0 THEN
            UPDATE dejq.worker w SET listens_until = clock_timestamp() + make_interval(secs => listen_for)
            WHERE w.id = claim.worker AND w.listens_until < clock_timestamp() + make_interval(secs => listen_for / 2);
            newly := FOUND;
        END IF;
        RETURN QUERY SELECT NULL::uuid, NULL, NULL::json, NULL::json, NULL::integer, NULL::integer, NULL::timestamptz, NULL::uuid,
            NULL::integer, NULL::integer, NULL::bigint,
            -- Not min(), which a plan of an empty table may answer by walking through all that is scheduled.
            (SELECT extract(epoch FROM d.due_at - clock_timestamp())::float8 FROM dejq.job d WHERE d.hold = 2 ORDER BY d.due_at LIMIT 1),
            newly;
    END IF;
END $$;

-- The first ready job of each type up to its mark, for types that have one there: what claims that begin at their marks pass over.
CREATE FUNCTION dejq.passed_over(types text[], marks bigint[]) RETURNS TABLE (type text, seq bigint)
LANGUAGE plpgsql STABLE SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT t.type, x.seq FROM unnest(types, marks) t(type, mark)
    CROSS JOIN LATERAL (
        SELECT j.seq FROM dejq.job j WHERE j.hold = 0 AND j.type = t.type AND j.seq <= t.mark AND j.token IS NULL
        ORDER BY j.seq LIMIT 1) x;
END $$;

-- Any state → final, for the jobs that still have the token that was seen (NULL: not running). Says what became of whom.
CREATE FUNCTION dejq.archive(ids uuid[], tokens bigint[], outcomes smallint[], failures json[], causes uuid[], keep boolean,
    OUT places integer[], OUT chains uuid[], OUT positions integer[], OUT heads uuid[], OUT cuts boolean[], OUT active boolean[])
LANGUAGE plpgsql SET enable_seqscan = off SET enable_nestloop = off SET jit = off AS $$
BEGIN
    WITH e AS MATERIALIZED (
        SELECT * FROM unnest(ids, tokens, outcomes, failures, causes) WITH ORDINALITY AS e(id, token, outcome, failure, cause, n)),
    gone AS (
        DELETE FROM dejq.job j USING e
        WHERE j.id = ANY (archive.ids) AND j.id = e.id AND j.token IS NOT DISTINCT FROM e.token
        RETURNING e.n, e.outcome, e.failure AS why, e.cause, j.*),
    kept AS (
        INSERT INTO dejq.done (id, enqueued_at, finished_at, token, started_at, attempt, slot, outcome, rescues, has_run, cancel_rest,
            max_attempts, chain_id, position, length, cancelled_with, delay, type, unique_key, headers, failure, body)
        SELECT g.id, g.enqueued_at, statement_timestamp(), g.token, g.started_at, g.attempt,
            (extract(epoch FROM statement_timestamp())::bigint / 86400 % 16)::smallint, g.outcome, g.rescues, g.has_run, g.cancel_rest,
            g.max_attempts, g.chain_id, g.position, g.length, g.cause, g.delay, g.type, g.unique_key, g.headers, g.why, g.body
        FROM gone g WHERE archive.keep OR g.outcome <> 0),
    counted AS (
        INSERT INTO dejq.tally (types, outcomes, jobs)
        SELECT array_agg(c.type), array_agg(c.outcome), array_agg(c.jobs)
        FROM (SELECT g.type, g.outcome, count(*)::integer AS jobs FROM gone g GROUP BY g.type, g.outcome) c
        HAVING count(*) > 0)
    SELECT array_agg(g.n::integer), array_agg(g.chain_id) FILTER (WHERE g.position < g.length),
        array_agg(g.position) FILTER (WHERE g.position < g.length), array_agg(g.id) FILTER (WHERE g.position < g.length),
        array_agg(g.outcome <> 0 AND g.cancel_rest) FILTER (WHERE g.position < g.length),
        array_agg(g.hold <> 1) FILTER (WHERE g.position < g.length)
    INTO places, chains, positions, heads, cuts, active FROM gone g;
END $$;

-- The same, and what follows from it: the next job of a chain goes blocked → ready or scheduled, and to `heir` when it takes
-- that type and the job is ready at once (blocked → running), or the rest is cancelled. The first row has the places in the
-- batch whose lease was not current, the others each a job that was released: with a body, if it is the heir's now.
-- A job that a handler's own open transaction has finished is not waited for long: who settles tries again, and others in between.
CREATE FUNCTION dejq.settle(ids uuid[], tokens bigint[], outcomes smallint[], failures json[], keep boolean DEFAULT true,
    heir uuid DEFAULT NULL, heir_types text[] DEFAULT '{}', heir_token bigint DEFAULT NULL)
RETURNS TABLE (lost integer[], id uuid, type text, body json, headers json, attempt integer, max_attempts integer,
    enqueued_at timestamptz, chain_id uuid, "position" integer, length integer, seq bigint, hold smallint)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_nestloop = off SET jit = off SET lock_timeout = '1s' AS $$
#variable_conflict use_column
DECLARE
    a record;
BEGIN
    -- Before any job, as a rescue does: a worker that is taken for dead at this moment is handed nothing.
    IF heir IS NOT NULL THEN
        PERFORM FROM dejq.worker w WHERE w.id = heir FOR KEY SHARE;
        IF NOT FOUND THEN
            heir_types := '{}';
        END IF;
    END IF;
    SELECT * INTO a FROM dejq.archive(settle.ids, settle.tokens, settle.outcomes, settle.failures, NULL, settle.keep);
    IF cardinality(a.places) IS DISTINCT FROM cardinality(settle.ids) THEN
        lost := ARRAY(SELECT n FROM generate_series(1, cardinality(settle.ids)) n WHERE n <> ALL (coalesce(a.places, '{}')));
    END IF;
    RETURN NEXT;
    IF a.chains IS NULL THEN
        RETURN;
    END IF;
    IF true = ANY (a.cuts) THEN
        PERFORM dejq.archive(array_agg(r.id), array_agg(NULL::bigint), array_agg(2::smallint),
            array_agg(json_build_object('kind', 'chain cancelled', 'message', format('job %s before it did not finish', c.head))),
            array_agg(c.head), true)
        FROM unnest(a.chains, a.positions, a.heads, a.cuts) c(chain_id, position, head, cut)
        -- Chain by chain, or the index would be walked from end to end: OFFSET keeps this from becoming a plain join.
        CROSS JOIN LATERAL (
            SELECT j.id FROM dejq.job j WHERE j.chain_id = c.chain_id AND j.position > c.position AND j.hold = 1
            ORDER BY j.position OFFSET 0) r
        WHERE c.cut
        HAVING count(*) > 0;
    END IF;
    RETURN QUERY
    WITH next AS MATERIALIZED (
        SELECT h.id, h.delay IS NULL AND h.type = ANY (heir_types) AS is_mine
        FROM unnest(a.chains, a.positions, a.cuts, a.active) c(chain_id, position, cut, active)
        CROSS JOIN LATERAL (
            SELECT n.id, n.hold, n.delay, n.type FROM dejq.job n
            WHERE n.chain_id = c.chain_id AND n.position > c.position ORDER BY n.position LIMIT 1) h
        WHERE c.active AND NOT c.cut AND h.hold = 1)
    UPDATE dejq.job j SET hold = CASE WHEN j.delay IS NULL THEN 0 ELSE 2 END, due_at = statement_timestamp() + j.delay,
        token = CASE WHEN next.is_mine THEN heir_token END, worker_id = CASE WHEN next.is_mine THEN heir END,
        started_at = CASE WHEN next.is_mine THEN statement_timestamp() END, attempt = j.attempt + next.is_mine::integer
    FROM next WHERE j.id = ANY (ARRAY(SELECT next.id FROM next)) AND j.id = next.id AND j.hold = 1
    RETURNING NULL::integer[], j.id, j.type, CASE WHEN next.is_mine THEN j.body END, j.headers, j.attempt, j.max_attempts, j.enqueued_at,
        j.chain_id, j.position, j.length, j.seq, j.hold;
END $$;

-- running → ready or scheduled, by how the attempt ended: 3 retry (after `delays` seconds; at the end of the line), 4 cut short,
-- 5 never started, 6 its worker was lost; the last three at the old place, and the attempt does not count. A job that an
-- operator asked to cancel is cancelled instead. Says whose lease was not current, and how many went back.
CREATE FUNCTION dejq.put_back(ids uuid[], tokens bigint[], kinds smallint[], delays float8[], failures json[],
    OUT lost integer[], OUT jobs integer)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_nestloop = off SET jit = off AS $$
DECLARE
    h record;
BEGIN
    SELECT array_agg(l.n) AS places, array_agg(l.id) FILTER (WHERE l.cancel) AS ids, array_agg(l.token) FILTER (WHERE l.cancel) AS tokens,
        array_agg(l.failure) FILTER (WHERE l.cancel) AS failures
    INTO h
    FROM (
        SELECT e.n::integer AS n, e.id, e.token, j.cancel,
            coalesce(CASE WHEN e.kind = 3 THEN e.failure END, json_build_object('kind', 'cancelled', 'message',
                'cancelled by an operator' || CASE WHEN e.kind = 6 THEN '; its worker was lost meanwhile' ELSE '' END)) AS failure
        FROM unnest(put_back.ids, put_back.tokens, put_back.kinds, put_back.failures) WITH ORDINALITY AS e(id, token, kind, failure, n)
        JOIN dejq.job j ON j.id = ANY (put_back.ids) AND j.id = e.id AND j.token = e.token
        FOR NO KEY UPDATE OF j) l;
    IF h.ids IS NOT NULL THEN
        PERFORM dejq.settle(h.ids, h.tokens, array_fill(2::smallint, ARRAY[cardinality(h.ids)]), h.failures);
    END IF;
    UPDATE dejq.job j SET token = NULL, worker_id = NULL,
        hold = CASE WHEN e.kind = 3 AND e.delay > 0 THEN 2 ELSE 0 END,
        due_at = CASE WHEN e.kind = 3 AND e.delay > 0 THEN statement_timestamp() + make_interval(secs => e.delay) END,
        seq = CASE WHEN e.kind = 3 THEN nextval('dejq.place') ELSE j.seq END,
        attempt = j.attempt - (e.kind <> 3)::integer,
        has_run = j.has_run OR e.kind IN (4, 6),
        rescues = j.rescues + (e.kind = 6)::integer,
        started_at = CASE WHEN e.kind = 5 AND j.attempt = 1 AND NOT j.has_run THEN NULL ELSE j.started_at END,
        failure = CASE WHEN e.kind = 3 THEN e.failure ELSE j.failure END
    FROM unnest(put_back.ids, put_back.tokens, put_back.kinds, put_back.delays, put_back.failures) AS e(id, token, kind, delay, failure)
    WHERE j.id = ANY (put_back.ids) AND j.id = e.id AND j.token = e.token AND NOT j.cancel;
    GET DIAGNOSTICS jobs = ROW_COUNT;
    IF cardinality(h.places) IS DISTINCT FROM cardinality(put_back.ids) THEN
        lost := ARRAY(SELECT n FROM generate_series(1, cardinality(put_back.ids)) n WHERE n <> ALL (coalesce(h.places, '{}')));
    END IF;
END $$;

-- One beat of one worker, whatever the number of its jobs; answers with the places of those it must let go: lost, or to be
-- cancelled.
CREATE FUNCTION dejq.beat(worker uuid, name text, lease float8, ids uuid[], tokens bigint[])
RETURNS TABLE (place integer, is_cancel boolean) LANGUAGE plpgsql SET enable_seqscan = off SET enable_nestloop = off SET jit = off AS $$
BEGIN
    INSERT INTO dejq.worker AS w (id, name, lease) VALUES (beat.worker, beat.name, make_interval(secs => beat.lease))
    ON CONFLICT ON CONSTRAINT worker_pkey DO UPDATE SET last_beat = clock_timestamp(), lease = excluded.lease;
    RETURN QUERY
    SELECT e.n::integer, j.id IS NOT NULL FROM unnest(beat.ids, beat.tokens) WITH ORDINALITY e(id, token, n)
    LEFT JOIN (SELECT h.id, h.token, h.cancel FROM dejq.job h WHERE h.id = ANY (beat.ids)) j ON j.id = e.id AND j.token = e.token
    WHERE j.id IS NULL OR j.cancel ORDER BY e.n;
END $$;

-- Jobs of claims whose answer never came go back; one that somebody has locked does so the next time. Looks through the
-- table: for accidents only.
CREATE FUNCTION dejq.unstrand(worker uuid, tokens bigint[]) RETURNS void LANGUAGE sql AS $$
    SELECT dejq.put_back(array_agg(h.id), array_agg(h.token), array_agg(5::smallint), array_agg(0::float8), array_agg(NULL::json))
    FROM (
        SELECT j.id, j.token FROM dejq.job j WHERE j.worker_id = unstrand.worker AND j.token = ANY (unstrand.tokens)
        FOR NO KEY UPDATE SKIP LOCKED) h
    HAVING count(*) > 0
$$;

-- Jobs of workers that were silent for a lease: back in line, or failed when that happened too often. Every worker calls it;
-- one at a time does it, and keeps the counts tidy.
CREATE FUNCTION dejq.rescue(max_rescues integer, OUT requeued integer, OUT failed integer, OUT workers integer) LANGUAGE plpgsql AS $$
DECLARE
    dead uuid[];
    lost record;
BEGIN
    requeued := 0;
    failed := 0;
    workers := 0;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('dejq:schema', 1)) THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM dejq.tally OFFSET 100) THEN
        PERFORM dejq.fold();
    END IF;
    -- Who is at work on a worker or a job at this moment wins, and is not waited for: a beat, a claim, an end, and above all a
    -- handler's own transaction that has finished its job, which may stay open for long.
    dead := ARRAY(SELECT w.id FROM dejq.worker w WHERE w.last_beat + w.lease < clock_timestamp() FOR UPDATE SKIP LOCKED);
    workers := cardinality(dead);
    IF workers = 0 THEN
        RETURN;
    END IF;
    SELECT array_agg(h.id) FILTER (WHERE NOT h.fails) AS ids, array_agg(h.token) FILTER (WHERE NOT h.fails) AS tokens,
        count(*) FILTER (WHERE NOT h.fails)::integer AS jobs,
        array_agg(h.id) FILTER (WHERE h.fails) AS failed_ids, array_agg(h.token) FILTER (WHERE h.fails) AS failed_tokens,
        array_agg(json_build_object('kind', 'worker lost', 'message', format('its lease ran out %s times', h.rescues + 1)))
            FILTER (WHERE h.fails) AS failures
    INTO lost FROM (
        SELECT j.id, j.token, j.rescues, NOT j.cancel AND j.rescues >= rescue.max_rescues AS fails
        FROM dejq.job j JOIN dejq.worker w ON w.id = j.worker_id
        WHERE j.worker_id = ANY (dead) AND j.token IS NOT NULL AND j.started_at + w.lease < clock_timestamp()
        ORDER BY j.seq FOR NO KEY UPDATE OF j SKIP LOCKED) h;
    IF lost.jobs > 0 THEN
        SELECT p.jobs INTO requeued FROM dejq.put_back(lost.ids, lost.tokens, array_fill(6::smallint, ARRAY[lost.jobs]),
            array_fill(0::float8, ARRAY[lost.jobs]), array_fill(NULL::json, ARRAY[lost.jobs])) p;
    END IF;
    IF lost.failed_ids IS NOT NULL THEN
        failed := cardinality(lost.failed_ids);
        PERFORM dejq.settle(lost.failed_ids, lost.failed_tokens, array_fill(1::smallint, ARRAY[failed]), lost.failures);
    END IF;
    -- Who still has a job, because its lease is not over or somebody is at work on it, is looked at again.
    DELETE FROM dejq.worker w WHERE w.id = ANY (dead)
        AND NOT EXISTS (SELECT FROM dejq.job j WHERE j.worker_id = w.id AND j.token IS NOT NULL);
END $$;

-- A worker has stopped. What it still holds, by a handler that was left behind, waits for the end of its lease.
CREATE FUNCTION dejq.leave(worker uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- What a claim of it that is still under way takes must be seen, or nobody would ever notice that its worker is gone.
    PERFORM FROM dejq.worker w WHERE w.id = leave.worker FOR UPDATE;
    DELETE FROM dejq.worker w WHERE w.id = leave.worker
        AND NOT EXISTS (SELECT FROM dejq.job j WHERE j.worker_id = leave.worker AND j.token IS NOT NULL);
END $$;

-- Adds up what was not added up yet.
CREATE FUNCTION dejq.fold() RETURNS void LANGUAGE sql AS $$
    WITH rows AS (DELETE FROM dejq.tally t RETURNING t.types, t.outcomes, t.jobs)
    INSERT INTO dejq.total AS t (type, outcome, jobs)
    SELECT u.type, u.outcome, sum(u.jobs) FROM rows r CROSS JOIN LATERAL unnest(r.types, r.outcomes, r.jobs) u(type, outcome, jobs)
    GROUP BY u.type, u.outcome ORDER BY u.type, u.outcome
    ON CONFLICT (type, outcome) DO UPDATE SET jobs = t.jobs + excluded.jobs
$$;

-- ---- what handlers and operators do -------------------------------------------------------------------------------

-- Ends an attempt in the handler's own transaction: its effects and the end of the job are stored together or not at all.
CREATE FUNCTION dejq.finish_attempt(job uuid, token bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    s record;
BEGIN
    FOR s IN SELECT * FROM dejq.settle(ARRAY[job], ARRAY[finish_attempt.token], ARRAY[0::smallint], ARRAY[NULL::json]) LOOP
        IF s.lost IS NOT NULL THEN
            RAISE EXCEPTION 'dejq: the lease of job % is no longer this one''s', job USING ERRCODE = 'DQ003',
                HINT = 'another worker may be running it; roll back and return';
        END IF;
        IF s.id IS NOT NULL AND s.hold = 0 THEN
            PERFORM dejq.wake(ARRAY[s.type]);
        END IF;
    END LOOP;
END $$;

-- For who steps in: holds what is open of a job's chain in the order of its jobs, the active one first; returns the chain. One
-- at a time for each chain, also while all of it is final: who waited here sees what the one before has done, and holds a job
-- that was requeued meanwhile too. A thousand locks at most, so that many jobs can be changed in one transaction.
CREATE FUNCTION dejq.hold_chain(job uuid) RETURNS uuid LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    chain uuid;
BEGIN
    SELECT a.chain_id INTO chain FROM (
        SELECT j.chain_id FROM dejq.job j WHERE j.id = job UNION ALL SELECT d.chain_id FROM dejq.done d WHERE d.id = job) a;
    PERFORM pg_advisory_xact_lock(hashtextextended('dejq:schema', 2) # (hashtext(coalesce(chain, job)::text) & 1023));
    PERFORM FROM dejq.job j WHERE j.chain_id = chain ORDER BY j.position FOR UPDATE;
    RETURN chain;
END $$;

-- Locks a job that is not final, and its chain in order. Refuses one that is final or unknown.
CREATE FUNCTION dejq.hold_open(job uuid, operation text) RETURNS dejq.job LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    held dejq.job;
    final text;
BEGIN
    PERFORM dejq.hold_chain(job);
    SELECT * INTO held FROM dejq.job j WHERE j.id = job FOR UPDATE;
    IF NOT FOUND THEN
        SELECT j.state INTO final FROM dejq.jobs j WHERE j.id = job;
        IF final IS NULL THEN
            RAISE EXCEPTION 'there is no job %; it was never enqueued here, or finished long ago and was deleted', job
                USING ERRCODE = 'DQ001';
        END IF;
        RAISE EXCEPTION 'cannot % job %, it is % already', operation, job, final USING ERRCODE = 'DQ002';
    END IF;
    RETURN held;
END $$;

-- Any state but final → finished; dependants run.
CREATE FUNCTION dejq.finish(job uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    held dejq.job := dejq.hold_open(job, 'finish');
BEGIN
    PERFORM dejq.wake(ARRAY[s.type]) FROM dejq.settle(ARRAY[held.id], ARRAY[held.token], ARRAY[0::smallint], ARRAY[NULL::json]) s
    WHERE s.hold = 0;
END $$;

-- Waiting → cancelled. A running one is asked to return by its worker's next beat.
CREATE FUNCTION dejq.cancel(job uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    held dejq.job := dejq.hold_open(job, 'cancel');
BEGIN
    IF held.token IS NOT NULL THEN
        UPDATE dejq.job j SET cancel = true WHERE j.id = held.id;
    ELSE
        PERFORM dejq.wake(ARRAY[s.type]) FROM dejq.settle(ARRAY[held.id], ARRAY[NULL::bigint], ARRAY[2::smallint],
            ARRAY[json_build_object('kind', 'cancelled', 'message', 'cancelled by an operator')]) s
        WHERE s.hold = 0;
    END IF;
END $$;

-- failed, cancelled, scheduled or running → ready, attempts counted anew. Jobs of its chain that were cancelled with it, or
-- released by its end but not started, are blocked again.
CREATE FUNCTION dejq.requeue(job uuid) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    held dejq.job;
    ended dejq.done;
    chain uuid := dejq.hold_chain(job);
    place integer;
    cause uuid;
    later uuid;
    holder uuid;
BEGIN
    SELECT * INTO held FROM dejq.job j WHERE j.id = job FOR UPDATE;
    IF NOT FOUND THEN
        DELETE FROM dejq.done d WHERE d.id = job AND d.outcome <> 0 RETURNING * INTO ended;
        IF NOT FOUND THEN
            PERFORM dejq.hold_open(job, 'requeue');
        END IF;
    ELSIF held.token IS NULL AND NOT (held.hold = 2 AND held.due_at > statement_timestamp()) THEN
        RAISE EXCEPTION 'job % cannot be requeued, it is %; it will run by itself', job,
            CASE held.hold WHEN 1 THEN 'blocked' ELSE 'ready' END USING ERRCODE = 'DQ002';
    END IF;
    place := coalesce(held.position, ended.position);
    SELECT l.id INTO later FROM (
        SELECT j.id, j.position FROM dejq.job j WHERE j.chain_id = chain AND j.position > place AND (j.attempt > 0 OR j.has_run)
        UNION ALL
        SELECT d.id, d.position FROM dejq.done d WHERE d.chain_id = chain AND d.position > place AND (d.attempt > 0 OR d.has_run)) l
    ORDER BY l.position LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'job % cannot be requeued: job % after it in its chain has started, and a chain never goes back; enqueue a new job instead',
            job, later USING ERRCODE = 'DQ002';
    END IF;
    cause := coalesce(ended.cancelled_with, job);
    UPDATE dejq.job j SET hold = 1, due_at = NULL, started_at = NULL WHERE j.chain_id = chain AND j.position > place AND j.hold <> 1;
    WITH again AS (
        DELETE FROM dejq.done d WHERE d.chain_id = chain AND d.position > place AND d.cancelled_with = cause RETURNING d.*),
    counted AS (
        INSERT INTO dejq.tally (types, outcomes, jobs)
        SELECT array_agg(a.type), array_agg(a.outcome), array_agg(-1) FROM again a HAVING count(*) > 0)
    INSERT INTO dejq.job (id, enqueued_at, rescues, has_run, cancel_rest, max_attempts, chain_id, position, length, delay, type, unique_key,
        headers, body, hold)
    SELECT a.id, a.enqueued_at, a.rescues, a.has_run, a.cancel_rest, a.max_attempts, a.chain_id, a.position, a.length, a.delay, a.type,
        a.unique_key, a.headers, a.body, 1
    FROM again a ORDER BY a.position;
    IF held.id IS NOT NULL THEN
        UPDATE dejq.job j SET token = NULL, worker_id = NULL, hold = 0, due_at = NULL, started_at = NULL,
            seq = nextval('dejq.place'), has_run = j.has_run OR j.attempt > 0, attempt = 0, rescues = 0, cancel = false
        WHERE j.id = job;
        PERFORM dejq.wake(ARRAY[held.type]);
        RETURN;
    END IF;
    INSERT INTO dejq.tally (types, outcomes, jobs) VALUES (ARRAY[ended.type], ARRAY[ended.outcome], ARRAY[-1]);
    INSERT INTO dejq.job (id, enqueued_at, has_run, cancel_rest, max_attempts, chain_id, position, length, delay, type, unique_key, headers,
        failure, body, hold)
    VALUES (ended.id, ended.enqueued_at, ended.has_run OR ended.attempt > 0, ended.cancel_rest, ended.max_attempts, ended.chain_id,
        ended.position, ended.length, ended.delay, ended.type, ended.unique_key, ended.headers, ended.failure, ended.body,
        CASE WHEN EXISTS (SELECT FROM dejq.job j WHERE j.chain_id = chain AND j.position < place) THEN 1 ELSE 0 END)
    ON CONFLICT (type, unique_key) WHERE unique_key IS NOT NULL DO NOTHING;
    IF NOT FOUND THEN
        SELECT j.id INTO holder FROM dejq.job j WHERE j.type = ended.type AND j.unique_key = ended.unique_key;
        RAISE EXCEPTION 'job % cannot be requeued: job % holds its unique key now; wait until that one is final', job, holder
            USING ERRCODE = 'DQ002';
    END IF;
    PERFORM dejq.wake(ARRAY[ended.type]);
END $$;

-- scheduled → ready, whatever their time; returns how many.
CREATE FUNCTION dejq.promote() RETURNS bigint LANGUAGE sql AS $$
    WITH due AS (UPDATE dejq.job j SET hold = 0, seq = nextval('dejq.place') WHERE j.hold = 2 RETURNING 1) SELECT count(*) FROM due
$$;

-- Deletes jobs that became final longer ago, oldest days first; returns how many, and 0 when there are no more. A day of which
-- nothing is newer goes at once, whatever its size, and the call ends there: its table is emptied, without waiting for anybody
-- and so that nobody has to wait for the counting. Of other days, and while somebody uses that table, at most `batch` rows go.
CREATE FUNCTION dejq.delete_finished(older_than interval, batch integer DEFAULT 1000) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    newest timestamptz := statement_timestamp() - older_than;
    today integer := extract(epoch FROM statement_timestamp())::bigint / 86400 % 16;
    deleted bigint := 0;
    day smallint;
    part regclass;
    rows bigint;
BEGIN
    -- The ring from its oldest day to today.
    FOR n IN 1..16 LOOP
        day := (today + n) % 16;
        SELECT d.tableoid INTO part FROM dejq.done d WHERE d.slot = day AND d.finished_at <= newest LIMIT 1;
        CONTINUE WHEN NOT FOUND;
        -- Jobs end into the days around midnight.
        IF n BETWEEN 2 AND 14 AND NOT EXISTS (SELECT FROM dejq.done d WHERE d.slot = day AND d.finished_at > newest) THEN
            BEGIN
                -- Keeps out only transactions that have been open since that day.
                EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE NOWAIT', part);
                IF NOT EXISTS (SELECT FROM dejq.done d WHERE d.slot = day AND d.finished_at > newest) THEN
                    SELECT count(*) INTO rows FROM dejq.done d WHERE d.slot = day;
                    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', part);
                    EXECUTE format('TRUNCATE TABLE %s', part);
                    RETURN deleted + rows;
                END IF;
            EXCEPTION WHEN lock_not_available OR insufficient_privilege THEN
                NULL;
            END;
        END IF;
        EXECUTE format('DELETE FROM dejq.done d WHERE d.slot = %s AND d.ctid = ANY (ARRAY('
            'SELECT o.ctid FROM dejq.done o WHERE o.slot = %1$s AND o.finished_at <= $1 LIMIT $2))', day)
            USING newest, batch - deleted;
        GET DIAGNOSTICS rows = ROW_COUNT;
        deleted := deleted + rows;
        EXIT WHEN deleted >= batch;
    END LOOP;
    RETURN deleted;
END $$;

-- Running jobs without a beat for that long.
CREATE FUNCTION dejq.unresponsive(older_than interval) RETURNS SETOF dejq.jobs LANGUAGE sql STABLE AS $$
    SELECT * FROM dejq.jobs j WHERE j.state = 'running' AND j.last_beat_at <= statement_timestamp() - older_than ORDER BY j.id
$$;

-- When the oldest ready job of a type was enqueued.
CREATE FUNCTION dejq.oldest_ready(job_type text) RETURNS timestamptz LANGUAGE plpgsql STABLE SET enable_seqscan = off SET jit = off AS $$
BEGIN
    RETURN (SELECT j.enqueued_at FROM dejq.job j WHERE j.hold = 0 AND j.type = job_type AND j.token IS NULL ORDER BY j.seq LIMIT 1);
END $$;

-- Counts per type. Exact while no more than `most` jobs wait; beyond that as many are looked at, and the planner's estimate of
-- all tells what they stand for, so that the cost does not grow with the backlog.
CREATE FUNCTION dejq.stats(most integer DEFAULT 200000)
RETURNS TABLE (type text, blocked bigint, scheduled bigint, ready bigint, running bigint, finished bigint, failed bigint,
    cancelled bigint, oldest_ready interval)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    job_table regclass := (SELECT j.tableoid FROM dejq.job j LIMIT 1);
    estimate json;
BEGIN
    IF EXISTS (SELECT FROM dejq.job j OFFSET most) THEN
        EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM %s', job_table) INTO estimate;
    END IF;
    RETURN QUERY
    WITH seen AS (
        SELECT s.type, s.hold, s.is_running, count(*) AS jobs FROM (
            SELECT j.type, j.token IS NOT NULL AS is_running,
                CASE WHEN j.hold = 2 AND j.due_at <= statement_timestamp() THEN 0 ELSE j.hold END AS hold
            FROM dejq.job j LIMIT most) s
        GROUP BY s.type, s.hold, s.is_running),
    scale AS (SELECT greatest(1, coalesce((estimate->0->'Plan'->>'Plan Rows')::float8, 0) / most) AS factor),
    open AS (
        SELECT s.type, (sum(s.jobs) FILTER (WHERE s.hold = 1) * max(scale.factor))::bigint AS blocked,
            (sum(s.jobs) FILTER (WHERE s.hold = 2) * max(scale.factor))::bigint AS scheduled,
            (sum(s.jobs) FILTER (WHERE s.hold = 0 AND NOT s.is_running) * max(scale.factor))::bigint AS ready,
            sum(s.jobs) FILTER (WHERE s.is_running)::bigint AS running
        FROM seen s CROSS JOIN scale GROUP BY s.type),
    final AS (
        SELECT f.type, sum(f.jobs) FILTER (WHERE f.outcome = 0)::bigint AS finished,
            sum(f.jobs) FILTER (WHERE f.outcome = 1)::bigint AS failed, sum(f.jobs) FILTER (WHERE f.outcome = 2)::bigint AS cancelled
        FROM (
            SELECT t.type, t.outcome, t.jobs FROM dejq.total t
            UNION ALL
            SELECT u.type, u.outcome, u.jobs FROM dejq.tally y CROSS JOIN LATERAL unnest(y.types, y.outcomes, y.jobs) u(type, outcome, jobs)) f
        GROUP BY f.type)
    SELECT coalesce(o.type, f.type), coalesce(o.blocked, 0), coalesce(o.scheduled, 0), coalesce(o.ready, 0), coalesce(o.running, 0),
        coalesce(f.finished, 0), coalesce(f.failed, 0), coalesce(f.cancelled, 0),
        CASE WHEN o.ready > 0 THEN statement_timestamp() - dejq.oldest_ready(o.type) END
    FROM open o FULL JOIN final f ON f.type = o.type;
END $$;
