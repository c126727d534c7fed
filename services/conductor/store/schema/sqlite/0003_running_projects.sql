-- Which projects have a run at work, for the replica that looks after them; status of other projects is 0. Events of runs
-- are nothing that a Conductor which knows only 0002 can fold.
UPDATE meta SET oldest = 3;
CREATE INDEX aggregates_running ON aggregates(kind, status, created_at, id) WHERE kind = 'project' AND status <> 0;
