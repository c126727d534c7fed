"""Rendering of reports: hostile text shows as text, and nothing else."""

import json
import re

import pytest
from conductor.v1 import report_writer_pb2, researcher_pb2, terminal_pb2
from google.protobuf import json_format
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from services.report_writer import commands, escape, evidence, findings, report, searched
from services.report_writer.evidence import NOTHING_FOUND

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


def parse(markdown: str) -> list[Token]:
    # HTML on, so that raw HTML would show up as a token; tables and strike-through as GitHub has them.
    return MarkdownIt("js-default", {"html": True, "linkify": False}).parse(markdown)


def walk(tokens: list[Token]) -> list[Token]:
    return [inner for token in tokens for inner in (token, *(token.children or ()))]


def text_of(token: Token) -> str:
    return "".join(" " if child.type == "softbreak" else child.content for child in token.children or ())


def headings(tokens: list[Token]) -> list[str]:
    return [text_of(tokens[i + 1]) for i, token in enumerate(tokens) if token.type == "heading_open"]


def links(tokens: list[Token]) -> list[tuple[str, str]]:
    """Returns where each link leads, and what it shows."""
    all_of_them = walk(tokens)
    opened = [place for place, token in enumerate(all_of_them) if token.type == "link_open"]
    return [(str(all_of_them[place].attrGet("href")), all_of_them[place + 1].content) for place in opened]


def leads_where_it_says(href: str, shown: str) -> bool:
    return href.partition("#:~:text=")[0] == shown and shown.startswith(("http://", "https://"))


def request(objective: str = "What is durable?") -> report_writer_pb2.WriteReportRequest:
    made = report_writer_pb2.WriteReportRequest(task_id="t-1", objective=objective)
    made.provenance.correlation_id = "c-1"
    return made


def finding(statement: str, quote: str | None = None, uri: str = "docs/a.md") -> researcher_pb2.Finding:
    made = researcher_pb2.Finding(statement=statement)
    citation = made.citations.add(uri=uri, title="A", quote=statement if quote is None else quote)
    citation.locator.line_start, citation.locator.line_end = 3, 4
    citation.locator.heading_path.extend(["Promises", "Durable"])
    return made


def record(*argv: str, code: int = 0, stdout: bytes = b"", stderr: bytes = b"") -> report_writer_pb2.CommandRecord:
    result = terminal_pb2.CommandResult(end=terminal_pb2.COMMAND_END_EXITED, exit_code=code)
    return report_writer_pb2.CommandRecord(
        command=terminal_pb2.Command(argv=argv), result=result, stdout=stdout, stderr=stderr
    )


def drawn(made: report_writer_pb2.WriteReportRequest) -> str:
    return report.render(made).decode()


def everywhere(text: str) -> report_writer_pb2.WriteReportRequest:
    """A request with the text in every field a worker or a person can fill."""
    made = request(text or "x")
    found = made.findings.add(statement=text)
    citation = found.citations.add(uri=text, title=text, quote=text, source_sha256=text)
    citation.locator.heading_path.extend([text, text])
    made.findings.add(statement=f"other {text}")
    command = made.commands.add(stdout=text.encode(), stderr=text.encode())
    command.command.script = text
    command.command.env[text] = text
    command.result.isolation.layers.append(text)
    command.result.isolation.not_enforced.append(text)
    command.result.files.add(path=text, sha256=text)
    command.artifacts.add(name=f"{text}.stdout")
    command.artifacts.add(name=f"{text}.stderr").error.message = text
    citation.locator.sheet = citation.locator.cells = text
    made.answer.add(text=text, findings=[0, 1])
    made.sub_questions.add(text=text, findings=[0])
    made.sub_questions.add(text=f"2 {text}", findings=[0])
    made.contradictions.add(subject=text, one=0, other=1, detail=text)
    made.searched.add(name=text, kind=researcher_pb2.SOURCE_KIND_WEB, queries=[text, text])
    made.usage.model, made.usage.model_calls = text, 1
    made.gaps.add(kind=researcher_pb2.GAP_KIND_NOT_FOUND, subject=text, detail=text)
    made.research_id = text
    made.provenance.project_id = made.provenance.conductor_version = text
    made.provenance.workers.add(service=text, call_id=text)
    return made


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


@settings(max_examples=150, deadline=None)
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


