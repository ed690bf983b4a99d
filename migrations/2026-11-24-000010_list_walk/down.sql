-- The release before this one begins anew, and knows what it reads again by its id.
ALTER TABLE integrations
DROP COLUMN list_walk_after,
DROP COLUMN list_walk_since,
DROP COLUMN list_walk_newest;
