-- P10: no tenant sees or touches another's rows, even if a query forgets its WHERE.
DO $$
DECLARE
    name text;
    tenant constant text := 'NULLIF(current_setting(''paybridge.organization_id'', true), '''')::uuid';
    key_column text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'organizations', 'api_tokens', 'integrations', 'frozen_requests', 'request_ids', 'customers',
        'payment_methods', 'checkout_sessions', 'payments', 'payment_attempts', 'refunds', 'disputes', 'overpayments',
        'event_heads', 'events', 'deliveries', 'jobs'
    ] LOOP
        key_column := CASE name WHEN 'organizations' THEN 'id' ELSE 'organization_id' END;
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        -- Without a policy of its own the owner's backfills would silently change nothing.
        EXECUTE format('CREATE POLICY %I ON %I TO paybridge_owner USING (true)', name || '_owner', name);
        EXECUTE format('CREATE POLICY %I ON %I TO paybridge_system USING (true)', name || '_system', name);
        EXECUTE format(
            'CREATE POLICY %I ON %I TO paybridge_app USING (%I = %s)', name || '_app', name, key_column, tenant
        );
    END LOOP;
END
$$;

GRANT SELECT ON organizations, api_tokens TO paybridge_app;
GRANT SELECT, INSERT, UPDATE ON integrations, customers, payment_methods, checkout_sessions, payments,
    payment_attempts, refunds, disputes, overpayments, event_heads, deliveries TO paybridge_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON jobs, frozen_requests TO paybridge_app;
GRANT SELECT, INSERT ON request_ids, events TO paybridge_app;

-- `system` works across tenants, held in by what it may do: make tenants, take in webhooks, lease jobs, retire old rows.
GRANT SELECT, INSERT ON organizations, api_tokens, event_heads TO paybridge_system;
GRANT UPDATE (revoke_time) ON api_tokens TO paybridge_system;
GRANT SELECT (organization_id, integration_id, provider_event_id, created), INSERT ON deliveries TO paybridge_system;
GRANT SELECT, INSERT, UPDATE, DELETE ON jobs TO paybridge_system;
GRANT SELECT (organization_id, request_id, create_time), DELETE ON request_ids TO paybridge_system;
GRANT SELECT (organization_id, position, create_time), DELETE ON events TO paybridge_system;
GRANT UPDATE (first_position) ON event_heads TO paybridge_system;
REVOKE ALL ON FUNCTION ensure_delivery_partitions(date, date) FROM PUBLIC;
REVOKE ALL ON FUNCTION drop_delivery_partitions(date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ensure_delivery_partitions(date, date) TO paybridge_system;
GRANT EXECUTE ON FUNCTION drop_delivery_partitions(date) TO paybridge_system;