@settings(max_examples=300, deadline=None)
@given(hostile_text)
@example("1. https://a.example `x` -")
@example("a.b.c e.g. 3.5 _x_ \\`a@b``c`")
def test_inline_text_renders_as_itself(text: str) -> None:
    (paragraph,) = [token for token in parse(f"{escape.inline(text)} end\n") if token.type == "inline"]
    assert {child.type for child in paragraph.children or ()} <= {"text", "text_special", "code_inline"}
    assert text_of(paragraph) == f"{escape.fold(text)} end".lstrip(" ")


@settings(max_examples=200, deadline=None)
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


# ---- what a research found ----


def researched(*statements: str) -> report_writer_pb2.WriteReportRequest:
    made = request("When is the seal changed, and what does it cost?")
    made.findings.extend(finding(text, uri=f"docs/{number}.md") for number, text in enumerate(statements, 1))
    return made


def section(markdown: str, heading: str) -> str:
    return markdown.partition(f"\n## {heading}\n\n")[2].partition("\n## ")[0]


def test_every_sentence_of_the_answer_has_marks_that_lead_to_its_citations() -> None:
    made = researched("It is changed yearly.", "It costs 90 francs.", "It is black.")
    made.answer.add(text="It costs 90 francs.", findings=[1])
    made.answer.add(text="Yearly.", findings=[0, 1])
    markdown = drawn(made)
    wanted = "It costs 90 francs. [[1]](#citation-1) Yearly. [[2]](#citation-2)[[1]](#citation-1)"
    assert section(markdown, "Answer").splitlines()[0].replace("\\", "") == wanted
    assert markdown.index("#### Citation 2") < markdown.index("#### Citation 1") < markdown.index("#### Citation 3")


def test_findings_are_grouped_by_the_parts_of_the_objective_and_none_is_lost_or_shown_twice() -> None:
    made = researched("It is changed yearly.", "It costs 90 francs.", "It is black.")
    made.sub_questions.add(text="What does it cost?", findings=[1, 0])
    made.sub_questions.add(text="When is it changed?", findings=[0])
    made.sub_questions.add(text="Who changes it?")
    found = [line for line in section(drawn(made), "Findings").splitlines() if line.startswith(("#", "- ", "Nothing"))]
    assert found == [
        *("### 1. What does it cost?", "#### Finding 2", "##### Citation 2", "#### Finding 1", "##### Citation 1"),
        *("### 2. When is it changed?", "- Finding 1, above: It is changed yearly. [[1]](#citation-1)"),
        *("### 3. Who changes it?", "Nothing was found for this."),
        *("### Other findings", "#### Finding 3", "##### Citation 3"),
    ]


def test_an_objective_of_one_part_is_not_repeated_above_its_findings() -> None:
    made = researched("It is changed yearly.")
    made.sub_questions.add(text="When is the seal changed?", findings=[0])
    assert section(drawn(made), "Findings").startswith("### Finding 1\n\n#### Citation 1\n")


def test_contradictions_stand_side_by_side_with_their_sources() -> None:
    made = researched("It is changed yearly.", "It is changed monthly.")
    made.contradictions.add(subject="interval", one=0, other=1, detail="Yearly here, monthly there.")
    assert section(drawn(made), "Contradictions").splitlines() == [
        "### Contradiction 1",
        "",
        "interval: Yearly here, monthly there.",
        "",
        "- Finding 1, `docs/1.md`: It is changed yearly. [[1]](#citation-1)",
        "- Finding 2, `docs/2.md`: It is changed monthly. [[2]](#citation-2)",
    ]


def test_the_place_of_a_quote_is_told_as_its_file_shows_it() -> None:
    made = researched("a", "b", "c")
    pdf, table, text = (each.citations[0].locator for each in made.findings)
    pdf.page, pdf.line_start = 7, 120
    table.sheet, table.row, table.cells = "Prices", 12, "B12:D12"
    text.line_start = text.line_end = 9
    markdown = drawn(made)
    assert "`docs/1.md`, Promises › Durable, page 7\n" in markdown
    assert "`docs/2.md`, Promises › Durable, sheet `Prices`, row 12, cells `B12:D12`\n" in markdown
    assert "`docs/3.md`, Promises › Durable, line 9\n" in markdown


