SELECT dejq.cancel($1)
