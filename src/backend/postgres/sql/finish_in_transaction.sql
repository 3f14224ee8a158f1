SELECT dejq.finish_attempt(CAST(CAST({} AS text) AS uuid), CAST(CAST({} AS text) AS bigint))
