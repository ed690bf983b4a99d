ALTER TABLE payment_methods
-- Every mandate of the method of which anything is known, by Stripe's ids. The release before this one reads and writes one
-- of them in provider_mandate_id; it counts here, too.
ADD COLUMN mandate_ids text[] NOT NULL DEFAULT '{}',
-- Those of them that have ended. One stays so, whatever is told of it later; ended_mandate_id is one of them.
ADD COLUMN ended_mandate_ids text[] NOT NULL DEFAULT '{}',
-- When somebody last unset the method as the customer's default at Stripe. It counts as a choice of none unless the method
-- was detached by then: Stripe itself unsets a detached default.
ADD COLUMN unset_time timestamptz,
-- The month of expiry that was reported by payment_method.expiring: year * 12 + month, month 1 to 12.
ADD COLUMN reported_expiry integer;

-- Cards by their month of expiry, in the same count, until it is reported.
CREATE INDEX payment_methods_expiry_idx ON payment_methods (
    organization_id, integration_id,
    ((details ->> 'exp_year')::integer * 12 + (details ->> 'exp_month')::integer)
)
WHERE kind = 'card' AND detach_time IS NULL
    AND reported_expiry IS DISTINCT FROM (details ->> 'exp_year')::integer * 12 + (details ->> 'exp_month')::integer;

ALTER TABLE customers
-- Stripe's own default as it was last told or written: a PaymentMethod's id, or that of an old card or source. What a read
-- shows besides was chosen by somebody, and its event is missing.
ADD COLUMN provider_default_id text,
-- When it became that, in whole seconds where Stripe has told; empty while nothing is known.
ADD COLUMN provider_default_time timestamptz;
