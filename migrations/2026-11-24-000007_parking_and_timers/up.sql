-- A job that keeps failing for a reason of its own is parked: nobody leases it until an operator asks for it.
ALTER TABLE jobs
-- Of `failures`, those for a reason of the job's own: neither Stripe nor the database was away, or limited us.
ADD COLUMN own_failures integer NOT NULL DEFAULT 0,
-- When it was parked, in the time of Paybridge's clock; the reason stands in last_error.
ADD COLUMN park_time timestamptz;
CREATE INDEX jobs_parked_idx ON jobs (organization_id, park_time) WHERE park_time IS NOT NULL;

-- What is done by the clock alone, once and not once a process: whoever moves next_time forward does it. No tenant's.
CREATE TABLE timers (
    name text CONSTRAINT timers_pkey PRIMARY KEY,
    -- In the time of Paybridge's clock.
    next_time timestamptz NOT NULL
);
ALTER TABLE timers ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY timers_owner ON timers TO paybridge_owner USING (true);
CREATE POLICY timers_system ON timers TO paybridge_system USING (true);
GRANT SELECT, INSERT, UPDATE ON timers TO paybridge_system;

-- How far the reconcilers are with an integration; each column is written by one of them alone.
ALTER TABLE integrations
-- When the events list was last read to its end. `poll_time` is the newest event in it, which may be much older.
ADD COLUMN list_read_time timestamptz,
-- Until then the list is read fast: it was not read for long before.
ADD COLUMN list_fast_until timestamptz,
-- Up to when stale objects have been asked about.
ADD COLUMN sweep_time timestamptz,
-- While an endpoint is replaced: the one that is to be deleted, and its sealed secret, which still counts.
ADD COLUMN provider_old_endpoint_id text,
ADD COLUMN sealed_old_webhook_secret bytea,
-- What is wrong with the endpoint and could not be mended; told once.
ADD COLUMN endpoint_fault text;
-- To give every integration its reconcilers.
GRANT SELECT (organization_id, id, state) ON integrations TO paybridge_system;
-- Few refunds are on their way at any time; they are asked about.
CREATE INDEX refunds_moving_idx ON refunds (organization_id, payment_id) WHERE status IN ('pending', 'requires_action');
