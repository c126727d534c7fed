"""How text becomes typed columns: separators, names, encodings, strict numbers, samples, and words of objectives."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stages import encodings, sampling, typed
from stages.delimited import read_text, understand
from stages.intent_lexicon import budget_of, metric_of
from stages.options import Options
from stages.reading import look, read_rows
from stages.shown import plain
from stages.words import words_of
from tests.properties import examples


def column(*cells: str, decimal: str = ".", markers: tuple[str, ...] | None = None) -> typed.Column:
    return typed.column_of(pa.array(cells, pa.string()), decimal, markers)


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (("1", "2", " 3 "), "int", [1, 2, 3]),
        (("1", "2.5", "1e3", "-.5"), "float", [1, 2.5, 1000, -0.5]),
        (("1", "2", "x"), "text", ["1", "2", "x"]),
        (("1", "", "NA"), "int", [1, None, None]),
        (("1", "?", "-"), "int", [1, None, None]),
        (("a", "-", "None"), "text", ["a", "-", "None"]),
        (("007", "12"), "text", ["007", "12"]),
        (("0123", "1.5"), "text", ["0123", "1.5"]),
        (("0", "10", "-0.5"), "float", [0, 10, -0.5]),
        (("9007199254740993", "1"), "int", [9007199254740993, 1]),
        (("12345678901234567890", "1"), "text", ["12345678901234567890", "1"]),
        (("inf", "1"), "float", [float("inf"), 1]),
        (("True", "false", ""), "bool", [True, False, None]),
        (("yes", "no"), "text", ["yes", "no"]),
        (("2024-01-31", "2024-02-28T10:00:00Z"), "date", ["2024-01-31", "2024-02-28T10:00:00Z"]),
        (("2024-13-01", "2024-01-01"), "text", ["2024-13-01", "2024-01-01"]),
        (("01/02/2024", "03/04/2024"), "text", ["01/02/2024", "03/04/2024"]),
        (("$1,234.00", "$5"), "text", ["$1,234.00", "$5"]),
        (("1_000", "2"), "text", ["1_000", "2"]),
        (("", "NA"), "text", [None, None]),
        (("١", "2"), "text", ["١", "2"]),
    ],
)
def test_a_column_is_a_number_only_when_every_value_is(cells: tuple[str, ...], kind: str, values: list[object]) -> None:
    found = column(*cells)
    assert (found.type, found.values.to_pylist()) == (kind, values)


def test_decimal_commas_are_numbers_where_they_cannot_be_thousands() -> None:
    assert typed.decimal_of([["1,5", "a"], ["2,25", "b"]]) == ","
    assert typed.decimal_of([["1,234", "a"], ["2,500", "b"]]) == "."
    assert typed.decimal_of([["1,5", "1.5"]]) == "."
    assert column("1,5", "-2,25", "1.234,5", "7", decimal=",").values.to_pylist() == [1.5, -2.25, 1234.5, 7]
    assert column("1,234", "2,500").type == "text"


def test_the_last_of_many_values_still_counts() -> None:
    cells = [*map(str, range(5000)), "oops"]
    assert column(*cells).type == "text"
    assert column(*cells[:-1], "unknown").missing == {"unknown": 1}


@pytest.mark.parametrize(
    ("sample", "delimiter", "names", "header"),
    [
        ("a,b\n1,2\n", ",", ["a", "b"], 1),
        ("a;b\n1,5;2,5\n3,5;4,5\n", ";", ["a", "b"], 1),
        ("a\tb c\n1\t2, 3\n2\tx, y\n", "\t", ["a", "b c"], 1),
        ("a|b\n1|2\n", "|", ["a", "b"], 1),
        ('"x;y","b"\n"1;2",3\n"1;3",4\n', ",", ["x;y", "b"], 1),
        ("one\ntwo words\nthree\n", ",", ["one"], 1),
        ("1,2\n3,4\n", ",", ["column_1", "column_2"], 0),
        ("Report of 2020\n\nid,kind\n1,x\n2,y\n3,y\n", ",", ["id", "kind"], 2),
        ("country,1990,1991,1992\nA,1,2,3\nB,4,5,6\n", ",", ["country", "1990", "1991", "1992"], 1),
        ("male,yes\nfemale,no\nmale,yes\nfemale,no\n", ",", ["column_1", "column_2"], 0),
        ("mpg,cyl\nMazda,21,6\nHornet,22,4\nValiant,18,6\n", ",", ["", "mpg", "cyl"], 1),
        ('name,said\nx,"a \\"b\\" c"\ny,z\n', ",", ["name", "said"], 1),
        ("a,b\r\n1,2\r\n3,4\r\n", ",", ["a", "b"], 1),
        ("a,b\r1,2\r3,4\r", ",", ["a", "b"], 1),
    ],
)
def test_separator_and_names_are_found(sample: str, delimiter: str, names: list[str], header: int) -> None:
    dialect, found, line, _ = understand(sample, Options())
    assert (dialect.delimiter, found, line) == (delimiter, names, header)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("name;city\nMüller;Köln\nJosé;Málaga\nRené;Orléans\n", "latin-1"),
        ("имя,город\nИван,Москва\nПётр,Казань\nОльга,Новосибирск\n", "cp1251"),
        ("名前,都市\n太郎,東京\n花子,大阪\n", "shift_jis"),
        ("Imię;Miasto\nŁukasz;Łódź\nZażółć;Gdańsk\n", "cp1250"),
        ("name,city\nZoë,Köln\n", "utf-16"),
        ("name,city\nZoë,Köln\nJosé,Bern\n", "utf-16-le"),
        ("name,city\nZoë,Köln\n", "utf-8-sig"),
        ("name,city\n😀,Köln\n", "utf-8"),
    ],
)
def test_text_comes_out_of_every_encoding_as_it_went_in(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode(encoding))
    table = read_text(path, Options())
    assert [table.names, *table.rows()] == [line.split("," if "," in text else ";") for line in text.splitlines()]
    assert look(path).names == table.names
    assert table.guessed == (encoding in ("latin-1", "cp1251", "shift_jis", "cp1250", "utf-16-le"))


def test_a_foreign_letter_far_down_is_not_overlooked(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"n,name\n" + b"1,plain\n" * 200_000 + "2,Zoë\n".encode("latin-1"))
    assert encodings.encoding_of(path).guessed


@pytest.mark.parametrize("rows_before", [0, 500])
def test_quotes_escaped_by_a_backslash_are_read_where_doubling_them_makes_no_sense(
    tmp_path: Path, rows_before: int
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("n,said\n" + '1,"plain"\n' * rows_before + '2,"say \\"hi\\", twice"\n3,"ends in \\\\"\n4,x\n')
    table = read_text(path, Options())
    assert list(table.rows())[rows_before:] == [["2", 'say "hi", twice'], ["3", "ends in \\"], ["4", "x"]]
    assert not table.bad


@example(rows=[["", "", "\\"]])
@example(rows=[["", "\\", ""]] * 3)
@examples(60)
@given(
    st.lists(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=8), min_size=3, max_size=3
        ),
        min_size=1,
        max_size=20,
    )
)
def test_what_rfc_4180_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    cells = [[cell or "x" for cell in row] for row in rows]
    quoted = ["one,two,three", *(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells)]
    path.write_text("\n".join(quoted) + "\n", newline="")
    table = read_text(path, Options(delimiter=",", header=1, encoding="utf-8"))
    assert list(table.rows()) == cells and not table.bad


def test_the_sample_is_exact_and_does_not_depend_on_the_pieces() -> None:
    def kept(pieces: list[int], most: int) -> list[int]:
        sample, rows, at = sampling.Sample(most, seed=3), np.empty(0, dtype=int), 0
        for count in pieces:
            rows = np.concatenate([rows, np.arange(at, at + count)[sample.next(count, count)]])
            at += count
            stay = sample.crowded()
            rows = rows if stay is None else rows[stay]
        stay = sample.final()
        return list(map(int, rows if stay is None else rows[stay]))

    dice = random.Random(1)  # noqa: S311 — where the pieces end is no secret
    whole = kept([10_000], 500)
    pieces = [dice.randrange(1, 60) for _ in range(1000)]
    cut = [*pieces[: next(n for n in range(1000) if sum(pieces[:n]) > 10_000) - 1]]
    assert kept([*cut, 10_000 - sum(cut)], 500) == whole and len(whole) == 500
    assert kept([300], 500) == list(range(300))


def test_long_rows_are_kept_in_fewer_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling.Sample.__init__, "__defaults__", (100_000,))
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "".join(f"{n},{'x' * 1000}\n" for n in range(2000)))
    read = read_rows(read_text(path, Options()), Options(), 0, lambda rows: None, None)
    assert read.rows_of == 2000 and 80 <= read.rows <= 100


def test_names_are_unique_short_and_never_empty() -> None:
    names, twice = typed.safe_names(["a", "a", "", "a_2", "a", "x" * 300, "x" * 301, "b\nc"])
    assert len(set(names)) == 8 and max(map(len, names)) <= 100 and twice == [1, 4, 6]
    assert names[:5] == ["a", "a_3", "column_3", "a_2", "a_4"] and names[-1] == "b c"


def test_plain_text_has_no_character_a_screen_obeys() -> None:
    assert plain("a\x1b[31m\u202eb\n\tc\u2028d\x00") == "a [31m b c d"
    assert len(plain("x" * 10_000)) == 80 and plain("short") == "short"


def test_names_are_split_into_words() -> None:
    assert words_of("MedHouseVal") == ("med", "house", "val") == words_of("med_house_val")
    assert words_of("Sepal.Length") == ("sepal", "length") and words_of("HTTPCodes2xx") == ("http", "code", "2", "xx")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("within 2 minutes", 120),
        ("in under 90 seconds", 90),
        ("in at most 1.5 hours", 5400),
        ("take no more than half an hour", 1800),
        ("with a 30-second budget", 30),
        ("spend at most ten min", 600),
        ("readmitted within 30 days", None),
        ("dies within 2 hours of surgery", None),
        ("predict the 5 minute mean", None),
    ],
)
def test_the_time_somebody_allows_is_understood(text: str, seconds: float | None) -> None:
    assert budget_of(f"predict x, {text}") == seconds


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("optimise AUC", "roc_auc"),
        ("maximise ROC-AUC", "roc_auc"),
        ("best F1", "f1"),
        ("balanced accuracy please", "balanced_accuracy"),
        ("minimise the mean absolute error", "mae"),
        ("use RMSE", "rmse"),
        ("high precision parts", None),
    ],
)
def test_the_measure_somebody_names_is_understood(text: str, metric: str | None) -> None:
    assert metric_of(text.lower()) == metric
