"""Tables that are large, broken or hostile: read in part, in time, and said to be."""

import time
from pathlib import Path

import pytest

from services.researcher.documents import Kind, Unreadable
from services.researcher.extract.parts import Bounds, Part, Trouble
from services.researcher.tables import database as database_reader
from services.researcher.tables import profile, program
from services.researcher.tables.formats import Tables
from services.researcher.watch import Cancelled, Watch
from tests.collections_at_hand import opened
from tests.researched_tables import database, lines, only, source, tables, texts

__all__ = ["tables"]


# What is large, broken or hostile


def test_a_large_table_is_told_in_part_and_says_so(tables: Tables) -> None:
    header = "number,word,a,b\n"
    data = (header + "".join(f"{number},word{number % 7},1,\n" for number in range(120_000))).encode()
    read, troubles = texts(tables, "big.csv", data)
    text = read[""].text
    assert "120,000 rows, 4 columns" in text
    assert "Described from the first 100,000 of 120,000 rows, 83 %." in text
    assert "- number: whole number from 0 to 99999; more than 1,000 different values" in text
    assert len(lines(text, "Rows")) == 50_000
    assert troubles[""].kind == Kind.GAP_KIND_TRUNCATED
    assert "Only the first 50,000 of 120,000 rows can be searched" in str(troubles[""])
    assert tables.document("big.csv", "", data, Watch(60)).text == text


def test_many_columns_and_a_long_cell_are_cut(tables: Tables) -> None:
    wide = ",".join(f"c{number}" for number in range(5_000)) + "\n" + ",".join("7" * 5_000) + "\n"
    read, troubles = texts(tables, "wide.csv", wide.encode())
    assert "1,000 columns" in read[""].text
    assert troubles[""].kind == Kind.GAP_KIND_TRUNCATED
    text = only(tables, "long.csv", b"a,b\n" + b"x" * 100_000 + b",y\n")
    assert len(text) < 2_000
    assert "b: y" in text


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b"\x00\x01\x02binary\x00"),
        ("a.json", b"{not json"),
        ("a.json", b'{"version": 1}'),
        ("a.json", b"[" * 200_000),
        ("a.json", b'[{"n": ' + b"9" * 10_000 + b"}]"),
        ("a.db", b"no database at all"),
        ("a.db", b"SQLite format 3\0" + b"\xff" * 8_000),
        ("a.xlsx", b"PK\x03\x04 broken"),
        ("a.db", b""),
    ],
)
def test_what_cannot_be_read_says_why(tables: Tables, name: str, data: bytes) -> None:
    read, troubles = texts(tables, name, data)
    assert not read
    assert str(troubles[""]).endswith(".")
    assert "gave up" not in str(troubles[""])


def test_what_stands_before_a_break_is_kept(tables: Tables) -> None:
    read, troubles = texts(tables, "a.jsonl", b'{"n": 1}\n{"n": 2}\n{broken\n{"n": 3}\n')
    assert lines(read[""].text, "Rows") == ["| n: 1", "| n: 2"]
    assert "Line 3" in str(troubles[""])
    whole = "a,b\n1,x\n" + '2,"never closed\n' + "3,y\n" * 5_000
    read, troubles = texts(tables, "a.csv", whole.encode())
    assert lines(read[""].text, "Rows") == ["| a: 1 | b: x"]
    assert "not closed" in str(troubles[""])


def test_empty_files_and_odd_text(tables: Tables) -> None:
    assert "0 rows" in only(tables, "a.csv", b"")
    assert "0 rows" in only(tables, "a.jsonl", b"\n\n")
    assert "| name: Müller" in only(tables, "a.csv", "name,x\nMüller,1\n".encode("cp1252"))
    assert "| name: Müller" in only(tables, "a.csv", "name\tx\nMüller\t1\n".encode("utf-16"))
    assert "column 1: 1 | column 2: 2" in only(tables, "a.csv", b"1,2\n3,4\n")
    # A line separator inside a cell ends no row.
    assert len(lines(only(tables, "a.csv", "a,b\nx\u2028y,1\n".encode()), "Rows")) == 1


def test_rows_longer_than_the_header_lose_nothing(tables: Tables) -> None:
    text = only(tables, "a.csv", b"a,b\n1,2,3\n4\n")
    assert lines(text, "Rows") == ["| a: 1 | b: 2 | column 3: 3", "| a: 4"]


