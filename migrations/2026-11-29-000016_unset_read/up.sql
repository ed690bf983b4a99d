ALTER TABLE payment_methods
-- Whether unset_time is when a read found that the customer has no default any more. Stripe's event, which has its own time,
-- corrects both.
ADD COLUMN is_unset_read boolean NOT NULL DEFAULT false;
