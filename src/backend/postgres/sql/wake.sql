-- Tells workers that wait, if there are any.
SELECT dejq.wake($1, true)
