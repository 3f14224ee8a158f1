SELECT count(*) FROM dejq.worker w WHERE w.last_beat + w.lease >= clock_timestamp()
