"""The catalogue of a collection: its entries, documents, passages and gaps, in one SQLite file.

It decides what is there: a passage counts when the catalogue has it, whatever the word index holds beside it. Numbers
of passages are given once and never again.
"""

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import apsw

from services.researcher.documents import Document, Heading, Kind, Passage, Unreadable
from services.researcher.index.lexical import places
from services.researcher.index.origin import Stamp
from services.researcher.index.words import above_text

FORMAT: Final = 7  # raise it when the files of an index change, or what is made of documents: all are built anew
PAGE_BYTES = 16_384  # a passage fits into a page
WRITER_CACHE_KIB = 16 * 1024  # pages that a batch fills are written once, not again and again
_LAST: Final = b"\xff" * 256  # behind every key: a file's name has at most 255 bytes
# Between the headings above a passage and those inside it, and between headings: control characters (ASCII GS, RS),
# which are taken out of a heading's own text.
_PART: Final = "\x1d"
_HEADING: Final = "\x1e"
BUSY_MS = 5_000  # wait for another's short transaction

_SCHEMA = """
create table facts (name text primary key, value) without rowid;
create table entries (
    id integer primary key, key blob not null unique, stamp text, sha256 text not null, size integer not null,
    read_ns integer not null);
create table documents (
    id integer primary key, entry integer not null, member text not null, title text not null,
    first integer not null, passages integer not null, unique (entry, member));
create table gaps (entry integer not null, member text not null, kind integer not null, detail text not null);
create index gaps_entry on gaps (entry);
create table passages (
    id integer primary key, document integer not null, start integer not null, text text not null, headings text);
create table dead (first integer primary key, passages integer not null);
create table missed (key blob primary key, detail text not null) without rowid;
"""


@dataclass(frozen=True, slots=True)
class Known:
    """An entry as it was indexed. `stamp` is None when it must be read again to know whether it changed."""

    id: int
    stamp: Stamp | None
    sha256: str


@dataclass(frozen=True, slots=True)
class Totals:
    """What a collection holds. `dead` are passages that the word index still has to forget."""

    documents: int
    unreadable: int
    passages: int
    bytes: int
    dead: int


