"""stages.yaml: ours is whole and agrees with the stage programs; a bad one is refused by stage and key."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from conductor.v1 import project_pb2

from services.common.config import ConductorSettings, ConfigError, load
from services.conductor import programs
from stages import contract

MIB = 1024 * 1024
NAMES = [name.removeprefix("STAGE_") for name in project_pb2.Stage.keys()[1:]]
GOOD: dict[str, Any] = {"program": ["p", "-x"], "wall_time": 9, "cpu_time": 5, "memory_mb": 64}


def write(folder: Path, changes: dict[str, Any] | None = None, text: str | None = None) -> Path:
    """Writes a file of good stages; changes are those of TRAIN, None takes a key away."""
    document: dict[str, Any] = {name: dict(GOOD) for name in NAMES}
    document["TRAIN"] = {key: v for key, v in {**GOOD, **(changes or {})}.items() if v is not None}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(document) if text is None else text)
    return path


def test_ours_has_a_program_for_every_stage() -> None:
    ours = programs.load(None)
    assert [program.stage_id for program in ours] == list(range(1, 9)) and list(contract.STAGES) == NAMES
    for program, name in zip(ours, NAMES, strict=True):
        assert list(program.argv) == ["python", "-m", f"stages.{name.lower()}"]
        assert importlib.util.find_spec(program.argv[2]) is not None, program.argv
        assert program.gate and program.threads == 1
        assert 64 * MIB <= program.memory_bytes <= 8192 * MIB
        assert 0 < program.cpu_time.seconds <= program.wall_time.seconds <= 3600
    assert [program.stage_id for program in ours if program.report] == [
        project_pb2.STAGE_REVIEW_EDIT,
        project_pb2.STAGE_EXPORT,
    ]


def test_a_file_of_ones_own_takes_its_place(tmp_path: Path) -> None:
    mine = {"gate": True, "report": True, "threads": 4, "env": {"A": "b"}, "memory_mb": 100}
    path = write(tmp_path, mine)
    assert load(ConductorSettings, {"CONDUCTOR_STAGES": str(path)}).stages == path
    train = programs.load(path)[5]
    assert train.gate and train.report and train.threads == 4 and dict(train.env) == {"A": "b"}
    assert train.memory_bytes == 100 * MIB and train.wall_time.seconds == 9 and train.cpu_time.seconds == 5
    first = programs.load(path)[0]
    assert not first.gate and not first.report and first.threads == 1 and not first.env


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"program": None}, "program"),
        ({"program": []}, "program"),
        ({"program": "python -m x"}, "program"),
        ({"program": [1]}, "program"),
        ({"program": ["p", ""]}, "program"),
        ({"program": ["p", None]}, "program"),
        ({"wall_time": None}, "wall_time"),
        ({"wall_time": 0}, "wall_time"),
        ({"wall_time": 3601}, "wall_time"),
        ({"wall_time": 1.5}, "wall_time"),
        ({"wall_time": "9"}, "wall_time"),
        ({"cpu_time": True}, "cpu_time"),
        ({"cpu_time": -1}, "cpu_time"),
        ({"memory_mb": 63}, "memory_mb"),
        ({"memory_mb": 2**40}, "memory_mb"),
        ({"threads": 0}, "threads"),
        ({"threads": 257}, "threads"),
        ({"gate": "yes please"}, "gate"),
        ({"gate": 1}, "gate"),
        ({"report": "no"}, "report"),
        ({"env": ["A=b"]}, "env"),
        ({"env": {"A": 1}}, "env"),
        ({"env": {1: "a"}}, "env"),
        ({"memory": 5}, "memory_mb"),
    ],
)
def test_a_bad_key_is_named_with_its_stage(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        programs.load(write(tmp_path, changes))
    assert "TRAIN" in str(caught.value) and key in str(caught.value) and "mine.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "7",
        "TRAIN: {program: [p]}",
        "{",
        "a: b: c",
        "!!python/object/apply:os.system ['true']",
        yaml.safe_dump({**dict.fromkeys(NAMES, GOOD), "EXTRA": GOOD}),
        yaml.safe_dump(dict.fromkeys(NAMES, 7)),
        yaml.safe_dump({**dict.fromkeys(NAMES[1:], GOOD), 5: GOOD}),
        "\x00",
        "1: 2\n" * 3,
    ],
)
def test_what_is_no_file_of_stages_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        programs.load(write(tmp_path, text=text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "mine.yaml"
    for prepare in (lambda: None, lambda: bad.write_bytes(b"\xff\xfe\x00"), lambda: (bad.unlink(), bad.mkdir())):
        prepare()
        with pytest.raises(ConfigError, match=r"mine\.yaml"):
            programs.load(bad)


def test_a_stage_named_twice_is_refused(tmp_path: Path) -> None:
    """YAML takes the last one, and what stands first would be lost without a word."""
    path = write(tmp_path)
    path.write_text(path.read_text() + yaml.safe_dump({"TRAIN": {**GOOD, "program": ["other"]}}))
    with pytest.raises(ConfigError, match="TRAIN"):
        programs.load(path)
