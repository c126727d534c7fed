"""EXPORT: the bundle predicts elsewhere as the model does here, refuses what it cannot take, and can be made again."""

import hashlib
import importlib
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest

from stages import bundling, card, review_edit
from stages import export as exporting
from stages.contract import Failed, Result, sha256_of
from stages.export import work
from stages.locking import lock
from stages.preparing import prepare
from stages.smoke import Proof
from tests.models_at_hand import train
from tests.tables_at_hand import lay, leave, run_stage, table, work_here

FILES = {
    "model.joblib",
    "model.skops",
    "schema.json",
    "predict.py",
    "train.py",
    "preparing.py",
    "judging.py",
    "split.parquet",
    "requirements.lock",
    "model-card.md",
}

PROVEN = Proof(1, 0.0, ("rows",))  # stands for the proof where another test has it


def export(folder: Path, **envelope: Any) -> Result:
    return work_here(work, folder, "EXPORT", **envelope)


def read_from(folder: Path, frame: pd.DataFrame, target: str, text: str, **reading: Any) -> None:
    """Leaves a table as DATA_SOURCE does that read it from a CSV text."""
    lay(folder, frame, target)
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    result = json.loads((folder / "data-source" / "result.json").read_text())["result"]
    found = {"delimiter": ",", "decimal": ".", "encoding": "utf-8", "header": 1, "packing": None, **reading}
    leave(folder, "DATA_SOURCE", {**result, **found, "sha256": sha256_of(path), "bytes": path.stat().st_size})


