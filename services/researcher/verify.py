"""Whether a citation still holds: its source is read again, as it is now."""

from conductor.v1 import researcher_pb2

from services.common.errors import Refusal
from services.researcher.citing import locator, visible
from services.researcher.documents import Text, Unreadable
from services.researcher.registry import Registry
from services.researcher.watch import OutOfTime, Watch

State = researcher_pb2.CitationState
Answer = researcher_pb2.VerifyCitationResponse


def verify(citation: researcher_pb2.Citation, registry: Registry, watch: Watch) -> Answer:
    """Says what became of a citation. What cannot be had is an answer too. Raises Cancelled."""
    source = registry.of(citation.uri)
    if source is None:
        return _missing("No source that is configured now holds it.")
    try:
        original = source.original(citation.uri, watch)
        start = _where(original.text, citation, watch)
    except (Unreadable, Refusal) as problem:
        return _missing(str(problem))
    except OutOfTime:
        return _missing("It could not be read in time.")
    answer = Answer(source_sha256=original.sha256)
    if start is None:
        answer.state = State.CITATION_STATE_QUOTE_NOT_FOUND
        answer.detail = "The quote does not stand in what a reader of the source sees now."
        return answer
    end = start + len(citation.quote)
    answer.locator.CopyFrom(locator(original.text, start, end))
    moved = start != citation.locator.char_start
    if original.sha256 == citation.source_sha256 and not moved:
        answer.state, answer.detail = State.CITATION_STATE_VALID, "The quote stands where it is said to stand."
    elif original.sha256 == citation.source_sha256:
        answer.state = State.CITATION_STATE_QUOTE_NOT_FOUND
        answer.detail = "The source is what it was, but the quote does not stand at the locator; it stands elsewhere."
    else:
        answer.state = State.CITATION_STATE_SOURCE_CHANGED
        answer.detail = f"The source changed. The quote still stands in it{', at another place' if moved else ''}."
    return answer


def _where(text: Text, citation: researcher_pb2.Citation, watch: Watch) -> int | None:
    """Returns where the quote stands: at its locator, else the visible place nearest to it. Raises OutOfTime."""
    quote, wanted = citation.quote, citation.locator.char_start
    behind = text.text.find(quote, wanted)
    while behind >= 0 and not visible(text, behind, behind + len(quote)):
        watch.check()
        behind = text.text.find(quote, behind + 1)
    if behind == wanted:
        return behind
    before = text.text.rfind(quote, 0, wanted + len(quote))
    while before >= 0 and not visible(text, before, before + len(quote)):
        watch.check()
        before = text.text.rfind(quote, 0, before + len(quote) - 1)
    found = [place for place in (behind, before) if place >= 0]
    return min(found, key=lambda place: abs(place - wanted), default=None)


def _missing(detail: str) -> Answer:
    return Answer(state=State.CITATION_STATE_SOURCE_MISSING, detail=detail)
