"""Tables as a source: found by name, folder, columns and content; told so that they can be quoted; hostile files."""

import csv
import io
import json
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openpyxl
import pytest
from conductor.v1 import researcher_pb2

from services.researcher.citing import locator, visible
from services.researcher.documents import Kind, SourceKind, Text, Unreadable
from services.researcher.extract.parts import Bounds, Part, Trouble
from services.researcher.folder import FolderSource, Root
from services.researcher.tables import database as database_reader
from services.researcher.tables import profile, program
from services.researcher.tables.formats import Tables
from services.researcher.watch import Cancelled, Watch
from tests.collections_at_hand import found, opened, uris
from tests.researchers import events, serving

MIB = 1 << 20


@pytest.fixture(scope="module")
def tables() -> Iterator[Tables]:
    formats = Tables()
    yield formats
    formats.close()


@contextmanager
def source(root: Path, home: Path, tables: Tables) -> Iterator[FolderSource]:
    made = FolderSource(
        "data", Root("data", root), home=home, parsers=tables._parsers, max_file_bytes=16 * MIB, rescan=3600.0,
        kind=SourceKind.SOURCE_KIND_TABLES, formats=tables,
    )  # fmt: skip
    try:
        yield made
    finally:
        made.close()


def texts(tables: Tables, path: str, data: bytes) -> tuple[dict[str, Text], dict[str, Unreadable]]:
    """Returns what a file holds: texts and troubles by member."""
    read, troubles = {}, {}
    for member, each in tables.documents(path, data, Watch(60)):
        if isinstance(each, Text):
            read[member] = each
        else:
            troubles[member] = each
    return read, troubles


def only(tables: Tables, path: str, data: bytes) -> str:
    read, troubles = texts(tables, path, data)
    assert not troubles, [str(each) for each in troubles.values()]
    return read[""].text


def lines(text: str, heading: str) -> list[str]:
    return text.partition(f"\n{heading}\n\n")[2].partition("\n\n")[0].splitlines()


def database(script: str, *, wal: Path | None = None) -> bytes:
    made = sqlite3.connect(wal or ":memory:")
    if wal:
        made.execute("pragma journal_mode=wal")
    made.executescript(script)
    made.commit()
    if wal:
        made.close()
        return wal.read_bytes()
    return made.serialize()


def workbook(**sheets: list[tuple[object, ...]]) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    data = io.BytesIO()
    book.save(data)
    return data.getvalue()


# What is told


def test_a_csv_is_described_and_every_row_has_its_place(tables: Tables) -> None:
    data = (
        b"# Source: harbour office\nstation;pressureBar;measured\nSplit;3.2;2024-01-01\nPula;16.8;2024-03-02\nPula;;\n"
    )
    read, troubles = texts(tables, "sea/2024/stations.csv", data)
    text = read[""].text
    assert not troubles
    assert "Table stations.csv in the folder sea/2024: 3 rows, 3 columns." in text
    assert "Columns: station, pressureBar (pressure bar), measured." in text
    assert lines(text, "Columns") == [
        "- station: text; 2 different values; Pula (2), Split (1)",
        "- pressureBar (pressure bar): number from 3.2 to 16.8; all different; 3.2, 16.8; 1 empty",
        "- measured: date from 2024-01-01 to 2024-03-02; all different; 2024-01-01, 2024-03-02; 1 empty",
    ]
    assert lines(text, "Rows")[1] == "| station: Pula | pressureBar: 16.8 | measured: 2024-03-02"
    assert "Source: harbour office" in text
    start = text.index("| station: Pula | pressureBar: 16.8")
    where = locator(read[""], start, start + 20)
    assert (where.sheet, where.row, where.cells) == ("stations.csv", 4, "A4:C4")
    assert list(where.heading_path) == ["stations.csv", "Rows"]
    # What stands behind the rows is in none of them.
    behind = text.index("Source: harbour")
    assert locator(read[""], behind, behind + 6).row == 0


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["1", "2", "30"], "whole number from 1 to 30"),
        (["1", "2.5", "-3e2"], "number from -3e2 to 2.5"),
        (["9", "10", "100"], "whole number from 9 to 100"),  # as numbers, not as text
        (["007", "012"], "text"),  # codes
        (["2024-01-31", "2024-02-01 10:30"], "date and time from 2024-01-31 to 2024-02-01 10:30"),
        (["yes", "No"], "yes or no"),
        (["7", "7"], "whole number 7"),
        (["1e999", "5"], "number from 5 to 1e999"),
        (["١", "٢"], "text"),
    ],
)
def test_types_and_ranges(tables: Tables, values: list[str], told: str) -> None:
    data = "a,b\n" + "".join(f"{value},x\n" for value in values)
    line = lines(only(tables, "t.csv", data.encode()), "Columns")[0]
    assert line.removeprefix("- a: ").partition(";")[0] == told