@pytest.mark.parametrize(
    ("uri", "href"),
    [
        ("https://a.example/b?c=1&copy;=2", "https://a.example/b?c=1&copy;=2#:~:text=A%20quote%2C%20re%2Dread."),
        ("http://a.example:8080/b#part", "http://a.example:8080/b#part"),
        ("https://a.example", "https://a.example#:~:text=A%20quote%2C%20re%2Dread."),
        ("https://me@a.example/", None),
        ("https://a.example/> evil", None),
        ("https://a.example/)evil", None),
        ("https://a.example\\@b.example", None),
        ("javascript:alert(1)", None),
        ("ftp://a.example/b", None),
        ("docs/https://a.example", None),
        ("https://а.example", None),  # a Cyrillic letter
    ],
)
def test_only_the_address_of_a_page_becomes_a_link_and_leads_to_the_quote(uri: str, href: str | None) -> None:
    made = request()
    made.findings.append(finding("A quote, re-read.", uri=uri))
    found = [link for link in links(parse(drawn(made))) if not link[0].startswith("#citation")]
    assert found == ([(href, uri)] if href else [])


def test_what_was_searched_and_spent_and_what_is_missing_is_told() -> None:
    made = researched("It is changed yearly.")
    source = made.searched.add(name="docs", kind=researcher_pb2.SOURCE_KIND_FOLDER, documents=1, passages=2345)
    source.at.seconds = 1_700_000_000
    made.searched.add(
        name="web", kind=researcher_pb2.SOURCE_KIND_WEB, documents=3, passages=9, queries=["seal", "cost"]
    )
    usage = researcher_pb2.ResearchUsage(documents=4, bytes=5678, passages=2354, fetches=5, model_calls=2, model="m-1")
    usage.model_input_tokens, usage.model_output_tokens, usage.model_cost_micros = 1200, 300, 4500
    usage.wall_time.FromMilliseconds(1250)
    made.usage.CopyFrom(usage)
    made.gaps.add(kind=researcher_pb2.GAP_KIND_CLAIM_DROPPED, subject="claim", detail="No quote.")
    assert section(drawn(made), "Searched").splitlines() == [
        "- `docs` (folder): 1 document, 2,345 passages, at 2023-11-14T22:13:20Z",
        "- `web` (web): 3 documents, 9 passages; asked for `seal`, `cost`",
        "",
        "Spent: 1.25 s, 4 documents (5,678 bytes) read, 2,354 passages searched, 5 requests to the web, 2 model calls "
        "of `m-1` (1,200 tokens sent, 300 received), 0.004500 in the currency of the model's prices.",
    ]
    assert "- Claim without a quote that bears it out: `claim`. No quote.\n" in section(drawn(made), "Gaps")
    assert set(researcher_pb2.GapKind.values()) == {0, *searched._GAPS}
    assert set(researcher_pb2.SourceKind.values()) == {0, *searched._KINDS}


def test_an_answer_says_when_it_is_partial_worded_by_a_model_or_no_answer() -> None:
    made = researched("It is changed yearly.")
    assert len(section(drawn(made), "Answer").splitlines()) == 1
    made.outcome = researcher_pb2.RESEARCH_OUTCOME_PARTIAL
    assert f"_{evidence.FOUND_EARLY}_" in section(drawn(made), "Answer")
    made.outcome = researcher_pb2.RESEARCH_OUTCOME_INSUFFICIENT
    assert section(drawn(made), "Answer").startswith(evidence.NOT_ANSWERED)
    made.findings[0].synthesized, made.usage.model = True, "m-1"
    assert "_A language model, `m-1`, worded this" in section(drawn(made), "Answer")


def test_findings_for_programs_hold_everything_by_the_contracts_names() -> None:
    made = everywhere("x\u202e\U0001f600\x00")
    made.findings[1].citations.add(uri="docs/a.md", quote="q").locator.page = 3
    written = json.loads(findings.findings_json(made))
    assert written["contradictions"] == [
        {"subject": "x\u202e\U0001f600\x00", "one": 0, "other": 1, "detail": "x\u202e\U0001f600\x00"}
    ]
    assert written["findings"][1]["citations"][0]["locator"]["page"] == 3 and written["research_id"]
    back = json_format.ParseDict(written, researcher_pb2.ResearchResult())
    for name in ("findings", "gaps", "answer", "sub_questions", "contradictions", "searched"):
        assert list(getattr(back, name)) == list(getattr(made, name)) != []
    assert (back.usage, back.outcome, back.research_id) == (made.usage, made.outcome, made.research_id)
    assert json.loads(findings.findings_json(request()))["findings"] == []
