"""Rendering of reports: hostile text shows as text, and nothing else."""

import re

import pytest
from conductor.v1 import researcher_pb2, terminal_pb2
from hypothesis import example, given
from hypothesis import strategies as st

from services.report_writer import commands, escape, report
from services.report_writer.evidence import NOTHING_FOUND
from tests.properties import examples
from tests.report_texts import drawn, everywhere, finding, headings, links, parse, record, request, text_of, walk

MARK = "[[1]](#citation-1)"
OUR_HEADINGS = re.compile(
    r"Answer|Findings|(Finding|Citation|Contradiction|Command) \d+|Other findings|Contradictions|Commands|Sandbox|Gaps"
    r"|Searched|Objective|Provenance"
)
HOSTILE = (
    "# heading",
    "x\n# heading\n",
    "x\n=====\n",
    "x\n-----\n",
    "```\n# out\n```",
    "````` \n# out",
    "~~~\n# out",
    "\r```\r# out\r",
    "\u2028# out",
    "`` ` ``",
    "`",
    "\\",
    "\\`",
    "[text](evil)",
    "![image](evil)",
    "[text][ref] [ref]\n\n[ref]: evil",
    "[text](https://evil.example)",
    "![image](https://evil.example/pixel.png)",
    "[ref]: https://evil.example\n\n[ref]",
    "[1]: https://evil.example",
    "<https://evil.example>",
    "https://evil.example www.evil.example evil@evil.example",
    "javascript:alert(1) //evil.example",
    "<script>alert(1)</script>",
    "<!-- comment",
    "--> <b>out</b>",
    "<!-- conductor-report request-sha256=" + "0" * 64 + " body-sha256=" + "0" * 64 + " -->",
    "&lt;b&gt; &#35; &copy;",
    "| a | b |\n|---|---|\n| c | d |",
    "- item\n  1. item\n> quote",
    "    indented code",
    "1. one",
    "1) one",
    "**bold** _it_ ~~gone~~ $x$",
    "***\n___\n",
    "a\x00b\x1b[31mred\x1b]8;;https://evil.example\x07link\x1b]8;;\x07\x08\x7f\x9b",
    "abc\u202edcba\u2066\u200b\ufeff\U000e0041",
    "",
    " ",
    "\n\n\n",
)
hostile_text = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(alphabet="`~#*_[]()<>!&|\\-+=.:/@ \t\r\nab1\x00\x1b\u2028\u202e", max_size=40),
    st.text(max_size=40),
)


def leads_where_it_says(href: str, shown: str) -> bool:
    return href.partition("#:~:text=")[0] == shown and shown.startswith(("http://", "https://"))


def test_answer_comes_first_and_cites_its_source() -> None:
    made = request()
    made.findings.append(finding("Durable means fsynced."))
    lines = drawn(made).splitlines()
    assert lines[:5] == ["# What is durable?", "", "## Answer", "", f"Durable means fsynced. {MARK}"]
    assert lines[lines.index("#### Citation 1") + 2] == "**A**, `docs/a.md`, Promises › Durable, lines 3–4"
    assert lines.count("Durable means fsynced.") == 1  # the quote, verbatim


def test_a_statement_that_is_not_its_quote_is_shown_beside_it() -> None:
    made = request()
    made.findings.append(finding("In short: fsync.", quote="It is  fsynced\nbefore the answer."))
    findings = drawn(made).partition("## Findings")[2]
    assert f"In short: fsync. {MARK}" in findings
    assert "```text\nIt is  fsynced\nbefore the answer.\n```" in findings


def test_equal_citations_get_one_number_and_are_listed_once() -> None:
    made = request()
    made.findings.extend([finding("a"), finding("b", quote="a"), finding("c", uri="docs/b.md")])
    markdown = drawn(made)
    assert markdown.count("`docs/a.md`, Promises") == 1
    assert f"b {MARK}" in markdown
    assert "#### Citation 2\n\n**A**, `docs/b.md`" in markdown
    assert "[3]" not in markdown and "Citation 3" not in markdown


def test_commands_are_answered_in_a_sentence_each() -> None:
    made = request()
    made.commands.extend([record("pytest", "-q"), record("false", code=3)])
    killed = made.commands.add(command=terminal_pb2.Command(script="sleep 9\nls"))
    killed.result.end = terminal_pb2.COMMAND_END_WALL_TIME
    signaled = made.commands.add(command=terminal_pb2.Command(argv=["x"]))
    signaled.result.end, signaled.result.signal = terminal_pb2.COMMAND_END_SIGNALED, 9
    answer = drawn(made).partition("## Answer\n\n")[2].partition("\n\n")[0].splitlines()
    assert answer == [
        "- `pytest -q` exited with 0.",
        "- `false` exited with 3.",
        "- `sleep 9 …` was killed: its wall time was used up.",
        "- `x` was ended by signal 9 (SIGKILL).",
    ]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"Linux\n", "- `uname` exited with 0: `Linux`"),
        (b"a\nb\n", "- `uname` exited with 0."),
        (b"x" * 5000, "- `uname` exited with 0."),
        (b"`# out`\x00\x1b[31m<b>", "- `uname` exited with 0: `` `# out`␀␛[31m<b> ``"),
        (b"\xff", "- `uname` exited with 0: `<FF>`"),
    ],
)
def test_the_answer_shows_what_a_command_wrote_when_it_is_one_short_line(written: bytes, said: str) -> None:
    made = request()
    made.commands.append(record("uname"))
    made.commands[0].stdout = written
    assert drawn(made).partition("## Answer\n\n")[2].partition("\n")[0] == said


