DROP INDEX payment_methods_expiry_idx;
ALTER TABLE payment_methods
DROP COLUMN expiry_month,
DROP COLUMN is_unset_read,
DROP COLUMN is_detach_read;
CREATE INDEX payment_methods_expiry_idx ON payment_methods (
    organization_id, integration_id,
    ((details ->> 'exp_year')::integer * 12 + (details ->> 'exp_month')::integer)
)
WHERE kind = 'card' AND detach_time IS NULL
    AND reported_expiry IS DISTINCT FROM (details ->> 'exp_year')::integer * 12 + (details ->> 'exp_month')::integer;
