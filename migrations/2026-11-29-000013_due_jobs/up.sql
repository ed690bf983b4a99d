-- A job is scheduled, due, leased or parked, and each has an index that holds nothing else, so that what is looked for
-- stands at the index's head whatever the table's statistics say.
ALTER TABLE jobs
-- Whether run_at has come since the job was last scheduled. Whoever leases moves scheduled jobs here, a bounded number at
-- a time; a job that is enqueued to run at once is due from the start.
ADD COLUMN due boolean NOT NULL DEFAULT false;
DROP INDEX jobs_lane_idx;
DROP INDEX jobs_run_at_idx;
CREATE INDEX jobs_due_idx ON jobs (organization_id, kind, run_at)
WHERE due AND lease_until IS NULL AND park_time IS NULL;
CREATE INDEX jobs_scheduled_idx ON jobs (run_at) WHERE NOT due AND lease_until IS NULL AND park_time IS NULL;
CREATE INDEX jobs_leased_idx ON jobs (lease_until) WHERE lease_until IS NOT NULL;
-- What is tried again at once when a key is repaired.
CREATE INDEX jobs_failed_idx ON jobs (organization_id, id) WHERE failures > 0;
-- While a link is made or checked; few are at any time.
CREATE INDEX customers_pending_idx ON customers (organization_id, integration_id, id) WHERE link_state = 'pending';
-- Payments of a state, in the order of their lists.
CREATE INDEX payments_state_idx ON payments (organization_id, state, id);