def test_nothing_found_is_said() -> None:
    made = request()
    made.gaps.add(kind=researcher_pb2.GAP_KIND_TERM_ABSENT, subject="frob", detail="It occurs nowhere.")
    markdown = drawn(made)
    assert markdown.partition("## Answer\n\n")[2].startswith(NOTHING_FOUND)
    assert "- Word that occurs nowhere: `frob`. It occurs nowhere.\n" in markdown


def test_the_title_is_the_first_line_and_the_whole_objective_is_kept() -> None:
    markdown = drawn(request("\n  \nFirst line\nsecond line"))
    assert markdown.startswith("# First line\n")
    assert "## Objective\n\n```text\n\n  \nFirst line\nsecond line\n```" in markdown
    assert len(drawn(request("word " * 3000)).splitlines()[0]) <= report.TITLE_CHARS + 2
    assert "## Objective" not in drawn(request("One line"))
    assert drawn(request("\u200b\x00")).startswith("# Report\n")


def test_the_same_request_gives_the_same_bytes() -> None:
    one, other = request(), request()
    for made, names in ((one, "abcdef"), (other, "fedcba")):
        command = made.commands.add(command=terminal_pb2.Command(argv=["x"]))
        for name in names:
            command.command.env[name] = name
    assert report.render(one) == report.render(other)
    other.commands[0].command.env["a"] = "changed"
    assert report.request_sha256(one) != report.request_sha256(other)


def test_values_of_the_environment_and_input_stay_out() -> None:
    made = request()
    command = made.commands.add(command=terminal_pb2.Command(argv=["x"], stdin=b"hunter2"))
    command.command.env["TOKEN"] = "s3cr3t"
    markdown = drawn(made)
    assert "`TOKEN`" in markdown
    assert "7 bytes of input" in markdown
    assert "s3cr3t" not in markdown
    assert "hunter2" not in markdown


def test_large_output_is_cut_and_every_missing_byte_is_accounted_for() -> None:
    made = request()
    made.commands.append(record("yes", stdout=b"y\n" * 2_500_000))
    made.commands[0].stdout_cut_bytes = 7
    made.commands[0].result.stdout_dropped_bytes = 1000
    content = report.render(made)
    assert len(content) < commands.OUTPUT_BYTES + 4096
    hidden = 5_000_000 - commands.OUTPUT_BYTES
    assert (
        f"_{hidden + 1007:,} bytes are left out: 1,000 dropped by the Terminal, 7 not kept by Conductor, "
        f"{hidden:,} not shown here._" in content.decode()
    )


def test_output_that_was_dropped_whole_is_still_reported() -> None:
    made = request()
    made.commands.append(record("yes"))
    made.commands[0].result.stderr_dropped_bytes = 12
    assert "Standard error:\n\n_12 bytes are left out: 12 dropped by the Terminal._" in drawn(made)
    assert "Standard output" not in drawn(made)


def test_a_character_cut_in_two_is_left_out_but_wrong_bytes_are_shown() -> None:
    assert escape.decode("aé".encode()[:2], 10, complete=False) == ("a", 1)
    assert escape.decode("aé".encode()[:2], 10, complete=True) == ("a\ufffd", 0)
    assert escape.decode("aéé".encode(), 2, complete=True) == ("a", 4)
    assert escape.decode(b"\xff\xfeok", 10, complete=True) == ("\ufffd\ufffdok", 0)


def test_times_and_enums_outside_of_their_types_do_not_stop_the_report() -> None:
    made = request()
    made.provenance.created_at.seconds = 2**62
    made.provenance.workers.add(service="researcher", call_id="c").started_at.nanos = -5
    made.commands.add().result.ParseFromString(b"\x08\x63\x18\x7f")  # end 99, signal 127
    made.gaps.add().ParseFromString(b"\x08\x63")
    assert "at a time that is not valid" in drawn(made)
    assert "has no known end" in drawn(made)


def test_control_characters_are_gone_or_shown_and_this_is_said() -> None:
    made = request()
    made.findings.append(finding("a", quote="a\x00b\x1b[31mred\x1b]0;title\x07\x08\x7f\r\nend\u202e"))
    assert "```text\nabred␈␡\nend\n```\n\n_Control and invisible characters" in drawn(made)
    made.findings[0].citations[0].quote = "plain\r\n\tlines"
    assert "_Control and" not in drawn(made)


