-- Which session of which server answers.
SELECT concat(pg_backend_pid(), ' ', pg_postmaster_start_time())
