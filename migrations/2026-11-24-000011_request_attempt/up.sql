-- A request for a payment's link names that link, whatever links were made after it.
ALTER TABLE request_ids
-- Of `resource_id`, where that is a payment: the attempt that was made, or found, for the request.
ADD COLUMN attempt_number integer;
GRANT UPDATE (attempt_number) ON request_ids TO paybridge_app;
