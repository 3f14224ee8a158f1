-- New jobs, some of which may be known already or meet the holder of their unique key.
SELECT dejq.enqueue_jobs($1)
