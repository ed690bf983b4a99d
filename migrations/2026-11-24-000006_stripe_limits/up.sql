-- What Stripe's rate limits leave to all replicas together: one row for each of Stripe's buckets that was used lately.
-- Nothing of a tenant's is in it, and no tenant's role sees it: several organizations may share a Stripe account.
CREATE TABLE stripe_budgets (
    provider_account_id text NOT NULL,
    livemode boolean NOT NULL,
    -- Method and route, such as 'POST /v1/payment_intents'; empty for the account's own bucket, which every call uses.
    endpoint text NOT NULL,
    -- The first moment, in the time of Paybridge's clock, for which no replica has taken the right to call.
    next_time timestamptz NOT NULL,
    -- Calls a second, as of rate_time. It grows back to the limit by itself.
    rate double precision NOT NULL CONSTRAINT stripe_budgets_rate_check CHECK (rate > 0),
    -- When Stripe last turned a call of this bucket away, in the time of Paybridge's clock.
    rate_time timestamptz NOT NULL,
    CONSTRAINT stripe_budgets_pkey PRIMARY KEY (provider_account_id, livemode, endpoint)
) WITH (fillfactor = 50);
CREATE INDEX stripe_budgets_next_time_idx ON stripe_budgets (next_time);

ALTER TABLE stripe_budgets ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY stripe_budgets_owner ON stripe_budgets TO paybridge_owner USING (true);
CREATE POLICY stripe_budgets_system ON stripe_budgets TO paybridge_system USING (true);
CREATE POLICY stripe_budgets_app ON stripe_budgets TO paybridge_app USING (false);
GRANT SELECT, INSERT, UPDATE, DELETE ON stripe_budgets TO paybridge_system;

-- Due jobs are taken in turns from lanes, one for each organization and kind, so that none waits behind a long one.
CREATE INDEX jobs_lane_idx ON jobs (organization_id, kind, run_at);
