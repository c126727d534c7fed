"""A model's claims → findings: evidence goes in numbered, and only what quotes bear out comes back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from conductor.v1 import researcher_pb2

from services.researcher import claims
from services.researcher.citing import Citing
from services.researcher.documents import Kind
from services.researcher.journal import Journal
from services.researcher.protocol import Candidate, Evidence, ModelFailed, ModelRun
from services.researcher.terms import Analyzer
from services.researcher.watch import Watch

MAX_EVIDENCE = 24  # passages a model gets to read, the best of each part in turn
SHARE = 0.9  # of the wall time is over when a model has answered
SHOWN = 120  # characters of a dropped claim in its gap


@dataclass(slots=True)
class Made:
    """What a model's claims became: findings, and for each part the numbers of its own."""

    by_part: list[list[int]]
    findings: list[researcher_pb2.Finding] = field(default_factory=list)

    def put_into(self, result: researcher_pb2.ResearchResult) -> None:
        """Replaces findings and answer of a result."""
        del result.findings[:], result.answer[:]
        for number, finding in enumerate(self.findings):
            result.findings.append(finding)
            result.answer.add(text=finding.statement, findings=[number])


class Synthesis:
    """Has a model word the answer to the parts of an objective, and checks every claim."""

    def __init__(self, run: ModelRun, objective: str, parts: Sequence[str], analyzer: Analyzer) -> None:
        self._run = run
        self._objective = objective
        self._parts = parts
        self._analyzer = analyzer

    def make(
        self, found: Sequence[Sequence[Candidate]], most: int, citing: Citing, watch: Watch, journal: Journal
    ) -> Made:
        """Returns the claims that hold, at most so many. Raises ModelFailed when none does, OutOfTime, Cancelled."""
        given = list(_in_turn(found))[:MAX_EVIDENCE]
        evidence = [_evidence(number, each) for number, each in enumerate(given, 1)]
        made = self._run.synthesize(self._objective, self._parts, evidence, watch.until(SHARE))
        verdict = claims.verify(made, evidence, self._objective, self._analyzer.stems)
        for dropped in verdict.dropped:
            journal.miss(Kind.GAP_KIND_CLAIM_DROPPED, dropped.text, dropped.why)
        result = Made([[] for _ in self._parts])
        for kept in verdict.kept[:most]:
            finding = _finding(kept, given, citing)
            if len(finding.citations) < len(kept.quotes):  # it may rest on the very one that is missing
                detail = "A quote of it does not stand in the source any more."
                journal.miss(Kind.GAP_KIND_CLAIM_DROPPED, kept.text[:SHOWN], detail)
                continue
            finding.score = 1.0 / (1 + len(result.findings))
            if 0 <= kept.question < len(result.by_part):
                result.by_part[kept.question].append(len(result.findings))
            result.findings.append(finding)
        if not result.findings:
            raise ModelFailed("Nothing the model claimed is borne out by a quote.")
        return result


def _in_turn(found: Sequence[Sequence[Candidate]]) -> Iterator[Candidate]:
    """Yields the best passage of each part, then the next best, each passage once."""
    seen: set[tuple[str, int]] = set()
    for row in zip_longest(*found):
        for each in row:
            if each is not None and (place := (each.document.uri, each.passage.start)) not in seen:
                seen.add(place)
                yield each


def _evidence(number: int, candidate: Candidate) -> Evidence:
    path = tuple(heading.text for heading in candidate.passage.above)
    return Evidence(number, candidate.document.title, path, candidate.passage.text)


def _finding(kept: claims.Kept, given: Sequence[Candidate], citing: Citing) -> researcher_pb2.Finding:
    finding = researcher_pb2.Finding(statement=kept.text, synthesized=True)
    for quoted in kept.quotes:
        candidate = given[quoted.number - 1]
        start = candidate.passage.start
        text = candidate.passage.text[quoted.start : quoted.end]
        citation = citing.verbatim(candidate.document, start + quoted.start, start + quoted.end, text, candidate.score)
        if citation is not None:
            finding.citations.append(citation)
    return finding
