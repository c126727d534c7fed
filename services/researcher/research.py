"""The pipeline of one research: open, search, quote, check, answer. It stops when it must and says what is missing.

Nothing in a document is ever followed as an order; documents are read, searched and quoted.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from conductor.v1 import researcher_pb2

from services.common.errors import Reason, Refusal
from services.researcher import parts
from services.researcher.answer import asked, direct, group, quotes
from services.researcher.citing import Citing
from services.researcher.closeness import answering, closest
from services.researcher.contradictions import contradictions
from services.researcher.documents import Kind, SourceKind
from services.researcher.index.lexical import Damaged
from services.researcher.journal import Journal
from services.researcher.parts import Part
from services.researcher.protocol import (
    Candidate,
    Inquiry,
    Limits,
    Model,
    ModelBudget,
    ModelFailed,
    ModelRun,
    Reranker,
    Source,
    Term,
    View,
)
from services.researcher.reranking import reranked
from services.researcher.synthesis import Synthesis
from services.researcher.terms import Analyzer, terms_of
from services.researcher.watch import INDEXING_SHARE, Cancelled, OutOfTime, Watch

CANDIDATES = 60  # passages looked at closely for each part
RERANKED = 20  # of them, those that a re-ranker reads
RERANK_SHARE = 0.9  # of the wall time is over when re-ranking ends
PLAN_SHARE = 0.3  # of the wall time is over when a model has planned
MAX_WORD = 100  # characters of the objective repeated in a gap

Outcome = researcher_pb2.ResearchOutcome
Mode = researcher_pb2.AnswerMode


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, of what, and what it may cost."""

    objective: str
    sources: tuple[str, ...]
    kinds: frozenset[SourceKind.ValueType]
    web: bool
    synthesize: bool
    max_findings: int
    limits: Limits
    model: ModelBudget


@dataclass(frozen=True, slots=True)
class Chosen:
    """A source to search, and the paths below it that were named; none for all of it."""

    source: Source
    paths: tuple[str, ...]


class Sources(Protocol):
    """All that can be searched."""

    def choose(self, question: Question) -> Sequence[Chosen]:
        """Returns what a question is to be asked of. Raises SOURCE_REFUSED, NO_SOURCES."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a research works with. Without a re-ranker or a model it does without."""

    sources: Sources
    analyzer: Analyzer
    reranker: Reranker | None
    model: Model | None


@dataclass(slots=True)
class Sought:
    """What was found for one part: numbers of findings, best first."""

    part: Part
    findings: list[int] = field(default_factory=list)


def answer(question: Question, tools: Tools, watch: Watch, journal: Journal) -> researcher_pb2.ResearchResult:
    """Returns what the sources say, partial when time, a budget or a cancel ends it early.

    Raises:
        Refusal: SOURCE_REFUSED or NO_SOURCES.
    """
    return _Run(question, tools, watch, journal).answer(tools.sources.choose(question))


