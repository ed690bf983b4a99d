-- No tenant sees or touches another's rows, even if a query forgets its WHERE (P10).

-- Tables of tenants. A transaction of paybridge_app names its tenant in paybridge.organization_id; without one it sees
-- nothing.
DO $$
DECLARE
    name text;
    tenant constant text := 'NULLIF(current_setting(''paybridge.organization_id'', true), '''')::uuid';
    key_column text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'organizations', 'api_tokens', 'request_ids', 'integrations', 'stripe_contacts', 'stripe_requests', 'customers',
        'payment_methods', 'checkout_sessions', 'payments', 'payment_attempts', 'charges', 'refunds', 'disputes',
        'overpayments', 'event_heads', 'events', 'deliveries', 'jobs'
    ] LOOP
        key_column := CASE name WHEN 'organizations' THEN 'id' ELSE 'organization_id' END;
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format(
            'CREATE POLICY %I ON %I TO paybridge_app USING (%I = %s)', name || '_app', name, key_column, tenant
        );
    END LOOP;
END
$$;

-- Rows of a partition are reached through the parent and its policies. A partition has none of its own, so by its own
-- name it shows no rows. ensure_delivery_partitions does the same for each new one.
ALTER TABLE deliveries_default ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

-- Tables of no tenant.
ALTER TABLE stripe_budgets ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY stripe_budgets_app ON stripe_budgets TO paybridge_app USING (false);
ALTER TABLE timers ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE schema_minimum ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE encryption_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE installation ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY installation_app ON installation FOR SELECT TO paybridge_app USING (true);

-- Without a policy of its own the owner's backfills would silently change nothing. paybridge_system works across
-- tenants, limited by its grants.
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT relname FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relrowsecurity AND NOT relispartition
    LOOP
        EXECUTE format('CREATE POLICY %I ON %I TO paybridge_owner USING (true)', name || '_owner', name);
        EXECUTE format('CREATE POLICY %I ON %I TO paybridge_system USING (true)', name || '_system', name);
    END LOOP;
END
$$;

GRANT SELECT ON organizations, api_tokens TO paybridge_app;
GRANT SELECT, INSERT ON request_ids, events TO paybridge_app;
GRANT UPDATE (attempt_number) ON request_ids TO paybridge_app;
GRANT SELECT, INSERT, UPDATE ON integrations, stripe_contacts, customers, payment_methods, checkout_sessions, payments,
    payment_attempts, refunds, disputes, overpayments, event_heads, deliveries TO paybridge_app;
GRANT SELECT, INSERT, UPDATE (settles) ON charges TO paybridge_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON stripe_requests, jobs TO paybridge_app;
GRANT SELECT (incarnation) ON installation TO paybridge_app;

-- paybridge_system creates tenants, ingests webhooks, leases jobs, and deletes old rows.
GRANT SELECT, INSERT ON organizations, api_tokens, event_heads TO paybridge_system;
GRANT UPDATE (revoke_time) ON api_tokens TO paybridge_system;
GRANT SELECT (organization_id, request_id, create_time), DELETE ON request_ids TO paybridge_system;
GRANT SELECT (organization_id, id, state) ON integrations TO paybridge_system;
GRANT SELECT, INSERT, UPDATE, DELETE ON stripe_budgets TO paybridge_system;
GRANT SELECT (organization_id, position, create_time), DELETE ON events TO paybridge_system;
GRANT UPDATE (first_position) ON event_heads TO paybridge_system;
GRANT SELECT (organization_id, integration_id, provider_event_id, created), INSERT ON deliveries TO paybridge_system;
GRANT SELECT, INSERT, UPDATE, DELETE ON jobs TO paybridge_system;
GRANT SELECT, INSERT, UPDATE ON timers TO paybridge_system;
GRANT SELECT ON schema_minimum, installation TO paybridge_system;
GRANT SELECT, INSERT ON encryption_keys TO paybridge_system;

GRANT EXECUTE ON FUNCTION ensure_delivery_partitions(date, date) TO paybridge_system;
GRANT EXECUTE ON FUNCTION drop_delivery_partitions(date) TO paybridge_system;
GRANT EXECUTE ON FUNCTION sealed_samples() TO paybridge_system;
GRANT EXECUTE ON FUNCTION present_identity() TO paybridge_system;
GRANT EXECUTE ON FUNCTION check_identity() TO paybridge_system;