def test_a_few_values_of_another_kind_do_not_hide_what_a_column_is(tables: Tables) -> None:
    data = "level,x\n" + "".join(f"{number}.5,x\n" for number in range(99)) + "n/a,x\n"
    line = lines(only(tables, "t.csv", data.encode()), "Columns")[0]
    assert line == "- level: number from 0.5 to 98.5; 1 value of another kind, as in n/a; all different"


def test_json_lines_and_arrays(tables: Tables) -> None:
    text = only(tables, "a.jsonl", b'{"id": 1, "at": {"city": "Bern"}}\n\n{"id": 2, "tags": ["x", "y"], "ok": true}\n')
    assert lines(text, "Rows") == ["| id: 1 | at.city: Bern", '| id: 2 | tags: ["x", "y"] | ok: true']
    read, _ = texts(tables, "b.json", json.dumps({"pumps": [{"n": "P1"}], "valves": [{"n": "V1"}], "v": 1}).encode())
    assert sorted(read) == ["pumps", "valves"]
    assert "| n: V1" in read["valves"].text
    assert "| n: 1" in only(tables, "c.json", b'[{"n": 1}, {"n": null}]')


def test_a_database_tells_each_table_and_only_the_definition_of_a_view(tables: Tables, tmp_path: Path) -> None:
    script = """
        create table orders (id integer primary key, customer text references people (name), total real, doc blob);
        insert into orders values (1, 'Ann', 2.5, x'00ff'), (2, 'Bob', null, null);
        create view dear as select * from orders where total > 2;
    """
    for data in (database(script), database(script, wal=tmp_path / "w.sqlite")):
        read, troubles = texts(tables, "shop.sqlite", data)
        assert not troubles
        assert sorted(read) == ["dear", "orders"]
        text = read["orders"].text
        assert read["orders"].title == "orders (shop.sqlite)"
        assert "Table orders of shop.sqlite: 2 rows, 4 columns." in text
        assert lines(text, "Rows")[1] == "| id: 2 | customer: Bob"
        assert "references people (name)" in text
        assert "told by its definition only" in read["dear"].text
        assert "where total > 2" in read["dear"].text
        assert "Ann" not in read["dear"].text


def test_a_workbook_tells_each_sheet_that_is_shown(tables: Tables) -> None:
    rows: list[tuple[object, ...]] = [(None, "Pumps of 2024"), (), (None, "id", "vendor"), (None, 1, "Acme")]
    book = openpyxl.load_workbook(io.BytesIO(workbook(Pumps=rows, Empty=[], Secret=[("password",), ("xyzzy",)])))
    book["Secret"].sheet_state = "hidden"
    data = io.BytesIO()
    book.save(data)
    read, troubles = texts(tables, "plant.xlsx", data.getvalue())
    assert not troubles
    assert list(read) == ["Pumps"]
    text = read["Pumps"]
    start = text.text.index("| id: 1 | vendor: Acme")
    where = locator(text, start, start + 5)
    assert (where.sheet, where.row, where.cells) == ("Pumps", 4, "B4:C4")
    assert "Pumps of 2024" in text.text
    assert "xyzzy" not in text.text


# The source


