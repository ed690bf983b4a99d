DROP INDEX payments_state_idx;
DROP INDEX customers_pending_idx;
DROP INDEX jobs_failed_idx;
DROP INDEX jobs_leased_idx;
DROP INDEX jobs_scheduled_idx;
DROP INDEX jobs_due_idx;
CREATE INDEX jobs_run_at_idx ON jobs (run_at);
CREATE INDEX jobs_lane_idx ON jobs (organization_id, kind, run_at);
ALTER TABLE jobs DROP COLUMN due;
