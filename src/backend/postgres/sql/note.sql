INSERT INTO dejq.migration (version, name, breaking) VALUES ($1, $2, $3);