class _Run:
    """One research under way."""

    def __init__(self, question: Question, tools: Tools, watch: Watch, journal: Journal) -> None:
        self._question = question
        self._tools = tools
        self._watch = watch
        self._journal = journal
        self._views: dict[str, View] = {}
        self._result = researcher_pb2.ResearchResult()
        self._found_in: dict[str, View] = {}  # by the document's uri
        self._citing = Citing(self._found_in, watch, journal)
        self._sought: list[Sought] = []
        self._model: ModelRun | None = None
        self._partial = self._cancelled = False

    def answer(self, chosen: Sequence[Chosen]) -> researcher_pb2.ResearchResult:
        try:
            self._work(chosen)
        except OutOfTime:
            self._journal.spend("wall_time", "The time was over before the search was complete.")
        except Cancelled:
            self._partial = self._cancelled = True
            self._journal.miss(Kind.GAP_KIND_CANCELLED, "", "The research was cancelled before its end.")
        finally:
            for view in self._views.values():
                view.close()
        self._conclude()
        return self._result

    def _work(self, chosen: Sequence[Chosen]) -> None:
        planned = self._plan(chosen)
        self._journal.begin(f"Opening {_counted(len(chosen), 'source')}.")
        self._open(chosen, tuple(part.query for part in planned))
        passages = sum(view.passages for view in self._views.values())
        self._result.usage.passages = self._journal.usage.passages = passages
        self._sought = [Sought(part) for part in planned]
        self._journal.begin(f"Searching {_counted(passages, 'passage')} for {_counted(len(planned), 'question')}.")
        candidates = []
        # One after another, so that what was found for the first stands when the time ends at the second.
        for left, sought in zip(range(len(planned), 0, -1), self._sought, strict=True):
            terms, found = self._look(sought.part)
            candidates.append(found)
            self._quote(sought, terms, found, self._room(left))
        self._journal.begin("Making the answer.")
        if self._model is not None:
            self._synthesize(candidates)

    def _room(self, left: int) -> int:
        """Returns how many findings the next part may have, when so many parts are left."""
        room = self._question.max_findings - len(self._result.findings)
        if not room:
            self._journal.spend("max_findings", "There was no room for findings of all parts.")
        return max(room // left, min(room, 1))

    def _plan(self, chosen: Sequence[Chosen]) -> tuple[Part, ...]:
        objective = self._question.objective
        own = parts.split(objective, self._tools.analyzer)
        if not self._question.synthesize:
            return own
        if self._tools.model is None:
            detail = "No language model is configured, so the answer is made of quotes."
            self._journal.miss(Kind.GAP_KIND_PROVIDER_FAILED, "model", detail)
            return own
        run = self._tools.model.run(self._question.model)
        names = [each.source.name for each in chosen]
        try:
            planned = run.plan(objective, names, self._watch.until(PLAN_SHARE))
        except ModelFailed as failed:
            self._model_failed(failed)
            return own
        finally:
            self._journal.asked(run.name, run.usage)
        self._model = run
        return parts.parts_of(tuple(planned)) or own

    def _open(self, chosen: Sequence[Chosen], queries: tuple[str, ...]) -> None:
        """Opens all sources; those with an index in turn, which share a budget, the web beside them: it waits long."""
        watch = self._watch.until(INDEXING_SHARE)

        def one(each: Chosen) -> View:
            limits = self._question.limits
            if each.source.kind != SourceKind.SOURCE_KIND_WEB:
                limits = self._journal.left(limits)
            inquiry = Inquiry(self._question.objective, queries, each.paths, limits)
            return each.source.open(inquiry, watch, self._journal)

        with ThreadPoolExecutor(1, "open") as indexes, ThreadPoolExecutor(1, "open-web") as web:
            opening = [
                (web if each.source.kind == SourceKind.SOURCE_KIND_WEB else indexes).submit(one, each)
                for each in chosen
            ]
        # All have ended. What one raises must not leave the views of the others open.
        problems = []
        for each, future in zip(chosen, opening, strict=True):
            if (problem := future.exception()) is None:
                self._views[each.source.name] = future.result()
                self._searched(each, future.result(), queries)
            else:
                problems.append((each, problem))
        for each, problem in problems:
            if self._question.sources or not isinstance(problem, Refusal):
                raise problem
            self._partial = True
            self._journal.miss(Kind.GAP_KIND_UNREADABLE, each.source.name, str(problem))
        if not self._views:
            text = "None of the sources can be opened: see that the folders of RESEARCHER_ROOTS exist and can be read."
            raise Refusal(Reason.ERROR_REASON_NO_SOURCES, text)

    def _searched(self, each: Chosen, view: View, queries: tuple[str, ...]) -> None:
        usage = self._journal.usage
        usage.documents += view.documents
        usage.bytes += view.bytes
        self._partial |= not view.complete
        record = self._result.searched.add(
            name=each.source.name, kind=each.source.kind, documents=view.documents, passages=view.passages
        )
        record.at.FromNanoseconds(time.time_ns())
        if each.source.kind == SourceKind.SOURCE_KIND_WEB:
            record.queries.extend(queries)

    def _look(self, part: Part) -> tuple[Sequence[Term], Sequence[Candidate]]:
        """Returns the terms of a part and the passages that match them best, of all sources."""
        self._watch.check()
        passages = sum(view.passages for view in self._views.values())
        terms = terms_of(part.query, self._counts, passages, self._tools.analyzer)
        self._absent(terms)
        present = [term for term in terms if term.present]
        found: list[Candidate] = []
        for view in self._views.values():
            hits = view.search(part.query, present, CANDIDATES, self._watch)
            self._partial |= not view.complete  # it may turn out only now that an index is damaged
            self._found_in |= dict.fromkeys((hit.document.uri for hit in hits), view)
            found += hits
        found.sort(key=lambda each: (-each.score, each.document.uri, each.passage.start))
        close = closest(found[:CANDIDATES], terms, self._tools.analyzer, self._watch)
        if not answering(close):
            return terms, ()
        watch = self._watch.until(RERANK_SHARE)
        return terms, reranked(self._tools.reranker, part.query, close, RERANKED, watch, self._journal)

    def _counts(self, stems: Sequence[str]) -> Mapping[str, int]:
        held = dict.fromkeys(stems, 0)
        for name, view in self._views.items():
            for stem, count in self._counts_in(name, view, stems).items():
                held[stem] += count
        return held

    def _counts_in(self, name: str, view: View, stems: Sequence[str]) -> Mapping[str, int]:
        try:
            return view.counts(stems)
        except Damaged:
            self._partial = True
            detail = "Its index is damaged: how often words occur in it is not known."
            self._journal.miss(Kind.GAP_KIND_UNREADABLE, name, detail)
            # Whether a word occurs there nobody knows, so it is looked for. The search meets the damage too, if it
            # is still there, and has the index built anew.
            return dict.fromkeys(stems, 1)

    def _absent(self, terms: Iterable[Term]) -> None:
        if not all(view.complete for view in self._views.values()):
            return
        for term in terms:
            if not term.present:
                documents = self._journal.usage.documents
                detail = f"The word occurs nowhere in the {documents} documents that were searched."
                self._journal.miss(Kind.GAP_KIND_TERM_ABSENT, term.word, detail)

    def _quote(self, sought: Sought, terms: Sequence[Term], found: Sequence[Candidate], limit: int) -> None:
        """Takes the best quotes of a part as findings, those another part has already by their number."""
        what = asked(sought.part.text, terms)
        analyzer = self._tools.analyzer
        groups = group(quotes(found, what, analyzer, self._watch), limit, analyzer)
        self._tell(found, {(quote.document.uri, quote.start, quote.end) for each in groups for quote in each})
        for each in groups:
            added = self._citing.add(each, self._result)
            if added is None or added[0] in sought.findings:
                continue
            number, quote = added
            if not sought.findings:
                sentence = direct(quote, what, analyzer)
                self._result.answer.add(text=" ".join(sentence.split()), findings=[number])
            sought.findings.append(number)

    def _tell(self, found: Sequence[Candidate], kept: set[tuple[str, int, int]]) -> None:
        for candidate in found:
            start, end = candidate.passage.start, candidate.passage.start + len(candidate.passage.text)
            taken = any(uri == candidate.document.uri and start <= first and last <= end for uri, first, last in kept)
            why = "quoted" if taken else "says too little of what was asked, or what another passage says better"
            self._journal.judge(candidate, taken, why)

    def _synthesize(self, found: Sequence[Sequence[Candidate]]) -> None:
        """Replaces quotes by the model's claims that quotes bear out; keeps the quotes when there are none."""
        run = self._model
        if run is None or not self._result.findings:
            return
        texts = [sought.part.text for sought in self._sought]
        synthesis = Synthesis(run, self._question.objective, texts, self._tools.analyzer)
        try:
            made = synthesis.make(found, self._question.max_findings, self._citing, self._watch, self._journal)
        except ModelFailed as failed:
            self._model_failed(failed)
            return
        finally:
            self._journal.asked(run.name, run.usage)
        if made.findings:
            made.put_into(self._result)
            for sought, numbers in zip(self._sought, made.by_part, strict=True):
                sought.findings = numbers

    def _model_failed(self, failed: ModelFailed) -> None:
        detail = f"{failed} The answer is made of quotes."
        self._journal.miss(Kind.GAP_KIND_PROVIDER_FAILED, "model", detail)

    def _conclude(self) -> None:
        result, journal = self._result, self._journal
        for sought in self._sought:
            result.sub_questions.add(text=sought.part.text, findings=sought.findings)
            if not sought.findings and len(self._sought) > 1:
                journal.miss(Kind.GAP_KIND_NOT_FOUND, sought.part.text[:MAX_WORD], self._nothing("this part"))
        statements = [finding.citations[0].quote for finding in result.findings]
        result.contradictions.extend(contradictions(statements, self._tools.analyzer))
        if not result.findings:
            journal.miss(Kind.GAP_KIND_NOT_FOUND, self._question.objective[:MAX_WORD], self._nothing("the objective"))
            result.outcome = Outcome.RESEARCH_OUTCOME_INSUFFICIENT
        elif self._partial or journal.spent:
            result.outcome = Outcome.RESEARCH_OUTCOME_PARTIAL
        else:
            result.outcome = Outcome.RESEARCH_OUTCOME_ANSWERED
        result.gaps.extend(journal.gaps())
        journal.usage.wall_time.FromMicroseconds(round(self._watch.elapsed() * 1_000_000))
        result.usage.CopyFrom(journal.usage)

    def _nothing(self, what: str) -> str:
        if self._cancelled:
            return f"Nothing that answers {what} was found before it was cancelled."
        if "wall_time" in self._journal.spent:
            return f"Nothing that answers {what} was found in the time there was."
        return f"Nothing in the {self._journal.usage.documents} documents that were searched answers {what}."


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
