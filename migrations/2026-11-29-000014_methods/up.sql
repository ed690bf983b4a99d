ALTER TABLE payment_methods
-- The method's mandates that were active at some time, by Stripe's ids. The release before this one reads and writes one
-- mandate in provider_mandate_id; it counts here, too.
ADD COLUMN mandate_ids text[] NOT NULL DEFAULT '{}',
-- Its mandates that have ended. One stays so, whatever is told of it later; ended_mandate_id is one of them.
ADD COLUMN ended_mandate_ids text[] NOT NULL DEFAULT '{}',
-- When somebody last unset the method as the customer's default at Stripe. It counts as a choice of none unless the method
-- was detached by then: Stripe itself unsets a detached default.
ADD COLUMN unset_time timestamptz,
-- Whether detach_time is when a read found the method detached; Stripe's event, which has its own time, corrects both.
ADD COLUMN is_detach_read boolean NOT NULL DEFAULT false,
-- A card's month of expiry: year * 12 + month, month 1 to 12. A column of its own, since row level security keeps an
-- expression over details from being an index condition: its functions are not leakproof.
ADD COLUMN expiry_month integer
    GENERATED ALWAYS AS ((details ->> 'exp_year')::integer * 12 + (details ->> 'exp_month')::integer) STORED,
-- The month of expiry that was reported by payment_method.expiring, in the same count.
ADD COLUMN reported_expiry integer;

-- Cards by their month of expiry, until it is reported.
CREATE INDEX payment_methods_expiry_idx ON payment_methods (organization_id, integration_id, expiry_month)
WHERE kind = 'card' AND detach_time IS NULL AND reported_expiry IS DISTINCT FROM expiry_month;

ALTER TABLE customers
-- Stripe's own default as it was last told or written: a PaymentMethod's id, or that of an old card or source. What a read
-- shows besides was chosen by somebody, and its event is missing.
ADD COLUMN provider_default_id text,
-- When it became that, in whole seconds where Stripe has told; empty while nothing is known.
ADD COLUMN provider_default_time timestamptz;
