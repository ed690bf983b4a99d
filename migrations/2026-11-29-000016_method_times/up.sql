DROP INDEX payment_methods_expiry_idx;

ALTER TABLE payment_methods
-- Whether detach_time is when a read found the method detached; Stripe's event, which has its own time, corrects both.
ADD COLUMN is_detach_read boolean NOT NULL DEFAULT false,
-- Whether unset_time is when a read found that the customer has no default any more; Stripe's event corrects both.
ADD COLUMN is_unset_read boolean NOT NULL DEFAULT false,
-- A card's month of expiry: year * 12 + month, month 1 to 12. A column of its own, since row level security keeps an
-- expression over details from being an index condition: its functions are not leakproof.
ADD COLUMN expiry_month integer
    GENERATED ALWAYS AS ((details ->> 'exp_year')::integer * 12 + (details ->> 'exp_month')::integer) STORED;

-- Cards by their month of expiry, until it is reported.
CREATE INDEX payment_methods_expiry_idx ON payment_methods (organization_id, integration_id, expiry_month)
WHERE kind = 'card' AND detach_time IS NULL AND reported_expiry IS DISTINCT FROM expiry_month;
