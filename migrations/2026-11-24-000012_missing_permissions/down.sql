-- The release before this one pauses the integration where the key lacks any permission.
ALTER TABLE integrations
DROP COLUMN forbidden_actions;
