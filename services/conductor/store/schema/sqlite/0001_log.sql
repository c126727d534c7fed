-- The log and its views. PostgreSQL has the same tables; only types differ.
-- Times are nanoseconds since the epoch. `kind` is 'task' or 'project'.

CREATE TABLE meta(
  schema_version INTEGER NOT NULL,
  store_id TEXT NOT NULL                 -- tells one store's cursors from another's
);

-- One row: the position of the newest event and of the oldest one kept. Bumped in the transaction that inserts the
-- events, so positions are gapless and in commit order, and survive pruning.
CREATE TABLE log_head(
  id INTEGER PRIMARY KEY CHECK (id = 1),
  pos INTEGER NOT NULL,
  low INTEGER NOT NULL
);

-- The newest state of each task and project.
CREATE TABLE aggregates(
  kind TEXT NOT NULL,
  id TEXT NOT NULL,
  version INTEGER NOT NULL,              -- seq of its last event: the optimistic lock
  status INTEGER NOT NULL,               -- TaskStatus; 0 for projects
  finished INTEGER NOT NULL,             -- 1 when nothing will happen to it any more
  project_id TEXT NOT NULL,              -- '' when none
  desktop_id TEXT NOT NULL,              -- '' when none
  owner TEXT,                            -- which replica works on it
  epoch INTEGER NOT NULL,                -- fencing token: bumped whenever the owner changes
  created_at INTEGER NOT NULL,
  state BLOB NOT NULL,                   -- Task or ProjectState, without as_of_sequence
  PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE INDEX aggregates_newest ON aggregates(kind, created_at, id);
CREATE INDEX aggregates_status ON aggregates(kind, status, created_at, id) WHERE kind = 'task';
CREATE INDEX aggregates_project ON aggregates(kind, project_id, created_at, id) WHERE project_id <> '';
CREATE INDEX aggregates_desktop ON aggregates(kind, desktop_id, created_at, id) WHERE desktop_id <> '';
CREATE INDEX aggregates_open ON aggregates(kind, id) WHERE finished = 0;

CREATE TABLE events(
  pos INTEGER PRIMARY KEY,
  kind TEXT NOT NULL,
  id TEXT NOT NULL,
  seq INTEGER NOT NULL,
  project_id TEXT NOT NULL,              -- '' when none
  data BLOB NOT NULL                     -- Event, without sequence and stream_sequence
);
CREATE UNIQUE INDEX events_stream ON events(kind, id, seq);
CREATE INDEX events_project ON events(project_id, pos) WHERE project_id <> '';

-- Idempotency keys and the answers they got, written in the transaction of the command itself.
CREATE TABLE requests(
  key TEXT PRIMARY KEY,
  fingerprint BLOB NOT NULL,             -- SHA-256 of the request
  pos INTEGER NOT NULL,                  -- position of the last event it led to
  response BLOB NOT NULL,
  expires_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX requests_expiry ON requests(expires_at);

-- One heartbeat row per replica, not per task.
CREATE TABLE replicas(
  id TEXT PRIMARY KEY,
  beat_at INTEGER NOT NULL
) WITHOUT ROWID;
