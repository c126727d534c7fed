"""What a report shows of a research: marks, parts, contradictions, places, and what is missing."""

import json

import pytest
from conductor.v1 import report_writer_pb2, researcher_pb2
from google.protobuf import json_format

from services.report_writer import evidence, findings, searched
from tests.report_texts import drawn, everywhere, finding, links, parse, request

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


def test_the_answer_says_what_contradicts_it_and_what_it_does_not_answer() -> None:
    made = researched("It is changed yearly.", "It is changed monthly.", "It is black.")
    assert len(section(drawn(made), "Answer").splitlines()) == 1
    made.answer.add(text="It is changed yearly.", findings=[0])
    made.sub_questions.add(text="When is it changed?", findings=[0, 1])
    made.sub_questions.add(text="Who *changes* it?")
    made.contradictions.add(subject="colour", one=1, other=2)
    made.contradictions.add(subject="interval", one=1, other=0)
    assert section(drawn(made), "Answer").splitlines()[2:] == [
        "_Another finding contradicts this: see contradiction 2._",
        "",
        r"_Not answered: Who \*changes\* it?_",
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
