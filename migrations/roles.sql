-- The three roles that Paybridge's statements run as, one of them at a time, set for each transaction. None can log in,
-- none is superuser or bypasses row level security. `paybridge migrate` runs this file when it may create roles;
-- otherwise a database administrator does. The user in DATABASE_URL must be a member of `paybridge_app` and
-- `paybridge_system`; the one that migrates, of `paybridge_owner` too.
DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['paybridge_owner', 'paybridge_app', 'paybridge_system'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS NOINHERIT', role_name);
        END IF;
        IF NOT pg_has_role(current_user, role_name, 'MEMBER') THEN
            EXECUTE format('GRANT %I TO current_user', role_name);
        END IF;
    END LOOP;
END
$$;
GRANT USAGE, CREATE ON SCHEMA public TO paybridge_owner;
GRANT USAGE ON SCHEMA public TO paybridge_app, paybridge_system;
