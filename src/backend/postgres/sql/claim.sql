-- Ready jobs, now ours; or one row without an id that says what to wait for.
SELECT id, type, body, headers, attempt, max_attempts, enqueued_at, chain_id, position, length, seq, due_in, is_new
FROM dejq.claim($1, $2, $3, $4, $5, $6, $7, $8, $9)
