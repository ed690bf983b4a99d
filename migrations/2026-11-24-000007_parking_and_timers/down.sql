-- Workers of the release before this one fail whenever they lease a kind of job that they don't know.
DELETE FROM jobs WHERE kind IN ('sweep_integration', 'check_endpoint', 'reconcile_session');
DROP INDEX refunds_moving_idx;
REVOKE SELECT (organization_id, id, state) ON integrations FROM paybridge_system;
ALTER TABLE integrations
DROP COLUMN list_read_time,
DROP COLUMN list_fast_until,
DROP COLUMN sweep_time,
DROP COLUMN provider_old_endpoint_id,
DROP COLUMN sealed_old_webhook_secret,
DROP COLUMN endpoint_fault;
DROP TABLE timers;
ALTER TABLE jobs
DROP COLUMN own_failures,
DROP COLUMN park_time;
