VACUUM (ANALYZE) dejq.job, dejq.done, dejq.worker, dejq.tally, dejq.total
