"""Tables as a source: found by name, folder, columns and content; told so that they can be quoted; hostile files."""

import csv
import io
import json
import random
from pathlib import Path

import openpyxl
import pytest
from conductor.v1 import researcher_pb2

from services.researcher.citing import locator, visible
from services.researcher.documents import SourceKind
from services.researcher.tables.formats import Tables
from services.researcher.watch import Watch
from tests.collections_at_hand import found, opened, uris
from tests.researched_tables import database, lines, only, source, tables, texts
from tests.researchers import events, serving

__all__ = ["tables"]


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
        again = {uri: data.original(uri, Watch(60)).text for uri in originals}
        assert all(again[uri] is original.text for uri, original in originals.items()), "the same bytes, parsed twice"


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
