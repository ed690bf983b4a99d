ALTER TABLE payment_methods
DROP COLUMN is_unset_read;
