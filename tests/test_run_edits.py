"""What a person chose at a gate, held against what the gate offered."""

from typing import Any

import pytest
from conductor.v1 import project_pb2
from google.protobuf import struct_pb2

from services.common.errors import Reason, Refusal
from services.conductor.state import edits

Kind = project_pb2.StageActionKind


def action(kind: str, field: str, **fields: Any) -> project_pb2.StageAction:
    return project_pb2.StageAction(kind=Kind.Value(f"STAGE_ACTION_KIND_{kind}"), field=field, **fields)


OFFERED = [
    action("CONFIRM", ""),
    action("CHOOSE", "target", options=["species", "island", "None", "1", "true"], required=True),
    action("CHOOSE", "drop", options=["a", "b.c", "d\ne"], many=True),
    action("EDIT", "depth", minimum=-1, maximum=9),
    action("EDIT", "least", minimum=0),
    action("EDIT", "most", maximum=0),
    action("EDIT", "note"),
    action("CHOOSE", "data", options=["penguins.csv"]),
    action("BACK", "DATA_SOURCE"),
    action("ABORT", "abort"),
]
UPLOADS = [project_pb2.DataUpload(name="mine.csv")]


def struct(**values: Any) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(values)
    return made


def refusal(given: struct_pb2.Struct, offered: Any = OFFERED, uploads: Any = UPLOADS) -> Refusal | None:
    before = given.SerializeToString(deterministic=True)
    try:
        edits.check(given, offered, uploads)
    except Refusal as refused:
        assert refused.error.reason == Reason.ERROR_REASON_EDIT_REFUSED
        assert len(refused.error.message) <= 4000 and refused.violations
        return refused
    finally:
        assert given.SerializeToString(deterministic=True) == before
    return None


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"target": "species"},
        {"target": 1},  # a number that stands among the options
        {"target": True},
        {"drop": []},
        {"drop": ["a", "d\ne"]},
        {"depth": -1},
        {"depth": 9},
        {"depth": 0.5},
        {"least": 1e300},
        {"most": -1e300},
        {"note": ""},
        {"note": "x" * 4000},
        {"data": "penguins.csv"},
        {"data": "uploads/mine.csv"},
        {"target": "island", "drop": ["b.c"], "depth": 3, "note": "so"},
    ],
)
def test_what_was_offered_is_taken(given: Any) -> None:
    assert refusal(struct(**given)) is None


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"specie": "a"}, "specie"),
        ({"": "a"}, ""),
        ({"DATA_SOURCE": "x"}, "DATA_SOURCE"),
        ({"abort": True}, "abort"),
        ({"target": "specie"}, "target"),
        ({"target": None}, "target"),  # though an option is called None
        ({"target": ["species"]}, "target"),
        ({"target": {"species": 1}}, "target"),
        ({"target": ""}, "target"),
        ({"drop": "a"}, "drop"),
        ({"drop": ["a", "z"]}, "drop"),
        ({"drop": [["a"]]}, "drop"),
        ({"drop": [None]}, "drop"),
        ({"drop": {"a": 1}}, "drop"),
        ({"depth": -1.01}, "depth"),
        ({"depth": 10}, "depth"),
        ({"depth": "3"}, "depth"),
        ({"depth": True}, "depth"),
        ({"depth": None}, "depth"),
        ({"depth": [3]}, "depth"),
        ({"least": -0.001}, "least"),
        ({"most": 1}, "most"),
        ({"note": "x" * 4001}, "note"),
        ({"note": 7}, "note"),
        ({"note": None}, "note"),
        ({"note": {"a": 1}}, "note"),
        ({"data": "uploads/other.csv"}, "data"),
        ({"data": "uploads/../etc"}, "data"),
        ({"data": ["uploads/mine.csv"]}, "data"),
        ({"data": {}}, "data"),
        ({"target": "species", "depth": 99}, "depth"),
    ],
)
def test_what_was_not_offered_is_refused_by_name(given: Any, field: str) -> None:
    refused = refusal(struct(**given))
    assert refused is not None and refused.error.metadata["field"] == field
    assert refused.violations[0][0] == f"edits.{field}"


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["depth", "least", "target", "drop", "note", "no-such"])
def test_numbers_that_json_does_not_know_are_refused(odd: float, field: str) -> None:
    for value in (odd, [odd], {"a": odd}):
        refused = refusal(struct(**{field: value}))
        assert refused is not None and refused.error.metadata["field"] in (field, "edits")


def test_a_value_that_is_none_is_refused() -> None:
    assert refusal(struct_pb2.Struct(fields={"note": struct_pb2.Value()})) is not None


def test_nothing_was_offered_nothing_is_taken() -> None:
    refused = refusal(struct(target="species"), ())
    assert refused is not None and "nothing" in refused.error.message
    assert refusal(struct(data="uploads/mine.csv"), ()) is not None


def test_all_together_are_bounded() -> None:
    fields = [action("EDIT", f"note-{n}") for n in range(100)]
    given = struct(**{f"note-{n}": "x" * 4000 for n in range(16)})
    assert refusal(given, fields) is None
    refused = refusal(struct(**{f"note-{n}": "x" * 4000 for n in range(17)}), fields)
    assert refused is not None and "65536" in refused.error.message


def test_a_value_is_shown_cut_and_a_long_list_of_options_too() -> None:
    offered = [action("CHOOSE", "target", options=["y" * 1000] * 1000)]
    refused = refusal(struct(target="x" * 5000), offered)
    assert refused is not None and len(refused.error.metadata["value"]) <= 80


def test_newer_edits_take_the_place_of_older_ones() -> None:
    before, more = struct(a=1, b=["x"]), struct(b=["y"], c="z")
    assert edits.as_dict(edits.merged(before, more)) == {"a": 1, "b": ["y"], "c": "z"}
    assert edits.as_dict(before) == {"a": 1, "b": ["x"]}


def test_whole_numbers_come_back_whole() -> None:
    given = edits.as_dict(struct(a=3, b=0.5, c=[1, {"d": 2}], e=1e300, f=True))
    assert type(given["a"]) is int and type(given["b"]) is float and type(given["c"][0]) is int
    assert given["c"][1] == {"d": 2} and given["f"] is True


def outcome(*actions: project_pb2.StageAction, needs_input: bool = True) -> project_pb2.StageOutcome:
    return project_pb2.StageOutcome(needs_input=needs_input, actions=actions)


def test_what_needs_input_does_not_go_on_without() -> None:
    with pytest.raises(Refusal) as caught:
        edits.require(outcome(*OFFERED))
    assert caught.value.error.metadata["field"] == "target"
    with pytest.raises(Refusal):
        edits.require(outcome(OFFERED[0]))  # its program does not say what it needs, but that it needs it
    edits.require(outcome(*OFFERED, needs_input=False))


def test_what_is_nested_too_deep_is_refused() -> None:
    """A message that holds it could be stored, and never be read again."""
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    assert refusal(struct(note=deep)) is not None
    with pytest.raises(ValueError, match="16 deep"):
        edits.check_json(struct(a=deep))
    edits.check_json(struct(a=[{"b": [{"c": 1}]}]))
