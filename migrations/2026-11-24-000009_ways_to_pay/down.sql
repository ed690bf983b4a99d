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
