-- What a process checks before it works with this database. None of the tables belongs to a tenant.

-- The oldest release that can work with this schema, as the version of the newest migration that it knows. One row. A
-- migration that removes what older releases need sets it to its own version, and those releases are no longer ready.
-- All other migrations leave it alone, and older releases continue to run.
CREATE TABLE schema_minimum (
    is_only boolean NOT NULL DEFAULT true,
    version text NOT NULL,
    CONSTRAINT schema_minimum_pkey PRIMARY KEY (is_only),
    CONSTRAINT schema_minimum_is_only_check CHECK (is_only),
    CONSTRAINT schema_minimum_version_check CHECK (version ~ '^\d{14}$')
);
INSERT INTO schema_minimum (version) VALUES ('20261201000007');

-- The encryption keys that processes have been started with.
CREATE TABLE encryption_keys (
    key_id text NOT NULL,
    -- Opens under that key alone, which shows whether a key is the same as before. It does not contain the key.
    canary bytea NOT NULL,
    CONSTRAINT encryption_keys_pkey PRIMARY KEY (key_id)
);

-- One sealed secret for each key that sealed any: its place, and the sealed value, which begins with the length of the
-- key's id and that id. paybridge_system may not read secrets, so this is all that it sees of them.
CREATE FUNCTION sealed_samples() RETURNS TABLE (
    key_id text, organization_id uuid, integration_id uuid, column_name text, sealed bytea
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public AS $$
    SELECT DISTINCT ON (key.id) key.id, i.organization_id, i.id, secret.column_name, secret.sealed
    FROM integrations AS i
    CROSS JOIN LATERAL (VALUES
        ('integrations.sealed_secret_key', i.sealed_secret_key),
        ('integrations.sealed_webhook_secret', i.sealed_webhook_secret),
        ('integrations.sealed_old_webhook_secret', i.sealed_old_webhook_secret)
    ) AS secret (column_name, sealed)
    CROSS JOIN LATERAL (SELECT encode(substr(secret.sealed, 2, get_byte(secret.sealed, 0)), 'escape')) AS key (id)
    WHERE octet_length(secret.sealed) > 0
    ORDER BY key.id
$$;
REVOKE ALL ON FUNCTION sealed_samples() FROM PUBLIC;

-- Which installation this database belongs to, and where it was when it was last used. One row, which the first
-- `paybridge migrate` writes. A database that was restored, failed over or copied is somewhere else, and Stripe may have
-- objects that it has forgotten.
CREATE TABLE installation (
    is_only boolean NOT NULL DEFAULT true,
    -- Of `--installation`. Processes with another name do not start.
    name text NOT NULL,
    -- Of the server, from initdb: another server is the target of a logical restore.
    system_identifier bigint NOT NULL,
    -- Of the server's write-ahead log: it grows when a standby is promoted and when a backup is recovered.
    timeline integer NOT NULL,
    -- A copy in the same server has another one, even under the old name.
    database_oid bigint NOT NULL,
    -- Of this table: pg_restore --clean creates it anew in the same database.
    table_oid bigint NOT NULL,
    -- New whenever one of the four above has changed.
    incarnation uuid NOT NULL,
    CONSTRAINT installation_pkey PRIMARY KEY (is_only),
    CONSTRAINT installation_is_only_check CHECK (is_only)
);

-- Where this database is now. Only a primary can tell.
CREATE FUNCTION present_identity() RETURNS TABLE (
    system_identifier bigint, timeline integer, database_oid bigint, table_oid bigint
)
LANGUAGE sql SET search_path = public, pg_temp AS $$
    -- The file name begins with the timeline, 8 hex digits. pg_control_checkpoint() shows a new one only after the next
    -- checkpoint.
    SELECT control.system_identifier, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer,
        database.oid::bigint, 'installation'::regclass::oid::bigint
    FROM pg_control_system() AS control JOIN pg_database AS database ON database.datname = current_database()
$$;
REVOKE ALL ON FUNCTION present_identity() FROM PUBLIC;

-- Compares the place of this database with that of its last use. NULL: it is the same. Otherwise what has changed, for
-- the log; then every integration catches up with Stripe, every event log is another one, and nobody who leased a job
-- at the old place holds the lease here. The first caller records the new place, so that the next one gets NULL.
CREATE FUNCTION check_identity() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    known installation;
    present record;
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'this server is a standby; connect to the primary' USING ERRCODE = 'read_only_sql_transaction';
    END IF;
    SELECT * INTO present FROM present_identity();
    -- Without a lock at first: this runs on every new connection.
    SELECT * INTO known FROM installation;
    IF ROW (known.system_identifier, known.timeline, known.database_oid, known.table_oid) IS DISTINCT FROM present THEN
        SELECT * INTO known FROM installation FOR UPDATE;
    END IF;
    IF known.name IS NULL
        OR ROW (known.system_identifier, known.timeline, known.database_oid, known.table_oid) IS NOT DISTINCT FROM present
    THEN
        RETURN NULL;
    END IF;
    UPDATE installation SET system_identifier = present.system_identifier, timeline = present.timeline,
        database_oid = present.database_oid, table_oid = present.table_oid, incarnation = gen_random_uuid();
    UPDATE stripe_contacts AS contact SET catch_up_reason = 'database_changed', catch_up_start = NULL,
        stage = 'other_copies', after = NULL, objects_read = 0,
        seen_number = NULL, seen_writer = NULL, seen_time = NULL, fault = NULL
    FROM integrations AS i
    WHERE i.organization_id = contact.organization_id AND i.id = contact.integration_id AND i.state <> 'disconnected';
    -- The lost epochs are unknown. A random step makes it practically impossible to meet one of them.
    UPDATE jobs SET lease_epoch = lease_epoch + 1000000 + floor(random() * 999000000)::bigint, lease_until = NULL;
    INSERT INTO jobs (
        id, organization_id, kind, object_id, object_key, run_at, due, generation, failures, lease_epoch
    )
    SELECT gen_random_uuid(), organization_id, 'catch_up', integration_id, '', now(), true, 1, 0, 0
    FROM stripe_contacts WHERE catch_up_reason IS NOT NULL
    ON CONFLICT ON CONSTRAINT jobs_object_key DO UPDATE
    SET generation = jobs.generation + 1, run_at = LEAST(jobs.run_at, excluded.run_at), due = true, park_time = NULL,
        own_failures = 0;
    UPDATE event_heads SET log_id = gen_random_uuid();
    RETURN format(
        'from system %s, timeline %s, database %s, table %s to system %s, timeline %s, database %s, table %s',
        known.system_identifier, known.timeline, known.database_oid, known.table_oid,
        present.system_identifier, present.timeline, present.database_oid, present.table_oid
    );
END
$$;
REVOKE ALL ON FUNCTION check_identity() FROM PUBLIC;
