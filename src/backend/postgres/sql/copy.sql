COPY dejq.job (id, chain_id, position, length, hold, cancel_rest, max_attempts, type, headers, body) FROM STDIN (FORMAT binary)
