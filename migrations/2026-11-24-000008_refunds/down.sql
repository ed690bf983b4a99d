DROP INDEX payment_attempts_intent_idx;
DROP TABLE charges;
DELETE FROM refunds WHERE provider_refund_id IS NULL OR amount IS NULL;
ALTER TABLE refunds DROP CONSTRAINT refunds_pkey, DROP CONSTRAINT refunds_provider_key;
ALTER TABLE refunds
    DROP COLUMN id,
    DROP COLUMN integration_id,
    DROP COLUMN unknown_since,
    DROP COLUMN dead_key_time,
    DROP COLUMN create_time,
    ALTER COLUMN provider_refund_id SET NOT NULL,
    ALTER COLUMN amount SET NOT NULL,
    ADD CONSTRAINT refunds_pkey PRIMARY KEY (organization_id, provider_refund_id);
CREATE INDEX refunds_payment_idx ON refunds (organization_id, payment_id);
DROP FUNCTION uuid_v7(timestamptz);
