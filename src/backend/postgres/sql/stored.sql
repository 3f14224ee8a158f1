-- Which of these attempts ended, although no answer said so.
SELECT d.id FROM dejq.done d JOIN unnest($1, $2) e(id, token) ON d.id = e.id AND d.token = e.token
