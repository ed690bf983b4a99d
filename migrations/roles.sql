-- The three roles that Paybridge's statements run as. Each transaction sets one of them. None can log in, is superuser
-- or bypasses row level security. `paybridge migrate` runs this file when it may create roles. Otherwise a database
-- administrator runs, in Paybridge's database, what `paybridge migrate --print-roles --for USER` prints. The user in
-- DATABASE_URL must be able to SET ROLE to `paybridge_app` and `paybridge_system`; the user that migrates, to
-- `paybridge_owner` too.
DO $$
DECLARE
    grantee constant name := current_user;
    -- From Postgres 16 on, the creator of a role is a member that may grant it, but may not SET ROLE to it.
    is_16 constant boolean := current_setting('server_version_num')::integer >= 160000;
    needed constant text := CASE WHEN is_16 THEN 'SET' ELSE 'MEMBER' END;
    options constant text := CASE WHEN is_16 THEN ' WITH SET TRUE, INHERIT FALSE' ELSE '' END;
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['paybridge_owner', 'paybridge_app', 'paybridge_system'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS NOINHERIT', role_name);
        END IF;
        IF NOT pg_has_role(grantee, role_name, needed) THEN
            EXECUTE format('GRANT %I TO %I%s', role_name, grantee, options);
        END IF;
    END LOOP;
END
$$;
GRANT USAGE, CREATE ON SCHEMA public TO paybridge_owner;
GRANT USAGE ON SCHEMA public TO paybridge_app, paybridge_system;
