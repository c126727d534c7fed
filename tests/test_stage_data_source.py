"""DATA_SOURCE: every failure has its code, says what is wrong and what to choose, and the next attempt goes well."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pyarrow.parquet as pq
import pytest

from stages.contract import Envelope, Failed, Progress, Result, Room
from stages.data_source import work
from tests.tables_at_hand import run_stage, save

GOOD = "age,name,paid\n31,Ann,1.5\n42,Bob,2.5\n53,Cid,3.5\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "data").mkdir()
    return tmp_path / "run"


@pytest.fixture
def data(run: Path) -> Path:
    return run.parent / "data"


def read(run: Path, name: str = "", objective: str = "", **edits: Any) -> Result:
    folders = (str(run.parent / "data"),)
    envelope = Envelope("DATA_SOURCE", data=name, objective=objective, data_folders=folders, edits=edits, seed=7)
    return work(envelope, Room("DATA_SOURCE", run), Progress())


def failure(run: Path, name: str = "", objective: str = "", **edits: Any) -> Failed:
    with pytest.raises(Failed) as caught:
        read(run, name, objective, **edits)
    said = f"{caught.value.issue.message} {caught.value.issue.suggestion}"
    assert str(run.parent) not in said and "Traceback" not in said and len(said) <= 600
    assert caught.value.issue.suggestion
    return caught.value


def offered(failed: Failed) -> set[str]:
    return {action.field for action in failed.actions}


def frame(run: Path) -> pd.DataFrame:
    return pq.read_table(run / "data-source" / "data.parquet").to_pandas()


def types(result: Result) -> dict[str, str]:
    return {column["name"]: column["type"] for column in result.result["columns"]}


def codes(result: Result) -> set[str]:
    return {issue.code for issue in result.warnings}


def test_a_plain_table_is_read_as_it_is(run: Path, data: Path) -> None:
    (data / "good.csv").write_text(GOOD)
    left = read(run, "good.csv")
    assert types(left) == {"age": "int", "name": "text", "paid": "float"} and left.status == "OK"
    assert frame(run).to_dict("list") == {"age": [31, 42, 53], "name": ["Ann", "Bob", "Cid"], "paid": [1.5, 2.5, 3.5]}
    assert left.result["preview"][0] == ["31", "Ann", "1.5"] and not left.warnings
    assert {action.kind for action in left.actions} >= {"CONFIRM", "CHOOSE", "EDIT", "BACK", "ABORT"}
    assert sorted(path.name for path in (run / "data-source").iterdir()) == ["data.parquet"]


def _png(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": [1]}))


def _sqlite(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("create table a (b)")


def _zip_of_two(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", GOOD)
        archive.writestr("b.csv", GOOD)


def _cut_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress((GOOD * 5000).encode())[:-20])


def _bomb(path: Path) -> None:
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 18_000_000, 1))


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"a,b\n" + b"1,2\n" * 2000)
        file.truncate(5 * 1024**3)


def _broken_parquet(path: Path) -> None:
    path.write_bytes(b"PAR1" + b"x" * 500)


def _broken_excel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook")


def _text(content: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(content.encode(encoding))

    return make


BAD_FILES = [
    ("UNSUPPORTED_FORMAT", "picture.csv", _png),
    ("UNSUPPORTED_FORMAT", "model.csv", _pickle),
    ("UNSUPPORTED_FORMAT", "base.csv", _sqlite),
    ("UNSUPPORTED_FORMAT", "two.zip", _zip_of_two),
    ("UNSUPPORTED_FORMAT", "page.csv", _text("<!DOCTYPE html><html>no table</html>")),
    ("UNSUPPORTED_FORMAT", "nulls.csv", _text("a,b\n1,\0\0\0\n" * 20)),
    ("UNREADABLE_FILE", "cut.csv.gz", _cut_gzip),
    ("UNREADABLE_FILE", "broken.parquet", _broken_parquet),
    ("UNREADABLE_FILE", "broken.xlsx", _broken_excel),
    ("UNREADABLE_FILE", "list.json", _text('[{"a": 1}, {"a": ')),
    ("EMPTY_FILE", "empty.csv", _text("")),
    ("EMPTY_FILE", "blank.csv", _text("\n \n\n")),
    ("NO_ROWS", "names.csv", _text("age,name\n")),
    ("FILE_TOO_LARGE", "bomb.csv.gz", _bomb),
    ("FILE_TOO_LARGE", "huge.csv", _huge),
    ("FILE_TOO_LARGE", "wide.csv", _text(",".join(f"c{n}" for n in range(6000)) + "\n" + ",".join("1" * 6000) + "\n")),
]


@pytest.mark.parametrize(("code", "name", "make"), BAD_FILES, ids=[f"{code}-{name}" for code, name, _ in BAD_FILES])
def test_a_bad_file_is_named_and_another_one_can_be_chosen(
    run: Path, data: Path, code: str, name: str, make: Callable[[Path], None]
) -> None:
    (data / "good.csv").write_text(GOOD)
    make(data / name)
    failed = failure(run, name)
    assert failed.issue.code == code
    assert "data" in offered(failed) and not list((run / "data-source").iterdir())
    again = read(run, name, data="good.csv")
    assert again.status == "OK" and again.result["path"] == "good.csv"


def test_a_pickle_is_never_opened_and_the_message_says_why(run: Path, data: Path) -> None:
    _pickle(data / "model.csv")
    assert "never opened" in failure(run, "model.csv").issue.message


def test_paths_do_not_lead_out_of_the_data_folders(run: Path, data: Path) -> None:
    outside = run.parent / "secret.csv"
    outside.write_text(GOOD)
    (data / "link.csv").symlink_to(outside)
    (data / "linked").symlink_to(run.parent)
    for name in (
        "../secret.csv",
        str(outside),
        "link.csv",
        "linked/secret.csv",
        "a/../../secret.csv",
        "~/x.csv",
        "C:\\x.csv",
    ):
        assert failure(run, name).issue.code == "PATH_OUTSIDE_WORKSPACE", name
    assert failure(run, "uploads/../../secret.csv").issue.code == "PATH_OUTSIDE_WORKSPACE"
    assert failure(run, objective="x from y").issue.code == "FILE_NOT_FOUND"  # links are no candidates either


def test_what_is_no_file_is_not_opened(run: Path, data: Path) -> None:
    os.mkfifo(data / "pipe.csv")
    (data / "folder.csv").mkdir()
    assert failure(run, "pipe.csv").issue.code == "UNREADABLE_FILE"
    assert failure(run, "folder.csv").issue.code == "FILE_NOT_FOUND"
    for url in ("http://example.org/a.csv", "s3://bucket/a.csv", "file:///etc/passwd"):
        assert failure(run, url).issue.code == "UNSUPPORTED_SOURCE"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(run: Path, data: Path) -> None:
    (data / "good.csv").write_text(GOOD)
    (data / "good.csv").chmod(0)
    assert failure(run, "good.csv").issue.code == "UNREADABLE_FILE"


def test_a_missing_file_is_answered_with_the_nearest_names(run: Path, data: Path) -> None:
    (data / "deep").mkdir()
    (data / "deep" / "penguins.csv").write_text(GOOD)
    failed = failure(run, "pengiuns.csv")
    assert failed.issue.code == "FILE_NOT_FOUND" and "deep/penguins.csv" in failed.issue.suggestion
    assert failure(run, objective="predict age from elephants.csv").issue.code == "FILE_NOT_FOUND"


def test_ragged_rows_are_named_by_line_and_can_be_left_out(run: Path, data: Path) -> None:
    quoted = '"two\nlines",x,1\n'
    (data / "ragged.csv").write_text(f"a,b,c\n1,2,3\n{quoted}4,5\n6,7,8,9\n7,8,9,\n\n10,11,12\n")
    failed = failure(run, "ragged.csv")
    assert (failed.issue.code, failed.issue.row, failed.issue.count) == ("MALFORMED_ROWS", 5, 2)
    assert {"skip_bad_rows", "delimiter", "header"} <= offered(failed)
    assert failure(run, "ragged.csv", skip_bad_rows="no").issue.code == "MALFORMED_ROWS"
    left = read(run, "ragged.csv", skip_bad_rows="yes")
    assert [row["line"] for row in left.result["bad_rows"]] == [5, 6] and left.result["rows"] == 4
    assert frame(run)["a"].tolist() == ["1", "two\nlines", "7", "10"] and "MALFORMED_ROWS" in codes(left)


def test_an_open_quote_costs_one_line_only(run: Path, data: Path) -> None:
    rows = [f"{n},word{n}" for n in range(1, 2001)]
    rows[700] = '701,"never closed'
    (data / "quote.csv").write_text("id,word\n" + "\n".join(rows) + "\n")
    failed = failure(run, "quote.csv")
    assert failed.issue.row == 702 and failed.issue.count == 1 and "never closed" in failed.issue.message
    assert read(run, "quote.csv", skip_bad_rows=True).result["rows"] == 1999


def test_without_names_a_person_says_so_or_where_they_are(run: Path, data: Path) -> None:
    (data / "bare.csv").write_text("31,Ann\n42,Bob\n53,Cid\n")
    failed = failure(run, "bare.csv")
    assert failed.issue.code == "NO_HEADER" and "header" in offered(failed)
    left = read(run, "bare.csv", header="none")
    assert types(left) == {"column_1": "int", "column_2": "text"} and left.result["rows"] == 3
    assert left.result["header"] is None
    assert types(read(run, "bare.csv", header="2")) == {"42": "int", "Bob": "text"}
    assert failure(run, "bare.csv", header=50).issue.code == "BAD_EDIT"


def test_a_guessed_encoding_is_said_and_can_be_changed(run: Path, data: Path) -> None:
    (data / "west.csv").write_bytes("name,city\nJosé,Málaga\nZoë,Köln\n".encode("cp1252"))
    left = read(run, "west.csv")
    assert "ENCODING_GUESSED" in codes(left) and frame(run)["city"].tolist() == ["Málaga", "Köln"]
    assert left.result["encoding_confidence"] < 1
    read(run, "west.csv", encoding="cp1250")
    assert frame(run)["name"].tolist()[0] == "José"
    assert failure(run, "west.csv", encoding="utf-8").issue.code == "BAD_EDIT"


def test_duplicate_names_become_unique_and_are_said(run: Path, data: Path) -> None:
    (data / "twice.csv").write_text("age,age,,b\tc\n1,2,3,4\n5,6,7,8\n")
    left = read(run, "twice.csv", delimiter="comma")
    assert list(types(left)) == ["age", "age_2", "column_3", "b c"]
    assert [issue.column for issue in left.warnings if issue.code == "DUPLICATE_COLUMN"] == ["age_2"]
    assert [column["original_name"] for column in left.result["columns"]] == ["age", "age", "", "b\tc"]


def test_a_large_table_is_sampled_the_same_way_each_time(run: Path, data: Path) -> None:
    (data / "long.csv").write_text("n,v\n" + "".join(f"{n},{n % 7}\n" for n in range(40_000)))
    left = read(run, "long.csv", sample_rows=1000)
    first = frame(run)["n"].tolist()
    assert left.result["sampled"] == {"rows_of": 40_000, "rows": 1000} and "SAMPLED" in codes(left)
    assert first == sorted(first) and len(set(first)) == 1000
    assert all(len([n for n in first if at <= n < at + 10_000]) > 200 for at in range(0, 40_000, 10_000))
    again = read(run, "long.csv", sample_rows=1000)
    assert frame(run)["n"].tolist() == first and again.result == left.result


def test_markers_read_as_missing_are_listed_and_can_be_changed(run: Path, data: Path) -> None:
    (data / "gaps.csv").write_text("power,kind\n130,None\n?,stone\n-,NA\n95,None\n")
    left = read(run, "gaps.csv")
    assert types(left) == {"power": "int", "kind": "text"} and left.result["null_markers"] == ["-", "?", "NA"]
    assert frame(run)["kind"].tolist()[0] == "None"  # a value, not a gap
    assert "NULL_MARKERS" in codes(left)
    left = read(run, "gaps.csv", null_markers="None, -, ?")
    assert frame(run)["kind"].isna().tolist() == [True, False, False, True] and types(left)["power"] == "int"
    assert types(read(run, "gaps.csv", null_markers="NA"))["power"] == "text"  # "?" is a value now


def test_compressed_tables_and_other_formats(run: Path, data: Path) -> None:
    (data / "a.csv.gz").write_bytes(gzip.compress(GOOD.encode()))
    (data / "a.csv.bz2").write_bytes(bz2.compress(GOOD.encode()))
    (data / "a.csv.xz").write_bytes(lzma.compress(GOOD.encode()))
    with zipfile.ZipFile(data / "a.zip", "w") as archive:
        archive.writestr("__MACOSX/._a.csv", b"\0")
        archive.writestr("folder/a.csv", GOOD)
    (data / "a.tsv").write_text(GOOD.replace(",", "\t"))
    (data / "a.jsonl").write_text(
        '{"age": 31, "name": "Ann", "paid": 1.5}\n\n{"age": 42, "name": "Bob", "paid": 2.5}\n'
    )
    (data / "a.json").write_text('[{"age": 31, "name": "Ann", "paid": 1.5}]')
    pd.read_csv(data / "a.csv.gz").to_parquet(data / "a.parquet")
    (data / "lies.csv").write_bytes((data / "a.parquet").read_bytes())
    for name in ("a.csv.gz", "a.csv.bz2", "a.csv.xz", "a.zip", "a.tsv", "a.jsonl", "a.json", "a.parquet", "lies.csv"):
        left = read(run, name)
        assert types(left) == {"age": "int", "name": "text", "paid": "float"}, name
        assert frame(run)["paid"].tolist()[0] == 1.5 and not left.warnings, name
    assert left.result["format"] == "parquet"


def test_a_sheet_of_a_workbook_can_be_chosen(run: Path, data: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title = "empty"
    for title, rows in (
        ("first", [["Sales of 2020"], [], ["id", "when"], [1, pd.Timestamp("2020-01-02")]]),
        ("second", [["a"], [2.5]]),
    ):
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(data / "book.xlsx")
    left = read(run, "book.xlsx", header="2")
    assert left.result["sheet"] == "first" and types(left) == {"id": "int", "when": "date"}
    assert frame(run)["when"].tolist() == ["2020-01-02"]
    assert types(read(run, "book.xlsx", sheet="second")) == {"a": "float"}
    failed = failure(run, "book.xlsx", sheet="third")
    assert failed.issue.code == "BAD_EDIT" and "sheet" in offered(failed)


@pytest.mark.parametrize(
    "edits",
    [
        {"delimiter": "x"},
        {"encoding": "klingon"},
        {"encoding": "base64"},
        {"header": -1},
        {"header": 1.5},
        {"null_markers": 5},
        {"skip_bad_rows": "perhaps"},
        {"sample_rows": 0},
        {"sample_rows": "many"},
        {"sample_rows": True},
        {"data": 5},
        {"nonsense": 1},
    ],
    ids=str,
)
def test_an_edit_without_sense_is_named(run: Path, data: Path, edits: dict[str, Any]) -> None:
    (data / "good.csv").write_text(GOOD)
    failed = failure(run, "good.csv", **edits)
    assert failed.issue.code == "BAD_EDIT" and failed.issue.value == next(iter(edits))


def test_the_objective_chooses_a_table_or_a_person_does(run: Path, data: Path) -> None:
    (data / "people.csv").write_text(GOOD)
    (data / "houses.csv").write_text("price,rooms\n1,2\n3,4\n")
    (data / ".hidden.csv").write_text(GOOD)
    (data / "notes.txt").write_text("no table at all\n")
    assert read(run, objective="predict price from houses.csv").result["path"] == "houses.csv"
    assert read(run, objective="what do people pay, by age and name?").result["path"] == "people.csv"
    asked = read(run, objective="predict something")
    assert asked.status == "NEEDS_INPUT" and asked.result["path"] == ""
    choose = next(action for action in asked.actions if action.required)
    assert choose.field == "data" and set(choose.options) == {"people.csv", "houses.csv", "notes.txt"}
    shown = {found["path"]: found for found in asked.result["candidates"]}
    assert shown["houses.csv"]["columns"] == ["price", "rooms"] and shown["houses.csv"]["rows_estimate"] == 2
    assert read(run, objective="predict something", data="houses.csv").status == "OK"
    assert read(run, objective="what do people pay for houses?").status == "NEEDS_INPUT"  # it speaks of both


def test_uploads_and_the_choice_of_the_intent_are_found(run: Path, data: Path) -> None:
    (run / "uploads").mkdir()
    (run / "uploads" / "mine.csv").write_text(GOOD)
    assert read(run, "uploads/mine.csv").status == "OK"
    (run / "parse-intent").mkdir()
    (run / "parse-intent" / "result.json").write_text(json.dumps({"result": {"data": "uploads/mine.csv"}}))
    assert read(run).result["path"] == "uploads/mine.csv"


def test_the_walk_is_bounded(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = data
    for _ in range(8):
        deep = deep / "d"
        deep.mkdir()
        (deep / "t.csv").write_text(GOOD)
    for number in range(30):
        (data / f"n{number:02}.csv").write_text(GOOD)
    asked = read(run, objective="zzz")
    assert f"{30 + 6} tables" in asked.summary
    monkeypatch.setattr("stages.places.MAX_FILES", 5)
    assert "5 tables" in read(run, objective="zzz").summary


def test_hostile_names_and_cells_stay_short_and_plain(run: Path, data: Path) -> None:
    name = "a\x1b[31m<script>" + "x" * 9000
    row = '1,"' + "y" * 20_000 + '",\u202ez\n'
    (data / "hostile.csv").write_text(f'"{name}","b\nc",d\n' + row * 3)
    left = read(run, "hostile.csv")
    told = [left.summary, types(left), left.result["preview"], [issue.to_json() for issue in left.warnings]]
    assert "\\u001b" not in json.dumps(told) and "\\u202e" not in json.dumps(told)
    assert max(map(len, types(left))) <= 100 and max(map(len, left.result["preview"][0])) <= 80
    assert frame(run).iloc[0, 1] == "y" * 20_000


def test_as_a_program_it_says_how_far_it_is_and_leaves_the_same_result_each_time(tmp_path: Path) -> None:
    save("penguins", tmp_path / "data")
    asked = {"data": "penguins.csv", "data_folders": [str(tmp_path / "data")], "objective": "predict species"}
    left = run_stage(tmp_path / "run", "DATA_SOURCE", **asked)
    again = run_stage(tmp_path / "run", "DATA_SOURCE", **asked)
    assert left.exit == 0 and left["status"] == "OK" and left["result"]["rows"] == 344
    assert {key: again[key] for key in left if key != "metrics"} == {key: left[key] for key in left if key != "metrics"}
    assert left.events[-1]["event"] == "result" and any(event["event"] == "progress" for event in left.events)
    failed = run_stage(tmp_path / "run", "DATA_SOURCE", **{**asked, "data": "../run/envelope.json"})
    assert failed.exit == 2 and failed["error"]["code"] == "PATH_OUTSIDE_WORKSPACE" and failed["next_actions"]
