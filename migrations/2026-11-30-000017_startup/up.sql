-- What a process checks before it works with this database. Neither table is a tenant's.

-- The oldest release that can work with this schema, as the version of the newest migration that it knows. One row. A
-- migration that takes away what older releases need sets it to its own version: they are not ready any more. All others
-- leave it alone, and older releases go on.
CREATE TABLE schema_minimum (
    is_only boolean CONSTRAINT schema_minimum_pkey PRIMARY KEY DEFAULT true,
    version text NOT NULL,
    CONSTRAINT schema_minimum_is_only_check CHECK (is_only),
    CONSTRAINT schema_minimum_version_check CHECK (version ~ '^\d{14}$')
);
INSERT INTO schema_minimum (version) VALUES ('20261130000017');

-- The encryption keys that processes have been started with. The canary opens under that key alone, which shows whether a
-- key is the same as before; the key itself is not here.
CREATE TABLE encryption_keys (
    key_id text CONSTRAINT encryption_keys_pkey PRIMARY KEY,
    canary bytea NOT NULL
);

ALTER TABLE schema_minimum ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE encryption_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY schema_minimum_owner ON schema_minimum TO paybridge_owner USING (true);
CREATE POLICY schema_minimum_system ON schema_minimum TO paybridge_system USING (true);
CREATE POLICY encryption_keys_owner ON encryption_keys TO paybridge_owner USING (true);
CREATE POLICY encryption_keys_system ON encryption_keys TO paybridge_system USING (true);
GRANT SELECT ON schema_minimum TO paybridge_system;
GRANT SELECT, INSERT ON encryption_keys TO paybridge_system;

-- One sealed secret for each key that sealed any: its place, and the sealed value, which begins with the length of the key's
-- id and that id. paybridge_system may read no secrets, so this is all that it sees of them.
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
GRANT EXECUTE ON FUNCTION sealed_samples() TO paybridge_system;
