"""Commands in a report: all that a person needs to believe or doubt them, and every byte of their output visible."""

import re
from typing import Any

import pytest
from conductor.v1 import error_pb2, report_writer_pb2, terminal_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.report_writer import commands, escape
from tests.properties import examples
from tests.report_texts import drawn, headings, parse, record, request

Record = report_writer_pb2.CommandRecord
End, Tier = terminal_pb2.CommandEnd, terminal_pb2.IsolationTier
NOTE = "_Controls are shown as symbols"
# What acts on a terminal, turns the reading direction, ends lines unseen or cannot be seen at all.
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def of(*records: Record) -> str:
    made = request()
    made.commands.extend(records)
    return drawn(made)


def section(*records: Record) -> str:
    return of(*records).partition("## Commands\n\n")[2].partition("\n## ")[0]


def ended(end: int, **fields: Any) -> Record:
    made = record("x")
    made.result.CopyFrom(terminal_pb2.CommandResult(end=end, **fields))
    return made


def wrote(stdout: bytes) -> str:
    """Returns what the report shows of an output, with its fence and note."""
    return section(record("x", stdout=stdout)).partition("Standard output:\n\n")[2]


# ---- how it ended ----


@pytest.mark.parametrize(
    ("end", "limits", "said"),
    [
        (
            End.COMMAND_END_WALL_TIME,
            {"wall_time": {"seconds": 2, "nanos": 500_000_000}},
            "its wall time of 2.5 s was used up",
        ),
        (End.COMMAND_END_CPU_TIME, {"cpu_time": {"seconds": 60}}, "its CPU time of 60 s was used up"),
        (End.COMMAND_END_MEMORY, {"memory_bytes": 1 << 30}, "it used more memory than the 1,073,741,824 bytes allowed"),
        (End.COMMAND_END_PROCESSES, {"processes": 64}, "it started more processes than the 64 allowed"),
        (End.COMMAND_END_FILE_SIZE, {"file_size_bytes": 5000}, "it wrote a larger file than the 5,000 bytes allowed"),
        (
            End.COMMAND_END_WORKSPACE,
            {"workspace_bytes": 1000, "workspace_entries": 20},
            "its workspace grew larger than the 1,000 bytes or 20 entries allowed",
        ),
        (End.COMMAND_END_WALL_TIME, {}, "its wall time was used up"),
        (End.COMMAND_END_MEMORY, {}, "it used more memory than allowed"),
        (End.COMMAND_END_WORKSPACE, {}, "its workspace grew larger than allowed"),
        (End.COMMAND_END_CANCELLED, {}, "it was cancelled"),
    ],
)
def test_the_limit_that_bit_is_named_with_its_value(end: int, limits: dict[str, Any], said: str) -> None:
    markdown = of(ended(end, signal=9, limits=limits))
    assert f"\nIt was killed: {said}.\n" in markdown
    assert f"- `x` was killed: {said}.\n" in markdown


def test_what_it_used_and_was_given_is_told() -> None:
    made = ended(End.COMMAND_END_EXITED, exit_code=0, peak_memory_bytes=12_345_678, cpu_time={"nanos": 250_000_000})
    made.result.started_at.seconds, made.result.ended_at.seconds = 1_800_000_000, 1_800_000_009
    made.command.inputs.add(name="data.csv", content=b"hunter2")
    made.command.network = terminal_pb2.NETWORK_LOOPBACK
    shown = section(made)
    assert "It exited with 0. Started 2027-01-15T08:00:00Z, ended 2027-01-15T08:00:09Z. " in shown
    assert "CPU time 0.25 s, peak memory 12,345,678 bytes. " in shown
    assert "files to read: `data.csv`. It had a loopback network of its own." in shown and "hunter2" not in shown


def test_files_it_left_are_listed_with_their_sums() -> None:
    made = ended(End.COMMAND_END_EXITED, exit_code=0, files_left_out=7)
    for number in range(52):
        made.result.files.add(path=f"out/{number}`.bin", size_bytes=1000, sha256="ab" * 32)
    shown = section(made)
    assert f"- ``out/0`.bin``, 1,000 bytes, SHA-256 `{'ab' * 32}`\n" in shown
    assert "out/49" in shown and "out/50" not in shown and "_9 more are not shown here._" in shown


# ---- what contained it ----


def contained(
    tier: int, *not_enforced: str, layers: tuple[str, ...] = ("landlock", "seccomp"), **fields: Any
) -> Record:
    isolation = terminal_pb2.Isolation(tier=tier, layers=layers, not_enforced=not_enforced, **fields)
    return ended(End.COMMAND_END_EXITED, exit_code=0, isolation=isolation)


def test_each_sandbox_is_described_once_with_what_it_does_not_enforce() -> None:
    weak = contained(Tier.ISOLATION_TIER_STANDARD, "Sizes of files outside can be read.", "<b>Two.</b>")
    strong = contained(Tier.ISOLATION_TIER_STRONG, layers=("user namespace",), separate_uid=True)
    shown = section(weak, strong, weak)
    assert shown.count("It ran in the standard sandbox.") == 2 and shown.count("It ran in the strong sandbox.") == 1
    assert shown.partition("### Sandbox\n\n")[2].splitlines() == [
        "Commands 1, 3: the standard sandbox (landlock, seccomp).",
        "",
        "Not enforced here:",
        "",
        "- Sizes of files outside can be read.",
        "- \\<b\\>Two.\\</b\\>",
        "",
        "Command 2: the strong sandbox (user namespace), under another user id than the service's.",
    ]


