-- Milliseconds of `at`, then chance: ids of ours run with time. The release before this one inserts refunds without one.
CREATE FUNCTION uuid_v7(at timestamptz) RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT encode(
        set_bit(set_bit(overlay(
            uuid_send(gen_random_uuid())
            PLACING substring(int8send(floor(extract(epoch FROM at) * 1000)::bigint) FROM 3) FROM 1 FOR 6
        ), 52, 1), 53, 1), 'hex')::uuid
$$;

-- A refund has a row from the moment it is asked for, before Stripe knows of it; one made by hand at Stripe has a row
-- from the moment it is told.
ALTER TABLE refunds
    ADD COLUMN id uuid NOT NULL DEFAULT uuid_v7(clock_timestamp()),
    -- The integration that took the money and gives it back; empty: the payment's, as the release before this one knew.
    ADD COLUMN integration_id uuid,
    -- Since when it has not been known what came of the call to Stripe (P2).
    ADD COLUMN unknown_since timestamptz,
    -- When its newest key was found to bring no answer any more: too old, or a stored 500 (P2).
    ADD COLUMN dead_key_time timestamptz,
    ADD COLUMN create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Minor units. Empty: all that is left of the charge, until Stripe says how much that was.
    ALTER COLUMN amount DROP NOT NULL;
UPDATE refunds SET id = uuid_v7(update_time), create_time = update_time;
ALTER TABLE refunds DROP CONSTRAINT refunds_pkey;
ALTER TABLE refunds
    ADD CONSTRAINT refunds_pkey PRIMARY KEY (organization_id, id),
    ADD CONSTRAINT refunds_provider_key UNIQUE (organization_id, provider_refund_id),
    ADD CONSTRAINT refunds_integration_fkey FOREIGN KEY (organization_id, integration_id)
        REFERENCES integrations (organization_id, id);
-- Empty until Stripe has made it.
ALTER TABLE refunds ALTER COLUMN provider_refund_id DROP NOT NULL;
DROP INDEX refunds_payment_idx;
CREATE INDEX refunds_payment_idx ON refunds (organization_id, payment_id, id);

-- Charges that took money for a payment, and can be refunded: the one that settled it, and overpayments (P12). Those of
-- attempts that settled a payment before this table was there stand in payment_attempts alone.
CREATE TABLE charges (
    organization_id uuid NOT NULL CONSTRAINT charges_organization_fkey REFERENCES organizations,
    provider_charge_id text NOT NULL,
    payment_id uuid NOT NULL,
    -- The integration that took the money.
    integration_id uuid NOT NULL,
    -- Minor units, as Stripe reports them.
    amount bigint NOT NULL,
    -- Stripe's, which need not be the payment's.
    currency char(3) NOT NULL CONSTRAINT charges_currency_check CHECK (currency ~ '^[A-Z]{3}$'),
    -- Whether it settled the payment; else it came in beside.
    settles boolean NOT NULL,
    create_time timestamptz NOT NULL,
    CONSTRAINT charges_pkey PRIMARY KEY (organization_id, provider_charge_id),
    CONSTRAINT charges_payment_fkey FOREIGN KEY (organization_id, payment_id)
        REFERENCES payments (organization_id, id),
    CONSTRAINT charges_integration_fkey FOREIGN KEY (organization_id, integration_id)
        REFERENCES integrations (organization_id, id)
);
CREATE INDEX charges_payment_idx ON charges (organization_id, payment_id);

-- A refund or a dispute names its intent, which may be an earlier one of its payment.
CREATE INDEX payment_attempts_intent_idx ON payment_attempts (organization_id, provider_payment_intent_id);

-- P10, as for every table of a tenant.
ALTER TABLE charges ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY charges_owner ON charges TO paybridge_owner USING (true);
CREATE POLICY charges_system ON charges TO paybridge_system USING (true);
CREATE POLICY charges_app ON charges TO paybridge_app
    USING (organization_id = NULLIF(current_setting('paybridge.organization_id', true), '')::uuid);
GRANT SELECT, INSERT, UPDATE (settles) ON charges TO paybridge_app;
