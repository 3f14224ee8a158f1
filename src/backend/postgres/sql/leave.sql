SELECT dejq.leave($1)
