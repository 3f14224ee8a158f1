SELECT dejq.promote()