def test_tables_are_found_by_name_folder_columns_and_content(tables: Tables, tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "harbour").mkdir(parents=True)
    (root / "harbour" / "tides.csv").write_text("gauge,waterLevel\nRovinj,1.5\nUmag,1.7\n")
    (root / "shop.sqlite").write_bytes(
        database("create table invoices (number, customer); insert into invoices values (77, 'Lindqvist');")
    )
    (root / "notes.md").write_text("# Tides\n\nThis is no table.\n")
    with source(root, tmp_path / "home", tables) as data:
        assert uris(data, "harbour")[0] == "data/harbour/tides.csv"
        assert uris(data, "water level")[0] == "data/harbour/tides.csv"
        assert uris(data, "Which gauge is Rovinj?")[0] == "data/harbour/tides.csv"
        assert uris(data, "invoices")[0] == "data/shop.sqlite!/invoices"
        assert uris(data, "Lindqvist") == ["data/shop.sqlite!/invoices"]
        assert uris(data, "Lindqvist", "harbour") == []
        assert uris(data, "Lindqvist", "shop.sqlite!/invoices") == ["data/shop.sqlite!/invoices"]
        described = data.describe()
        assert (described.kind, described.documents) == (SourceKind.SOURCE_KIND_TABLES, 2)


def test_every_passage_stands_in_the_table_when_it_is_read_again(tables: Tables, tmp_path: Path) -> None:
    root, chosen = tmp_path / "data", random.Random(5)  # noqa: S311
    root.mkdir()
    rows = [[f"name {n}", chosen.random(), 'multi\nline, with "quotes"', ""] for n in range(400)]
    with (root / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["name", "share", "note", "none"], *rows])
    (root / "b.jsonl").write_text("".join(json.dumps({"n": n, "t": "ü𝄞" * (n % 5)}) + "\n" for n in range(300)))
    (root / "c.xlsx").write_bytes(workbook(One=[("a", "b"), (1, "x")], Two=[("c", "d"), ("y", 2.5)]))
    (root / "d.db").write_bytes(database("create table t (a, b); insert into t values (1, 'x'), (2, 'y');"))
    with source(root, tmp_path / "home", tables) as data:
        view, notes = opened(data)
        hits = [
            hit for word in ("name", "share", "x", "y", "n", "rows", "column", "t") for hit in found(view, word, 60)
        ]
        view.close()
        assert not notes.gaps
        assert {hit.document.uri for hit in hits} >= {"data/a.csv", "data/b.jsonl", "data/c.xlsx!/One", "data/d.db!/t"}
        originals = {uri: data.original(uri, Watch(60)) for uri in {hit.document.uri for hit in hits}}
        for hit in hits:
            original = originals[hit.document.uri]
            start, end = hit.passage.start, hit.passage.start + len(hit.passage.text)
            assert original.text.text[start:end] == hit.passage.text
            assert original.sha256 == hit.document.sha256
            assert visible(original.text, start, end)


async def test_a_question_is_answered_from_a_table_and_its_citation_holds(tmp_path: Path) -> None:
    root = tmp_path / "plant"
    (root / "tables").mkdir(parents=True)
    pumps = root / "tables" / "pumps.csv"
    pumps.write_text("pump,vendor,maximum pressure\nP-17,Sulzer,16 bar\nP-18,Grundfos,10 bar\n")
    async with serving(tmp_path, root) as stub:
        added = await stub.AddSource(
            researcher_pb2.AddSourceRequest(name="machines", kind=SourceKind.SOURCE_KIND_TABLES, path="plant/tables")
        )
        assert added.kind == SourceKind.SOURCE_KIND_TABLES
        request = researcher_pb2.ResearchRequest(
            objective="What is the maximum pressure of the pump by Grundfos?", sources=["machines"],
            kinds=[SourceKind.SOURCE_KIND_TABLES],
        )  # fmt: skip
        result = (await events(stub.Research(request)))[-1].result
        citations = [citation for finding in result.findings for citation in finding.citations]
        held = next(each for each in citations if "Grundfos" in each.quote and "10 bar" in each.quote)
        assert (held.uri, held.locator.sheet) == ("machines/pumps.csv", "pumps.csv")
        answer = await stub.VerifyCitation(researcher_pb2.VerifyCitationRequest(citation=held))
        assert answer.state == researcher_pb2.CITATION_STATE_VALID
        pumps.write_text("pump,vendor,maximum pressure\nP-17,Sulzer,16 bar\nP-18,Grundfos,12 bar\n")
        answer = await stub.VerifyCitation(researcher_pb2.VerifyCitationRequest(citation=held))
        assert answer.state == researcher_pb2.CITATION_STATE_QUOTE_NOT_FOUND


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
