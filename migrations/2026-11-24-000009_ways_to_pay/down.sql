-- The release before this one knows neither links nor errands: it would charge beside an open link, and forget what
-- somebody was told is accepted.
DO $$
DECLARE
    busy bigint;
BEGIN
    SELECT count(*) INTO busy FROM payments
    WHERE (errand IS NOT NULL AND errand ->> 'kind' <> 'cancel') OR EXISTS (
        SELECT FROM payment_attempts AS a
        WHERE a.organization_id = payments.organization_id AND a.payment_id = payments.id
            AND a.way = 'link' AND a.state = 'open');
    IF busy > 0 THEN
        RAISE EXCEPTION '% payment(s) have an open link or a change that waits: let them end, or cancel them, first', busy;
    END IF;
END
$$;

-- What it knows of a cancellation is the time, and a job of its own.
INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, asked, failures, lease_epoch)
SELECT gen_random_uuid(), organization_id, 'cancel_payment', id, '', update_time, 1, 0, 0
FROM payments
WHERE cancel_request_time IS NOT NULL AND state NOT IN ('succeeded', 'canceled')
ON CONFLICT ON CONSTRAINT jobs_object_key DO UPDATE
SET asked = jobs.asked + 1, run_at = LEAST(jobs.run_at, excluded.run_at);

DROP INDEX payment_attempts_session_idx;
DELETE FROM payment_attempts WHERE way = 'link';
ALTER TABLE payment_attempts
    DROP CONSTRAINT payment_attempts_confirm_check,
    DROP COLUMN expire_time,
    DROP COLUMN url,
    DROP COLUMN provider_session_id,
    ALTER COLUMN provider_payment_intent_id SET NOT NULL,
    ALTER COLUMN payment_method_id SET NOT NULL,
    DROP COLUMN way;
ALTER TABLE payments
    DROP COLUMN manual,
    DROP COLUMN provider_charge_id,
    DROP COLUMN action_time,
    DROP COLUMN on_session,
    DROP COLUMN errand;
