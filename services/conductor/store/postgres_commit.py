"""The one statement that makes a batch of appends durable, and what goes in and comes out of it.

It is one statement, so that no row is locked while a message travels. Its parts run in the order in which they use each
other: rows of tasks and projects, then the counter row, held until the commit, then all that needs positions. Whoever
waits for the counter row holds nothing that its holder still wants. Setting up a part costs the server as much as
writing some rows, so a batch of one, as most are when little is going on, has a statement of its own, and request keys
are dealt with only where there are some.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from services.conductor.store.base import Answer, Append, Appended, Conflict, Outcome
from services.conductor.store.postgres_sql import NOW_NS, SETTINGS

# Session settings of the connection that commits. Rows are looked up by index, one by one in the order of the batch,
# which is that of their ids: so two batches lock rows in the same order, and do not wait for each other.
COMMIT_SETTINGS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    **SETTINGS,
}

COLUMNS = "kind, id, version, status, ended_at, project_id, desktop_id, owner, epoch, created_at, state"
VALUES = "kind, id, count, status, ended_at, project_id, desktop_id, owner, epoch, created_at, state"
SHOWN = "version = i.version + i.count, status = i.status, ended_at = i.ended_at, state = i.state"
SAME = "a.kind = i.kind AND a.id = i.id AND a.version = i.version AND a.epoch = i.epoch"
APPENDED = "pos, NULL::bytea AS fingerprint, NULL::bytea AS response"  # in place of an earlier answer

# Names and types of what is told of each append …
INPUT = (
    *(("ord", "int"), ("kind", "text"), ("id", "text"), ("version", "bigint"), ("epoch", "bigint"), ("owner", "text")),
    *(("status", "int"), ("ended_at", "bigint"), ("project_id", "text"), ("desktop_id", "text")),
    *(("created_at", "bigint"), ("state", "bytea"), ("count", "int"), ("key", "text"), ("fingerprint", "bytea")),
    *(("response", "bytea"), ("expires_at", "bigint"), ("covers", "int")),
)
# … and of each event: the first of them is the place of its append in the batch.
EVENTS = (
    *(("ord", "int"), ("kind", "text"), ("id", "text"), ("seq", "bigint")),
    *(("project_id", "text"), ("data", "bytea")),
)
CHANNEL = f"${len(INPUT) + len(EVENTS) + 1}"
_LISTS = ", ".join(f"${i}::{kind}[]" for i, (_, kind) in enumerate(EVENTS, len(INPUT) + 1))
SENT = f"unnest({_LISTS}) WITH ORDINALITY AS e({', '.join(name for name, _ in EVENTS)}, i)"


class Shape(NamedTuple):
    """What a batch's statement must be able to do."""

    one: bool  # there is a single append …
    begins: bool  # … which begins a task or project
    keys: bool  # there are request keys


def shape(batch: Sequence[Append]) -> Shape:
    """Returns which statement a batch needs."""
    one = len(batch) == 1
    return Shape(one, one and batch[0].version == 0, any(append.request is not None for append in batch))


@cache
def statement(wanted: Shape) -> str:
    """Returns the statement for batches of a shape. Its rows are (ord, pos, fingerprint, response) of those appends
    that were kept or answered before; who is not among them was refused."""
    return _one(wanted) if wanted.one else _many(wanted.keys)


# An expired key is used anew. One that is not, and was not known when the statement began, is another replica's of this
# very moment: no position may be NULL, so the statement fails, and is done again.
REMEMBER = f"""
  ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint, response = excluded.response,
    pos = CASE WHEN requests.expires_at <= {NOW_NS} THEN excluded.pos END,
    expires_at = excluded.expires_at
"""


def _many(keys: bool) -> str:
    """CASE and IS TRUE keep IN from becoming a join, whose cost would be that of every pair."""
    columns = ", ".join(f"${i}::{kind}[]" for i, (_, kind) in enumerate(INPUT, 1))
    names = ", ".join(name for name, _ in INPUT)
    known = remembered = answered = ""
    new = "true"
    if keys:
        known = f"""known AS MATERIALIZED (
  SELECT i.ord, r.pos, r.fingerprint, r.response
  FROM input i JOIN requests r ON r.key = i.key WHERE r.expires_at > {NOW_NS}
), """  # noqa: S608 - constants
        remembered = f"""remembered AS (
  INSERT INTO requests(key, fingerprint, pos, response, expires_at)
  SELECT k.key, k.fingerprint, h.base + k.through - k.count + k.covers, k.response, k.expires_at
  FROM head h, kept k WHERE k.key IS NOT NULL {REMEMBER}
), """  # noqa: S608 - constants
        new = "ord NOT IN (SELECT ord FROM known)"
        answered = "UNION ALL SELECT ord, pos, fingerprint, response FROM known"
    return f"""
WITH input AS MATERIALIZED (
  SELECT * FROM unnest({columns}) AS i({names})
), {known}wanted AS MATERIALIZED (
  SELECT * FROM input WHERE {new}
), begun AS (
  INSERT INTO aggregates({COLUMNS}) SELECT {VALUES} FROM wanted WHERE version = 0
  ON CONFLICT DO NOTHING RETURNING kind, id
), moved AS (
  UPDATE aggregates a SET {SHOWN} FROM wanted i
  WHERE (SELECT count(*) FROM begun) >= 0 AND i.version > 0 AND {SAME} RETURNING i.ord
), kept AS MATERIALIZED (
  SELECT i.*, sum(count) OVER (ORDER BY ord) AS through FROM wanted i
  WHERE CASE version WHEN 0 THEN (kind, id) IN (SELECT kind, id FROM begun) ELSE ord IN (SELECT ord FROM moved) END
), head AS (
  UPDATE log_head SET pos = pos + (SELECT sum(count) FROM kept) WHERE id = 1 AND EXISTS (SELECT FROM kept)
  RETURNING pos, pos - (SELECT sum(count) FROM kept) AS base
), {remembered}written AS (
  INSERT INTO events(pos, kind, id, seq, project_id, data)
  SELECT h.base + row_number() OVER (ORDER BY e.i), e.kind, e.id, e.seq, e.project_id, e.data
  FROM head h, {SENT}
  WHERE (e.ord IN (SELECT ord FROM kept)) IS TRUE
), bell AS MATERIALIZED (
  SELECT base, pg_notify({CHANNEL}, pos::text) FROM head
)
SELECT ord, b.base + k.through AS {APPENDED} FROM kept k, bell b {answered}
"""  # noqa: S608 - constants


