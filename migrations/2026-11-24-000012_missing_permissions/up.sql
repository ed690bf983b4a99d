-- A key that lacks a permission stops only what needs that, and is told of once.
ALTER TABLE integrations
-- The calls of which was told that the present key may not make them: 'refund.create', …
ADD COLUMN forbidden_actions text[] NOT NULL DEFAULT '{}';
