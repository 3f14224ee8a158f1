SELECT id, type, body, headers, attempt, max_attempts, enqueued_at, chain_id, position, length, state, due_at, started_at,
    last_beat_at, finished_at, rescues, failure
FROM dejq.jobs WHERE id = $1
