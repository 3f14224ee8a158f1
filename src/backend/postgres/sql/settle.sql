-- Jobs become final. The first row has the places whose lease was lost, the others each a job that this released.
SELECT lost, id, type, body, headers, attempt, max_attempts, enqueued_at, chain_id, position, length, seq, hold
FROM dejq.settle($1, $2, $3, $4, $5, $6, $7, $8)
