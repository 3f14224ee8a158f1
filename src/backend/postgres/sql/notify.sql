-- A notification to ourselves, to see whether it arrives.
SELECT pg_notify('dejq:schema', $1)
