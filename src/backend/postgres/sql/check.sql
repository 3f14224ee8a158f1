-- What decides how well the queue lives on this server.
SELECT current_setting('server_version') AS version,
    current_setting('server_version_num')::integer AS number,
    current_setting('fsync')::boolean AND current_setting('synchronous_commit') <> 'off' AS is_durable,
    current_setting('autovacuum')::boolean AND current_setting('track_counts')::boolean AS vacuums,
    (SELECT count(*) FROM pg_stat_activity a
        WHERE a.backend_xmin IS NOT NULL AND a.xact_start < clock_timestamp() - interval '10 minutes') AS old_snapshots,
    (SELECT coalesce(s.n_dead_tup, 0) FROM pg_stat_all_tables s WHERE s.relid = to_regclass('dejq.job')) AS dead_rows,
    clock_timestamp() AS clock,
    has_any_column_privilege(to_regclass('dejq.job'), 'INSERT') AND has_sequence_privilege(to_regclass('dejq.place'), 'USAGE') AS may_enqueue,
    has_table_privilege(to_regclass('dejq.job'), 'SELECT') AND has_table_privilege(to_regclass('dejq.job'), 'UPDATE')
        AND has_table_privilege(to_regclass('dejq.job'), 'DELETE') AND has_table_privilege(to_regclass('dejq.done'), 'INSERT')
        AND has_table_privilege(to_regclass('dejq.worker'), 'UPDATE') AS may_work
