SELECT dejq.finish($1)
