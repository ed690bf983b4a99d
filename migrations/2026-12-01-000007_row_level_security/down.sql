REVOKE ALL ON FUNCTION ensure_delivery_partitions(date, date) FROM paybridge_system;
REVOKE ALL ON FUNCTION drop_delivery_partitions(date) FROM paybridge_system;
REVOKE ALL ON FUNCTION sealed_samples() FROM paybridge_system;
REVOKE ALL ON FUNCTION present_identity() FROM paybridge_system;
REVOKE ALL ON FUNCTION check_identity() FROM paybridge_system;
DO $$
DECLARE
    policy record;
    name text;
BEGIN
    FOR policy IN SELECT policyname, tablename FROM pg_policies WHERE schemaname = 'public' LOOP
        EXECUTE format('DROP POLICY %I ON %I', policy.policyname, policy.tablename);
    END LOOP;
    FOR name IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relrowsecurity LOOP
        EXECUTE format('ALTER TABLE %I NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY', name);
        EXECUTE format('REVOKE ALL ON %I FROM paybridge_app, paybridge_system', name);
    END LOOP;
END
$$;