def _one(wanted: Shape) -> str:
    """Parameters are lists here, too, of one append and of its events."""
    given = {name: f"(${i}::{kind}[])[1]" for i, (name, kind) in enumerate(INPUT, 1)}
    known = remembered = answered = ""
    new = "true"
    if wanted.keys:
        known = f"""known AS MATERIALIZED (
  SELECT pos, fingerprint, response FROM requests WHERE key = {given["key"]} AND expires_at > {NOW_NS}
), """  # noqa: S608 - constants
        asked = ", ".join(given[name] for name in ("key", "fingerprint", "response", "expires_at"))
        remembered = f"""remembered AS (
  INSERT INTO requests(key, fingerprint, response, expires_at, pos) SELECT {asked}, base + {given["covers"]} FROM head
  {REMEMBER}
), """  # noqa: S608 - constants
        new = "NOT EXISTS (SELECT FROM known)"
        answered = f"UNION ALL SELECT {given['ord']}, pos, fingerprint, response FROM known"  # noqa: S608
    if wanted.begins:
        begun = ", ".join(given[name] for name in VALUES.split(", "))
        write = f"INSERT INTO aggregates({COLUMNS}) SELECT {begun} WHERE {new} ON CONFLICT DO NOTHING"
    else:
        shown = ", ".join(f"{name} = {given[name]}" for name in ("status", "ended_at", "state"))
        same = " AND ".join(f"{name} = {given[name]}" for name in ("kind", "id", "version", "epoch"))
        write = f"UPDATE aggregates SET version = version + {given['count']}, {shown} WHERE {same} AND {new}"  # noqa: S608
    # Mentioned so that the server knows their types, also of those that this shape has no use for.
    all_given = ", ".join(f"${i}::{kind}[]" for i, (_, kind) in enumerate(INPUT, 1))
    return f"""
WITH {known}done AS (
  {write} RETURNING 1
), head AS (
  UPDATE log_head SET pos = pos + {given["count"]} WHERE id = 1 AND EXISTS (SELECT FROM done)
  RETURNING pos, pos - {given["count"]} AS base
), {remembered}written AS (
  INSERT INTO events(pos, kind, id, seq, project_id, data)
  SELECT h.base + e.i, e.kind, e.id, e.seq, e.project_id, e.data FROM head h, {SENT}
), bell AS MATERIALIZED (
  SELECT pos, pg_notify({CHANNEL}, pos::text) FROM head
)
SELECT {given["ord"]}, {APPENDED} FROM bell WHERE num_nonnulls({all_given}) >= 0 {answered}
"""  # noqa: S608 - constants


def values(batch: Sequence[Append], channel: str) -> Sequence[Any]:
    """Returns the parameters: a list for each column. `ord` is an append's place in the batch; rows go by key."""
    order = sorted(range(len(batch)), key=lambda place: batch[place].key)
    appends = [_append(place, batch[place]) for place in order]
    events = [row for place, append in enumerate(batch) for row in _events(place, append)]
    return [*zip(*appends, strict=True), *(zip(*events, strict=True) if events else [()] * len(EVENTS)), channel]


def _append(place: int, append: Append) -> Sequence[Any]:
    view, request = append.view, append.request
    kind, name = append.key
    asked: Sequence[Any] = (None, None, None, None, None)
    if request is not None:
        asked = (request.key, request.fingerprint, request.response, request.expires_at, request.covers)
    return (
        *(place, kind, name, append.version, append.epoch, append.owner),
        *(view.status, view.ended_at, view.project_id, view.desktop_id, view.created_at, view.state),
        *(len(append.events), *asked),
    )


def _events(place: int, append: Append) -> Sequence[Sequence[Any]]:
    kind, name = append.key
    return [
        (place, kind, name, append.version + i, append.view.project_id, event.SerializeToString())
        for i, event in enumerate(append.events, 1)
    ]


def outcomes(batch: Sequence[Append], rows: Sequence[Any]) -> list[Outcome]:
    """Reads what the statement returned; who is not in it was refused."""
    found: list[Outcome] = [Conflict()] * len(batch)
    for place, pos, fingerprint, response in rows:
        append = batch[place]
        if response is None:
            found[place] = Appended(pos, append.version + len(append.events))
        else:
            found[place] = Answer(fingerprint, pos, response)
    return found