class Catalogue:
    """One connection to the catalogue. Not thread-safe: who shares one holds a lock.

    Args:
        form: what a new catalogue is noted to be; one of another form is of no use.

    Raises apsw.Error: CorruptError and NotADBError for damage, FullError for a full disk.
    """

    def __init__(self, path: Path, form: str, *, writes: bool) -> None:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE if writes else apsw.SQLITE_OPEN_READWRITE
        self.db = apsw.Connection(str(path), flags=flags)
        try:
            self.db.set_busy_timeout(BUSY_MS)
            if writes:
                self._prepare(form)
        except apsw.Error:
            self.db.close()
            raise

    def _prepare(self, form: str) -> None:
        self.db.execute(f"pragma page_size = {PAGE_BYTES}")
        self.db.execute(f"pragma cache_size = -{WRITER_CACHE_KIB}")
        self.db.execute("pragma journal_mode = wal")
        self.db.execute("pragma synchronous = normal")  # after a power cut the last batch may be missing, nothing else
        if not self.db.execute("select count(*) from sqlite_schema").get:
            with self.db:
                self.db.execute(_SCHEMA)
                for name, value in (("form", form), ("id", secrets.token_hex(8)), ("next", 1)):
                    self.note(name, value)
                for name in ("generation", "words", "buried", "whole"):
                    self.note(name, 0)

    def close(self) -> None:
        """Closes the connection."""
        self.db.close()

    def fact(self, name: str) -> Any:
        """Returns a fact about the collection, None when it was not noted."""
        return self.db.execute("select value from facts where name = ?", (name,)).get

    def note(self, name: str, value: object) -> None:
        """Notes a fact."""
        self.db.execute("insert or replace into facts values (?, ?)", (name, value))

    # Entries

    def known(self, below: str) -> dict[str, Known]:
        """Returns all entries at or below a key."""
        sql = "select id, key, stamp, sha256 from entries where key = ?1 or (key >= ?2 and key < ?3)"
        rows = self.db.execute(sql, _below(below))
        return {text(key): Known(id_, _stamp(stamp), sha256) for id_, key, stamp, sha256 in rows}

    def touch(self, entry: int, stamp: Stamp | None) -> None:
        """Notes a stamp for an entry whose content is what it was."""
        self.db.execute("update entries set stamp = ? where id = ?", (_packed(stamp), entry))

    def remove(self, entry: int) -> None:
        """Takes an entry out with all that was in it."""
        spans = self._spans("select first, passages from documents where entry = ? and passages > 0", entry)
        for first, passages in spans:
            self.db.execute("delete from passages where id >= ? and id < ?", (first, first + passages))
            self.kill(first, passages)
        self.db.execute("delete from documents where entry = ?", (entry,))
        self.db.execute("delete from gaps where entry = ?", (entry,))
        self.db.execute("delete from entries where id = ?", (entry,))

    def _spans(self, sql: str, *values: int) -> list[tuple[int, int]]:
        return cast(list[tuple[int, int]], self.db.execute(sql, values).fetchall())

    def add(self, key: str, stamp: Stamp | None, sha256: str, size: int, read_ns: int) -> int:
        """Adds an entry and returns its number."""
        row = (blob(key), _packed(stamp), sha256, size, read_ns)
        self.db.execute("insert into entries (key, stamp, sha256, size, read_ns) values (?, ?, ?, ?, ?)", row)
        return int(self.db.last_insert_rowid())

    def add_document(self, entry: int, member: str, title: str, first: int, passages: Sequence[Passage]) -> None:
        """Adds a document with its passages, which are numbered from `first`."""
        row = (entry, member, title, first, len(passages))
        self.db.execute("insert into documents (entry, member, title, first, passages) values (?, ?, ?, ?, ?)", row)
        document = self.db.last_insert_rowid()
        rows = ((first + n, document, each.start, each.text, _headings(each)) for n, each in enumerate(passages))
        self.db.executemany("insert into passages values (?, ?, ?, ?, ?)", rows)

    def add_gap(self, entry: int, member: str, gap: Unreadable) -> None:
        """Notes what could not be read."""
        self.db.execute("insert into gaps values (?, ?, ?, ?)", (entry, member, gap.kind, str(gap)))

    def gaps(self, below: str) -> Iterator[tuple[str, str, Kind.ValueType, str]]:
        """Yields (key, member, kind, detail) of what could not be read, by key."""
        sql = (
            "select key, member, kind, detail from gaps join entries on entries.id = gaps.entry "
            "where key = ?1 or (key >= ?2 and key < ?3) union all "
            "select key, '', ?4, detail from missed where key = ?1 or (key >= ?2 and key < ?3) order by key"
        )
        for key, member, kind, detail in self.db.execute(sql, (*_below(below), Kind.GAP_KIND_UNREADABLE)):
            yield text(key), member, kind, detail

    def miss(self, below: str, missed: Mapping[str, str]) -> None:
        """Notes what at or below a key could not be listed, in place of what was noted before."""
        self.db.execute("delete from missed where key = ?1 or (key >= ?2 and key < ?3)", _below(below))
        rows = [(blob(key), detail) for key, detail in missed.items()]
        self.db.executemany("insert or replace into missed values (?, ?)", rows)

    def missed(self, below: str) -> dict[str, str]:
        """Returns what at or below a key could not be listed, with the reasons."""
        sql = "select key, detail from missed where key = ?1 or (key >= ?2 and key < ?3)"
        return {text(key): detail for key, detail in self.db.execute(sql, _below(below))}

    def failed_so(self, entry: int, gap: Unreadable) -> bool:
        """Says whether an entry is noted as unreadable for just this reason."""
        rows = self.db.execute("select member, kind, detail from gaps where entry = ?", (entry,)).fetchall()
        return rows == [("", gap.kind, str(gap))]

    # What the word index has to do

    def dead(self) -> list[tuple[int, int]]:
        """Returns (first, how many) of passages that were taken out here and not yet there."""
        return self._spans("select first, passages from dead order by first")

    def kill(self, first: int, passages: int) -> None:
        """Notes passages that only the word index has."""
        self.db.execute("insert or replace into dead values (?, ?)", (first, passages))

    def bury(self, spans: Iterable[tuple[int, int]]) -> None:
        """Forgets passages that are taken out there too."""
        self.db.executemany("delete from dead where first = ?", [(first,) for first, _ in spans])

    def documents(self) -> Iterator[tuple[int, list[str], list[str], list[int]]]:
        """Yields of each document what the word index holds: first number, texts above, bodies, places."""
        sql = (
            "select first, passages, title, key, member from documents join entries on entries.id = documents.entry "
            "where passages > 0 order by first"
        )
        for first, passages, title, key, member in self.db.execute(sql):
            span = (first, first + passages)
            rows = self.db.execute("select text, headings from passages where id >= ? and id < ? order by id", span)
            bodies, above = [], []
            for body, headings in rows:
                bodies.append(body)
                above.append(above_text(title, _split(headings)[0]))
            yield first, above, bodies, places(text(key), member)

    def texts(self, after: int) -> Iterator[tuple[int, str]]:
        """Yields number and text of the passages behind a number, in order."""
        yield from self.db.execute("select id, text from passages where id > ? order by id", (after,))

    def up_to(self, number: int) -> int:
        """Returns how many passages there are up to a number."""
        return int(self.db.execute("select count(*) from passages where id <= ?", (number,)).get)

    # What a reader asks

    def totals(self) -> Totals:
        """Returns what the collection holds."""
        sql = """
            select (select count(*) from documents), (select count(distinct entry) from gaps),
                (select coalesce(sum(passages), 0) from documents), (select coalesce(sum(size), 0) from entries),
                (select coalesce(sum(passages), 0) from dead)
        """
        return Totals(*cast(tuple[int, int, int, int, int], self.db.execute(sql).fetchall()[0]))

    def scope(self, key: str, member: str) -> tuple[int, int, int]:
        """Returns (documents, passages, bytes of the entries) at or below a key, or a member of one."""
        sql = """
            with inside as (
                select documents.passages as passages, entry, size
                from documents join entries on entries.id = documents.entry
                where (key = ?1 or (key >= ?2 and key < ?3))
                    and (?4 = '' or member = ?4 or (member > ?5 and member < ?6))
            )
            select count(*), coalesce(sum(passages), 0),
                (select coalesce(sum(size), 0) from (select distinct entry, size from inside))
            from inside
        """
        values = (*_below(key), member, f"{member}/", f"{member}0")
        return cast(tuple[int, int, int], self.db.execute(sql, values).fetchall()[0])

    def key_of(self, uri: str, source: str) -> tuple[str, str] | None:
        """Returns (key, member) of a document whose name is no valid Unicode, which its uri does not give back."""
        rows = self.db.execute("select key, member from documents join entries on entries.id = documents.entry")
        return next(((text(k), member) for k, member in rows if uri_of(source, text(k), member) == uri), None)

    def passages(self, numbers: Sequence[int], source: str) -> dict[int, tuple[Document, Passage]]:
        """Returns those passages of the numbers that are there."""
        sql = (
            "select passages.id, start, text, headings, key, member, title, sha256, size, read_ns "
            "from passages join documents on documents.id = passages.document "
            "join entries on entries.id = documents.entry where passages.id in (select value from json_each(?))"
        )
        documents: dict[str, Document] = {}
        found = {}
        for number, start, body, headings, key, member, title, sha256, size, read_ns in self.db.execute(
            sql, (json.dumps(numbers),)
        ):
            uri = uri_of(source, text(key), member)
            document = documents.setdefault(uri, Document(uri, title, sha256, size, read_ns))
            found[number] = document, Passage(start, body, *_split(headings))
        return found


