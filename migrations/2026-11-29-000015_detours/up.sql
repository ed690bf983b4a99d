-- What a payment remembers while it is collected another way.
ALTER TABLE payments
-- It has failed for lack of a payment method, and the one retry that Paybridge makes of itself is still to come. Of one
-- that the release before this one has written, the failure says it.
ADD COLUMN awaits_method boolean NOT NULL DEFAULT false,
-- Minor units, in the payment's currency. The amount that a caller requested while the payer was about to pay the present
-- one: refused, and what comes in is compared with it.
ADD COLUMN refused_amount bigint,
-- Minor units, in the payment's currency. What charges made by hand at Stripe have brought of the present amount, without
-- paying it in full; a change of the amount reckons with them.
ADD COLUMN part_received bigint NOT NULL DEFAULT 0;
