"""What is asked of PostgreSQL, but for commits."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.conductor.store.base import Key, Listing
from services.conductor.store.pages import PAGE_BYTES

FORGOTTEN = 1000  # expired request keys that go whenever a replica looks for tasks to take over

NOW_NS = "(extract(epoch FROM now()) * 1000000000)::bigint"  # the database's clock
STORE_ID = "SELECT store_id FROM meta"
HEAD = "SELECT pos FROM log_head WHERE id = 1"
BOUNDS = "SELECT low, pos FROM log_head WHERE id = 1"

# Session settings of all connections: plans are made when tables may be empty and kept when they are not.
SETTINGS = {"enable_seqscan": "off", "jit": "off"}
# One statement is one snapshot, so the rows are current through that head.
SHOWN = "SELECT id, created_at, state, (SELECT pos FROM log_head WHERE id = 1) FROM aggregates"
ROW = f"{SHOWN} WHERE kind = $1 AND id = $2"
ANSWER = f"SELECT fingerprint, pos, response FROM requests WHERE key = $1 AND expires_at > {NOW_NS}"  # noqa: S608

STREAM = """
SELECT a.version, a.epoch, a.owner, e.data, e.pos, e.seq
FROM aggregates a LEFT JOIN events e ON e.kind = a.kind AND e.id = a.id
WHERE a.kind = $1 AND a.id = $2 ORDER BY e.seq
"""

# What an append whose outcome is unknown would have left.
WRITTEN = "SELECT data, pos FROM events WHERE kind = $1 AND id = $2 AND seq > $3 AND seq <= $4 ORDER BY seq"

# Those matching after a position up to so many and up to so many bytes, with how many there would be without the bytes.
# A row without an event when there is none.
_PAGE = f"""
SELECT h.pos AS head, h.low, e.data, e.pos, e.seq, e.found FROM log_head h LEFT JOIN LATERAL (
  SELECT data, pos, seq, found FROM (
    SELECT data, pos, seq, count(*) OVER () AS found,
      sum(octet_length(data)) OVER (ORDER BY pos) - octet_length(data) AS before
    FROM (SELECT data, pos, seq FROM events WHERE {{where}} pos > $1 ORDER BY {{order}} LIMIT $2) matching
  ) measured WHERE before < {PAGE_BYTES}
) e ON true WHERE h.id = 1 ORDER BY e.pos
"""  # noqa: S608 - constants
# Within a stream, seq runs as pos does, and has the index.
PAGES: Mapping[str | None, str] = {
    None: _PAGE.format(where="", order="pos"),
    "task": _PAGE.format(where="kind = 'task' AND id = $3 AND", order="seq"),
    "project": _PAGE.format(where="project_id = $3 AND project_id <> '' AND", order="pos"),
}

REPLICAS = "SELECT id FROM replicas"
JOIN = "INSERT INTO replicas(id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET beat_at = now()"
BEAT = "UPDATE replicas SET beat_at = now() WHERE id = $1 RETURNING id"
LEAVE = "DELETE FROM replicas WHERE id = $1"
EXPIRE = "DELETE FROM replicas WHERE beat_at < now() - $1::interval"
FORGET = f"""
DELETE FROM requests WHERE key = ANY (ARRAY(
  SELECT key FROM requests WHERE expires_at <= {NOW_NS} ORDER BY expires_at LIMIT {FORGOTTEN} FOR UPDATE SKIP LOCKED
))
"""  # noqa: S608 - constants

# The dead are named first: a task that changes hands meanwhile is looked at again (read committed), and its new owner
# is not among them. The recursion reads one row an owner, however many tasks are open.
CLAIM = """
WITH RECURSIVE owners(owner) AS (
  (SELECT owner FROM aggregates WHERE kind = 'task' AND ended_at IS NULL ORDER BY owner LIMIT 1)
  UNION ALL
  SELECT (SELECT owner FROM aggregates WHERE kind = 'task' AND ended_at IS NULL AND owner > o.owner
          ORDER BY owner LIMIT 1)
  FROM owners o WHERE o.owner IS NOT NULL
), dead AS MATERIALIZED (
  SELECT owner FROM owners WHERE owner IS NOT NULL AND NOT EXISTS (SELECT FROM replicas WHERE id = owner)
), orphans AS MATERIALIZED (
  SELECT kind, id FROM aggregates
  WHERE kind = 'task' AND ended_at IS NULL AND (owner IS NULL OR owner = ANY (ARRAY(SELECT owner FROM dead)))
  ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE aggregates a SET owner = $1, epoch = a.epoch + 1 FROM orphans o WHERE a.kind = o.kind AND a.id = o.id
RETURNING a.id
"""

ENDED_BEFORE = """
SELECT ended_at FROM aggregates WHERE ended_at IS NOT NULL ORDER BY ended_at DESC, id DESC LIMIT 1 OFFSET $1
"""
PRUNE = """
WITH doomed AS MATERIALIZED (
  SELECT kind, id FROM aggregates WHERE ended_at < $1 ORDER BY ended_at, id LIMIT $2 FOR UPDATE SKIP LOCKED
), gone AS (
  DELETE FROM events e USING doomed d WHERE e.kind = d.kind AND e.id = d.id RETURNING e.pos
), rows AS (
  DELETE FROM aggregates a USING doomed d WHERE a.kind = d.kind AND a.id = d.id RETURNING 1
), low AS (
  UPDATE log_head SET low = greatest(low, (SELECT max(pos) FROM gone)) WHERE id = 1 AND EXISTS (SELECT FROM rows)
)
SELECT count(*) FROM rows
"""


def listing(wanted: Listing) -> tuple[str, Sequence[Any]]:
    """Returns the query of a listing and its parameters."""
    values: list[Any] = []
    # Written out, so that the partial indices fit: it is one of two words.
    conditions = [f"kind = '{wanted.kind}'"]
    if wanted.status:
        values.append(wanted.status)
        conditions.append(f"status = ${len(values)} AND status <> 0")
    for column, value in (("project_id", wanted.project_id), ("desktop_id", wanted.desktop_id)):
        if value is not None:
            values.append(value)
            conditions.append(f"{column} = ${len(values)} AND {column} <> ''")
    if wanted.before is not None:
        values += wanted.before
        conditions.append(f"(created_at, id) < (${len(values) - 1}, ${len(values)})")
    values.append(wanted.limit)
    where = " AND ".join(conditions)
    return f"{SHOWN} WHERE {where} ORDER BY created_at DESC, id DESC LIMIT ${len(values)}", values


def page(after: int, limit: int, key: Key | None) -> tuple[str, Sequence[Any]]:
    """Returns the query of a page and its parameters."""
    if key is None:
        return PAGES[None], (after, limit)
    return PAGES[key[0]], (after, limit, key[1])