def uri_of(source: str, key: str, member: str) -> str:
    """Returns a document's uri: printable, the member of an archive behind `!/`."""
    uri = f"{source}/{key}!/{member}" if member else f"{source}/{key}"
    return uri.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def blob(key: str) -> bytes:
    """Returns a key as it is stored: file names need not be valid Unicode."""
    return key.encode("utf-8", "surrogateescape")


def text(stored: bytes) -> str:
    """Returns a stored key."""
    return stored.decode("utf-8", "surrogateescape")


def _below(key: str) -> tuple[bytes, bytes, bytes]:
    """Returns a key, and what all keys below it lie between: `/` and the character behind it."""
    return (blob(key), blob(key) + b"/", blob(key) + b"0") if key else (b"", b"", _LAST)


def _packed(stamp: Stamp | None) -> str | None:
    return None if stamp is None else " ".join(map(str, stamp))


def _stamp(packed: str | None) -> Stamp | None:
    return None if packed is None else tuple(map(int, packed.split()))


def _headings(passage: Passage) -> str | None:
    if not passage.above and not passage.headings:
        return None
    return f"{_line(passage.above)}{_PART}{_line(passage.headings)}"


def _line(headings: Iterable[Heading]) -> str:
    return _HEADING.join([f"{each.start} {each.end} {each.level} {_plain(each.text)}" for each in headings])


def _plain(heading: str) -> str:
    return heading if heading.isprintable() else heading.replace(_PART, " ").replace(_HEADING, " ")


def _split(packed: str | None) -> tuple[tuple[Heading, ...], tuple[Heading, ...]]:
    if packed is None:
        return (), ()
    above, _, within = packed.partition(_PART)
    return _unpacked(above), _unpacked(within)


def _unpacked(line: str) -> tuple[Heading, ...]:
    parts = [each.split(" ", 3) for each in line.split(_HEADING)] if line else []
    return tuple(Heading(int(start), int(end), int(level), shown) for start, end, level, shown in parts)
