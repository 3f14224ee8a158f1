SELECT dejq.delete_finished(make_interval(secs => $1), $2)
