SELECT type, blocked, scheduled, ready, running, finished, failed, cancelled, extract(epoch FROM oldest_ready)::float8
FROM dejq.stats()