def reviewed(folder: Path, **edits: Any) -> None:
    """Leaves what REVIEW_EDIT says of the model, without its pictures and with few resamples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(review_edit, "_draw", lambda *_: [])
        patch.setattr("stages.judging.RESAMPLES", 20)
        leave(folder, "REVIEW_EDIT", work_here(review_edit.work, folder, "REVIEW_EDIT", edits=edits).result)


def titanic(folder: Path) -> None:
    """Leaves the passengers of the Titanic with a linear model and its review, threshold 0.3."""
    frame = table("titanic").drop(columns="Name")
    folder.mkdir(exist_ok=True)
    read_from(folder, frame, "Survived", frame.to_csv(index=False))
    train(folder, frame, "Survived", "binary", "roc_auc")
    reviewed(folder, threshold=0.3)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with its export, made by the program itself."""
    folder = tmp_path_factory.mktemp("titanic")
    titanic(folder)
    left = run_stage(folder, "EXPORT", edits={"licence": "MIT"})
    assert left.exit == 0, left
    return folder, left


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that only lacks its export, which does not train again here."""
    monkeypatch.setattr(exporting, "_again", lambda *_: None)
    titanic(tmp_path)
    return tmp_path


@pytest.fixture
def bundle(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> Iterator[Path]:
    """The unpacked zip, from which modules can be imported."""
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(done[0] / "export" / "bundle.zip") as packed:
        packed.extractall(folder)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in ("predict", "train", "preparing", "judging"):
        sys.modules.pop(name, None)


@pytest.fixture
def predict(bundle: Path) -> ModuleType:
    return importlib.import_module("predict")


def rows_of(frame: pd.DataFrame, path: Path, **how: Any) -> str:
    frame.to_csv(path, index=False, **how)
    return str(path)


def some_rows() -> pd.DataFrame:
    return table("titanic").drop(columns="Name").head(40)


def expected(folder: Path, frame: pd.DataFrame) -> "np.ndarray[Any, Any]":
    plan = json.loads((folder / "preprocess" / "result.json").read_text())["result"]
    return np.asarray(joblib.load(folder / "train" / "model.joblib").predict_proba(prepare(frame, plan)))


def said(path: Path) -> "np.ndarray[Any, Any]":
    return pd.read_csv(path)[["proba_0", "proba_1"]].to_numpy()


# ---- what is left ----


def test_every_file_is_listed_with_its_hash_and_lies_in_the_zip(done: tuple[Path, dict[str, Any]]) -> None:
    folder, left = done
    own = folder / "export"
    listed = {each["path"]: each for each in left["result"]["files"]}
    assert set(listed) == FILES | {"manifest.json", "bundle.zip"} == {each["name"] for each in left["artifacts"]}
    assert {path.name for path in own.iterdir()} == set(listed) | {"result.json"}
    for name, each in listed.items():
        data = (own / name).read_bytes()
        assert (each["sha256"], each["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    with zipfile.ZipFile(own / "bundle.zip") as packed:
        assert set(packed.namelist()) == FILES | {"manifest.json"}
        assert all(packed.read(name) == (own / name).read_bytes() for name in packed.namelist())
    manifest = json.loads((own / "manifest.json").read_text())["files"]
    assert {each["path"]: each["sha256"] for each in manifest} == {name: listed[name]["sha256"] for name in FILES}


def test_it_is_proven_in_fresh_processes_and_trained_again_to_the_same_score(done: tuple[Path, dict[str, Any]]) -> None:
    result = done[1]["result"]
    assert result["smoke_test"]["ok"]
    assert result["smoke_test"]["max_abs_diff"] <= 1e-9
    assert result["smoke_test"]["ways"] == ["rows", "backwards", "less", "second"]
    again = result["reproduce"]
    assert again["checked"] == {"score": pytest.approx(again["expected"], abs=again["tolerance"]), "same": True}
    assert again["command"] == "python train.py table.csv"


def test_nothing_of_ours_is_needed_to_load_the_model(done: tuple[Path, dict[str, Any]]) -> None:
    own = done[0] / "export"
    assert all(name.split(".")[0] in bundling.PUBLIC for name in done[1]["result"]["trusted_types"])
    for name in ("predict.py", "train.py", "preparing.py", "judging.py"):
        assert "stages" not in [line.split()[1].split(".")[0] for line in _imports(own / name)]
    locked = (own / "requirements.lock").read_text()
    assert "scikit-learn==" in locked
    assert "threadpoolctl==" in locked  # what scikit-learn needs
    assert "conductor" not in locked


def _imports(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]


def test_the_card_says_what_it_is_for_how_good_it_is_and_under_which_licence(done: tuple[Path, dict[str, Any]]) -> None:
    text = (done[0] / "export" / "model-card.md").read_text()
    for part in ("**Survived**", "Licence: MIT", "95 % interval", "not cause", "predict.py rows.csv", "| SexCode |"):
        assert part in text


def test_the_same_run_gives_the_same_zip(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "prove", lambda *_: PROVEN)
    first = sha256_of_bundle(ready)
    (ready / "export" / "left-over.txt").write_text("of an attempt that failed")
    assert sha256_of_bundle(ready) == first
    assert not (ready / "export" / "left-over.txt").exists()


def sha256_of_bundle(folder: Path) -> str:
    export(folder)
    return sha256_of(folder / "export" / "bundle.zip")


# ---- predict.py ----


def test_columns_may_be_in_any_order_missing_or_more(
    predict: ModuleType, done: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = some_rows()
    asked = frame[frame.columns[::-1]].drop(columns=["Age"]).assign(**{"a\nb": "x"})
    out = tmp_path / "out.csv"
    assert predict.main([rows_of(asked, tmp_path / "in.csv"), str(out), "--proba"]) == 0
    assert said(out) == pytest.approx(expected(done[0], frame.drop(columns="Age")), abs=1e-9)
    notes = capsys.readouterr().err
    assert "taken as missing: Age" in notes
    assert "left out: a b" in notes


def test_unseen_levels_nulls_and_words_for_numbers_are_taken_as_missing(
    predict: ModuleType, done: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = some_rows().astype({"Age": "object", "PClass": "object"})
    frame.loc[0, ["Age", "PClass"]] = ["about 40", "9th"]
    frame.loc[1, ["Age", "PClass"]] = ["NA", None]
    out = tmp_path / "out.csv"
    assert predict.main([rows_of(frame, tmp_path / "in.csv"), str(out), "--proba"]) == 0
    cleared = frame.assign(Age=pd.to_numeric(frame["Age"], errors="coerce"))
    assert said(out) == pytest.approx(expected(done[0], cleared), abs=1e-9)
    assert "Age: no number, so taken as missing: 1 (row 1: 'about 40')" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["semicolon", "tab", "utf-16", "bom", "parquet", "trailing"])
def test_other_forms_of_the_same_rows_give_the_same(
    predict: ModuleType, done: tuple[Path, dict[str, Any]], tmp_path: Path, form: str
) -> None:
    frame, path, out = some_rows(), tmp_path / "in.tsv", tmp_path / "out.csv"
    how: dict[str, Any] = {"semicolon": {"sep": ";"}, "tab": {"sep": "\t"}, "utf-16": {"encoding": "utf-16"}}.get(
        form, {}
    )
    rows_of(frame, path, **(how | ({"encoding": "utf-8-sig"} if form == "bom" else {})))
    if form == "parquet":
        frame.to_parquet(path, index=False)
    if form == "trailing":
        path.write_text("\n\n".join(line + ",," for line in path.read_text().splitlines()).replace(",,", "", 1))
    assert predict.main([str(path), str(out), "--proba"]) == 0
    assert said(out) == pytest.approx(expected(done[0], frame), abs=1e-9)


def test_the_threshold_a_person_chose_decides_what_is_called(predict: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    assert predict.main([rows_of(some_rows(), tmp_path / "in.csv"), str(out), "--proba"]) == 0
    made = pd.read_csv(out)
    assert (made["prediction"] == (made["proba_1"] >= 0.3).astype(int)).all()
    assert ((made["proba_1"] >= 0.3) & (made["proba_1"] < 0.5)).any()


WRONG = {
    "missing": (None, "There is no file"),
    "empty": (b"", "is empty"),
    "blank": (b"\n \n", "is empty"),
    "header-only": (b"PClass,Age,Sex,SexCode\n", "no rows"),
    "other-table": (b"a,b\n1,2\n", "none of the columns the model needs: PClass, Age, Sex"),
    "ragged": (b"PClass,Age,Sex,SexCode\n1st,3,male,0\n1st,3\n", "Line 3 of"),
    "open-quote": (b'PClass,Age,Sex,SexCode\n1st,"3,male,0\n', "is no CSV"),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is no text in UTF-8"),
    "broken-parquet": (b"PAR1 and no more PAR1", "cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_predicted_from_is_said_clearly_with_exit_code_2(
    predict: ModuleType, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, text = WRONG[name]
    path = tmp_path / "in.csv"
    if data is not None:
        path.write_bytes(data)
    assert predict.main([str(path), str(tmp_path / "out.csv")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") or "\nerror: " in errors
    assert text in errors
    assert not (tmp_path / "out.csv").exists()


def test_outputs_that_cannot_be_and_models_of_somebody_else_are_refused(
    predict: ModuleType, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(some_rows(), tmp_path / "in.csv")
    assert predict.main([rows, rows]) == 2
    assert predict.main([rows, str(tmp_path / "no" / "folder.csv")]) == 2
    (bundle / "model.joblib").write_bytes(b"\x80\x04cos\nsystem\n.")
    assert predict.main([rows, str(tmp_path / "out.csv")]) == 2
    errors = capsys.readouterr().err
    for part in ("overwrite the input", "cannot be written", "not the file that manifest.json names"):
        assert part in errors


def test_equal_names_in_a_header_go_to_their_columns_in_turn(predict: ModuleType) -> None:
    columns = [{"name": "age", "original_name": "age"}, {"name": "age_2", "original_name": "age"}]
    columns.append({"name": "a b", "original_name": "a\n b"})
    assert predict.names_of(["age", "age", "age", "a\n b"], columns) == ["age", "age_2", "age (column 3)", "a b"]


def test_a_table_with_decimal_commas_is_read_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table("mpg").drop(columns="name")
    frame["weight"] = frame["weight"] / 3
    text = frame.to_csv(index=False, sep=";", decimal=",")
    read_from(tmp_path, frame, "mpg", text, delimiter=";", decimal=",", format="csv")
    train(tmp_path, frame, "mpg", "regression", "rmse", "hgb-quick")
    reviewed(tmp_path)
    monkeypatch.setattr(exporting, "_again", lambda *_: None)
    result = export(tmp_path, edits={"formats": ["skops"], "name": "Miles  per\ngallon"}).result
    assert result["smoke_test"]["max_abs_diff"] <= 1e-9
    assert result["formats"] == ["skops"]
    assert result["name"] == "Miles per gallon"
    assert not (tmp_path / "export" / "model.joblib").exists()


# ---- train.py ----


def test_training_again_from_the_original_file_gives_the_same_and_another_file_is_refused(
    bundle: Path, done: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = importlib.import_module("train")
    assert again.main([str(done[0] / "table.csv"), "--model", str(tmp_path / "again.joblib")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["score"] == pytest.approx(told["expected"], abs=1e-9)
    frame, plan = some_rows(), json.loads((bundle / "schema.json").read_text())["plan"]
    made = joblib.load(tmp_path / "again.joblib").predict_proba(prepare(frame, plan))
    assert made == pytest.approx(expected(done[0], frame), abs=1e-9)
    (tmp_path / "other.csv").write_text((done[0] / "table.csv").read_text().replace("male", "mule", 1))
    assert again.main([str(tmp_path / "other.csv")]) == 2
    assert again.main([str(tmp_path / "none.csv")]) == 2
    schema = json.loads((bundle / "schema.json").read_text())
    schema["reproduce"]["expected"] += 0.01
    (bundle / "schema.json").write_text(json.dumps(schema))
    assert again.main([str(done[0] / "data-source" / "data.parquet")]) == 1


# ---- what goes wrong ----


@pytest.mark.parametrize(
    "broken",
    ["raise SystemExit('it does not start')", "REVERSED"],
    ids=["does-not-start", "predicts-otherwise"],
)
def test_a_bundle_that_does_not_predict_as_the_model_is_no_export(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    programs = tmp_path / "programs"
    for source in bundling.COPIED:
        (programs / source).parent.mkdir(parents=True, exist_ok=True)
        text = (bundling.PROGRAMS / source).read_text()
        if source == "bundle/predict.py":
            wrong = text.replace("chances = model.predict_proba(ready)", "chances = model.predict_proba(ready)[::-1]")
            text = wrong if broken == "REVERSED" else broken
        (programs / source).write_text(text)
    monkeypatch.setattr(bundling, "PROGRAMS", programs)
    with pytest.raises(Failed) as failed:
        export(ready)
    issue = failed.value.issue
    assert issue.code == "EXPORT_SMOKE_TEST_FAILED"
    assert ("it does not start" in issue.message) or ("off by" in issue.message)
    assert str(tmp_path) not in issue.message
    assert not list((ready / "export").glob("smoke-*"))


def test_a_model_that_skops_cannot_write_is_written_with_joblib_alone(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundling, "PUBLIC", ())
    monkeypatch.setattr(exporting, "prove", lambda *_: PROVEN)
    path = ready / "train" / "model.joblib"
    model = joblib.load(path)
    model.strange = Strange()
    joblib.dump(model, path)
    reviewed(ready)
    result = export(ready)
    assert result.result["formats"] == ["joblib"]
    assert [issue.code for issue in result.warnings] == ["SKOPS_NOT_WRITTEN"]


class Strange:
    """A type that no public package has."""


@pytest.mark.parametrize(
    "edits",
    [{"name": " \n"}, {"name": 7}, {"licence": ["MIT"]}, {"formats": []}, {"formats": ["onnx"]}, {"colour": "red"}],
)
def test_nonsense_is_refused_with_the_name_of_the_field(
    done: tuple[Path, dict[str, Any]], edits: dict[str, Any]
) -> None:
    with pytest.raises(Failed) as failed:
        export(done[0], edits=edits)
    assert (failed.value.issue.code, failed.value.issue.value) == ("BAD_EDIT", next(iter(edits)))
    assert (done[0] / "export" / "bundle.zip").exists()  # nothing was touched


def test_a_model_that_was_not_reviewed_is_not_exported(ready: Path) -> None:
    path = ready / "train" / "model.joblib"
    model = joblib.load(path)
    model.set_params(model__C=model.get_params()["model__C"] * 2)
    joblib.dump(model, path)
    with pytest.raises(Failed) as failed:
        export(ready)
    assert (failed.value.issue.code, failed.value.issue.value) == ("INPUT_MISSING", "review-edit/result.json")


def test_names_of_a_stranger_do_no_harm_in_the_card() -> None:
    assert card.escaped("a|b\n<script>`*_[x](y)" + "é" * 500) == (
        "a\\|b \\<script\\>\\`\\*\\_\\[x\\]\\(y\\)" + "é" * 58 + "…"
    )


def test_a_package_that_is_not_there_cannot_be_locked() -> None:
    with pytest.raises(ModuleNotFoundError):
        lock(["no-such-package-anywhere"])
