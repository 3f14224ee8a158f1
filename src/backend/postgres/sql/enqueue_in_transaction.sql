-- What a caller runs in a transaction of their own: `{}` stands for a text, whatever the driver calls its parameters.
SELECT CAST(dejq.enqueue_jobs(CAST(CAST({} AS text) AS json)) AS text[])
