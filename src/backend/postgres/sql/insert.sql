-- New jobs, from any number of callers.
INSERT INTO dejq.job (id, chain_id, position, length, hold, cancel_rest, max_attempts, delay, due_at, type, headers, body)
SELECT u.id, u.chain_id, u.position, u.length,
    CASE WHEN u.position > 1 THEN 1 WHEN u.delay IS NULL THEN 0 ELSE 2 END,
    u.cancel_rest, u.max_attempts, make_interval(secs => u.delay),
    CASE WHEN u.position IS NULL OR u.position = 1 THEN statement_timestamp() + make_interval(secs => u.delay) END,
    u.type, u.headers, u.body
FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    AS u(id, chain_id, position, length, cancel_rest, max_attempts, delay, type, headers, body)
