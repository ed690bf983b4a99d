-- One open way to pay (P1): an attempt is a confirm of the payment's intent, or a link to a page where the payer pays.
-- Both hold the same slot, payment_attempts_slot_key.
ALTER TABLE payments
    -- What is to be done once nothing at Stripe can take money for it any more: {"kind": "cancel"}, …
    ADD COLUMN errand jsonb,
    -- The next confirm is made with the customer at hand (3-D Secure).
    ADD COLUMN on_session boolean NOT NULL DEFAULT false,
    -- Since when the customer is asked to prove who they are.
    ADD COLUMN action_time timestamptz,
    -- Stripe's ch_… that has paid it.
    ADD COLUMN provider_charge_id text,
    -- What somebody has recorded as paid elsewhere, over the whole amount.
    ADD COLUMN manual jsonb;

-- Cancellations that an earlier release has taken on.
UPDATE payments SET errand = '{"kind": "cancel"}'
WHERE cancel_request_time IS NOT NULL AND state NOT IN ('succeeded', 'canceled');
INSERT INTO jobs (id, organization_id, kind, object_id, object_key, object_time, run_at, asked, failures, lease_epoch)
SELECT gen_random_uuid(), organization_id, 'submit_payment', object_id, object_key, object_time, run_at, 1, 0, 0
FROM jobs WHERE kind = 'cancel_payment'
ON CONFLICT ON CONSTRAINT jobs_object_key DO UPDATE
SET asked = jobs.asked + 1, run_at = LEAST(jobs.run_at, excluded.run_at);
DELETE FROM jobs WHERE kind = 'cancel_payment';

UPDATE payments SET provider_charge_id = paid.provider_charge_id
FROM payment_attempts AS paid
WHERE payments.state = 'succeeded' AND paid.state = 'succeeded'
    AND paid.organization_id = payments.organization_id AND paid.payment_id = payments.id;

ALTER TABLE payment_attempts
    ADD COLUMN way text NOT NULL DEFAULT 'confirm'
        CONSTRAINT payment_attempts_way_check CHECK (way IN ('confirm', 'link')),
    -- A link has none.
    ALTER COLUMN payment_method_id DROP NOT NULL,
    -- A link's is made by Stripe when the payer pays.
    ALTER COLUMN provider_payment_intent_id DROP NOT NULL,
    -- Of a link. Until it is here the link has not left us, and nobody can pay there.
    ADD COLUMN provider_session_id text,
    ADD COLUMN url text,
    -- When the link ends, as Stripe says.
    ADD COLUMN expire_time timestamptz,
    ADD CONSTRAINT payment_attempts_confirm_check CHECK (
        way = 'link' OR (payment_method_id IS NOT NULL AND provider_payment_intent_id IS NOT NULL));
CREATE INDEX payment_attempts_session_idx ON payment_attempts (organization_id, provider_session_id)
WHERE provider_session_id IS NOT NULL;
