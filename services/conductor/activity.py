"""What a research does, gathered into a few small pieces for those who watch it. Pure: whoever uses it keeps time."""

from collections import deque

from conductor.v1 import event_pb2, researcher_pb2

from services.conductor.pieces import GROWTH
from services.conductor.protocol import MAX_ACTIVITY

PIECE_BYTES = 4096  # of a piece that names documents and passages
NAMED = 8  # documents, and passages, that a piece names
MESSAGE_CHARS = 500
URI_CHARS, TITLE_CHARS, BEGINNING_CHARS, WHY_CHARS = 300, 100, 160, 160  # of what is named
MEGA = 1_000_000

Budget = researcher_pb2.ResearchBudget
Usage = researcher_pb2.ResearchUsage


class Activity:
    """Counts what a research has done and not told yet, and keeps the newest of it.

    Args:
        interval: seconds the first piece lasts.
        budget: what the research may spend, as far as it was asked to keep to it.
    """

    def __init__(self, call_id: str, interval: float, budget: Budget) -> None:
        self._call_id = call_id
        self._interval = interval
        self._budget = budget
        self._told = 0
        self._begin()

    def _begin(self) -> None:
        self._read: deque[researcher_pb2.SourceRead] = deque(maxlen=NAMED)
        self._judged: deque[researcher_pb2.PassageJudged] = deque(maxlen=NAMED)
        self._sum = event_pb2.ResearchActivity()

    @property
    def pause(self) -> float | None:
        """Seconds until the next piece, from what it begins with; None when there is nothing to tell before the end."""
        if not self._waiting or self._told >= MAX_ACTIVITY - 1:
            return None
        return float(self._interval * GROWTH**self._told)

    def add(self, response: researcher_pb2.ResearchResponse) -> None:
        """Takes an event that is neither a sentence nor the result."""
        kind = response.WhichOneof("event")
        if kind == "read":
            self._sum.documents_read += 1
            self._sum.documents_unusable += response.read.HasField("gap")
            self._read.append(_named_read(response.read))
        elif kind == "judged":
            self._sum.passages_kept += response.judged.kept
            self._sum.passages_rejected += not response.judged.kept
            self._judged.append(_named_passage(response.judged))
        elif kind == "usage":
            self._sum.usage.CopyFrom(response.usage)
            self._sum.usage.model = response.usage.model[:TITLE_CHARS]

    def take(self, last: bool = False) -> event_pb2.TaskProgress | None:
        """Returns the next piece, None when there is none. `last` changes nothing: no event is half a one."""
        if not self._waiting:
            return None
        piece = self._sum
        piece.read.extend(self._read)
        piece.judged.extend(self._judged)
        while piece.ByteSize() > PIECE_BYTES and (piece.read or piece.judged):
            del (piece.read if len(piece.read) >= len(piece.judged) else piece.judged)[0]
        self._told += 1
        self._begin()
        return event_pb2.TaskProgress(
            message=_message(piece, self._budget)[:MESSAGE_CHARS], call_id=self._call_id, research=piece
        )

    @property
    def _waiting(self) -> bool:
        return bool(self._read or self._judged or self._sum.HasField("usage"))


def _named_read(read: researcher_pb2.SourceRead) -> researcher_pb2.SourceRead:
    named = researcher_pb2.SourceRead(uri=read.uri[:URI_CHARS], title=read.title[:TITLE_CHARS], bytes=read.bytes)
    if read.HasField("gap"):
        named.gap.kind = read.gap.kind
        named.gap.subject, named.gap.detail = read.gap.subject[:URI_CHARS], read.gap.detail[:WHY_CHARS]
    return named


def _named_passage(judged: researcher_pb2.PassageJudged) -> researcher_pb2.PassageJudged:
    return researcher_pb2.PassageJudged(
        uri=judged.uri[:URI_CHARS],
        beginning=judged.beginning[:BEGINNING_CHARS],
        kept=judged.kept,
        why=judged.why[:WHY_CHARS],
    )


# ---- sentences ----


def _message(piece: event_pb2.ResearchActivity, budget: Budget) -> str:
    parts = []
    if piece.documents_read:
        unusable = f", {piece.documents_unusable:,} of them of no use" if piece.documents_unusable else ""
        parts.append(f"Read {_count(piece.documents_read, 'document')}{unusable}.")
    if piece.passages_kept or piece.passages_rejected:
        kept = _count(piece.passages_kept, "passage")
        parts.append(f"Kept {kept} as evidence, rejected {piece.passages_rejected:,}.")
    if piece.HasField("usage"):
        parts.append(f"Spent so far: {', '.join(_spent(piece.usage, budget))}.")
    return " ".join(parts)


def _spent(usage: Usage, budget: Budget) -> list[str]:
    """Returns what was spent, and of how much where the request set a bound."""
    seconds = usage.wall_time.seconds + usage.wall_time.nanos / 1e9
    most = budget.wall_time.seconds + budget.wall_time.nanos / 1e9
    spent = [f"{seconds:.1f}{f' of {most:g}' if most else ''} s"]
    spent.append(_count(usage.documents, "document", budget.max_documents))
    megabytes = f" of {budget.max_bytes / MEGA:.1f}" if budget.max_bytes else ""
    spent.append(f"{usage.bytes / MEGA:.1f}{megabytes} MB")
    if usage.fetches or budget.max_fetches:
        spent.append(_count(usage.fetches, "request to the web", budget.max_fetches, "requests to the web"))
    if usage.model_calls or budget.max_model_calls:
        spent.append(_count(usage.model_calls, "model call", budget.max_model_calls))
    tokens = usage.model_input_tokens + usage.model_output_tokens
    if tokens or budget.max_model_tokens:
        spent.append(_count(tokens, "token", budget.max_model_tokens))
    if usage.model_cost_micros or budget.max_model_cost_micros:
        money = f" of {budget.max_model_cost_micros / MEGA:.4f}" if budget.max_model_cost_micros else ""
        spent.append(f"{usage.model_cost_micros / MEGA:.4f}{money} of money")
    return spent


def _count(count: int, one: str, most: int = 0, many: str = "") -> str:
    bound = f" of {most:,}" if most else ""
    return f"{count:,}{bound} {one if count == 1 and not most else many or f'{one}s'}"
