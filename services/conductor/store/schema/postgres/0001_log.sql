-- The log and its views, as in SQLite; only types differ. Times are nanoseconds since the epoch, given by the writer,
-- but for leases, which go by the database's clock. Names sort by their bytes, whatever the database's language.

CREATE TABLE meta(
  schema_version integer NOT NULL,
  oldest integer NOT NULL,               -- the oldest Conductor that may run on this schema, by the schema it knows
  store_id text NOT NULL                 -- tells one store's cursors from another's; names its channel too
);

-- One row: the position of the newest event, and up to which events may be missing. Bumped in the statement that
-- inserts the events and locked until its commit, so positions are gapless and in commit order, and survive pruning.
CREATE TABLE log_head(
  id integer PRIMARY KEY CHECK (id = 1),
  pos bigint NOT NULL,
  low bigint NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- The newest state of each task and project.
CREATE TABLE aggregates(
  kind text COLLATE "C" NOT NULL,        -- 'task' or 'project'
  id text COLLATE "C" NOT NULL,
  version bigint NOT NULL,               -- seq of its last event: the optimistic lock
  status integer NOT NULL,               -- TaskStatus; 0 for projects
  ended_at bigint,                       -- when nothing happens to it any more; NULL until then
  project_id text COLLATE "C" NOT NULL,  -- '' when none
  desktop_id text COLLATE "C" NOT NULL,  -- '' when none
  owner text COLLATE "C",                -- which replica works on it
  epoch bigint NOT NULL,                 -- fencing token: bumped whenever the owner changes
  created_at bigint NOT NULL,
  state bytea NOT NULL,                  -- Task or ProjectState, without as_of_sequence
  PRIMARY KEY (kind, id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);
CREATE INDEX aggregates_newest ON aggregates(kind, created_at, id);
CREATE INDEX aggregates_status ON aggregates(status, created_at, id) WHERE kind = 'task';
CREATE INDEX aggregates_project ON aggregates(kind, project_id, created_at, id) WHERE project_id <> '';
CREATE INDEX aggregates_desktop ON aggregates(kind, desktop_id, created_at, id) WHERE desktop_id <> '';
CREATE INDEX aggregates_open ON aggregates(owner, id) WHERE kind = 'task' AND ended_at IS NULL;
CREATE INDEX aggregates_ended ON aggregates(ended_at, id) WHERE ended_at IS NOT NULL;

CREATE TABLE events(
  pos bigint PRIMARY KEY,
  kind text COLLATE "C" NOT NULL,
  id text COLLATE "C" NOT NULL,
  seq bigint NOT NULL,
  project_id text COLLATE "C" NOT NULL,  -- '' when none
  data bytea NOT NULL                    -- Event, without sequence and stream_sequence
);
CREATE UNIQUE INDEX events_stream ON events(kind, id, seq);
CREATE INDEX events_project ON events(project_id, pos) WHERE project_id <> '';

-- Idempotency keys and the answers they got, written in the transaction of the command itself.
CREATE TABLE requests(
  key text COLLATE "C" PRIMARY KEY,
  fingerprint bytea NOT NULL,            -- SHA-256 of the request
  pos bigint NOT NULL,                   -- position of the last event that the answer includes
  response bytea NOT NULL,
  expires_at bigint NOT NULL
);
CREATE INDEX requests_expiry ON requests(expires_at);

-- One heartbeat row per replica, not per task. Who has no row is dead.
CREATE TABLE replicas(
  id text COLLATE "C" PRIMARY KEY,
  beat_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

INSERT INTO meta VALUES (1, 1, gen_random_uuid()::text);
INSERT INTO log_head VALUES (1, 0, 0);
