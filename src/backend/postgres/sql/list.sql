-- One page of jobs, by any of these conditions.
SELECT id, type, body, headers, attempt, max_attempts, enqueued_at, chain_id, position, length, state, due_at, started_at,
    last_beat_at, finished_at, rescues, failure
FROM dejq.jobs
WHERE ($1::text IS NULL OR state = $1) AND ($2::text IS NULL OR type = $2)
    AND ($3::float8 IS NULL OR enqueued_at < statement_timestamp() - make_interval(secs => $3))
    AND ($4::uuid IS NULL OR id > $4)
ORDER BY id LIMIT $5
