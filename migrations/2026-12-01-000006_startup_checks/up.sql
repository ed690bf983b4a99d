-- What a process checks before it works with this database. Neither table belongs to a tenant.

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
