-- A key that lacks a permission stops only what needs that, and is told of once.
ALTER TABLE integrations
-- The calls of which was told that the present key may not make them: 'refund.create', …
ADD COLUMN forbidden_actions text[] NOT NULL DEFAULT '{}';
-- What watches over an integration is not parked any more.
UPDATE jobs SET park_time = NULL, own_failures = 0
WHERE park_time IS NOT NULL AND kind IN ('poll_events', 'sweep_integration', 'check_endpoint');
