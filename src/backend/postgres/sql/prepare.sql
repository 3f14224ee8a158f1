-- One migration at a time, also of those who find no schema yet. Who made the schema for dejq need not let it make schemas.
SELECT pg_advisory_xact_lock(hashtextextended('dejq:schema', 0));
DO $$
DECLARE
    name text := substr('dejq:schema', 6);
BEGIN
    IF NOT EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = name) THEN
        EXECUTE format('CREATE SCHEMA %I', name);
    END IF;
    IF to_regclass('dejq.migration') IS NULL THEN
        CREATE TABLE dejq.migration (
            version integer NOT NULL PRIMARY KEY,
            name text NOT NULL,
            -- Clients that know only older versions must not work with this one.
            breaking boolean NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
        );
    END IF;
END $$;
