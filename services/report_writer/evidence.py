"""What a research found, for a report: the answer, findings by the part of the objective they are for, contradictions.

A mark such as [1] links to the heading of its citation, which renderers give the name `citation-1`. Of what comes from
documents only the address of a page may become a link, and it shows where it leads.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

from conductor.v1 import report_writer_pb2, researcher_pb2

from services.report_writer.commands import outcome
from services.report_writer.escape import code_span, fenced, fold, inline

NOTHING_FOUND = "No evidence was found in the sources searched."
NOT_ANSWERED = "The sources searched do not answer this. What follows comes nearest."
FOUND_EARLY = "This may not be all: the search ended early. See the gaps."
NO_STATEMENT = "(no statement)"
FRAGMENT_CHARS = 80  # of a quote, in the address that leads to it

_Outcome = researcher_pb2.ResearchOutcome
# RFC 3986 without user, without brackets and quotes that could end the link.
_ADDRESS = re.compile(
    r"https?://[A-Za-z0-9.-]+(?::\d{1,5})?(?:[/?][A-Za-z0-9._~:/?@!$&*+,;=%-]*)?(#[A-Za-z0-9._~%-]*)?"
)

Request = report_writer_pb2.WriteReportRequest


class Evidence:
    """The findings of one report, with a number for each citation in order of appearance; equal places get one number.

    The indices in answer, sub_questions and contradictions must be those of findings.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._findings = request.findings
        self._numbers: dict[bytes, int] = {}
        self._shown: set[int] = set()  # numbers of citations, and below, positions of findings
        self._told: set[int] = set()
        first = [index for sentence in request.answer for index in sentence.findings]
        for index in (*first, *range(len(self._findings))):
            for citation in self._findings[index].citations:
                self._numbers.setdefault(_place(citation), len(self._numbers) + 1)

    # ---- answer ----

    def answer(self) -> Iterator[str]:
        """Yields the blocks of the answer."""
        request = self._request
        if self._findings and request.outcome == _Outcome.RESEARCH_OUTCOME_INSUFFICIENT:
            yield f"{NOT_ANSWERED}\n"
        if request.answer:
            yield " ".join(self._marked(sentence.text, sentence.findings) for sentence in request.answer) + "\n"
        elif self._findings:
            yield f"{self._marked(self._findings[0].statement, [0])}\n"
        yield from self._doubts()
        if any(finding.synthesized for finding in self._findings):
            model = f", {code_span(request.usage.model)}," if fold(request.usage.model) else ""
            yield f"_A language model{model} worded this; the quotes it rests on are below, verbatim._\n"
        if request.outcome == _Outcome.RESEARCH_OUTCOME_PARTIAL:
            yield f"_{FOUND_EARLY}_\n"
        if request.commands:
            yield "".join(f"- {outcome(record)}\n" for record in request.commands)
        if not self._findings and not request.commands:
            yield f"{NOTHING_FOUND}\n"

    def _doubts(self) -> Iterator[str]:
        """Yields what who reads only the answer has to know: what contradicts it, and what it does not answer."""
        request = self._request
        told = {index for sentence in request.answer for index in sentence.findings}
        pairs = enumerate(request.contradictions, 1)
        if against := [str(number) for number, pair in pairs if {pair.one, pair.other} & told]:
            yield f"_Another finding contradicts this: see contradiction {', '.join(against)}._\n"
        unanswered = [inline(each.text) for each in request.sub_questions if not each.findings]
        if self._findings and unanswered and len(request.sub_questions) > 1:
            yield f"_Not answered: {'; '.join(unanswered)}_\n"

    # ---- findings ----

    def findings(self) -> Iterator[str]:
        """Yields the blocks of all findings, under the parts of the objective when it has some."""
        questions = self._request.sub_questions
        if len(questions) < 2:
            yield from self._listed(range(len(self._findings)), 3)
            return
        for number, question in enumerate(questions, 1):
            yield f"### {number}. {inline(question.text) or '(no question)'}\n"
            yield from self._listed(question.findings, 4)
            if not question.findings:
                yield "Nothing was found for this.\n"
        if rest := [index for index in range(len(self._findings)) if index not in self._told]:
            yield "### Other findings\n"
            yield from self._listed(rest, 4)

    def _listed(self, indices: Iterable[int], level: int) -> Iterator[str]:
        again = []
        for index in dict.fromkeys(indices):
            if index in self._told:
                again.append(index)
            else:
                self._told.add(index)
                yield from self._finding(index, level)
        if again:
            yield "".join(f"- Finding {index + 1}, above: {self._statement(index)}\n" for index in again)

    def _finding(self, index: int, level: int) -> Iterator[str]:
        finding = self._findings[index]
        yield f"{'#' * level} Finding {index + 1}\n"
        new = {self._numbers[_place(citation)]: citation for citation in finding.citations}
        new = {number: citation for number, citation in new.items() if number not in self._shown}
        # An extractive statement is its quote on one line: the quote below says it, once and verbatim.
        if not any(_says(citation, finding) for citation in new.values()):
            yield f"{self._statement(index)}\n"
        for number, citation in new.items():
            self._shown.add(number)
            yield f"{'#' * (level + 1)} Citation {number}\n"
            yield _citation(citation)

    # ---- contradictions ----

    def contradictions(self) -> Iterator[str]:
        """Yields the blocks of findings that cannot both hold, side by side."""
        for number, pair in enumerate(self._request.contradictions, 1):
            yield f"### Contradiction {number}\n"
            said = [inline(text) for text in (pair.subject, pair.detail) if fold(text)]
            yield f"{': '.join(said) or '(not said how)'}\n"
            yield "".join(f"- Finding {index + 1}{self._source(index)}\n" for index in (pair.one, pair.other))

    def _source(self, index: int) -> str:
        uris = dict.fromkeys(citation.uri for citation in self._findings[index].citations if fold(citation.uri))
        return f", {', '.join(map(code_span, uris))}: {self._statement(index)}"

    # ---- statements ----

    def _statement(self, index: int) -> str:
        return self._marked(self._findings[index].statement, [index])

    def _marked(self, text: str, indices: Sequence[int]) -> str:
        citations = [citation for index in indices for citation in self._findings[index].citations]
        numbers = dict.fromkeys(self._numbers[_place(citation)] for citation in citations)
        marks = "".join(f"[[{number}]](#citation-{number})" for number in numbers)
        return f"{inline(text) or NO_STATEMENT} {marks or '(no source named)'}"