def test_a_hostile_schema_runs_nothing_and_ends(tables: Tables) -> None:
    script = """
        create table fine (a); insert into fine values ('kept');
        create view endless as
            with recursive c(n) as (select 1 union all select n + 1 from c) select n from c;
        create table bomb (a, b as (length(hex(zeroblob(2000000)))), c as (a || a || a));
        insert into bomb (a) values ('x');
        create table "odd/../name!/" (a); insert into "odd/../name!/" values (1);
        create table "quote""; drop table fine; --" (a);
    """
    data = database(script)
    began = time.monotonic()
    read, troubles = texts(tables, "evil.db", data)
    assert time.monotonic() - began < 30
    assert "| a: kept" in read["fine"].text
    assert "told by its definition only" in read["endless"].text
    assert "bomb" in troubles
    assert not [member for member in read if "/" in member or "!" in member.replace("!\ufffd", "")]
    for member, text in read.items():
        assert tables.document("evil.db", member, data, Watch(60)).text == text.text


def test_a_tree_of_pages_without_end_is_counted_no_further_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_reader, "MAX_STEPS", 200_000)
    monkeypatch.setattr(profile, "PROFILED_CELLS", 5_000)
    data = bytearray(database("pragma page_size = 1024; create table t (a); insert into t values ('again');"))
    leaf = data[1024:2048]
    levels, children = 15, 120  # 120 ** 15 rows in 17 pages
    for level in range(levels):
        below = (3 + level).to_bytes(4)
        cells = b"".join(below + b"\x01" for _ in range(children))
        places = b"".join((1024 - 5 * (number + 1)).to_bytes(2) for number in range(children))
        head = b"\x05\0\0" + children.to_bytes(2) + (1024 - len(cells)).to_bytes(2) + b"\0" + below
        page = (head + places).ljust(1024 - len(cells), b"\0") + cells
        data[1024 * (1 + level) : 1024 * (2 + level)] = page
    data += leaf
    data[28:32] = (len(data) // 1024).to_bytes(4)
    items = list(program.read("tree.db", bytes(data), Bounds(len(data))))
    text = next(item.text for item in items if isinstance(item, Part))
    assert "at least 5,000 rows" in text
    assert [item.truncated for item in items if isinstance(item, Trouble)] == [True]


def test_virtual_tables_are_never_opened(tables: Tables) -> None:
    read, _ = texts(
        tables, "v.db", database("create virtual table found using fts5 (body); insert into found values ('w');")
    )
    assert "told by its definition only" in read["found"].text


def test_a_damaged_database_gives_what_is_whole(tables: Tables) -> None:
    script = """
        create table small (a); insert into small values ('here');
        create table big as with recursive c(n) as (select 1 union all select n + 1 from c where n < 500)
        select n, hex(zeroblob(150)) as filling from c;
    """
    data = bytearray(database(script))
    for at in range(len(data) // 2, len(data) // 2 + 20_000):
        data[at] = 0xA5
    read, troubles = texts(tables, "broken.db", bytes(data))
    assert "| a: here" in read["small"].text
    assert "SQLite cannot read it" in str(troubles["big"])


def test_cancelling_ends_the_reading_at_once(tables: Tables) -> None:
    watch = Watch(60)
    data = b"a,b\n" + b"1,2\n" * 2_000_000
    watch.cancel()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        list(tables.documents("a.csv", data, watch))
    assert time.monotonic() - began < 5
    assert "1 row" in only(tables, "b.csv", b"a,b\n1,2\n")


def test_files_that_hold_no_tables_are_not_taken(tables: Tables, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for name in ("a.md", "b.pdf", ".hidden.csv", "c.parquet"):
        (root / name).write_text("x")
    with source(root, tmp_path / "home", tables) as data:
        view, notes = opened(data)
        view.close()
        assert (notes.documents, notes.gaps) == ([], {})
        with pytest.raises(Unreadable):
            data.original("data/a.md", Watch(9))


def test_a_database_of_too_many_tables_says_so(tables: Tables) -> None:
    script = "".join(f"create table t{number} (a);" for number in range(2_100))
    read, troubles = texts(tables, "many.db", database(script))
    assert len(read) == 2_000
    assert troubles[""].kind == Kind.GAP_KIND_TRUNCATED
