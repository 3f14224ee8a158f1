LISTEN "dejq:schema"
