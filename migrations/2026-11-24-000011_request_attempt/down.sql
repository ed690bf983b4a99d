-- The release before this one answers with the payment's newest link.
ALTER TABLE request_ids
DROP COLUMN attempt_number;