def test_no_character_of_a_report_steers_a_terminal_or_the_reading_direction() -> None:
    made = everywhere("".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), *range(0x2000, 0x2070), 0xFEFF])))
    found = re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]", drawn(made))
    assert found == []


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_every_field_makes_no_structure(text: str) -> None:
    check_structure(text)


@examples(150)
@given(hostile_text)
def test_any_text_in_every_field_makes_no_structure(text: str) -> None:
    check_structure(text)


def check_structure(text: str) -> None:
    tokens = parse(drawn(everywhere(text)))
    questions = [f"1. {escape.fold(text) or '(no question)'}", f"2. {escape.fold(f'2 {text}')}"]
    found = headings(tokens)[1:]
    assert [h for h in found if not OUR_HEADINGS.fullmatch(h)] == questions
    known = {f"#{h.lower().replace(' ', '-')}" for h in found if re.fullmatch(r"Citation \d+", h)}
    assert [href for href, shown in links(tokens) if href not in known and not leads_where_it_says(href, shown)] == []
    kinds = [token.type for token in walk(tokens)]
    for kind in ("image", "html_inline", "table_open", "blockquote_open", "code_block", "s_open", "hr"):
        assert kind not in kinds
    assert kinds.count("html_block") == 1
    assert tokens[-1].type == "html_block"
    fences = [token.content for token in tokens if token.type == "fence"]
    shown = [escape.clean(text), escape.clean(text or "x"), escape.visible(text)]
    assert set(fences) <= {one if one.endswith("\n") else f"{one}\n" for one in shown}
    assert report.sealed_request(report.render(everywhere(text)))


@examples(300)
@given(hostile_text)
@example("1. https://a.example `x` -")
@example("a.b.c e.g. 3.5 _x_ \\`a@b``c`")
def test_inline_text_renders_as_itself(text: str) -> None:
    (paragraph,) = [token for token in parse(f"{escape.inline(text)} end\n") if token.type == "inline"]
    assert {child.type for child in paragraph.children or ()} <= {"text", "text_special", "code_inline"}
    assert text_of(paragraph) == f"{escape.fold(text)} end".lstrip(" ")


@examples(200)
@given(hostile_text)
def test_code_spans_hold_their_text(text: str) -> None:
    (paragraph,) = [token for token in parse(f"a {escape.code_span(text)} b") if token.type == "inline"]
    assert [c.type for c in paragraph.children or ()] == ["text", "code_inline", "text"]
    assert (paragraph.children or ())[1].content == (escape.fold(text) or '""')


def test_an_address_is_never_left_bare() -> None:
    for address in ("https://a.example", "www.a.example", "me@a.example", "//a.example", "HTTP://A.EXAMPLE"):
        assert f"`{address}`" in escape.inline(f"see {address} there")
    assert escape.inline("see example.com, 3.5") == "see example\\.com, 3.5"


def test_the_seal_tells_torn_and_edited_reports() -> None:
    content = report.render(request())
    assert report.sealed_request(content) == report.request_sha256(request())
    assert report.sealed_request(content[:-1]) is None
    assert report.sealed_request(content[:100]) is None
    assert report.sealed_request(b"") is None
    assert report.sealed_request(content.replace(b"durable", b"durably")) is None
    assert report.sealed_request(content + b"\n") is None


NO_PATHS = (
    "",
    "reports/",
    "reports/.md",
    "a.md",
    "reports/a",
    "reports/a.md ",
    "reports/a.md\n",
    "reports/a.md/",
    "reports/a.MD",
    "reports/a..md",
    "REPORTS/a.md",
    "/reports/a.md",
    "reports//a.md",
    "reports/./a.md",
    "reports/../a.md",
    "reports/b/a.md",
    "reports\\a.md",
    "reports/-a.md",
    "reports/.tmp-0.md",
    "reports/a\x00.md",
    "reports/ａ.md",
    "reports/é.md",
    "reports/a\u202e.md",
    "reports/%2e%2e/a.md",
    "reports/" + "a" * 129 + ".md",
)


@pytest.mark.parametrize("path", NO_PATHS)
def test_only_exact_report_paths_have_a_name(path: str) -> None:
    assert report.name_in(path) is None
    assert report.name_in("reports/a-1.md") == "a-1.md"


def test_an_upgrade_of_conductor_makes_no_other_request() -> None:
    old, new, other = request(), request(), request("Another objective?")
    old.provenance.conductor_version, new.provenance.conductor_version = "0.1.0", "0.2.0"
    assert report.request_sha256(old) == report.request_sha256(new) != report.request_sha256(other)
    assert new.provenance.conductor_version == "0.2.0", "the request itself stays as it is"
