UPDATE dejq.job SET enqueued_at = enqueued_at - $1, started_at = started_at - $1, due_at = due_at - $1;
UPDATE dejq.done SET enqueued_at = enqueued_at - $1, started_at = started_at - $1, finished_at = finished_at - $1;
UPDATE dejq.worker SET started_at = started_at - $1, last_beat = last_beat - $1;
