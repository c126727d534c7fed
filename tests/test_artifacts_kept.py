"""How long the files of tasks are kept."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from services.report_writer import artifacts
from services.report_writer.artifacts import Artifacts
from services.report_writer.files import PARTS, Folder

DAY_S = 24 * 3600.0


def store(kept: Artifacts, task_id: str, name: str = "model.joblib") -> None:
    data = task_id.encode()
    kept.finish(task_id, name, 0, data, hashlib.sha256(data).hexdigest())


def age(path: Path, seconds: float) -> None:
    for each in (*path.iterdir(), path):
        os.utime(each, (time.time() - seconds,) * 2)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(artifacts, "SWEEP_S", 0.0)
    return tmp_path / "reports"


def test_old_files_go_and_young_ones_and_reports_stay(root: Path) -> None:
    folder = Folder.open(root)
    kept = Artifacts(folder, DAY_S)
    for task_id in ("old", "young", "mixed"):
        store(kept, task_id)
    store(kept, "mixed", "second.csv")
    folder.publish("old.md", b"# Report\n")
    age(root / "old", 2 * DAY_S)
    os.utime(root / "mixed" / "model.joblib", (time.time() - 2 * DAY_S,) * 2)
    os.utime(root / "old.md", (time.time() - 2 * DAY_S,) * 2)
    store(kept, "young", "second.csv")
    assert sorted(path.name for path in root.iterdir() if path.name != PARTS) == ["mixed", "old.md", "young"]
    assert sorted(path.name for path in (root / "mixed").iterdir()) == ["model.joblib", "second.csv"]  # its last counts


def test_without_a_time_everything_stays(root: Path) -> None:
    kept = Artifacts(Folder.open(root), None)
    store(kept, "old")
    age(root / "old", 1000 * DAY_S)
    store(kept, "new")
    assert (root / "old" / "model.joblib").exists()


def test_what_is_no_folder_of_a_task_is_left_alone(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    kept = Artifacts(Folder.open(root), DAY_S)
    (root / "link").symlink_to(outside)
    (root / "with space").mkdir()
    age(outside, 2 * DAY_S)
    store(kept, "new")
    assert (outside / "precious").exists() and (root / "with space").exists()
