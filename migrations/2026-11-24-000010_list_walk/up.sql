-- The events list is read from its newest event back, page by page: where a read that was cut off goes on (P6).
ALTER TABLE integrations
-- The last event of the last page that was read; null: no read was cut off.
ADD COLUMN list_walk_after text,
-- How far back the read goes.
ADD COLUMN list_walk_since timestamptz,
-- The newest time that it has read: `poll_time`, once it has ended.
ADD COLUMN list_walk_newest timestamptz;