def test_no_sandbox_is_said_and_so_is_one_that_is_not_known() -> None:
    assert "It ran in no sandbox, as the operator chose." in section(contained(Tier.ISOLATION_TIER_NONE))
    assert "It ran in a sandbox of a kind that is not known here." in section(contained(99))
    assert "### Sandbox" not in section(record("x"))


# ---- what it wrote ----


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"\x1b[31mred\x1b]0;title\x07\x00\x08\x7f\n", "␛[31mred␛]0;title␇␀␈␡\n"),
        ("a\u202eb\u2066c\u200bd".encode(), "a<U+202E>b<U+2066>c<U+200B>d\n"),
        ("\ufeffe\xad\u2028\U000e0041".encode(), "<U+FEFF>e<U+00AD><U+2028><U+E0041>\n"),
        ("\x85\x9b".encode(), "<U+0085><U+009B>\n"),
        (b"caf\xe9 \xff\xc3", "caf<E9> <FF><C3>\n"),
        (b"10%\r20%\r\ndone", "10%␍\n20%\ndone\n"),
        ("a\u200db \u200c".encode(), "a<U+200D>b <U+200C>\n"),
        (b"x" * 2500, f"{'x' * 1000}↩\n{'x' * 1000}↩\n{'x' * 500}\n"),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_is_shown_and_said(data: bytes, shown: str) -> None:
    assert wrote(data).startswith(f"```text\n{shown}```\n\n{NOTE}")


@pytest.mark.parametrize(
    "text",
    ["plain\n\ttabbed\n", "x" * 1000 + "\n" + "y" * 1000 + "\n", "می‌خواهم 👩‍👩‍👧\n", "é€\n"],
)
def test_what_can_be_seen_is_shown_as_it_is(text: str) -> None:
    assert wrote(text.encode()) == f"```text\n{text}```\n"
    assert wrote(text.replace("\n", "\r\n").encode()) == f"```text\n{text}```\n"


@pytest.mark.parametrize("inside", ["```", "`````\n# out", "~~~~\n", "```text\n```\n````"])
def test_no_output_closes_its_fence(inside: str) -> None:
    tokens = parse(of(record("x", stdout=inside.encode(), stderr=inside.encode())))
    end = "" if inside.endswith("\n") else "\n"
    assert [token.content for token in tokens if token.type == "fence"][1:] == [inside + end] * 2
    assert "out" not in headings(tokens)


def test_of_what_is_no_text_a_little_is_shown() -> None:
    made = wrote(bytes(range(256)) * 400)
    assert len(made) < 5 * 4096 and "<FF>" in made
    assert f"_{256 * 400 - 4096:,} bytes are left out: {256 * 400 - 4096:,} not shown here._" in made


@pytest.mark.parametrize("data", [b"\xff", b"\x01", "\u202e".encode(), b"\x1b[0m", b"\xffabcd", b"a\0", b"`", b"x"])
def test_what_is_shown_of_the_worst_output_has_a_bound(data: bytes) -> None:
    """16 commands with two streams must fit into the 8 MiB that a report may have."""
    shown, _ = escape.written(data * 70_000, commands.OUTPUT_BYTES, complete=True)
    assert len(shown.encode()) < 2.1 * commands.OUTPUT_BYTES + len(data) * 2


@examples(300)
@given(st.binary(max_size=200))
def test_any_bytes_make_a_report_that_acts_on_nothing(data: bytes) -> None:
    markdown = of(record("x", stdout=data, stderr=data))
    assert not ACTING.search(markdown)
    assert len([token for token in parse(markdown) if token.type == "fence"]) == (3 if data else 1)
    shown, left_out = escape.written(data, 100, complete=True)
    assert (left_out == max(0, len(data) - 100)) or 0 <= left_out - (len(data) - 100) < 4
    assert shown or not data


# ---- where the whole of it is ----


def kept(*, size: int = 5_000_000, error: str = "", **fields: Any) -> Record:
    made = record("yes", stdout=b"y\n" * 100_000)
    file = made.artifacts.add(name="command-1.stdout", size_bytes=size, **fields)
    if error:
        file.error.reason, file.error.message = error_pb2.ERROR_REASON_WORKER_TIMEOUT, error
    return made


def test_the_artefact_is_named_where_output_is_cut() -> None:
    made = kept()
    made.stdout_cut_bytes = 4_800_000
    shown = section(made)
    assert "Standard output (whole in the artefact `command-1.stdout`, 5,000,000 bytes):\n" in shown
    hidden = 200_000 - commands.OUTPUT_BYTES
    assert f"bytes are left out: 4,800,000 not kept by Conductor, {hidden:,} not shown here._" in shown


def test_an_artefact_of_what_the_terminal_dropped_is_not_called_whole() -> None:
    made = kept()
    made.result.stdout_dropped_bytes = 1
    assert "Standard output (in the artefact `command-1.stdout`, 5,000,000 bytes):\n" in section(made)


def test_a_missing_artefact_is_told_with_its_reason() -> None:
    shown = section(kept(error="It did not answer in 3 s. <b>Look</b> at its log."))
    why = "It did not answer in 3 s. \\<b\\>Look\\</b\\> at its log"
    assert f"Standard output (could not be kept as `command-1.stdout`: {why}):\n" in shown


def test_each_stream_names_its_own_artefact() -> None:
    made = record("x", stdout=b"out", stderr=b"err")
    made.artifacts.add(name="command-1-attempt-2.stdout", size_bytes=3)
    made.artifacts.add(name="command-1-attempt-2.stderr", size_bytes=3)
    shown = section(made)
    assert "Standard output (whole in the artefact `command-1-attempt-2.stdout`, 3 bytes):" in shown
    assert "Standard error (whole in the artefact `command-1-attempt-2.stderr`, 3 bytes):" in shown
