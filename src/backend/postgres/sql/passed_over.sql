-- What claims that begin at their marks pass over.
SELECT type, seq FROM dejq.passed_over($1, $2)
