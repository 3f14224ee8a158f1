SELECT requeued, failed, workers FROM dejq.rescue($1)