def _place(citation: researcher_pb2.Citation) -> bytes:
    place = researcher_pb2.Citation(
        uri=citation.uri, locator=citation.locator, quote=citation.quote, source_sha256=citation.source_sha256
    )
    return place.SerializeToString(deterministic=True)


def _says(citation: researcher_pb2.Citation, finding: researcher_pb2.Finding) -> bool:
    return fold(citation.quote) == fold(finding.statement)


# ---- citations ----


def _citation(citation: researcher_pb2.Citation) -> str:
    locator = citation.locator
    parts = [f"**{inline(citation.title)}**" if fold(citation.title) else "", _where(citation)]
    parts.append(" › ".join(inline(heading) for heading in locator.heading_path))
    parts += _places(locator)
    return f"{', '.join(part for part in parts if part)}\n\n{fenced(citation.quote)}"


def _where(citation: researcher_pb2.Citation) -> str:
    """Returns the uri; that of a page as a link to the quote (WICG Scroll To Text Fragment)."""
    found = _ADDRESS.fullmatch(citation.uri)
    if found is None:
        return code_span(citation.uri)
    words = fold(citation.quote)[:FRAGMENT_CHARS]
    words = words.rpartition(" ")[0] or words if len(words) == FRAGMENT_CHARS else words
    fragment = "" if found[1] else f"#:~:text={quote(words, safe='').replace('-', '%2D')}"
    return f"[{code_span(citation.uri)}](<{citation.uri.replace('&', '&amp;')}{fragment}>)"


def _places(locator: researcher_pb2.Locator) -> Iterator[str]:
    if locator.page:
        yield f"page {locator.page}"
    if fold(locator.sheet):
        yield f"sheet {code_span(locator.sheet)}"
    if locator.row:
        yield f"row {locator.row}"
    if fold(locator.cells):
        yield f"cells {code_span(locator.cells)}"
    if locator.page or locator.row:
        return  # a line of the text that was extracted says nothing to who has the file open
    if locator.line_end > locator.line_start:
        yield f"lines {locator.line_start}–{locator.line_end}"
    elif locator.line_start:
        yield f"line {locator.line_start}"
