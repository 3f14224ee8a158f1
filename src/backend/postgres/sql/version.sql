-- The version of the schema, and the latest one that broke with the clients before it.
SELECT max(m.version), max(m.version) FILTER (WHERE m.breaking) FROM dejq.migration m HAVING count(*) > 0
