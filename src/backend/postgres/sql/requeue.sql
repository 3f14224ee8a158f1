SELECT dejq.requeue($1)
