-- What replicas and retention need. A Conductor that knows only 0001 cannot run on it: SQLite has one process anyway.

-- The oldest Conductor that may run on this schema, by the schema it knows: expand first, contract a release later.
ALTER TABLE meta ADD COLUMN oldest INTEGER NOT NULL DEFAULT 2;

-- When nothing happens to it any more; NULL until then. Replaces `finished`. Of what ended before this column came,
-- only the beginning is known.
ALTER TABLE aggregates ADD COLUMN ended_at INTEGER;
UPDATE aggregates SET ended_at = created_at WHERE finished;
DROP INDEX aggregates_open;
ALTER TABLE aggregates DROP COLUMN finished;
CREATE INDEX aggregates_open ON aggregates(owner, id) WHERE kind = 'task' AND ended_at IS NULL;
CREATE INDEX aggregates_ended ON aggregates(ended_at, id) WHERE ended_at IS NOT NULL;

-- One process has the file to itself, so who is alive is known in memory. PostgreSQL keeps this table.
DROP TABLE replicas;
