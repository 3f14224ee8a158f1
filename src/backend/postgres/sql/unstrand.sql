-- Jobs of claims whose answer never came go back in line.
SELECT dejq.unstrand($1, $2)
