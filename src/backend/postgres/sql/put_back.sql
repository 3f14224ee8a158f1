-- Jobs go back in line.
SELECT lost FROM dejq.put_back($1, $2, $3, $4, $5)
